"""Ab and canary: separate users per arm, stages of a canary, end users' ratings, a judge that scores single answers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from experiment_builders import NOW, START, check, failing, frame, metric, run

from evalpipe.stats.event_rates import Stage, rate_ratio


def _stage(
    name: str, n_treatment: int, n_control: int, percentage: float, *, seed: int, **changes: object
) -> pd.DataFrame:
    parts = []
    for arm, n in (("control", n_control), ("treatment", n_treatment)):
        part = frame(n, arm=arm, seed=seed, mode="canary", percentage=percentage)
        part["request_id"], part["unit_id"] = f"{name}-{arm}-" + part.request_id, f"{name}-{arm}-" + part.unit_id
        for column, value in changes.items():
            part[column] = value(arm, n) if callable(value) else value
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def test_stages_are_compared_within_and_then_combined() -> None:
    # Both arms fail at 10 % in the first stage and at 0 % in the second; pooled, control would look worse.
    first = _stage(
        "one", 100, 900, 10, seed=1, outcome=lambda arm, n: ["http_error"] * (n // 10) + ["ok"] * (n - n // 10)
    )
    second = _stage("two", 500, 500, 50, seed=2)
    found = run(pd.concat([first, second], ignore_index=True), mode="canary")
    errors = metric(found, "error_rate")
    assert errors.difference == 0.0
    assert check(found, "sample_ratio").status == "pass"
    assert found.decision.recommendation != "invalid"


def test_latency_of_a_canary_is_that_of_the_present_stage() -> None:
    early = _stage("one", 100, 900, 10, seed=1, latency_ms=9000.0)
    late = _stage("two", 500, 500, 50, seed=2, latency_ms=lambda arm, n: np.linspace(100, 200, n))
    late["started_at"] = late["started_at"] + pd.Timedelta(days=5)
    found = metric(run(pd.concat([early, late], ignore_index=True), mode="canary"), "p50_latency_ms")
    assert 140 < found.control.value < 160


def test_a_split_has_no_pairs_and_counts_served_exchanges() -> None:
    found = run(_stage("one", 300, 300, 50, seed=3), mode="ab", treatment_percent=50)
    assert (found.funnel.requests, found.funnel.pairs, found.funnel.users) == (600, 0, 600)
    assert metric(found, "win_rate").status == "no_data"
    assert metric(found, "p99_latency_ms").role == "guardrail"


def test_ratings_are_a_goal_where_there_are_some() -> None:
    exchanges = _stage("one", 300, 300, 50, seed=3)
    rng = np.random.default_rng(1)
    better = np.where(exchanges.arm == "treatment", 0.9, 0.5)
    feedback = pd.DataFrame(
        {
            "request_id": exchanges.request_id,
            "arm": exchanges.arm,
            "rating": (rng.random(600) < better) * 1.0,
            "at": NOW,
        }
    )
    # An earlier rating of the same answer does not count; here each is the opposite of the last one.
    again = feedback.head(50).assign(rating=1 - feedback.head(50).rating, at=START)
    found = run(exchanges, feedback=pd.concat([feedback, again], ignore_index=True), mode="ab", treatment_percent=50)
    rating = metric(found, "user_rating")
    assert (rating.role, rating.finding) == ("primary", "better")
    assert np.isclose(rating.control.value, feedback[feedback.arm == "control"].rating.mean())


def test_single_answers_scored_by_a_pointwise_judge() -> None:
    exchanges = _stage("one", 200, 200, 50, seed=3)
    rows = []
    for position, (request_id, arm) in enumerate(zip(exchanges.request_id, exchanges.arm, strict=True)):
        scores = {
            "relevance": 0.9 if arm == "treatment" else 0.7 + 0.01 * (position % 5),
            "faithfulness": 0.5 + 0.1 * (position % 3),
        }
        rows.append(
            {"request_id": request_id, "key": request_id, "judgment_id": request_id + ":1", "attempt": 1, "repeat": 0,
             "judge": "pointwise", "judge_fingerprint": "p1", "shown_first": "neither", "status": "ok", "simulated": False,
             f"{arm}_scores": list(scores.items())}
        )  # fmt: skip
    judgments = pd.DataFrame(rows)
    found = run(exchanges, judgments, mode="ab", treatment_percent=50)
    relevance = metric(found, "relevance_score")
    assert (relevance.role, relevance.finding) == ("primary", "better")
    assert np.isclose(relevance.treatment.value, 0.9)
    assert np.isclose(relevance.control.value, 0.72)


def test_rare_failures_early_in_a_canary_are_no_conclusion() -> None:
    few = _stage("one", 20, 1980, 1, seed=4, outcome=lambda arm, n: failing(n, 0.01, seed=5))
    found = run(few, mode="canary", looks="anytime")
    assert metric(found, "error_rate").finding != "worse"
    assert found.decision.recommendation == "collect_more"


def _two_stages(**changes: object) -> pd.DataFrame:
    """A tenth, then half: both arms fail more in the second stage, the treatment twice as often as control."""
    rates = {("one", "control"): 0.01, ("one", "treatment"): 0.02, ("two", "control"): 0.03, ("two", "treatment"): 0.06}
    parts = []
    for name, n_treatment, n_control, percentage in (("one", 300, 2700, 10), ("two", 1000, 1000, 50)):
        part = _stage(name, n_treatment, n_control, percentage, seed=1, **changes)
        for arm in ("control", "treatment"):
            rows = part.index[part.arm == arm]
            part.loc[rows[: round(rates[name, arm] * len(rows))], "outcome"] = "http_error"
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def test_a_canarys_values_difference_and_limits_carry_the_same_stage_weights() -> None:
    # All in one hour: time is no cluster here.
    row = metric(run(_two_stages(started_at=START), mode="canary", looks="anytime"), "error_rate")
    weights = np.array([300 * 2700 / 3000, 1000 * 1000 / 2000])
    weights /= weights.sum()
    assert row.control.value == pytest.approx(weights @ [0.01, 0.03])
    assert row.treatment.value == pytest.approx(weights @ [0.02, 0.06])
    assert row.difference == pytest.approx(weights @ [0.01, 0.03])
    assert row.method == "conditional events, anytime"
    # The limits of the rate ratio, each at the stages' pooled rates: (ratio − 1) · events / (ratio · n_T + n_C).
    stages = [
        Stage(treatment_events=6, control_events=27, share=0.1),
        Stage(treatment_events=60, control_events=30, share=0.5),
    ]
    ratio = rate_ratio(stages)
    for limit, above in ((row.ci_low, ratio.ci_low), (row.ci_high, ratio.ci_high)):
        assert above is not None
        expected = [
            above * events / ((1 + above) * n_t + n_c) for events, n_t, n_c in ((33, 300, 2700), (90, 1000, 1000))
        ]
        assert limit == pytest.approx(weights @ expected)
    assert 0 < row.ci_low < row.difference < row.ci_high


def test_a_canarys_bad_hours_are_few_events() -> None:
    hours = 240
    rng = np.random.default_rng(7)

    def hour_of(arm: str, n: int) -> list[object]:
        """Failures come first (see _two_stages): those of an arm fall into three hours of its own."""
        hour = rng.integers(0, hours, n)
        hour[: n // 15] = 20 + 100 * (arm == "treatment") + np.arange(n // 15) % 3
        return [START + pd.Timedelta(hours=int(one)) for one in hour]

    calm = metric(run(_two_stages(started_at=START), mode="canary", looks="anytime"), "error_rate")
    bursts = metric(run(_two_stages(started_at=hour_of), mode="canary", looks="anytime"), "error_rate")
    assert bursts.difference == pytest.approx(calm.difference)
    assert bursts.method == "conditional events / design effect, anytime"
    assert bursts.ci_low < 0 < bursts.ci_high
    assert bursts.finding != "worse"


def test_a_canary_with_hardly_any_event_has_an_interval_too() -> None:
    quiet = pd.concat([_stage("one", 300, 2700, 10, seed=1), _stage("two", 1000, 1000, 50, seed=2)], ignore_index=True)
    row = metric(run(quiet, mode="canary", looks="anytime"), "error_rate")
    assert (row.status, row.difference, row.control.value) == ("ok", 0.0, 0.0)
    assert row.ci_low < 0 < row.ci_high < 0.02
