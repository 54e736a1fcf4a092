"""One number for mixed results: U = Σ w_k · difference_k / margin_k over the metrics, with one interval
(docs/statistics.md#utility).

Per user e_u = Σ_k (w_k/margin_k) e_uk with e_uk the linearised term of metric k (0 where it was not observed for the
user), which covers different denominators and metrics judged on a part only. Checked against R survey.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evalpipe.stats import gates
from evalpipe.stats.estimate import Estimate
from evalpipe.stats.multiplier import Fixed, Multiplier


@dataclass(frozen=True, kw_only=True, slots=True)
class UtilityGroup:
    """One group of users (all of them when paired; one arm otherwise): G users, Σ(e_u − ē)², and Σe_u³ for the gate."""

    n_clusters: int
    sum_squares: float
    m3sum: float | None = None


def utility_from_covariance(
    weights: Sequence[float], covariance: npt.ArrayLike, n_clusters: int, m3sum: float | None = None
) -> UtilityGroup:
    """A group from the K×K matrix of Σ_u e_uj e_uk (what SQL gives for K metrics) and the weights w_k/margin_k."""
    w, m = np.asarray(weights, float), np.asarray(covariance, float)
    return UtilityGroup(n_clusters=n_clusters, sum_squares=float(w @ m @ w), m3sum=m3sum)


def utility(
    score: float,
    groups: Sequence[UtilityGroup],
    *,
    n: int = 0,
    multiplier: Multiplier | None = None,
    alpha: float = 0.05,
) -> Estimate:
    """U with its interval; `groups`: one when paired, control then treatment otherwise (their variances add, Welch df)."""
    mode = multiplier or Fixed()
    clusters = sum(g.n_clusters for g in groups)
    shared = {
        "confidence_level": 1 - alpha,
        "n": n or clusters,
        "n_clusters": clusters,
        "method": f"utility, {mode.mode}",
        "estimand": "weighted sum of differences in units of their margins",
    }
    smaller = min((g.n_clusters for g in groups), default=0)
    if smaller == 0:
        return Estimate(point=None, status="missing_arm" if clusters else "no_data", **shared)  # type: ignore[arg-type]
    status, note = gates.cluster_status(smaller)
    if status == "one_cluster":
        return Estimate(point=score, status=status, note=note, **shared)  # type: ignore[arg-type]
    variances = [g.n_clusters / (g.n_clusters - 1) * g.sum_squares for g in groups]
    se = math.sqrt(sum(variances))
    if se <= 0:
        return Estimate(point=score, status="zero_variance", **shared)  # type: ignore[arg-type]
    df = sum(variances) ** 2 / sum(v**2 / (g.n_clusters - 1) for v, g in zip(variances, groups, strict=True))
    if mode.mode == "anytime" and status == "ok":
        status, note = gates.burn_in_status(n_units=smaller, paired=len(groups) == 1, skew=_skew(groups, se))
    c = mode.critical(alpha, df=df, n=clusters, standard_error=se)
    return Estimate(
        point=score,
        ci_low=score - c * se,
        ci_high=score + c * se,
        standard_error=se,
        df=df,
        p_value=mode.p_value(score / se, df=df, n=clusters, standard_error=se),
        status=status,
        note=note,
        **shared,  # type: ignore[arg-type]
    )


def composite(
    numerators: npt.ArrayLike,
    denominators: npt.ArrayLike,
    weights: Sequence[float],
    *,
    multiplier: Multiplier | None = None,
    alpha: float = 0.05,
) -> Estimate:
    """Σ w_k · ΣS_k/ΣW_k from per-user sums, arrays of shape (users, metrics); W = 0 where a metric was not observed."""
    s, w = np.asarray(numerators, float), np.asarray(denominators, float)
    totals = w.sum(axis=0)
    if len(s) == 0 or (totals <= 0).any():
        return utility(0.0, [], multiplier=multiplier, alpha=alpha)
    ratios = s.sum(axis=0) / totals
    e = ((s - ratios * w) / totals) @ np.asarray(weights, float)
    e = e - e.mean()
    group = UtilityGroup(n_clusters=len(e), sum_squares=float(np.sum(e**2)), m3sum=float(np.sum(e**3)))
    return utility(float(ratios @ np.asarray(weights, float)), [group], multiplier=multiplier, alpha=alpha)


def _skew(groups: Sequence[UtilityGroup], se: float) -> float | None:
    cubes = [g.m3sum for g in groups]
    if any(m is None for m in cubes):
        return None
    signed = cubes[0] if len(cubes) == 1 else (cubes[1] or 0.0) - (cubes[0] or 0.0)
    return (signed or 0.0) / se**3
