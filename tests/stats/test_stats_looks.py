"""Ways of looking: multipliers, spending, e-processes, the stop rule."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalpipe.stats import betting, conditional, discordant, sequential, srm
from evalpipe.stats.group_sequential import Scheduled, critical_values
from evalpipe.stats.multiplier import Anytime, Fixed
from evalpipe.stats.stopping import Evidence, StopRule, first_stop, look, look_in_order

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
    assert discordant.log_e(0, 0) == 0
    assert conditional.rate_ratio([]).status == "too_few_events"
    assert srm.chi_square([0, 0], [1, 1]) is None
    assert srm.log_e([0, 0], [1, 9]) == 0


@given(count, count)
def test_discordant_pairs_mirror(b: int, c: int) -> None:
    assert discordant.log_e(b, c) == pytest.approx(discordant.log_e(c, b), abs=1e-9)
    low, high = discordant.share_limits(b, c)
    assert 0 <= low < high <= 1
    assert discordant.share_limits(c, b) == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_discordant_e_value_is_a_martingale() -> None:
    """Under p = ½ the expected E after one more event is the present E, wherever one stands: Ville's condition."""
    for b, c in itertools.product(range(6), repeat=2):
        now = math.exp(discordant.log_e(b, c))
        after = (math.exp(discordant.log_e(b + 1, c)) + math.exp(discordant.log_e(b, c + 1))) / 2
        assert after == pytest.approx(now)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_conditional_e_values_are_martingales(share: float) -> None:
    for x, y in itertools.product((0, 1, 5, 30), repeat=2):
        for log_e in (conditional.log_e, conditional.log_alarm):

            def e(t: int, c: int, log_e=log_e) -> float:
                return math.exp(log_e([conditional.Stage(treatment_events=t, control_events=c, share=share)]))

            assert share * e(x + 1, y) + (1 - share) * e(x, y + 1) == pytest.approx(e(x, y))


@settings(max_examples=60)
@given(st.lists(st.tuples(count, count, st.sampled_from([0.01, 0.1, 0.5])), min_size=1, max_size=3))
def test_rate_ratio_mirrors_and_agrees_with_its_e_value(rows: list[tuple[int, int, float]]) -> None:
    stages = [conditional.Stage(treatment_events=x, control_events=y, share=s) for x, y, s in rows]
    mirrored = [conditional.Stage(treatment_events=y, control_events=x, share=1 - s) for x, y, s in rows]
    estimate, inverse = conditional.rate_ratio(stages), conditional.rate_ratio(mirrored)
    if estimate.status != "ok":
        assert sum(x + y for x, y, _ in rows) == 0 or (estimate.ci_low is None and len(rows) > 1)
        return
    assert conditional.log_e(stages) == pytest.approx(conditional.log_e(mirrored), abs=1e-9)
    if estimate.ci_high is not None and inverse.ci_low is not None and inverse.ci_low > -1:
        assert (1 + estimate.ci_high) * (1 + inverse.ci_low) == pytest.approx(1, rel=1e-6)
    excluded = (estimate.ci_low or -1) > 0 or (estimate.ci_high is not None and estimate.ci_high < 0)
    assert (
        excluded == (conditional.log_e(stages) > math.log(20)) or abs(conditional.log_e(stages) - math.log(20)) < 1e-6
    )
    if estimate.point is not None and estimate.ci_low is not None:
        assert estimate.ci_low <= estimate.point <= (estimate.ci_high or math.inf)


def test_one_stage_ratio_is_the_ratio_of_the_rates() -> None:
    stage = conditional.Stage(treatment_events=20, control_events=60, share=0.25)
    assert conditional.rate_ratio([stage]).point == pytest.approx((20 / 0.25) / (60 / 0.75) - 1)


RULE = StopRule(bets=betting.tuned_bets(40), margin=0.1)


@settings(max_examples=60)
@given(st.lists(levels, max_size=120), st.integers(1, 10))
def test_stop_rule_path_and_single_looks_agree(x: list[float], every: int) -> None:
    n, conclusion = first_stop(RULE, x, every=every)
    for seen in range(every, len(x) + 1, every):
        evidence = look_in_order(RULE, x[:seen])
        assert evidence.is_decided(RULE) == (conclusion != "inconclusive" and seen >= n)
        if seen == n and conclusion != "inconclusive":
            assert evidence.conclusion(RULE) == conclusion
            break


@settings(max_examples=40)
@given(st.lists(levels, min_size=1, max_size=80))
def test_limits_in_order_agree_with_the_stop_rule(x: list[float]) -> None:
    """What look_in_order has proven is what the tightest limits so far show, and they are never wider than today's."""
    evidence = look_in_order(RULE, x)
    low, high = betting.limits_in_order(x, RULE.bets)
    now = betting.limits(x, [1] * len(x), RULE.bets)
    assert (low >= now[0] - 1e-9 and high <= now[1] + 1e-9) or (low, high) == now
    if (low, high) != now:
        needed = math.log(2 / RULE.alpha)
        assert (evidence.better >= needed) == (low >= 0.5) or abs(evidence.better - needed) < 1e-6
        assert (evidence.non_superior >= needed) == (high <= 0.6) or abs(evidence.non_superior - needed) < 1e-6


@pytest.mark.parametrize(
    ("x", "conclusion"),
    [([1.0] * 60, "better"), ([0.0] * 60, "worse"), ([0.5] * 400, "equivalent"), ([1.0, 0.0] * 5, "inconclusive")],
)
def test_stop_rule_conclusions(x: list[float], conclusion: str) -> None:
    values, counts = np.unique(x, return_counts=True)
    assert look(RULE, values, counts).conclusion(RULE) == conclusion
    assert first_stop(RULE, x)[1] == conclusion


def test_what_was_once_reached_stays_reached() -> None:
    reached = look(RULE, [1.0], [60])
    later = look(RULE, [0.0, 1.0], [60, 60], previous=reached)
    assert later.conclusion(RULE) == "better" and later.n == 120
    assert Evidence().conclusion(RULE) == "inconclusive"


def test_srm_finds_a_broken_split_and_not_a_fair_one() -> None:
    fair, broken = [10_050, 9_950], [10_600, 9_400]
    assert srm.log_e(fair, [1, 1]) < 0 < math.log(srm.ALARM_E) < srm.log_e(broken, [50, 50])
    assert (srm.chi_square(broken, [1, 1]) or (0, 1))[1] < srm.ALARM_P < (srm.chi_square(fair, [1, 1]) or (0, 0))[1]
    assert srm.log_e([9_000, 1_000], [90, 10]) == pytest.approx(srm.log_e([1_000, 9_000], [10, 90]))
