"""The spool is read while it is written: a segment may be let go of between two lines of a reader that was interrupted."""

from __future__ import annotations

import os
from pathlib import Path

from evalpipe.collector.tail import SpoolTail


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
