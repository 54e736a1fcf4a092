"""Proportions, verdicts, quantiles, agreement, length control, multiplicity, planning, labels."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests

from evalpipe.stats import (
    agreement,
    estimates,
    multiplicity,
    planning,
    proportions,
    quantiles,
    srm,
    winrate,
)
from evalpipe.stats.clusters import arm_aggregate
from evalpipe.stats.estimates import Estimate
from evalpipe.stats.group_sequential import critical_values
from evalpipe.stats.length import is_length_confounded, length_controlled
from evalpipe.stats.means import arm_interval
from evalpipe.stats.multiplicity import composite, utility_from_covariance
from evalpipe.stats.proportions import wilson, wilson_limits
from evalpipe.stats.sequential import Anytime

count = st.integers(0, 40)
Z = 1.959963984540054


@given(count, count, st.integers(0, 2000))
def test_tango_limits_solve_their_equation_and_mirror(b: int, c: int, same: int) -> None:
    n = b + c + same
    assume(n >= 2)
    low, high = proportions.tango_limits(b, c, n, Z)
    point = (b - c) / n
    assert -1 <= low <= point <= high <= 1 and low < high
    if low > -1:
        assert proportions.tango_statistic(low, b, c, n) == pytest.approx(Z, abs=1e-5)
    assert proportions.tango_limits(c, b, n, Z) == pytest.approx((-high, -low), abs=1e-9)


@given(st.integers(0, 200), st.integers(0, 200))
def test_wilson_is_inside_and_mirrors(k: int, rest: int) -> None:
    n = k + rest
    low, high = wilson_limits(k, n, Z)
    assert 0 <= low < high <= 1
    mirrored = wilson_limits(rest, n, Z)
    if n:
        assert low <= k / n <= high
        assert mirrored == pytest.approx((1 - high, 1 - low))
    else:
        assert wilson(0, 0).status == "no_data"


def test_order_table_by_hand() -> None:
    """Five pairs: T twice, T then C (the first seat twice), C twice, tie and T, both ties."""
    table = winrate.order_table([1, 1, 0, 0.5, 0.5], [1, 0, 0, 1, 0.5])
    assert table.n == 5 and table.flips == 1
    assert table.by_value == {0.0: 1, 0.25: 0, 0.5: 2, 0.75: 1, 1.0: 1}
    assert winrate.consistency(20, 100).status == "unreliable_judge"
    assert winrate.consistency(50, 100).status == "ok"


def test_one_row_per_user_is_plain_wilson() -> None:
    failed = np.zeros(80)
    failed[:7] = 1
    arm = arm_aggregate(failed, np.ones(80), n_events=7)
    estimate = arm_interval(arm)
    assert (estimate.ci_low, estimate.ci_high) == pytest.approx(wilson_limits(7, 80, Z))


@settings(max_examples=40)
@given(
    st.lists(st.floats(0.1, 1e4), min_size=30, max_size=80),
    st.lists(st.floats(0.1, 1e4), min_size=30, max_size=80),
    st.sampled_from(["absolute", "relative"]),
)
def test_quantile_difference_is_sound_and_mirrors(t: list[float], c: list[float], scale: str) -> None:
    z = quantiles.critical(len(c), len(t), paired=False)
    arms = [quantiles.arm_limits(y, np.arange(len(y)), 0.5, z) for y in (c, t)]
    forward = quantiles.quantile_difference(arms[0], arms[1], scale=scale)
    backward = quantiles.quantile_difference(arms[1], arms[0], scale=scale)
    assert forward.status == backward.status
    if forward.ci_low is None or forward.ci_high is None or backward.ci_high is None:
        return
    assert forward.ci_low < forward.ci_high and forward.ci_low <= (forward.point or 0) <= forward.ci_high
    if scale == "absolute":
        assert forward.ci_low == pytest.approx(-backward.ci_high, abs=1e-9)
    else:
        assert (1 + forward.ci_low) * (1 + backward.ci_high) == pytest.approx(1)
    excluded = forward.ci_low > 0 or forward.ci_high < 0
    p = forward.p_value or 0.0
    assert excluded == (p < 0.05) or abs(p - 0.05) < 1e-6


def test_quantile_statuses() -> None:
    def limits(n: int, p: float) -> quantiles.QuantileLimits:
        return quantiles.arm_limits(np.arange(n) + 1.0, np.arange(n), p, Z)

    assert limits(999, 0.99).status == "tail_too_small"
    assert limits(1000, 0.99).status == "ok"
    assert limits(0, 0.5).status == "no_data"
    constant = quantiles.arm_limits(np.ones(100), np.arange(100), 0.5, Z)
    assert (constant.status, constant.high) == ("tail_too_small", None)
    few = quantiles.arm_limits(np.arange(40) + 1.0, np.repeat([0, 1], 20), 0.5, Z)
    assert few.status == "too_few_clusters"
    assert quantiles.quantile_difference(limits(0, 0.5), limits(100, 0.5)).status == "missing_arm"


def test_agreement_edges() -> None:
    assert agreement.kappa([[10, 0], [0, 0]]).status == "undefined_kappa"
    assert agreement.agreement([[10, 0], [0, 0]]).accuracy.ci_low == pytest.approx(wilson(10, 10).ci_low)
    assert agreement.agreement([[0, 0], [0, 0]]).status == "no_data"
    assert agreement.agreement([[4, 0], [0, 5]]).status == "too_few_labels"
    perfect = agreement.kappa([[20, 0], [0, 20]])
    assert (perfect.point, perfect.ci_low) == (1, None)
    rng = np.random.default_rng(5)
    tables = np.array(
        [np.bincount(rng.integers(0, 4, 6), minlength=4).reshape(2, 2) + 2 * np.eye(2) for _ in range(40)]
    )
    clustered = agreement.kappa_over_users(tables)
    assert clustered.point == pytest.approx(agreement.kappa(tables.sum(axis=0)).point)
    assert clustered.n_clusters == 40 and clustered.ci_low is not None
    assert agreement.krippendorff_alpha([[2, 0], [2, 0]]) is None
    assert agreement.spearman([1, 1, 1], [1, 2, 3]) is None


def test_kappa_over_single_item_users_is_close_to_its_formula() -> None:
    cells = [(0, 0)] * 40 + [(0, 1)] * 10 + [(1, 0)] * 8 + [(1, 1)] * 42
    tables = np.zeros((100, 2, 2))
    for u, cell in enumerate(cells):
        tables[u][cell] = 1
    formula = agreement.kappa(tables.sum(axis=0))
    assert agreement.kappa_over_users(tables).standard_error == pytest.approx(formula.standard_error, rel=0.03)


def test_length_control_undoes_a_length_bias() -> None:
    """The judge knows only length; the arms are alike. Raw: the longer arm wins; at equal length: a half."""
    rng = np.random.default_rng(6)
    dl = rng.normal(200, 200, 4000)
    x = (rng.random(4000) < 1 / (1 + np.exp(-1.5 * np.tanh(dl / 200)))).astype(float)
    result = length_controlled(x, dl, np.arange(4000))
    assert np.mean(x) > 0.6
    assert result.win_rate.ci_low is not None and result.win_rate.ci_low < 0.5 < (result.win_rate.ci_high or 0)
    mirrored = length_controlled(1 - x, -dl, np.arange(4000))
    assert mirrored.intercept == pytest.approx(-(result.intercept or 0), abs=1e-8)
    assert mirrored.win_rate.standard_error == pytest.approx(result.win_rate.standard_error)


def test_length_control_edges() -> None:
    x = np.array([1, 0, 1, 1, 0, 1.0])
    same = length_controlled(x, np.zeros(6), np.arange(6))
    assert same.win_rate.point == pytest.approx(4 / 6) and same.slope is None
    split = length_controlled([1, 1, 1, 0, 0, 0], [5, 6, 7, -5, -6, -7], np.arange(6))
    assert split.regularised and math.isfinite(split.slope or math.nan)
    everything = length_controlled(np.ones(20), np.arange(20), np.arange(20))
    assert everything.regularised and 0.5 < (everything.win_rate.point or 0) <= 1
    assert length_controlled([], [], []).win_rate.status == "no_data"
    assert length_controlled([1.0, 0.0], [3, 4], ["u", "u"]).win_rate.status == "one_cluster"
    grouped = length_controlled([1, 0, 0.5], [10, -4, 2], [0, 1, 2], weights=[1, 1, 1])
    assert grouped.win_rate.status == "too_few_clusters"
    assert is_length_confounded("better", "worse") and not is_length_confounded("better", "inconclusive")


@settings(max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_adjusted_p_values_equal_statsmodels(p: list[float]) -> None:
    assert multiplicity.holm(p) == pytest.approx(multipletests(p, method="holm")[1].tolist())
    assert multiplicity.benjamini_hochberg(p) == pytest.approx(multipletests(p, method="fdr_bh")[1].tolist())


def test_nothing_to_adjust() -> None:
    assert multiplicity.holm([]) == multiplicity.benjamini_hochberg([]) == multiplicity.e_benjamini_hochberg([]) == []


def test_the_published_sample_sizes() -> None:
    assert planning.paired_n(2, 0.2) == pytest.approx(785, abs=1)
    assert planning.paired_n(math.sqrt(0.12), 0.05) == pytest.approx(377, abs=1)
    assert planning.paired_n(math.sqrt(0.12), 0.02) == pytest.approx(2355, abs=1)
    assert planning.mcnemar_n(0.03, 0.01) == pytest.approx(2352, abs=5)
    assert planning.mcnemar_n(0.04, 0.02) == pytest.approx(782, abs=5)
    assert planning.maximum_n(1000, "anytime") == 2000 and planning.maximum_n(1000, "scheduled") == 1038


@given(st.floats(0.1, 5), st.floats(0.01, 2), st.floats(0.5, 0.99))
def test_a_planned_sample_has_its_power(sd: float, effect: float, power: float) -> None:
    n = planning.paired_n(sd, effect, power=power)
    shift, z = effect / (sd / math.sqrt(n)), scipy_stats.norm.ppf(0.975)
    assert scipy_stats.norm.cdf(shift - z) + scipy_stats.norm.cdf(-shift - z) == pytest.approx(power, abs=0.005)


@given(st.floats(0.05, 5), st.floats(0.005, 0.5), st.sampled_from(["fixed", "anytime", "scheduled"]))
def test_the_units_needed_are_the_fewest_at_which_the_line_is_excluded(sd: float, target: float, way: str) -> None:
    """By the intervals themselves: at the returned n the half-width is `target`, with one unit fewer it is larger."""
    n = planning.needed_units(sd, target, way=way, n_star=700, alpha=0.02, n_looks=4)

    def half_width(n: float) -> float:
        if way == "fixed":
            return float(scipy_stats.t.ppf(0.99, n - 1)) * sd / math.sqrt(n)
        if way == "scheduled":
            return critical_values((0.25, 0.5, 0.75, 1.0), 0.02)[-1] * sd / math.sqrt(n)
        return Anytime(n_star=700, alpha=0.02).critical(0.02, n=n) * sd / math.sqrt(n)

    assert half_width(n) <= target * (1 + 1e-9)
    if n > 2.001:
        assert half_width(n - 1) > target or half_width(n) == pytest.approx(target, rel=1e-6)
        assert half_width(0.999 * n) > target


def test_the_examples_in_the_docstrings_hold() -> None:
    result = doctest.testmod(planning)
    assert result.attempted >= 2 and result.failed == 0


def test_what_can_never_be_excluded_takes_for_ever() -> None:
    assert planning.needed_units(1, 0, way="fixed") == planning.needed_units(1, -0.1, way="anytime") == math.inf
    assert planning.needed_units(0, 0.1, way="scheduled") == 1


@given(st.floats(-1, 1), st.floats(0.001, 1), st.floats(0, 0.5))
def test_labels_mirror(point: float, half: float, margin: float) -> None:
    def verdict(sign: float) -> estimates.IntervalConclusion:
        return estimates.label(sign * point - half, sign * point + half, margin=margin)

    opposite = {"better": "worse", "worse": "better"}
    forward, backward = verdict(1), verdict(-1)
    assert backward.label == opposite.get(forward.label, forward.label)
    assert not (forward.non_inferior and forward.inferior)
    low, high = estimates.orient(
        Estimate(point=-point, ci_low=-point - half, ci_high=-point + half), higher_is_better=False
    )
    assert estimates.label(low, high, margin=margin) == forward


@pytest.mark.parametrize(
    ("low", "high", "margin", "word", "non_inferior", "inferior"),
    [
        (0.01, 0.02, 0.05, "equivalent", True, False),  # equivalent outranks better
        (0.01, 0.09, 0.05, "better", True, False),
        (-0.09, -0.01, 0.05, "worse", False, False),
        (-0.09, -0.06, 0.05, "worse", False, True),
        (-0.02, 0.09, 0.05, "inconclusive", True, False),
        (0.0, 0.09, 0.0, "inconclusive", False, False),  # strict
        (-0.05, 0.04, 0.05, "inconclusive", False, False),
        (-0.01, 0.01, 0.0, "inconclusive", False, False),  # no margin, no equivalence
        (None, -0.2, 0.1, "worse", False, True),  # unbounded below
        (0.2, None, 0.1, "better", True, False),
        (None, None, 0.1, "undefined", False, False),
    ],
)
def test_labels_by_hand(low: float, high: float, margin: float, word: str, non_inferior: bool, inferior: bool) -> None:
    assert estimates.label(low, high, margin=margin) == estimates.IntervalConclusion(
        label=word, non_inferior=non_inferior, inferior=inferior
    )
    assert estimates.label(low, high, margin=margin, status="burn_in").label == "undefined"


def test_utility_from_sums_equals_the_array_form() -> None:
    rng = np.random.default_rng(7)
    s, w = rng.normal(size=(60, 2)), rng.integers(1, 5, (60, 2)).astype(float)
    whole = composite(s, w, [2.0, -1.0])
    e = (s - s.sum(axis=0) / w.sum(axis=0) * w) / w.sum(axis=0)
    group = utility_from_covariance([2.0, -1.0], e.T @ e, 60)
    assert math.sqrt(60 / 59 * group.sum_squares) == pytest.approx(whole.standard_error)
    assert composite(np.zeros((0, 2)), np.zeros((0, 2)), [1, 1]).status == "no_data"


def test_missing_data() -> None:
    assert srm.win_rate_bounds(60, 100, 25) == (60 / 125, 85 / 125)
    assert srm.win_rate_bounds(0, 0, 0) is None
    assert srm.worst_case_win_rate(60, 100, control_failed=10, treatment_failed=30) == pytest.approx(70 / 140)
    assert srm.losses(30, 2).lopsided and not srm.losses(12, 8).lopsided and not srm.losses(0, 0).lopsided
    assert srm.too_much_shed(6, 100) and not srm.too_much_shed(5, 100) and not srm.too_much_shed(0, 0)


def test_an_estimate_never_carries_a_nan() -> None:
    estimate = Estimate(point=float("nan"), ci_low=-math.inf, ci_high=np.float64(2.0))
    assert (estimate.point, estimate.ci_low, estimate.ci_high) == (None, None, 2.0)
    assert type(estimate.ci_high) is float
    assert arm_aggregate([], []).ratio is None
