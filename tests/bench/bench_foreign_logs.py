"""Rows a second of `evalpipe load` on a log of one's own, as JSON lines, CSV and Parquet, beside DuckDB's own reading.

python tests/bench/bench_foreign_logs.py --rows 1000000
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

COLUMNS = """
    'request ' || i AS request_id, 'user ' || (i % 5000) AS user_id, 'What is ' || i || ' times ' || (i % 97) || '?' AS prompt,
    'It is ' || (i * (i % 97)) || ', which is easy to see when one multiplies both numbers by hand.' AS answer,
    1793696400 + i AS ts, 500 + i % 900 AS latency_ms, 20 + i % 50 AS input_tokens, 10 + i % 40 AS output_tokens
"""
MAP = (
    "id=request_id, user=user_id, prompt=prompt, text=answer, time=ts, latency_ms=latency_ms, input_tokens=input_tokens, "
    "output_tokens=output_tokens"
)
CHILD = """
import resource, sys, time
from pathlib import Path
from evalpipe.workspace.load import load
from evalpipe.workspace.load import LoadOptions
from evalpipe.workspace.paths import Workspace
path, root, mapping = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
begun, used = time.perf_counter(), time.process_time()
workspace = Workspace(root=root, data=root / "data", config=None)
summary = load(workspace, [path], options=LoadOptions(mapping=mapping), show_progress=False)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(summary.n_exchanges, time.perf_counter() - begun, time.process_time() - used, peak)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    rows = parser.parse_args().rows
    readers = {"jsonl": "read_json_auto", "csv": "read_csv_auto", "parquet": "read_parquet"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind, form in (("jsonl", "JSON"), ("csv", "CSV, HEADER"), ("parquet", "PARQUET")):
            path = folder / f"log.{kind}"
            with duckdb.connect(":memory:") as connection:
                made = f"SELECT {COLUMNS} FROM range({rows}) AS t(i)"
                connection.execute(f"COPY ({made}) TO '{path}' (FORMAT {form})")
                begun = time.perf_counter()
                connection.execute(f"CREATE TABLE t AS FROM {readers[kind]}('{path}')")
                duck_s = time.perf_counter() - begun
            done = subprocess.run(
                [sys.executable, "-c", CHILD, str(path), str(folder / kind), MAP],
                capture_output=True,
                text=True,
                check=True,
            )
            n, wall, used, peak = done.stdout.split()
            result = {
                "kind": kind, "rows": int(n),
                "rows_per_s": round(int(n) / float(wall)), "rows_per_cpu_s": round(int(n) / float(used)),
                "peak_mb": round(int(peak) / 1024), "times_duckdb": round(float(wall) / duck_s, 1),
            }  # fmt: skip
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
