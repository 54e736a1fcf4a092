"""The canary's state machine: every transition, told the time, without a file."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.errors import ConfigError
from evalpipe.models import CanaryState, CanaryStatus, GuardrailVerdict
from evalpipe.rollout import canary
from evalpipe.rollout.canary import Stage, StageStatus, StateTransition

PLAN = (
    Stage(percentage=1, duration_s=60, auto_advance=True),
    Stage(percentage=10, duration_s=60),
    Stage(percentage=100),
)


def verdict(status: str, kind: str = "absolute") -> GuardrailVerdict:
    return GuardrailVerdict(guardrail="error_rate", kind=kind, status=status, note=f"error_rate {status}")


def seen(watched_s: float = 60, n: int = 50, *statuses: str) -> StageStatus:
    return StageStatus(watched_s=watched_s, n_treatment=n, verdicts=[verdict(s) for s in statuses or ("holds",)])


def step(state: CanaryState, saw: StageStatus) -> StateTransition | None:
    return canary.evaluate(state, saw, now=1000.0, stages=PLAN, min_requests=50)


def at(index: int, status: CanaryStatus = CanaryStatus.RUNNING, paused_by: str | None = None) -> CanaryState:
    return CanaryState(
        status=status, percentage=PLAN[index].percentage, stage=index, entry=index + 1, paused_by=paused_by
    )


def test_the_way_to_the_end_with_one_gate() -> None:
    begun = step(CanaryState(), seen(0, 0))
    assert begun and (begun.action, begun.state.percentage, begun.state.status) == ("start", 1, CanaryStatus.RUNNING)
    assert step(at(0), seen(59.9, 10_000)) is None, "not before its time"
    advanced = step(at(0), seen())
    assert advanced and (advanced.action, advanced.state.percentage) == ("advance", 10)
    gate = step(at(1), seen())
    assert gate and gate.state.status is CanaryStatus.PAUSED and gate.state.percentage == 10
    assert step(gate.state, seen(1e6, 10**6)) is None, "a gate holds until a person comes"
    approved = canary.approve(gate.state, now=5.0, stages=PLAN, why="fine")
    assert approved.state.percentage == 100 and approved.enters_stage
    done = step(approved.state, seen(0))
    assert done and done.state.status is CanaryStatus.DONE and done.state.percentage == 100


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize(
    "status", [CanaryStatus.RUNNING, CanaryStatus.PAUSED, CanaryStatus.INCONCLUSIVE, CanaryStatus.DONE]
)
@pytest.mark.parametrize("kind", ["absolute", "difference"])
def test_a_breach_takes_everyone_back_from_anywhere(index: int, status: CanaryStatus, kind: str) -> None:
    looked = StageStatus(watched_s=0, n_treatment=1, verdicts=[verdict("holds"), verdict("breached", kind)])
    change = step(at(index, status), looked)
    assert change and change.state.status is CanaryStatus.ROLLED_BACK and change.state.percentage == 0
    assert "error_rate" in change.why
    assert step(change.state, seen(1e9, 10**9)) is None, "only a person's reset leaves it"
    with pytest.raises(ConfigError, match="reset"):
        canary.approve(change.state, now=0, stages=PLAN, why="")


@pytest.mark.parametrize(
    ("looked", "word"),
    [
        (seen(60, 0, "no_data"), "0 treatment requests, 50 needed"),
        (seen(60, 49), "49 treatment requests"),
        (seen(60, 50, "doubtful"), "doubtful"),
        (seen(60, 50, "no_data"), "no_data"),
    ],
)
def test_too_little_is_neither_pass_nor_fail(looked: StageStatus, word: str) -> None:
    change = step(at(0), looked)
    assert change and change.state.status is CanaryStatus.INCONCLUSIVE and change.state.percentage == 1
    assert word in change.why
    assert step(change.state, looked) is None, "said once"
    later = step(change.state, seen(1e4, 5000))
    assert later and later.action == "advance", "data that came late count"
    assert canary.approve(change.state, now=0, stages=PLAN, why="go on").state.percentage == 10


def test_a_stage_without_a_time_is_not_called_inconclusive_in_its_first_minute() -> None:
    assert step(at(2), seen(59.9, 10)) is None
    change = step(at(2), seen(60, 10))
    assert change and change.state.status is CanaryStatus.INCONCLUSIVE


def test_a_difference_without_data_does_not_hold_the_last_stage() -> None:
    looked = StageStatus(watched_s=1, n_treatment=100, verdicts=[verdict("holds"), verdict("no_data", "difference")])
    change = step(at(2), looked)
    assert change and change.state.status is CanaryStatus.DONE


def test_what_people_may_do() -> None:
    paused = canary.pause(at(0), why="freeze").state
    assert paused.status is CanaryStatus.PAUSED and paused.percentage == 1
    assert step(paused, seen(1e9)) is None
    resumed = canary.approve(paused, now=0, stages=PLAN, why="go")
    assert resumed.state.status is CanaryStatus.RUNNING and not resumed.enters_stage
    with pytest.raises(ConfigError, match="--force"):
        canary.approve(at(0), now=0, stages=PLAN, why="")
    assert canary.approve(at(0), now=0, stages=PLAN, why="", force=True).state.percentage == 10
    assert canary.rollback(at(1), now=0, why="no").state.percentage == 0
    with pytest.raises(ConfigError, match="already"):
        canary.rollback(canary.rolled_back(0, "").state, now=0, why="")
    with pytest.raises(ConfigError, match="nothing to pause"):
        canary.pause(CanaryState(), why="")
    again = canary.reset(now=9, why="fixed").state
    assert again.status is CanaryStatus.WAITING and again.percentage == 0


def test_changed_stages_are_not_guessed_at() -> None:
    with pytest.raises(ConfigError, match=r"canary\.stages changed"):
        canary.evaluate(at(1), seen(), now=0, stages=(Stage(percentage=2),), min_requests=1)


@given(
    st.lists(
        st.tuples(
            st.floats(0, 200), st.integers(0, 100), st.sampled_from(["holds", "doubtful", "no_data", "breached"])
        ),
        max_size=30,
    )
)
def test_never_up_without_time_requests_and_guardrails_and_never_up_after_a_breach(
    looks: list[tuple[float, int, str]],
) -> None:
    state = CanaryState()
    for watched, n, status in looks:
        change = step(state, seen(watched, n, status))
        if change is None:
            continue
        if change.state.percentage > state.percentage and state.stage >= 0:
            assert watched >= PLAN[state.stage].duration_s and n >= 50 and status == "holds"
            assert PLAN[state.stage].auto_advance
        if state.stage >= 0 and status == "breached":
            assert change.state.percentage == 0
        state = change.state
