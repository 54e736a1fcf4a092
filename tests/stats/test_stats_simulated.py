"""Small seeded simulations with a bound on their Monte-Carlo error; the large ones are `make check-statistics`."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evalpipe.stats import betting, event_rates, quantiles
from evalpipe.stats.clusters import arm_aggregate
from evalpipe.stats.means import unpaired_difference


def within(share: float, level: float, replications: int) -> bool:
    """At least `level` minus three Monte-Carlo standard errors."""
    return share >= level - 3 * math.sqrt(level * (1 - level) / replications)


def test_jackknife_interval_covers_with_twenty_heavy_users() -> None:
    rng = np.random.default_rng(20)
    hits = naive = 0
    replications = 600
    for _ in range(replications):
        w = np.ceil(np.exp(rng.normal(1.5, 1.0, (2, 20))))
        s = w * rng.normal(0, 0.7, w.shape) + np.sqrt(w) * rng.normal(0, 1, w.shape)
        estimate = unpaired_difference(arm_aggregate(s[0], w[0]), arm_aggregate(s[1], w[1]))
        hits += (estimate.ci_low or 0) <= 0 <= (estimate.ci_high or 0)
        naive += abs(estimate.point or 0) <= 1.96 * math.sqrt(1.49 * (1 / w[0].sum() + 1 / w[1].sum()))
    assert within(hits / replications, 0.95, replications)
    assert naive / replications < 0.75  # rows taken as independent: what the users cost


def test_median_interval_covers_with_clusters() -> None:
    rng = np.random.default_rng(21)
    replications, hits = 300, 0
    users = np.repeat(np.arange(60), 10)
    c = quantiles.critical(60, 60, paired=True)
    for _ in range(replications):
        y = np.exp(np.repeat(rng.normal(0, 0.5, 60), 10) + rng.normal(0, 0.5, 600))
        limits = quantiles.arm_limits(y, users, 0.5, c)
        hits += (limits.low or 0) <= 1 <= (limits.high or math.inf)
    assert within(hits / replications, 0.95, replications)


def test_betting_interval_holds_at_every_look() -> None:
    rng = np.random.default_rng(22)
    x = rng.choice([0, 0.5, 1.0], p=[0.3, 0.4, 0.3], size=(400, 1500))
    up, down = betting.log_wealth_path(x, 0.5, betting.tuned_bets(300))
    crossed = (np.maximum(up, down) >= math.log(2 / 0.05)).any(axis=1).mean()
    assert crossed <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize("limit", [0.01, 0.2])
def test_threshold_e_value_is_a_martingale_at_its_limit(limit: float) -> None:
    for events, n in ((0, 0), (0, 40), (3, 40), (12, 50)):
        now = math.exp(event_rates.log_e_above(events, n, limit))
        hit = math.exp(event_rates.log_e_above(events + 1, n + 1, limit))
        miss = math.exp(event_rates.log_e_above(events, n + 1, limit))
        assert limit * hit + (1 - limit) * miss == pytest.approx(now)
    assert event_rates.lower_bound(0, 100, 0.05) == 0


def test_effective_events_are_at_most_the_events_seen() -> None:
    """rate·(1 − rate)/variance rows' worth, but never more than the rows: users more alike than chance add nothing."""
    assert event_rates.effective_events(10, 100, 50, 0.1 * 0.9 / 40) == pytest.approx((4, 40))
    assert event_rates.effective_events(10, 100, 50, 0.1 * 0.9 / 4000) == pytest.approx((10, 100))
    assert event_rates.effective_events(10, 100, 4, 0.1 * 0.9 / 4000) == pytest.approx((0.4, 4))  # 4 users: one each
