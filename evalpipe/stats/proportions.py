"""Shares of one arm and of two, paired and not: score limits, McNemar, Tango, Newcombe (statistics.md 3 and 4)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from evalpipe.stats import estimates, special
from evalpipe.stats.clusters import ArmAggregate
from evalpipe.stats.estimates import Estimate
from evalpipe.stats.sequential import Fixed, Multiplier


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

    Never above `n` (users who differ less than by chance do not count more than their rows).
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
    status, note = estimates.cluster_status(arm.n_clusters)
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


# Paired yes/no outcomes: McNemar, Tango, Newcombe
# (docs/statistics.md#paired-proportions); `event_rates.py` chooses among them.
#
# Counts: `t_only` pairs in which only the treatment has the event, `c_only` only control, `n` all pairs.


@dataclass(frozen=True, slots=True)
class McNemar:
    """Two-sided p-values of "both arms have the event equally often". chi2 and p_chi2 are None without discordant pairs."""

    p_exact: float
    p_mid: float
    chi2: float | None
    p_chi2: float | None


def mcnemar(t_only: int, c_only: int) -> McNemar:
    """McNemar's test: exact, mid-p, and chi-square without correction. No discordant pair: p = 1."""
    m = t_only + c_only
    if m == 0:
        return McNemar(1.0, 1.0, None, None)
    k = min(t_only, c_only)
    below = float(special.bdtr(k, m, 0.5))
    at = math.exp(-math.log(m + 1) - float(special.betaln(m - k + 1, k + 1)) - m * math.log(2))  # P(X = k)
    mid = 1 - at / 2 if t_only == c_only else 2 * below - at
    chi2 = (t_only - c_only) ** 2 / m
    return McNemar(min(1.0, 2 * below), mid, chi2, float(special.chdtrc(1, chi2)))


def tango_statistic(delta: float, t_only: float, c_only: float, n: float) -> float:
    """Tango's score statistic of "p_T − p_C = delta" (Tango 1998, Statistics in Medicine); at −margin: non-inferiority."""
    a, b = 2 * n, -t_only - c_only + (2 * n - t_only + c_only) * delta
    q = (math.sqrt(max(0.0, b * b + 4 * a * c_only * delta * (1 - delta))) - b) / (2 * a)
    variance = n * (2 * q + delta * (1 - delta))
    numerator = t_only - c_only - n * delta
    if variance <= 0:
        return 0.0 if numerator == 0 else math.copysign(math.inf, numerator)
    return numerator / math.sqrt(variance)


def tango_limits(t_only: float, c_only: float, n: float, c: float) -> tuple[float, float]:
    """Tango's score limits of p_T − p_C at critical value `c`; counts may be divided by a design effect. n = 0: (−1, 1)."""
    if n <= 0 or math.isinf(c):
        return -1.0, 1.0
    point = (t_only - c_only) / n
    low = -1.0 if point <= -1 else _bisect(lambda d: tango_statistic(d, t_only, c_only, n) - c, -1.0, point)
    high = 1.0 if point >= 1 else _bisect(lambda d: tango_statistic(d, t_only, c_only, n) + c, point, 1.0)
    return low, high


def newcombe_paired_limits(both: int, t_only: int, c_only: int, neither: int, c: float) -> tuple[float, float]:
    """Newcombe's square-and-add limits with his continuity-corrected phi (1998, paired method 10); shown as a check."""
    n = both + t_only + c_only + neither
    if n == 0:
        return -1.0, 1.0
    p_t, p_c = (both + t_only) / n, (both + c_only) / n
    low_t, high_t = wilson_limits(both + t_only, n, c)
    low_c, high_c = wilson_limits(both + c_only, n, c)
    margins = (both + t_only) * (c_only + neither) * (both + c_only) * (t_only + neither)
    phi = 0.0
    if margins > 0:
        agreement = both * neither - t_only * c_only
        phi = (max(agreement - n / 2, 0) if agreement > 0 else agreement) / math.sqrt(margins)
    d = p_t - p_c
    x, y = p_t - low_t, high_c - p_c
    x_up, y_up = high_t - p_t, p_c - low_c
    return (
        d - math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y)),
        d + math.sqrt(max(0.0, x_up * x_up - 2 * phi * x_up * y_up + y_up * y_up)),
    )


def _bisect(excess: Callable[[float], float], low: float, high: float) -> float:
    """The root of a falling function on [low, high], to 1e-12."""
    while high - low > 1e-13:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if excess(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


# One-sided tests against margins: non-inferiority and equivalence (TOST, Schuirmann 1987), as p-values to display.
#
# The labels come from the interval (`estimates.label`); these are the same as a probability, for a fixed look.


@dataclass(frozen=True, slots=True)
class Tost:
    """`p_lower`: of "difference ≤ low"; `p_upper`: of "difference ≥ high"; `p` of "outside" is their maximum."""

    p: float
    p_lower: float
    p_upper: float


def tost(estimate: Estimate, *, low: float, high: float) -> Tost | None:
    """Two one-sided t-tests of a Wald-type estimate on the absolute scale; None without a standard error."""
    if estimate.point is None or not estimate.standard_error or low > high:
        return None
    lower = _upper_tail((estimate.point - low) / estimate.standard_error, estimate.df)
    upper = _upper_tail((high - estimate.point) / estimate.standard_error, estimate.df)
    return Tost(max(lower, upper), lower, upper)


def _upper_tail(t: float, df: float | None) -> float:
    two_sided = Fixed().p_value(t, df=df) or 0.0
    return two_sided / 2 if t > 0 else 1 - two_sided / 2
