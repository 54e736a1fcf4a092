"""The spool writer: whole records, one append each, to a segment this process holds the lock of.

Segments are `NAME.NNNNNN.jsonl`. The newest is locked exclusively (flock) as long as its writer runs, and a new one is
locked before the old is released, so a reader can distinguish an open segment from a closed one. Files are 0600.
"""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Set
from pathlib import Path
from typing import Final

import msgspec

from evalpipe.files import make_folder, sync_folder, take_lock
from evalpipe.spool.format import Body, Record, RequestRecord, ResponseRecord, render_record

RETRY_S = 1.0
"""after a failed write: how long before the disk is tried with a new segment"""
_CHECK_S = 0.4
"""how often the segment is looked for where it should be"""
_ROOM_BYTES = 64 << 10
"""a disk on which so much can be written has space again"""

logger = logging.getLogger(__name__)


class SpoolWriter:
    """Appends records. A record that cannot be written is counted and given up: users are served on.

    `name`: unique per process, without a dot. `on_lost(reason)` is called for each record that could not
    be written, `on_gone(reason, n)` where `n` records that were written are no longer there.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        segment_bytes: int,
        segment_s: float,
        on_lost: Callable[[str], None] = lambda reason: None,
        on_gone: Callable[[str, int], None] = lambda reason, n: None,
        before_rotation: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._name = folder, name
        self._segment_bytes, self._segment_s = segment_bytes, segment_s
        self._on_lost, self._on_gone, self._before_rotation, self._clock = on_lost, on_gone, before_rotation, clock
        self._fd: int | None = None
        self._path = folder
        """of the segment that is open"""
        self._new_name = False
        self._size = 0
        self._number = 0
        self._opened_at = 0.0
        self._unsynced = False
        self._retry_at = 0.0
        self._n_lines = 0
        self._check_at = 0.0
        self._wrote = False
        self._reported: str | None = None
        self._n_lost_before = 0
        self.n_lost = 0
        self.last_error: str | None = None

    def open(self) -> None:
        """The first segment. Where there can be none users are served on, and it is tried again."""
        self._reopened()

    def append(self, record: Record) -> bool:
        return self.append_line(render_record(record))

    def append_line(self, line: bytes) -> bool:
        """One whole line, newline included. False: it was lost (and counted)."""
        if self._write(line, 1):
            return True
        self.n_lost += 1
        self._on_lost(self.last_error or "closed")
        return False

    def append_all(self, pieces: list[bytes], n_lines: int) -> None:
        """`n_lines` whole lines, in any pieces, with one write. Where they do not fit together each is tried alone."""
        data = b"".join(pieces)
        if not self._write(data, n_lines):
            for line in data.split(b"\n")[:-1]:
                self.append_line(line + b"\n")

    def append_lines(self, lines: list[bytes]) -> list[bool]:
        """Several lines with one write; which of them were written. Where they do not fit together each is tried alone."""
        if len(lines) > 1 and self._write(b"".join(lines), len(lines)):
            return [True] * len(lines)
        return [self.append_line(line) for line in lines]

    def _write(self, data: bytes, n_lines: int) -> bool:
        """`n_lines` whole lines; False: none of them was written."""
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
        self._n_lines += n_lines
        self._unsynced = self._wrote = True
        self.last_error = None
        if self._size >= self._segment_bytes:
            self.rotate()
        return True

    def rotate(self) -> None:
        """Close the segment and go on in a new one; where none can be opened, in the old one."""
        old = self._fd
        if old is not None and self._is_gone(old):
            self._leave(old)
            return
        self._before_rotation()
        try:
            self._open_next()
        except OSError as error:
            self.last_error = error.strerror or str(error)
            self._fd = old
            self._opened_at = self._clock()
            return
        if old is not None:  # syncing may take long: off the request path
            try:
                threading.Thread(target=_close, args=(old,), name="spool-close").start()
            except RuntimeError:  # no further thread can be had
                _close(old)

    def tick(self) -> None:
        """To be called a few times a second: detects that the segment is gone or that the disk has space again, and rotates a
        segment that holds something and is old."""
        now = self._clock()
        if now >= self._check_at:
            self._check_at = now + _CHECK_S
            self._check()
        if self._fd is not None and self._size and self._clock() - self._opened_at >= self._segment_s:
            self.rotate()

    def _check(self) -> None:
        fd = self._fd
        if fd is None:
            self._reopened()
        elif self._is_gone(fd):
            self._leave(fd)
        elif self.last_error is not None and not self._wrote:
            self._probe_disk()
        self._wrote = False
        self._report()

    def _is_gone(self, fd: int) -> bool:
        """Whether load would not find what is written here: the segment was deleted, moved, replaced or cut off."""
        here = os.fstat(fd)
        try:
            there = os.stat(self._path)  # noqa: PTH116 - compiled, a few times a second
        except OSError:
            return True
        return here.st_ino != there.st_ino or here.st_dev != there.st_dev or here.st_size < self._size

    def _leave(self, fd: int) -> None:
        """Go on in a new segment, the old one is gone."""
        self._retry_at = 0.0
        self._count_gone(fd)
        self._fd = None
        os.close(fd)
        self._reopened()

    def _count_gone(self, fd: int) -> None:
        """What the segment held, and is no longer there, is lost."""
        n_lost = self._n_lines
        with contextlib.suppress(OSError):  # cut off: what was written since is still there
            if os.path.samestat(os.fstat(fd), os.stat(self._path)):  # noqa: PTH116
                n_lost = max(0, n_lost - self._path.read_bytes().count(b"\n"))
        reason = f"{self._path} was deleted, moved, replaced or cut off while it was written"
        logger.error("%s: %d records LOST; a new segment is begun", reason, n_lost)
        self.n_lost += n_lost
        self._n_lost_before += n_lost
        if n_lost:
            self._on_gone(reason, n_lost)

    def _probe_disk(self) -> None:
        """Without traffic nothing else notices that a disk has space again."""
        probe = self._folder / f".room-{self._name}"
        try:
            fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                n_written = os.write(fd, bytes(_ROOM_BYTES))
            finally:
                os.close(fd)
                os.unlink(probe)  # noqa: PTH108
        except OSError:
            return
        if n_written == _ROOM_BYTES:
            self.last_error = None

    def _report(self) -> None:
        """A line in the log where records begin to be lost, and one where they no longer are."""
        error = self.last_error
        if error is not None and self._reported is None:
            logger.error(
                "records cannot be written to %s: %s; users are served on, and losses counted", self._folder, error
            )
            self._reported = error
        elif error is None and self._reported is not None:
            n = self.n_lost - self._n_lost_before
            logger.warning("records are written again; %d were LOST meanwhile", n)
            self._reported, self._n_lost_before = None, self.n_lost

    def sync(self) -> None:
        """Make what was written survive a power loss; may be called from another thread."""
        fd = self._fd
        if fd is None or not self._unsynced:
            return
        self._unsynced = False
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno != errno.EBADF:  # a segment that was rotated away meanwhile was synced when it was closed
                self.last_error = error.strerror or str(error)
        self._sync_name()

    def _sync_name(self) -> None:
        """A file whose name is not on the disk is lost with all its bytes."""
        if not self._new_name:
            return
        self._new_name = False
        try:
            sync_folder(self._folder)
        except OSError as error:
            self._new_name = True
            self.last_error = error.strerror or str(error)

    def close(self) -> None:
        """The last segment is synced and closed; an empty one is removed."""
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        if self._is_gone(fd):
            self._count_gone(fd)
        elif self._size == 0:
            with contextlib.suppress(OSError):
                self._path.unlink()
        _close(fd)
        self._sync_name()

    def position(self) -> dict[str, int]:
        """The open segment's name and size."""
        return {} if self._fd is None else {self._path.name: self._size}

    def _open_next(self) -> int:
        self._number += 1
        path = self._folder / f"{self._name}.{self._number:06d}.jsonl"
        # 0600 and O_EXCL: a new file, whatever is in the folder
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        take_lock(fd)
        self._path, self._new_name = path, True
        self._fd, self._size, self._n_lines, self._opened_at = fd, 0, 0, self._clock()
        return fd

    def _reopened(self) -> int | None:
        now = self._clock()
        if now < self._retry_at:
            return None
        self._retry_at = now + RETRY_S
        try:
            make_folder(self._folder, mode=0o700)
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


# Spool records of one kind that differ in little: the rest is rendered once. Bytes only, no I/O.
#
# Encoding a whole record anew for each of a million requests of one client is most of what its log costs.


_encoder: Final = msgspec.json.Encoder()


def add_body(line: list[bytes], data: bytes, n_dropped_bytes: int) -> None:
    """What a record's body is in JSON, see `Body`, in pieces to the end of `line`."""
    if n_dropped_bytes or not data:
        line.append(_encoder.encode(Body.of(data, n_dropped_bytes=n_dropped_bytes) if n_dropped_bytes else Body()))
        return
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        line.append(_encoder.encode(Body.of(data)))
        return
    line.append(b'{"text":')
    line.append(_encoder.encode(text))
    line.append(b"}")


def _rest(record: Record, own: Set[str]) -> bytes:
    """The members of `record` but for `own`, as the end of its line."""
    fields = {name: value for name, value in msgspec.to_builtins(record).items() if name not in own}
    return b"," + _encoder.encode(fields)[1:] + b"\n"


class RequestTemplate:
    """A request record all but its id, instant and body."""

    __slots__ = ("_rest",)

    def __init__(self, record: RequestRecord) -> None:
        self._rest = _rest(record, {"record", "request_id", "received_at", "body"})

    def add(self, line: list[bytes], request_id: str, received_at: float, body: bytes, n_dropped_bytes: int) -> None:
        """What `render_record` gives for the whole record, in another order of members, in pieces to the end of `line`."""
        line.append(b'{"record":"request","request_id":"')
        line.append(request_id.encode("ascii"))
        line.append(b'","received_at":')
        line.append(_encoder.encode(received_at))
        line.append(b',"body":')
        add_body(line, body, n_dropped_bytes)
        line.append(self._rest)


class ResponseTemplate:
    """A response record all but what differs between whole answers of one arm to one endpoint."""

    __slots__ = ("_rest",)

    def __init__(self, record: ResponseRecord) -> None:
        own = {
            "record",
            "request_id",
            "started_at",
            "latency_ms",
            "first_byte_ms",
            "marks",
            "status",
            "headers",
            "body",
            "sent",
        }
        self._rest = _rest(record, own)

    def add(
        self,
        line: list[bytes],
        request_id: str,
        started_at: float,
        latency_ms: float,
        first_byte_ms: float | None,
        marks: list[tuple[int, float]],
        status: int,
        headers: bytes,
        body: bytes,
        n_dropped_bytes: int,
        sent: bytes,
    ) -> None:
        """What `render_record` gives for the whole record, in another order of members, in pieces to the end of `line`.

        `headers`: JSON. `sent`: b"" where the arm got the client's own bytes.
        """
        line.append(b'{"record":"response","request_id":"')
        line.append(request_id.encode("ascii"))
        line.append(b'","started_at":')
        line.append(_encoder.encode(started_at))
        line.append(b',"latency_ms":')
        line.append(_encoder.encode(latency_ms))
        line.append(b',"first_byte_ms":')
        line.append(_encoder.encode(first_byte_ms))
        if marks:
            line.append(b',"marks":')
            line.append(_encoder.encode(marks))
        line.append(b',"status":')
        line.append(b"200" if status == 200 else b"%d" % status)
        line.append(b',"headers":')
        line.append(headers)
        line.append(b',"body":')
        add_body(line, body, n_dropped_bytes)
        if sent:
            line.append(b',"sent":')
            add_body(line, sent, 0)
        line.append(self._rest)
