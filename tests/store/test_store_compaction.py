"""Small files become a few: the rows are the same for everybody who reads, whatever was damaged, lost, removed or old."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import run_here
from small_files import CONFIG, START, write_small_files
from spool_builders import T0, request, served, write_segment
from test_store_retention import SECRET, build, everything, numbers

from evalpipe.models import Arm, Feedback, Label, ReplayCall, ReplayStatus
from evalpipe.store.compaction import SMALL_BYTES, TARGET_BYTES, merge, plan
from evalpipe.store.parquet import parquet_files
from evalpipe.store.query import Selection, open_store, readable, write_rows
from evalpipe.store.replays import REPLAYS, account_of, write_calls
from evalpipe.store.schema import BY_NAME, DATASETS
from evalpipe.workspace import retention
from evalpipe.workspace.compact import compact
from evalpipe.workspace.damaged import move_damaged
from evalpipe.workspace.load import LoadOptions, load, unload
from evalpipe.workspace.paths import Workspace, open_workspace

FIRST_DAY = "exchanges/experiment=exp/date=2026-07-01"


@pytest.fixture(scope="module")
def small_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days with twelve files of exchanges each, two pairs in a file, and six files of judgments, five in a file."""
    folder = tmp_path_factory.mktemp("small-files")
    write_small_files(folder, 24, n_days=2, n_judgment_files=6)
    return folder


@pytest.fixture
def workspace(small_files: Path, tmp_path: Path) -> Workspace:
    """A copy of `small_files`."""
    shutil.copytree(small_files, tmp_path, dirs_exist_ok=True)
    return open_workspace(root=tmp_path)


def rows(workspace: Workspace, name: str = "exchanges") -> list[tuple[Any, ...]]:
    """Every row with every column, in an order of its own."""
    with open_store(workspace.data) as store:
        return sorted(store.connection.execute(f"FROM {name}").fetchall(), key=str)


def files(workspace: Workspace, name: str = "exchanges") -> list[Path]:
    """The files that are read."""
    return parquet_files(workspace.data, BY_NAME[name], None)


def stored(workspace: Workspace) -> list[str]:
    """Every Parquet file that lies in the data folder."""
    return sorted(path.name for path in workspace.data.rglob("*.parquet"))


def manifest(workspace: Workspace, folder: str = FIRST_DAY) -> Path:
    return workspace.data / folder / "_manifest.json"


# What it does.


def test_every_row_of_every_dataset_is_read_once_from_one_file_a_partition(workspace: Workspace) -> None:
    for n in range(3):
        at = START + timedelta(hours=n)
        write_rows(workspace.data, "exp", "labels", [Label(request_id=f"r{n}", preference=1.0, source="human")])
        write_rows(
            workspace.data, "exp", "feedback", [Feedback(request_id=f"r{n}", arm=None, rating=1.0, comment=None, at=at)]
        )
        call = ReplayCall(
            request_id=f"r{n}", arm=Arm.TREATMENT, attempt=1, status=ReplayStatus.ANSWERED, cost_usd=0.5, at=at
        )
        write_calls(workspace.data, "exp", [call])
    before = {dataset.name: rows(workspace, dataset.name) for dataset in DATASETS}
    assert {name: len(found) for name, found in before.items()} == {
        "exchanges": 24 * 2 * 2, "judgments": 6 * 5, "labels": 3, "feedback": 3,
    }  # fmt: skip
    result = compact(workspace)
    assert {dataset.name: rows(workspace, dataset.name) for dataset in DATASETS} == before
    assert account_of(workspace.data, "exp", {}).known_usd == 1.5
    assert Counter(path.parent.name for path in files(workspace)) == {"date=2026-07-01": 1, "date=2026-07-02": 1}
    assert [len(files(workspace, name)) for name in ("judgments", "labels", "feedback")] == [1, 1, 1]
    assert len(parquet_files(workspace.data, REPLAYS, "exp")) == 1
    assert (result.n_files_before, result.n_files_after, result.n_merged) == (24 + 6 + 9, 6, 39)
    assert compact(workspace).n_merged == 0, "what is merged is left alone"


def test_rows_stay_in_the_order_of_their_loads_and_in_large_row_groups(workspace: Workspace) -> None:
    first = sorted((workspace.data / FIRST_DAY).glob("*.parquet"))
    in_order = [name for path in first for name in pq.read_table(path, partitioning=None)["request_id"].to_pylist()]
    compact(workspace)
    merged = next(path for path in files(workspace) if "2026-07-01" in str(path))
    assert pq.read_table(merged, partitioning=None)["request_id"].to_pylist() == in_order
    assert pq.read_metadata(merged).num_row_groups == 1
    times = pq.read_metadata(merged).row_group(0).column(5).statistics
    assert (times.min, times.max.date()) == (START, START.date()), "DuckDB skips row groups by these"


def test_replaced_files_stay_for_readers_that_began_before_and_go_after_the_grace_time(workspace: Workspace) -> None:
    before = stored(workspace)
    with open_store(workspace.data) as store:
        compact(workspace)
        assert store.connection.execute("SELECT count(text) FROM exchanges").fetchone() == (96,)
        assert set(before) < set(stored(workspace))
        assert compact(workspace, grace_minutes=1).n_removed == 0, "younger than the grace time"
    found = rows(workspace)
    assert compact(workspace, grace_minutes=0).n_removed == 30
    assert not set(before) & set(stored(workspace)) and len(stored(workspace)) == 3
    assert rows(workspace) == found


def test_a_reader_is_waited_for_where_nothing_is_kept(workspace: Workspace) -> None:
    compact(workspace)
    code = "import sys; from pathlib import Path; from evalpipe.workspace.compact import compact; "
    code += "from evalpipe.workspace.paths import open_workspace as o; "
    code += "print(compact(o(root=Path(sys.argv[1])), grace_minutes=0).n_removed)"
    with open_store(workspace.data) as store:
        running = subprocess.Popen([sys.executable, "-c", code, str(workspace.root)], stdout=subprocess.PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(timeout=3)
        assert len(stored(workspace)) == 33
        assert store.connection.execute("SELECT count(text) FROM exchanges").fetchone() == (96,)
    out, _ = running.communicate(timeout=60)
    assert out == "30\n"


def test_a_dry_run_counts_and_changes_nothing(workspace: Workspace) -> None:
    before = {str(path): path.read_bytes() for path in workspace.data.rglob("*") if path.is_file()}
    printed = run_here("compact", "--dry-run", "--json", cwd=workspace.root)
    document = json.loads(printed.stdout)
    assert printed.returncode == 0
    assert [(one["folder"], one["files_before"], one["files_after"]) for one in document["partitions"]] == [
        (FIRST_DAY, 12, 1),
        (FIRST_DAY.replace("07-01", "07-02"), 12, 1),
        ("judgments/experiment=exp", 6, 1),
    ]
    assert (document["files_merged"], document["files_after"]) == (30, 3)
    assert {str(path): path.read_bytes() for path in workspace.data.rglob("*") if path.is_file()} == before


def test_the_command_prints_what_it_did(workspace: Workspace) -> None:
    printed = run_here("compact", cwd=workspace.root)
    assert printed.returncode == 0 and printed.stderr == ""
    assert f"{FIRST_DAY}: merged 12 small files" in printed.stdout and "12 files → 1" in printed.stdout
    assert "merged 30 small files in 3 folders: 30 files → 3" in printed.stdout
    assert "30 replaced files kept" in printed.stdout
    again = run_here("compact", "--grace-minutes", "0", "--json", cwd=workspace.root)
    assert json.loads(again.stdout)["files_deleted"] == 30
    empty = workspace.root / "empty"
    empty.mkdir()
    refused = run_here("compact", cwd=empty)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    unknown = run_here("compact", "--experiment", "exq", cwd=workspace.root)
    assert unknown.returncode == 2 and "'exp'" in unknown.stderr


def test_one_experiment_alone(workspace: Workspace) -> None:
    for n in range(3):
        write_segment(
            workspace.spool,
            "served-1.000001",
            [request(f"o{n}", experiment="other"), served(f"o{n}", experiment="other")],
        )
        load(workspace)
    assert len(files(workspace)) == 27
    compact(workspace, experiment="other")
    assert Counter("other" in str(path) for path in files(workspace)) == {False: 24, True: 1}


def test_loading_the_same_again_after_it_adds_nothing(tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, data=tmp_path / "data", config=None)
    log = tmp_path / "log.jsonl"
    for n in range(4):
        name = write_segment(tmp_path / "from", "served-1.000001", [request(f"r{n}", eligible=False), served(f"r{n}")])
        log.write_bytes(log.read_bytes() + name.read_bytes() if log.exists() else name.read_bytes())
        load(workspace, [name])
    assert len(files(workspace)) == 4
    compact(workspace, grace_minutes=0)
    assert load(workspace, [log]).n_exchanges == 0
    assert len(rows(workspace)) == 4


# When.


def test_load_merges_from_a_number_of_small_files_on_and_not_before(tmp_path: Path) -> None:
    (tmp_path / "evalpipe.toml").write_text(CONFIG + "[compact]\nmin_files = 4\n")
    workspace = open_workspace(root=tmp_path)
    counts = []
    for n in range(5):
        write_segment(workspace.spool, "served-1.000001", [request(f"r{n}", eligible=False), served(f"r{n}")])
        counts.append((len(load(workspace).compacted), len(files(workspace))))
    assert counts == [(0, 1), (0, 2), (0, 3), (1, 1), (0, 2)]
    assert [row[1] for row in rows(workspace)] == [f"r{n}" for n in range(5)]


@pytest.mark.parametrize(("setting", "option"), [("", "--no-compact"), ("after_load = false\n", "--json")])
def test_load_leaves_them_where_it_is_asked_to(tmp_path: Path, setting: str, option: str) -> None:
    (tmp_path / "evalpipe.toml").write_text(f"{CONFIG}[compact]\nmin_files = 2\n{setting}")
    workspace = open_workspace(root=tmp_path)
    for n in range(3):
        write_segment(workspace.spool, "served-1.000001", [request(f"r{n}", eligible=False), served(f"r{n}")])
        assert run_here("load", option, cwd=tmp_path).returncode == 0
    assert len(files(workspace)) == 3
    write_segment(workspace.spool, "served-1.000001", [request("last", eligible=False), served("last")])
    (tmp_path / "evalpipe.toml").write_text(f"{CONFIG}[compact]\nmin_files = 2\n")
    assert "merged 4 small files" in run_here("load", cwd=tmp_path).stdout


def test_a_row_is_rewritten_few_times_however_often_files_come() -> None:
    """1,000 files of 1 MB come one by one; from 8 on they are merged. Rewriting all small ones each time would be 8 + 15 + …"""
    sizes: dict[Path, int] = {}
    rewritten = most = 0
    for n in range(1000):
        sizes[Path(f"{n:04}")] = 1_000_000
        for group in plan(sizes, min_files=8, tiered=True):
            total = sum(sizes.pop(path) for path in group)
            sizes[Path(f"{n:04}-merged")] = total
            rewritten += total
        most = max(most, sum(size < SMALL_BYTES for size in sizes.values()))
    assert rewritten <= 4 * 1000 * 1_000_000, "log2 of 32 MB ÷ 8 MB, and the merge that fills a file"
    assert most < 8 + 7 + 1


def test_groups_are_bounded_and_large_files_left() -> None:
    one = 1_000_000
    sizes = {Path(f"{n:04}"): one for n in range(300)} | {Path("large"): SMALL_BYTES}
    groups = plan(sizes)
    assert [path for group in groups for path in group] == sorted(sizes)[:300]
    assert {sum(sizes[path] for path in group) < TARGET_BYTES + one for group in groups} == {True}
    assert [len(group) for group in plan({Path(f"{n:04}"): 1 for n in range(25)}, at_once=10)] == [10, 10, 5]
    assert plan({Path("a"): 1}) == [] and plan({Path("a"): 1, Path("b"): 1}, min_files=3) == []


# What goes on meanwhile.


def test_files_that_come_during_a_merge_are_simply_there(workspace: Workspace) -> None:
    seen: list[int] = []

    def comes(n_files: int) -> None:
        if not seen:
            write_rows(workspace.data, "exp", "labels", [Label(request_id="r1", preference=1.0, source="human")])
            write_segment(
                workspace.spool,
                "served-1.000001",
                [request("new", at=START.timestamp()), served("new", at=START.timestamp())],
            )
            load(workspace, options=LoadOptions(compact=False))
        seen.append(len(rows(workspace)))

    assert merge(workspace.data, BY_NAME["exchanges"], files(workspace)[:12], left_out={}, progress=comes)
    assert seen == [97] * 12 and len(rows(workspace)) == 97


def test_a_merge_does_not_bring_back_what_was_forgotten_meanwhile(tmp_path: Path) -> None:
    workspace = build(tmp_path, reported=False)
    day = files(workspace)[0].parent
    write_segment(
        workspace.spool, "served-5.000001", [request("more", at=T0 + 1, eligible=False), served("more", at=T0 + 1)]
    )
    load(workspace)
    inputs = sorted(day.glob("*.parquet"))
    assert len(inputs) == 2
    before = numbers(workspace)
    gone: list[int] = []

    def forgets(n_files: int) -> None:
        if not gone:
            gone.append(retention.forget(workspace, "alice")[0].exchanges)

    assert not merge(workspace.data, BY_NAME["exchanges"], inputs, left_out={}, progress=forgets)
    assert gone == [12]
    assert numbers(workspace) == before
    assert [name for name, text in everything(tmp_path).items() if SECRET in text] == []


def test_forget_and_prune_take_texts_out_of_replaced_files_too(tmp_path: Path) -> None:
    workspace = build(tmp_path, reported=False)
    for n in range(3):
        write_segment(
            workspace.spool,
            "served-5.000001",
            [request(f"more{n}", at=T0 + n, eligible=False), served(f"more{n}", at=T0 + n)],
        )
        load(workspace)
    before = numbers(workspace)
    assert compact(workspace).n_waiting == 4, "the old files are kept for an hour"
    retention.forget(workspace, "alice")
    assert [name for name, text in everything(tmp_path).items() if SECRET in text] == []
    assert numbers(workspace) == before
    assert compact(workspace).n_merged == 0
    assert readable(workspace.data, "exp", Selection()).readable, "the judge is not asked about what was removed"


def test_a_merged_file_shows_that_texts_are_missing_in_it(tmp_path: Path) -> None:
    workspace = build(tmp_path, reported=False)
    write_segment(workspace.spool, "served-5.000001", [request("more", at=T0, eligible=False), served("more", at=T0)])
    load(workspace)
    retention.forget(workspace, "alice")
    before = numbers(workspace)
    assert compact(workspace, grace_minutes=0).n_merged > 0
    (merged,) = [path for path in files(workspace) if "-merged" in path.name]
    assert "~" in merged.name, "it holds rows whose texts were removed"
    assert readable(workspace.data, "exp", Selection()).readable
    retention.forget(workspace, "bob")
    assert [name for name, text in everything(tmp_path).items() if "words-of-bob" in text] == []
    assert numbers(workspace) == before


def test_unload_takes_rows_out_of_merged_and_replaced_files(tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, data=tmp_path / "data", config=None)
    for name in ("one", "two", "three"):
        answers = tmp_path / f"{name}.jsonl"
        answers.write_text(json.dumps({"pair_id": name, "prompt": "p", "response_a": "a", "response_b": "b"}) + "\n")
        load(workspace, [answers], experiment="exp")
    compact(workspace)
    unload(workspace, "two.jsonl")
    assert sorted({row[1] for row in rows(workspace)}) == ["one", "three"]
    left = list((workspace.data / "exchanges").rglob("*.parquet"))
    assert not [path for path in left if "two" in pq.read_table(path, partitioning=None)["request_id"].to_pylist()]
    compact(workspace, grace_minutes=0)
    assert sorted({row[1] for row in rows(workspace)}) == ["one", "three"]
    for name in ("one", "three"):
        unload(workspace, f"{name}.jsonl")
    assert rows(workspace) == [] and workspace.loaded_experiments() == []


# What is damaged, lost, old or new.


def test_a_damaged_small_file_is_left_and_named_and_the_rest_is_merged(workspace: Workspace) -> None:
    broken = files(workspace)[3]
    broken.write_bytes(broken.read_bytes()[:-300])
    before = rows(workspace)
    assert len(before) == 92
    printed = run_here("compact", cwd=workspace.root)
    assert printed.returncode == 0
    assert printed.stderr.count("\n") == 1
    assert (
        f"{FIRST_DAY}/{broken.name} is left as it is: damaged" in printed.stderr and "doctor --data" in printed.stderr
    )
    assert rows(workspace) == before
    assert broken.exists() and broken in files(workspace) and len(files(workspace)) == 3


def test_a_file_of_an_older_version_that_cannot_be_read_is_left(workspace: Workspace) -> None:
    """It has no checksum in its name: only reading it shows that a page is broken."""
    path = files(workspace)[3]
    data = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(0).column(0)
    data[column.data_page_offset + column.total_compressed_size - 1] ^= 4
    older = path.with_name("20260701T040000-0123456789ab.parquet")
    path.unlink()
    older.write_bytes(data)
    result = compact(workspace)
    (reason,) = result.left_out.values()
    assert list(result.left_out) == [older] and reason.startswith("cannot be read")
    assert older in files(workspace) and result.n_merged == 29


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_merge_is_undone_while_its_sources_are_there(workspace: Workspace, damage: str) -> None:
    before = rows(workspace)
    compact(workspace)
    broken = files(workspace)[0]
    if damage == "gone":
        broken.unlink()
    else:
        broken.write_bytes(broken.read_bytes()[:-300])
    assert rows(workspace) == before, "what it replaced counts again at once"
    assert move_damaged(workspace) == []
    assert compact(workspace, grace_minutes=0).n_undone == 1, "its sources are not deleted"
    assert rows(workspace) == before
    compact(workspace, grace_minutes=0)
    assert rows(workspace) == before and len(stored(workspace)) == 3


def test_what_is_left_of_a_damaged_merge_s_sources_is_kept(workspace: Workspace) -> None:
    sources = sorted((workspace.data / FIRST_DAY).glob("*.parquet"))
    compact(workspace)
    broken = files(workspace)[0]
    broken.write_bytes(broken.read_bytes()[:-300])
    sources[0].unlink()
    compact(workspace, grace_minutes=0)
    assert broken.exists()
    assert all(path.exists() for path in sources[1:]), "nothing else holds their rows"


def test_a_load_after_a_merge_was_damaged_stores_nothing_twice(tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, data=tmp_path / "data", config=None)
    segments = [
        write_segment(tmp_path / "from", f"served-{n}.000001", [request(f"r{n}", eligible=False), served(f"r{n}")])
        for n in range(4)
    ]
    for segment in segments:
        load(workspace, [segment])
    before = rows(workspace)
    compact(workspace)
    (merged,) = files(workspace)
    merged.write_bytes(merged.read_bytes()[:-300])
    assert load(workspace, segments).n_exchanges == 0
    assert rows(workspace) == before
    compact(workspace, grace_minutes=0)
    assert rows(workspace) == before


def test_an_older_manifest_loses_no_row(workspace: Workspace) -> None:
    """As from a backup of which only the manifest was put back: the merged file is newer than it."""
    compact(workspace, grace_minutes=0)
    older = manifest(workspace).read_bytes()
    at = START.timestamp()
    segment = write_segment(
        workspace.root / "spool-later",
        "served-9.000001",
        [request("later", at=at, eligible=False), served("later", at=at)],
    )
    load(workspace, [segment])
    before = rows(workspace)
    compact(workspace, grace_minutes=0)
    assert rows(workspace) == before
    assert manifest(workspace).read_bytes() != older
    manifest(workspace).write_bytes(older)
    assert rows(workspace) == before
    compact(workspace, grace_minutes=0)
    assert rows(workspace) == before
    compact(workspace, grace_minutes=0)
    assert rows(workspace) == before


def test_the_sources_of_a_merge_that_was_merged_again_go_when_the_last_one_is_whole(workspace: Workspace) -> None:
    before = rows(workspace)
    some = files(workspace)[:5]
    assert merge(workspace.data, BY_NAME["exchanges"], some, left_out={})
    compact(workspace)
    assert rows(workspace) == before
    last = files(workspace)[0]
    data = last.read_bytes()
    last.write_bytes(data[:-300])
    assert compact(workspace, grace_minutes=60).n_undone == 1
    assert rows(workspace) == before, "the first merge counts again, and was merged anew"
    compact(workspace, grace_minutes=0)
    assert rows(workspace) == before and len(stored(workspace)) == 3


@pytest.mark.parametrize("content", [None, b"", b'{"version":1,"crc32":"00000000","manifest":{}}', b"\x00\xff"])
def test_without_the_manifest_each_row_is_read_once(workspace: Workspace, content: bytes | None) -> None:
    before = rows(workspace)
    assert merge(workspace.data, BY_NAME["exchanges"], files(workspace)[:5], left_out={})
    compact(workspace)  # and once more, over the first merge
    if content is None:
        manifest(workspace).unlink()
    else:
        manifest(workspace).write_bytes(content)
    assert rows(workspace) == before
    compact(workspace)
    assert manifest(workspace).stat().st_size > 50, "it was made anew"
    assert rows(workspace) == before
    compact(workspace, grace_minutes=0)
    assert rows(workspace) == before and len(stored(workspace)) == 3
    manifest(workspace).unlink()
    assert rows(workspace) == before, "also where nothing but merged files is left"


def test_without_the_manifest_a_damaged_merge_is_named_and_not_deleted(workspace: Workspace) -> None:
    compact(workspace, grace_minutes=0)
    broken = files(workspace)[0]
    broken.write_bytes(broken.read_bytes()[:-300])
    manifest(workspace).unlink()
    with open_store(workspace.data) as store:
        assert store.damaged == (broken,)
    compact(workspace, grace_minutes=0)
    assert broken.exists()


def test_a_merged_file_counts_only_where_the_manifest_lists_it(workspace: Workspace) -> None:
    before = rows(workspace)
    compact(workspace)
    merged = files(workspace)[0]
    orphan = merged.with_name(merged.name.replace("-merged", "0-merged"))
    orphan.write_bytes(merged.read_bytes())
    assert rows(workspace) == before
    compact(workspace)
    assert not orphan.exists() and rows(workspace) == before


def test_a_manifest_of_a_newer_version_is_refused_in_one_line(workspace: Workspace) -> None:
    compact(workspace)
    document = json.loads(manifest(workspace).read_bytes())
    manifest(workspace).write_text(json.dumps({**document, "version": 2}))
    for command in (("report",), ("compact",), ("sql", "select count(*) from exchanges")):
        refused = run_here(*command, cwd=workspace.root)
        assert refused.returncode == 1 and "has version 2, this evalpipe reads version 1" in refused.stderr
        assert refused.stderr.count("\n") == 1


def test_files_without_later_columns_are_merged_and_those_with_unknown_ones_are_left(workspace: Workspace) -> None:
    older, newer = files(workspace)[:2]
    table = pq.read_table(older, partitioning=None)
    pq.write_table(table.drop_columns(["turn", "removed_at"]), older.with_name("20260701T000000-00000000aaaa.parquet"))
    older.unlink()
    with_more = newer.with_name("20260701T000100-00000000bbbb.parquet")
    pq.write_table(pq.read_table(newer, partitioning=None).append_column("mood", pa.nulls(4, pa.string())), with_more)
    newer.unlink()
    before = rows(workspace)
    result = compact(workspace)
    assert result.left_out == {with_more: "has columns that this version does not have: mood"}
    assert rows(workspace) == before and len(files(workspace)) == 3
    assert "mood" in pq.read_schema(with_more).names


def test_what_was_read_back_must_be_what_was_read(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk, or a library, that gives back other values than it was given: the first text comes back as another one."""
    before, there = rows(workspace), stored(workspace)
    real = pq.ParquetFile.iter_batches

    def other(self: Any, *arguments: Any, **named: Any) -> Any:
        for batch in real(self, *arguments, **named):
            if named.get("batch_size") == 1024 and batch.num_rows:  # the read-back
                column = batch.schema.get_field_index("text")
                if column >= 0:
                    batch = batch.set_column(column, batch.schema.field(column), pa.array(["x"] * batch.num_rows))
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr(pq.ParquetFile, "iter_batches", other)
        failed = run_here("compact", cwd=workspace.root)
    assert failed.returncode == 1 and "nothing was changed" in failed.stderr and failed.stderr.count("\n") == 1
    assert rows(workspace) == before and stored(workspace) == there
    assert not list(workspace.data.rglob(".*.tmp"))


LIMITED = """
import resource, runpy, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.argv = ["evalpipe", *sys.argv[2:]]
runpy.run_module("evalpipe", run_name="__main__")
"""


def limited(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", LIMITED, "40000", *arguments], cwd=root, capture_output=True, text=True, timeout=100
    )


def test_a_full_disk_is_one_line_and_nothing_is_lost(workspace: Workspace) -> None:
    before, there = rows(workspace), stored(workspace)
    failed = limited(workspace.root, "compact")
    assert failed.returncode == 1 and failed.stdout == ""
    assert (
        failed.stderr.count("\n") == 1 and "the disk is full" in failed.stderr and "evalpipe compact" in failed.stderr
    )
    assert rows(workspace) == before and stored(workspace) == there
    assert not list(workspace.data.rglob(".*.tmp"))


def test_a_load_does_not_fail_where_nothing_can_be_merged(workspace: Workspace) -> None:
    (workspace.root / "evalpipe.toml").write_text(CONFIG + "[compact]\nmin_files = 2\n")
    write_segment(workspace.spool, "served-1.000001", [request("new", eligible=False), served("new")])
    loaded = limited(workspace.root, "load")
    assert loaded.returncode == 0, loaded.stderr
    assert "small files were not merged: the disk is full" in loaded.stdout
    assert len(rows(workspace)) == 97


def test_status_still_shows_when_something_was_loaded(workspace: Workspace) -> None:
    """What was written to the log since the last load waits; a compaction is no load."""
    at = datetime(2026, 7, 5, tzinfo=UTC).timestamp()
    for path in workspace.data.rglob("*.parquet"):
        os.utime(path, (at, at))
    compact(workspace, grace_minutes=0)
    assert {path.stat().st_mtime for path in workspace.data.rglob("*.parquet")} == {at}


def test_nothing_of_it_is_readable_by_others(workspace: Workspace) -> None:
    compact(workspace)
    written = [
        path
        for path in workspace.data.rglob("*")
        if path.is_file() and ("merged" in path.name or "manifest" in path.name)
    ]
    assert len(written) == 6 and {path.stat().st_mode & 0o777 for path in written} == {0o600}
