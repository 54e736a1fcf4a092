"""Coverage of "95 %" intervals when a few heavy users carry the traffic, and when there are many."""

from __future__ import annotations

import numpy as np
from chunks import Chunk, Sums
from lines import Line, at_least

from evalpipe.stats.clusters import arm_aggregate, paired_aggregate
from evalpipe.stats.means import paired_difference, unpaired_difference

METHODS = ("unpaired jackknife", "paired jackknife", "rows as if independent")
DESIGNED = {10: ".94", 20: ".95", 50: ".94", 200: ".95"}


def simulate_few_users(chunk: Chunk) -> Sums:
    """Mean score per request; users differ (sd .7, requests sd 1) and their request counts are lognormal(1.5, 1): a tenth of
    the users makes four tenths of the requests. The true difference is 0 by symmetry."""
    rng = chunk.rng
    hits: Sums = {f"{g} {method}": 0.0 for g in DESIGNED for method in METHODS}
    for g in DESIGNED:
        for _ in range(chunk.n):
            w_t, w_c = (np.ceil(np.exp(rng.normal(1.5, 1.0, g))) for _ in range(2))
            s_t, s_c = (w * rng.normal(0, 0.7, g) + np.sqrt(w) * rng.normal(0, 1, g) for w in (w_t, w_c))
            estimate = unpaired_difference(arm_aggregate(s_c, w_c), arm_aggregate(s_t, w_t))
            hits[f"{g} unpaired jackknife"] += (estimate.ci_low or 0) <= 0 <= (estimate.ci_high or 0)
            naive = 1.96 * np.sqrt((0.7**2 + 1) * (1 / w_t.sum() + 1 / w_c.sum()))
            hits[f"{g} rows as if independent"] += bool(abs(estimate.point or 0) <= naive)
            user, effect = rng.normal(0, 1, g), rng.normal(0, 0.7, g)
            p_t = w_t * (user + effect) + np.sqrt(w_t) * rng.normal(0, 1, g)
            p_c = w_t * user + np.sqrt(w_t) * rng.normal(0, 1, g)
            pair = paired_difference(paired_aggregate(p_t, w_t, p_c, w_t))
            hits[f"{g} paired jackknife"] += (pair.ci_low or 0) <= 0 <= (pair.ci_high or 0)
    return hits


def report_few_users(sums: Sums) -> list[Line]:
    runs = sums["replications"]
    return [
        Line(
            name=f"coverage, {g} heavy users: {method}",
            seen=sums[f"{g} {method}"] / runs,
            designed={"unpaired jackknife": designed, "rows as if independent": ".61-.73"}.get(method, "-"),
            bound=None if method == "rows as if independent" else at_least(0.94, runs),
            at_least=True,
            detail=f"{runs:.0f} runs",
        )
        for g, designed in DESIGNED.items()
        for method in METHODS
    ]
