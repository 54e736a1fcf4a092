"""Paired yes/no outcomes (error, timeout in shadow mode): McNemar, Tango, Newcombe, and what to use when (statistics.md 4).

Counts: `t_only` pairs in which only the treatment has the event, `c_only` only control, `n` all pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from scipy import stats as distributions

from evalpipe.stats import betting, discordant, gates
from evalpipe.stats.cluster import PairedAggregate
from evalpipe.stats.difference import paired_difference
from evalpipe.stats.estimate import Estimate
from evalpipe.stats.multiplier import Fixed, Multiplier
from evalpipe.stats.proportion import wilson_limits

FEW_DISCORDANT = 25


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


def design_effect(t_only: int, c_only: int, n: int, v_jack: float | None) -> float:
    """How many times the users inflate the variance of p_T − p_C over independent pairs; at least 1."""
    if n < 2 or t_only + c_only == 0 or v_jack is None:
        return 1.0
    d = (t_only - c_only) / n
    independent = ((t_only + c_only) / n - d * d) / n
    return max(1.0, v_jack / independent) if independent > 0 else 1.0


def paired_proportion(
    *,
    t_only: int,
    c_only: int,
    n: int,
    users: PairedAggregate | None = None,
    multiplier: Multiplier | None = None,
    alpha: float = 0.05,
    bets: betting.Bets | None = None,
) -> Estimate:
    """p_T − p_C of paired yes/no outcomes, by what statistics.md 4 asks for.

    One pair per user (`users` None, or as many users as pairs): Tango with McNemar's exact p; under anytime the betting
    interval on (1+d)/2 (`bets`; default planned for 2 % discordant pairs at n_star 1000) with the discordant e-process's p.
    Several pairs per user: the cluster engine (with its gates under anytime), and with fewer than 25 discordant pairs
    Tango on counts divided by the design effect. b = c = 0 is fine: Tango's limits are then not of width 0.
    """
    mode = multiplier or Fixed()
    clusters = n if users is None else users.n_clusters
    shared = {"confidence_level": 1 - alpha, "n": n, "n_clusters": clusters, "estimand": "treatment - control"}
    if n == 0:
        return Estimate(point=None, status="no_data", **shared)  # type: ignore[arg-type]
    point = (t_only - c_only) / n
    if n == 1:
        return Estimate(point=point, status="n_lt_2", note="one pair: no interval can be had", **shared)  # type: ignore[arg-type]
    one_each = users is None or users.n_clusters == n
    few = t_only + c_only < FEW_DISCORDANT
    if one_each and mode.mode == "anytime":
        return _betting(t_only, c_only, n, bets or betting.tuned_bets(1000, sigma2=0.02 / 4, alpha=alpha), alpha)
    if users is not None and not one_each and (mode.mode == "anytime" or not few):
        estimate = paired_difference(users, multiplier=mode, alpha=alpha)
        if estimate.status != "zero_variance" and not (few and estimate.status == "too_few_events"):
            return estimate
    absolute = users.absolute if users is not None and not one_each else None
    deff = design_effect(t_only, c_only, n, None if absolute is None else absolute.v_jack)
    c = mode.critical(alpha, n=clusters)
    low, high = tango_limits(t_only / deff, c_only / deff, n / deff, c)
    p = mode.p_value(tango_statistic(0.0, t_only / deff, c_only / deff, n / deff), n=clusters)
    if one_each and mode.mode == "fixed":
        p = mcnemar(t_only, c_only).p_exact
    status, note = gates.cluster_status(clusters)
    if mode.mode == "anytime" and status == "ok":
        status, note = gates.burn_in_status(n_units=clusters, paired=True, n_events=t_only + c_only)
    return Estimate(
        point=point,
        ci_low=low,
        ci_high=high,
        p_value=p,
        method=f"tango{'' if deff == 1 else ' / design effect'}, {mode.mode}",
        status=status,
        note=note,
        **shared,  # type: ignore[arg-type]
    )


def _betting(t_only: int, c_only: int, n: int, bets: betting.Bets, alpha: float) -> Estimate:
    low, high = betting.limits([0.0, 0.5, 1.0], [c_only, n - t_only - c_only, t_only], bets, alpha=alpha)
    return Estimate(
        point=(t_only - c_only) / n,
        ci_low=2 * low - 1,
        ci_high=2 * high - 1,
        confidence_level=1 - alpha,
        n=n,
        n_clusters=n,
        p_value=discordant.p_value(t_only, c_only),
        method="betting on paired outcomes, anytime",
        estimand="treatment - control",
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
