"""The journal: every call's row is one appended line before the next call is started in its place, so kill −9 loses nothing.

A call is first written as if no response ever arrived (an error whose cost is an estimate), and
again under the same id when it ends: the last line of an id counts. Compaction hands the rows to the store,
which adds no id twice, and then removes the journal; a crash between the two repeats the first and harms nothing.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from evalpipe.errors import EvalpipeError, WorkspaceBusyError
from evalpipe.files import FULL, make_folder, sync_folder, try_lock, unlink_synced, write_synced
from evalpipe.models import Judgment
from evalpipe.objects.shared import commit, shared_work
from evalpipe.text import well_formed

Row = TypeVar("Row")
logger = logging.getLogger(__name__)

_ENCODER = msgspec.json.Encoder()
_ROWS_AT_ONCE = 20_000
ANSWER_BYTES = 8_192
"""What is kept of an answer besides its texts: the scores, the note, the ids."""
_AHEAD_BYTES = 1 << 18


@dataclass(frozen=True, kw_only=True, slots=True)
class RowKind(Generic[Row]):
    """What a journal holds. `id_of`: rows of one id are one row, the last one; `shortened`: a row without its texts, where the
    disk has no room for them."""

    type: type[Row]
    id_of: Callable[[Row], str]
    shortened: Callable[[Row], Row]


class CallJournal(Generic[Row]):
    """The file of rows one run of one experiment writes, a line at a time. Use under `running_lock`.

    Disk space for the response of every call in flight is reserved before the call is sent, so that a full disk is found
    before a response is paid for. Until it is closed the file ends in blanks, which readers leave out.
    """

    def __init__(self, folder: Path, kind: RowKind[Row], *, answer_bytes: int = ANSWER_BYTES) -> None:
        """Args:
        folder: where the journals of the experiment are.
        kind: what the rows are.
        answer_bytes: space for one response; a longer one is kept without its texts where the disk is full.
        """
        self._kind = kind
        self.folder = folder
        self.path = folder
        self.n_lines = 0
        """lines of all files of this run"""
        self.moving = asyncio.Lock()
        """held from a rotation until the finished files are stored or committed: one begun meanwhile is not among them"""
        self._answer_bytes = answer_bytes
        self._in_flight: dict[str, Row] = {}
        self._file = -1
        self._end = self._set_aside_to = 0
        with one_line_if_full(folder):
            make_folder(folder)
            self._open()

    def begin(self, row: Row) -> None:
        """A call is about to be sent: its row if no response ever arrives. Raises NoRoomError where its response could
        not be kept: then it must not be sent."""
        line = _encode(row)
        with one_line_if_full(self.folder):
            self._set_aside(len(line), len(self._in_flight) + 1)
            self._write(line)
        self._in_flight[self._kind.id_of(row)] = row

    def append(self, row: Row) -> None:
        """How a call ended. Raises NoRoomError where nothing of it can be kept."""
        try:
            self._write(_encode(row))
        except OSError as error:
            if not is_full(error):
                raise
            # Its verdict and its cost are worth more than its texts.
            with one_line_if_full(self.folder):
                self._write(_encode(self._kind.shortened(row)))
        self._in_flight.pop(self._kind.id_of(row), None)

    def sync(self) -> None:
        """Make what was appended survive a power loss; may be called from another thread."""
        try:
            os.fsync(self._file)
        except OSError as error:
            if error.errno != errno.EBADF:  # a file that was rotated away meanwhile was synced when it was closed
                raise

    def rotate(self) -> frozenset[str]:
        """Go on in a new file, which takes over what is in flight; the ids of that."""
        old, end, path, set_aside = self._file, self._end, self.path, self._set_aside_to
        try:
            with one_line_if_full(self.folder):
                self._open()
                lines = [_encode(row) for row in self._in_flight.values()]
                self._set_aside(sum(map(len, lines)), len(lines))
                for line in lines:
                    self._write(line)
                self.sync()  # before the old file, which holds them too, is removed
        except NoRoomError:  # the old file has space for all that is in flight: go on with it
            if self._file != old:
                os.close(self._file)
                self.path.unlink()
            self._file, self._end, self.path, self._set_aside_to = old, end, path, set_aside
            raise
        _end_file(old, end)
        return frozenset(self._in_flight)

    def close(self) -> None:
        _end_file(self._file, self._end)

    def _open(self) -> None:
        self.path = self.folder / f"journal-{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{secrets.token_hex(3)}.jsonl"
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        sync_folder(self.folder)  # a file whose name a power loss takes is lost with all its bytes
        self._end = self._set_aside_to = 0

    def _set_aside(self, n_bytes: int, n_answers: int) -> None:
        """Reserve space for these bytes and for the responses of so many calls in flight."""
        needed = self._end + n_bytes + n_answers * self._answer_bytes
        if needed <= self._set_aside_to:
            return
        for end in (
            needed + _AHEAD_BYTES,
            needed,
        ):  # a step ahead where the disk has it: one system call for many answers
            try:
                start = max(self._set_aside_to, self._end)  # a response may be longer than its reserved space
                reserve(self._file, start, end - start)
            except OSError as error:
                if end > needed and is_full(error):
                    continue
                raise
            self._set_aside_to = end
            return

    def _write(self, line: bytes) -> None:
        # A reader sees the whole line or, after a crash in the middle of it, a broken last one.
        at = self._end
        while line:
            n_written = os.pwrite(self._file, line, at)
            at, line = at + n_written, line[n_written:]
        self._end = at
        self.n_lines += 1


def compact_rows(
    folder: Path,
    kind: RowKind[Row],
    write: Callable[[Sequence[Row]], int],
    *,
    rejected: Path,
    keep: Path | None = None,
    in_flight: frozenset[str] = frozenset(),
) -> int:
    """Every finished journal in `folder` into the store; the rows added. `keep`: the journal being written, which has
    what is `in_flight`. `rejected`: folder for whole lines that cannot be read, which were paid for: they are kept there
    as `load` keeps those of a log."""
    paths = [path for path in sorted(folder.glob("journal-*.jsonl")) if path != keep]
    rows = {kind.id_of(row): row for path in paths for row in read_rows(path, kind)}
    for path in paths:
        _keep_unreadable(path, kind, rejected)
    found = [row for row_id, row in rows.items() if row_id not in in_flight]
    n_added = sum(write(found[start : start + _ROWS_AT_ONCE]) for start in range(0, len(found), _ROWS_AT_ONCE))
    if paths:
        unlink_synced(paths)  # what they hold may be removed from the store by then (`forget`): it must not come back
    return n_added


def read_rows(path: Path, kind: RowKind[Row]) -> Iterator[Row]:
    """The rows of a journal, broken lines left out (a torn last line is all that a crash can leave)."""
    for _, found in _lines(path, kind):
        yield from found


def _lines(path: Path, kind: RowKind[Row]) -> Iterator[tuple[bytes, Sequence[Row]]]:
    """Every line as it is in the file, and its row; no row where it cannot be read."""
    decoder = msgspec.json.Decoder(kind.type)
    with path.open("rb") as file:
        for line in file:
            try:
                yield line, (decoder.decode(line.strip(b"\0")),)
            except (msgspec.DecodeError, ValueError):
                yield line, ()


def _keep_unreadable(path: Path, kind: RowKind[Row], rejected: Path) -> None:
    """Whole lines that cannot be read, as another version's format, into a file of their own; a torn one holds nothing."""
    found = [
        {
            "file": str(path),
            "line": number,
            "reason": "unreadable in a journal",
            "text": line.decode("utf-8", "replace"),
        }
        for number, (line, rows) in enumerate(_lines(path, kind), 1)
        if not rows and line.endswith(b"\n") and line.strip(b"\0 \t\r\n")
    ]
    if found:
        kept = rejected / path.name
        write_synced(kept, b"".join(_ENCODER.encode(one) + b"\n" for one in found))
        logger.warning(
            "%d lines of %s cannot be read, and are kept in %s: calls in them were paid for", len(found), path, kept
        )


# The journal of judgments.


JUDGMENTS: RowKind[Judgment] = RowKind(
    type=Judgment,
    id_of=lambda judgment: judgment.judgment_id,
    shortened=lambda judgment: replace(judgment, raw_reply=None, reasoning=None),
)


class Journal(CallJournal[Judgment]):
    """The judgments of one run."""

    def __init__(self, folder: Path, *, answer_bytes: int = ANSWER_BYTES) -> None:
        super().__init__(folder, JUDGMENTS, answer_bytes=answer_bytes)


def compact(
    folder: Path,
    write: Callable[[Sequence[Judgment]], int],
    *,
    rejected: Path,
    keep: Path | None = None,
    in_flight: frozenset[str] = frozenset(),
) -> int:
    """Every finished journal of judgments in `folder` into the store; the rows added."""
    return compact_rows(folder, JUDGMENTS, write, rejected=rejected, keep=keep, in_flight=in_flight)


def read_journal(path: Path) -> Iterator[Judgment]:
    """The judgments of a journal."""
    return read_rows(path, JUDGMENTS)


def answer_bytes(max_tokens: int) -> int:
    """Bytes for the response of one call: its texts are kept twice (the reply, and the reasoning in it), 4 bytes a token."""
    return ANSWER_BYTES + 16 * max_tokens


def _end_file(file: int, end: int) -> None:
    """Truncate the reserved blanks at the end, and close."""
    try:
        os.ftruncate(file, end)
        os.fsync(file)
    finally:
        os.close(file)


@contextmanager
def running_lock(folder: Path, *, command: str, doing: str, lock: str) -> Iterator[None]:
    """Hold one command's work on an experiment: two runners would pay twice. Raises WorkspaceBusyError naming the one that runs.

    Args:
        folder: of the experiment, in a dataset's folder of the data folder.
        command: in the message, e.g. "evalpipe judge".
        doing: in the message, e.g. "is judging".
        lock: the lock file's name. On a shared store the work is a lease, too (`work_of`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    experiment = folder.name.removeprefix("experiment=")
    handle = os.open(folder / lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not try_lock(handle):
            owner = os.pread(handle, 64, 0).decode("ascii", "replace").strip() or "unknown"
            raise WorkspaceBusyError(
                f"another `{command}` (process {owner}) {doing} {experiment}: "
                "wait for it, or stop it with Ctrl-C; nothing was sent"
            )
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode("ascii"), 0)
        with shared_work(folder.parents[1], work_of(folder), waits=False):
            yield
    finally:
        os.close(handle)  # releases the lock, as the end of the process would


def work_of(folder: Path) -> str:
    """The lease of the calls of an experiment, DATASET/EXPERIMENT, from its folder in the dataset's."""
    return f"{folder.parent.name}/{folder.name.removeprefix('experiment=')}"


def commit_calls(folder: Path) -> None:
    """Commit what is known of the calls of an experiment, where its data are on object storage."""
    commit(folder.parents[1], work_of(folder))


def judging_lock(folder: Path) -> AbstractContextManager[None]:
    """Hold the experiment's judging."""
    return running_lock(folder, command="evalpipe judge", doing="is judging", lock=".judging.lock")


def _encode(row: object) -> bytes:
    try:
        return _ENCODER.encode(row) + b"\n"
    except UnicodeEncodeError:  # a lone surrogate in a reply
        return _ENCODER.encode(_well_formed(msgspec.to_builtins(row))) + b"\n"


def _well_formed(value: Any) -> Any:
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, dict):
        return {key: _well_formed(one) for key, one in value.items()}
    return [_well_formed(one) for one in value] if isinstance(value, list) else value


# A full disk is distinguished from other errors and reported in one line.


class NoRoomError(EvalpipeError):
    """The disk (or a quota, or a limit of file sizes) has no room for what has to be kept."""


def is_full(error: BaseException) -> bool:
    """Whether an error is that of a full disk; libraries in between may give it another number."""
    return isinstance(error, OSError) and (error.errno in FULL or os.strerror(errno.ENOSPC) in str(error))


def no_room(folder: Path) -> NoRoomError:
    """The line for a full disk."""
    return NoRoomError(
        f"the disk that holds {folder} is full: nothing more is asked, and every answer so far is kept; free some room, then run "
        "the same command again"
    )


@contextmanager
def one_line_if_full(folder: Path) -> Iterator[None]:
    """Raise NoRoomError in place of the error of a full disk."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise no_room(folder) from error


def reserve(file: int, start: int, n_bytes: int) -> None:
    """Have the file system set aside what follows the first `start` bytes of an open file, so that writing there cannot
    fail on a full disk. Raises OSError where there is none; does nothing where the file system cannot reserve any."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, start, n_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            with suppress(OSError):  # what was reserved before the disk was full
                os.ftruncate(file, start)
            raise
