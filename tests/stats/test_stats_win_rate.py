"""The win rate over users: every user counts once, on the counts present at the look."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from evalpipe.stats import betting, estimates, group_sequential
from evalpipe.stats.sequential import Anytime
from evalpipe.stats.winrate import first_seat_rate, win_rate

preferences = st.lists(st.sampled_from([0, 0.25, 0.5, 0.75, 1]), min_size=5, max_size=80)


def test_all_ties_prove_equivalence_and_never_zero_width() -> None:
    for mode in (None, Anytime(n_star=200)):
        estimate = win_rate([0.5], [2000], multiplier=mode)
        assert (estimate.status, estimate.point) == ("ok", 0.5)
        assert estimate.ci_low is not None and estimate.ci_high is not None
        assert 0.45 < estimate.ci_low < 0.5 < estimate.ci_high < 0.55
        verdict = estimates.label(estimate.ci_low - 0.5, estimate.ci_high - 0.5, margin=0.05)
        assert verdict.label == "equivalent"
    assert win_rate([], []).status == "no_data"
    assert win_rate([0.5], [0]).status == "no_data"


def test_always_winning_is_better_without_a_variance() -> None:
    estimate = win_rate([1.0], [40])
    assert estimate.status == "ok" and estimate.standard_error is None
    assert 0.5 < (estimate.ci_low or 0) < 1 == estimate.ci_high


@settings(max_examples=40)
@given(preferences, st.booleans())
def test_win_rate_mirrors(x: list[float], anytime: bool) -> None:
    mode, ones = Anytime(n_star=50) if anytime else None, [1] * len(x)
    forward, backward = win_rate(x, ones, multiplier=mode), win_rate([1 - v for v in x], ones, multiplier=mode)
    assert forward.status == backward.status == "ok"
    assert forward.ci_low == pytest.approx(1 - (backward.ci_high or 0), abs=1e-9)
    assert forward.p_value == pytest.approx(backward.p_value, abs=1e-9)


@given(preferences)
def test_one_fixed_look_is_the_t_test_of_the_users_means(x: list[float]) -> None:
    if len(set(x)) == 1:
        return
    values, counts = np.unique(x, return_counts=True)
    estimate = win_rate(values, counts, n=3 * len(x))
    expected = scipy_stats.ttest_1samp(x, 0.5)
    interval = expected.confidence_interval(0.95)
    assert (estimate.point, estimate.n, estimate.n_clusters) == (pytest.approx(np.mean(x)), 3 * len(x), len(x))
    assert (estimate.ci_low, estimate.ci_high) == pytest.approx((interval.low, interval.high), abs=1e-9)
    assert estimate.p_value == pytest.approx(expected.pvalue, abs=1e-9)


def test_planned_looks_take_their_boundary() -> None:
    mode = group_sequential.Scheduled(fractions=(0.5, 1.0))
    estimate = win_rate([0.0, 1.0], [40, 60], multiplier=mode)
    se = math.sqrt(0.6 * 0.4 / 99)
    # O'Brien-Fleming-type spending, two looks, alpha .05: the second boundary is 1.969 (Jennison & Turnbull 2000)
    assert estimate.ci_low == pytest.approx(0.6 - 1.969 * se, abs=1e-4)


def test_every_user_counts_once_and_the_point_is_theirs() -> None:
    """One user lost all of 300 pairs, 100 users won theirs: .25 over pairs, 100/101 over users, which is what is estimated."""
    estimate = win_rate([0.0, 1.0], [1, 100], multiplier=Anytime(n_star=100), n=400)
    assert estimate.point == pytest.approx(100 / 101)
    assert (estimate.n, estimate.n_clusters, estimate.note) == (400, 101, None)
    low, high = betting.limits([0.0, 1.0], [1, 100], betting.tuned_bets(100))
    assert (estimate.ci_low, estimate.ci_high) == (low, high)


@settings(max_examples=40)
@given(preferences)
def test_an_anytime_look_knows_the_present_counts_only(x: list[float]) -> None:
    """However the users came in: an early lead that is gone by now proves nothing now."""
    mode = Anytime(n_star=50)
    values, counts = np.unique(x, return_counts=True)
    estimate = win_rate(values, counts, multiplier=mode)
    assert estimate.ci_low is not None and estimate.ci_high is not None and estimate.point is not None
    assert 0 <= estimate.ci_low <= estimate.point + 1e-12 and estimate.point - 1e-12 <= estimate.ci_high <= 1
    for order in (x, sorted(x), sorted(x, reverse=True)):
        again = win_rate(order, [1] * len(x), multiplier=mode)
        assert (again.ci_low, again.ci_high) == pytest.approx((estimate.ci_low, estimate.ci_high), abs=1e-9)
    excluded = estimate.ci_low > 0.5 or estimate.ci_high < 0.5
    p = estimate.p_value or 0.0
    assert excluded == (p < 0.05) or abs(p - 0.05) < 1e-6


def test_few_users_are_not_enough_for_one_fixed_look() -> None:
    assert win_rate([0.0, 1.0], [1, 3]).status == "too_few_clusters"
    assert win_rate([0.0, 1.0], [1, 4]).status == "ok"
    with pytest.raises(ValueError, match="values must lie in"):
        win_rate([1.5], [1])


def test_the_seat_rate_is_over_pairs_with_users_as_clusters() -> None:
    from evalpipe.stats.clusters import arm_aggregate

    f, w = np.array([3.0, 1.0, 2.0, 0.5, 1.0, 4.0]), np.array([4.0, 1.0, 3.0, 1.0, 2.0, 4.0])
    left_out = np.array([(f.sum() - f[u]) / (w.sum() - w[u]) for u in range(6)])
    estimate = first_seat_rate(arm_aggregate(f, w))
    assert estimate.point == pytest.approx(11.5 / 15)
    se = math.sqrt(5 / 6 * np.sum((left_out - 11.5 / 15) ** 2))
    assert estimate.standard_error == pytest.approx(se)
    assert estimate.p_value == pytest.approx(2 * scipy_stats.t.sf((11.5 / 15 - 0.5) / se, estimate.df))
    assert first_seat_rate(arm_aggregate([], [])).status == "no_data"
