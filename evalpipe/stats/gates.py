"""When an asymptotic interval may not be believed yet: burn-in gates and the least number of users
(docs/statistics.md#gates).

Measured reasons: without the ten events the type-I error reaches .39 (a 2 % canary), without the skewness gate .13
(skewed cost); with them at most .056 (docs/statistics.md#measured).
"""

from __future__ import annotations

import math

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
