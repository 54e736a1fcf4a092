"""How fast `load` turns a spool into Parquet, beside DuckDB on the same bytes, and how fast the views answer.

`python tests/bench/bench_load.py [N_REQUESTS [ROUNDS [streamed]]]` makes a spool of N requests (0.9 KB asked, 1.3 KB answered
by each arm, nine in ten copied; with `streamed` in 100 events, 27 KB of OpenAI's and 13 KB of Anthropic's), loads it with one
process and with all cores, has DuckDB turn the same lines into Parquet (by turns, the best of ROUNDS each), and asks three
questions. Not part of the suite.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from spool_builders import T0, copy, request, served, shadow

import evalpipe.store.exchange_rows
from evalpipe.providers.base import ReplyWriter, Usage
from evalpipe.providers.chat import ChatWriter
from evalpipe.providers.messages import MessagesWriter
from evalpipe.spool.format import render_record
from evalpipe.store.exchange_rows import ReadingRules
from evalpipe.store.load import SpoolLoad
from evalpipe.store.query import open_store
from evalpipe.store.schema import forgo_pandas

QUESTIONS = {
    "one narrow scan": "SELECT arm, outcome, count(*), avg(latency_ms) FROM exchanges GROUP BY ALL",
    "the pairs' differences": "SELECT count(*), avg(treatment_cost_usd - control_cost_usd) FROM pairs",
    "users": "SELECT count(DISTINCT unit_id) FROM exchanges",
}


STREAM = {"content-type": "text/event-stream"}
USAGE = Usage(input_tokens=900, output_tokens=120)


def as_stream(writer: ReplyWriter, text: str) -> bytes:
    size = -(-len(text) // 100)
    pieces = [writer.text(text[start : start + size]) for start in range(0, len(text), size)]
    return b"".join([writer.start(USAGE), *pieces, writer.finish("end", USAGE)])


def streamed_answers(i: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The bodies of both arms' answers as event streams."""
    chat = ChatWriter(answer_id=f"chatcmpl-{i}", model="gpt-4o-2024-08-06", created=1_780_000_000, include_usage=True)
    message = MessagesWriter(answer_id=f"msg_{i}", model="claude-haiku-4-5")
    fields = {"headers": STREAM, "marks": [(200, 90.0)]}
    return (
        {"body": as_stream(chat, f"{i} " + "because " * 120), **fields},
        {"body": as_stream(message, f"{i} " + "therefore " * 100), **fields},
    )


def whole_answers(i: int) -> tuple[dict[str, Any], dict[str, Any]]:
    return {"text": f"{i} " + "because " * 120}, {"text": f"{i} " + "therefore " * 100}


def make_spool(spool: Path, n_requests: int, *, streamed: bool = False) -> int:
    spool.mkdir(parents=True)
    segments = {kind: (spool / f"{kind}-0.000001.jsonl").open("wb") for kind in ("served", "shadow")}
    for i in range(n_requests):
        name, at = f"r{i:08d}c", T0 + 0.01 * i
        body = {
            "model": "gpt-4o",
            "messages": [{"role": "user", "content": f"{i} " + "why " * 200}],
            "user": f"u{i % 997}",
            **({"stream": True, "stream_options": {"include_usage": True}} if streamed else {}),
        }
        answer, copied = streamed_answers(i) if streamed else whole_answers(i)
        segments["served"].write(render_record(request(name, at=at, body=body)))
        segments["served"].write(render_record(served(name, at=at, **answer)))
        sampled = i % 10 != 0
        segments["shadow"].write(render_record(shadow(name, "sampled" if sampled else "not_sampled", at=at)))
        if sampled:
            segments["shadow"].write(render_record(copy(name, at=at + 0.001, **copied)))
    for file in segments.values():
        file.close()
    return sum(path.stat().st_size for path in spool.iterdir())


def main(n_requests: int, n_rounds: int, *, streamed: bool) -> None:
    root = Path(tempfile.mkdtemp(prefix="evalpipe-bench-load-"))
    try:
        n_bytes = make_spool(root / "made", n_requests, streamed=streamed)
        print(f"{n_requests:,} requests, {n_bytes / 1e6:,.0f} MB of log; evalpipe {_kind()}")
        cores = os.cpu_count() or 1
        ours: dict[int, list[Run]] = {1: [], cores: []}
        duckdb: list[Run] = []
        for _ in range(n_rounds):  # by turns: what else runs on the machine meets both
            for processes, runs in ours.items():
                data = root / "data"
                shutil.rmtree(data, ignore_errors=True)
                shutil.copytree(root / "made", data / "spool")
                runs.append(_measured("load", data, processes))
            duckdb.append(_measured("duckdb", root, cores))
        for processes, runs in ours.items():
            print(f"load, {processes} process{'es' if processes > 1 else ''}: {_described(runs, n_bytes)}")
        print(f"DuckDB's JSON → Parquet, {cores} threads: {_described(duckdb, n_bytes)}")
        n_exchanges = ours[cores][0].n_exchanges
        wall, cpu = _best(ours[cores], n_exchanges), _best(duckdb, n_exchanges)
        print(f"load ÷ DuckDB: {wall[0] / cpu[0]:.2f} by wall time, {wall[1] / cpu[1]:.2f} by CPU time")
        with open_store(root / "data", "exp") as store:
            for name, query in QUESTIONS.items():
                started = time.perf_counter()
                store.connection.execute(query).fetchall()
                print(f"{name}: {time.perf_counter() - started:.3f} s")
    finally:
        shutil.rmtree(root)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run in a process of its own. `n_peak`: the most memory (RSS) of the process and its children at one moment."""

    n_exchanges: int
    wall_s: float
    cpu_s: float
    n_peak: int
    n_parquet: int


def _measured(what: str, folder: Path, n: int) -> Run:
    # Not this file as the main module: each process that helps would run it again.
    code = f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]; from bench_load import in_a_process; "
    command = [sys.executable, "-P", "-c", f"{code}in_a_process({what!r}, {str(folder)!r}, {n})"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(map(_rss, _family(process.pid))))
            time.sleep(0.02)
        assert process.stdout is not None
        printed = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{what} with {n} ended with {process.returncode}")
    n_exchanges, wall_s, cpu_s, n_parquet = json.loads(printed)
    return Run(n_exchanges=n_exchanges, wall_s=wall_s, cpu_s=cpu_s, n_peak=peak, n_parquet=n_parquet)


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(one for child in children for one in _family(int(child)))]


def _rss(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):
        return 0


def _best(runs: list[Run], n_exchanges: int) -> tuple[float, float]:
    """Exchanges a second and a CPU second, each of the best run."""
    return n_exchanges / min(run.wall_s for run in runs), n_exchanges / min(run.cpu_s for run in runs)


def _described(runs: list[Run], n_bytes: int) -> str:
    first = runs[0]
    wall = min(run.wall_s for run in runs)
    parts = [f"{wall:.1f} s, {n_bytes / wall / 1e6:.0f} MB/s"]
    if first.n_exchanges:
        a_second, a_cpu_second = _best(runs, first.n_exchanges)
        parts.append(f"{a_second:,.0f} exchanges/s, {a_cpu_second:,.0f} a CPU second")
    parts.append(f"{min(run.cpu_s for run in runs):.1f} CPU s")
    parts.append(f"memory {max(run.n_peak for run in runs) / 1e6:.0f} MB, Parquet {first.n_parquet / 1e6:.1f} MB")
    return ", ".join(parts)


def _kind() -> str:
    return "compiled" if evalpipe.store.exchange_rows.__file__.endswith(".so") else "interpreted"


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _load(data: Path, processes: int) -> tuple[int, Path]:
    forgo_pandas()  # as `evalpipe load` does
    rules = ReadingRules(unit_sources=["body:user"], unit_key=b"key")
    return SpoolLoad(data, data / "spool", rules=rules, now=T0, processes=processes).run().n_exchanges, data


def _duckdb(root: Path, threads: int) -> tuple[int, Path]:
    """What any load has to do at least: the lines' own JSON into columns, the bodies as they are."""
    target = root / "duckdb"
    target.mkdir(exist_ok=True)
    with duckdb.connect() as connection:
        connection.execute(f"SET threads = {threads}")
        connection.execute("SET enable_progress_bar = false")  # it is printed on stdout, after two seconds
        connection.execute(
            f"COPY (SELECT * FROM read_json('{root}/made/*.jsonl', format = 'newline_delimited', union_by_name = true)) "
            f"TO '{target}/made.parquet' (FORMAT parquet, COMPRESSION zstd)"
        )
    return 0, target


def in_a_process(what: str, folder: str, n: int) -> None:
    """One run; prints exchanges, seconds, CPU seconds and the bytes of its Parquet files."""
    started, cpu = time.perf_counter(), _cpu_s()
    n_exchanges, written = {"load": _load, "duckdb": _duckdb}[what](Path(folder), n)
    wall_s, cpu_s = time.perf_counter() - started, _cpu_s() - cpu
    print(json.dumps([n_exchanges, wall_s, cpu_s, sum(path.stat().st_size for path in written.rglob("*.parquet"))]))


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 50_000,
        int(sys.argv[2]) if len(sys.argv) > 2 else 3,
        streamed="streamed" in sys.argv,
    )
