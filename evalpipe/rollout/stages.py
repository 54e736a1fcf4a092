"""The canary's state machine: a state, what was seen, and the time in; the next state and its reason out. No I/O.

waiting → running → (advance)* → done
          running ⇄ paused (gate, or a person) · inconclusive (time over, data not enough)
any of them but waiting → rolled_back, which only a person's reset leaves
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from evalpipe.core.canary import CanaryState, CanaryStatus, GuardrailVerdict
from evalpipe.errors import ConfigError

CONTROLLER = "controller"
HISTORY_LOST = "history_lost"
"""Who paused a canary whose history is gone, and the action that records it."""
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
class Change:
    """A step to take: `state` is complete but for `entry`, which the history numbers when `enters_stage`."""

    action: str
    why: str
    state: CanaryState
    enters_stage: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What an evaluation knows of the present stage. `watched_s` counts only time in which a controller looked."""

    watched_s: float
    n_treatment: int
    verdicts: Sequence[GuardrailVerdict]


def check_stages(state: CanaryState, stages: Sequence[Stage]) -> None:
    """Raises ConfigError where the configuration no longer has the stage the canary stands in."""
    if state.stage < 0 or state.status in {CanaryStatus.WAITING, CanaryStatus.ROLLED_BACK}:
        return
    if state.stage >= len(stages) or stages[state.stage].percentage != state.percentage:
        raise ConfigError(
            f"canary.stages changed while the canary stands at {state.percentage:g} % (stage {state.stage + 1}): "
            "put the stages back, or start over with `evalpipe canary reset`"
        )


def evaluate(
    state: CanaryState, seen: Seen, *, now: float, stages: Sequence[Stage], min_requests: int
) -> Change | None:
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


def _lacking(seen: Seen, min_requests: int) -> str:
    """Why the stage cannot be called good: no data is neither a pass nor a fail."""
    if seen.n_treatment < max(min_requests, 1):
        return f"{seen.n_treatment} treatment requests, {max(min_requests, 1)} needed"
    open_ = [v for v in seen.verdicts if v.kind == "absolute" and v.status in {"no_data", "doubtful"}]
    return "; ".join(verdict.note or f"{verdict.guardrail}: {verdict.status}" for verdict in open_)


def _enter(index: int, stages: Sequence[Stage], now: float, action: str, why: str) -> Change:
    state = CanaryState(status=CanaryStatus.RUNNING, percentage=stages[index].percentage, stage=index, entered_at=now)
    return Change(action=action, why=why, state=state, enters_stage=True)


def _stay(state: CanaryState, status: CanaryStatus, action: str, why: str, *, paused_by: str | None = None) -> Change:
    return Change(action=action, why=why, state=msgspec.structs.replace(state, status=status, paused_by=paused_by))


def rolled_back(now: float, why: str) -> Change:
    """Everyone back to control."""
    state = CanaryState(status=CanaryStatus.ROLLED_BACK, entered_at=now)
    return Change(action="rollback", why=why, state=state, enters_stage=True)


# What a person may do. Each raises ConfigError with the reason where the state does not allow it.


def approve(state: CanaryState, *, now: float, stages: Sequence[Stage], why: str, force: bool = False) -> Change:
    """Past the gate (or past an inconclusive stage) into the next stage; a canary a person paused goes on as it was."""
    check_stages(state, stages)
    if state.paused_by == HISTORY_LOST:
        raise ConfigError(
            "nothing to approve: the canary's history is lost, so it stands at 0 %; `evalpipe canary reset` starts over"
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


def pause(state: CanaryState, *, why: str) -> Change:
    """Hold the present percentage; guardrails stay watched."""
    if state.status not in {CanaryStatus.RUNNING, CanaryStatus.INCONCLUSIVE}:
        raise ConfigError(f"nothing to pause: the canary is {state.status}")
    return _stay(state, CanaryStatus.PAUSED, "pause", why, paused_by="person")


def rollback(state: CanaryState, *, now: float, why: str) -> Change:
    if state.status is CanaryStatus.ROLLED_BACK:
        raise ConfigError("the canary is rolled back already")
    return rolled_back(now, why)


def reset(*, now: float, why: str) -> Change:
    """Back to the beginning at 0 %; the controller starts the first stage at its next evaluation."""
    return Change(action="reset", why=why, state=CanaryState(entered_at=now), enters_stage=True)
