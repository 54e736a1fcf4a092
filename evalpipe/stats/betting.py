"""Means of values in [0, 1], exactly valid at any look and any n: the betting e-process (docs/statistics.md#betting).

A bettor who doubts "mean ≤ m" stakes a fixed share on every observation; the wealth E+ can only become large if the mean
is above m, whenever one looks (Ville). Source: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by
betting", JRSS-B 2024; five constant bets around the one that is best at n*. Checked against confseq.

With constant bets the wealth depends on counts per value only, so SQL's GROUP BY is all that is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evalpipe.stats.estimates import Estimate

Array = npt.NDArray[np.float64]
MULTIPLES = (0.25, 0.5, 1.0, 2.0, 4.0)
SIGMA2_BOTH_ORDERS = 0.12
"""planned variance of a pair's preference judged in both orders"""
SIGMA2_ONE_ORDER = 0.2


@dataclass(frozen=True, slots=True)
class Bets:
    """The stakes c_j in (0, 1), fixed before the first look, and the level they were tuned for."""

    stakes: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.stakes or not all(0 < c < 1 for c in self.stakes):
            raise ValueError(f"stakes must lie between 0 and 1, got {self.stakes}")


def tuned_bets(n_star: float, *, sigma2: float = SIGMA2_BOTH_ORDERS, alpha: float = 0.05) -> Bets:
    """Five stakes around the best one at `n_star` units: clip((λ*/2)·{1/4, 1/2, 1, 2, 4}, 1e-4, .95) with
    λ* = sqrt(2 ln(2/alpha)/(sigma2·n_star)). `sigma2`: planned variance of x (both orders .12, one order .2, paired binary
    a quarter of the discordant share)."""
    if not (n_star > 0 and sigma2 > 0 and 0 < alpha < 1):
        raise ValueError(f"n_star and sigma2 must be positive and alpha in (0, 1): {n_star}, {sigma2}, {alpha}")
    best = math.sqrt(2 * math.log(2 / alpha) / (sigma2 * n_star))
    return Bets(tuple(min(max(best / 2 * k, 1e-4), 0.95) for k in MULTIPLES))


def log_wealth(values: npt.ArrayLike, counts: npt.ArrayLike, mean: float, bets: Bets) -> tuple[float, float]:
    """(ln E+, ln E−) against "true mean ≤ `mean`" and "true mean ≥ `mean`", 0 < mean < 1.

    `values` in [0, 1] with the `counts` of units that have them (counts of 1 for raw data). No data: (0, 0).
    """
    if not 0 < mean < 1:
        raise ValueError(f"the mean under test must lie strictly between 0 and 1, got {mean}")
    x, n = _checked(values, counts)
    stakes = np.asarray(bets.stakes)[:, None]
    up = np.log1p(stakes * (x - mean) / mean) @ n
    down = np.log1p(-stakes * (x - mean) / (1 - mean)) @ n
    return _log_mean_exp(up), _log_mean_exp(down)


def log_wealth_path(values: npt.ArrayLike, mean: float, bets: Bets) -> tuple[Array, Array]:
    """ln E+ and ln E− after every observation in arrival order; `values` of shape (…, n), result of the same shape."""
    x = np.asarray(values, float)
    up, down = np.full(x.shape, -np.inf), np.full(x.shape, -np.inf)
    for c in bets.stakes:
        np.logaddexp(up, np.cumsum(np.log1p(c * (x - mean) / mean), axis=-1), out=up)
        np.logaddexp(down, np.cumsum(np.log1p(-c * (x - mean) / (1 - mean)), axis=-1), out=down)
    return up - math.log(len(bets.stakes)), down - math.log(len(bets.stakes))


def limits(values: npt.ArrayLike, counts: npt.ArrayLike, bets: Bets, *, alpha: float = 0.05) -> tuple[float, float]:
    """The confidence sequence at this look: the means neither side's wealth reaches 2/alpha against. No data: (0, 1)."""
    x, n = _checked(values, counts)
    total = float(n.sum())
    if total == 0:
        return 0.0, 1.0
    average = float(x @ n / total)
    needed = math.log(2 / alpha)
    low = _root(lambda m: log_wealth(x, n, m, bets)[0] - needed, average)
    high = 1 - _root(lambda m: log_wealth(1 - x, n, m, bets)[0] - needed, 1 - average)
    return low, high


def bounded_mean(
    values: npt.ArrayLike,
    counts: npt.ArrayLike,
    bets: Bets,
    *,
    alpha: float = 0.05,
    null: float = 0.5,
    n: int | None = None,
) -> Estimate:
    """The mean of values in [0, 1] with its exact anytime interval; p_value against mean = `null`.

    `counts` are independent units (users); `n` the observations behind them where that is more. Status no_data or ok: the
    method is exact at any n, and all ties still prove equivalence.
    """
    x, k = _checked(values, counts)
    total = float(k.sum())
    if total == 0:
        return Estimate(point=None, confidence_level=1 - alpha, method="betting, anytime", status="no_data")
    low, high = limits(x, k, bets, alpha=alpha)
    up, down = log_wealth(x, k, null, bets)
    return Estimate(
        point=float(x @ k / total),
        ci_low=low,
        ci_high=high,
        confidence_level=1 - alpha,
        n=round(total) if n is None else n,
        n_clusters=round(total),
        p_value=min(1.0, 2 * math.exp(-max(up, down, 0.0))),
        method="betting, anytime",
        estimand="mean over users",
    )


def _root(excess: Callable[[float], float], average: float) -> float:
    """The largest m below `average` at which the wealth still reaches what is needed; 0 where none does."""
    low, high = 1e-9, average
    if high <= low or excess(low) < 0:
        return 0.0
    for _ in range(80):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if excess(middle) >= 0:
            low = middle
        else:
            high = middle
    return low


def _log_mean_exp(logs: Array) -> float:
    return float(np.logaddexp.reduce(logs) - math.log(len(logs)))


def _checked(values: npt.ArrayLike, counts: npt.ArrayLike) -> tuple[Array, Array]:
    x, n = np.asarray(values, float), np.asarray(counts, float)
    if x.shape != n.shape or x.ndim != 1:
        raise ValueError(f"values and counts must be two lists of one length, got shapes {x.shape} and {n.shape}")
    if len(x) and not (x.min() >= 0 and x.max() <= 1 and n.min() >= 0):
        raise ValueError("values must lie in [0, 1] and counts must not be negative")
    return x, n
