"""The rules of the decision: every hand-derived case of the oracle, and the order of the rules."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from evalpipe.analysis.decide import Evidence, Situation, decide
from evalpipe.core.experiment import MetricRole, Policy

ORACLES = Path(os.environ.get("EVALPIPE_ORACLES", Path(__file__).parents[3] / "shared" / "oracles"))
ROLES = {"goal": MetricRole.PRIMARY, "guardrail": MetricRole.GUARDRAIL}


def _cases() -> list[Any]:
    path = ORACLES / "decision_table_rules.json"
    if not path.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"no {path}: set EVALPIPE_ORACLES"))]
    return [pytest.param(case, id=case["id"]) for case in json.loads(path.read_text())["cases"]]


def _evidence(name: str, role: MetricRole, est: float | None, se: float | None, margin: float) -> Evidence:
    def limits(alpha: float) -> tuple[float | None, float | None]:
        if est is None or se is None:
            return None, None
        reach = float(stats.norm.isf(alpha / 2)) * se
        return est - reach, est + reach

    return Evidence(name=name, role=role, margin=margin, status="ok" if se is not None else "no_data", limits=limits)


@pytest.mark.oracle
@pytest.mark.parametrize("case", _cases())
def test_oracle_decision_table_rules(case: dict[str, Any]) -> None:
    given = case["input"]
    evidence = [_evidence(m["name"], ROLES[m["role"]], m["est"], m["se"], m["delta"]) for m in given["metrics"]]
    ruling = decide(
        evidence,
        Situation(
            alpha=given["alpha"],
            policy=Policy.SUPERIORITY if given["policy"] == "goal" else Policy(given["policy"]),
            min_effect_of_interest=given["min_effect_of_interest"] or 0.0,
            max_reached=given["max_reached"],
            invalid=["the arms' shares are off"] if given["srm_p"] < 0.001 else [],
        ),
    )
    words = {"ship": "ship", "keep_collecting": "collect_more", "hold:invalid_srm": "invalid"}
    expected = words.get(case["expected"]["overall"], "keep")
    assert ruling.recommendation.value == expected
    if case["expected"]["overall"].startswith("hold:") and expected == "keep":
        assert ruling.rule == case["expected"]["overall"].removeprefix("hold:")
    labels = [ruling.verdicts[m["name"]].label for m in given["metrics"]]
    wanted = [
        "undefined" if m["se"] is None else label
        for m, label in zip(given["metrics"], case["expected"]["labels"], strict=True)
    ]
    assert labels == wanted


def _metric(
    est: float, se: float, *, role: MetricRole = MetricRole.GUARDRAIL, margin: float = 0.02, name: str = "m"
) -> Evidence:
    return _evidence(name, role, est, se, margin)


def test_harm_outranks_invalid_data() -> None:
    ruling = decide([_metric(-0.1, 0.001)], Situation(alpha=0.05, invalid=["sheds"]))
    assert (ruling.recommendation.value, ruling.rule) == ("keep", "harm")


def test_a_diagnostic_never_decides() -> None:
    harmless = [_metric(0.0, 0.001), _metric(-9.0, 0.001, role=MetricRole.DIAGNOSTIC, name="d")]
    ruling = decide(harmless, Situation(alpha=0.05))
    assert ruling.recommendation.value == "ship"
    assert ruling.verdicts["d"].label == "worse"


def test_nothing_measured_is_collect_more() -> None:
    assert decide([], Situation(alpha=0.05)).recommendation.value == "collect_more"


def test_two_goals_share_the_risk() -> None:
    # z = 2.1 is better at 95 % alone (1.96), not with two goals (2.24).
    goals = [_metric(2.1, 1.0, role=MetricRole.PRIMARY, margin=0.0, name=name) for name in ("a", "b")]
    assert decide(goals[:1], Situation(alpha=0.05)).recommendation.value == "ship"
    assert decide(goals, Situation(alpha=0.05)).recommendation.value == "collect_more"


def test_utility_ships_only_with_a_positive_lower_limit() -> None:
    evidence = [_metric(0.0, 0.001), _metric(0.01, 0.02, role=MetricRole.PRIMARY, name="goal")]
    for low, wanted in ((0.1, "ship"), (-0.1, "collect_more"), (None, "collect_more")):
        found = decide(evidence, Situation(alpha=0.05, policy=Policy.UTILITY, utility_low=low))
        assert found.recommendation.value == wanted
