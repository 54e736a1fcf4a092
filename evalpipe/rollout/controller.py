"""The canary controller: a tick reads what is new, evaluates the guardrails, and writes the state change they call for."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from evalpipe.files import is_locked, try_lock
from evalpipe.models import Arm, CanaryEvaluation, CanaryEvent, CanaryState, CanaryStatus, GuardrailVerdict
from evalpipe.rollout.canary import CONTROLLER, LIVE, NOT_BEGUN, Stage, StageStatus, StateTransition, evaluate
from evalpipe.rollout.guardrails import Guardrail, evaluate_guardrails
from evalpipe.rollout.observations import Observation

_ATTEMPTS, _BETWEEN_S = 20, 0.01
"""of the election: a check for a controller holds the lock for a moment, too"""


class StateHistory(Protocol):
    """Where the canary's state is, and what was evaluated last: `rollout.canary.History`, or one that replicas share."""

    def state(self) -> CanaryState: ...

    def note_loss(self, *, now: float) -> CanaryEvent | None: ...

    def apply(
        self, decide: Callable[[CanaryState], StateTransition | None], *, now: float, who: str
    ) -> CanaryEvent | None: ...

    def evaluation(self) -> CanaryEvaluation | None: ...

    def write_evaluation(self, evaluation: CanaryEvaluation) -> None: ...


class Source(Protocol):
    """Where the controller gets the answers of a stage from."""

    def begin(self, state: CanaryState) -> Iterable[Observation]:
        """A stage the controller has not watched yet in this process: what already happened in it, if anything."""
        ...

    def new(self, state: CanaryState) -> Iterable[Observation]:
        """What ended since the last call."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ControllerSettings:
    """`alpha`: false alarm rate of a whole stage. `evaluate_every_s`: time between two looks."""

    stages: Sequence[Stage]
    min_requests: int = 50
    evaluate_every_s: float = 10.0
    alpha: float = 0.05


class Controller:
    """Decides alone only while it holds the election lock (`elected`). All state is in the history; a new one goes on."""

    def __init__(
        self,
        history: StateHistory,
        settings: ControllerSettings,
        source: Source,
        guardrails: Callable[[], Sequence[Guardrail]],
        *,
        silent: Callable[[], list[str]] = list,
    ) -> None:
        """Args:
        history: of the canary.
        settings: of the controller.
        source: of the answers.
        guardrails: new ones, for a stage that begins.
        silent: the replicas that have not been heard of for a while.
        """
        self._history, self._settings, self._source = history, settings, source
        self._build, self._silent = guardrails, silent
        self._guardrails: Sequence[Guardrail] = guardrails()
        self._entry: int | None = None
        self._last_at: float | None = None
        self._watched_s = 0.0
        self._n = {Arm.CONTROL: 0, Arm.TREATMENT: 0}

    def tick(self, now: float) -> CanaryEvent | None:
        """One evaluation at `now` (seconds since the epoch). What changed, or None."""
        lost = self._history.note_loss(now=now)
        if lost is not None:
            return lost
        state = self._history.state()
        if state.entry != self._entry:
            self._begin(state)
        else:
            # Only time under watch counts, and a clock that jumps counts for two intervals at most.
            step = now - self._last_at if self._last_at is not None else 0.0
            self._watched_s += min(max(step, 0.0), 2 * self._settings.evaluate_every_s)
        self._last_at = now
        self._take(self._source.new(state))
        verdicts = self._verdicts(state)
        if state.status is not CanaryStatus.ROLLED_BACK:  # there, the evaluation that led to the rollback is kept
            self._history.write_evaluation(
                CanaryEvaluation(
                    entry=state.entry,
                    at=now,
                    watched_s=self._watched_s,
                    n_control=self._n[Arm.CONTROL],
                    n_treatment=self._n[Arm.TREATMENT],
                    verdicts=verdicts,
                    silent=self._silent(),
                )
            )
        seen = StageStatus(watched_s=self._watched_s, n_treatment=self._n[Arm.TREATMENT], verdicts=verdicts)

        def decide(present: CanaryState) -> StateTransition | None:
            if (
                present.entry != state.entry
            ):  # a person moved the canary during this evaluation: it is about another stage
                return None
            return evaluate(
                present, seen, now=now, stages=self._settings.stages, min_requests=self._settings.min_requests
            )

        return self._history.apply(decide, now=now, who=CONTROLLER)

    def _begin(self, state: CanaryState) -> None:
        before = self._history.evaluation() if self._entry is None else None
        self._entry = state.entry
        self._guardrails = self._build()
        self._n = {Arm.CONTROL: 0, Arm.TREATMENT: 0}
        self._watched_s = before.watched_s if before is not None and before.entry == state.entry else 0.0
        self._take(self._source.begin(state))

    def _take(self, observations: Iterable[Observation]) -> None:
        for seen in observations:
            self._n[seen.arm] += 1
            for guardrail in self._guardrails:
                guardrail.add(seen)

    def _verdicts(self, state: CanaryState) -> list[GuardrailVerdict]:
        if state.status not in LIVE:
            return []
        return evaluate_guardrails(self._guardrails, percentage=state.percentage, alpha=self._settings.alpha)


@contextmanager
def leader_lock(path: Path) -> Iterator[bool]:
    """Whether this process is the controller: true for the one that holds the lock, which ends with the process itself."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600), "a+b") as lock:
        if not _locked(lock):
            yield False
            return
        lock.seek(0)
        owner = lock.read()
        lock.truncate(0)
        lock.write(str(os.getpid()).encode() + (b"" if owner and not owner.endswith(NOT_BEGUN) else NOT_BEGUN))
        lock.flush()
        yield True


def _locked(lock: IO[bytes]) -> bool:
    for attempt in range(_ATTEMPTS):
        if try_lock(lock.fileno()):
            return True
        if attempt + 1 < _ATTEMPTS:
            time.sleep(_BETWEEN_S)
    return False


def has_leader(path: Path) -> bool:
    """Whether some process holds the election lock now."""
    return bool(is_locked(path))
