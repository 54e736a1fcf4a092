"""Means and ratios over users: symmetries, a second implementation, and what happens when there is too little."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from evalpipe.stats import estimates
from evalpipe.stats.clusters import ArmAggregate, arm_aggregate, combine, paired_aggregate, stage_weights
from evalpipe.stats.estimates import Estimate
from evalpipe.stats.means import arm_interval, paired_difference, unpaired_difference
from evalpipe.stats.sequential import Anytime, Fixed

values = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 4))
positive = st.floats(0.01, 1e6).map(lambda x: round(x, 4))
sums = st.lists(st.tuples(values, st.integers(1, 9)), min_size=0, max_size=12)
positive_sums = st.lists(st.tuples(positive, st.integers(1, 9)), min_size=5, max_size=12)
NUMBERS = ("point", "ci_low", "ci_high", "standard_error", "df", "p_value")


def arm(rows: list[tuple[float, int]]) -> ArmAggregate:
    return arm_aggregate([s for s, _ in rows], [w for _, w in rows])


def sound(estimate: Estimate) -> None:
    """No NaN, no infinity, no interval of width nothing, the point inside."""
    for name in NUMBERS:
        value = getattr(estimate, name)
        assert value is None or math.isfinite(value)
    if estimate.ci_low is not None and estimate.ci_high is not None:
        assert estimate.point is not None
        assert estimate.ci_low <= estimate.point <= estimate.ci_high
        assert estimate.ci_low < estimate.ci_high
    if estimate.standard_error is not None:
        assert estimate.standard_error > 0


@given(sums, sums, st.sampled_from(["absolute", "relative"]), st.sampled_from([Fixed(), Anytime(n_star=10)]))
def test_unpaired_is_sound_whatever_comes(control: list, treatment: list, scale: str, mode: object) -> None:
    estimate = unpaired_difference(arm(control), arm(treatment), scale=scale, multiplier=mode)
    sound(estimate)
    if not control and not treatment:
        assert estimate.status == "no_data"
    elif not control or not treatment:
        assert estimate.status == "missing_arm"
    elif min(len(control), len(treatment)) == 1 and scale == "absolute":
        assert (estimate.status, estimate.ci_low) == ("one_cluster", None)


@given(positive_sums, positive_sums)
def test_unpaired_mirror_scale_and_order(control: list, treatment: list) -> None:
    forward = unpaired_difference(arm(control), arm(treatment))
    backward = unpaired_difference(arm(treatment), arm(control))
    assume(forward.status == "ok")
    size = max(abs(forward.point or 0), forward.standard_error or 0, arm(control).ratio or 0)
    assert forward.point == pytest.approx(-(backward.point or 0), abs=1e-9 * size)
    assert forward.ci_low == pytest.approx(-(backward.ci_high or 0), rel=1e-9, abs=1e-9 * size)
    thousand = unpaired_difference(*(arm([(1000 * s, w) for s, w in rows]) for rows in (control, treatment)))
    assert thousand.ci_high == pytest.approx(1000 * (forward.ci_high or 0), rel=1e-9, abs=1e-6 * size)
    shuffled = unpaired_difference(arm(control[::-1]), arm(treatment[::-1]))
    assert shuffled.ci_low == pytest.approx(forward.ci_low, rel=1e-9, abs=1e-9 * size)
    ratio = unpaired_difference(arm(control), arm(treatment), scale="relative")
    inverse = unpaired_difference(arm(treatment), arm(control), scale="relative")
    assume(ratio.ci_high is not None and inverse.ci_low is not None)
    assert (1 + ratio.ci_high) * (1 + inverse.ci_low) == pytest.approx(1, rel=1e-6)


paired_rows = st.lists(
    st.tuples(positive, st.integers(0, 5), positive, st.integers(0, 5)).map(
        lambda row: (row[0] * (row[1] > 0), row[1], row[2] * (row[3] > 0), row[3])
    ),
    max_size=14,
)


@given(paired_rows, st.sampled_from(["absolute", "relative"]), st.sampled_from([Fixed(), Anytime(n_star=10)]))
def test_paired_is_sound_and_mirrors(rows: list, scale: str, mode: object) -> None:
    st_, wt, sc, wc = (np.array([row[k] for row in rows], float) for k in range(4))
    forward = paired_difference(paired_aggregate(st_, wt, sc, wc), scale=scale, multiplier=mode)
    backward = paired_difference(paired_aggregate(sc, wc, st_, wt), scale=scale, multiplier=mode)
    sound(forward)
    assert forward.status == backward.status
    if scale == "absolute" and forward.ci_low is not None and backward.ci_high is not None:
        size = max(1.0, abs(forward.ci_low), abs(forward.ci_high or 0))
        assert forward.ci_low == pytest.approx(-backward.ci_high, abs=1e-8 * size)


@given(st.lists(st.tuples(values, values), min_size=5, max_size=30))
def test_one_request_per_user_is_the_paired_t_test(rows: list) -> None:
    t, c = (np.array([row[k] for row in rows]) for k in (0, 1))
    ones = np.ones(len(t))
    estimate = paired_difference(paired_aggregate(t, ones, c, ones))
    assume(estimate.status == "ok")
    expected = scipy_stats.ttest_rel(t, c)
    assert estimate.p_value == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
    low, high = expected.confidence_interval(0.95)
    size = max(abs(low), abs(high))
    assert estimate.ci_low == pytest.approx(low, rel=1e-8, abs=1e-8 * size)
    assert estimate.ci_high == pytest.approx(high, rel=1e-8, abs=1e-8 * size)


@settings(max_examples=30)
@given(positive_sums)
def test_the_jackknife_is_leaving_each_user_out(rows: list) -> None:
    s, w = (np.array([row[k] for row in rows], float) for k in (0, 1))
    left_out = np.array([(s.sum() - s[u]) / (w.sum() - w[u]) for u in range(len(s))])
    spread = arm(rows).spread
    assert spread is not None
    expected = (len(s) - 1) / len(s) * np.sum((left_out - s.sum() / w.sum()) ** 2)
    assert spread.v_jack == pytest.approx(expected, rel=1e-6, abs=1e-12 * float(np.mean(s)) ** 2)


def test_statuses_of_too_little() -> None:
    ones = np.ones(40)
    many = arm_aggregate(np.arange(40.0), ones)
    assert unpaired_difference(many, arm_aggregate([1, 2, 3, 4], [1, 1, 1, 1])).status == "too_few_clusters"
    assert unpaired_difference(many, arm_aggregate([8.0], [4])).status == "one_cluster"
    assert paired_difference(paired_aggregate([], [], [], [])).status == "no_data"
    assert paired_difference(paired_aggregate([1.0], [1], [2.0], [1])).status == "n_lt_2"
    assert paired_difference(paired_aggregate([3.0], [2], [2.0], [2])).status == "one_cluster"
    assert paired_difference(paired_aggregate([3.0, 0], [2, 0], [2.0, 3], [2, 3])).status == "one_cluster"
    constant = paired_difference(paired_aggregate(0.1 * ones, ones, 0.3 * ones, ones))
    assert (constant.status, constant.ci_low, constant.p_value) == ("zero_variance", None, None)
    assert constant.point == pytest.approx(-0.2)
    assert (
        paired_difference(paired_aggregate(0 * ones, ones, ones, ones), scale="relative").status == "relative_undefined"
    )


def test_one_user_with_half_the_traffic_is_heard_as_one_user() -> None:
    rng = np.random.default_rng(1)
    w = np.array([500.0] + [5.0] * 100)
    s = w * rng.normal(1, 0.1, 101)
    s[0] = 500 * 3.0
    estimate = arm_interval(arm_aggregate(s, w))
    assert estimate.ci_low is not None and estimate.ci_low < 1 < (estimate.point or 0)


def test_burn_in_gates_hold_an_early_conclusion() -> None:
    rng = np.random.default_rng(2)
    mode = Anytime(n_star=100)

    def look(d: np.ndarray, **kwargs: int) -> str:
        ones = np.ones(len(d))
        return paired_difference(paired_aggregate(d, ones, 0 * d, ones, **kwargs), multiplier=mode).status

    assert look(rng.normal(5, 1, 49)) == "burn_in"
    assert look(rng.normal(5, 1, 51)) == "ok"
    assert look(np.exp(1.5 * rng.normal(0, 1, 200))) == "burn_in"  # a few large values carry the mean
    assert look(-np.exp(1.5 * rng.normal(0, 1, 200))) == "burn_in"  # a tail to the left counts as much
    assert look(rng.normal(5, 1, 51), n_discordant=9) == "too_few_events"
    assert look(rng.normal(5, 1, 51), n_discordant=10) == "ok"


@pytest.mark.parametrize(
    ("n_units", "paired", "n_events", "skew", "status"),
    [
        (50, True, 10, 0.1, "ok"),
        (50, True, 10, -0.1, "ok"),
        (50, True, 10, 0.1001, "burn_in"),
        (50, True, 10, -0.1001, "burn_in"),
        (49, True, 10, 0.0, "burn_in"),
        (50, True, 9, 0.0, "too_few_events"),
        (100, False, 10, 0.0, "ok"),
        (99, False, 10, 0.0, "burn_in"),
        (100, False, 9, 0.0, "too_few_events"),
    ],
)
def test_gates_by_hand(n_units: int, paired: bool, n_events: int, skew: float, status: str) -> None:
    assert estimates.burn_in_status(n_units=n_units, paired=paired, n_events=n_events, skew=skew)[0] == status


def test_stages_weigh_by_size_and_one_stage_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    early = [arm_aggregate(rng.normal(1, 1, n), np.ones(n)) for n in (900, 100)]
    late = [arm_aggregate(rng.normal(3, 1, n), np.ones(n)) for n in (500, 500)]
    assert stage_weights([(900, 100), (500, 500), (10, 0)]) == pytest.approx([90 / 340, 250 / 340, 0])
    control, treatment = combine([(early[0], early[1])])
    alone = unpaired_difference(*early)
    assert unpaired_difference(control, treatment).ci_low == pytest.approx(alone.ci_low)
    # 10 % of early (low) traffic and 50 % of late (high) traffic: pooling would invent a difference, stages do not
    both = unpaired_difference(*combine([(early[0], early[1]), (late[0], late[1])]))
    pooled = (100 * 1 + 500 * 3) / 600 - (900 * 1 + 500 * 3) / 1400
    assert pooled > 0.9
    assert abs(both.point or 1) < 0.2


def test_degrees_of_freedom_are_satterthwaites_over_the_users_weights() -> None:
    """By the matrix itself: the covariance of the jackknife terms of rows that are all alike, df = tr(C)² / tr(C²)."""
    w = np.array([40.0, 1.0, 3.0, 12.0, 2.0, 7.0])
    g, total = len(w), w.sum()
    terms = (np.eye(g) - np.outer(w / total, np.ones(g))) / (total - w)[:, None]
    covariance = terms @ np.diag(w) @ terms.T
    expected = np.trace(covariance) ** 2 / np.trace(covariance @ covariance)
    s = np.arange(6.0)
    assert arm_interval(arm_aggregate(s, w)).df == pytest.approx(expected)
    assert paired_difference(paired_aggregate(s, w, s[::-1], w)).df == pytest.approx(expected)
    assert paired_difference(paired_aggregate(s, w, s[::-1], w, plain_df=True)).df == g - 1
    assert arm_interval(arm_aggregate(s, np.ones(6))).df == pytest.approx(g - 1)


@pytest.mark.parametrize("balanced", [True, False])
def test_of_more_users_than_are_summed_at_a_time_the_aggregate_is_that_of_the_formulas(balanced: bool) -> None:
    """The formulas of `Spread` and `PairedAggregate`, over whole arrays."""
    rng = np.random.default_rng(5)
    n = 40_001
    w_t = rng.poisson(1.5, n).astype(float)
    w_c = w_t if balanced else rng.poisson(1.5, n).astype(float)
    s_t, s_c = rng.gamma(2, 3, n) * w_t, rng.gamma(2, 3.1, n) * w_c
    s_t[:9] = w_t[:9] = w_c[:9] = 0
    s_t[:4] = s_c[3:6] = 2.5  # billed for failures only
    s_c[:3] = s_c[6:9] = 0
    found = paired_aggregate(s_t, w_t, s_c, w_c)
    g = int(((w_t > 0) | (w_c > 0) | (s_t > 0) | (s_c > 0)).sum())
    r_t, r_c = s_t.sum() / w_t.sum(), s_c.sum() / w_c.sum()
    e = (s_t - r_t * w_t) / w_t.sum() - (s_c - r_c * w_c) / w_c.sum()
    t_t, t_c = (s_t - r_t * w_t) / (w_t.sum() - w_t), (s_c - r_c * w_c) / (w_c.sum() - w_c)
    logs = np.log1p(-t_t / r_t) - np.log1p(-t_c / r_c)
    assert found.n_clusters == g
    assert (found.treatment.n_clusters, found.control.n_clusters) == (int((w_t > 0).sum()), int((w_c > 0).sum()))
    assert found.absolute is not None and found.relative is not None and found.treatment.spread is not None
    assert found.absolute.v_jack == pytest.approx((g - 1) / g * ((t_t - t_c) ** 2).sum(), rel=1e-11)
    assert found.absolute.v_lin == pytest.approx(g / (g - 1) * (e**2).sum(), rel=1e-11)
    assert found.absolute.m3sum == pytest.approx((e**3).sum(), rel=1e-7)
    assert found.relative.v_jack == pytest.approx((g - 1) / g * (logs**2).sum(), rel=1e-11)
    g_t = int(((w_t > 0) | (s_t > 0)).sum())
    assert found.treatment.spread.v_jack == pytest.approx((g_t - 1) / g_t * (t_t**2).sum(), rel=1e-11)
    q = w_t / (w_t.sum() - w_t)
    assert found.treatment.spread.df == pytest.approx(
        q.sum() ** 2 / ((q**2).sum() + (q**2).sum() ** 2 - (q**4).sum()), rel=1e-11
    )


def test_one_user_with_all_of_both_arms_and_another_with_failures_only_has_no_jackknife() -> None:
    found = paired_aggregate([1, 2], [5, 0], [3, 4], [3, 0])
    assert found.absolute is not None and found.treatment.spread is not None
    assert (found.absolute.v_jack, found.absolute.df, found.treatment.spread.v_jack) == (None, None, None)
    e = np.array([(1 - 3 / 5 * 5) / 5 - (3 - 7 / 3 * 3) / 3, 2 / 5 - 4 / 3])
    assert found.absolute.v_lin == pytest.approx(2 * (e**2).sum())


def test_sums_of_different_numbers_of_users_are_an_error() -> None:
    with pytest.raises(ValueError, match="16384, 20000"):
        arm_aggregate(np.ones(16_384), np.ones(20_000))


def test_a_few_seconds_of_generation_are_users_of_their_own() -> None:
    """ΣW is less than half a unit: as many users as there are."""
    found = paired_aggregate([30, 40, 20], [0.1, 0.2, 0.15], [33, 41, 22], [0.12, 0.2, 0.1], n_pairs=9)
    r_t, r_c = 90 / 0.45, 96 / 0.42
    w_t, w_c = np.array([0.1, 0.2, 0.15]), np.array([0.12, 0.2, 0.1])
    t_t = (np.array([30, 40, 20]) - r_t * w_t) / (0.45 - w_t)
    t_c = (np.array([33, 41, 22]) - r_c * w_c) / (0.42 - w_c)
    assert found.relative is not None
    assert found.relative.v_jack == pytest.approx(2 / 3 * ((np.log1p(-t_t / r_t) - np.log1p(-t_c / r_c)) ** 2).sum())


def test_a_ratio_beyond_the_digits_of_its_difference() -> None:
    """Control 1e18 times the treatment: their difference is control's value to the last digit, the ratio is not 0."""
    control, treatment = 1e18 * np.arange(1.0, 61), np.full(60, 0.25)
    found = paired_difference(paired_aggregate(treatment, np.ones(60), control, np.ones(60)), scale="relative")
    assert found.point == pytest.approx(0.25 / 30.5e18 - 1, abs=1e-15)
