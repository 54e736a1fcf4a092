"""The segments of a spool as load sees them: open or complete, their records in the order of time, their locks.

A segment is `WRITER.NNNNNN.jsonl`. A living writer holds an exclusive flock on its newest one, and locks a new one before
it lets the old one go.
"""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import gzip
import heapq
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Final

from evalpipe.errors import DataError, EvalpipeError, WorkspaceBusyError
from evalpipe.files import is_locked, release_lock, try_lock
from evalpipe.models import Arm, Role, ShadowStatus
from evalpipe.spool.checkpoint import OWN_PREFIX, STATE_FILE, TREATMENT_LOCK, ShadowState, read_state
from evalpipe.spool.format import FeedbackRecord, Record, RequestRecord, ResponseRecord, ShadowRecord, read_record
from evalpipe.spool.join import Source

EMPTY_AFTER_S = 3600.0
"""An empty segment of this age was never written to. A younger one may be about to be locked by its new writer."""

_CHUNK_BYTES = 1 << 20
_PROGRESS_BYTES = 1 << 18
"""read between two reports of progress"""
_STARTS_WITHIN_S = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A segment at the moment it was listed. `n_bytes` is how far it is read: what comes later is for the next load."""

    path: Path
    writer: str
    n_bytes: int
    live: bool
    """its writer runs; it may go on in a newer segment that is not listed"""
    locked: bool


def segment_files(spool: Path | Sequence[Path]) -> list[Path]:
    """The segments of a spool folder, or those of the named files that exist."""
    return sorted(spool.glob("*.jsonl")) if isinstance(spool, Path) else [path for path in spool if path.exists()]


def holds_log(spool: Path) -> bool:
    """Whether a spool folder holds anything to load: a collector without traffic keeps an empty segment."""
    return any(segment.n_bytes for segment in list_segments(spool))


def list_segments(spool: Path | Sequence[Path]) -> list[Segment]:
    """All segments of a spool (a folder, or files), and whether their writers run.

    The order of the looks matters: a writer counts as gone only when, after all its known segments were seen unlocked, no
    newer one of its has come up.
    """
    known: dict[Path, tuple[int, bool]] = {}
    while True:
        found = segment_files(spool)
        if known.keys() == set(found):
            break
        known = {path: state for path in found if (state := _look(path)) is not None}
    live = {_writer(path) for path, (_, locked) in known.items() if locked}
    return [
        Segment(path=path, writer=_writer(path), n_bytes=n_bytes, live=_writer(path) in live, locked=locked)
        for path, (n_bytes, locked) in known.items()
    ]


def read_lines(segment: Segment) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line without its newline) of the whole lines. A last line without newline is given
    only where no process will finish it."""
    number, rest = 0, b""
    for chunk in _chunks(segment):
        start = 0
        while (end := chunk.find(b"\n", start)) >= 0:  # `split` looks at each byte by itself, ten times as slow
            line = chunk[start:end]
            if rest:
                line, rest = rest + line, b""
            start = end + 1
            number += 1
            yield number, line
        rest += chunk[start:]
    if rest and not segment.locked:
        yield number + 1, rest


def _chunks(segment: Segment) -> Iterator[bytes]:
    if segment.path.suffix != ".gz":
        with segment.path.open("rb") as file:
            n_left = segment.n_bytes
            while n_left > 0 and (chunk := file.read(min(_CHUNK_BYTES, n_left))):
                n_left -= len(chunk)
                yield chunk
        return
    try:  # a compressed log; no process appends to it
        with gzip.open(segment.path) as packed:
            while chunk := packed.read(_CHUNK_BYTES):
                yield chunk
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {segment.path}: {error}") from error


@contextmanager
def exclusive_segments(spool: Path | Sequence[Path]) -> Iterator[list[Segment]]:
    """The segments. Where no writer runs, a treatment process that is started meanwhile waits: it could send, and pay for, a
    shadow request of a request that is just being closed as never shadowed."""
    if not isinstance(spool, Path) or not spool.is_dir():
        yield list_segments(spool)
        return
    handle = os.open(spool / TREATMENT_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + _STARTS_WITHIN_S
    try:
        segments = list_segments(spool)
        while not _any_live(segments) and time.monotonic() < deadline:
            if not try_lock(handle):  # it is just starting, and soon holds a segment, or just ending
                time.sleep(0.05)
                segments = list_segments(spool)
                continue
            segments = list_segments(spool)
            if _any_live(segments):  # a worker: what it records next is for its treatment process
                release_lock(handle)
            break
        yield segments
    finally:
        os.close(handle)


def treatment_state(spool: Path) -> ShadowState:
    try:
        return read_state((spool / STATE_FILE).read_bytes())
    except FileNotFoundError:
        return ShadowState()


def holds_decisions(segment: Segment) -> bool:
    """Whether the segment is the treatment process's own: a successor learns from it what is not to be sent again."""
    return segment.path.name.startswith(OWN_PREFIX)


def _any_live(segments: list[Segment]) -> bool:
    return any(segment.live for segment in segments)


def remove(segment: Segment) -> bool:
    """Delete the segment if it is still what was read and no process holds it. Whether it is gone."""
    try:
        handle = os.open(segment.path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        if not try_lock(handle):
            return False
        state = os.fstat(handle)
        grown = state.st_size != segment.n_bytes
        fresh = state.st_size == 0 and time.time() - state.st_mtime < EMPTY_AFTER_S
        if grown or fresh:
            return False
        segment.path.unlink()
    finally:
        os.close(handle)
    return True


def _writer(path: Path) -> str:
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return name.rpartition(".")[0] or name


def _look(path: Path) -> tuple[int, bool] | None:
    """(size, whether it is locked) of a segment, None where it is gone. A writer locks before its first write and writes
    no more once the lock is gone: an unlocked segment whose size did not change around the look is final."""
    try:
        n_bytes = path.stat().st_size
        while True:
            locked, n_before = bool(is_locked(path)), n_bytes
            n_bytes = path.stat().st_size
            if locked or n_bytes == n_before:
                return n_bytes, locked
    except FileNotFoundError:
        return None


# The records of all segments as one stream in the order of their times; what is no record is rejected.


MAX_TIME_S: Final = 253402300800.0
"""The end of year 9999, where calendars end."""

_ARMS: Final = frozenset(arm.value for arm in Arm)
_SHADOW_STATUSES: Final = frozenset(status.value for status in ShadowStatus)
_ROLES: Final = frozenset({Role.SERVED.value, Role.SHADOW.value})

Reject = Callable[[Segment, int, bytes, str], None]


def read_spool(
    segments: list[Segment], reject: Reject, progress: Callable[[int], object]
) -> Iterator[tuple[Record, Source]]:
    """Every record with its position. Each writer's segments follow each other; the writers are merged by time, so that
    what belongs to one request comes close together, however the writers took turns."""
    numbered = sorted(enumerate(segments), key=lambda pair: (pair[1].writer, pair[1].path.name))
    streams = [
        _read_writer(list(group), reject, progress) for _, group in groupby(numbered, key=lambda pair: pair[1].writer)
    ]
    return _merged(streams)


def _merged(streams: list[Iterator[tuple[Record, Source]]]) -> Iterator[tuple[Record, Source]]:
    """In the order of time, of equal times in the order of `streams`: as `heapq.merge`, which takes a call of a key for each."""
    heads = [(item[1].at, i, item) for i, stream in enumerate(streams) if (item := next(stream, None)) is not None]
    heapq.heapify(heads)
    while heads:
        _, i, item = heads[0]
        yield item
        following = next(streams[i], None)
        if following is None:
            heapq.heappop(heads)
        else:
            heapq.heapreplace(heads, (following[1].at, i, following))


def check_record(record: Record) -> float:
    """Refuse words and times outside what they may be.

    Returns:
        Seconds since the epoch at which the record was written, as far as it shows.

    Raises:
        ValueError: with the field.
    """
    # By the very type: compiled, `isinstance` takes twenty times as long for each class that it is not.
    if type(record) is ResponseRecord:
        at = record.started_at
        written_at = at + record.latency_ms / 1000
        _check_arm(record.arm)
        if record.role not in _ROLES:
            raise ValueError(f"role {record.role[:40]!r} is neither served nor shadow")
    elif type(record) is RequestRecord:
        written_at = at = record.received_at
        _check_arm(record.arm)
    elif type(record) is ShadowRecord:
        written_at = at = record.at
        if record.status not in _SHADOW_STATUSES:
            raise ValueError(f"shadow status {record.status[:40]!r} is unknown")
    else:
        assert type(record) is FeedbackRecord
        written_at = at = record.at
        if not 0 <= record.rating <= 1:
            raise ValueError(f"rating {record.rating!r} is not in [0, 1]")
    if not 0 <= at < MAX_TIME_S:
        raise ValueError(f"time {at!r} is no date")
    if not is_experiment_name(record.experiment):
        raise ValueError(f"experiment {record.experiment[:80]!r} is no allowed name")
    if not record.request_id:
        raise ValueError("request_id is empty")
    return written_at


def _check_arm(arm: str) -> None:
    if arm not in _ARMS:
        raise ValueError(f"arm {arm[:40]!r} is neither control nor treatment")


@lru_cache(maxsize=256)
def is_experiment_name(name: str) -> bool:
    """[A-Za-z0-9._-]{1,64} and neither "." nor "..": a name that is one folder and nothing else."""
    letters = name.replace(".", "").replace("_", "").replace("-", "")
    return (
        0 < len(name) <= 64 and name not in {".", ".."} and (not letters or (letters.isascii() and letters.isalnum()))
    )


def _read_writer(
    segments: list[tuple[int, Segment]], reject: Reject, progress: Callable[[int], object]
) -> Iterator[tuple[Record, Source]]:
    for index, segment in segments:
        n_read = 0
        for number, line in read_lines(segment):
            n_read += len(line) + 1
            if n_read >= _PROGRESS_BYTES:
                progress(n_read)
                n_read = 0
            if not line.strip():
                continue
            try:
                record = read_record(line)
                written_at = check_record(record)
            except (ValueError, RecursionError) as error:
                reject(segment, number, line, str(error))
                continue
            yield record, Source(index, segment.writer, number, line, written_at)
        progress(n_read)


# The lock that keeps a second collector off a spool.


class SpoolLock:
    """Held as long as this collector writes to the spool: a second one does not start on it."""

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._path = spool / ".collector.lock"
        self._fd: int | None = None

    def take(self) -> None:
        """Raises EvalpipeError where the folder cannot be written to, WorkspaceBusyError where another collector has it."""
        try:
            self._spool.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EvalpipeError(
                f"cannot write to {self._spool}: {error.strerror}; name another folder with --data"
            ) from None
        if not try_lock(fd):
            os.close(fd)
            raise WorkspaceBusyError(
                f"another collector writes to {self._spool}; stop it, or name another folder with --data"
            )
        self.close()
        self._fd = fd

    def is_gone(self) -> bool:
        """Whether the lock's file is no longer the one that is locked: the folder was deleted, moved or replaced."""
        if self._fd is None:
            return True
        try:
            return not os.path.samestat(os.fstat(self._fd), self._path.stat())
        except OSError:
            return True

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
