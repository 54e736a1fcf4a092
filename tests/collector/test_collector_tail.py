"""The spool is read while it is written: a segment may be let go of between two lines of a reader that was interrupted."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from pathlib import Path

import pytest

from evalpipe.spool.reader import SegmentFiles, SpoolTail


def test_a_reader_that_stands_on_the_last_line_ends_when_the_segment_is_let_go(tmp_path: Path) -> None:
    (tmp_path / "served-1.000001.jsonl").write_bytes(b'{"a": 1}\n{"b": 2}\n')
    tail = SpoolTail(tmp_path, "served-", {})
    tail.look_for_segments()
    reader = tail.read()
    assert [next(reader).line, next(reader).line] == [b'{"a": 1}', b'{"b": 2}']
    tail.let_go()
    # The descriptor's number is soon another file's: its bytes must not be taken for the segment's.
    others = [os.open(__file__, os.O_RDONLY) for _ in range(8)]
    try:
        assert list(reader) == []
    finally:
        for other in others:
            os.close(other)
    assert tail.offsets() == {"served-1.000001.jsonl": 18}
    tail.close()


def descriptors_below(folder: Path) -> int:
    """How many descriptors of this process are files of `folder`. All of them would count other tests' leftovers, which the
    garbage collector may close meanwhile."""
    files = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            files.append(str(link.readlink()))
    return sum(file.startswith(f"{folder}/") for file in files)


@pytest.mark.parametrize("n_ahead", [0, 16])
def test_a_long_backlog_is_read_with_few_descriptors(tmp_path: Path, n_ahead: int) -> None:
    for n in range(300):
        (tmp_path / f"served-1.{n:06d}.jsonl").write_bytes(b'{"n": %d}\n' % n)
    files = SegmentFiles(tmp_path)
    tails = [SpoolTail(tmp_path, "served-", {}, files=files, n_ahead=n_ahead) for _ in range(2)]
    most = 0
    for tail in tails:
        tail.look_for_segments()
        found = []
        for line in tail.read():
            found.append(line.line)
            most = max(most, descriptors_below(tmp_path))
        assert found == [b'{"n": %d}' % n for n in range(300)]
        tail.let_go()
        tail.look_for_segments()
        assert list(tail.read()) == []  # nothing is read twice
        assert tail.offsets() == {f"served-1.{n:06d}.jsonl": len(b'{"n": %d}\n' % n) for n in range(300)}
    assert most <= 2 * n_ahead + 12
    for tail in tails:
        tail.close()
    assert descriptors_below(tmp_path) == 0


def test_a_segment_held_ahead_is_read_though_it_was_deleted(tmp_path: Path) -> None:
    for n in range(4):
        (tmp_path / f"served-1.{n:06d}.jsonl").write_bytes(b'{"n": %d}\n' % n)
    tail = SpoolTail(tmp_path, "served-", {}, n_ahead=4)
    tail.look_for_segments()
    for path in tmp_path.iterdir():
        path.unlink()
    tail.look_for_segments()
    assert [line.line for line in tail.read()] == [b'{"n": %d}' % n for n in range(4)]
    tail.close()


def test_without_descriptors_a_segment_is_read_later(tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"served-1.{n:06d}.jsonl").write_bytes(b'{"n": %d}\n' % n)
    files = SegmentFiles(tmp_path)
    tail = SpoolTail(tmp_path, "served-", {}, files=files)
    tail.look_for_segments()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(highest + 2)]  # no gap below the limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(others) + 1, hard))
    try:
        assert list(tail.read()) == []
        assert files.refusal == os.strerror(errno.EMFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for other in others:
            os.close(other)
    assert [line.line for line in tail.read()] == [b'{"n": %d}' % n for n in range(3)]
    assert files.refusal is None
    tail.close()


def test_a_folder_that_is_gone_is_an_empty_one(tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    tail = SpoolTail(folder, "served-", {})
    tail.look_for_segments()
    assert list(tail.read()) == []
    folder.mkdir()
    (folder / "served-1.000001.jsonl").write_bytes(b'{"a": 1}\n')
    tail.look_for_segments()
    assert [line.line for line in tail.read()] == [b'{"a": 1}']
    tail.close()


def test_what_is_unread_is_known_in_bytes(tmp_path: Path) -> None:
    (tmp_path / "served-1.000001.jsonl").write_bytes(b'{"a": 1}\n{"b": 2}\n')
    (tmp_path / "served-1.000002.jsonl").write_bytes(b'{"c": 3}\n')
    tail = SpoolTail(tmp_path, "served-", {})
    assert tail.unread_bytes() == 0  # no segment is known yet
    tail.look_for_segments()
    assert tail.unread_bytes() == 27
    reader = tail.read()
    next(reader)
    assert tail.unread_bytes() == 18
    assert len(list(reader)) == 2
    assert tail.unread_bytes() == 0
    tail.close()
