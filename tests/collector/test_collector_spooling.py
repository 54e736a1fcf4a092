"""What the spool's writer keeps and loses where the disk takes no more, on a real file-size limit."""

from __future__ import annotations

import contextlib
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from evalpipe.collector.spooling import SpoolWriter

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
        spool.append_all([b"".join(LINES[:2]), LINES[2][:7], LINES[2][7:], *LINES[3:]])
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
            spool.append_all(batch)
        assert content(Path(folder)) == b"".join(b"".join(batch) for batch in batches)
        spool.close()
