"""Reading a spool while it is written: new whole lines of every served segment, from where one stopped."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PIECE_BYTES: Final = 1 << 20
"""read at once where the records are wanted now"""


class TailedLine:
    """`offset`: where the line begins; `line`: without its newline."""

    __slots__ = ("line", "offset", "segment")

    def __init__(self, segment: str, offset: int, line: bytes) -> None:
        self.segment, self.offset, self.line = segment, offset, line


class _Segment:
    def __init__(self, path: Path, offset: int, piece_bytes: int) -> None:
        self.name = path.name
        self._piece_bytes = piece_bytes
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.offset = offset
        """of the first byte not yet given out"""
        self._partial = b""
        self._closed = False

    def close(self) -> None:
        """Also ends a `read` that is under way: its descriptor's number may by now be another file's."""
        self._closed = True
        os.close(self.fd)

    def read(self, wanted: tuple[bytes, ...]) -> Iterator[TailedLine]:
        """Of the whole lines that are there now, those that begin with one of `wanted`. Where lines are long, a piece that
        ends within one waits for the rest."""
        while not self._closed and (piece := os.pread(self.fd, self._piece_bytes, self.offset + len(self._partial))):
            start = 0
            while (end := piece.find(b"\n", start)) >= 0:
                partial, self._partial = self._partial, b""
                at = self.offset
                self.offset = at + len(partial) + end + 1 - start
                if partial:
                    line = partial + piece[start:end]
                    if line.startswith(wanted):
                        yield TailedLine(self.name, at, line)
                elif piece.startswith(wanted, start):
                    yield TailedLine(self.name, at, piece[start:end])
                start = end + 1
            self._partial += piece[start:]

    def at_end(self) -> bool:
        return os.fstat(self.fd).st_size <= self.offset + len(self._partial)

    def is_closed_by_writer(self) -> bool:
        """A living writer holds its segment locked."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        fcntl.flock(self.fd, fcntl.LOCK_UN)
        return True


class SpoolTail:
    """All segments `PREFIX*.jsonl` of a folder. A segment that is read to its end and closed is let go of."""

    def __init__(self, folder: Path, prefix: str, offsets: dict[str, int], piece_bytes: int = PIECE_BYTES) -> None:
        self._folder, self._prefix, self._piece_bytes = folder, prefix, piece_bytes
        self._segments: dict[str, _Segment] = {}
        self._finished: dict[str, int] = {}
        self._known = dict(offsets)

    def look_for_segments(self) -> None:
        """Take up new segments; forget those that are gone."""
        with os.scandir(self._folder) as entries:
            names = {entry.name for entry in entries if self._is_ours(entry.name)}
        for name in sorted(names - self._segments.keys()):
            path = self._folder / name
            offset = self._finished.get(name)
            try:
                # Between its creation and its lock a segment looks closed: one that grew after all is read on.
                if offset is None or path.stat().st_size > offset:
                    start = self._known.get(name, 0) if offset is None else offset
                    self._segments[name] = _Segment(path, start, self._piece_bytes)
                    self._finished.pop(name, None)
            except FileNotFoundError:
                continue
        for name in self._finished.keys() - names:
            del self._finished[name]

    def read(self, *wanted: bytes) -> Iterator[TailedLine]:
        """Lines that came since the last call, in the order of each segment: those that begin with one of `wanted`, all
        where nothing is named."""
        prefixes = wanted or (b"",)
        for segment in list(self._segments.values()):
            yield from segment.read(prefixes)

    def let_go(self) -> None:
        """Close segments whose writers are done with them and that are read to the end."""
        for name, segment in list(self._segments.items()):
            if segment.is_closed_by_writer() and segment.at_end():
                self._finished[name] = segment.offset
                segment.close()
                del self._segments[name]

    def offsets(self) -> dict[str, int]:
        """Where to go on after a restart."""
        return {**self._finished, **{name: segment.offset for name, segment in self._segments.items()}}

    def close(self) -> None:
        for segment in self._segments.values():
            segment.close()
        self._segments.clear()

    def _is_ours(self, name: str) -> bool:
        return name.startswith(self._prefix) and name.endswith(".jsonl")


def read_line_at(path: Path, offset: int) -> bytes | None:
    """The line that begins at `offset`, or None where it is gone."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            line = file.readline()
    except OSError:
        return None
    return line[:-1] if line.endswith(b"\n") else None
