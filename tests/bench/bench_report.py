"""How long `evalpipe report --json` takes and how much memory it needs at 1, 3 and 10 million exchanges.

    python tests/bench/bench_report.py [--millions 1 3 10] [--folder /tmp/evalpipe-bench-report] [--keep]

The exchanges are made with DuckDB SQL straight into the store's layout: users with different habits, log-normal latencies,
1 % errors, half the answers streamed, conversations of three turns, requests and answers of a few hundred characters (as a real
log has them; `answer_empty` as load writes it, so that none of them is read). Pairs = exchanges / 2, users = exchanges / 20.
Prints one line a size: seconds, peak memory of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import duckdb

EXPERIMENT = "bench"
ROWS_PER_FILE = 500_000


def make_exchanges(folder: Path, n_exchanges: int) -> None:
    """Parquet files of `n_exchanges` exchanges (half control, half treatment) under `folder`/data/exchanges."""
    target = folder / "data" / "exchanges" / f"experiment={EXPERIMENT}" / "date=2026-06-01"
    target.mkdir(parents=True, exist_ok=True)
    n_pairs, n_users = n_exchanges // 2, n_exchanges // 20
    connection = duckdb.connect()
    connection.execute("SET preserve_insertion_order = false")
    for first in range(0, n_pairs, ROWS_PER_FILE // 2):
        last = min(first + ROWS_PER_FILE // 2, n_pairs)
        connection.execute(
            f"""
            COPY (
              WITH base AS (
                SELECT i, arm, hash(i, arm) AS h1, hash(i, arm, 2) AS h2, hash(i, arm, 3) AS h3, hash(i, 4) AS h4,
                  hash(i // 3, 5) % {n_users} AS user_no
                FROM range({first}, {last}) r(i), (VALUES ('control'), ('treatment')) a(arm)
              ), drawn AS (
                SELECT *, (h1 % 1000003) / 1000003.0 AS p1, (h2 % 1000003 + 1) / 1000004.0 AS p2,
                  (h3 % 1000003) / 1000003.0 AS p3, h4 % 2 = 0 AS streamed,
                  (hash(user_no, 6) % 1000) / 1000.0 AS habit
                FROM base
              ), shaped AS (
                SELECT *, p1 < 0.01 AS failed,
                  exp(6.5 + 0.6 * sqrt(-2 * ln(p2)) * cos(2 * pi() * p3) + 0.3 * habit
                      - CASE WHEN arm = 'treatment' THEN 0.05 ELSE 0 END) AS latency,
                  (40 + h4 % 900)::BIGINT AS tokens_in, (20 + h2 % 400 + (100 * habit)::INT)::BIGINT AS tokens_out
                FROM drawn
              )
              SELECT 'req-' || lpad(i::VARCHAR, 12, '0') AS request_id, arm,
                CASE WHEN arm = 'control' THEN 'served' ELSE 'shadow' END AS role, md5(user_no::VARCHAR) AS unit_id,
                md5((i // 3)::VARCHAR) AS conversation_id,
                to_timestamp(1780272000 + i * 86000.0 / {n_pairs}) AS started_at,
                CASE WHEN arm = 'control' THEN 'openai' ELSE 'anthropic' END AS provider,
                'chat.completions' AS endpoint,
                CASE WHEN arm = 'control' THEN 'gpt-4o' ELSE 'claude-opus-4-8' END AS model_requested,
                CASE WHEN arm = 'control' THEN 'gpt-4o' ELSE 'claude-opus-4-8' END AS model,
                '{{"messages":[{{"role":"user","content":"' || repeat(md5(h4::VARCHAR) || ' ', 8) || '"}}]}}' AS request,
                '{{"choices":[{{"message":{{"content":"' || repeat(md5(h2::VARCHAR) || ' ', 12) || '"}}}}]}}' AS response,
                NULL::VARCHAR AS meta, CASE WHEN NOT failed THEN repeat(md5(h2::VARCHAR) || ' ', 12) END AS text,
                NULL::VARCHAR AS tool_calls,
                'stop' AS finish_reason,
                CASE WHEN failed AND h3 % 5 = 0 THEN 'timeout' WHEN failed THEN 'http_error'
                     WHEN h3 % 200 = 0 THEN 'refused' WHEN h3 % 150 = 0 THEN 'truncated' ELSE 'ok' END AS outcome,
                CASE WHEN failed THEN 500 ELSE 200 END::INT AS status, NULL::VARCHAR AS error_type,
                NULL::VARCHAR AS error_message, latency AS latency_ms,
                CASE WHEN streamed THEN latency * 0.2 END AS ttft_ms, streamed,
                CASE WHEN NOT failed THEN tokens_in END AS input_tokens, 0::BIGINT AS cached_input_tokens,
                0::BIGINT AS cache_write_tokens, CASE WHEN NOT failed THEN tokens_out END AS output_tokens,
                NULL::BIGINT AS reasoning_tokens,
                CASE WHEN NOT failed THEN (tokens_in * 2.5 + tokens_out * 10) / 1e6 END AS cost_usd,
                to_timestamp(1780272000) AS priced_at, 'f' AS config_fingerprint, false AS simulated,
                CASE WHEN arm = 'control' THEN 'sampled' END AS shadow_status, NULL::VARCHAR AS shadow_reason,
                repeat(md5(h4::VARCHAR) || ' ', 8) AS prompt, NULL::DOUBLE AS percentage, false AS forced,
                (1 + i % 3)::INT AS turn, 0::INT AS step,
                'chat.completions' || CASE WHEN streamed THEN ' streamed with usage' ELSE '' END AS request_kind,
                failed AS answer_empty
              FROM shaped
            ) TO '{target}/part-{first:010d}.parquet' (FORMAT parquet, COMPRESSION zstd)"""
        )
    (folder / "evalpipe.toml").write_text(f'[experiment]\nname = "{EXPERIMENT}"\n', encoding="utf-8")


def run_report(folder: Path) -> dict[str, float]:
    """One `evalpipe report --json` in its own process: seconds, peak resident MB, CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "evalpipe", "report", "--json"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    document = json.loads(done.stdout)
    measured = [one["name"] for one in document["metrics"] if one["status"] == "ok"]
    return {
        "seconds": seconds,
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_mb": after.ru_maxrss / 1024,
        "n_metrics": len(measured),
        "pairs": document["funnel"]["pairs"],
        "users": document["funnel"]["users"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, nargs="+", default=[1, 3, 10])
    parser.add_argument("--folder", type=Path, default=Path("/tmp/evalpipe-bench-report"))
    parser.add_argument("--keep", action="store_true", help="keep the generated data for the next run")
    options = parser.parse_args()
    for millions in options.millions:
        folder = options.folder / f"{millions:g}m"
        if not (folder / "evalpipe.toml").exists():
            make_exchanges(folder, int(millions * 1e6))
        found = run_report(folder)
        print(
            f"{millions:g} million exchanges ({found['pairs']:,} pairs, {found['users']:,} users): {found['seconds']:.1f} s, "
            f"{found['cpu_s']:.1f} CPU s, peak {found['peak_mb']:,.0f} MB, {found['n_metrics']} metrics with status ok",
            flush=True,
        )
        if not options.keep:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
