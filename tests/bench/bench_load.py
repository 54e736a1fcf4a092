"""How fast `load` turns a spool into Parquet, and how fast the views answer.

`python tests/bench/bench_load.py [N_REQUESTS]` makes a spool of N requests (0.9 KB asked, 1.3 KB answered by each arm, nine in
ten copied), loads it with one process and with all cores, and asks three questions. Not part of the suite.
"""

from __future__ import annotations

import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from spool_builders import T0, copy, request, served, shadow

from evalpipe.spool.format import render_record
from evalpipe.store.exchange_rows import ReadingRules
from evalpipe.store.load import SpoolLoad
from evalpipe.store.query import open_store

QUESTIONS = {
    "one narrow scan": "SELECT arm, outcome, count(*), avg(latency_ms) FROM exchanges GROUP BY ALL",
    "the pairs' differences": "SELECT count(*), avg(treatment_cost_usd - control_cost_usd) FROM pairs",
    "users": "SELECT count(DISTINCT unit_id) FROM exchanges",
}


def make_spool(spool: Path, n_requests: int) -> int:
    spool.mkdir(parents=True)
    segments = {kind: (spool / f"{kind}-0.000001.jsonl").open("wb") for kind in ("served", "shadow")}
    for i in range(n_requests):
        name, at = f"r{i:08d}c", T0 + 0.01 * i
        body = {
            "model": "gpt-4o",
            "messages": [{"role": "user", "content": f"{i} " + "why " * 200}],
            "user": f"u{i % 997}",
        }
        segments["served"].write(render_record(request(name, at=at, body=body)))
        segments["served"].write(render_record(served(name, at=at, text=f"{i} " + "because " * 120)))
        sampled = i % 10 != 0
        segments["shadow"].write(render_record(shadow(name, "sampled" if sampled else "not_sampled", at=at)))
        if sampled:
            segments["shadow"].write(render_record(copy(name, at=at + 0.001, text=f"{i} " + "therefore " * 100)))
    for file in segments.values():
        file.close()
    return sum(path.stat().st_size for path in spool.iterdir())


def main(n_requests: int) -> None:
    root = Path(tempfile.mkdtemp(prefix="evalpipe-bench-load-"))
    try:
        n_bytes = make_spool(root / "made", n_requests)
        print(f"{n_requests:,} requests, {n_bytes / 1e6:,.0f} MB of log")
        for processes in sorted({1, os.cpu_count() or 1}):
            data = root / str(processes)
            shutil.copytree(root / "made", data / "spool")
            started = time.perf_counter()
            rules = ReadingRules(unit_sources=["body:user"], unit_key=b"key")
            summary = SpoolLoad(data, data / "spool", rules=rules, now=T0, processes=processes).run()
            seconds = time.perf_counter() - started
            stored = sum(path.stat().st_size for path in data.rglob("*.parquet"))
            own, children = (
                resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
            )
            print(
                f"{processes} process(es): {summary.n_exchanges:,} exchanges in {seconds:.1f} s = "
                f"{summary.n_exchanges / seconds:,.0f}/s, {n_bytes / seconds / 1e6:.0f} MB/s, Parquet {stored / 1e6:.0f} MB, "
                f"memory {own:.0f} MB, largest child {children:.0f} MB"
            )
        with open_store(data, "exp") as store:
            for name, query in QUESTIONS.items():
                started = time.perf_counter()
                store.connection.execute(query).fetchall()
                print(f"{name}: {time.perf_counter() - started:.3f} s")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 50_000)
