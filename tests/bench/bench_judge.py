"""What judging costs this machine: CPU per judgment beside a bare SDK loop, planning, memory against the number of pairs.

`python tests/bench/bench_judge.py [cpu] [plan] [memory]`. The provider is simulated, in a process of its own.
"""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from judge_harness import environment, finish, say, simulated, workspace

OPEN = {
    "requests_per_minute": 1e6,
    "input_tokens_per_minute": 1e9,
    "output_tokens_per_minute": 1e9,
    "concurrency": 16,
}


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def cpu(n_pairs: int = 1000) -> bool:
    """CPU seconds a call, ours against a bare loop over the SDK with the same requests, both in this process."""
    from evalpipe.calls.client import message_params, open_sdk
    from evalpipe.judging.judgments import message_of
    from evalpipe.judging.plan import make_plan, pages
    from evalpipe.store.query import open_store
    from evalpipe.workspace.judge import judge
    from evalpipe.workspace.judge_setup import JudgeOptions, load_specs
    from evalpipe.workspace.paths import open_workspace

    fast = ("--judge", "accuracy=0.8", "--ttft-ms", "1", "--tokens-per-second", "100000")
    with simulated(*fast) as sim, tempfile.TemporaryDirectory() as folder:
        root = workspace(Path(folder), sim.url, n_pairs=n_pairs, **OPEN)
        found = open_workspace(root / "evalpipe.toml")
        (spec,) = load_specs(found)
        with open_store(found.data, "bench") as store:
            plan = make_plan(store.connection, spec)
            asks = [ask for page in pages(store.connection, spec, plan) for ask in page if not ask.is_identical]
        turns = [[("user", message_of(ask, spec, f"{index:016x}").text)] for index, ask in enumerate(asks)]

        async def bare(requests: list[list[tuple[str, str]]]) -> None:
            client = open_sdk(spec, 16)
            todo = iter(requests)

            async def worker() -> None:
                for one in todo:
                    await client.messages.create(**message_params(spec, one))

            await asyncio.gather(*(worker() for _ in range(16)))
            await client.close()

        asyncio.run(bare(turns[:50]))  # imports and first-use costs are nobody's
        before = cpu_seconds()
        asyncio.run(bare(turns))
        theirs = (cpu_seconds() - before) / len(turns)
        judge(found, JudgeOptions(limit=20, show_progress=False))
        before = cpu_seconds()
        (summary,) = judge(found, JudgeOptions(show_progress=False))
        ours = (cpu_seconds() - before) / summary.n_calls
        return say(
            "CPU per judgment",
            ours <= 1.5 * theirs,
            f"{ours * 1000:.2f} ms, a bare SDK loop {theirs * 1000:.2f} ms: {ours / theirs:.2f} × "
            f"({summary.n_calls} calls, planning, journal and Parquet included)",
        )


def big_workspace(root: Path, n_pairs: int) -> Path:
    """A store with `n_pairs` pairs of about 1.5 KB, written as `load` writes it: in row groups of some thousand rows."""
    import duckdb
    import pyarrow as pa

    from evalpipe.store.parquet import ParquetFile, partition_folder
    from evalpipe.store.schema import BY_NAME

    workspace(root, "http://127.0.0.1:9")
    dataset = BY_NAME["exchanges"]
    file = ParquetFile(partition_folder(root / "data", dataset, ("bench", "2026-06-01")), dataset.schema)
    step = 5000
    with duckdb.connect() as connection:
        for start in range(0, n_pairs, step):
            table = connection.sql(
                f"""SELECT 'r' || lpad(i::VARCHAR, 9, '0') AS request_id, arm, 'shadow' AS role, 'u' || (i % 40000) AS unit_id,
                TIMESTAMPTZ '2026-06-01 00:00:00Z' + to_milliseconds(i) AS started_at, 'ok' AS outcome, false AS simulated,
                'Please explain ' || repeat(md5(i::VARCHAR) || ' ', 10) AS prompt,
                repeat(md5((7 * i)::VARCHAR || arm) || ' ', (8 + (i * 31) % 20)::INT) AS text
                FROM range({start}, {min(start + step, n_pairs)}) AS t(i), (VALUES ('control'), ('treatment')) AS arms(arm)"""
            ).to_arrow_table()
            columns = [
                table[field.name].cast(field.type)
                if field.name in table.column_names
                else pa.nulls(len(table), field.type)
                for field in dataset.schema
            ]
            file.append(pa.table(columns, schema=dataset.schema))
    file.finish()
    return root


def measured(root: Path, code: str) -> dict[str, float]:
    """Seconds and peak memory of `code` in a fresh process; it prints its own seconds last."""
    script = f"import resource, time\n{code}\nprint(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, env=environment(), capture_output=True, text=True, check=True
    )
    seconds, megabytes = done.stdout.split()[-2:]
    return {"seconds": float(seconds), "megabytes": float(megabytes)}


PLANNING = """
from evalpipe.workspace.judge_setup import plan_of, specs_of
from evalpipe.workspace.paths import open_workspace
from evalpipe.store.query import open_store
workspace = open_workspace()
(spec,) = specs_of(workspace)
with open_store(workspace.data, "bench") as store:
    started = time.monotonic()
    plan = plan_of(workspace, store, spec, limit=None)
    print(time.monotonic() - started)
"""
RUNNING = """
from evalpipe.judging.plan import pages
from evalpipe.workspace.judge_setup import plan_of, specs_of
from evalpipe.workspace.paths import open_workspace
from evalpipe.store.query import open_store
workspace = open_workspace()
(spec,) = specs_of(workspace)
with open_store(workspace.data, "bench") as store:
    started = time.monotonic()
    plan = plan_of(workspace, store, spec, limit=None)
    for index, page in enumerate(pages(store.connection, spec, plan)):
        if index == 15:
            break
    print(time.monotonic() - started)
"""


def plan(n_pairs: int = 1_000_000) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        found = measured(big_workspace(Path(folder), n_pairs), PLANNING)
    return say(
        "planning",
        found["seconds"] < 10,
        f"{n_pairs:,} pairs in {found['seconds']:.1f} s, {found['megabytes']:.0f} MB at most",
    )


def memory() -> bool:
    peaks = {}
    for n_pairs in (10_000, 200_000):
        with tempfile.TemporaryDirectory() as folder:
            peaks[n_pairs] = measured(big_workspace(Path(folder), n_pairs), RUNNING)["megabytes"]
    small, large = peaks.values()
    detail = ", ".join(f"{n:,} pairs {peak:.0f} MB" for n, peak in peaks.items())
    return say("memory of plan and pages", large <= 1.25 * small, detail)


BENCHES: dict[str, Callable[[], bool]] = {"cpu": cpu, "plan": plan, "memory": memory}

if __name__ == "__main__":
    finish([BENCHES[name]() for name in sys.argv[1:] or list(BENCHES)])
