"""Working copies of one store in two folders, as of two machines."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from evalpipe.errors import ConfigError, EvalpipeError, WorkspaceBusyError
from evalpipe.objects.client import StorageError, open_objects
from evalpipe.objects.lease import LeaseLostError
from evalpipe.objects.working_copy import WorkingCopy
from objects.fixtures import VENDOR, Bucket


def owner_of(path: str) -> str | None:
    """Files of the folders `a` and `b` belong to the leases of these names."""
    folder = path.partition("/")[0]
    return folder if folder in {"a", "b"} and not path.endswith(".tmp") else None


def copy_in(folder: Path, bucket: Bucket, *, ttl_s: float = 2.0) -> WorkingCopy:
    return WorkingCopy(folder, open_objects(bucket.url), owner_of=owner_of, ttl_s=ttl_s)


def write(folder: Path, path: str, text: str) -> None:
    (folder / path).parent.mkdir(exist_ok=True)
    (folder / path).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    files = (
        path for path in folder.rglob("*") if path.is_file() and not path.name.startswith((".working-copy", ".lease"))
    )
    return {path.relative_to(folder).as_posix(): path.read_text() for path in files}


def test_what_one_machine_commits_another_one_reads(bucket: Bucket, tmp_path: Path) -> None:
    here, there = copy_in(tmp_path / "here", bucket), copy_in(tmp_path / "there", bucket)
    with here.work("a"):
        write(here.folder, "a/1.parquet", "rows")
        write(here.folder, "a/record.json", "old")
        write(here.folder, "own", "not shared")
    there.pull()
    assert contents(there.folder) == {"a/1.parquet": "rows", "a/record.json": "old"}
    with there.work("a"):
        write(there.folder, "a/record.json", "new")
        (there.folder / "a/1.parquet").unlink()
        write(there.folder, "a/2.parquet", "merged")
    here.pull()
    assert contents(here.folder) == {"a/2.parquet": "merged", "a/record.json": "new", "own": "not shared"}


def test_nothing_is_seen_of_a_work_before_its_commit(bucket: Bucket, tmp_path: Path) -> None:
    here, there = copy_in(tmp_path / "here", bucket), copy_in(tmp_path / "there", bucket)
    with here.work("a"):
        write(here.folder, "a/1.parquet", "rows")
        there.pull()
        assert contents(there.folder) == {}
        assert here.commit("a") and not here.commit("a")
        there.pull()
        assert contents(there.folder) == {"a/1.parquet": "rows"}


def test_only_files_of_the_lease_are_committed(bucket: Bucket, tmp_path: Path) -> None:
    here, there = copy_in(tmp_path / "here", bucket), copy_in(tmp_path / "there", bucket)
    with here.work("a"):
        write(here.folder, "a/x", "a")
        write(here.folder, "b/x", "another process is at it")
    there.pull()
    assert contents(there.folder) == {"a/x": "a"}


def test_one_machine_at_a_time(bucket: Bucket, tmp_path: Path) -> None:
    here, there = copy_in(tmp_path / "here", bucket), copy_in(tmp_path / "there", bucket)
    with here.work("a"):
        with pytest.raises(WorkspaceBusyError, match="on another machine"), there.work("a", waits=False):
            raise AssertionError("two at once")
        with there.work("b"):
            write(there.folder, "b/x", "b")
    with there.work("a", waits=False):
        pass


def test_what_was_done_before_an_error_is_committed(bucket: Bucket, tmp_path: Path) -> None:
    here, there = copy_in(tmp_path / "here", bucket), copy_in(tmp_path / "there", bucket)
    with pytest.raises(EvalpipeError, match="disk"), here.work("a"):
        write(here.folder, "a/1", "done")
        raise EvalpipeError("disk")
    there.pull()
    assert contents(there.folder) == {"a/1": "done"}


def test_a_holder_that_was_silent_for_too_long_commits_nothing(bucket: Bucket, tmp_path: Path) -> None:
    here, there = copy_in(tmp_path / "here", bucket), copy_in(tmp_path / "there", bucket)
    with pytest.raises(LeaseLostError), here.work("a"):
        write(here.folder, "a/record", "late")
        there.copy = here.copy  # as if the time had passed: its own lease is taken at once
        with there.work("a"):
            write(there.folder, "a/record", "mine")
    here.pull()
    assert contents(here.folder)["a/record"] == "mine"


_KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from objects.test_working_copy import owner_of
from evalpipe.objects.client import open_objects
from evalpipe.objects.working_copy import WorkingCopy
folder = Path(sys.argv[1])
copy = WorkingCopy(folder, open_objects(sys.argv[2]), owner_of=owner_of, ttl_s=60)
with copy.work("a"):
    (folder / "a/1.parquet").unlink()
    (folder / "a/record").write_text("changed")
    (folder / "a/2.parquet").write_text("new")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_changed_is_taken_back_whole_and_at_once(bucket: Bucket, tmp_path: Path) -> None:
    here, there = copy_in(tmp_path / "here", bucket), copy_in(tmp_path / "there", bucket)
    with here.work("a"):
        write(here.folder, "a/1.parquet", "rows")
        write(here.folder, "a/record", "first")
    code = [sys.executable, "-c", _KILLED, str(here.folder), bucket.url, str(Path(__file__).parents[1])]
    assert subprocess.run(code, timeout=60).returncode == -signal.SIGKILL
    there.pull()
    assert contents(there.folder) == {"a/1.parquet": "rows", "a/record": "first"}
    with here.work("a"):  # the lease of the killed process has 60 s left: it was this machine's own
        assert contents(here.folder) == {"a/1.parquet": "rows", "a/record": "first"}
    there.pull()
    assert contents(there.folder) == {"a/1.parquet": "rows", "a/record": "first"}


def test_a_journal_of_a_killed_process_is_committed_as_far_as_it_came(bucket: Bucket, tmp_path: Path) -> None:
    """Also where the process ended between a commit of it and the note here that it was committed."""
    there = copy_in(tmp_path / "there", bucket)
    here = WorkingCopy(
        tmp_path / "here", open_objects(bucket.url), owner_of=owner_of, is_kept=lambda path: "journal" in path
    )
    with here.work("a"):
        write(here.folder, "a/journal", "first line")
        index = (here.folder / ".working-copy.json").read_bytes()
        here.commit("a")
        (here.folder / ".working-copy.json").write_bytes(index)
        write(here.folder, "a/journal", "first line, second line")
        write(here.folder, "a/other journal", "of an ended process")
        with here.work("b"):  # begins with a pull
            pass
        assert contents(here.folder)["a/journal"] == "first line, second line"
    there.pull()
    assert contents(there.folder) == {"a/journal": "first line, second line", "a/other journal": "of an ended process"}


def test_files_that_somebody_deletes_here_are_not_deleted_from_the_store(bucket: Bucket, tmp_path: Path) -> None:
    here, there = copy_in(tmp_path / "here", bucket), copy_in(tmp_path / "there", bucket)
    with here.work("a"):
        write(here.folder, "a/1.parquet", "rows")
    shutil.rmtree(here.folder / "a")
    with here.work("a"):
        write(here.folder, "a/2.parquet", "more rows")
    there.pull()
    assert contents(there.folder) == {"a/1.parquet": "rows", "a/2.parquet": "more rows"}


def test_what_another_process_of_this_machine_is_at_is_left_alone(bucket: Bucket, tmp_path: Path) -> None:
    here = copy_in(tmp_path / "here", bucket)
    reader = copy_in(tmp_path / "here", bucket)
    with here.work("a"):
        write(here.folder, "a/1.parquet", "in the making")
        reader.pull()
        with reader.work("b"):
            assert contents(here.folder) == {"a/1.parquet": "in the making"}
    reader.pull()
    assert contents(here.folder) == {"a/1.parquet": "in the making"}


def test_a_change_by_another_machine_wins_over_one_that_a_kill_left(bucket: Bucket, tmp_path: Path) -> None:
    here, there = copy_in(tmp_path / "here", bucket), copy_in(tmp_path / "there", bucket)
    with here.work("a"):
        write(here.folder, "a/record", "first")
    write(here.folder, "a/record", "left behind")
    with there.work("a"):
        write(there.folder, "a/record", "second")
    with here.work("a"):
        assert contents(here.folder) == {"a/record": "second"}


def test_every_fault_of_the_storage_at_once(faulty_bucket: Bucket, tmp_path: Path) -> None:
    kinds = ("internal_error", "slow_down", "reset_before", "reset_after", "conflict", "truncated")
    faulty_bucket.faults.set(seed=11, **dict.fromkeys(kinds, 0.02))
    here, there = copy_in(tmp_path / "here", faulty_bucket), copy_in(tmp_path / "there", faulty_bucket)
    expected: dict[str, str] = {}
    for number in range(6):
        copy = (here, there)[number % 2]
        with copy.work("a"):
            assert contents(copy.folder) == expected
            write(copy.folder, f"a/{number}.parquet", f"{number}" * 1000)
            write(copy.folder, "a/record", f"{number}")
        expected |= {f"a/{number}.parquet": f"{number}" * 1000, "a/record": f"{number}"}
    here.pull()
    assert contents(here.folder) == expected
    assert sum(faulty_bucket.faults.made.values()) > 5


def test_bytes_that_are_not_those_of_the_commit_are_an_error(bucket: Bucket, tmp_path: Path) -> None:
    here, there = copy_in(tmp_path / "here", bucket), copy_in(tmp_path / "there", bucket)
    with here.work("a"):
        write(here.folder, "a/1.parquet", "rows")
    open_objects(bucket.url).put("a/1.parquet", b"rots")
    with pytest.raises(StorageError, match="does not hold what was written"):
        there.pull()
    assert contents(there.folder) == {}
    open_objects(bucket.url).delete(["a/1.parquet"])
    with pytest.raises(StorageError, match="no commit removed it"):
        there.pull()


def test_objects_of_removed_files_stay_for_readers_or_are_deleted_at_once(bucket: Bucket, tmp_path: Path) -> None:
    here, objects = copy_in(tmp_path / "here", bucket), open_objects(bucket.url)
    with here.work("a"):
        write(here.folder, "a/1.parquet", "1")
        write(here.folder, "a/2.parquet", "2")
    with here.work("a"):
        (here.folder / "a/1.parquet").unlink()
    assert objects.get("a/1.parquet") is not None
    with here.work("a", erases=True):
        (here.folder / "a/2.parquet").unlink()
    assert objects.get("a/2.parquet") is None


def test_a_folder_with_other_data_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    write(tmp_path, "a/1.parquet", "mine")
    with pytest.raises(ConfigError, match=rf"not from {bucket.url}.*a/1\.parquet"):
        copy_in(tmp_path, bucket)
    copy_in(tmp_path / "new", bucket)
    other = Bucket(bucket.endpoint, bucket.name, f"{bucket.prefix}/other", bucket.faults)
    with pytest.raises(ConfigError, match="is the working copy of"):
        copy_in(tmp_path / "new", other)


def test_only_its_owner_can_read_what_arrives(bucket: Bucket, tmp_path: Path) -> None:
    here, there = copy_in(tmp_path / "here", bucket), copy_in(tmp_path / "there", bucket)
    with here.work("a"):
        write(here.folder, "a/1.parquet", "prompts")
    there.pull()
    assert (there.folder / "a/1.parquet").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(VENDOR == "az", reason="Azure's signature covers the conditions: the proxy cannot take them away")
def test_a_server_that_ignores_conditions_is_refused_before_the_first_commit(
    faulty_bucket: Bucket, tmp_path: Path
) -> None:
    faulty_bucket.faults.set(unconditional=1.0)
    here = copy_in(tmp_path / "here", faulty_bucket)
    with pytest.raises(ConfigError, match="cannot hold a store"):
        here.pull()


def test_objects_without_a_commit_are_deleted_a_day_later(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, objects = copy_in(tmp_path / "here", bucket), open_objects(bucket.url)
    with here.work("a"):
        write(here.folder, "a/1.parquet", "1")
        write(here.folder, "a/record", "1")
    objects.put("a/left.parquet", b"of a writer that was killed")
    assert here.sweep() == 0
    monkeypatch.setattr("evalpipe.objects.working_copy.ORPHAN_AGE", timedelta(seconds=-60))
    assert here.sweep() == 1 and objects.get("a/left.parquet") is None
    copy_in(tmp_path / "there", bucket).pull()
    assert contents(tmp_path / "there") == {"a/1.parquet": "1", "a/record": "1"}
