"""Small seeded simulations with a bound on their Monte-Carlo error; the large ones are `make check-statistics`."""

from __future__ import annotations

import math

import numpy as np
import pytest

from evalpipe.stats import betting, event_rates, ppi, quantiles
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


def _labelled_pairs(rng: np.random.Generator, truth: float, bias: float, n_users: int) -> tuple[np.ndarray, ...]:
    """(users, people's, the judge's preferences) of one to three pairs a user; the judge is right in .8 of each order, then turns
    verdicts for control until its mean is `bias` above the truth."""
    users = np.repeat(np.arange(n_users), rng.integers(1, 4, n_users))
    people = (rng.random(len(users)) < rng.beta(8 * truth, 8 - 8 * truth, n_users)[users]).astype(float)
    plain = 0.2 + 0.6 * truth
    turned = (truth + bias - plain) / (1 - plain)
    orders = [np.where(rng.random(len(users)) < 0.8, people, 1 - people) for _ in range(2)]
    return users, people, sum(np.where(rng.random(len(users)) < turned, 1.0, one) for one in orders) / 2


@pytest.mark.parametrize("known", [False, True])
def test_a_mean_corrected_by_fifty_labels_covers_though_the_judge_is_biased(known: bool) -> None:
    rng = np.random.default_rng(30 + known)
    replications, hits, judged_hits = 400, 0, 0
    for _ in range(replications):
        users, people, judged = _labelled_pairs(rng, 0.55, 0.15, 200)
        probability = np.where(judged == 0.5, 1.4, 0.9) * 50 / len(users)
        drawn = rng.random(len(users)) < (probability if known else 50 / len(users))
        items = ppi.Items(f=judged, y=np.where(drawn, people, np.nan), probability=probability, users=users)
        if known:
            estimate = ppi.active_mean(items).estimate
        else:
            weight = 1 / np.bincount(users)[users]
            sums = [
                np.bincount(users, weights=weight * part)
                for part in (people * drawn, judged * drawn, drawn, judged * ~drawn, ~drawn)
            ]
            estimate = ppi.ppi_users(
                ppi.UserSums(**dict(zip(("y", "f", "n", "rest", "n_rest"), sums, strict=True)))
            ).estimate
        hits += (estimate.ci_low or 0) <= 0.55 <= (estimate.ci_high or 0)
        means = np.bincount(users, weights=judged) / np.bincount(users)
        judged_hits += abs(means.mean() - 0.55) <= 1.96 * means.std(ddof=1) / math.sqrt(200)
    assert within(hits / replications, 0.94, replications)
    assert judged_hits / replications < 0.05  # the judge alone, 15 points off


def test_a_corrected_mean_holds_at_every_look() -> None:
    rng = np.random.default_rng(32)
    replications, crossed, naive = 100, 0, 0
    for _ in range(replications):
        users, people, judged = _labelled_pairs(rng, 0.5, 0.08, 200)
        order = rng.permutation(len(users))
        wrong = {"any": False, "one": False}
        for n in range(60, 240, 20):
            drawn = np.isin(np.arange(len(users)), order[:n])
            probability = np.full(len(users), n / len(users))
            items = ppi.Items(f=judged, y=np.where(drawn, people, np.nan), probability=probability, users=users)
            for name, found in (("any", ppi.anytime_mean(items, refresh=20)), ("one", ppi.active_mean(items))):
                low, high = found.estimate.ci_low or 0, found.estimate.ci_high or 1
                wrong[name] |= found.estimate.status == "ok" and not low <= 0.5 <= high
        crossed, naive = crossed + wrong["any"], naive + wrong["one"]
    assert crossed / replications <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / replications)
    assert naive > crossed
