"""The order of a commit: written, synced, read back, renamed; only then may what it came from go."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from spool_builders import T0, copy, request, served, shadow, write_segment

from evalpipe.errors import DataError, WorkspaceBusyError
from evalpipe.files import write_synced
from evalpipe.spool.segments import SpoolLock, list_segments, remove
from evalpipe.store.load import RejectedLines
from evalpipe.store.parquet import ParquetFile
from evalpipe.store.query import open_store
from evalpipe.store.schema import LABELS, to_table
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import Workspace, open_workspace


def _table(n: int) -> Any:
    from evalpipe.models import Label

    rows = [Label(request_id=f"r{i}", preference=0.5, source="s", labeler=None, labeled_at=None) for i in range(n)]
    return to_table(LABELS, rows)


@pytest.mark.parametrize("at", [60, 88, 102, 130, 165, 200])
def test_a_file_that_does_not_read_back_is_never_in_place(tmp_path: Path, at: int) -> None:
    """Most of these bytes still decode, to other values: only the pages' checksums tell."""
    file = ParquetFile(tmp_path, LABELS)
    file.append(_table(500))
    (temp,) = tmp_path.glob(".*.tmp")
    with temp.open("r+b") as disk:  # the disk kept something else than was written
        disk.seek(at)
        byte = disk.read(1)
        disk.seek(at)
        disk.write(bytes([byte[0] ^ 1]))
    with pytest.raises(DataError, match="read back"):
        file.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_synced_before_its_rename_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noting_fsync(handle: int) -> None:
        seen.append(f"sync {Path(f'/proc/self/fd/{handle}').readlink().name}")
        fsync(handle)

    def noting_rename(source: Any, target: Any, **more: Any) -> None:
        seen.append(f"rename {Path(source).name}")
        rename(source, target, **more)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "rename", noting_rename)
    file = ParquetFile(tmp_path, LABELS)
    file.append(_table(3))
    (temp,) = tmp_path.glob(".*.tmp")
    file.finish()
    assert seen[-3:] == [f"sync {temp.name}", f"rename {temp.name}", f"sync {tmp_path.name}"]


def test_a_copy_whose_process_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    """Another writer lives, and will never write this copy's answer."""
    now = time.time()  # young: nothing is overdue
    workspace = Workspace(root=tmp_path, data=tmp_path / "data", config=None)
    write_segment(workspace.spool, "served-1.000001", [request("r", at=now), served("r", at=now)])
    write_segment(workspace.spool, "shadow-1.000001", [shadow("r", at=now)])  # decided, sent, and killed
    alive = write_segment(workspace.spool, "served-2.000001", [request("s", at=now), served("s", at=now)])
    with alive.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        summary = load(workspace)
    assert (summary.n_stopped, summary.n_waiting) == (1, 1)
    with open_store(workspace.data) as store:
        found = store.connection.execute("SELECT request_id, role, error_type FROM exchanges ORDER BY role").fetchall()
    assert found == [("r", "served", None), ("r", "shadow", "collector_stopped")]


def test_an_answer_whose_process_is_gone_is_not_waited_for(tmp_path: Path) -> None:
    now = time.time()
    workspace = Workspace(root=tmp_path, data=tmp_path / "data", config=None)
    write_segment(workspace.spool, "served-1.000001", [request("r", at=now, eligible=False)])
    alive = write_segment(workspace.spool, "served-2.000001", [request("s", at=now, eligible=False)])
    with alive.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        summary = load(workspace)
    assert (summary.n_stopped, summary.n_waiting) == (1, 1)


def test_one_id_in_two_experiments_is_two_requests(tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, data=tmp_path / "data", config=None)
    records = [
        record
        for name in ("one", "two")
        for record in (request("r", eligible=False, experiment=name), served("r", experiment=name))
    ]
    write_segment(workspace.spool, "served-1.000001", [records[0], records[2], records[1], records[3]])
    load(workspace)
    with open_store(workspace.data) as store:
        found = store.connection.execute("SELECT experiment, request_id, outcome FROM exchanges ORDER BY 1").fetchall()
    assert found == [("one", "r", "ok"), ("two", "r", "ok")]


def test_a_log_stays_until_its_broken_lines_are_put_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = Workspace(root=tmp_path, data=tmp_path / "data", config=None)
    segment = write_segment(
        workspace.spool, "served-1.000001", [request("r", eligible=False), served("r"), b"{broken\n"]
    )

    def failing(self: RejectedLines) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(RejectedLines, "write", failing)
        with pytest.raises(OSError, match="Input/output"):
            load(workspace)
    assert segment.exists()
    summary = load(workspace)
    assert (summary.n_rejected, segment.exists()) == (1, False)
    assert summary.lines()[-1] == "reasons: JSON is malformed: object keys must be strings 1"


def test_what_has_to_survive_is_synced_before_its_rename_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    fsync, replace = os.fsync, os.replace

    def noting_fsync(handle: int) -> None:
        seen.append(f"sync {Path(f'/proc/self/fd/{handle}').readlink().name.lstrip('.').split('.')[0]}")
        fsync(handle)

    def noting_replace(self: Path, target: Any) -> Path:
        assert not Path(target).exists()
        seen.append(f"rename {Path(target).name}")
        replace(self, target)
        return Path(target)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(Path, "replace", noting_replace)
    write_synced(tmp_path / "state", b"x")
    assert seen[-3:] == ["sync state", "rename state", f"sync {tmp_path.name}"]


def test_new_folders_are_synced_before_the_file_in_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name survives once the folder that holds it was synced: that of a folder, too."""
    seen: list[str] = []
    fsync = os.fsync

    def noting_fsync(handle: int) -> None:
        seen.append(Path(f"/proc/self/fd/{handle}").readlink().name.lstrip(".").split(".")[0])
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noting_fsync)
    write_synced(tmp_path / "above" / "below" / "state", b"x")
    before = seen[: seen.index("state")]
    assert {"above", tmp_path.name} <= set(before)


def test_a_write_that_fails_leaves_what_was_there_and_no_part(tmp_path: Path) -> None:
    kept = tmp_path / "state"
    write_synced(kept, b"old")
    assert kept.stat().st_mode & 0o777 == 0o600
    (tmp_path / "folder" / "in it").mkdir(parents=True)
    with pytest.raises(OSError):
        write_synced(tmp_path / "folder", b"x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "state"]
    assert kept.read_bytes() == b"old"


def _noting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced and what is deleted from here on, in order."""
    seen: list[str] = []
    fsync, unlink = os.fsync, os.unlink

    def noting_fsync(handle: int) -> None:
        fsync(handle)
        seen.append(f"sync {Path(f'/proc/self/fd/{handle}').readlink().name}")

    def noting_unlink(path: Any, **more: Any) -> None:
        unlink(path, **more)
        seen.append(f"delete {Path(path).name}")

    monkeypatch.setattr(os, "fsync", noting_fsync)
    monkeypatch.setattr(os, "unlink", noting_unlink)
    return seen


def test_decisions_go_when_the_deletion_of_their_requests_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that a power loss brought back without the decision on it would be copied, and paid, a second time."""
    workspace = Workspace(root=tmp_path, data=tmp_path / "data", config=None)
    write_segment(workspace.spool, "served-1.000001", [request("r"), served("r")])
    decisions = write_segment(workspace.spool, "shadow-1.000001", [shadow("r", "shed")])
    kept = decisions.read_bytes()
    seen = _noting(monkeypatch)
    load(workspace)
    spool = [one for one in seen if one.endswith((".jsonl", " spool"))]
    assert spool.index("delete served-1.000001.jsonl") < spool.index("sync spool")
    assert spool.index("sync spool") < spool.index("delete shadow-1.000001.jsonl")
    assert spool[-2:] == ["delete shadow-1.000001.jsonl", "sync spool"]
    # Of a load that was killed after it had deleted the requests, before it had synced that.
    decisions.write_bytes(kept)
    seen.clear()
    load(workspace)
    spool = [one for one in seen if one.endswith((".jsonl", " spool"))]
    assert spool == ["sync spool", "delete shadow-1.000001.jsonl", "sync spool"]


def test_a_log_that_goes_on_the_word_of_stored_files_goes_after_those_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that was killed after its rename may not have synced the folder of the file that is found by the next one."""
    workspace = Workspace(root=tmp_path, data=tmp_path / "data", config=None)
    records = [request("r", eligible=False), served("r")]
    write_segment(workspace.spool, "served-1.000001", records)
    load(workspace)
    write_segment(workspace.spool, "served-1.000001", records)
    seen = _noting(monkeypatch)
    summary = load(workspace)
    (day,) = (workspace.data / "exchanges/experiment=exp").glob("date=*")
    assert (summary.n_exchanges, summary.n_known) == (0, 1)
    assert seen.index(f"sync {day.name}") < seen.index("delete served-1.000001.jsonl")


@pytest.mark.parametrize("failing_at", [1, 2])
def test_a_log_goes_only_when_every_file_of_it_is_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_at: int
) -> None:
    """Two days are two files; the disk fails at one of the two renames."""
    workspace = Workspace(root=tmp_path, data=tmp_path / "data", config=None)
    records = [
        r
        for i in range(2)
        for r in (request(f"r{i}", at=T0 + i * 86400, eligible=False), served(f"r{i}", at=T0 + i * 86400))
    ]
    segment = write_segment(workspace.spool, "served-1.000001", records)
    rename = os.rename
    n_renamed: list[str] = []

    def failing(source: Any, target: Any, **more: Any) -> None:
        if str(target).endswith(".parquet"):
            n_renamed.append(str(target))
            if len(n_renamed) == failing_at:
                raise OSError(5, "Input/output error")
        rename(source, target, **more)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", failing)
        with pytest.raises(OSError, match="Input/output"):
            load(workspace)
    assert segment.exists() and not list(workspace.data.rglob(".*.tmp"))
    assert load(workspace).n_exchanges == 3 - failing_at
    assert not segment.exists()
    with open_store(workspace.data) as store:
        assert store.connection.execute("SELECT request_id FROM exchanges ORDER BY 1").fetchall() == [("r0",), ("r1",)]


def test_a_copy_after_midnight_whose_file_failed_is_stored_by_the_next_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's answer lies in the file of one day, the copy's in the next one's."""
    workspace = Workspace(root=tmp_path, data=tmp_path / "data", config=None)
    before, after = T0 + 12_790, T0 + 12_805
    write_segment(workspace.spool, "served-1.000001", [request("r", at=before), served("r", at=before)])
    write_segment(workspace.spool, "shadow-1.000001", [shadow("r", at=before), copy("r", at=after)])
    rename = os.rename

    def failing(source: Any, target: Any, **more: Any) -> None:
        if Path(target).parent.name == "date=2026-05-29":
            raise OSError(5, "Input/output error")
        rename(source, target, **more)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", failing)
        with pytest.raises(OSError, match="Input/output"):
            load(workspace)
    load(workspace)
    with open_store(workspace.data) as store:
        found = store.connection.execute("SELECT arm, role FROM exchanges ORDER BY 1").fetchall()
    assert found == [("control", "served"), ("treatment", "shadow")]


def test_a_load_waits_for_the_one_that_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two that read one log at a time would store its rows twice."""
    found = open_workspace(root=tmp_path)
    write_segment(found.spool, "served-1.000001", [request("r1", eligible=False), served("r1")])
    second = threading.Thread(target=load, args=(found,), kwargs={"show_progress": False})
    with (found.data / ".load.lock").open("wb") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        second.start()
        printed = ""
        while second.is_alive() and "another load is at work" not in printed:
            printed += capsys.readouterr().err
            time.sleep(0.02)
        assert "another load is at work" in printed and second.is_alive()
        assert not list(found.data.rglob("*.parquet"))
    second.join(60.0)
    assert not second.is_alive() and len(list(found.data.rglob("*.parquet"))) == 1


def test_a_segment_that_its_writer_holds_again_is_not_deleted(tmp_path: Path) -> None:
    """Its writer took the lock after the segment was listed."""
    path = write_segment(tmp_path, "served-1.000001", [request("r1"), served("r1")])
    (segment,) = list_segments(tmp_path)
    with path.open("rb") as writer:
        fcntl.flock(writer, fcntl.LOCK_EX)
        assert not remove(segment) and path.exists()
    assert remove(segment) and not path.exists()


def test_a_spool_has_one_collector(tmp_path: Path) -> None:
    """Two would decide on, and pay for, the same copies."""
    first, second = SpoolLock(tmp_path), SpoolLock(tmp_path)
    first.take()
    with pytest.raises(WorkspaceBusyError, match="another collector writes to"):
        second.take()
    first.close()
    second.take()
    second.close()
