"""The canary's history on disk: append-only, one line a change, safe against kill −9 at any point and against two writers."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from evalpipe.core.canary import (
    CanaryEvaluation,
    CanaryEvent,
    CanaryState,
    last_event,
    read_evaluation,
    read_events,
    render_evaluation,
    render_event,
)
from evalpipe.errors import EvalpipeError
from evalpipe.rollout.stages import Change

TAIL_BYTES = 1 << 16


class History:
    """The canary of one experiment under `folder` (DATA/canary): EXPERIMENT.jsonl, and what the controller saw last beside it.

    A change is one write of one line under a lock, then fsync: a reader sees the old state or the new one. A line a power
    loss cut short is never read as a change, and the next append begins a new line after it.
    """

    def __init__(self, folder: Path, experiment: str) -> None:
        self.path = folder / f"{experiment}.jsonl"
        self._evaluation_path = folder / f"{experiment}.evaluation.json"
        self._lock_path = folder / f"{experiment}.lock"
        self.controller_lock_path = folder / f"{experiment}.controller.lock"

    def state(self) -> CanaryState:
        event = self.last()
        return event.state if event else CanaryState()

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
            before = self.last()
            change = decide(before.state if before else CanaryState())
            if change is None:
                return None
            seq = before.seq + 1 if before else 1
            state = msgspec.structs.replace(change.state, entry=seq) if change.enters_stage else change.state
            event = CanaryEvent(seq=seq, at=now, who=who, action=change.action, why=change.why, state=state)
            self._append(render_event(event))
            return event

    def evaluation(self) -> CanaryEvaluation | None:
        """What the controller saw last; None where it never looked (or the file is unreadable: it is only a cache)."""
        try:
            return read_evaluation(self._evaluation_path.read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def write_evaluation(self, evaluation: CanaryEvaluation) -> None:
        self._evaluation_path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._evaluation_path.with_name(f".{self._evaluation_path.name}.{os.getpid()}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(render_evaluation(evaluation))
        temporary.replace(self._evaluation_path)

    def _tail(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - TAIL_BYTES))
                return file.read()
        except FileNotFoundError:
            return b""

    def _append(self, line: bytes) -> None:
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

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self._lock_path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(self._lock_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
