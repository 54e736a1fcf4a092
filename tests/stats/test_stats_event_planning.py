"""Units until a difference of event rates excludes a line: against score formulas, statsmodels and what was simulated."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, special
from statsmodels.stats import proportion

from evalpipe.stats import betting
from evalpipe.stats.group_sequential import critical_values
from evalpipe.stats.planning import Looks, PairedRates, UnpairedRates, Way, paired_rates, unpaired_rates, with_power
from evalpipe.stats.proportions import newcombe_limits, tango_limits
from evalpipe.stats.sequential import Anytime

FIXED = Looks(way="fixed")
ANYTIME = Looks(way="anytime", n_star=1000)


def critical(n: float, n_star: float, alpha: float = 0.05) -> float:
    """The normal-mixture boundary of docs/statistics.md#looks, with r* solved for numerically."""
    best = optimize.minimize_scalar(
        lambda r: (r + 1) / r * (0.5 * math.log(r + 1) - math.log(alpha)), bounds=(1, 50), method="bounded"
    ).x
    r = best * n / n_star
    return math.sqrt(2 * (r + 1) / r * (0.5 * math.log(r + 1) - math.log(alpha)))


@given(st.floats(0.001, 0.2), st.sampled_from(["fixed", "anytime", "scheduled"]), st.sampled_from([0.25, 1.0, 7.0]))
def test_without_an_event_tangos_limit_meets_the_margin(margin: float, way: Way, per_unit: float) -> None:
    looks = Looks(way=way, n_star=500, n_looks=3)
    n = PairedRates(discordant=0.0, per_unit=per_unit, one_each=False).needed(0.0, -margin, looks)
    c = {
        "fixed": 1.959964,
        "anytime": Anytime(n_star=500).critical(0.05, n=n),
        "scheduled": critical_values((1 / 3, 2 / 3, 1.0), 0.05)[-1],
    }[way]
    assert tango_limits(0, 0, n * per_unit, c)[0] == pytest.approx(-margin, rel=1e-5)


@pytest.mark.parametrize("looks", [FIXED, ANYTIME])
def test_without_an_event_the_score_interval_needs_its_square_times_the_odds(looks: Looks) -> None:
    """Tango's limits at no discordant pair are ±c²/(n + c²)."""
    n = PairedRates(discordant=0.0, per_unit=2.0, one_each=False).needed(0.0, -0.005, looks)
    c = 1.959964 if looks.way == "fixed" else critical(n, 1000)
    assert 2 * n == pytest.approx(c**2 * 0.995 / 0.005, rel=1e-4)


def test_many_events_need_what_the_normal_interval_needs() -> None:
    n = PairedRates(discordant=0.2, per_unit=4.0, one_each=False).needed(0.01, -0.02, ANYTIME)
    sd = math.sqrt((0.2 - 0.01**2) / 4)
    assert n == pytest.approx((critical(n, 1000) * sd / 0.03) ** 2, rel=1e-4)


@pytest.mark.parametrize(
    ("control", "treatment", "shared", "simulated"),
    [
        (0.0005, 0.0005, 0.0, 986),
        (0.002, 0.002, 0.0, 2071),
        (0.005, 0.005, 0.0, 4508),
        (0.01, 0.01, 0.0, 7321),
        (0.03, 0.03, 0.0, 30742),
        (0.01, 0.01, 0.7, 2756),
        (0.01, 0.012, 0.0, 23421),
        (0.01, 0.008, 0.0, 3655),
    ],
)
def test_half_of_simulated_experiments_were_through_by_then(
    control: float, treatment: float, shared: float, simulated: int
) -> None:
    """Medians of an independent simulation of the betting interval: margin half a point, one pair a user, looks every 7 %."""
    both = control * shared
    rates = PairedRates(discordant=control + treatment - 2 * both)
    found = ANYTIME.in_half(rates.needed(control - treatment, -0.005, ANYTIME))
    assert found == pytest.approx(simulated, rel=0.25)


def test_the_fixed_sample_has_its_power() -> None:
    """Tango's test at 1.96 on pairs of which 1 % fail in either arm: 80 % of simulated experiments show "not worse"."""
    rates = PairedRates(discordant=0.02)
    n = math.ceil(with_power(rates.needed(0.0, -0.005, FIXED), rates.sd, 0.005))
    rng = np.random.default_rng(3)
    b, c, _ = rng.multinomial(n, [0.01, 0.01, 0.98], size=20_000).T.astype(float)
    delta = -0.005
    q_b = -b - c + (2 * n - b + c) * delta
    q = (np.sqrt(q_b**2 + 8 * n * c * delta * (1 - delta)) - q_b) / (4 * n)
    with np.errstate(invalid="ignore"):
        statistic = (b - c - n * delta) / np.sqrt(n * (2 * q + delta * (1 - delta)))
    assert float(np.mean(statistic >= 1.959964)) == pytest.approx(0.8, abs=0.015)


def test_the_fixed_sample_of_two_arms_has_its_power() -> None:
    """5 % of events in both arms, not worse by 3 points, by statsmodels' Newcombe intervals of simulated arms."""
    rates = UnpairedRates(control=0.05)
    n = round(with_power(rates.needed(0.0, -0.03, FIXED), rates.sd, 0.03) / 2)
    assert n == pytest.approx((1.959964 + 0.841621) ** 2 * 2 * 0.05 * 0.95 / 0.03**2, rel=0.06)  # the normal formula
    counts = np.random.default_rng(4).binomial(n, 0.05, size=(2, 4000))
    _, high = proportion.confint_proportions_2indep(counts[0], n, counts[1], n, method="newcomb", compare="diff")
    assert float(np.mean(np.asarray(high) < 0.03)) == pytest.approx(0.8, abs=0.025)


@pytest.mark.parametrize("share", [0.5, 0.1])
def test_two_arms_at_any_time(share: float) -> None:
    """Two of a hundred fail: there are events enough for the normal interval in a tenth of the traffic as well."""
    n = UnpairedRates(control=0.02, share=share, per_unit=3.0).needed(0.0, -0.005, Looks(way="anytime", n_star=5000))
    sd = math.sqrt(0.02 * 0.98 * (1 / share + 1 / (1 - share)) / 3)
    assert n == pytest.approx((critical(n, 5000) * sd / 0.005) ** 2, rel=1e-3)


def test_lines_on_the_other_side_and_on_the_estimate() -> None:
    rates = PairedRates(discordant=0.02, one_each=False)
    assert rates.needed(-0.01, -0.005, ANYTIME) == pytest.approx(rates.needed(0.01, 0.005, ANYTIME))
    assert rates.needed(0.0, 0.0, ANYTIME) == math.inf
    apart = UnpairedRates(control=0.02)
    assert apart.needed(0.005, 0.005, ANYTIME) == math.inf
    assert apart.needed(-0.015, -0.005, ANYTIME) < apart.needed(-0.01, -0.005, ANYTIME)


@pytest.mark.parametrize(("b", "c", "both"), [(6, 4, 2), (40, 30, 0), (1, 0, 5)])
def test_the_share_of_discordant_pairs_is_read_off_the_interval(b: int, c: int, both: int) -> None:
    n = 5000
    low, high = tango_limits(b, c, n, 3.0)
    most = (b + c + 2 * both) / n
    for edge in (low, high):
        found = paired_rates(point=(b - c) / n, edge=edge, n=n, n_units=1000, most_discordant=most, c=3.0)
        assert found.discordant == pytest.approx((b + c) / n, rel=1e-4)
        assert (found.per_unit, found.one_each) == (pytest.approx(5.0, rel=1e-3), False)


def test_a_design_effect_is_read_off_the_interval() -> None:
    low, _ = tango_limits(0, 0, 2000 / 4, 3.0)
    found = paired_rates(point=0.0, edge=low, n=2000, n_units=500, most_discordant=0.0, c=3.0)
    assert found.per_unit == pytest.approx(2000 / 500 / 4)
    high = newcombe_limits(20 / 4, 1000 / 4, 15 / 4, 3000 / 4, 2.5)[1]
    apart = unpaired_rates(
        control=0.02, treatment=0.005, edge=-high, n_control=1000, n_treatment=3000, n_units=800, c=2.5
    )
    assert (apart.per_unit, apart.share) == (pytest.approx(4000 / 800 / 4, rel=1e-6), 0.75)


def test_the_share_behind_a_betting_interval() -> None:
    stakes = betting.tuned_bets(1000, sigma2=0.005)
    low, _ = betting.limits([0.0, 0.5, 1.0], [12, 1980, 8], stakes)
    found = paired_rates(
        point=-4 / 2000, edge=2 * low - 1, n=2000, n_units=2000, most_discordant=24 / 2000, c=3.0, stakes=stakes
    )
    assert found.discordant == pytest.approx(20 / 2000, rel=1e-4)
    assert found.one_each
    assert found.sd == pytest.approx(math.sqrt(0.01), rel=1e-4)


def test_power_of_a_normal_interval() -> None:
    z = float(special.ndtri(0.9))
    assert with_power(1.959964**2 * 25, 0.5, 0.1, power=0.9) == pytest.approx(((1.959964 + z) * 5) ** 2)


def test_half_of_the_experiments_are_through_earlier_than_the_expected_values() -> None:
    """First passages of simulated sums over the boundary; the formula lies at most a tenth above, looks being so frequent."""
    rng = np.random.default_rng(8)
    effect, n_star = 0.05, 1000.0
    looks = Looks(way="anytime", n_star=n_star)
    expected = looks.needed(1.0, effect)
    at = np.arange(1, 301) * 50.0
    sums = np.cumsum(rng.normal(50 * effect, math.sqrt(50), size=(1500, len(at))), axis=1)
    bounds = np.array([critical(n, n_star) * math.sqrt(n) for n in at])
    first = np.where((sums > bounds).any(axis=1), at[(sums > bounds).argmax(axis=1)], np.inf)
    assert 1 <= looks.in_half(expected) / float(np.median(first)) < 1.12
    assert Looks(way="fixed").in_half(800.0) == 800.0


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("point", [-0.8, 0.8])
def test_a_difference_that_does_not_fit_controls_rate_is_forecast_all_the_same(sign: int, point: float) -> None:
    # over a canary's stages the difference is not that of the two pooled rates: 0.3 and 0.8 more or less leave [0, 1]
    rates = UnpairedRates(control=0.3, sign=sign)
    n = rates.needed(point, 0.005 if point > 0 else -0.005, Looks(way="anytime", n_star=5000))
    assert 0 < n < 5000
