"""Event rates of arms with different users: which interval at which counts, by hand, and what must always hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from event_cases import (
    ANYTIME,
    Requests,
    arm,
    critical,
    is_sound,
    leave_one_out,
    modes,
    traffic,
    width,
)
from hypothesis import given, settings
from scipy import stats as scipy_stats
from statsmodels.stats.proportion import confint_proportions_2indep

from evalpipe.stats.clusters import arm_aggregate, paired_aggregate
from evalpipe.stats.estimates import Estimate
from evalpipe.stats.event_rates import unpaired_events
from evalpipe.stats.sequential import Fixed, Multiplier


def test_separate_users_with_enough_events_take_the_normal_interval() -> None:
    control, treatment = arm(100, 5, list(range(10))), arm(120, 5, list(range(12)))
    estimate = unpaired_events(control, treatment, heaviness=(5, 5), multiplier=ANYTIME)
    v_c = leave_one_out(np.r_[np.ones(10), np.zeros(90)], np.full(100, 5.0))
    v_t = leave_one_out(np.r_[np.ones(12), np.zeros(108)], np.full(120, 5.0))
    reach = critical(220) * math.sqrt(v_c + v_t)
    assert estimate.method == "jackknife, anytime" and estimate.point == 0
    assert (estimate.ci_low, estimate.ci_high) == pytest.approx((-reach, reach))


@pytest.mark.parametrize(("n_users", "events", "method"), [(100, 10, "jackk"), (99, 10, "newco"), (100, 9, "newco")])
@pytest.mark.parametrize("counted", [True, False])
def test_separate_users_need_a_hundred_of_them_and_ten_events_in_each_arm(
    n_users: int, events: int, method: str, counted: bool
) -> None:
    large, small = arm(150, 4, list(range(15))), arm(n_users, 4, list(range(events)), counted=counted)
    for pair in ((large, small), (small, large)):
        estimate = unpaired_events(*pair, heaviness=(4, 4), multiplier=ANYTIME)
        assert estimate.method.startswith(method) and estimate.status == "ok"
        assert estimate.point == (pair[1].ratio or 0) - (pair[0].ratio or 0)


def test_few_events_take_newcombes_interval_at_each_arms_effective_size() -> None:
    """Control: 4 events of 4 users; treatment: 8 of one user out of 60, whose measured design effect counts."""
    control, treatment = arm(80, 10, [0, 1, 2, 3]), arm(60, 10, [0] * 8)
    v_t = leave_one_out(np.r_[8.0, np.zeros(59)], np.full(60, 10.0))
    p = 8 / 600
    d_c, d_t = 1 + 0.05 * 9, v_t / (p * (1 - p) / 600)
    assert d_t > 7
    estimate = unpaired_events(control, treatment, heaviness=(10, 10))
    n_c, n_t = 800 / d_c, 600 / d_t
    low, high = confint_proportions_2indep(p * n_t, n_t, 4 / 800 * n_c, n_c, method="newcomb")
    assert (estimate.ci_low, estimate.ci_high) == pytest.approx((low, high), abs=1e-6)
    assert estimate.method == "newcombe wilson / design effect, fixed"


def test_one_request_a_user_is_plain_newcombe() -> None:
    estimate = unpaired_events(arm(80, 1, [0, 1, 2]), arm(90, 1, list(range(6))))
    low, high = confint_proportions_2indep(6, 90, 3, 80, method="newcomb")
    assert (estimate.ci_low, estimate.ci_high) == pytest.approx((low, high), abs=1e-12)
    assert estimate.method == "newcombe wilson, fixed"


def test_no_event_in_either_arm_still_has_an_interval() -> None:
    clean = arm(100, 1, [])
    for mode, c2 in ((Fixed(), 1.959964**2), (ANYTIME, critical(200) ** 2)):
        estimate = unpaired_events(clean, clean, multiplier=mode)
        assert (estimate.status, estimate.point, estimate.p_value) == ("ok", 0, 1)
        assert (estimate.ci_low, estimate.ci_high) == pytest.approx((-c2 / (100 + c2), c2 / (100 + c2)))


def test_an_incident_widens_the_interval_of_separate_users_in_both_arms() -> None:
    """Six failures of the treatment, of six users: in six hours or in one of twelve. Control has none."""
    control, treatment = arm(120, 5, []), arm(120, 5, list(range(6)))
    w = np.full(12, 50.0)

    def estimate(by_hour: list[int]) -> Estimate:
        s = np.bincount(by_hour, minlength=12).astype(float)
        return unpaired_events(
            control, treatment, times=[paired_aggregate(s, w, 0 * s, w)], heaviness=(5, 5), multiplier=ANYTIME
        )

    spread, incident = estimate([0, 2, 4, 6, 8, 10]), estimate([3] * 6)
    v = leave_one_out(np.r_[6.0, np.zeros(11)], w)
    design, p, c = v / (0.01 * 0.99 / 600), 6 / 600, critical(240)
    n = 600 / design
    wilson_t = (
        (p + c * c / (2 * n)) / (1 + c * c / n),
        c / (1 + c * c / n) * math.sqrt(p * (1 - p) / n + c * c / (4 * n * n)),
    )
    up, down = wilson_t[0] + wilson_t[1], wilson_t[0] - wilson_t[1]
    assert incident.ci_low == pytest.approx(p - math.hypot(p - down, c * c / (n + c * c)))
    assert incident.ci_high == pytest.approx(p + (up - p))
    assert width(incident) > 2 * width(spread)


def test_the_hours_variance_and_skewness_enter_the_normal_interval_of_separate_users() -> None:
    control, treatment = arm(200, 5, list(range(20))), arm(200, 5, list(range(20)))
    w, alternating = np.full(50, 20.0), np.tile([2.0, 0.0], 20)
    s_t, s_c = np.r_[alternating, np.zeros(10)], np.r_[alternating[::-1], np.zeros(10)]
    even = unpaired_events(
        control, treatment, times=[paired_aggregate(s_t, w, s_c, w)], heaviness=(5, 5), multiplier=ANYTIME
    )
    kept = [(20.0 - a - 20.0 + b) / 980 for a, b in zip(s_t, s_c, strict=True)]
    v = 49 / 50 * float(np.sum((np.array(kept)) ** 2))
    assert v > 1.9 * (control.spread.v_jack + treatment.spread.v_jack)  # type: ignore[union-attr, operator]
    assert even.standard_error == pytest.approx(math.sqrt(v)) and even.df == pytest.approx(49)
    lump = np.r_[20.0, np.zeros(49)]
    uneven = unpaired_events(
        control, treatment, times=[paired_aggregate(lump, w, s_c, w)], heaviness=(5, 5), multiplier=ANYTIME
    )
    assert uneven.method.startswith("newcombe")


def test_one_fixed_look_at_separate_users_is_welchs() -> None:
    rng = np.random.default_rng(3)
    c, t = (rng.random(300) < 0.08).astype(float), (rng.random(240) < 0.15).astype(float)
    arms = [arm_aggregate(x, np.ones(len(x)), n_events=int(x.sum())) for x in (c, t)]
    expected = scipy_stats.ttest_ind(t, c, equal_var=False)
    interval = expected.confidence_interval(0.95)
    estimate = unpaired_events(*arms)
    assert (estimate.ci_low, estimate.ci_high) == pytest.approx((interval.low, interval.high))
    assert estimate.p_value == pytest.approx(expected.pvalue)


def test_separate_users_too_few_of_them() -> None:
    many, nobody = arm(50, 3, [0, 1]), arm_aggregate([], [])
    assert unpaired_events(nobody, nobody).status == "no_data"
    assert unpaired_events(many, nobody).status == "missing_arm"
    assert unpaired_events(many, arm(1, 30, [0])).status == "one_cluster"
    four = unpaired_events(many, arm(4, 3, [0]))
    assert four.status == "too_few_clusters" and four.ci_low is not None


@settings(max_examples=80, deadline=None)
@given(traffic(), modes)
def test_separate_users_point_lies_inside_and_the_p_value_agrees(seen: Requests, mode: Multiplier) -> None:
    """The same traffic, dealt to the arms by user."""
    side = seen.user % 2
    arms, heavy = [], []
    for k, failed in ((0, seen.failed_c), (1, seen.failed_t)):
        w = np.bincount(seen.user[side == k])
        arms.append(arm_aggregate(np.bincount(seen.user[side == k], failed[side == k]), w))
        heavy.append(float((w**2).sum() / w.sum()) if len(w) else 1.0)
    hours = [np.bincount(seen.hour[side == k], minlength=seen.hour.max() + 1) for k in (1, 0)]
    failed = [
        np.bincount(seen.hour[side == k], f[side == k], minlength=seen.hour.max() + 1)
        for k, f in ((1, seen.failed_t), (0, seen.failed_c))
    ]
    times = [paired_aggregate(failed[0], hours[0], failed[1], hours[1])]
    estimate = unpaired_events(arms[0], arms[1], times=times, heaviness=(heavy[0], heavy[1]), multiplier=mode)
    if arms[0].n and arms[1].n:
        assert estimate.point == (arms[1].ratio or 0) - (arms[0].ratio or 0)
        is_sound(estimate, 0.05)
    else:
        assert estimate.status == "missing_arm"
