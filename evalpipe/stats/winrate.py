"""Pairwise verdicts in both orders: win rate, consistency, seat bias (docs/statistics.md#win-rate).

A verdict is 1 (treatment), ½ (tie), 0 (control), or a preference in between; s1 with the treatment shown first, s2 second.
A pair's preference is x = (s1+s2)/2; the win rate θ is the mean over users of their mean x; f = (s1+1−s2)/2 is how much the
first seat got.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from evalpipe.stats import agreement, betting, estimates
from evalpipe.stats.clusters import ArmAggregate
from evalpipe.stats.estimates import Estimate
from evalpipe.stats.means import arm_interval
from evalpipe.stats.proportions import wilson
from evalpipe.stats.sequential import Fixed, Multiplier

NULL = 0.5
ESTIMAND = "win rate, each user counted once"
MIN_CONSISTENCY = 0.5
"""a judge whose consistency lies below this (its Wilson upper limit) decides nothing: unreliable_judge"""


def win_rate(
    values: npt.ArrayLike,
    counts: npt.ArrayLike,
    *,
    multiplier: Multiplier | None = None,
    alpha: float = 0.05,
    bets: betting.Bets | None = None,
    n: int | None = None,
) -> Estimate:
    """θ = the mean over users of the user's own mean preference, with its interval and the p-value of θ = ½.

    Every user counts once, however many of their pairs were judged. Anytime: the betting interval of the present counts (exact
    at every look where a user has one pair). Fixed and scheduled: t over the users' means; where those do not vary, or there is
    one user, the betting interval, which has a width even then.

    Args:
        values: distinct users' means x_u, each in [0, 1] (repeats are allowed, so raw means with counts of 1 do too).
        counts: users with each of the means, ≥ 0.
        multiplier: the plan of looks; `Fixed()` by default.
        alpha: two-sided level, between 0 and 1.
        bets: stakes of the betting interval; the default is planned for n* (1000 without a plan).
        n: judged pairs behind the means; the number of users by default.

    Returns:
        The estimate of θ in [0, 1]. Status ok, no_data, or (fixed, scheduled) too_few_clusters below 5 users.

    Raises:
        ValueError: where a mean lies outside [0, 1], a count is negative, or the lists differ in length.
    """
    mode = multiplier or Fixed()
    stakes = bets or betting.tuned_bets(getattr(mode, "n_star", 1000), alpha=alpha)
    bet = betting.bounded_mean(values, counts, stakes, alpha=alpha, null=NULL, n=n)
    bet = replace(bet, estimand=ESTIMAND)
    if bet.point is None or mode.mode == "anytime":
        return bet
    x, k = np.asarray(values, float), np.asarray(counts, float)
    users = bet.n_clusters
    if users < 2 or np.ptp(x[k > 0]) == 0:
        return bet
    se = math.sqrt(float(k @ (x - bet.point) ** 2) / (users - 1) / users)
    status, note = estimates.cluster_status(users)
    c = mode.critical(alpha, df=users - 1, n=users, standard_error=se)
    return Estimate(
        point=bet.point,
        ci_low=bet.point - c * se,
        ci_high=bet.point + c * se,
        confidence_level=1 - alpha,
        n=bet.n,
        n_clusters=users,
        standard_error=se,
        df=users - 1,
        p_value=mode.p_value((bet.point - NULL) / se, df=users - 1, n=users, standard_error=se),
        method=f"t over users, {mode.mode}",
        estimand=ESTIMAND,
        status=status,
        note=note,
    )


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


def effect_shown(treatment_first: npt.ArrayLike, control_first: npt.ArrayLike) -> tuple[float, float] | None:
    """What share of a true difference such verdicts show: (at least, at most), from how the two orders agree alone.

    Let m_i = E[2s − 1] of pair i towards its better answer. A true difference shows as its mean, E[m] times as large. Where the
    errors of the two orders are independent of each other and alike for both arms, the mean of (2s1 − 1)(2s2 − 1) is E[m²] = M,
    and m in [0, 1] gives M ≤ E[m] ≤ √M. Without ties M = 2·consistency − 1. An error that is made in both orders is not visible
    in consistency at all: it may hide more, or invent a difference. None without pairs.
    """
    s1, s2 = np.asarray(treatment_first, float), np.asarray(control_first, float)
    if not len(s1):
        return None
    product = min(1.0, max(0.0, float(np.mean((2 * s1 - 1) * (2 * s2 - 1)))))
    return product, math.sqrt(product)


def first_seat_rate(pairs: ArmAggregate, *, alpha: float = 0.05) -> Estimate:
    """The mean of f over pairs with its t-interval and the p-value of ½ (no seat bias); above ½: the first seat is favoured.

    `pairs`: per user S = Σf and W = pairs judged in both orders.
    """
    estimate = arm_interval(pairs, alpha=alpha)
    p = None
    if estimate.point is not None and estimate.standard_error is not None:
        p = Fixed().p_value((estimate.point - NULL) / estimate.standard_error, df=estimate.df)
    return replace(estimate, p_value=p, method="cluster t", estimand="first-seat score")


def order_kappa(table: OrderTable, *, alpha: float = 0.05) -> Estimate:
    """Cohen's kappa between the verdicts of the two orders."""
    return agreement.kappa(table.counts, alpha=alpha)
