"""Treatment − control of a mean or ratio over users, with its interval under any mode (docs/statistics.md#means)."""

from __future__ import annotations

import math
from typing import Literal

from evalpipe.stats import estimates, proportions
from evalpipe.stats.clusters import ArmAggregate, PairedAggregate, Variance
from evalpipe.stats.estimates import Estimate
from evalpipe.stats.sequential import Fixed, Multiplier

Scale = Literal["absolute", "relative"]
NOISE = 1e-13
"""a standard error below this share of the values is rounding, not variance"""


def unpaired_difference(
    control: ArmAggregate,
    treatment: ArmAggregate,
    *,
    multiplier: Multiplier | None = None,
    alpha: float = 0.05,
    scale: Scale = "absolute",
    variance: Variance = "jackknife",
) -> Estimate:
    """R_T − R_C of two separate groups of users (ab, canary), Welch degrees of freedom; `relative`: R_T/R_C − 1.

    On the relative scale `standard_error` and `df` belong to ln R_T − ln R_C; the limits are exp(·) − 1. Event rates per
    request: `event_rates.unpaired_events`.
    Statuses: no_data, missing_arm, one_cluster, too_few_clusters, zero_variance, relative_undefined, and under anytime
    burn_in, too_few_events.
    """
    mode = multiplier or Fixed()
    n, clusters = control.n + treatment.n, control.n_clusters + treatment.n_clusters
    make = _Maker(alpha=alpha, n=n, n_clusters=clusters, scale=scale, method=f"unpaired {variance}, {mode.mode}")
    if control.n_clusters == 0 or treatment.n_clusters == 0:
        return make.undefined("no_data" if clusters == 0 else "missing_arm")
    ratio_c, ratio_t = control.ratio, treatment.ratio
    if ratio_c is None or ratio_t is None:
        return make.undefined("missing_arm")
    relative = scale == "relative"
    if relative and not (ratio_c > 0 and ratio_t > 0):
        return make.undefined("relative_undefined", "a ratio needs both arms above zero")
    point = math.log(ratio_t / ratio_c) if relative else ratio_t - ratio_c
    smaller = min(control.n_clusters, treatment.n_clusters)
    status, note = estimates.cluster_status(smaller)
    if status == "one_cluster" or control.spread is None or treatment.spread is None:
        return make.undefined("one_cluster", note, point)
    v_c, v_t = control.spread.variance(variance), treatment.spread.variance(variance)
    if v_c is None or v_t is None:
        return make.undefined("one_cluster", "one user holds every row of an arm", point)
    if relative:
        v_c, v_t = v_c / ratio_c**2, v_t / ratio_t**2
    se = math.sqrt(v_c + v_t)
    floor = NOISE * (1.0 if relative else max(abs(ratio_c), abs(ratio_t)))
    if se <= floor:
        return make.undefined("zero_variance", "the metric never varied", point)
    df = welch_df(v_c, control.n_clusters, v_t, treatment.n_clusters)
    skew = unpaired_skew(control, treatment, se, relative=relative)
    if mode.mode == "anytime" and status == "ok":
        events = None
        if control.n_events is not None and treatment.n_events is not None:
            events = min(control.n_events, treatment.n_events)
        status, note = estimates.burn_in_status(
            n_units=smaller,
            paired=False,
            n_events=events,
            skew=skew,
        )
    return make.wald(mode, point, se, df, status, note, skew=skew)


def paired_difference(
    pairs: PairedAggregate,
    *,
    multiplier: Multiplier | None = None,
    alpha: float = 0.05,
    scale: Scale = "absolute",
    variance: Variance = "jackknife",
) -> Estimate:
    """R_T − R_C of the same users (shadow), effective degrees of freedom; `relative`: R_T/R_C − 1 (se, df of the log ratio).

    With one request per user and W = 1 this is exactly the paired t-test. Statuses: no_data, missing_arm, n_lt_2,
    one_cluster, too_few_clusters, zero_variance, relative_undefined, and under anytime burn_in, too_few_events.
    """
    mode = multiplier or Fixed()
    make = _Maker(
        alpha=alpha,
        n=pairs.n_pairs,
        n_clusters=pairs.n_clusters,
        scale=scale,
        method=f"paired {variance}, {mode.mode}",
    )
    ratio_c, ratio_t = pairs.control.ratio, pairs.treatment.ratio
    if pairs.n_clusters == 0 or (ratio_c is None and ratio_t is None):
        return make.undefined("no_data")
    if ratio_c is None or ratio_t is None:
        return make.undefined("missing_arm")
    relative = scale == "relative"
    if relative and not (ratio_c > 0 and ratio_t > 0):
        return make.undefined("relative_undefined", "a ratio needs both arms above zero")
    exact = ratio_t - ratio_c if pairs.difference is None else pairs.difference
    point = exact
    if relative:  # log1p for the digits of small differences; a share of −1 is one that was rounded there
        share = exact / ratio_c
        point = math.log1p(share) if abs(share) < 0.5 else math.log(ratio_t) - math.log(ratio_c)
    if pairs.n_pairs == 1:
        return make.undefined("n_lt_2", "one pair: no interval can be had", point)
    status, note = estimates.cluster_status(min(pairs.n_clusters, pairs.control.n_clusters, pairs.treatment.n_clusters))
    spread = pairs.relative if relative else pairs.absolute
    v = None if spread is None else spread.variance(variance)
    if status == "one_cluster" or spread is None or v is None:
        return make.undefined("one_cluster", note, point)
    se = math.sqrt(v)
    if se <= NOISE * (1.0 if relative else max(abs(ratio_c), abs(ratio_t), 1e-300)):
        return make.undefined("zero_variance", "the difference never varied", point)
    skew = None if spread.m3sum is None else spread.m3sum / se**3
    if mode.mode == "anytime" and status == "ok":
        status, note = estimates.burn_in_status(
            n_units=pairs.n_clusters, paired=True, n_events=pairs.n_discordant, skew=skew
        )
    return make.wald(mode, point, se, spread.degrees(pairs.n_clusters), status, note, skew=skew)


def arm_interval(
    arm: ArmAggregate, *, multiplier: Multiplier | None = None, alpha: float = 0.05, variance: Variance = "jackknife"
) -> Estimate:
    """One arm's own value with its interval; a binary metric (`n_events` given) gets Wilson limits at n_eff = R(1−R)/v."""
    mode = multiplier or Fixed()
    make = _Maker(alpha=alpha, n=arm.n, n_clusters=arm.n_clusters, scale="absolute", method=f"{variance}, {mode.mode}")
    ratio = arm.ratio
    if ratio is None:
        return make.undefined("no_data")
    if arm.n_events is not None:
        return proportions.clustered_proportion(arm, multiplier=mode, alpha=alpha)
    status, note = estimates.cluster_status(arm.n_clusters)
    v = None if arm.spread is None else arm.spread.variance(variance)
    if status == "one_cluster" or arm.spread is None or v is None:
        return make.undefined("one_cluster", note, ratio)
    se = math.sqrt(v)
    if se <= NOISE * abs(ratio):
        return make.undefined("zero_variance", "the metric never varied", ratio)
    return make.wald(mode, ratio, se, arm.spread.degrees(arm.n_clusters), status, note)


def welch_df(v_c: float, n_c: int, v_t: float, n_t: int) -> float:
    """Welch's degrees of freedom of a difference whose arms have the variances `v_c`, `v_t` over `n_c`, `n_t` ≥ 2 users."""
    return (v_c + v_t) ** 2 / (v_t**2 / (n_t - 1) + v_c**2 / (n_c - 1))


def unpaired_skew(control: ArmAggregate, treatment: ArmAggregate, se: float, *, relative: bool = False) -> float | None:
    """The skewness of R_T − R_C (`relative`: of its logarithms' difference) with the standard error `se`; None if unknown."""
    if control.spread is None or treatment.spread is None:
        return None
    m_c, m_t = control.spread.m3sum, treatment.spread.m3sum
    if m_c is None or m_t is None:
        return None
    if relative and control.ratio and treatment.ratio:
        m_c, m_t = m_c / control.ratio**3, m_t / treatment.ratio**3
    return (m_t - m_c) / se**3


class _Maker:
    """Fills in what all estimates of one call share."""

    def __init__(self, *, alpha: float, n: int, n_clusters: int, scale: Scale, method: str) -> None:
        self.alpha, self.n, self.n_clusters, self.relative = alpha, n, n_clusters, scale == "relative"
        self.method = method
        self.estimand = "treatment / control - 1" if self.relative else "treatment - control"

    def undefined(self, status: str, note: str | None = None, point: float | None = None) -> Estimate:
        shown = math.expm1(point) if point is not None and self.relative else point
        return self._estimate(point=shown, status=status, note=note)

    def wald(
        self,
        mode: Multiplier,
        point: float,
        se: float,
        df: float,
        status: str = "ok",
        note: str | None = None,
        *,
        skew: float | None = None,
    ) -> Estimate:
        c = mode.critical(self.alpha, df=df, n=self.n_clusters, standard_error=se)
        p = mode.p_value(point / se, df=df, n=self.n_clusters, standard_error=se)
        low, high = point - c * se, point + c * se
        if self.relative:
            point, low, high = math.expm1(point), _expm1(low), _expm1(high)
        return self._estimate(point=point, low=low, high=high, se=se, df=df, p=p, status=status, note=note, skew=skew)

    def _estimate(
        self,
        *,
        point: float | None,
        low: float | None = None,
        high: float | None = None,
        se: float | None = None,
        df: float | None = None,
        p: float | None = None,
        status: str,
        note: str | None,
        skew: float | None = None,
    ) -> Estimate:
        return Estimate(
            point=point,
            ci_low=low,
            ci_high=high,
            confidence_level=1 - self.alpha,
            n=self.n,
            n_clusters=self.n_clusters,
            standard_error=se,
            df=df,
            p_value=p,
            method=self.method,
            estimand=self.estimand,
            status=status,
            note=note,
            skewness=skew,
        )


def _expm1(x: float) -> float:
    return math.expm1(x) if x < 700 else math.inf
