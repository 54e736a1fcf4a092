"""The rules of the decision: 36 cases worked out by hand, and every level, role and order of the rules on its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from evalpipe.analysis.decision import DecisionContext, DecisionOutcome, MetricEvidence, decide
from evalpipe.models import MetricRole, Policy

CASES = json.loads(Path(__file__).with_name("decision_rules.json").read_text())["cases"]
ROLES = {"goal": MetricRole.PRIMARY, "benefit": MetricRole.BENEFIT, "guardrail": MetricRole.GUARDRAIL}


def _normal(
    name: str, role: MetricRole, est: float | None, se: float | None, margin: float, **more: Any
) -> MetricEvidence:
    """A metric with a normal interval; without an estimate it has no data."""

    def limits(alpha: float) -> tuple[float | None, float | None]:
        if est is None or se is None:
            return None, None
        reach = float(stats.norm.isf(alpha / 2)) * se
        return est - reach, est + reach

    return MetricEvidence(
        name=name, role=role, margin=margin, status="ok" if se is not None else "no_data", limits=limits, **more
    )


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_the_cases_worked_out_by_hand(case: dict[str, Any]) -> None:
    given = case["input"]
    evidence = [
        _normal(m["name"], ROLES[m["role"]], m["est"], m["se"], m["delta"], measurable=m.get("source") != "cannot")
        for m in given["metrics"]
    ]
    ruling = decide(
        evidence,
        DecisionContext(
            alpha=given["alpha"],
            policy=Policy(given["policy"]),
            min_effect_of_interest=given.get("min_effect_of_interest", 0.0),
            max_reached=given.get("max_reached", False),
            setup=["the key is refused"] if given.get("setup_fault") else [],
            invalid=["the arms' shares are off"] if given.get("srm_p", 1.0) < 0.001 else [],
        ),
    )
    assert (ruling.recommendation.value, ruling.rule) == (case["expected"]["recommendation"], case["expected"]["rule"])


def _stepped(
    name: str,
    role: MetricRole,
    *,
    low: float = -1.0,
    high: float = 1.0,
    low_from: tuple[float, float] | None = None,
    high_from: tuple[float, float] | None = None,
    margin: float = 0.1,
    **more: Any,
) -> MetricEvidence:
    """A metric whose limits step at one level: `low_from` = (level, low) holds from that alpha on, `high_from` likewise."""

    def limits(alpha: float) -> tuple[float | None, float | None]:
        below = low_from[1] if low_from is not None and alpha >= low_from[0] * (1 - 1e-9) else low
        above = high_from[1] if high_from is not None and alpha >= high_from[0] * (1 - 1e-9) else high
        return below, above

    return MetricEvidence(name=name, role=role, margin=margin, status=more.pop("status", "ok"), limits=limits, **more)


def _held(name: str, role: MetricRole = MetricRole.GUARDRAIL, **more: Any) -> MetricEvidence:
    return _stepped(name, role, low=-0.05, high=0.3, **more)


def _decide(*evidence: MetricEvidence, alpha: float = 0.06, **situation: Any) -> DecisionOutcome:
    return decide(list(evidence), DecisionContext(alpha=alpha, **situation))


GOAL, BENEFIT, GUARDRAIL, DIAGNOSTIC = (
    MetricRole.PRIMARY,
    MetricRole.BENEFIT,
    MetricRole.GUARDRAIL,
    MetricRole.DIAGNOSTIC,
)


@pytest.mark.parametrize(
    ("goals", "benefits", "level", "ships"),
    [
        (1, 0, 0.06, True),  # one goal wins at alpha
        (2, 0, 0.06, False),  # two share it: a win at alpha is none at alpha/2
        (2, 0, 0.03, True),
        (1, 3, 0.06, True),  # benefits do not take from the goals
        (3, 1, 0.02, True),
        (3, 1, 0.03, False),
    ],
)
def test_goals_share_alpha_among_themselves(goals: int, benefits: int, level: float, ships: bool) -> None:
    winner = _stepped("g0", GOAL, low=-0.05, high=0.3, low_from=(level, 0.01))
    others = [_held(f"g{k}", GOAL) for k in range(1, goals)] + [_held(f"b{k}", BENEFIT) for k in range(benefits)]
    assert (_decide(winner, *others).rule == "ship") is ships


@pytest.mark.parametrize(
    ("goals", "benefits", "level", "ships"),
    [(1, 1, 0.06, True), (3, 1, 0.06, True), (1, 2, 0.06, False), (1, 2, 0.03, True)],
)
def test_benefits_share_alpha_among_themselves(goals: int, benefits: int, level: float, ships: bool) -> None:
    winner = _stepped("b0", BENEFIT, low=-0.05, high=0.3, low_from=(level, 0.01))
    others = [_held(f"b{k}", BENEFIT) for k in range(1, benefits)] + [_held(f"g{k}", GOAL) for k in range(goals)]
    assert (_decide(winner, *others).rule == "ship") is ships


@pytest.mark.parametrize(
    ("others", "level", "harm"), [(2, 0.02, True), (2, 0.03, False), (5, 0.01, True), (5, 0.02, False)]
)
@pytest.mark.parametrize("role", [GOAL, BENEFIT, GUARDRAIL])
def test_harm_is_shared_by_all_that_decide(others: int, level: float, harm: bool, role: MetricRole) -> None:
    harmful = _stepped("m", role, high_from=(level, -0.11), high=-0.09)
    rest = [_held("g", GOAL), *(_held(f"r{k}") for k in range(others - 1))]
    # What the source cannot measure, and diagnostics, are not counted.
    rest += [_held("cannot", measurable=False), _held("d", DIAGNOSTIC)]
    assert (_decide(harmful, *rest).rule == "harm") is harm


@pytest.mark.parametrize("role", [GOAL, BENEFIT, GUARDRAIL])
@pytest.mark.parametrize(("low", "blocks"), [(-0.1, True), (-0.0999, False)])
def test_everything_that_decides_must_be_within_its_margin_at_alpha(role: MetricRole, low: float, blocks: bool) -> None:
    tested = _stepped("m", role, low=-1.0, high=0.3, low_from=(0.06, low))
    won = _stepped("g", GOAL, low=0.01, high=0.3)
    ruling = _decide(won, tested)
    assert (ruling.rule == "collect_more") is blocks
    assert ("m" in ruling.blocking) is blocks


@pytest.mark.parametrize("status", ["burn_in", "missing_differs", "too_few_clusters", "unreliable_judge", "no_data"])
def test_only_a_metric_with_status_ok_wins_holds_or_harms(status: str) -> None:
    better = _stepped("g", GOAL, low=0.01, high=0.3, status=status)
    assert _decide(better, _held("r")).rule in {"collect_more", "unmeasured"}
    worse = _stepped("r", GUARDRAIL, low=-1, high=-0.5, status=status)
    won = _stepped("g", GOAL, low=0.01, high=0.3)
    ruling = _decide(won, worse)
    assert (ruling.rule, ruling.blocking) == ("collect_more", ["r"])
    open_goal = _stepped("g", GOAL, low=-1, high=0.001, status=status)
    ruled = _decide(open_goal, _held("r"), min_effect_of_interest=0.02)
    assert ruled.rule in {"collect_more", "unmeasured"}  # futility needs a value, too


def test_setup_before_harm_before_invalid_data_before_everything_else() -> None:
    harmful = _stepped("r", GUARDRAIL, low=-1, high=-0.5)
    won = _stepped("g", GOAL, low=0.01, high=0.3)
    assert _decide(won, harmful, setup=["k"], invalid=["i"]).rule == "setup"
    assert _decide(won, harmful, invalid=["i"]).rule == "harm"
    assert _decide(won, _held("r"), invalid=["i"]).rule == "data"
    assert _decide(won, _held("r")).rule == "ship"


def test_without_a_goal_or_its_value_nothing_ships_unless_the_policy_says_so() -> None:
    cheap = _stepped("b", BENEFIT, low=0.2, high=0.4)
    assert _decide(cheap, _held("r")).rule == "unmeasured"
    assert _decide(cheap, _held("r"), policy=Policy.UTILITY, utility_low=1.0).rule == "unmeasured"
    assert _decide(cheap, _held("r"), policy=Policy.NONINFERIORITY).rule == "ship"
    unjudged = _stepped("g", GOAL, status="no_data")
    assert _decide(unjudged, cheap, _held("r")).rule == "unmeasured"
    assert _decide(unjudged, cheap, _held("r"), policy=Policy.NONINFERIORITY).rule == "collect_more"
    assert decide([], DecisionContext(alpha=0.05)).rule == "unmeasured"
    assert decide([], DecisionContext(alpha=0.05, policy=Policy.NONINFERIORITY)).rule == "collect_more"


def test_a_goal_that_the_source_cannot_measure_is_no_goal() -> None:
    ruling = _decide(_held("g", GOAL, measurable=False), _stepped("b", BENEFIT, low=0.2, high=0.4))
    assert (ruling.rule, ruling.not_measurable) == ("unmeasured", ["g"])


def test_empty_answers_count_for_harm_before_they_block() -> None:
    won = _stepped("g", GOAL, low=0.01, high=0.3)
    silent = _stepped("empty_rate", GUARDRAIL, low=-1, high=1, blocks=False)
    assert _decide(won, silent).rule == "ship"
    assert _decide(won, silent).harm_level == pytest.approx(0.03)
    assert _decide(won, _stepped("empty_rate", GUARDRAIL, low=-1, high=1)).rule == "collect_more"


@pytest.mark.parametrize(("win", "rule"), [(0.05, "collect_more"), (0.11, "ship")])
def test_beside_a_small_loss_of_the_goal_a_win_must_exceed_its_margin(win: float, rule: str) -> None:
    goal = _stepped("g", GOAL, low=-0.08, high=-0.01)
    cheap = _stepped("b", BENEFIT, low=win, high=0.4)
    ruling = _decide(goal, cheap, _held("r"))
    assert (ruling.rule, ruling.slightly_worse, ruling.strong_win) == (rule, ["g"], rule == "ship")
    # Not under the policies that say how losses count.
    assert _decide(goal, cheap, policy=Policy.NONINFERIORITY).rule == "ship"
    assert _decide(goal, cheap, policy=Policy.UTILITY, utility_low=0.1).rule == "ship"


def test_no_gain_needs_every_goal_and_benefit_and_no_guardrail() -> None:
    equal = _stepped("g", GOAL, low=-0.05, high=0.05)
    open_benefit = _stepped("b", BENEFIT, low=-0.2, high=0.2)
    assert _decide(equal, open_benefit, _held("r")).rule == "collect_more"
    dear = _stepped("b", BENEFIT, low=-0.2, high=-0.01)
    ruling = _decide(equal, dear, _stepped("r", GUARDRAIL))
    assert (ruling.rule, ruling.all_within) == ("no_gain", False)
    tied = _stepped("b", BENEFIT, low=-0.05, high=0.05)
    assert _decide(equal, tied, _held("r")).all_within
    assert not _decide(equal, tied, _stepped("r", GUARDRAIL)).all_within
    assert _decide(equal, tied, _stepped("r", GUARDRAIL), policy=Policy.NONINFERIORITY).rule == "collect_more"


def test_no_gain_by_a_loss_is_at_the_level_at_which_a_metric_may_win() -> None:
    two = [_stepped(name, GOAL, low=-0.2, high_from=(0.06, -0.01), high=0.01) for name in ("a", "b")]
    assert _decide(*two).rule == "collect_more"
    two = [_stepped(name, GOAL, low=-0.2, high_from=(0.03, -0.01), high=0.01) for name in ("a", "b")]
    assert _decide(*two).rule == "no_gain"


def test_the_planned_end_comes_after_ship_and_no_gain_and_before_futility() -> None:
    won, open_goal = _stepped("g", GOAL, low=0.01, high=0.3), _stepped("g", GOAL, low=-0.2, high=0.01)
    assert _decide(won, _held("r"), max_reached=True).rule == "ship"
    assert _decide(open_goal, _held("r"), max_reached=True, min_effect_of_interest=0.02).rule == "max_reached"
    assert _decide(open_goal, _held("r"), min_effect_of_interest=0.02).rule == "futility"
    assert _decide(open_goal, _held("r"), min_effect_of_interest=0.005).rule == "collect_more"


def test_futility_asks_the_benefits_too() -> None:
    goal = _stepped("g", GOAL, low=-0.2, high=0.01)
    for high, rule in ((0.0, "futility"), (0.01, "collect_more")):
        assert _decide(goal, _stepped("b", BENEFIT, low=-0.3, high=high), min_effect_of_interest=0.02).rule == rule


def test_futility_asks_every_goal_and_an_effect_of_interest() -> None:
    goal, other = _stepped("g", GOAL, low=-0.2, high=0.01), _stepped("h", GOAL, low=-0.2, high=0.3)
    assert _decide(goal, other, min_effect_of_interest=0.02).rule == "collect_more"
    lost = _stepped(
        "g", GOAL, low=-0.2, high=-0.01
    )  # without such an effect a loss within the margin ends nothing by itself
    assert _decide(lost, _held("r"), policy=Policy.NONINFERIORITY).rule == "collect_more"
    assert _decide(lost, _held("r"), policy=Policy.NONINFERIORITY, min_effect_of_interest=0.02).rule == "futility"


def test_utility_is_the_users_weights() -> None:
    goal, held = _stepped("g", GOAL, low=-0.05, high=0.3), _held("r")
    for low, high, rule in (
        (0.1, 1, "ship"),
        (-0.1, 1, "collect_more"),
        (None, None, "collect_more"),
        (-2, -0.1, "futility"),
    ):
        found = _decide(goal, held, policy=Policy.UTILITY, utility_low=low, utility_high=high)
        assert found.rule == rule


def test_a_diagnostic_never_decides_and_is_named_beyond_its_margin() -> None:
    won = _stepped("g", GOAL, low=0.01, high=0.3)
    bad = [_stepped(f"d{k}", DIAGNOSTIC, low=-9, high_from=(0.03, -0.2), high=-0.05) for k in range(2)]
    ruling = _decide(won, *bad)
    assert (ruling.rule, ruling.worse_diagnostics, ruling.harm_level) == ("ship", ["d0", "d1"], 0.06)
    # With a third diagnostic each is asked at alpha/3.
    assert _decide(won, *bad, _held("d2", DIAGNOSTIC)).worse_diagnostics == []


def test_default_margins_of_cost_and_latency_are_named_beside_a_win() -> None:
    won = _stepped("g", GOAL, low=0.01, high=0.3)
    slow = _stepped("p50", GUARDRAIL, low=-1, high=-0.5, by_default=True)
    assert _decide(won, slow).default_harm
    assert not _decide(_held("g", GOAL), slow).default_harm
    assert not _decide(won, slow, _stepped("r", GUARDRAIL, low=-1, high=-0.5)).default_harm


def test_losing_is_at_the_level_of_harm() -> None:
    rest = [_held("r"), _held("s")]
    for level, losing in ((0.02, ["g"]), (0.03, [])):
        assert _decide(_stepped("g", GOAL, low=-0.08, high_from=(level, -0.001), high=0.001), *rest).losing == losing
