"""`load --ray`: the rows, counts and rejected lines of one machine, whatever becomes of a task. With real Ray:
test_cluster_ray.py and `make check-ray`."""

from __future__ import annotations

import errno
import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from objects.fixtures import Bucket

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))
from inline_tasks import InlineExecutor, inline
from spool_builders import copy, request, served, shadow, write_segment

import evalpipe
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
from evalpipe.workspace.load import LoadOptions
from evalpipe.workspace.load import load as load_paths
from evalpipe.workspace.paths import Workspace, open_workspace

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
        at = MIDNIGHT - 30.3 + place
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
def test_the_rows_counts_and_rejected_lines_are_those_of_one_machine_and_are_added_once(tmp_path: Path) -> None:
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
    write_spool(spread / "spool", NAMES)
    again = load(spread, inline())
    assert (again.n_exchanges, again.n_known) == (0, 56)  # 50 requests with all their records, 6 ratings
    assert stored(spread) == stored(alone)
    assert not left_over(spread)


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
def test_a_load_that_ends_in_the_middle_leaves_the_log_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two tasks have ended before it, whose files were to be put in place together with the third's."""
    monkeypatch.setattr(store_load, "COMMIT_ENTRIES", 1000)
    write_spool(tmp_path / "spool", NAMES)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path, inline(InlineExecutor(fails_at=3, error=KeyboardInterrupt()), n_tasks=1))
    assert not left_over(tmp_path)
    assert not list((tmp_path / "data").rglob("*.parquet"))
    assert len(list((tmp_path / "spool").glob("*.jsonl"))) == 2
    load(tmp_path, inline())
    assert len(stored(tmp_path)[0]) == 120


def test_what_tasks_wrote_is_committed_to_the_object_storage(tmp_path: Path, bucket: Bucket) -> None:
    found = []
    for name in ("first", "second"):
        root = tmp_path / name
        root.mkdir()
        (root / "evalpipe.toml").write_text(f'data = "{bucket.url}"\n[experiment]\nname = "exp"\n')
        workspace = open_workspace(root / "evalpipe.toml")
        if name == "first":
            write_spool(workspace.spool, NAMES[:20])
            load_paths(workspace, show_progress=False, open_workers=lambda: nullcontext(inline()))
        with open_store(workspace.data) as store:
            found.append(store.connection.sql("SELECT count(*), count(DISTINCT request_id) FROM exchanges").fetchall())
    assert found == [[(40, 20)], [(40, 20)]]


def test_a_file_that_did_not_arrive_whole_is_an_error(tmp_path: Path) -> None:
    name = "exchanges/experiment=exp/date=2026-05-28/20260528T000000-aa.00000000.11111111.parquet"
    with pytest.raises(DataError, match="is not what was written"):
        FileContent(name=name, data=b"something else").sealed_in(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_of_a_tasks_files_none_stays_where_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_spool(tmp_path / "spool", NAMES)
    written: list[str] = []
    sealed_in = FileContent.sealed_in

    def full_at_the_second(content: FileContent, data: Path) -> Any:
        written.append(content.name)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return sealed_in(content, data)

    monkeypatch.setattr(FileContent, "sealed_in", full_at_the_second)
    with pytest.raises(OSError, match="No space left"):
        load(tmp_path, inline())
    assert len(written) == 2
    assert not left_over(tmp_path)


@pytest.mark.parametrize("cpus", [[], [0.5]])
def test_without_a_node_for_a_task_the_load_ends_after_a_while(
    cpus: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_load, "_LOOK_EVERY_S", 0.02)
    never: Future[Any] = Future()
    remote = SimpleNamespace(remote=lambda *arguments: SimpleNamespace(future=lambda: never))
    ray = SimpleNamespace(remote=lambda task: SimpleNamespace(options=lambda **options: remote))
    cluster: Any = SimpleNamespace(ray=ray, cpus_per_shard=1.0, start_timeout_s=0.1)
    cluster.nodes = lambda: [{"Resources": {"CPU": one}} for one in cpus]
    began = time.monotonic()
    with RayExecutor(cluster) as executor, pytest.raises(ClusterError, match="no node of the cluster is left"):
        executor.submit(len, "task").result(timeout=10)
    assert time.monotonic() - began > 0.1


def test_a_node_of_another_version_runs_no_task() -> None:
    with pytest.raises(ClusterError, match=r"has evalpipe \S+, this machine 0\.0\.9: install the same on all"):
        cluster_load.run_task("0.0.9", len, "task")
    assert cluster_load.run_task(evalpipe.__version__, len, "task") == 4


# Other tools' logs.


@pytest.fixture
def small_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several tasks for a source of a few documents."""
    monkeypatch.setattr(store_load, "PORTION_DOCUMENTS", 4)
    monkeypatch.setattr(store_load, "BATCH", 4)


def question(place: int, **columns: Any) -> dict[str, Any]:
    return {"q": f"Question {place % 3}?", "a": f"Answer {place % 3}.", **columns}


def by_lines(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def equal_rows(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Rows without ids, of which many are equal: each gets a number, those that are not plain, too."""
    rows = [question(place, a={"content": "odd"} if place % 5 == 4 else "Yes.") for place in range(30)]
    return by_lines(folder / "equal.jsonl", [*rows, "no line\n", *rows]), {"mapping": "prompt=q, text=a"}


def late_arms(folder: Path) -> tuple[Path, dict[str, Any]]:
    """The second value of the arm comes after many of the first, and once before a third one."""
    values = ["old"] * 13 + ["new"] + ["neither", "old"] * 5 + ["new"] * 6
    rows = [question(place, arm=value, u=f"u{place}") for place, value in enumerate(values)]
    return by_lines(folder / "arms.jsonl", rows), {"mapping": "prompt=q, text=a, arm=arm, user=u"}


def named_arms(folder: Path) -> tuple[Path, dict[str, Any]]:
    rows = [question(place, arm="ab"[place % 2]) for place in range(20)]
    return by_lines(folder / "named.jsonl", rows), {"mapping": "prompt=q, text=a, arm=arm", "arms": ("b", "a")}


def answers_by_question(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Answers whose ids are made of their question, of which many are equal."""
    rows = [{"instruction": f"Why {place % 4}?", "output": f"{place}", "generator": "m"} for place in range(24)]
    return by_lines(folder / "alpaca.jsonl", rows), {}


def a_table(folder: Path) -> tuple[Path, dict[str, Any]]:
    lines = ["prompt,answer,user", *(f"Why {place}?,Because {place % 2}.,u{place}" for place in range(25)), "too,few"]
    path = folder / "table.csv"
    path.write_text("\n".join(lines) + "\n")
    return path, {"mapping": "prompt=prompt, text=answer, user=user", "price": True}


def a_parquet_file(folder: Path) -> tuple[Path, dict[str, Any]]:
    rows = [question(place, id=f"r{place}", m="gpt-4o") for place in range(30)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows.parquet", row_group_size=7)
    return folder / "rows.parquet", {"mapping": "prompt=q, text=a, id=id, model=m"}


def a_batch_with_its_requests(folder: Path) -> tuple[Path, dict[str, Any]]:
    """A folder whose files need each other, and a file that ends in the middle."""
    logs = folder / "batch"
    logs.mkdir()
    asked = [
        {
            "custom_id": f"c{place}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "gpt-4o", "messages": [{"role": "user", "content": f"Why {place}?"}]},
        }
        for place in range(11)
    ]
    by_lines(logs / "requests.jsonl", asked)
    answer = {"id": "x", "object": "chat.completion", "model": "gpt-4o", "choices": []}
    message = {"index": 0, "message": {"role": "assistant", "content": "So."}, "finish_reason": "stop"}
    answered = [
        {
            "custom_id": f"c{place}",
            "response": {"status_code": 200, "body": {**answer, "choices": [message]}},
            "error": None,
        }
        for place in range(11)
    ]
    by_lines(logs / "answers.jsonl", [*answered, '{"custom_id": "c12", "respo'])
    return logs, {}


KINDS = [
    equal_rows,
    late_arms,
    named_arms,
    answers_by_question,
    a_table,
    a_parquet_file,
    a_batch_with_its_requests,
]


def load_path(root: Path, path: Path, options: dict[str, Any], workers: Workers | None = None) -> LoadSummary:
    """Load it, twice: the second time nothing is new."""
    workspace = Workspace(root=root, data=root / "data", config=None)
    open_workers = None if workers is None else lambda: nullcontext(workers)
    first, second = (
        load_paths(
            workspace,
            [path],
            experiment="exp",
            options=LoadOptions(**options),
            show_progress=False,
            open_workers=open_workers,
        )
        for _ in range(2)
    )
    assert second.n_exchanges == second.n_labels == 0
    return first


@pytest.mark.usefixtures("small_portions")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_another_tools_log_is_read_as_by_one_machine(
    tmp_path: Path, kind: Callable[[Path], tuple[Path, dict[str, Any]]]
) -> None:
    path, options = kind(tmp_path)
    executor = InlineExecutor()
    spread = load_path(tmp_path / "spread", path, options, inline(executor))
    alone = load_path(tmp_path / "alone", path, options)
    assert counts(spread) == counts(alone)
    assert alone.n_exchanges > 10
    assert stored(tmp_path / "spread") == stored(tmp_path / "alone")
    assert len(executor.tasks) > 5
    assert set(executor.tasks) == {"read_documents"}


@pytest.mark.usefixtures("small_portions")
def test_a_damaged_file_of_a_folder_ends_the_load_when_its_turn_comes(tmp_path: Path) -> None:
    """It is read ahead while the one before it is loaded."""
    logs = tmp_path / "logs"
    logs.mkdir()
    by_lines(logs / "a.jsonl", [question(place) for place in range(9)])
    rows = [question(place, a=f"{place}" * 9) for place in range(9000)]
    pq.write_table(pa.Table.from_pylist(rows), logs / "b.parquet", row_group_size=3000)
    content = bytearray((logs / "b.parquet").read_bytes())
    late = len(content) * 3 // 4  # beyond what is looked at before the load
    content[late : late + 5000] = b"\xff" * 5000
    (logs / "b.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*b\.parquet as Parquet"):
        load_path(tmp_path, logs, {"mapping": "prompt=q, text=a"}, inline())
    assert len(stored(tmp_path)[0]) >= 9
    assert not left_over(tmp_path)
