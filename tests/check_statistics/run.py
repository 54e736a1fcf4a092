"""`make check-statistics`: the simulations behind the methods and the rules of the decision, through the public functions.

Prints one line a figure (seen, as designed, bound) and exits 1 when a bound fails. Seeds are fixed. About an hour on two
cores; what a run has done is kept in build/check_statistics/results.jsonl, so an interrupted run goes on where it stopped
and a part is simulated again only after its code has changed.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import signal
import sys
import threading
import time
import traceback
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from chunks import Part, Results, Sums, combined
from lines import HEADER
from parts import PARTS
from tqdm import tqdm

RESULTS = Path(__file__).resolve().parents[2] / "build" / "check_statistics" / "results.jsonl"
PROCESSES = 2


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, print every figure, return the exit code."""
    options = _parse(arguments)
    chosen = _chosen(options.only)
    results = Results(options.results)
    if options.fresh:
        results.forget(part.name for part in chosen)
    start = time.monotonic()
    print(HEADER)
    run = _Run(chosen, results, options.scale)
    try:
        failed = run.until_done()
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130
    cpu = sum(results.seconds(part) for part in chosen)
    verdict = "all bounds hold" if not failed else f"{failed} bounds FAILED"
    print(f"{verdict} ({time.monotonic() - start:.0f} s now, {cpu:.0f} s of CPU time in all)")
    return 1 if failed else 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="check-statistics", description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="a part (* and ? match any text)")
    parser.add_argument("--scale", type=float, default=1.0, help="the share of the replications to run: 0.1 for a look")
    parser.add_argument("--fresh", action="store_true", help="forget what earlier runs have done")
    parser.add_argument("--results", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def _chosen(patterns: list[str]) -> list[Part]:
    if not patterns:
        return PARTS
    found = [part for part in PARTS if any(fnmatch.fnmatchcase(part.name, pattern) for pattern in patterns)]
    if not found:
        names = "\n  ".join(part.name for part in PARTS)
        raise SystemExit(f"no part is called {', '.join(patterns)}; there are:\n  {names}")
    return found


class _Run:
    """Two processes work on the missing chunks; a part is printed when its last chunk is there."""

    def __init__(self, parts: list[Part], results: Results, scale: float) -> None:
        self.parts, self.results = parts, results
        self.by_name = {part.name: part for part in parts}
        self.chunks = {part.name: range(len(part.chunk_sizes(scale))) for part in parts}
        self.broken: set[str] = set()

    def until_done(self) -> int:
        """Returns how many bounds failed; a part that could not run counts as one."""
        missing = [
            (part.name, index)
            for part in self.parts
            for index in self.chunks[part.name]
            if self.results.get(part, index) is None
        ]
        total = sum(len(indices) for indices in self.chunks.values())
        failed = sum(self._print(part) for part in self.parts if self._is_complete(part))
        with (
            ProcessPoolExecutor(PROCESSES, initializer=_follow, initargs=(os.getpid(),)) as pool,
            tqdm(total=total, initial=total - len(missing), unit="chunk", disable=None if missing else True) as bar,
        ):
            waiting = iter(missing)
            running: dict[Future[tuple[Sums, float]], tuple[str, int]] = {}
            try:
                while True:
                    while len(running) < 2 * PROCESSES and (item := next(waiting, None)) is not None:
                        if item[0] not in self.broken:
                            running[pool.submit(run_chunk, *item)] = item
                    if not running:
                        return failed
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        failed += self._take(future, *running.pop(future), bar)
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _take(self, future: Future[tuple[Sums, float]], name: str, index: int, bar: tqdm) -> int:
        part = self.by_name[name]
        bar.update()
        error = future.exception()
        if error is not None:
            if name in self.broken:
                return 0
            self.broken.add(name)
            tqdm.write(f"{name}: FAILED\n{''.join(traceback.format_exception(error))}", file=sys.stdout)
            return 1
        self.results.add(part, index, *future.result())
        return self._print(part) if self._is_complete(part) else 0

    def _is_complete(self, part: Part) -> bool:
        return all(self.results.get(part, index) is not None for index in self.chunks[part.name])

    def _print(self, part: Part) -> int:
        found = [self.results.get(part, index) for index in self.chunks[part.name]]
        lines = part.report(combined(sums for sums in found if sums is not None), **part.parameters)
        for line in lines:
            tqdm.write(line.render(), file=sys.stdout)
        sys.stdout.flush()
        return sum(not line.passed for line in lines)


def _follow(parent: int) -> None:
    """In a process of the pool: leave interrupts to the parent, and end with it even where it was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def run_chunk(name: str, index: int) -> tuple[Sums, float]:
    """In a process of the pool: the sums of a part's chunk and the CPU seconds it took."""
    start = time.process_time()
    part = next(part for part in PARTS if part.name == name)
    return part.run(index), time.process_time() - start


if __name__ == "__main__":
    sys.exit(main())
