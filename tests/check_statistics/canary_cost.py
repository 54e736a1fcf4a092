"""Type-I error of a skewed cost in a 10 % canary when one looks after every user
(docs/statistics.md#measured): capped at the declared
p99.9, and as billed, which is what the report compares (a cap would hide the very answers that break a bill)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from chunks import Chunk, Sums
from lines import Line, type_one_bound
from type_one import ALPHA, COST_SIGMA, NAIVE_FROM

from evalpipe.stats import estimates, sequential
from evalpipe.stats.clusters import arm_aggregate
from evalpipe.stats.means import unpaired_difference
from evalpipe.stats.sequential import Anytime

Array = npt.NDArray[np.float64]
USERS = 40_000
SHARE = 0.1
N_STAR = 10_000


def simulate_canary_cost(chunk: Chunk, *, cap: float, title: str, designed: str) -> Sums:
    """`cap`: on a user's cost, in dollars; infinity: as billed."""
    rng, k = chunk.rng, chunk.n
    mode = Anytime(n_star=N_STAR, alpha=ALPHA)
    n = np.arange(1, USERS + 1, dtype=float)
    c = sequential.critical_value(sequential.optimal_r(ALPHA) * n / N_STAR, ALPHA)
    y = np.minimum(np.exp(COST_SIGMA * rng.normal(size=(k, USERS))), cap)
    treated = rng.random((k, USERS)) < SHARE
    mean_t, v_t, m3_t, n_t = _running(y, treated)
    mean_c, v_c, m3_c, n_c = _running(y, ~treated)
    with np.errstate(divide="ignore", invalid="ignore"):
        se = np.sqrt(v_t + v_c)
        z = np.nan_to_num((mean_t - mean_c) / se)
        skew = np.nan_to_num((m3_t - m3_c) / se**3, nan=np.inf)
    smaller = np.minimum(n_t, n_c)
    open_gate = (smaller >= estimates.MIN_CLUSTERS_ANYTIME) & (np.abs(skew) <= estimates.MAX_SKEW_ANYTIME)
    crossed = open_gate & (np.abs(z) > c)
    looks = [(int(i), int(np.argmax(crossed[i]))) for i in np.nonzero(crossed.any(axis=1))[0]]
    looks += [(int(rng.integers(k)), int(rng.integers(100, USERS))) for _ in range(2)]
    for i, at in looks:
        rows, arm = y[i, : at + 1], treated[i, : at + 1]
        control, treatment = (arm_aggregate(rows[side], np.ones(side.sum())) for side in (~arm, arm))
        estimate = unpaired_difference(control, treatment, multiplier=mode, alpha=ALPHA)
        decided = estimate.status == "ok" and not (estimate.ci_low or 0) <= 0 <= (estimate.ci_high or 0)
        near = abs(abs(z[i, at]) / c[at] - 1) < 1e-6 or abs(abs(skew[i, at]) / estimates.MAX_SKEW_ANYTIME - 1) < 1e-6
        assert near or decided == crossed[i, at], f"path and public function disagree at user {at + 1}"
    return {
        "rejected": int(crossed.any(axis=1).sum()),
        "naive": int(((np.abs(z) > 1.96) & (smaller >= NAIVE_FROM)).any(axis=1).sum()),
        "checked": len(looks),
    }


def report_canary_cost(sums: Sums, *, cap: float, title: str, designed: str) -> list[Line]:
    runs = sums["replications"]
    return [
        Line(name=f"skewed cost, {title}, canary 10 %: anytime interval", seen=sums["rejected"] / runs, designed=designed,
             bound=type_one_bound(runs), detail=f"{runs:.0f} runs, {sums['checked']:.0f} looks by unpaired_difference, too"),
        Line(name=f"skewed cost, {title}, canary 10 %: naive interval", seen=sums["naive"] / runs, designed=".36-.68",
             bound=0.15, at_least=True),
    ]  # fmt: skip


def _running(y: Array, chosen: npt.NDArray[np.bool_]) -> tuple[Array, Array, Array, Array]:
    """Mean, variance of the mean, third moment of the mean's terms and count of the chosen rows, after every row."""
    n = np.cumsum(chosen, axis=1).astype(float)
    s1, s2, s3 = (np.cumsum(np.where(chosen, y**power, 0.0), axis=1) for power in (1, 2, 3))
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = s1 / n
        m2 = np.maximum(s2 / n - mean**2, 0)
        m3 = s3 / n - 3 * mean * s2 / n + 2 * mean**3
        return mean, m2 / (n - 1), m3 / n**2, n
