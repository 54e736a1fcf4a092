"""The canary's history on disk: append-only, one line a change, safe against kill −9 at any point and against two writers."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from evalpipe.core.canary import (
    CanaryEvaluation,
    CanaryEvent,
    CanaryState,
    CanaryStatus,
    copy_name,
    last_event,
    read_evaluation,
    read_events,
    render_evaluation,
    render_event,
)
from evalpipe.errors import EvalpipeError
from evalpipe.files import make_folder, sync_folder, write_synced
from evalpipe.rollout.stages import CONTROLLER, HISTORY_LOST, Change

TAIL_BYTES = 1 << 16
NOT_BEGUN = b" waiting"
"""The end of an election lock whose canary has no history yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traces:
    """Signs outside the history's folder that a canary of this experiment has begun: each in a few words, and the highest
    number of a history entry they name."""

    found: tuple[str, ...] = ()
    entry: int = 0


class History:
    """The canary of one experiment under `folder` (DATA/canary): EXPERIMENT.jsonl, and what the controller saw last beside it.

    A change is one write of one line under a lock, then fsync: a reader sees the old state or the new one. A line a power
    loss cut short is never read as a change, and the next append begins a new line after it.

    A history that is gone, or lost its end, is never a new beginning: beside other signs of a canary it is "lost", which is
    0 % until a person's reset. The signs are the copy of the last line, the evaluation, the election lock, and `traces`.
    """

    def __init__(self, folder: Path, experiment: str, *, traces: Callable[[], Traces] = Traces) -> None:
        self.path = folder / f"{experiment}.jsonl"
        self._copy_path = self.path.with_name(copy_name(self.path.name))
        self._traces = traces
        self._evaluation_path = folder / f"{experiment}.evaluation.json"
        self._lock_path = folder / f"{experiment}.lock"
        self.controller_lock_path = folder / f"{experiment}.controller.lock"

    def state(self) -> CanaryState:
        return self._present()[0]

    def loss(self) -> str | None:
        """Why the history counts as lost, in one sentence; None where it is whole, or nothing has begun."""
        return self._present()[1]

    def _present(self) -> tuple[CanaryState, str | None, CanaryEvent | None, int]:
        """(state in force, why the history is lost, its last line, the highest entry number in use)."""
        copy = self._copy()  # before the history, which is written first: a change in between looks like no loss
        event = self.last()
        if event is not None:
            if copy is None or copy.seq <= event.seq:
                return event.state, None, event, event.seq
            why = f"{self.path} ends at change {event.seq}, {self._copy_path.name} holds change {copy.seq}"
            return _LOST, why, event, copy.seq
        evaluation = self.evaluation()
        outside = self._traces()
        found = list(outside.found)
        if copy is not None or self._copy_path.exists():
            found.insert(0, self._copy_path.name)
        if self._evaluation_path.exists() and (evaluation is None or evaluation.entry):
            found.insert(0, self._evaluation_path.name)
        if _has_begun(self.controller_lock_path):
            found.append(self.controller_lock_path.name)
        if not found:
            return CanaryState(), None, None, 0
        why = f"{self.path} holds no change, but a canary has begun ({', '.join(found)})"
        entry = max(outside.entry, copy.seq if copy else 0, evaluation.entry if evaluation else 0)
        return _LOST, why, None, entry

    def note_loss(self, *, now: float) -> CanaryEvent | None:
        """Write down that the history is lost, if it is: from then on the history itself holds the pause."""
        with self._locked():
            _, why, _, entry = self._present()
            if why is None:
                return None
            seq = entry + 1
            lost = CanaryEvent(
                seq=seq,
                at=now,
                who=CONTROLLER,
                action=HISTORY_LOST,
                why=f"{why}; `evalpipe canary reset` starts over",
                state=msgspec.structs.replace(_LOST, entry=seq, entered_at=now),
            )
            self._append(lost)
            return lost

    def last(self) -> CanaryEvent | None:
        return last_event(self._tail())

    def events(self) -> list[CanaryEvent]:
        try:
            return read_events(self.path.read_bytes())
        except FileNotFoundError:
            return []

    def apply(self, decide: Callable[[CanaryState], Change | None], *, now: float, who: str) -> CanaryEvent | None:
        """Let `decide` see the present state and write what it wants; nobody else changes the state in between."""
        with self._locked():
            present, _, before, highest = self._present()
            change = decide(present)
            if change is None:
                return None
            # Requests carry the number of their stage: after a loss no stage may get a number that is in use. A rollback
            # serves nobody.
            last = before.seq if before else 0
            seq = 1 + (last if change.state.status is CanaryStatus.ROLLED_BACK else max(last, highest))
            state = msgspec.structs.replace(change.state, entry=seq) if change.enters_stage else change.state
            event = CanaryEvent(seq=seq, at=now, who=who, action=change.action, why=change.why, state=state)
            self._append(event)
            return event

    def evaluation(self) -> CanaryEvaluation | None:
        """What the controller saw last; None where it never looked (or the file is unreadable: it is only a cache)."""
        try:
            return read_evaluation(self._evaluation_path.read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def write_evaluation(self, evaluation: CanaryEvaluation) -> None:
        write_synced(self._evaluation_path, render_evaluation(evaluation))

    def _copy(self) -> CanaryEvent | None:
        try:
            return last_event(self._copy_path.read_bytes())
        except FileNotFoundError:
            return None

    def _tail(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - TAIL_BYTES))
                return file.read()
        except FileNotFoundError:
            return b""

    def _append(self, event: CanaryEvent) -> None:
        """One line, synced with its folder; then its copy."""
        self._mark_begun()
        line = render_event(event)
        descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            size = os.fstat(descriptor).st_size
            if size and os.pread(descriptor, 1, size - 1) != b"\n":
                line = b"\n" + line
            if os.write(descriptor, line) != len(line):
                raise EvalpipeError(f"cannot write {self.path}: the disk is full; the canary stays as it was")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_folder(self.path.parent)
        write_synced(self._copy_path, render_event(event))

    def _mark_begun(self) -> None:
        """Before the first line: from now on the election lock is a sign that there was a history."""
        if not _has_begun(self.controller_lock_path):
            with self.controller_lock_path.open("ab+") as lock:
                lock.seek(0)
                owner = lock.read().removesuffix(NOT_BEGUN) or b"0"
                lock.truncate(0)
                lock.write(owner)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        make_folder(self._lock_path.parent)
        with os.fdopen(os.open(self._lock_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


_LOST = CanaryState(status=CanaryStatus.PAUSED, paused_by=HISTORY_LOST)


def _has_begun(lock: Path) -> bool:
    """Whether an election lock is of a canary that has a history."""
    try:
        owner = lock.read_bytes()
    except FileNotFoundError:
        return False
    return bool(owner) and not owner.endswith(NOT_BEGUN)
