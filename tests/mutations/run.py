"""`make check-mutations`: faults put into the code by hand, one at a time, each of which must fail a test of the ordinary suite.

Each definition (`*.toml` beside this file) replaces one text of one file with a wrong one, in a temporary copy of the tree, and
names the tests that must fail then. Prints one line a mutation; exits 1 where one survives, 2 where a definition is out of
date or a test fails without any mutation.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import importlib
import itertools
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
_ALL_PASSED, _SOME_FAILED = 0, 1
_NOT_COPIED = (".*", "__pycache__", "build", "dist", "*.egg-info", "node_modules")
_LIBRARIES = (
    "anthropic",
    "duckdb",
    "hypothesis",
    "jinja2",
    "msgspec",
    "numpy",
    "openai",
    "pyarrow.compute",
    "pyarrow.parquet",
    "pydantic",
    "scipy.optimize",
    "scipy.stats",
    "tqdm",
    "typer",
)
"""Imported once; each run of the tests is a fork that has them."""
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "EVALPIPE_NO_BYTECODE": "1",
}
"""No bytecode: a file that is changed twice within a second would be taken for the one that was compiled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Edit:
    """One replacement: `old`, which occurs once in `file`, with `new`."""

    file: str
    old: str
    new: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Mutation:
    """One fault. `tests` are pytest's node ids; one of them fails with it. `edits`: more than one where a second guard covers
    for the first."""

    name: str
    edits: tuple[Edit, ...]
    tests: tuple[str, ...]
    area: str

    def faults(self, root: Path) -> list[str]:
        """What is out of date in the definition."""
        found = []
        for edit in self.edits:
            path = root / edit.file
            n_found = path.read_text("utf-8").count(edit.old) if path.is_file() else 0
            if n_found != 1:
                found.append(f"{self.name}: its text occurs {n_found} times in {edit.file}, not once: {edit.old!r}")
        return found


def read_mutations(folder: Path = Path(__file__).parent) -> list[Mutation]:
    """Every definition, in the order of the files."""
    found = []
    for path in sorted(folder.glob("*.toml")):
        for one in tomllib.loads(path.read_text("utf-8"))["mutation"]:
            edits = [one, *one.get("also", ())]
            found.append(
                Mutation(
                    name=one["name"],
                    edits=tuple(Edit(file=edit["file"], old=edit["old"], new=edit["new"]) for edit in edits),
                    tests=tuple(one["tests"]),
                    area=path.stem,
                )
            )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen mutations; the exit code."""
    parser = argparse.ArgumentParser(prog="check-mutations", description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="mutations, or areas (* and ? match any text); default: all"
    )
    parser.add_argument("--jobs", type=int, default=1, help="mutations at the same time (default 1)")
    parser.add_argument(
        "--time-limit", type=float, default=300.0, metavar="SECONDS", help="for the tests of one mutation"
    )
    parser.add_argument("--list", action="store_true", help="print the names")
    options = parser.parse_args(arguments)

    mutations = _chosen(read_mutations(), options.names)
    if options.list:
        print(*(f"{one.area}: {one.name}" for one in mutations), sep="\n")
        return 0
    faults = [fault for one in mutations for fault in one.faults(ROOT)]
    if faults:
        print(*faults, sep="\n", file=sys.stderr)
        return 2

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the workers and their tests end, too
    started = time.monotonic()
    os.environ.update(_ENVIRONMENT)
    for library in _LIBRARIES:
        importlib.import_module(library)
    with tempfile.TemporaryDirectory(prefix="evalpipe-mutations-") as folder:
        trees = [_copied(Path(folder) / f"tree{number}") for number in range(max(1, min(options.jobs, len(mutations))))]
        if not _pass_without(mutations, trees[0]):
            return 2
        results = _run_all(mutations, trees, options.time_limit)
    survived = [name for name, result in results if result == "survived"]
    broken = [name for name, result in results if result not in ("killed", "survived")]
    n_killed = len(results) - len(survived) - len(broken)
    print(
        f"{len(results)} mutations: {n_killed} killed, {len(survived)} survived, {len(broken)} not run to an end",
        end=" ",
    )
    print(f"({time.monotonic() - started:.0f} s)")
    for name in survived:
        print(f"survived: {name}")
    return 1 if survived else 2 if broken else 0


def _chosen(mutations: list[Mutation], patterns: list[str]) -> list[Mutation]:
    def matches(pattern: str, one: Mutation) -> bool:
        return fnmatch.fnmatch(one.name, pattern) or fnmatch.fnmatch(one.area, pattern)

    for pattern in patterns:
        if not any(matches(pattern, one) for one in mutations):
            areas = ", ".join(sorted({one.area for one in mutations}))
            raise SystemExit(f"no mutation or area {pattern!r}; areas: {areas}; --list prints every name")
    return [one for one in mutations if not patterns or any(matches(pattern, one) for pattern in patterns)]


def _copied(to: Path) -> Path:
    shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(*_NOT_COPIED))
    return to


def _pass_without(mutations: Iterable[Mutation], tree: Path) -> bool:
    """Whether every test passes in the unchanged tree: otherwise it would kill whatever it is given."""
    tests = list(dict.fromkeys(test for one in mutations for test in one.tests))
    print(f"{len(tests)} tests without a mutation", end=" … ", flush=True)
    code, seconds, output = _tests(tests, tree, time_limit=60.0 * len(tests), first_only=False)
    print(f"{'pass' if code == _ALL_PASSED else 'FAIL'} ({seconds:.0f} s)")
    if code != _ALL_PASSED:
        print(output, file=sys.stderr)
    return code == _ALL_PASSED


def _run_all(mutations: list[Mutation], trees: list[Path], time_limit: float) -> list[tuple[str, str]]:
    """(name, result) of each; a process for each tree takes the next mutation as soon as it has time."""
    context = multiprocessing.get_context("fork")
    todo: SimpleQueue[Mutation | None] = context.SimpleQueue()
    done: SimpleQueue[tuple[str, str, float, str]] = context.SimpleQueue()
    workers = [context.Process(target=_work, args=(tree, todo, done, time_limit), daemon=True) for tree in trees]
    for worker in workers:
        worker.start()
    ahead = iter([*mutations, *(None for _ in trees)])
    for one in itertools.islice(ahead, 2 * len(trees)):
        todo.put(one)
    results = []
    for _ in mutations:
        name, result, seconds, why = done.get()
        results.append((name, result))
        print(f"{result:9s} {name} ({seconds:.0f} s) {why}".rstrip(), flush=True)
        for one in itertools.islice(ahead, 1):
            todo.put(one)
    for one in ahead:
        todo.put(one)
    for worker in workers:
        worker.join()
    return results


def _work(
    tree: Path,
    todo: SimpleQueue[Mutation | None],
    done: SimpleQueue[tuple[str, str, float, str]],
    time_limit: float,
) -> None:
    while (one := todo.get()) is not None:
        done.put((one.name, *_run(one, tree, time_limit)))


def _run(one: Mutation, tree: Path, time_limit: float) -> tuple[str, float, str]:
    """(result, seconds, the test that failed or what went wrong)."""
    before = {tree / edit.file: (tree / edit.file).read_text("utf-8") for edit in one.edits}
    try:
        for edit in one.edits:
            path = tree / edit.file
            path.write_text(path.read_text("utf-8").replace(edit.old, edit.new, 1), "utf-8")
        code, seconds, output = _tests(one.tests, tree, time_limit=time_limit, first_only=True)
    finally:
        for path, text in before.items():
            path.write_text(text, "utf-8")
    if code == _ALL_PASSED:
        return "survived", seconds, ", ".join(one.tests)
    failed = [line for line in output.splitlines() if line.startswith(("FAILED tests/", "ERROR tests/"))]
    if code == _SOME_FAILED and failed:
        return "killed", seconds, failed[0].split(" - ")[0].removeprefix("FAILED ")
    if code is None:
        return "error", seconds, "the tests did not end in time"
    return "error", seconds, f"pytest ended with {code}: {output[-500:]}"


def _tests(tests: Sequence[str], tree: Path, *, time_limit: float, first_only: bool) -> tuple[int | None, float, str]:
    """(pytest's exit code, None where it did not end in time; seconds; what it printed).

    The process is a fork of this one, which has imported the libraries once for all: evalpipe itself is imported from the tree.
    """
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = os.fork()
        if not process:
            _pytest(tests, tree, output.fileno(), first_only)
        code: int | None = None
        try:
            while code is None and time.monotonic() - started < time_limit:
                ended, status = os.waitpid(process, os.WNOHANG)
                if ended:
                    code = os.waitstatus_to_exitcode(status)
                else:
                    time.sleep(0.02)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)  # also a process that a test started and a fault left running
        if code is None:
            os.waitpid(process, 0)
        output.seek(0)
        return code, time.monotonic() - started, output.read().decode("utf-8", "replace")


def _pytest(tests: Sequence[str], tree: Path, output: int, first_only: bool) -> NoReturn:
    os.setsid()
    os.chdir(tree)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    shared = os.environ.get("EVALPIPE_SHARED", str(ROOT.parent / "shared"))
    os.environ.update({"PYTHONPATH": str(tree), "EVALPIPE_SHARED": shared})
    sys.dont_write_bytecode = True
    sys.path[:] = [str(tree), *(entry for entry in sys.path if entry not in ("", str(Path(__file__).parent)))]
    options = ["-q", "-n", "0", "--no-header", "--tb", "line", "-rfE", "-p", "no:cacheprovider"]
    options += [
        "--timeout",
        "60",
        "-W",
        "ignore::pytest.PytestAssertRewriteWarning",
    ]  # of plugins that were imported before
    code = pytest.main([*options, *(["-x"] if first_only else []), *tests])
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())
