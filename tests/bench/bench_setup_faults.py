"""Seconds and memory of `analysis.setup.setup_faults` over millions of stored exchanges, in a process of its own each.

`python tests/bench/bench_setup_faults.py --millions 10`: healthy arms; refusals here and there; a treatment that refuses
everything; the same with a day excluded.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import duckdb

from evalpipe.analysis.settings import Exclusion, Settings
from evalpipe.analysis.setup_faults import setup_faults
from evalpipe.store.query import open_store
from evalpipe.store.schema import EXCHANGES

CASES = {
    "healthy: 1 % of 500s": "p < 0.01 AND NOT refuses",
    "refusals here and there: 1 % of 401s": "false",
    "the treatment refuses everything": "arm = 'control' AND p < 0.01",
}
REFUSES = {
    "healthy: 1 % of 500s": "false",
    "refusals here and there: 1 % of 401s": "arm = 'treatment' AND p < 0.01",
    "the treatment refuses everything": "arm = 'treatment'",
}


def make(folder: Path, n_rows: int, case: str) -> None:
    target = folder / "exchanges" / "experiment=bench" / "date=2026-06-01"
    target.mkdir(parents=True)
    n_pairs, chunk = n_rows // 2, 1_000_000
    given = {
        "request_id": "'req-' || lpad(i::VARCHAR, 12, '0')",
        "arm": "arm",
        "role": "CASE WHEN arm = 'control' THEN 'served' ELSE 'shadow' END",
        "unit_id": "md5((hash(i, 5) % 200000)::VARCHAR)",
        "started_at": f"to_timestamp(1780272000 + i * 2000000.0 / {n_pairs} + CASE WHEN arm = 'control' THEN 0 ELSE 0.4 END)",
        "outcome": "CASE WHEN refuses OR fails THEN 'http_error' ELSE 'ok' END",
        "status": "CASE WHEN refuses THEN 401 WHEN fails THEN 500 ELSE 200 END::INT",
        "error_type": "CASE WHEN refuses THEN 'authentication_error' WHEN fails THEN 'api_error' END",
        "error_message": "CASE WHEN refuses THEN 'invalid x-api-key' WHEN fails THEN 'Internal server error' END",
        "config_fingerprint": "CASE WHEN arm = 'control' THEN '0123456789abcdef' ELSE 'fedcba9876543210' END",
        "simulated": "false",
        "forced": "false",
    }
    kinds = {row[0]: row[1] for row in duckdb.from_arrow(EXCHANGES.empty_table()).query("t", "DESCRIBE t").fetchall()}
    columns = ", ".join(f"({given.get(name, 'NULL')})::{kind} AS {name}" for name, kind in kinds.items())
    for first in range(0, n_pairs, chunk):
        last = min(first + chunk, n_pairs)
        duckdb.sql(
            f"COPY (SELECT {columns} FROM (SELECT *, {CASES[case]} AS fails FROM (SELECT *, {REFUSES[case]} AS refuses FROM "
            f"(SELECT i, arm, (hash(i, arm) % 1000003) / 1000003.0 AS p FROM range({first}, {last}) r(i), "
            f"(VALUES ('control'), ('treatment')) a(arm)))) ORDER BY i, arm) TO '{target}/part-{first:09d}.parquet' "
            "(FORMAT parquet, COMPRESSION zstd)"
        )


def measure(folder: Path, excluded: bool) -> None:
    day = Exclusion(since="2026-06-05T00:00:00Z", until="2026-06-06T00:00:00Z", why="", declared_at="")
    settings = Settings(exclusions=(day,) if excluded else ())
    with open_store(folder, "bench") as store:
        began = time.monotonic()
        found = setup_faults(store.connection, experiment="bench", mode="shadow", settings=settings)
        seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{seconds:.2f} s, peak {peak:,.0f} MB, faults of {[one.count for one in found][:3]} requests", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=10)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/evalpipe-bench-setup"))
    parser.add_argument("--make", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--measure", choices=["all", "excluded"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        make(options.folder, int(options.millions * 1e6), options.make)
        return
    if options.measure:
        measure(options.folder, options.measure == "excluded")
        return
    # Each step in a process of its own: a peak of memory is inherited.
    command = [sys.executable, __file__, "--folder", str(options.folder), "--millions", str(options.millions)]
    for case in CASES:
        shutil.rmtree(options.folder, ignore_errors=True)
        subprocess.run([*command, "--make", case], check=True)
        for which in ("all", "excluded"):
            print(f"{options.millions:g} million exchanges, {case}, {which}: ", end="", flush=True)
            subprocess.run([*command, "--measure", which], check=True)
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
