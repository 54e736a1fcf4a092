"""Simulations cut into chunks that run in any order, and the file that keeps what each chunk gave.

A part is one simulation of many replications. Its chunks have random numbers of their own (the part's seed and the chunk's
number), so a chunk gives the same result whenever and wherever it runs. A result is kept under the part's name and the
fingerprint of the code it came from; an interrupted run goes on with the chunks that are missing.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from lines import Line

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parents[1] / "evalpipe"

Sums = dict[str, float | list[float]]
"""What a chunk gives: numbers that add up over chunks, and lists that are joined."""
Parameter = float | int | str | bool | tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """`n` replications, the first of them number `first` of the part."""

    first: int
    n: int
    rng: np.random.Generator


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One simulation.

    Args:
        name: Unique; what `--only` selects.
        simulate: `simulate(chunk, **parameters)`, a function of a module in this folder.
        report: `report(sums, **parameters)` makes the printed lines; `sums["replications"]` is how many there were.
        replications: In all.
        per_chunk: At most so many at a time: what a killed run loses.
        seed: Of the random numbers.
        packages: Below `evalpipe/`: the code the results depend on beside the part's own module.
    """

    name: str
    simulate: Callable[..., Sums]
    report: Callable[..., list[Line]]
    replications: int
    per_chunk: int
    seed: int
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    packages: tuple[str, ...] = ("stats",)

    def chunk_sizes(self, scale: float = 1.0) -> list[int]:
        """Replications of each chunk; `scale` keeps that share of the chunks, at least one."""
        sizes = [
            min(self.per_chunk, self.replications - first) for first in range(0, self.replications, self.per_chunk)
        ]
        return sizes[: max(1, math.ceil(len(sizes) * min(scale, 1.0) - 1e-9))]

    def run(self, index: int) -> Sums:
        """The sums of chunk `index`, with its number of replications."""
        n = self.chunk_sizes()[index]
        chunk = Chunk(first=index * self.per_chunk, n=n, rng=np.random.default_rng([self.seed, index]))
        sums = self.simulate(chunk, **self.parameters)
        return {**sums, "replications": n}

    @property
    def fingerprint(self) -> str:
        """Changes with the code in `packages`, the part's module and what that imports from here, and the parameters."""
        modules = _modules_used(self.simulate.__module__)
        digests = [_code_digest(path) for path in sorted(modules)]
        digests += [package_digest(package) for package in self.packages]
        given = json.dumps([self.simulate.__name__, self.seed, self.per_chunk, dict(self.parameters)], sort_keys=True)
        return hashlib.sha256("\n".join([*digests, given]).encode()).hexdigest()[:16]


def combined(results: Iterable[Sums]) -> Sums:
    """The sums of several chunks."""
    total: Sums = {}
    for sums in results:
        for name, value in sums.items():
            if isinstance(value, list):
                before = total.setdefault(name, [])
                assert isinstance(before, list), f"{name} is a list in one chunk and a number in another"
                total[name] = before + value
            else:
                before = total.setdefault(name, 0.0)
                assert not isinstance(before, list), f"{name} is a list in one chunk and a number in another"
                total[name] = before + value
    return total


class Results:
    """A JSON-lines file of chunk results: one line a chunk, appended as it ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._found: dict[tuple[str, str, int], Sums] = {}
        self._seconds: dict[tuple[str, str], float] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:  # the line that was being written when the run was killed
                    continue
                self._keep(entry)

    def get(self, part: Part, index: int) -> Sums | None:
        return self._found.get((part.name, part.fingerprint, index))

    def seconds(self, part: Part) -> float:
        """CPU seconds of the part's chunks so far."""
        return self._seconds.get((part.name, part.fingerprint), 0.0)

    def add(self, part: Part, index: int, sums: Sums, seconds: float) -> None:
        """Keep a chunk's result. `seconds`: of CPU time."""
        entry = {
            "part": part.name,
            "code": part.fingerprint,
            "chunk": index,
            "cpu_seconds": round(seconds, 3),
            "sums": sums,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+") as file:
            if file.tell() > 0 and not self._ends_with_newline():
                file.write("\n")
            file.write(json.dumps(entry) + "\n")
        self._keep(entry)

    def forget(self, names: Iterable[str]) -> None:
        """Drop every result of these parts, of any code."""
        dropped = set(names)
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_text().splitlines() if _part_of(line) not in {*dropped, None}]
        self.path.write_text("".join(f"{line}\n" for line in kept))
        self._found = {key: sums for key, sums in self._found.items() if key[0] not in dropped}
        self._seconds = {key: seconds for key, seconds in self._seconds.items() if key[0] not in dropped}

    def _keep(self, entry: dict) -> None:
        key = (entry["part"], entry["code"])
        if (*key, entry["chunk"]) not in self._found:
            self._seconds[key] = self._seconds.get(key, 0.0) + entry["cpu_seconds"]
        self._found[(*key, entry["chunk"])] = entry["sums"]

    def _ends_with_newline(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1) == b"\n"


def _part_of(line: str) -> str | None:
    try:
        return str(json.loads(line)["part"])
    except (json.JSONDecodeError, KeyError):
        return None


@cache
def _modules_used(module: str) -> frozenset[Path]:
    """The file of `module` and of every module of this folder it imports, directly or not."""
    path = HERE / f"{module}.py"
    found = {path}
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if (HERE / f"{name}.py").exists() and HERE / f"{name}.py" not in found:
                found |= _modules_used(name)
    return frozenset(found - {HERE / "lines.py", HERE / "chunks.py"})


@cache
def package_digest(package: str) -> str:
    """Of the Python and SQL code below `evalpipe/package`; "" for all of it."""
    folder = PACKAGE / package
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix in {".py", ".sql"}]
    parts = [f"{path.relative_to(PACKAGE).as_posix()} {_code_digest(path)}" for path in paths]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@cache
def _code_digest(path: Path) -> str:
    """Of the code alone: comments, docstrings and layout do not change a result."""
    text = path.read_text()
    if path.suffix != ".py":
        return hashlib.sha256(text.encode()).hexdigest()
    tree = ast.parse(text)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [item for item in body if not _is_text(item)]  # type: ignore[attr-defined]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
