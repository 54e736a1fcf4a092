"""The journal: every judgment is one appended line before the next is started in its place, so kill −9 loses nothing.

A call is first written as it would stand if nothing more were ever heard of it (an error whose cost is an estimate), and
again under the same `judgment_id` when it ends: the last line of an id counts. Compaction hands the rows to the store,
which adds no id twice, and then removes the journal; a crash between the two repeats the first and harms nothing.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from evalpipe.core.judgment import Judgment
from evalpipe.core.text import well_formed
from evalpipe.errors import WorkspaceBusyError

WriteJudgments = Callable[[Sequence[Judgment]], int]

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Judgment)
_ROWS_AT_ONCE = 20_000


class Journal:
    """The append-only file of judgments one run of one experiment writes. Use under `judging_lock`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._in_flight: dict[str, Judgment] = {}
        self._open()

    def begin(self, judgment: Judgment) -> None:
        """A call is about to be sent: how it stands if nothing is ever heard of it."""
        self._in_flight[judgment.judgment_id] = judgment
        self._append(judgment)

    def append(self, judgment: Judgment) -> None:
        """How a call ended."""
        self._in_flight.pop(judgment.judgment_id, None)
        self._append(judgment)

    def sync(self) -> None:
        """Make what was appended survive a power loss."""
        os.fsync(self._file)

    def rotate(self) -> frozenset[str]:
        """Go on in a new file, which takes over what is in flight; the ids of that."""
        old = self._file
        self._open()
        for judgment in self._in_flight.values():
            self._append(judgment)
        os.fsync(old)
        os.close(old)
        return frozenset(self._in_flight)

    def close(self) -> None:
        os.fsync(self._file)
        os.close(self._file)

    def _open(self) -> None:
        self.path = self.folder / f"journal-{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{secrets.token_hex(3)}.jsonl"
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self.n_lines = 0

    def _append(self, judgment: Judgment) -> None:
        # One write: a reader sees the whole line or, after a power loss, a broken last one.
        line = _encode(judgment)
        while line:
            line = line[os.write(self._file, line) :]
        self.n_lines += 1


def compact(
    folder: Path, write: WriteJudgments, *, keep: Path | None = None, in_flight: frozenset[str] = frozenset()
) -> int:
    """Every finished journal in `folder` into the store; the rows added. `keep`: the journal being written, which has
    what is `in_flight`."""
    paths = [path for path in sorted(folder.glob("journal-*.jsonl")) if path != keep]
    rows = {judgment.judgment_id: judgment for path in paths for judgment in read_journal(path)}
    found = [judgment for judgment_id, judgment in rows.items() if judgment_id not in in_flight]
    n_added = sum(write(found[start : start + _ROWS_AT_ONCE]) for start in range(0, len(found), _ROWS_AT_ONCE))
    for path in paths:
        path.unlink()
    return n_added


def read_journal(path: Path) -> Iterator[Judgment]:
    """The judgments of a journal, broken lines left out (a torn last line is all that a crash can leave)."""
    with path.open("rb") as file:
        for line in file:
            try:
                yield _DECODER.decode(line)
            except (msgspec.DecodeError, ValueError):
                continue


@contextmanager
def judging_lock(folder: Path) -> Iterator[None]:
    """Hold the experiment's judging: two runners would pay twice. Raises WorkspaceBusyError naming the one that runs."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".judging.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(handle, 64, 0).decode("ascii", "replace").strip() or "unknown"
            raise WorkspaceBusyError(
                f"another `evalpipe judge` (process {owner}) is judging {folder.name.removeprefix('experiment=')}: "
                "wait for it, or stop it with Ctrl-C; nothing was sent"
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode("ascii"), 0)
        yield
    finally:
        os.close(handle)  # lets go of the lock, as would our end


def _encode(judgment: Judgment) -> bytes:
    try:
        return _ENCODER.encode(judgment) + b"\n"
    except UnicodeEncodeError:  # a lone surrogate in a reply
        texts = {
            name: getattr(judgment, name) for name in ("request_id", "reasoning", "raw_reply", "note", "judge_model")
        }
        safe = {name: well_formed(text) for name, text in texts.items() if isinstance(text, str)}
        return _ENCODER.encode(replace(judgment, **safe)) + b"\n"  # type: ignore[arg-type]
