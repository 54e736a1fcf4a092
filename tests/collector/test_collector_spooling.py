"""What the spool's writer keeps and loses where the disk takes no more, on a real file-size limit."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.spool.writer import SpoolWriter

LINES = [b"%029d\n" % n for n in range(5)]


@contextlib.contextmanager
def files_of_at_most(n_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def writer(folder: Path, lost: list[str]) -> SpoolWriter:
    made = SpoolWriter(folder, "served-1", segment_bytes=1 << 20, segment_s=300, on_lost=lost.append)
    made.open()
    return made


def content(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("*.jsonl")))


def test_what_does_not_fit_together_is_tried_line_by_line(tmp_path: Path) -> None:
    lost: list[str] = []
    spool = writer(tmp_path, lost)
    with files_of_at_most(100):  # three lines of 30 bytes fit, and a part of the fourth
        spool.append_all([b"".join(LINES[:2]), LINES[2][:7], LINES[2][7:], *LINES[3:]], len(LINES))
    assert content(tmp_path) == b"".join(LINES[:3])
    assert (spool.n_lost, len(lost)) == (2, 2)
    assert spool.last_error is not None
    spool.append_line(LINES[4])
    assert content(tmp_path) == b"".join([*LINES[:3], LINES[4]])
    assert (spool.n_lost, spool.last_error) == (2, None)


def test_the_writer_says_which_lines_it_has(tmp_path: Path) -> None:
    lost: list[str] = []
    spool = writer(tmp_path, lost)
    assert spool.append_lines(LINES[:2]) == [True, True]
    with files_of_at_most(100):
        assert spool.append_lines(LINES[2:]) == [True, False, False]
    assert content(tmp_path) == b"".join(LINES[:3])
    assert len(lost) == 2


@given(st.lists(st.lists(st.binary(max_size=30).map(lambda b: b.replace(b"\n", b" ") + b"\n")), max_size=6))
def test_batches_are_the_lines_one_after_the_other(batches: list[list[bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        spool = writer(Path(folder), [])
        for batch in batches:
            spool.append_all(batch, len(batch))
        assert content(Path(folder)) == b"".join(b"".join(batch) for batch in batches)
        spool.close()


def _removed(path: Path) -> None:
    path.unlink()


def _replaced(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def _cut_off(path: Path) -> None:
    path.write_bytes(LINES[0])


@pytest.mark.parametrize(("harm", "n_lost"), [(_removed, 3), (_replaced, 3), (_cut_off, 2)])
@pytest.mark.parametrize("noticed_by", ["tick", "rotate", "close"])
def test_what_was_written_to_a_segment_that_is_gone_is_counted(
    tmp_path: Path, harm: Callable[[Path], None], n_lost: int, noticed_by: str
) -> None:
    now, gone = 0.0, []
    spool = SpoolWriter(
        tmp_path,
        "served-1",
        segment_bytes=1 << 20,
        segment_s=300,
        on_gone=lambda reason, n: gone.append(n),
        clock=lambda: now,
    )
    spool.open()
    spool.append_all(LINES[:3], 3)
    (path,) = tmp_path.glob("*.jsonl")
    spool.tick()
    harm(path)
    now += 0.5
    getattr(spool, noticed_by)()
    assert (spool.n_lost, gone) == (n_lost, [n_lost])
    if noticed_by != "close":
        assert spool.append_line(LINES[3])
        assert (tmp_path / "served-1.000002.jsonl").read_bytes() == LINES[3]


def test_a_segment_is_locked_as_long_as_it_is_written(tmp_path: Path) -> None:
    spool = writer(tmp_path, [])
    spool.append_line(LINES[0])
    (path,) = tmp_path.glob("*.jsonl")
    with path.open("rb") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
    spool.close()
    with path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)


def test_before_it_rotates_the_position_is_saved_and_without_a_new_segment_it_goes_on_in_the_old_one(
    tmp_path: Path,
) -> None:
    positions: list[dict[str, int]] = []
    spool = SpoolWriter(
        tmp_path,
        "served-1",
        segment_bytes=1 << 20,
        segment_s=300,
        before_rotation=lambda: positions.append(spool.position()),
    )
    spool.open()
    spool.append_line(LINES[0])
    (tmp_path / "served-1.000002.jsonl").touch()  # the name is taken
    spool.rotate()
    assert positions == [{"served-1.000001.jsonl": len(LINES[0])}]
    assert spool.append_line(LINES[1])
    assert (tmp_path / "served-1.000001.jsonl").read_bytes() == LINES[0] + LINES[1]


def test_a_segment_is_synced_before_it_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From then on only the newer segment is synced, each second."""
    synced: list[tuple[str, int]] = []
    fsync = os.fsync

    def noting(handle: int) -> None:
        synced.append((Path(f"/proc/self/fd/{handle}").readlink().name, os.fstat(handle).st_size))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noting)
    spool = writer(tmp_path, [])
    spool.append_line(LINES[0])
    spool.rotate()
    last = time.monotonic() + 30.0  # in a thread of its own, off the path of requests
    while ("served-1.000001.jsonl", len(LINES[0])) not in synced and time.monotonic() < last:
        time.sleep(0.01)
    assert ("served-1.000001.jsonl", len(LINES[0])) in synced
