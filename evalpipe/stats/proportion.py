"""One share and the difference of two, by score limits that stay right at 0 and 1 (docs/statistics.md#proportions)."""

from __future__ import annotations

import math

from evalpipe.stats import gates
from evalpipe.stats.cluster import ArmAggregate
from evalpipe.stats.estimate import Estimate
from evalpipe.stats.multiplier import Fixed, Multiplier


def wilson_limits(events: float, n: float, c: float) -> tuple[float, float]:
    """Wilson's score limits of a share with `events` of `n` at critical value `c` (1.96 for 95 %).

    `n` may be an effective (fractional) sample size. n = 0 or c infinite gives (0, 1). Source: Wilson 1927.
    """
    if n <= 0 or math.isinf(c):
        return 0.0, 1.0
    p = events / n
    centre = (p + c**2 / (2 * n)) / (1 + c**2 / n)
    half = c / (1 + c**2 / n) * math.sqrt(p * (1 - p) / n + c**2 / (4 * n**2))
    low = 0.0 if events <= 0 else max(0.0, centre - half)
    high = 1.0 if events >= n else min(1.0, centre + half)
    return low, high


def wilson(events: float, n: float, *, alpha: float = 0.05, multiplier: Multiplier | None = None) -> Estimate:
    """A share of independent observations with Wilson's interval; n = 0 gives status no_data."""
    mode = multiplier or Fixed()
    if n <= 0:
        return Estimate(point=None, confidence_level=1 - alpha, method="wilson", status="no_data")
    low, high = wilson_limits(events, n, mode.critical(alpha, n=n))
    return Estimate(
        point=events / n,
        ci_low=low,
        ci_high=high,
        confidence_level=1 - alpha,
        n=round(n),
        n_clusters=round(n),
        method="wilson",
        estimand="share",
    )


def effective_n(arm: ArmAggregate) -> float:
    """n_eff = R(1−R)/v: how many independent rows the clustered ones are worth; `n` itself where v or R(1−R) is 0, or where
    every user has one row.

    Never above `n` (users who differ less than chance would say are not worth more than their rows).
    """
    ratio = arm.ratio
    v = None if arm.spread is None else arm.spread.variance("jackknife")
    if ratio is None or not v or not 0 < ratio < 1 or arm.n_clusters == arm.n:
        return float(arm.n)
    return min(float(arm.n), ratio * (1 - ratio) / v)


def clustered_proportion(arm: ArmAggregate, *, multiplier: Multiplier | None = None, alpha: float = 0.05) -> Estimate:
    """One arm's share over users: Wilson's limits at the effective sample size."""
    mode = multiplier or Fixed()
    ratio = arm.ratio
    if ratio is None:
        return Estimate(point=None, confidence_level=1 - alpha, method="wilson", status="no_data")
    status, note = gates.cluster_status(arm.n_clusters)
    low: float | None = None
    high: float | None = None
    if status != "one_cluster" or arm.n == 1:
        size = effective_n(arm)
        low, high = wilson_limits(ratio * size, size, mode.critical(alpha, n=arm.n_clusters))
    v = None if arm.spread is None else arm.spread.variance("jackknife")
    return Estimate(
        point=ratio,
        ci_low=low,
        ci_high=high,
        confidence_level=1 - alpha,
        n=arm.n,
        n_clusters=arm.n_clusters,
        standard_error=math.sqrt(v) if v else None,
        method=f"wilson n_eff, {mode.mode}",
        estimand="share",
        status=status,
        note=note,
    )


def newcombe_limits(
    control_events: float, control_n: float, treatment_events: float, treatment_n: float, c: float
) -> tuple[float, float]:
    """p_T − p_C by square-and-add of both arms' Wilson limits (Newcombe 1998, method 10 for independent samples).

    Sizes may be effective (fractional) sample sizes, above 0. Without an event in either arm the limits are the arms' own
    Wilson limits, so never of width 0.
    """
    p_c, p_t = control_events / control_n, treatment_events / treatment_n
    low_c, high_c = wilson_limits(control_events, control_n, c)
    low_t, high_t = wilson_limits(treatment_events, treatment_n, c)
    d = p_t - p_c
    return max(-1.0, d - math.hypot(p_t - low_t, high_c - p_c)), min(1.0, d + math.hypot(high_t - p_t, p_c - low_c))
