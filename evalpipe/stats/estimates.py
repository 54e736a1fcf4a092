"""The one shape every number comes in: a point with its interval; the conclusion of an interval, and when it is valid."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """An estimate with its interval. `status` other than "ok" means: do not conclude from it (numbers may still be given).

    `point`, `ci_low`, `ci_high`, `standard_error` are in the estimand's unit; None = not defined. `df` None = normal limit.
    `n` counts observations (requests, pairs), `n_clusters` the independent units behind them. Statuses: ok, not_measured,
    missing_differs, no_data, missing_arm, n_lt_2, one_cluster, too_few_clusters, zero_variance, tail_too_small,
    too_few_events, burn_in, too_few_labels, undefined_kappa, relative_undefined, unreliable_judge, length_confounded,
    invalid_srm. NaN and infinities never get in: they become None. `skewness`: of the estimator, Σe³/se³, which falls with
    1/√n (the gate of early looks); None where it is not known.
    """

    point: float | None
    ci_low: float | None = None
    ci_high: float | None = None
    confidence_level: float = 0.95
    n: int = 0
    n_clusters: int = 0
    standard_error: float | None = None
    df: float | None = None
    p_value: float | None = None
    method: str = ""
    estimand: str = ""
    status: str = "ok"
    note: str | None = None
    skewness: float | None = None

    def __post_init__(self) -> None:
        for name in ("point", "ci_low", "ci_high", "standard_error", "df", "p_value", "skewness"):
            value = getattr(self, name)
            if value is not None:
                number = float(value)
                object.__setattr__(self, name, number if math.isfinite(number) else None)

    @property
    def reaches_zero(self) -> bool:
        """Whether there is an interval and it contains 0."""
        return self.ci_low is not None and self.ci_high is not None and self.ci_low <= 0 <= self.ci_high

    def extended_to_zero(self) -> Estimate:
        """The same with an interval that contains 0; unchanged where there is none or it does already."""
        if self.ci_low is None or self.ci_high is None or self.reaches_zero:
            return self
        return replace(self, ci_low=min(self.ci_low, 0.0), ci_high=max(self.ci_high, 0.0))


# The conclusion of an interval: the label and its flags
# (docs/statistics.md#findings). The overall decision is not here.


def label(low: float | None, high: float | None, *, margin: float, status: str = "ok") -> IntervalConclusion:
    """The verdict of an interval oriented so that above 0 = treatment better; `margin` ≥ 0 in the same unit.

    Strict inequalities, in this order: any status but ok (or an interval without limits on both sides) → undefined;
    margin > 0 and inside ±margin → equivalent; low > 0 → better; high < 0 → worse; else inconclusive. A limit of None is
    unbounded on that side.
    """
    if margin < 0:
        raise ValueError(f"a margin is never negative, got {margin}")
    if status != "ok" or (low is None and high is None):
        return IntervalConclusion(label="undefined", non_inferior=False, inferior=False)
    non_inferior = low is not None and low > -margin
    inferior = high is not None and high < -margin
    if margin > 0 and non_inferior and high is not None and high < margin:
        name = "equivalent"
    elif low is not None and low > 0:
        name = "better"
    elif high is not None and high < 0:
        name = "worse"
    else:
        name = "inconclusive"
    return IntervalConclusion(label=name, non_inferior=non_inferior, inferior=inferior)


@dataclass(frozen=True, kw_only=True, slots=True)
class IntervalConclusion:
    """`label`: better | equivalent | worse | inconclusive | undefined. `non_inferior`: no loss beyond the margin;
    `inferior`: a loss beyond the margin is proven (what the harm stop asks)."""

    label: str
    non_inferior: bool
    inferior: bool


def orient(estimate: Estimate, *, higher_is_better: bool) -> tuple[float | None, float | None]:
    """(low, high) of a treatment − control difference with above 0 = treatment better."""
    if higher_is_better:
        return estimate.ci_low, estimate.ci_high
    return (
        None if estimate.ci_high is None else -estimate.ci_high,
        None if estimate.ci_low is None else -estimate.ci_low,
    )


# When an asymptotic interval is not valid yet: burn-in gates and the least number of users
# (docs/statistics.md#gates).
#
# Measured reasons: without the ten events the type-I error reaches .39 (a 2 % canary), without the skewness gate .13
# (skewed cost); with them at most .056 (docs/statistics.md#measured).


MIN_CLUSTERS = 5
"""fewer users than this: no conclusion under any mode"""
MIN_CLUSTERS_ANYTIME = 100
"""users in the smaller arm"""
MIN_PAIRS_ANYTIME = 50
MIN_EVENTS_ANYTIME = 10
"""of a binary metric, in each arm; discordant pairs when paired"""
MAX_SKEW_ANYTIME = 0.1
"""of the estimator itself, in units of its standard error cubed"""


def burn_in_status(
    *,
    n_units: int,
    paired: bool,
    n_events: int | None = None,
    skew: float | None = None,
) -> tuple[str, str | None]:
    """(status, note) of an anytime interval: ok, burn_in or too_few_events.

    `n_units` = clusters in the smaller arm (pairs' clusters when paired), `n_events` = events in the arm with fewer
    (discordant pairs when paired; None where the metric is not binary), `skew` = Σe³/se³ (None = not known, not gated).
    """
    needed = MIN_PAIRS_ANYTIME if paired else MIN_CLUSTERS_ANYTIME
    if n_events is not None and n_events < MIN_EVENTS_ANYTIME:
        what = "discordant pairs" if paired else "events in an arm"
        return "too_few_events", f"{n_events} {what}, {MIN_EVENTS_ANYTIME} needed before an early look may decide"
    if n_units < needed:
        what = "users" if paired else "users in the smaller arm"
        return "burn_in", f"{n_units} {what}, {needed} needed before an early look may decide"
    if skew is not None and abs(skew) > MAX_SKEW_ANYTIME:
        above = math.ceil(abs(skew) * 1000) / 1000  # rounded up: never equal to the limit it exceeds
        return "burn_in", f"a few users still carry the estimate (skewness {above:.3f}, at most {MAX_SKEW_ANYTIME:.3f})"
    return "ok", None


def cluster_status(n_clusters: int) -> tuple[str, str | None]:
    """(status, note) by the number of users in the smaller arm: ok, one_cluster or too_few_clusters (0 is the caller's)."""
    if n_clusters == 1:
        return "one_cluster", "all rows come from one user: no interval can be had"
    if n_clusters < MIN_CLUSTERS:
        return "too_few_clusters", f"{n_clusters} users, at least {MIN_CLUSTERS} needed to conclude"
    return "ok", None
