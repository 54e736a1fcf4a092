"""Pairwise verdicts in both orders: win rate, consistency, seat bias (statistics.md 7).

A verdict is 1 (treatment), ½ (tie), 0 (control), or a preference in between; s1 with the treatment shown first, s2 second.
A pair's preference is x = (s1+s2)/2, the win rate θ its mean; f = (s1+1−s2)/2 is how much the first seat got.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from evalpipe.stats import agreement, betting, gates
from evalpipe.stats.cluster import ArmAggregate, arm_aggregate
from evalpipe.stats.estimate import Estimate
from evalpipe.stats.multiplier import Fixed, Multiplier
from evalpipe.stats.proportion import wilson

NULL = 0.5
MAX_APART = 0.02
"""the mean over pairs and the mean over users may differ by this much without a remark"""
MIN_CONSISTENCY = 0.5
"""a judge whose consistency lies below this (its Wilson upper limit) decides nothing: unreliable_judge"""


def win_rate(
    users: ArmAggregate,
    *,
    values: npt.ArrayLike = (),
    counts: npt.ArrayLike = (),
    multiplier: Multiplier | None = None,
    alpha: float = 0.05,
    bets: betting.Bets | None = None,
    in_order: npt.ArrayLike | None = None,
) -> Estimate:
    """θ with its interval and the p-value of θ = ½.

    `users`: per user S = Σx and W = judged pairs. `values`, `counts`: the users' mean preferences and how many users have
    each (GROUP BY), needed under anytime and where nothing varies. Fixed and scheduled: the cluster engine; anytime: the
    betting e-process over users (exact; `bets` default to n_star 1000). All ties are fine: then too the betting interval.
    The point is always the mean over pairs; where users with many pairs differ from the others the betting interval, which
    is about the mean over users, is widened to hold it and the note says so. `in_order`: the users' means in the planned
    order of judging; the tightest limits after any of them then hold, as `stopping.look_in_order` has it.
    """
    mode = multiplier or Fixed()
    if users.ratio is None:
        return Estimate(point=None, confidence_level=1 - alpha, estimand="win rate", status="no_data")
    v = None if users.spread is None else users.spread.variance("jackknife")
    se = math.sqrt(v) if v is not None else None
    exact = len(np.asarray(values)) > 0
    varies = se is not None and se > 1e-13
    if exact and (mode.mode == "anytime" or not varies):
        stakes = bets or betting.tuned_bets(getattr(mode, "n_star", 1000), alpha=alpha)
        bet = betting.bounded_mean(values, counts, stakes, alpha=alpha, null=NULL, n=users.n)
        if in_order is not None and mode.mode == "anytime":
            limits = betting.limits_in_order(in_order, stakes, alpha=alpha)
            up, down = betting.log_wealth_path(in_order, NULL, stakes)
            top = max(0.0, float(up.max(initial=0)), float(down.max(initial=0)))
            bet = replace(bet, ci_low=limits[0], ci_high=limits[1], p_value=min(1.0, 2 * math.exp(-top)))
        return _over_users(users, bet, se if varies else None)
    status, note = gates.cluster_status(users.n_clusters)
    if se is None:
        status = "n_lt_2" if users.n == 1 else "one_cluster"
        return _estimate(users, alpha, mode.mode, status=status, note=note)
    if not varies:
        return _estimate(users, alpha, mode.mode, status="zero_variance", note="every verdict is the same")
    if mode.mode == "anytime" and status == "ok":
        m3 = None if users.spread is None else users.spread.m3sum
        status, note = gates.burn_in_status(
            n_units=users.n_clusters, paired=True, skew=None if m3 is None else m3 / se**3
        )
    df = _degrees(users)
    c = mode.critical(alpha, df=df, n=users.n_clusters, standard_error=se)
    p = mode.p_value((users.ratio - NULL) / se, df=df, n=users.n_clusters, standard_error=se)
    low, high = users.ratio - c * se, users.ratio + c * se
    return _estimate(users, alpha, mode.mode, se=se, low=low, high=high, p=p, status=status, note=note)


def _over_users(users: ArmAggregate, bet: Estimate, se: float | None) -> Estimate:
    point, low, high, note = users.ratio, bet.ci_low, bet.ci_high, None
    if point is not None and low is not None and high is not None and bet.point is not None:
        low, high = min(low, point), max(high, point)
        if abs(point - bet.point) > MAX_APART:
            note = f"users with many pairs differ: {point:.3f} over pairs, {bet.point:.3f} over users"
    return Estimate(
        point=point,
        ci_low=low,
        ci_high=high,
        confidence_level=bet.confidence_level,
        n=users.n,
        n_clusters=bet.n_clusters,
        standard_error=se,
        p_value=bet.p_value,
        method=bet.method,
        estimand="win rate; the interval is for the mean over users",
        note=note,
    )


def win_rate_from_preferences(
    preferences: npt.ArrayLike, *, multiplier: Multiplier | None = None, alpha: float = 0.05
) -> Estimate:
    """θ of independent pairs (each its own user) from their preferences x in [0, 1]."""
    x = np.asarray(preferences, float)
    values, counts = np.unique(x, return_counts=True)
    users = arm_aggregate(x, np.ones(len(x)))
    return win_rate(users, values=values, counts=counts, multiplier=multiplier, alpha=alpha)


@dataclass(frozen=True, kw_only=True, slots=True)
class OrderTable:
    """Verdicts of pairs judged in both orders: `counts[i][j]` pairs with s1 = (C, tie, T)[i] and s2 = (C, tie, T)[j]."""

    counts: tuple[tuple[int, int, int], tuple[int, int, int], tuple[int, int, int]]

    @property
    def n(self) -> int:
        return sum(map(sum, self.counts))

    @property
    def flips(self) -> int:
        """pairs whose winner changed with the order (a tie on one side is not a flip)"""
        return self.counts[0][2] + self.counts[2][0]

    @property
    def by_value(self) -> dict[float, int]:
        """pairs by preference x: 0, .25, .5, .75, 1"""
        c = self.counts
        return {
            0.0: c[0][0],
            0.25: c[0][1] + c[1][0],
            0.5: c[0][2] + c[1][1] + c[2][0],
            0.75: c[1][2] + c[2][1],
            1.0: c[2][2],
        }

    @property
    def by_first_seat(self) -> dict[float, int]:
        """pairs by first-seat score f = (s1 + 1 − s2)/2"""
        mirrored = OrderTable(counts=tuple(tuple(reversed(row)) for row in self.counts))  # type: ignore[arg-type]
        return mirrored.by_value


def order_table(treatment_first: npt.ArrayLike, control_first: npt.ArrayLike) -> OrderTable:
    """The table of verdicts 0, ½, 1 (1 = treatment wins), one entry per pair in both lists."""
    s1 = np.rint(2 * np.asarray(treatment_first, float)).astype(int)
    s2 = np.rint(2 * np.asarray(control_first, float)).astype(int)
    table = np.bincount(3 * s1 + s2, minlength=9).reshape(3, 3)
    return OrderTable(counts=tuple(tuple(int(k) for k in row) for row in table))  # type: ignore[arg-type]


def consistency(consistent: int, n: int, *, alpha: float = 0.05, minimum: float = MIN_CONSISTENCY) -> Estimate:
    """The share of pairs with the same verdict in both orders (Wilson). Upper limit below `minimum`: unreliable_judge."""
    share = wilson(consistent, n, alpha=alpha)
    unreliable = share.ci_high is not None and share.ci_high < minimum
    return Estimate(
        point=share.point,
        ci_low=share.ci_low,
        ci_high=share.ci_high,
        confidence_level=1 - alpha,
        n=n,
        n_clusters=n,
        method="wilson",
        estimand="share of pairs judged alike in both orders",
        status="unreliable_judge" if unreliable else share.status,
        note=f"the judge contradicts itself on {1 - (share.point or 0):.0%} of pairs" if unreliable else None,
    )


def first_seat_rate(pairs: ArmAggregate, *, alpha: float = 0.05) -> Estimate:
    """The mean of f with its t-interval and the p-value of ½ (no seat bias); above ½: the first seat is favoured.

    `pairs`: per user S = Σf and W = pairs judged in both orders.
    """
    estimate = win_rate(pairs, alpha=alpha)
    return Estimate(
        point=estimate.point,
        ci_low=estimate.ci_low,
        ci_high=estimate.ci_high,
        confidence_level=1 - alpha,
        n=estimate.n,
        n_clusters=estimate.n_clusters,
        standard_error=estimate.standard_error,
        df=estimate.df,
        p_value=estimate.p_value,
        method="cluster t",
        estimand="first-seat score",
        status=estimate.status,
        note=estimate.note,
    )


def order_kappa(table: OrderTable, *, alpha: float = 0.05) -> Estimate:
    """Cohen's kappa between the verdicts of the two orders."""
    return agreement.kappa(table.counts, alpha=alpha)


def order_means(treatment_first: ArmAggregate, control_first: ArmAggregate, *, alpha: float = 0.05) -> Estimate:
    """A sensitivity for one coin-flipped order per pair: the mean of the two orders' means, v = (v_TC + v_CT)/4."""
    first, second = treatment_first.ratio, control_first.ratio
    n, clusters = treatment_first.n + control_first.n, treatment_first.n_clusters + control_first.n_clusters
    point = None if first is None or second is None else (first + second) / 2
    shared = {"confidence_level": 1 - alpha, "n": n, "n_clusters": clusters, "estimand": "win rate, mean of orders"}
    if point is None:
        return Estimate(point=None, status="missing_arm" if n else "no_data", **shared)  # type: ignore[arg-type]
    spreads = [a.spread.variance("jackknife") if a.spread else None for a in (treatment_first, control_first)]
    if any(v is None for v in spreads):
        return Estimate(point=point, status="one_cluster", **shared)  # type: ignore[arg-type]
    se = math.sqrt(sum(v or 0.0 for v in spreads) / 4)
    status, note = gates.cluster_status(min(treatment_first.n_clusters, control_first.n_clusters))
    if se <= 1e-13:
        return Estimate(point=point, status="zero_variance", **shared)  # type: ignore[arg-type]
    c = Fixed().critical(alpha)
    return Estimate(
        point=point,
        ci_low=point - c * se,
        ci_high=point + c * se,
        standard_error=se,
        p_value=Fixed().p_value((point - NULL) / se),
        method="mean of order means",
        status=status,
        note=note,
        **shared,  # type: ignore[arg-type]
    )


def order_adjusted(mean_treatment_first: float, mean_control_first: float) -> float | None:
    """A sensitivity: sigmoid of the intercept of a logit on order (+1 / −1), which undoes the shrinking of θ towards ½ by a
    seat bias. The fit is saturated, so it is the mean of the two logits; None where an order's mean is 0 or 1."""
    means = (mean_treatment_first, mean_control_first)
    if not all(0 < mean < 1 for mean in means):
        return None
    intercept = sum(math.log(mean / (1 - mean)) for mean in means) / 2
    return 1 / (1 + math.exp(-intercept))


def _degrees(users: ArmAggregate) -> float:
    return users.n_clusters - 1 if users.spread is None else users.spread.degrees(users.n_clusters)


def _estimate(
    users: ArmAggregate,
    alpha: float,
    mode: str,
    *,
    se: float | None = None,
    low: float | None = None,
    high: float | None = None,
    p: float | None = None,
    status: str = "ok",
    note: str | None = None,
) -> Estimate:
    return Estimate(
        point=users.ratio,
        ci_low=low,
        ci_high=high,
        confidence_level=1 - alpha,
        n=users.n,
        n_clusters=users.n_clusters,
        standard_error=se,
        df=_degrees(users) if se is not None else None,
        p_value=p,
        method=f"cluster jackknife, {mode}",
        estimand="win rate",
        status=status,
        note=note,
    )
