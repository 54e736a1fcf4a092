"""Ways of looking: multipliers, spending, e-processes."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import duckdb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from evalpipe.analysis.checks.traffic import sample_ratio
from evalpipe.stats import betting, event_rates, sequential, srm
from evalpipe.stats.group_sequential import Scheduled, critical_values
from evalpipe.stats.sequential import Anytime, Fixed

levels = st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0])
count = st.integers(0, 60)


def test_the_published_constants() -> None:
    for alpha, r in ((0.05, 8.212), (0.025, 9.753), (0.01, 11.756), (0.005, 13.254)):
        assert sequential.optimal_r(alpha) == pytest.approx(r, abs=5e-4)
    mode = Anytime(n_star=400)
    assert [round(mode.critical(0.05, n=n), 3) for n in (400, 100, 1600)] == [3.035, 3.251, 3.131]
    assert mode.critical(0.05, n=0) == math.inf
    assert Fixed().critical(0.05) == pytest.approx(1.959964, abs=1e-6)
    assert Fixed().critical(0.05, df=4) == pytest.approx(2.776445, abs=1e-6)


@given(st.floats(0, 12), st.floats(1, 1e7))
def test_anytime_p_value_agrees_with_the_interval(z: float, n: float) -> None:
    mode = Anytime(n_star=1000)
    c, p = mode.critical(0.05, n=n), mode.p_value(z, n=n)
    if abs(z - c) > 1e-9:
        assert (p < 0.05) == (z > c)


@given(st.floats(0.001, 0.2), st.floats(0.001, 0.2), st.floats(1, 1e6))
def test_a_smaller_alpha_never_narrows(a: float, b: float, n: float) -> None:
    small, large = min(a, b), max(a, b)
    for mode in (Anytime(n_star=500), Fixed()):
        assert mode.critical(small, n=n) >= mode.critical(large, n=n) - 1e-12


def test_the_information_clock() -> None:
    clock = Anytime(n_star=1000, information_star=400.0)
    assert clock.critical(0.05, n=7, standard_error=0.05) == pytest.approx(3.035, abs=1e-3)  # 1/se² = 400 = planned


@pytest.mark.parametrize("spending", ["obrien_fleming", "pocock"])
def test_group_sequential_spends_exactly_alpha(spending: str) -> None:
    """Simulated: 200,000 Brownian paths cross one of five boundaries in 5 % ± 3 Monte-Carlo standard errors."""
    fractions = (0.2, 0.45, 0.6, 0.8, 1.0)
    rng = np.random.default_rng(4)
    steps = np.diff((0.0, *fractions))
    paths = np.cumsum(rng.normal(size=(200_000, 5)) * np.sqrt(steps), axis=1)
    crossed = (np.abs(paths) / np.sqrt(fractions) >= critical_values(fractions, 0.05, spending)).any(axis=1)
    assert crossed.mean() == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 200_000))


def test_scheduled_p_value_agrees_with_the_boundary() -> None:
    mode = Scheduled(fractions=(0.3, 0.6))
    for alpha in (0.2, 0.05, 0.004):
        assert mode.p_value(mode.critical(alpha)) == pytest.approx(alpha, rel=0.02)
    assert mode.p_value(0.1) == 1.0
    with pytest.raises(ValueError, match="rise strictly"):
        Scheduled(fractions=(0.5, 0.5))


@given(st.lists(levels, min_size=1, max_size=60))
def test_betting_limits_hold_the_mean_and_mirror(x: list[float]) -> None:
    bets = betting.tuned_bets(250)
    ones = [1] * len(x)
    low, high = betting.limits(x, ones, bets)
    mean = float(np.mean(x))
    assert 0 <= low <= mean + 1e-12 and mean - 1e-12 <= high <= 1 and low < high
    mirrored = betting.limits([1 - v for v in x], ones, bets)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)
    values, counts = np.unique(x, return_counts=True)
    assert betting.limits(values, counts, bets) == pytest.approx((low, high), abs=1e-9)
    wider = betting.limits(values, counts, bets, alpha=0.01)
    assert wider[0] <= low + 1e-12 and wider[1] >= high - 1e-12


@settings(max_examples=40)
@given(st.lists(levels, max_size=80))
def test_betting_limits_and_wealth_say_the_same(x: list[float]) -> None:
    bets = betting.tuned_bets(30)
    values, counts = np.unique(x, return_counts=True)
    low, high = betting.limits(values, counts, bets)
    for m in (0.3, 0.5, 0.7):
        up, down = betting.log_wealth(values, counts, m, bets)
        needed = math.log(2 / 0.05)
        assert (up >= needed) == (low >= m) or abs(up - needed) < 1e-6
        assert (down >= needed) == (high <= m) or abs(down - needed) < 1e-6


def test_nothing_seen_says_nothing() -> None:
    bets = betting.tuned_bets(100)
    assert betting.limits([], [], bets) == (0.0, 1.0)
    assert betting.log_wealth([], [], 0.5, bets) == (0.0, 0.0)
    assert betting.bounded_mean([], [], bets).status == "no_data"
    assert event_rates.rate_ratio([]).status == "too_few_events"
    assert srm.chi_square([0, 0], [1, 1]) is None
    assert srm.log_e([0, 0], [1, 9]) == 0


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_conditional_e_values_are_martingales(share: float) -> None:
    for x, y in itertools.product((0, 1, 5, 30), repeat=2):
        for log_e in (event_rates.log_e, event_rates.log_alarm):

            def e(t: int, c: int, log_e=log_e) -> float:
                return math.exp(log_e([event_rates.Stage(treatment_events=t, control_events=c, share=share)]))

            assert share * e(x + 1, y) + (1 - share) * e(x, y + 1) == pytest.approx(e(x, y))


@settings(max_examples=60)
@given(st.lists(st.tuples(count, count, st.sampled_from([0.01, 0.1, 0.5])), min_size=1, max_size=3))
def test_rate_ratio_mirrors_and_agrees_with_its_e_value(rows: list[tuple[int, int, float]]) -> None:
    stages = [event_rates.Stage(treatment_events=x, control_events=y, share=s) for x, y, s in rows]
    mirrored = [event_rates.Stage(treatment_events=y, control_events=x, share=1 - s) for x, y, s in rows]
    estimate, inverse = event_rates.rate_ratio(stages), event_rates.rate_ratio(mirrored)
    if estimate.status != "ok":
        assert sum(x + y for x, y, _ in rows) == 0 or (estimate.ci_low is None and len(rows) > 1)
        return
    assert event_rates.log_e(stages) == pytest.approx(event_rates.log_e(mirrored), abs=1e-9)
    if estimate.ci_high is not None and inverse.ci_low is not None and inverse.ci_low > -1:
        assert (1 + estimate.ci_high) * (1 + inverse.ci_low) == pytest.approx(1, rel=1e-6)
    excluded = (estimate.ci_low or -1) > 0 or (estimate.ci_high is not None and estimate.ci_high < 0)
    assert (
        excluded == (event_rates.log_e(stages) > math.log(20)) or abs(event_rates.log_e(stages) - math.log(20)) < 1e-6
    )
    if estimate.point is not None and estimate.ci_low is not None:
        assert estimate.ci_low <= estimate.point <= (estimate.ci_high or math.inf)


def test_one_stage_ratio_is_the_ratio_of_the_rates() -> None:
    stage = event_rates.Stage(treatment_events=20, control_events=60, share=0.25)
    assert event_rates.rate_ratio([stage]).point == pytest.approx((20 / 0.25) / (60 / 0.75) - 1)


@given(st.integers(1, 400), st.floats(0.001, 0.5), st.sampled_from([0.1, 0.5, 0.9]))
def test_betting_splits_alpha_over_its_two_sides(n: int, alpha: float, stake: float) -> None:
    """n ones and one bet: E+(m) = (1 + c(1 - m)/m)^n, which reaches 2/alpha at m = c/(c - 1 + (2/alpha)^(1/n))."""
    low, high = betting.limits([1.0], [n], betting.Bets((stake,)), alpha=alpha)
    assert low == pytest.approx(stake / (stake - 1 + (2 / alpha) ** (1 / n)), abs=1e-9)
    assert high == 1
    estimate = betting.bounded_mean([1.0], [n], betting.Bets((stake,)), alpha=alpha)
    assert estimate.p_value == pytest.approx(min(1.0, 2 / (1 + stake) ** n))


def test_srm_finds_a_broken_split_and_not_a_fair_one() -> None:
    fair, broken = [10_050, 9_950], [10_600, 9_400]
    assert srm.log_e(fair, [1, 1]) < 0 < math.log(srm.ALARM_E) < srm.log_e(broken, [50, 50])
    assert (srm.chi_square(broken, [1, 1]) or (0, 1))[1] < srm.ALARM_P < (srm.chi_square(fair, [1, 1]) or (0, 0))[1]
    assert srm.log_e([9_000, 1_000], [90, 10]) == pytest.approx(srm.log_e([1_000, 9_000], [10, 90]))


def test_the_traffic_is_called_invalid_at_an_e_value_of_100() -> None:
    """The smallest imbalance of 20,000 users whose e-value, by scipy's distributions, is at least 100; one user less is not."""
    n, prior = 20_000, np.array([500.0, 500.0])

    def log_e(treated: int) -> float:
        counts = np.array([treated, n - treated])
        seen = scipy_stats.dirichlet_multinomial(prior, n).logpmf(counts)
        return float(seen - scipy_stats.multinomial(n, [0.5, 0.5]).logpmf(counts))

    first = next(k for k in range(n // 2, n) if log_e(k) >= math.log(100))
    assert srm.ALARM_E == 100 and srm.ALARM_P == 0.001
    assert srm.log_e([first, n - first], [1, 1]) == pytest.approx(log_e(first), abs=1e-6)
    assert [_sample_ratio_status(k, n - k, "anytime") for k in (first - 1, first)] == ["pass", "fail"]
    # one look: chi-square's p below .001, so |treated − 10,000| above 3.2905·sqrt(20,000)/2
    edge = n // 2 + math.ceil(3.2905 * math.sqrt(n) / 2)
    assert [_sample_ratio_status(k, n - k, "fixed") for k in (edge - 1, edge)] == ["pass", "fail"]


def _sample_ratio_status(treated: int, kept: int, mode: str) -> str:
    """Of the check in the report, for one stage of so many users in either arm at a planned 50 %."""
    connection = duckdb.connect()
    connection.execute(
        f"CREATE TABLE ev_rows AS SELECT range AS u, range < {treated} AS treatment, 50::FLOAT AS stage "
        f"FROM range({treated + kept})"
    )
    evidence = SimpleNamespace(
        connection=connection,
        prepared=SimpleNamespace(paired=False),
        settings=SimpleNamespace(treatment_percent=50.0),
        look_plan=SimpleNamespace(mode=mode),
    )
    found = sample_ratio(evidence)  # type: ignore[arg-type]
    assert found is not None
    return found.status
