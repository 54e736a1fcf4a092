"""Paired yes/no outcomes: McNemar, Tango, Newcombe
(docs/statistics.md#paired-proportions); `events.py` chooses among them.

Counts: `t_only` pairs in which only the treatment has the event, `c_only` only control, `n` all pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from scipy import stats as distributions

from evalpipe.stats.proportion import wilson_limits


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
    below, at = float(distributions.binom.cdf(k, m, 0.5)), float(distributions.binom.pmf(k, m, 0.5))
    mid = 1 - at / 2 if t_only == c_only else 2 * below - at
    chi2 = (t_only - c_only) ** 2 / m
    return McNemar(min(1.0, 2 * below), mid, chi2, float(distributions.chi2.sf(chi2, 1)))


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


def newcombe_limits(both: int, t_only: int, c_only: int, neither: int, c: float) -> tuple[float, float]:
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
