"""The spool writer: whole records, one append each, to a segment this process holds the lock of.

Segments are `NAME.NNNNNN.jsonl`. The newest is locked exclusively (flock) as long as its writer lives, and a new one is
locked before the old is let go, so a reader tells a living segment from a closed one. Files are 0600.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from evalpipe.core.spool import Record, render_record

RETRY_S = 1.0
"""after a failed write: how long before the disk is tried with a new segment"""


class SpoolWriter:
    """Appends records. A record that cannot be written is counted and given up: users are served on.

    `name`: unique per process life, without a dot. `on_lost(reason)` is told of each loss.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        segment_bytes: int,
        segment_s: float,
        on_lost: Callable[[str], None] = lambda reason: None,
        before_rotation: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._name = folder, name
        self._segment_bytes, self._segment_s = segment_bytes, segment_s
        self._on_lost, self._before_rotation, self._clock = on_lost, before_rotation, clock
        self._fd: int | None = None
        self._size = 0
        self._number = 0
        self._opened_at = 0.0
        self._unsynced = False
        self._retry_at = 0.0
        self.n_lost = 0
        self.last_error: str | None = None

    def open(self) -> None:
        """The first segment. Raises OSError, so that a folder nobody can write to is found before the first request."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._open_next()

    def append(self, record: Record) -> bool:
        return self.append_line(render_record(record))

    def append_line(self, line: bytes) -> bool:
        """One whole line, newline included. False: it was lost (and counted)."""
        if self._write(line):
            return True
        self.n_lost += 1
        self._on_lost(self.last_error or "closed")
        return False

    def append_all(self, pieces: list[bytes]) -> None:
        """Whole lines, in any pieces, with one write. Where they do not fit together each is tried alone."""
        data = b"".join(pieces)
        if not self._write(data):
            for line in data.split(b"\n")[:-1]:
                self.append_line(line + b"\n")

    def append_lines(self, lines: list[bytes]) -> list[bool]:
        """Several lines with one write; which of them were written. Where they do not fit together each is tried alone."""
        if len(lines) > 1 and self._write(b"".join(lines)):
            return [True] * len(lines)
        return [self.append_line(line) for line in lines]

    def _write(self, data: bytes) -> bool:
        """Whole lines; False: none of them was written."""
        fd = self._fd
        if fd is None:
            fd = self._reopened()
            if fd is None:
                return False
        try:
            n_written = os.write(fd, data)
            if n_written != len(data):  # a disk that fills up takes a part: take it back, so that lines stay whole
                n_written += _write_rest(fd, data, n_written)
        except OSError as error:
            self._failed(fd, error)
            return False
        self._size += n_written
        self._unsynced = True
        self.last_error = None
        if self._size >= self._segment_bytes:
            self.rotate()
        return True

    def rotate(self) -> None:
        """Close the segment and go on in a new one; where none can be opened, in the old one."""
        old = self._fd
        self._before_rotation()
        try:
            self._open_next()
        except OSError as error:
            self.last_error = error.strerror or str(error)
            self._fd = old
            self._opened_at = self._clock()
            return
        if old is not None:  # syncing may take long: not on the road of the requests
            threading.Thread(target=_close, args=(old,), name="spool-close").start()

    def tick(self) -> None:
        """To be called about once a second: rotates a segment that holds something and is old."""
        if self._fd is not None and self._size and self._clock() - self._opened_at >= self._segment_s:
            self.rotate()

    def sync(self) -> None:
        """Make what was written survive a power loss; may be called from another thread."""
        fd = self._fd
        if fd is None or not self._unsynced:
            return
        self._unsynced = False
        with contextlib.suppress(OSError):  # a segment that was rotated away meanwhile was synced when it was closed
            os.fsync(fd)

    def close(self) -> None:
        """The last segment is synced and let go; an empty one is removed."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        if self._size == 0:
            with contextlib.suppress(OSError):
                self._path.unlink()
        _close(fd)

    def position(self) -> dict[str, int]:
        """The open segment's name and size."""
        return {} if self._fd is None else {self._path.name: self._size}

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._name}.{self._number:06d}.jsonl"

    def _open_next(self) -> int:
        self._number += 1
        # 0600 and O_EXCL: nobody else's file, whatever lies in the folder
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        self._fd, self._size, self._opened_at = fd, 0, self._clock()
        return fd

    def _reopened(self) -> int | None:
        now = self._clock()
        if now < self._retry_at:
            return None
        self._retry_at = now + RETRY_S
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return self._open_next()
        except OSError as error:
            self.last_error = error.strerror or str(error)
            return None

    def _failed(self, fd: int, error: OSError) -> None:
        self.last_error = error.strerror or str(error)
        try:
            os.ftruncate(fd, self._size)
        except OSError:  # the broken line stays: leave this segment, so that no whole line is glued to it
            _close(fd)
            self._fd = None


def _write_rest(fd: int, line: bytes, n_written: int) -> int:
    """What a short write left (only large records on some file systems, or a disk about to fill)."""
    view = memoryview(line)
    start = n_written
    while n_written < len(view):
        n_written += os.write(fd, view[n_written:])
    return n_written - start


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.fsync(fd)
    os.close(fd)  # lets the lock go
