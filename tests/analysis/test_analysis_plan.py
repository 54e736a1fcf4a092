"""What the decision needs of every metric: by hand, with statsmodels, and against simulated experiments."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from forecast_builders import ITEMS
from statsmodels.stats.power import NormalIndPower

from evalpipe.analysis.planning import Log, PlannedMetric, Question, plan_metric
from evalpipe.analysis.result import Analysis, ArmValue, Decision, Funnel, MetricResult
from evalpipe.cli.plan_text import plan_lines
from evalpipe.errors import ConfigError
from evalpipe.workspace import plan as workspace_plan
from evalpipe.workspace.paths import open_workspace
from evalpipe.workspace.plan import Plan, plan

A = 1.959964 + 0.841621  # 95 % two-sided, 80 % power


def planned(name: str, **changes: Any) -> PlannedMetric:
    item = ITEMS[name]
    arguments = {"effect": 0.05, "margin": 0.03, "scale": "absolute", "alpha": 0.05}
    options = {"looks": "anytime", "n_star": 1000.0}
    for key, value in changes.items():
        target = options if key in {"looks", "n_looks", "paired", "pilot", "orders", "log", "n_star"} else arguments
        target[key] = value
    found = plan_metric(item, Question(**arguments), **options)  # type: ignore[arg-type]
    assert found is not None
    return found


def row(name: str, **changes: Any) -> MetricResult:
    item = ITEMS[name]
    arm = ArmValue(value=0.5, n=2000, numerator=1000.0, denominator=2000.0)
    values: dict[str, Any] = {
        "name": name,
        "label": item.label,
        "group": item.group,
        "unit": item.unit,
        "direction": item.direction,
        "role": "diagnostic",
        "scale": item.scale,
        "control": arm,
        "treatment": arm,
        "difference": 0.0,
        "ci_low": -0.1,
        "ci_high": 0.1,
        "confidence_level": 0.95,
        "p_value": None,
        "margin": item.margin,
    }
    return MetricResult(**{**values, **changes})


def test_an_effect_needs_the_textbook_sample_and_twice_it_at_most() -> None:
    """A judged pair has a variance of .12."""
    found = planned("win_rate")
    by_statsmodels = NormalIndPower(ddof=0).solve_power(0.05 / math.sqrt(0.12), power=0.8, alpha=0.05, ratio=0)
    assert found.n_fixed == math.ceil(by_statsmodels) == 377
    assert found.n_max == 760  # 754, two digits upwards
    assert found.n_star == 188  # half of 376.7
    assert found.n_noninferior == math.ceil(A**2 * 0.12 / 0.03**2)
    assert found.n_noninferior_max == 2100
    assert found.n_equivalent == math.ceil((1.959964 + 1.281552) ** 2 * 0.12 / 0.03**2)


def test_not_worse_counts_where_something_else_may_bring_the_win() -> None:
    """Equal and cheaper: 80 % of simulated experiments show a goal not worse than 3 points by 2,000 to 2,200 users, half by
    1,100 to 1,300; by 1,045 only .38 to .47 do."""
    found = planned("win_rate", margin_counts=True)
    assert found.n_planned_max == 2100
    assert found.n_planned_typical == found.n_noninferior_typical == pytest.approx(1150, rel=0.13)
    assert (found.requests, found.requests_max) == (1100, 2100)


@pytest.mark.parametrize(
    ("errors", "simulated"), [(0.0005, 986), (0.002, 2071), (0.005, 4508), (0.01, 7321), (0.03, 30742)]
)
def test_guardrails_of_rare_events_take_what_they_took_in_simulations(errors: float, simulated: int) -> None:
    """Both arms fail alike, one request a user, margin half a point; medians."""
    arm = ArmValue(value=errors, n=20_000, numerator=20_000 * errors, denominator=20_000.0)
    half = 1.959964 * math.sqrt(2 * errors / 20_000)
    pilot = row(
        "error_rate",
        control=arm,
        treatment=arm,
        ci_low=-half,
        ci_high=half,
        n=20_000,
        n_clusters=20_000,
        method="tango, fixed",
    )
    found = planned("error_rate", role="guardrail", may_win=False, margin=0.005, margin_counts=True, pilot=pilot)
    assert found.n_typical == pytest.approx(simulated, rel=0.25)
    assert found.n_fixed == found.n_noninferior
    assert found.n_max == found.n_noninferior_max == found.requests_max
    assert 2 * found.n_fixed <= found.n_max <= 2.2 * found.n_fixed
    assert found.effect == 0.005


def test_a_wider_margin_of_one_point_takes_a_quarter() -> None:
    narrow = planned("error_rate", role="guardrail", may_win=False, margin=0.005, margin_counts=True)
    wide = planned("error_rate", role="guardrail", may_win=False, margin=0.01, margin_counts=True)
    assert (narrow.requests, wide.requests) == (7300, 1900)


def test_relative_effects_are_differences_of_logarithms() -> None:
    """Costs of which the logarithm varies by .64 (the prompt's part, shared) and .16: 10 % cheaper, and no 10 % dearer."""
    found = planned("cost_per_request_usd", scale="relative", effect=0.1, margin=0.1, alpha=0.025, margin_alpha=0.05)
    variance = 2 * (math.expm1(0.8) - math.expm1(0.64))
    assert found.n_fixed == math.ceil((2.241403 + 0.841621) ** 2 * variance / math.log(0.9) ** 2)
    assert found.n_noninferior == math.ceil(A**2 * variance / math.log(1.1) ** 2)


def test_medians_of_latencies() -> None:
    """A lognormal median has a standard error of sd·√(π/2)/√n; of 25 % a distance of ln 1.25."""
    found = planned("p50_latency_ms", scale="relative", role="guardrail", may_win=False, margin=0.25)
    assert found.n_fixed == math.ceil(A**2 * 2 * 0.8**2 * math.pi / 2 / math.log(1.25) ** 2)


def test_arms_with_different_users() -> None:
    """Ratings with a standard deviation of .25/√2 in either arm; a quarter of the users get the treatment."""
    found = planned("user_rating", effect=0.02, margin=0.02, paired=False, log=Log(treatment_share=0.25))
    per_arm = 0.25**2 / 2
    assert found.n_fixed == math.ceil(A**2 * per_arm * (1 / 0.25 + 1 / 0.75) / 0.02**2)
    # From a log the standard error holds for the shares as they are: 400 users, se .01.
    pilot = row("user_rating", standard_error=0.01, n=900, n_clusters=400)
    found = planned(
        "user_rating", effect=0.02, margin=0.02, paired=False, pilot=pilot, log=Log(requests=800, users=400)
    )
    assert found.n_fixed == math.ceil(A**2 * 0.01**2 * 400 / 0.02**2)
    assert found.requests_max == pytest.approx(2 * 2 * found.n_fixed, rel=0.1)


def test_users_with_several_pairs_are_judged_at_most_k_times() -> None:
    """5,000 pairs of 500 users, at most three each: a tenth of the variance is assumed to be the user's."""
    log = Log(requests=10_000, pairs=5_000, users=500, share=0.5, pairs_per_unit=3)
    found = planned("win_rate", log=log)
    users = A**2 * 0.12 * (0.1 + 0.9 / 3) / 0.05**2
    assert found.n_fixed == math.ceil(3 * users)
    assert found.requests_max == pytest.approx(2 * users * 20, rel=0.1)  # twenty requests a user
    every = planned("win_rate", log=Log(requests=10_000, pairs=5_000, users=500, share=0.5))
    assert every.n_fixed == math.ceil(10 * A**2 * 0.12 * (0.1 + 0.9 / 10) / 0.05**2)
    # Verdicts in the log: their own variance, and as many pairs a user as count.
    pilot = row("win_rate", standard_error=0.02, n=600, n_clusters=200)
    found = planned("win_rate", log=log, pilot=pilot)
    assert found.n_fixed == math.ceil(3 * A**2 * 0.02**2 * 200 / 0.05**2)


def test_typical_noise_of_users_with_several_requests() -> None:
    """Four pairs a user: costs of which a tenth of the variance is the user's, errors with a design effect of 1 + .05 · 3."""
    log = Log(requests=4_000, pairs=4_000, users=1_000)
    cost = planned("cost_per_request_usd", scale="relative", effect=0.1, margin=0.1, log=log)
    variance = 2 * (math.expm1(0.8) - math.expm1(0.64)) * (0.1 + 0.9 / 4)
    assert cost.n_fixed == math.ceil(4 * A**2 * variance / math.log(0.9) ** 2)
    errors = planned("error_rate", role="guardrail", may_win=False, margin=0.005, margin_counts=True, log=log)
    assert errors.n_fixed == pytest.approx(A**2 * 0.02 * 1.15 / 0.005**2, rel=0.05)


def test_a_skewed_cost_waits_for_its_gate() -> None:
    """Skewness .5 at 400 users: below .1 at 10,000, far later than the width alone asks for."""
    pilot = row(
        "cost_per_request_usd",
        scale="relative",
        relative=0.0,
        relative_low=-0.05,
        relative_high=0.0526,
        n=400,
        n_clusters=400,
        skewness=0.5,
    )
    found = planned("cost_per_request_usd", scale="relative", effect=0.1, margin=0.1, pilot=pilot)
    assert found.n_typical == found.n_max == 10_000
    once = planned("cost_per_request_usd", scale="relative", effect=0.1, margin=0.1, pilot=pilot, looks="fixed")
    assert once.n_typical == once.n_fixed < 1000


def test_what_cannot_be_planned() -> None:
    question = Question(effect=0.0, margin=0.0, scale="absolute", alpha=0.05, role="guardrail", may_win=False)
    assert plan_metric(ITEMS["error_rate"], question, looks="anytime") is None
    relative = Question(effect=0.1, margin=0.1, scale="relative", alpha=0.05)
    assert plan_metric(ITEMS["user_rating"], relative, looks="anytime") is None


# --- the command -----------------------------------------------------------------------------------------------------

DECIDES = """
[decision.metrics.win_rate]
role = "primary"
[decision.metrics.cost_per_request_usd]
role = "benefit"
margin = "10%"
[decision.metrics.error_rate]
role = "guardrail"
margin = 0.005
[decision.metrics.timeout_rate]
role = "guardrail"
margin = 0.005
[decision.metrics.p50_latency_ms]
role = "guardrail"
margin = "25%"
"""


def made(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    analysis: Analysis | None = None,
    decides: str = DECIDES,
    mode: str = "shadow",
    extra: str = "",
    **options: Any,
) -> Plan:
    text = f'[experiment]\nname = "e"\nmode = "{mode}"\n{extra}{decides}'
    (folder / "evalpipe.toml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(workspace_plan, "_pilot", lambda workspace, name: analysis)
    return plan(open_workspace(root=folder), **options)


def analysis(rows: list[MetricResult], *, requests: int, pairs: int, users: int) -> Analysis:
    return Analysis(
        experiment="e",
        mode="shadow",
        generated_at="2026-06-03T00:00:00+00:00",
        provenance={"first_at": "2026-06-01T00:00:00+00:00", "last_at": "2026-06-03T00:00:00+00:00"},
        funnel=Funnel(requests=requests, pairs=pairs, users=users),
        metrics=rows,
        judges=[],
        checks=[],
        decision=Decision(recommendation="collect_more", reasons=[]),
    )


def test_every_metric_that_decides_is_planned_and_the_slowest_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made(tmp_path, monkeypatch)
    names = [one.name for one in found.metrics]
    assert names[0] == "win_rate"
    assert {"cost_per_request_usd", "error_rate", "timeout_rate", "p50_latency_ms"} < set(names)
    assert found.unplanned == []
    assert found.bottleneck is not None
    assert (found.bottleneck.metric, found.bottleneck.requests) == ("error_rate", 7300)
    assert (found.requests, found.requests_max) == (7300, found.bottleneck.requests_max)
    assert found.bottleneck.requests_max == max(one.requests_max for one in found.metrics)
    assert (found.days, found.bottleneck.days) == (None, None)
    assert found.wider_margin is not None
    assert (found.wider_margin.margin, found.wider_margin.requests) == (0.01, 1900)
    lines = plan_lines(found)
    assert any(line.startswith("Slowest: error rate, about 7,300 requests") for line in lines)
    assert any(line.startswith("With a margin of 1 point instead of 0.5 points: about 1,900") for line in lines)
    document = found.as_json()
    assert {"metric": "error_rate", "requests": 7300, "days": None}.items() <= document["bottleneck"].items()
    assert {"metric": "error_rate", "margin": 0.01, "requests": 1900}.items() <= document["wider_margin"].items()


def test_goals_share_alpha_and_benefits_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = (
        DECIDES
        + '[decision.metrics.judge_score]\nrole = "primary"\n[decision.metrics.output_tokens]\nrole = "benefit"\n'
    )
    found = {one.name: one for one in made(tmp_path, monkeypatch, decides=more).metrics}
    levels = {name: one.alpha for name, one in found.items()}
    assert levels["win_rate"] == levels["judge_score"] == 0.025
    assert levels["cost_per_request_usd"] == levels["output_tokens"] == 0.025
    assert levels["error_rate"] == 0.05
    assert found["win_rate"].n_fixed == math.ceil((2.241403 + 0.841621) ** 2 * 0.12 / 0.05**2)


def test_one_goal_alone_need_not_be_shown_not_worse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goal = DECIDES.replace('role = "benefit"', 'role = "guardrail"')
    found = {one.name: one for one in made(tmp_path, monkeypatch, decides=goal).metrics}
    assert (found["win_rate"].margin_counts, found["win_rate"].requests_max) == (False, 760)
    policy = goal + '[decision]\npolicy = "noninferiority"\n'
    found = {one.name: one for one in made(tmp_path, monkeypatch, decides=policy).metrics}
    assert (found["win_rate"].may_win, found["win_rate"].requests_max) == (False, 2100)


def test_requests_days_and_judged_pairs_come_from_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4,000 requests in two days, 2,000 of them pairs of 400 users: five pairs and ten requests a user."""
    arm = ArmValue(value=0.01, n=2000, numerator=20.0, denominator=2000.0)
    half = 1.959964 * math.sqrt(0.02 / 2000)
    rows = [
        row("win_rate", standard_error=math.sqrt(0.05 / 300), n=900, n_clusters=300),
        row(
            "error_rate",
            control=arm,
            treatment=arm,
            standard_error=half / 1.959964,
            ci_low=-half,
            ci_high=half,
            n=2000,
            n_clusters=400,
            method="jackknife, fixed",
        ),
    ]
    log = analysis(rows, requests=4000, pairs=2000, users=400)
    found = made(tmp_path, monkeypatch, analysis=log)
    by_name = {one.name: one for one in found.metrics}
    assert found.requests_per_day == 2000
    assert found.share_of_requests == 0.5
    goal = by_name["win_rate"]
    users = A**2 * 0.05 / 0.03**2  # not worse takes longer than the effect
    assert goal.n_planned_max == pytest.approx(2 * 3 * users, rel=0.1)
    assert goal.requests_max == pytest.approx(2 * 10 * users, rel=0.1)
    assert found.judge_pairs == goal.n_planned_typical
    errors = by_name["error_rate"]
    assert errors.n_fixed == math.ceil(5 * A**2 * 0.004 / 0.005**2)  # a user's variance: .02 over five pairs
    assert found.bottleneck is not None
    assert found.bottleneck.metric == "error_rate"
    assert found.bottleneck.requests_max == pytest.approx(4 * errors.n_fixed, rel=0.1)
    assert found.bottleneck.days_max == found.bottleneck.requests_max / 2000
    assert found.pairs_max == round(found.requests_max / 2)
    assert any("2,000 requests a day, 50 % of them compared" in line for line in plan_lines(found))


def test_what_the_log_cannot_measure_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row("error_rate", measurable=False), row("timeout_rate", measurable=False)]
    found = made(tmp_path, monkeypatch, analysis=analysis(rows, requests=300, pairs=300, users=300))
    assert found.not_measured == ["error_rate", "timeout_rate"]
    assert "error_rate" not in {one.name for one in found.metrics}
    assert any(
        line.startswith("Not measured by this log, so deciding nothing: error rate") for line in plan_lines(found)
    )


def test_one_metric_is_planned_for_its_effect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(tmp_path, monkeypatch, metric="win_rate", effect="3%", power=0.9)
    (goal,) = found.metrics
    assert goal.n_fixed == math.ceil((1.959964 + 1.281552) ** 2 * 0.12 / 0.03**2)
    assert found.wider_margin is None
    assert found.pairs_max == goal.requests_max
    guard = made(tmp_path, monkeypatch, metric="error_rate", effect="1%").metrics[0]
    # McNemar (Connor 1987) with 2 % of discordant pairs.
    n = (1.959964 * math.sqrt(0.02) + 0.841621 * math.sqrt(0.02 - 0.01**2)) ** 2 / 0.01**2
    assert (guard.may_win, guard.n_fixed) == (True, math.ceil(n))
    for wrong in ({"metric": "win_rat"}, {"effect": "none"}, {"metric": "win_rate", "effect": "60%"}):
        with pytest.raises(ConfigError):
            made(tmp_path, monkeypatch, **wrong)
    with pytest.raises(ConfigError, match="cannot fall by 100 %"):
        made(tmp_path, monkeypatch, metric="cost_per_request_usd", effect="100%")


def test_a_split_and_planned_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extra = "treatment_percent = 20\n"
    decides = DECIDES + '[decision]\nlooks = "fixed"\n'
    found = made(tmp_path, monkeypatch, mode="ab", extra=extra, decides=decides)
    errors = next(one for one in found.metrics if one.name == "error_rate")
    normal = A**2 * 0.01 * 0.99 * (1 / 0.2 + 1 / 0.8) / 0.005**2
    assert errors.n_fixed == pytest.approx(normal, rel=0.06)
    assert errors.n_typical == errors.n_fixed
    assert (found.pairs, found.judge_pairs) == (0, None)
    assert not any("half" in line for line in plan_lines(found))


def test_the_plan_can_be_fixed_in_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = made(tmp_path, monkeypatch, save=True)
    errors = next(one for one in found.metrics if one.name == "error_rate")
    assert errors.n_star == pytest.approx(errors.n_fixed / 2, abs=1)
    again = made(tmp_path, monkeypatch)  # from now on with the saved n*
    assert next(one for one in again.metrics if one.name == "error_rate").n_typical == errors.n_typical
