"""Guardrails: exact where theory says so, never alarmed by what is under the limit, and no look between two failures matters."""

from __future__ import annotations

import math

import numpy as np
import pytest
from check_canary_simulation import rolled_back_after_s
from hypothesis import given, settings
from hypothesis import strategies as st

from evalpipe.errors import ConfigError
from evalpipe.models import Arm, Outcome
from evalpipe.rollout.guardrails import (
    CostLimit,
    Margin,
    RateDifference,
    RateLimit,
    WinRateLimit,
    build_guardrails,
    evaluate_guardrails,
)
from evalpipe.rollout.observations import RATES, Observation, UserSums
from evalpipe.stats.event_rates import ALARM_ODDS, effective_events, log_e_above, lower_bound


def seen(arm: Arm, unit: str, outcome: Outcome = Outcome.OK, **more: float) -> Observation:
    return Observation(arm=arm, unit=unit, outcome=outcome, **more)  # type: ignore[arg-type]


def test_the_evidence_is_a_mean_of_likelihood_ratios() -> None:
    """One event in two at limit 1/2, by hand: with odds o, p1 = o/(1+o), the bet pays 4 p1 (1-p1)."""
    by_hand = np.mean([4 * o / (1 + o) ** 2 for o in ALARM_ODDS])
    assert log_e_above(1, 2, 0.5) == pytest.approx(math.log(by_hand))
    assert log_e_above(0, 0, 0.3) == 0


@settings(max_examples=50)
@given(st.floats(0.001, 0.9), st.integers(1, 12))
def test_it_is_fair_at_the_limit(limit: float, n: int) -> None:
    """E[E] = 1 when the rate is the limit: summed over every outcome of n draws."""
    total = sum(
        math.comb(n, x) * limit**x * (1 - limit) ** (n - x) * math.exp(log_e_above(x, n, limit)) for x in range(n + 1)
    )
    assert total == pytest.approx(1, rel=1e-9)


@settings(max_examples=50)
@given(st.integers(0, 200), st.integers(1, 2000), st.floats(0.001, 0.2))
def test_the_lower_bound_inverts_the_test(events: int, n: int, alpha: float) -> None:
    events = min(events, n)
    bound = lower_bound(events, n, alpha)
    assert 0 <= bound <= events / n
    if bound > 0:
        assert log_e_above(events, n, bound * 0.999) >= -math.log(alpha) - 1e-6
        assert log_e_above(events, n, min(bound * 1.001 + 1e-9, 0.999)) <= -math.log(alpha) + 1e-6


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=60))
def test_running_sums_are_the_sums(requests: list[tuple[int, bool]]) -> None:
    sums = UserSums()
    for user, event in requests:
        sums.add(str(user), float(event))
    spread = sums.aggregate().spread
    if spread is None:
        assert sums.linearised_variance() is None
    else:
        assert sums.linearised_variance() == pytest.approx(spread.v_lin, abs=1e-15)
    means = [np.mean([e for u, e in requests if u == user]) for user in {u for u, _ in requests}]
    assert sums.total_of_means == pytest.approx(sum(means))
    assert sums.n_users_with_event == len({user for user, event in requests if event})


def test_one_heavy_user_neither_alarms_alone_nor_drowns_the_others() -> None:
    """A bot with 200 failing requests among 40 quiet users is no outage; ten more users who fail are one."""
    guardrail = RateLimit("error_rate", RATES["error_rate"], 0.02)
    for user in range(40):
        guardrail.add(seen(Arm.TREATMENT, f"u{user}"))
    for _ in range(200):
        guardrail.add(seen(Arm.TREATMENT, "bot", Outcome.HTTP_ERROR))
    assert guardrail.verdict(percentage=10, alpha=0.05).status == "doubtful"
    for user in range(10):
        guardrail.add(seen(Arm.TREATMENT, f"v{user}", Outcome.HTTP_ERROR))
    assert guardrail.verdict(percentage=10, alpha=0.05).status == "breached"


def test_evidence_by_requests_and_by_users_shares_one_false_alarm_rate() -> None:
    # With one request a user both are the same evidence (but for the variance's n − 1); their sum would be ln 2 above it.
    guardrail = RateLimit("error_rate", RATES["error_rate"], 0.05)
    for user in range(60):
        guardrail.add(seen(Arm.TREATMENT, f"u{user}", Outcome.HTTP_ERROR if user % 12 == 0 else Outcome.OK))
    assert guardrail.verdict(percentage=10, alpha=0.05).log_e == pytest.approx(log_e_above(5, 60, 0.05), abs=0.1)


def test_few_users_count_once_each() -> None:
    assert effective_events(50, 50, 1, None) == (1, 1)
    assert effective_events(0, 0, 0, None) == (0, 0)
    assert effective_events(10, 100, 50, None) == (10, 100)


def test_clustered_requests_are_worth_at_most_as_many_independent_ones() -> None:
    # 10 of 100: independent requests have a variance of 0.1 × 0.9 / 100.
    assert effective_events(10, 100, 50, 0.0018) == (pytest.approx(5), pytest.approx(50))
    assert effective_events(10, 100, 50, 0.0003) == (pytest.approx(10), 100)


@pytest.mark.parametrize(
    ("outcome", "latency", "expected"),
    [
        (Outcome.OK, 6000.0, 1),
        (Outcome.TIMEOUT, 120_000.0, 1),
        (Outcome.HTTP_ERROR, 9000.0, None),
        (Outcome.OK, 4000.0, 0),
    ],
)
def test_the_tail_counts_answers_and_timeouts_only(outcome: Outcome, latency: float, expected: int | None) -> None:
    (guardrail,) = [g for g in build_guardrails({"p99_latency_ms": 5000}) if isinstance(g, RateLimit)]
    guardrail.add(seen(Arm.TREATMENT, "u", outcome, latency_ms=latency))
    verdict = guardrail.verdict(percentage=1, alpha=0.05)
    assert verdict.limit == 5000 and guardrail.limit == 0.01
    assert (verdict.value if verdict.status != "no_data" else None) == expected


def test_a_difference_needs_both_arms_and_its_margin() -> None:
    guardrail = RateDifference("error_rate", RATES["error_rate"], Margin(value=0.005, relative=False))
    assert guardrail.verdict(percentage=10, alpha=0.05).status == "no_data"
    for i in range(900):
        guardrail.add(seen(Arm.CONTROL, f"c{i}", Outcome.HTTP_ERROR if i < 9 else Outcome.OK))
    for i in range(100):
        guardrail.add(seen(Arm.TREATMENT, f"t{i}", Outcome.HTTP_ERROR if i < 1 else Outcome.OK))
    assert guardrail.verdict(percentage=10, alpha=0.05).status == "holds"
    for i in range(12):
        guardrail.add(seen(Arm.TREATMENT, f"x{i}", Outcome.HTTP_ERROR))
    assert guardrail.verdict(percentage=10, alpha=0.05).status == "breached"
    assert guardrail.verdict(percentage=100, alpha=0.05).status == "no_data", "nobody to compare with"


@pytest.mark.parametrize("margin", [Margin(value=0.5, relative=True), Margin(value=0.25, relative=False)])
def test_a_difference_within_its_margin_holds(margin: Margin) -> None:
    """Half of control's users fail: half as many again are 0.25 more. At 10 %, 900 and 100 would be the same rate."""
    guardrail = RateDifference("error_rate", RATES["error_rate"], margin)
    for i in range(1800):
        guardrail.add(seen(Arm.CONTROL, f"c{i}", Outcome.HTTP_ERROR if i < 900 else Outcome.OK))
    for i in range(170):
        guardrail.add(seen(Arm.TREATMENT, f"t{i}", Outcome.HTTP_ERROR))
    assert guardrail.verdict(percentage=10, alpha=0.05).status == "holds"
    for i in range(170, 230):
        guardrail.add(seen(Arm.TREATMENT, f"t{i}", Outcome.HTTP_ERROR))
    assert guardrail.verdict(percentage=10, alpha=0.05).status == "breached"


def test_the_cost_of_a_request_is_the_treatments() -> None:
    (guardrail,) = [g for g in build_guardrails({"cost_per_request_usd": 0.01}) if isinstance(g, CostLimit)]

    def add(arm: Arm, first: int, n: int, usd: float) -> None:
        for i in range(first, first + n):
            guardrail.add(seen(arm, f"u{i}", cost_usd=usd * (0.9 + 0.2 * (i % 2))))

    add(Arm.CONTROL, 0, 300, 0.05)
    assert guardrail.verdict(percentage=10, alpha=0.05).status == "no_data"
    add(Arm.TREATMENT, 300, 300, 0.005)
    assert guardrail.verdict(percentage=10, alpha=0.05).status == "holds"
    add(Arm.TREATMENT, 600, 2000, 0.02)
    assert guardrail.verdict(percentage=10, alpha=0.05).status == "breached"


def test_verdicts_of_a_judge_are_a_guardrail() -> None:
    bad = WinRateLimit(0.45, lambda: [(f"u{i}", 0.2) for i in range(200)])
    good = WinRateLimit(0.45, lambda: [(f"u{i}", 0.5) for i in range(200)])
    none = WinRateLimit(0.45, list)
    assert [g.verdict(percentage=10, alpha=0.05).status for g in (bad, good, none)] == ["breached", "holds", "no_data"]


@pytest.mark.parametrize(
    ("limits", "line"),
    [
        ({"error_rate": 2.0}, "between 0 and 1"),
        ({"p100_latency_ms": 1.0}, "known are"),
        ({"nonsense": 1.0}, "known are"),
    ],
)
def test_what_means_nothing_is_refused(limits: dict[str, float], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        build_guardrails(limits)


def test_false_alarms_are_shared_out() -> None:
    verdicts = evaluate_guardrails(
        build_guardrails({"error_rate": 0.02, "p99_latency_ms": 5000}), percentage=5, alpha=0.06
    )
    assert [v.log_alarm for v in verdicts] == [pytest.approx(math.log(3 / 0.06))] * 3


def test_looks_between_two_failures_change_nothing() -> None:
    """The claim the simulation's speed rests on: the same second of rollback, or none, with every look taken."""
    for seed, rate in ((1, 0.01), (2, 0.06)):
        assert rolled_back_after_s(seed, rate, seconds=40) == rolled_back_after_s(
            seed, rate, every_look=True, seconds=40
        )
