"""Several metrics at once: adjusted p-values, e-values, and the utility that weighs them (statistics.md 12).

Sources: Holm 1979; Benjamini & Hochberg 1995; e-BH of Wang & Ramdas, JRSS-B 2022.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evalpipe.stats import estimates
from evalpipe.stats.estimates import Estimate
from evalpipe.stats.sequential import Fixed, Multiplier


def bonferroni(p_values: Sequence[float]) -> list[float]:
    """min(1, m p)."""
    return [min(1.0, len(p_values) * p) for p in p_values]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given."""
    p, order = _ordered(p_values)
    steps = np.minimum(1.0, np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order]))
    return _restored(steps, order)


def benjamini_hochberg(p_values: Sequence[float]) -> list[float]:
    """Benjamini-Hochberg adjusted p-values (false-discovery rate), in the order given."""
    p, order = _ordered(p_values)
    m = len(p)
    steps = np.minimum.accumulate((m / np.arange(1, m + 1) * p[order])[::-1])[::-1] if m else p
    return _restored(np.minimum(1.0, steps), order)


def e_benjamini_hochberg(e_values: Sequence[float], *, q: float = 0.1) -> list[bool]:
    """Which hypotheses e-BH rejects at false-discovery rate `q`: the k largest with e_(k) ≥ K/(k q), k as large as can be."""
    e = np.asarray(e_values, float)
    order = np.argsort(-e, kind="stable")
    k = np.arange(1, len(e) + 1)
    passing = np.nonzero(e[order] >= len(e) / (k * q) * (1 - 1e-12))[0]
    rejected = np.zeros(len(e), bool)
    if len(passing):
        rejected[order[: passing[-1] + 1]] = True
    return [bool(r) for r in rejected]


def _ordered(p_values: Sequence[float]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.intp]]:
    p = np.asarray(p_values, float)
    if len(p) and not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must lie in [0, 1], got {list(p_values)}")
    return p, np.argsort(p, kind="stable")


def _restored(steps: npt.NDArray[np.float64], order: npt.NDArray[np.intp]) -> list[float]:
    adjusted = np.empty(len(steps))
    adjusted[order] = steps
    return [float(a) for a in adjusted]


# One number for mixed results: U = Σ w_k · difference_k / margin_k over the metrics, with one interval
# (docs/statistics.md#utility).
#
# Per user e_u = Σ_k (w_k/margin_k) e_uk with e_uk the linearised term of metric k (0 where it was not observed for the
# user), which covers different denominators and metrics judged on a part only. Checked against R survey.


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
    status, note = estimates.cluster_status(smaller)
    if status == "one_cluster":
        return Estimate(point=score, status=status, note=note, **shared)  # type: ignore[arg-type]
    variances = [g.n_clusters / (g.n_clusters - 1) * g.sum_squares for g in groups]
    se = math.sqrt(sum(variances))
    if se <= 0:
        return Estimate(point=score, status="zero_variance", **shared)  # type: ignore[arg-type]
    df = sum(variances) ** 2 / sum(v**2 / (g.n_clusters - 1) for v, g in zip(variances, groups, strict=True))
    if mode.mode == "anytime" and status == "ok":
        status, note = estimates.burn_in_status(n_units=smaller, paired=len(groups) == 1, skew=_skew(groups, se))
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
