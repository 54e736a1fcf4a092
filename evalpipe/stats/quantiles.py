"""Quantiles of latency with user clusters: one arm's limits, and the difference of two (docs/statistics.md#quantiles).

Per arm: Woodruff's interval on the logit scale. SQL gives Q (type 1: the smallest y with F(y) ≥ p, DuckDB's
quantile_disc), then p̂ = F(Q) and the linearised cluster variance v of 1{y ≤ Q}; `limit_levels` gives the two
probabilities to ask for quantiles again. The difference joins both arms' limits (MOVER), on the log scale by default.
Sources: Woodruff 1952; Zou & Donner 2008 (MOVER); checked against R survey (xlogit).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evalpipe.stats import clusters as stats_clusters
from evalpipe.stats import estimates
from evalpipe.stats.estimates import Estimate
from evalpipe.stats.means import Scale
from evalpipe.stats.sequential import Fixed, Multiplier

MIN_TAIL = 10
FEW_CLUSTERS = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantileAggregate:
    """One arm's quantile: `n` rows, `n_clusters` users, `quantile` Q, `share_below` p̂ = F(Q) in (0, 1],
    `variance` = G/(G−1) Σ e_u² of 1{y ≤ Q} with e_u = (S_u − p̂ W_u)/W. (None where G < 2)."""

    n: int
    n_clusters: int
    quantile: float | None
    share_below: float | None
    variance: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitLevels:
    """The probabilities whose quantiles are the limits; None = no limit on that side. `status`: ok, no_data, one_cluster,
    too_few_clusters or tail_too_small."""

    low: float | None
    high: float | None
    status: str = "ok"
    note: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantileLimits:
    """One arm's quantile with its limits in the metric's unit, and their status."""

    quantile: float | None
    low: float | None
    high: float | None
    n: int
    n_clusters: int
    status: str = "ok"
    note: str | None = None


def type1_quantile(values: npt.ArrayLike, p: float) -> float:
    """The smallest value with F(value) ≥ p (inverse ECDF); `values` not empty."""
    return float(np.quantile(np.asarray(values, float), p, method="inverted_cdf"))


def quantile_aggregate(values: npt.ArrayLike, users: npt.ArrayLike, p: float) -> QuantileAggregate:
    """The aggregate of raw values with each value's user."""
    y, names = np.asarray(values, float), np.asarray(users)
    if len(y) == 0:
        return QuantileAggregate(n=0, n_clusters=0, quantile=None, share_below=None, variance=None)
    q = type1_quantile(y, p)
    _, index = np.unique(names, return_inverse=True)
    w = np.bincount(index).astype(float)
    below = np.bincount(index, weights=(y <= q).astype(float))
    arm = stats_clusters.arm_aggregate(below, w)
    return QuantileAggregate(
        n=len(y),
        n_clusters=len(w),
        quantile=q,
        share_below=arm.ratio,
        variance=None if arm.spread is None else arm.spread.v_lin,
    )


def critical(
    control_clusters: int,
    treatment_clusters: int,
    *,
    paired: bool,
    multiplier: Multiplier | None = None,
    alpha: float = 0.05,
) -> float:
    """The critical value both arms' limits use: df = min(G) − 1; the anytime clock counts pairs' or both arms' users."""
    smaller = min(control_clusters, treatment_clusters)
    n = smaller if paired else control_clusters + treatment_clusters
    return (multiplier or Fixed()).critical(alpha, df=smaller - 1, n=n)


def limit_levels(arm: QuantileAggregate, p: float, c: float) -> LimitLevels:
    """expit(logit p̂ ± c·s) with s = sqrt(v)/(p̂(1−p̂)). Needs n·p ≥ 10 and n·(1−p) ≥ 10, else tail_too_small."""
    if arm.n == 0 or arm.share_below is None:
        return LimitLevels(low=None, high=None, status="no_data")
    share, v = arm.share_below, arm.variance
    status, note = estimates.cluster_status(arm.n_clusters)
    if arm.n * (1 - p) < MIN_TAIL - 1e-9 or arm.n * p < MIN_TAIL - 1e-9:
        needed = math.ceil(MIN_TAIL / min(p, 1 - p) - 1e-9)
        status, note = "tail_too_small", f"{arm.n} rows, {needed} needed for this quantile"
    if status == "one_cluster" or v is None or math.isinf(c):
        return LimitLevels(low=None, high=None, status=status if status != "ok" else "burn_in", note=note)
    if share >= 1 or v <= 0:
        return LimitLevels(low=None, high=None, status="tail_too_small", note="no row lies beyond the quantile")
    s = math.sqrt(v) / (share * (1 - share))
    logit = math.log(share / (1 - share))
    return LimitLevels(low=_expit(logit - c * s), high=_expit(logit + c * s), status=status, note=note)


def arm_limits(values: npt.ArrayLike, users: npt.ArrayLike, p: float, c: float) -> QuantileLimits:
    """One arm's quantile and limits from raw values (what SQL does in three passes)."""
    arm = quantile_aggregate(values, users, p)
    levels = limit_levels(arm, p, c)
    return QuantileLimits(
        quantile=arm.quantile,
        low=None if levels.low is None else type1_quantile(values, levels.low),
        high=None if levels.high is None else type1_quantile(values, levels.high),
        n=arm.n,
        n_clusters=arm.n_clusters,
        status=levels.status,
        note=levels.note,
    )


def quantile_difference(
    control: QuantileLimits,
    treatment: QuantileLimits,
    *,
    correlation: float = 0.0,
    paired: bool = False,
    multiplier: Multiplier | None = None,
    alpha: float = 0.05,
    scale: Scale = "relative",
    n_clusters: int | None = None,
) -> Estimate:
    """Q_T − Q_C, or Q_T/Q_C − 1 (the logs joined by MOVER), from both arms' limits made at the same `critical` value.

    `correlation`: over users, of e_T and e_C (paired; 0 unpaired). `n_clusters`: users in either arm (default: their sum,
    or the smaller when paired). The p-value is the level at which the limit nearer to 0 would touch it.
    """
    mode = multiplier or Fixed()
    smaller = min(control.n_clusters, treatment.n_clusters)
    default = smaller if paired else control.n_clusters + treatment.n_clusters
    clusters = default if n_clusters is None else n_clusters
    relative = scale == "relative"
    n = min(control.n, treatment.n) if paired else control.n + treatment.n

    def make(
        status: str,
        note: str | None = None,
        point: float | None = None,
        low: float | None = None,
        high: float | None = None,
        p: float | None = None,
    ) -> Estimate:
        return Estimate(
            point=point,
            ci_low=low,
            ci_high=high,
            confidence_level=1 - alpha,
            n=n,
            n_clusters=clusters,
            df=smaller - 1 if smaller > 1 else None,
            p_value=p,
            method=f"woodruff + mover, {'paired' if paired else 'unpaired'}, {mode.mode}",
            estimand="treatment / control - 1" if relative else "treatment - control",
            status=status,
            note=note,
        )

    if control.quantile is None or treatment.quantile is None:
        return make("no_data" if control.n + treatment.n == 0 else "missing_arm")
    if relative and not (control.quantile > 0 and treatment.quantile > 0):
        return make("relative_undefined", "a ratio needs both arms above zero")
    point = treatment.quantile / control.quantile - 1 if relative else treatment.quantile - control.quantile
    status, note = next(
        ((arm.status, arm.note) for arm in (treatment, control) if arm.status != "ok"),
        ("ok", _few_clusters_note(smaller)),
    )
    limits = (control.low, control.high, treatment.low, treatment.high)
    if any(limit is None or (relative and limit <= 0) for limit in limits):
        return make("tail_too_small" if status == "ok" else status, note, point)
    if status == "ok" and mode.mode == "anytime":
        status, note_gate = estimates.burn_in_status(n_units=smaller, paired=paired)
        note = note_gate or note
    transform = math.log if relative else float
    q_c, low_c, high_c = (transform(v) for v in (control.quantile, control.low, control.high))  # type: ignore[arg-type]
    q_t, low_t, high_t = (transform(v) for v in (treatment.quantile, treatment.low, treatment.high))  # type: ignore[arg-type]
    d = q_t - q_c
    rho = min(max(correlation, -1.0), 1.0) if paired else 0.0
    low = d - _joined(q_t - low_t, high_c - q_c, rho)
    high = d + _joined(high_t - q_t, q_c - low_c, rho)
    if high <= low:
        return make("zero_variance", "the quantiles never varied", point)
    c = critical(control.n_clusters, treatment.n_clusters, paired=paired, multiplier=mode, alpha=alpha)
    reach = d - low if d > 0 else high - d
    p = None
    if reach > 0 and math.isfinite(c):
        p = mode.p_value(c * abs(d) / reach, df=smaller - 1, n=default)
    if relative:
        low, high = math.expm1(low), math.expm1(high)
    return make(status, note, point, low, high, p)


def _joined(x: float, y: float, rho: float) -> float:
    return math.sqrt(max(0.0, x * x + y * y - 2 * rho * x * y))


def _few_clusters_note(smaller: int) -> str | None:
    if smaller <= FEW_CLUSTERS:
        return f"few_clusters: with {smaller} users a tail quantile's interval is slightly too narrow"
    return None


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))
