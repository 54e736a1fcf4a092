"""`load --ray`: the rows, counts and rejected lines of one machine, whatever becomes of a task. With real Ray:
test_cluster_ray.py and `make check-ray`."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))
from inline_tasks import InlineExecutor, inline
from spool_builders import copy, request, served, shadow, write_segment

from evalpipe.cluster import load as cluster_load
from evalpipe.cluster.load import RayExecutor
from evalpipe.errors import ClusterError, DataError
from evalpipe.spool.format import FeedbackRecord, Record
from evalpipe.store import load as store_load
from evalpipe.store import row_tasks
from evalpipe.store.exchange_rows import ReadingRules
from evalpipe.store.load import LoadSummary, SpoolLoad
from evalpipe.store.query import open_store
from evalpipe.store.row_tasks import FileContent, Workers

MIDNIGHT = 1_780_012_800.0
"""2026-05-29T00:00:00Z"""
RULES = ReadingRules(unit_sources=["body:user"], unit_key=b"key")


@pytest.fixture
def small_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tasks, and several commits, of a small log."""
    monkeypatch.setattr(store_load, "BATCH_ENTRIES", 10)
    monkeypatch.setattr(store_load, "COMMIT_ENTRIES", 40)
    monkeypatch.setattr(row_tasks, "TASK_BYTES", 25_000)


def write_spool(spool: Path, names: list[str]) -> None:
    """Requests around midnight with their copies, some of them cut short, in both arms' segments; broken lines; ratings."""
    served_log: list[Record | bytes] = [b'{"record":"request","request_id"\n']
    shadow_log: list[Record | bytes] = []
    for place, name in enumerate(names):
        at = MIDNIGHT - 40 + place
        experiment: dict[str, Any] = {"experiment": "other" if place % 7 == 3 else "exp"}
        body = {"model": "gpt-4o", "messages": [{"role": "user", "content": name}], "user": f"u{place % 5}"}
        served_log.append(request(name, at=at, body=body, **experiment))
        if place % 11 != 5:
            served_log.append(served(name, at=at, text=f"Answer {place}", **experiment))
        shadow_log.append(shadow(name, at=at + 0.5, **experiment))
        if place % 13 != 6:
            shadow_log.append(copy(name, at=at + 0.6, text=f"Other answer {place}", **experiment))
        if place % 10 == 9:
            served_log.append(FeedbackRecord(request_id=name, arm="control", at=at + 1, rating=1.0, **experiment))
    write_segment(spool, "served-1.000001", [*served_log, b"neither JSON\n"])
    write_segment(spool, "shadow-1.000001", shadow_log)


def load(root: Path, workers: Workers | None = None) -> LoadSummary:
    return SpoolLoad(root / "data", root / "spool", rules=RULES, now=MIDNIGHT + 9000, workers=workers).run()


def stored(root: Path) -> list[list[tuple[Any, ...]]]:
    """Every row of the datasets, and of what was rejected."""
    queries = ("SELECT * FROM exchanges ORDER BY request_id, arm, role", "SELECT * FROM feedback ORDER BY request_id")
    with open_store(root / "data") as store:
        found = [store.connection.sql(query).fetchall() for query in queries]
    rejected = [
        tuple(sorted({**json.loads(line), "file": ""}.items()))
        for path in sorted((root / "data" / "rejected").glob("*"))
        for line in path.read_bytes().splitlines()
    ]
    return [*found, sorted(rejected)]


def left_over(root: Path) -> list[Path]:
    return [path for path in (root / "data").rglob("*") if path.name.endswith(".tmp")]


def counts(summary: LoadSummary) -> dict[str, Any]:
    return {**summary.as_json(), "rejected": len(summary.rejected)}


NAMES = [f"r{n:03d}" for n in range(60)]


@pytest.mark.usefixtures("small_tasks")
def test_the_rows_counts_and_rejected_lines_are_those_of_one_machine(tmp_path: Path) -> None:
    executor = InlineExecutor()
    alone, spread = tmp_path / "alone", tmp_path / "spread"
    for root in (alone, spread):
        write_spool(root / "spool", NAMES)
    assert counts(load(spread, inline(executor))) == counts(load(alone))
    assert stored(spread) == stored(alone)
    assert len(stored(spread)[0]) == 120  # an answer and a copy each, also those that were cut short
    assert len(executor.tasks) >= 3
    assert set(executor.tasks) == {"write_rows"}
    assert not list((spread / "spool").glob("*.jsonl"))
    assert not left_over(spread)


@pytest.mark.usefixtures("small_tasks")
def test_a_second_load_of_the_same_log_adds_nothing(tmp_path: Path) -> None:
    write_spool(tmp_path / "spool", NAMES)
    load(tmp_path, inline())
    before = stored(tmp_path)
    write_spool(tmp_path / "spool", NAMES)
    again = load(tmp_path, inline())
    assert (again.n_exchanges, again.n_known) == (0, 56)  # 50 requests with all their records, 6 ratings
    assert stored(tmp_path) == before


@pytest.mark.usefixtures("small_tasks")
def test_what_a_killed_load_left_in_part_is_completed(tmp_path: Path) -> None:
    """Its last files were not put in place: those of the second day, with some copies whose answers are of the first."""
    alone, spread = tmp_path / "alone", tmp_path / "spread"
    for root in (alone, spread):
        write_spool(root / "spool", NAMES)
        load(root)
        for path in (root / "data" / "exchanges").glob("experiment=*/date=2026-05-29/*.parquet"):
            path.unlink()
        write_spool(root / "spool", NAMES)
    assert counts(load(spread, inline())) == counts(load(alone))
    assert stored(spread) == stored(alone)
    assert len(stored(spread)[0]) == 120


@pytest.mark.usefixtures("small_tasks")
@pytest.mark.parametrize("error", [ClusterError("its last node is gone"), KeyboardInterrupt()])
def test_a_load_that_ends_in_the_middle_leaves_the_log_and_nothing_half_written(
    tmp_path: Path, error: BaseException
) -> None:
    write_spool(tmp_path / "spool", NAMES)
    with pytest.raises(type(error)):
        load(tmp_path, inline(InlineExecutor(fails_at=3, error=error)))
    assert not left_over(tmp_path)
    assert len(list((tmp_path / "spool").glob("*.jsonl"))) == 2
    load(tmp_path, inline())
    whole = tmp_path / "whole"
    write_spool(whole / "spool", NAMES)
    load(whole)
    assert stored(tmp_path)[0] == stored(whole)[0]


def test_a_file_that_did_not_arrive_whole_is_an_error(tmp_path: Path) -> None:
    name = "exchanges/experiment=exp/date=2026-05-28/20260528T000000-aa.00000000.11111111.parquet"
    with pytest.raises(DataError, match="is not what was written"):
        FileContent(name=name, data=b"something else").sealed_in(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_without_a_node_the_load_ends_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_load, "_LOOK_EVERY_S", 0.02)
    never: Future[Any] = Future()
    remote = SimpleNamespace(remote=lambda *arguments: SimpleNamespace(future=lambda: never))
    ray = SimpleNamespace(remote=lambda task: SimpleNamespace(options=lambda **options: remote))
    cluster: Any = SimpleNamespace(ray=ray, cpus_per_shard=1.0, start_timeout_s=0.1, nodes=list)
    began = time.monotonic()
    with RayExecutor(cluster) as executor, pytest.raises(ClusterError, match="no node of the cluster is left"):
        executor.submit(len, "task").result(timeout=10)
    assert time.monotonic() - began > 0.1
