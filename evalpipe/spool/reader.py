"""Reading a spool while it is written: new whole lines of every served segment, from where one stopped."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from evalpipe.files import release_lock, try_lock

PIECE_BYTES: Final = 1 << 20
"""read at once where the records are needed now"""
_MANY_OPEN: Final = 8
"""beyond so many open segments each is closed as soon as it is read"""


class TailedLine:
    """`offset`: where the line begins; `line`: without its newline."""

    __slots__ = ("line", "offset", "segment")

    def __init__(self, segment: str, offset: int, line: bytes) -> None:
        self.segment, self.offset, self.line = segment, offset, line


class SegmentFiles:
    """The open segments of a folder: one descriptor each, however many tails read it, and few of them at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._fds: dict[str, int] = {}
        self._n_users: dict[str, int] = {}
        self.refusal: str | None = None
        """why the last segment could not be opened (no descriptors), None where it could"""

    def __len__(self) -> int:
        return len(self._fds)

    def open(self, name: str) -> int:
        """Raises OSError."""
        fd = self._fds.get(name)
        if fd is None:
            try:
                fd = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise
            except OSError as error:
                self.refusal = error.strerror or str(error)
                raise
            self.refusal = None
            self._fds[name] = fd
            self._n_users[name] = 0
        self._n_users[name] += 1
        return fd

    def close(self, name: str) -> None:
        self._n_users[name] -= 1
        if not self._n_users[name]:
            del self._n_users[name]
            os.close(self._fds.pop(name))


class _Segment:
    def __init__(self, files: SegmentFiles, name: str, offset: int, piece_bytes: int) -> None:
        self.name = name
        self._files, self._piece_bytes = files, piece_bytes
        self.fd = -1
        """-1: not open"""
        self.offset = offset
        """of the first byte not yet given out"""
        self._partial = b""
        self._closed = False

    def open(self) -> None:
        """Raises OSError."""
        if self.fd < 0:
            self.fd = self._files.open(self.name)

    def close(self) -> None:
        """Also ends a running `read`: its descriptor's number may by now be another file's."""
        self._closed = True
        if self.fd >= 0:
            self.fd = -1
            self._files.close(self.name)

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
        """A running writer holds its segment locked."""
        if not try_lock(self.fd, shared=True):
            return False
        release_lock(self.fd)
        return True


class SpoolTail:
    """All segments `PREFIX*.jsonl` of a folder, read one after the other.

    A segment is opened when it is its turn, and closed once it is read to its end and closed by its writer: however far
    behind this tail is, a few are open. `n_ahead`: so many further ones are opened before their turn, so that they can
    still be read when load has deleted them.
    """

    def __init__(
        self,
        folder: Path,
        prefix: str,
        offsets: dict[str, int],
        piece_bytes: int = PIECE_BYTES,
        *,
        files: SegmentFiles | None = None,
        n_ahead: int = 0,
    ) -> None:
        self._folder, self._prefix, self._piece_bytes = folder, prefix, piece_bytes
        self._files = SegmentFiles(folder) if files is None else files
        self._n_ahead = n_ahead
        self._segments: dict[str, _Segment] = {}
        self._finished: dict[str, int] = {}
        self._known = dict(offsets)

    def look_for_segments(self) -> None:
        """Take up new segments; forget those that are gone."""
        names = self._names()
        for name in sorted(names - self._segments.keys()):
            offset = self._finished.get(name)
            # Between its creation and its lock a segment looks closed: one that grew after all is read on.
            if offset is None or _size_of(self._folder / name) > offset:
                start = self._known.get(name, 0) if offset is None else offset
                self._segments[name] = _Segment(self._files, name, start, self._piece_bytes)
                self._finished.pop(name, None)
        for name in self._finished.keys() - names:
            del self._finished[name]
        n_open = 0
        for name, segment in list(self._segments.items()):
            if segment.fd < 0 and name not in names:
                del self._segments[name]
                continue
            if segment.fd < 0 and n_open < self._n_ahead:
                self._open(segment)
            n_open += segment.fd >= 0

    def unread_bytes(self) -> int:
        """Bytes of the known segments that were not given out yet."""
        n_bytes = 0
        for segment in self._segments.values():
            n_bytes += max(_size_of(self._folder / segment.name) - segment.offset, 0)
        return n_bytes

    def _names(self) -> set[str]:
        try:
            with os.scandir(self._folder) as entries:
                return {entry.name for entry in entries if self._is_ours(entry.name)}
        except FileNotFoundError:  # the folder was deleted; the writer makes it anew
            return set()
        except OSError as error:  # no descriptors: what is known is read on
            self._files.refusal = error.strerror or str(error)
            return self._segments.keys() | self._finished.keys()

    def _open(self, segment: _Segment) -> bool:
        try:
            segment.open()
        except FileNotFoundError:
            self._segments.pop(segment.name, None)
        except OSError:  # no descriptors: it is read in a later round
            return False
        return segment.fd >= 0

    def read(self, *wanted: bytes) -> Iterator[TailedLine]:
        """Lines that came since the last call, in the order of each segment: those that begin with one of `wanted`, all
        where nothing is named."""
        prefixes = wanted or (b"",)
        for segment in list(self._segments.values()):
            if segment.fd < 0 and not self._open(segment):
                continue
            yield from segment.read(prefixes)
            if segment.fd >= 0 and len(self._files) > _MANY_OPEN:
                self._close_segment(segment)

    def let_go(self) -> None:
        """Close segments whose writers are done with them and that are read to the end."""
        for segment in list(self._segments.values()):
            if segment.fd >= 0:
                self._close_segment(segment)

    def _close_segment(self, segment: _Segment) -> None:
        if segment.is_closed_by_writer() and segment.at_end():
            self._finished[segment.name] = segment.offset
            segment.close()
            self._segments.pop(segment.name, None)

    def offsets(self) -> dict[str, int]:
        """Where to go on after a restart."""
        return {**self._finished, **{name: segment.offset for name, segment in self._segments.items()}}

    def close(self) -> None:
        for segment in self._segments.values():
            segment.close()
        self._segments.clear()

    def _is_ours(self, name: str) -> bool:
        return name.startswith(self._prefix) and name.endswith(".jsonl")


def _size_of(path: Path) -> int:
    """-1 where it is gone."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def read_line_at(path: Path, offset: int) -> bytes | None:
    """The line that begins at `offset`, or None where it is gone."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            line = file.readline()
    except OSError:
        return None
    return line[:-1] if line.endswith(b"\n") else None
