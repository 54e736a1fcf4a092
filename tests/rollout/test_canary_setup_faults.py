"""A set-up fault of the treatment rolls a canary back as harm does; one of control never does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from test_canary_controller import CONFIG, Rollout

from evalpipe.analysis.result import Decision
from evalpipe.collector.assignment import choose
from evalpipe.models import Arm, Outcome
from evalpipe.providers.setup_faults import FaultKind, Signature
from evalpipe.rollout.guardrails import TreatmentSetup, build_guardrails, evaluate_guardrails
from evalpipe.rollout.observations import Observation
from evalpipe.workspace.decide import rollout_step
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import open_workspace

Fails = Callable[[str, int], object]
KEY = 401, json.dumps({"error": {"type": "authentication_error", "message": "invalid x-api-key"}})
MODEL = 404, json.dumps({"error": {"code": "model_not_found", "message": "The model does not exist"}})
BAD = 400, json.dumps({"error": {"type": "invalid_request_error", "message": "temperature is not supported"}})
QUOTA = 429, json.dumps({"error": {"type": "insufficient_quota", "message": "You exceeded your current quota"}})


def refused(which: str, error: object) -> Fails:
    return lambda arm, i: error if arm == which else False


@pytest.fixture
def rollout(tmp_path: Path) -> Rollout:
    found = Rollout(tmp_path)
    found.watch(1)
    assert found.status == "running 10"
    return found


@pytest.mark.parametrize("error", [KEY, MODEL, BAD, QUOTA])
def test_the_treatments_fault_rolls_back_at_the_next_look(rollout: Rollout, error: tuple[int, str]) -> None:
    rollout.traffic.serve(300, fails=refused("treatment", error))
    rollout.watch(1)
    assert rollout.status == "rolled_back 0"
    why = rollout.events[-1].why
    assert "set-up fault of the treatment arm: " in why
    assert f"HTTP {error[0]}: {json.loads(error[1])['error']['message']}" in why


@pytest.mark.parametrize("error", [KEY, MODEL, BAD, QUOTA])
def test_controls_fault_never_rolls_back_nor_holds_the_canary_up(rollout: Rollout, error: tuple[int, str]) -> None:
    """Control refuses everybody: going back would send all users to it. The stage ends as with a healthy control."""
    rollout.watch(8, lambda: rollout.traffic.serve(300, fails=refused("control", error)))
    assert [event.action for event in rollout.events][:2] == ["start", "advance"]
    rollout.watch(8, lambda: rollout.traffic.serve(300, fails=refused("control", error)))
    assert rollout.status == "paused 50", "the gate of the second stage: a person's, not a guardrail's"
    assert not any(event.action == "rollback" for event in rollout.events)
    evaluation = rollout.history.evaluation()
    assert evaluation is not None
    assert {verdict.status for verdict in evaluation.verdicts} == {"holds"}


@pytest.mark.parametrize(("model", "status"), [('model = "m"', "rolled_back 0"), ("", "running 10")])
def test_five_refusals_of_one_user(tmp_path: Path, model: str, status: str) -> None:
    """Too little for the test of a rate, enough for what a wrong key looks like; where the client's own model reaches the
    treatment it may be that user's."""
    rollout = Rollout(tmp_path)
    before, treatment, after = CONFIG.partition('[arms.treatment]\nprovider = "openai"\n')
    (tmp_path / "evalpipe.toml").write_text(f"{before}{treatment}{model}\n{after}")
    rollout.workspace = open_workspace(root=tmp_path)
    rollout.watch(1)
    share = rollout.traffic.share()
    unit = next(unit for i in range(1000) if choose("rollout", unit := f"user-{i}", share).arm is Arm.TREATMENT)
    rollout.traffic.serve(4, unit=unit, fails=refused("treatment", KEY))
    rollout.watch(1)
    assert rollout.status == "running 10"
    rollout.traffic.serve(1, unit=unit, fails=refused("treatment", KEY))
    rollout.watch(1)
    assert rollout.status == status
    why = "set-up fault of the treatment arm: 5 requests in a row failed: HTTP 401"
    assert rollout.events[-1].why.startswith(why) is bool(model)


def test_after_a_reset_the_corrected_key_starts_anew(rollout: Rollout) -> None:
    rollout.traffic.fingerprint = "c-t"
    rollout.traffic.serve(300, fails=refused("treatment", KEY))
    rollout.watch(1)
    assert rollout.status == "rolled_back 0"
    rollout.change_state("reset")
    rollout.watch(8, lambda: rollout.traffic.serve(100))
    assert rollout.status == "running 50"


def test_a_controller_that_comes_later_finds_the_fault_in_the_store(rollout: Rollout) -> None:
    rollout.traffic.serve(60, fails=refused("treatment", KEY), users=60)
    load(rollout.workspace, list(rollout.workspace.spool.iterdir()))
    for segment in rollout.workspace.spool.iterdir():
        segment.unlink()
    rollout.watch(1)
    assert rollout.status == "rolled_back 0"
    assert "set-up fault of the treatment arm" in rollout.events[-1].why


def test_without_an_error_guardrail_a_fault_rolls_back_too(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path)
    (tmp_path / "evalpipe.toml").write_text(CONFIG.replace("error_rate = 0.02, ", ""))
    rollout.workspace = open_workspace(root=tmp_path)
    rollout.watch(1)
    rollout.traffic.serve(100, fails=refused("treatment", KEY))
    rollout.watch(1)
    assert rollout.status == "rolled_back 0"


def seen(arm: Arm, second: int, status: int | None, *, unit: str = "u", mark: str = "f") -> Observation:
    """Answered where `status` is None."""
    failure = None if status is None else Signature(FaultKind.REFUSED, status, "authentication_error")
    outcome = Outcome.OK if status is None else Outcome.HTTP_ERROR
    return Observation(
        arm=arm, unit=unit, outcome=outcome, asked_at=float(second), failure=failure, words="no", configuration=mark
    )


def verdict(guard: TreatmentSetup) -> str:
    return guard.verdict(percentage=10, alpha=0.05).status


def test_the_guardrail_itself() -> None:
    guard = TreatmentSetup(passes_through=False, answered=set())
    assert verdict(guard) == "no_data"
    for second in range(40):
        guard.add(seen(Arm.CONTROL, second, 401))
    assert verdict(guard) == "no_data", "control's refusals are not looked at"
    for second in range(4):
        guard.add(seen(Arm.TREATMENT, second, 401))
    assert verdict(guard) == "holds"
    guard.add(seen(Arm.TREATMENT, 4, 401))
    assert verdict(guard) == "breached"
    guard.add(seen(Arm.TREATMENT, 5, None))
    assert verdict(guard) == "breached", "it stays, as harm does"


def test_several_workers_are_put_in_the_order_of_time() -> None:
    guard = TreatmentSetup(passes_through=False, answered=set())
    for second in (1, 3, 5, 7, 9, 11):  # one worker's records, then the other's
        guard.add(seen(Arm.TREATMENT, second, 401))
    for second in (2, 4, 6, 8, 10):
        guard.add(seen(Arm.TREATMENT, second, None))
    assert verdict(guard) == "holds"


def test_what_answered_in_an_earlier_stage_needs_twenty_in_a_row() -> None:
    answered: set[str | None] = set()
    first = TreatmentSetup(passes_through=False, answered=answered)
    first.add(seen(Arm.TREATMENT, 0, None))
    assert (verdict(first), answered) == ("holds", {"f"})
    second = TreatmentSetup(passes_through=False, answered=answered)
    for i in range(19):
        second.add(seen(Arm.TREATMENT, i, 401))
    assert verdict(second) == "holds"
    second.add(seen(Arm.TREATMENT, 19, 401))
    assert verdict(second) == "breached"
    other = TreatmentSetup(passes_through=False, answered=answered)
    for i in range(5):
        other.add(seen(Arm.TREATMENT, i, 401, mark="g"))
    assert verdict(other) == "breached"


def test_where_the_clients_model_passes_through_three_users_are_needed() -> None:
    guard = TreatmentSetup(passes_through=True, answered=set())
    for i in range(30):
        guard.add(seen(Arm.TREATMENT, i, 404, unit=f"u{i % 2}"))
    assert verdict(guard) == "holds"
    guard.add(seen(Arm.TREATMENT, 30, 404, unit="u2"))
    assert verdict(guard) == "breached"


def test_it_takes_nothing_of_the_other_guardrails_false_alarms() -> None:
    tests = build_guardrails({"error_rate": 0.02})
    alone = evaluate_guardrails(tests, percentage=10, alpha=0.05)
    beside = evaluate_guardrails(
        [*tests, TreatmentSetup(passes_through=False, answered=set())], percentage=10, alpha=0.05
    )
    assert [one.log_alarm for one in beside[:-1]] == [one.log_alarm for one in alone]


@pytest.mark.parametrize(
    ("recommendation", "broken", "rollback", "expected"),
    [
        ("ship", [], False, "promote"),
        ("collect_more", [], False, "wait"),
        ("keep", [], False, "roll_back"),
        ("invalid", [], False, "roll_back"),
        ("invalid", ["treatment"], True, "roll_back"),  # ab, canary: users are served by it
        ("invalid", ["treatment"], False, "wait"),  # shadow: only copies fail
        ("invalid", ["control"], False, "wait"),
        ("invalid", ["control", "treatment"], True, "roll_back"),
        ("invalid", ["control", "treatment"], False, "wait"),
    ],
)
def test_what_the_gate_tells_a_tool_that_shifts_traffic(
    recommendation: str, broken: list[str], rollback: bool, expected: str
) -> None:
    decision = Decision(recommendation=recommendation, reasons=[], setup_arms=broken, rollback=rollback)
    assert rollout_step(decision) == expected
