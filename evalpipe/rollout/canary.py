"""The canary's state machine and its history on disk: append-only, safe against kill −9 and against two writers.

waiting → running → (advance)* → done
          running ⇄ paused (gate, or a person) · inconclusive (time over, data not enough)
any of them but waiting → rolled_back, which only a person's reset leaves
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from evalpipe.errors import ConfigError, EvalpipeError
from evalpipe.files import make_folder, sync_folder, take_lock, write_synced
from evalpipe.models import (
    CanaryEvaluation,
    CanaryEvent,
    CanaryState,
    CanaryStatus,
    GuardrailVerdict,
    controller_lock_name,
    copy_name,
    last_event,
    read_evaluation,
    read_events,
    render_evaluation,
    render_event,
)

CONTROLLER = "controller"
HISTORY_LOST = "history_lost"
"""The author of the pause of a canary whose history is lost, and the action that records it."""
GRACE_S = 60.0
"""a stage without a duration is not called inconclusive before this"""
LIVE = frozenset({CanaryStatus.RUNNING, CanaryStatus.PAUSED, CanaryStatus.INCONCLUSIVE, CanaryStatus.DONE})
"""states in which the treatment answers users, so that guardrails are watched"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """`percentage` in (0, 100], `duration_s` the least time under watch before the next stage."""

    percentage: float
    duration_s: float = 0.0
    auto_advance: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class StateTransition:
    """A step to take: `state` is complete but for `entry`, which the history numbers when `enters_stage`."""

    action: str
    why: str
    state: CanaryState
    enters_stage: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class StageStatus:
    """The present stage, as an evaluation sees it. `watched_s` counts only time in which a controller looked."""

    watched_s: float
    n_treatment: int
    verdicts: Sequence[GuardrailVerdict]


def check_stages(state: CanaryState, stages: Sequence[Stage]) -> None:
    """Raises ConfigError where the configuration no longer has the canary's stage."""
    if state.stage < 0 or state.status in {CanaryStatus.WAITING, CanaryStatus.ROLLED_BACK}:
        return
    if state.stage >= len(stages) or stages[state.stage].percentage != state.percentage:
        raise ConfigError(
            f"canary.stages changed while the canary is at {state.percentage:g} % (stage {state.stage + 1}): "
            "put the stages back, or start over with `evalpipe canary reset`"
        )


def evaluate(
    state: CanaryState, seen: StageStatus, *, now: float, stages: Sequence[Stage], min_requests: int
) -> StateTransition | None:
    """What the controller must do now, or None. `now`: seconds since the epoch; it only dates the change."""
    check_stages(state, stages)
    if state.paused_by == HISTORY_LOST:
        return None
    if state.status is CanaryStatus.WAITING:
        return _enter(0, stages, now, "start", f"stage 1 of {len(stages)} begins at {stages[0].percentage:g} %")
    if state.status not in LIVE:
        return None
    breached = [verdict for verdict in seen.verdicts if verdict.status == "breached"]
    if breached:
        return rolled_back(now, "; ".join(verdict.note or verdict.guardrail for verdict in breached))
    if state.status in {CanaryStatus.DONE, CanaryStatus.PAUSED}:
        return None
    stage = stages[state.stage]
    if seen.watched_s < stage.duration_s:
        if state.status is CanaryStatus.INCONCLUSIVE:
            return _stay(state, CanaryStatus.RUNNING, "resume", "the stage's time was made longer")
        return None
    lacking = _lacking(seen, min_requests)
    if lacking:
        if state.status is CanaryStatus.INCONCLUSIVE or seen.watched_s < (stage.duration_s or GRACE_S):
            return None
        return _stay(state, CanaryStatus.INCONCLUSIVE, "inconclusive", lacking)
    held = f"{seen.n_treatment} treatment requests in {seen.watched_s:.0f} s, every guardrail holds"
    if state.stage == len(stages) - 1:
        return _stay(state, CanaryStatus.DONE, "done", held)
    if stage.auto_advance:
        return _enter(state.stage + 1, stages, now, "advance", held)
    return _stay(state, CanaryStatus.PAUSED, "gate", f"{held}; a person approves the next stage", paused_by="gate")


def _lacking(seen: StageStatus, min_requests: int) -> str:
    """Why the stage cannot be called good: no data is neither a pass nor a fail."""
    if seen.n_treatment < max(min_requests, 1):
        return f"{seen.n_treatment} treatment requests, {max(min_requests, 1)} needed"
    open_ = [v for v in seen.verdicts if v.kind == "absolute" and v.status in {"no_data", "doubtful"}]
    return "; ".join(verdict.note or f"{verdict.guardrail}: {verdict.status}" for verdict in open_)


def _enter(index: int, stages: Sequence[Stage], now: float, action: str, why: str) -> StateTransition:
    state = CanaryState(status=CanaryStatus.RUNNING, percentage=stages[index].percentage, stage=index, entered_at=now)
    return StateTransition(action=action, why=why, state=state, enters_stage=True)


def _stay(
    state: CanaryState, status: CanaryStatus, action: str, why: str, *, paused_by: str | None = None
) -> StateTransition:
    return StateTransition(
        action=action, why=why, state=msgspec.structs.replace(state, status=status, paused_by=paused_by)
    )


def rolled_back(now: float, why: str) -> StateTransition:
    """Everyone back to control."""
    state = CanaryState(status=CanaryStatus.ROLLED_BACK, entered_at=now)
    return StateTransition(action="rollback", why=why, state=state, enters_stage=True)


# What a person may do. Each raises ConfigError with the reason where the state does not allow it.


def approve(
    state: CanaryState, *, now: float, stages: Sequence[Stage], why: str, force: bool = False
) -> StateTransition:
    """Past the gate (or past an inconclusive stage) into the next stage; a canary a person paused goes on as it was."""
    check_stages(state, stages)
    if state.paused_by == HISTORY_LOST:
        raise ConfigError(
            "nothing to approve: the canary's history is lost, so it is at 0 %; `evalpipe canary reset` starts over"
        )
    if state.status is CanaryStatus.PAUSED and state.paused_by == "person" and not force:
        return _stay(state, CanaryStatus.RUNNING, "resume", why)
    allowed = {CanaryStatus.PAUSED, CanaryStatus.INCONCLUSIVE} | ({CanaryStatus.RUNNING} if force else set())
    if state.status not in allowed:
        hint = "; --force skips the rest of the stage" if state.status is CanaryStatus.RUNNING else ""
        hint = "; `evalpipe canary reset` starts over" if state.status is CanaryStatus.ROLLED_BACK else hint
        raise ConfigError(f"nothing to approve: the canary is {state.status}{hint}")
    if state.stage == len(stages) - 1:
        return _stay(state, CanaryStatus.DONE, "approve", why)
    return _enter(state.stage + 1, stages, now, "approve", why)


def pause(state: CanaryState, *, why: str) -> StateTransition:
    """Hold the present percentage; guardrails stay watched."""
    if state.status not in {CanaryStatus.RUNNING, CanaryStatus.INCONCLUSIVE}:
        raise ConfigError(f"nothing to pause: the canary is {state.status}")
    return _stay(state, CanaryStatus.PAUSED, "pause", why, paused_by="person")


def rollback(state: CanaryState, *, now: float, why: str) -> StateTransition:
    if state.status is CanaryStatus.ROLLED_BACK:
        raise ConfigError("the canary is rolled back already")
    return rolled_back(now, why)


def reset(*, now: float, why: str) -> StateTransition:
    """Back to the beginning at 0 %; the controller starts the first stage at its next evaluation."""
    return StateTransition(action="reset", why=why, state=CanaryState(entered_at=now), enters_stage=True)


# The canary's history on disk: append-only, one line a change, safe against kill −9 at any point and against two
# writers.


TAIL_BYTES = 1 << 16
LOST = CanaryState(status=CanaryStatus.PAUSED, paused_by=HISTORY_LOST)
"""the state of a canary whose history is lost"""
NOT_BEGUN = b" waiting"
"""The end of an election lock whose canary has no history yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Traces:
    """Signs outside the history's folder that a canary of this experiment has begun: each in a few words, and the highest
    number of a history entry they name."""

    found: tuple[str, ...] = ()
    entry: int = 0


def lost_event(why: str, *, entry: int, now: float) -> CanaryEvent:
    """The change that records a loss. `entry`: the highest number in use."""
    seq = entry + 1
    return CanaryEvent(
        seq=seq,
        at=now,
        who=CONTROLLER,
        action=HISTORY_LOST,
        why=f"{why}; `evalpipe canary reset` starts over",
        state=msgspec.structs.replace(LOST, entry=seq, entered_at=now),
    )


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
        self.controller_lock_path = folder / controller_lock_name(experiment)

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
            return LOST, why, event, copy.seq
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
        return LOST, why, None, entry

    def note_loss(self, *, now: float) -> CanaryEvent | None:
        """Write down that the history is lost, if it is: from then on the history itself holds the pause."""
        with self._locked():
            _, why, _, entry = self._present()
            if why is None:
                return None
            lost = lost_event(why, entry=entry, now=now)
            self._append(lost)
            return lost

    def last(self) -> CanaryEvent | None:
        return last_event(self._tail())

    def events(self) -> list[CanaryEvent]:
        try:
            return read_events(self.path.read_bytes())
        except FileNotFoundError:
            return []

    def apply(
        self, decide: Callable[[CanaryState], StateTransition | None], *, now: float, who: str
    ) -> CanaryEvent | None:
        """Call `decide` with the present state and write the change it returns; no other process changes the state in between."""
        with self._locked():
            present, _, before, highest = self._present()
            change = decide(present)
            if change is None:
                return None
            # Requests carry the number of their stage: after a loss no stage may get a number that is in use. A rollback
            # serves no users.
            last = before.seq if before else 0
            seq = 1 + (last if change.state.status is CanaryStatus.ROLLED_BACK else max(last, highest))
            state = msgspec.structs.replace(change.state, entry=seq) if change.enters_stage else change.state
            event = CanaryEvent(seq=seq, at=now, who=who, action=change.action, why=change.why, state=state)
            self._append(event)
            return event

    def mirror(self, events: Sequence[CanaryEvent]) -> None:
        """Hold the events of a shared history, unless this one is as new already."""
        with self._locked():
            before = self.last()
            if before is not None and before.seq >= events[-1].seq:
                return
            self._mark_begun()
            write_synced(self.path, b"".join(map(render_event, events)))
            write_synced(self._copy_path, render_event(events[-1]))

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
        with os.fdopen(os.open(self._lock_path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "ab") as file:
            take_lock(file.fileno())
            yield


def _has_begun(lock: Path) -> bool:
    """Whether an election lock is of a canary that has a history."""
    try:
        owner = lock.read_bytes()
    except FileNotFoundError:
        return False
    return bool(owner) and not owner.endswith(NOT_BEGUN)
