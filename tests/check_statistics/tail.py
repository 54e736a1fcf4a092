"""Type-I error of the p99 latency difference when one looks after every pair.

The 250 largest latencies of every run are kept sorted as rows arrive, which is all that a 99 % quantile and its limits need
once the tail gate is open. Every crossing, and a sample of other looks, is computed by the public functions from the raw
rows, too.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from chunks import Chunk, Sums
from lines import Line, type_one_bound

from evalpipe.stats import estimates, quantiles, sequential
from evalpipe.stats.sequential import Anytime

Array = npt.NDArray[np.float64]
P = 0.99
ALPHA = 0.05
KEPT = 250
ROWS = 10_000
N_STAR = 1000


def simulate_p99(chunk: Chunk) -> Sums:
    """A look after every one of `ROWS` pairs, and what a plain interval would have done."""
    rng, replications = chunk.rng, chunk.n
    shared, t, c = (rng.normal(size=(ROWS, replications)) for _ in range(3))
    latency = np.exp(0.5 * shared + 0.5 * np.stack([t, c]))
    first = round(quantiles.MIN_TAIL / (1 - P))
    top = [_Top(replications) for _ in range(2)]
    crossed_at = np.full(replications, -1)
    naive_at = np.zeros(replications, bool)
    state: dict[tuple[int, int], bool] = {}
    sampled = {
        int(n): int(i) for n, i in zip(rng.integers(first, ROWS, 20), rng.integers(0, replications, 20), strict=True)
    }
    for row in range(ROWS):
        top[0].add(latency[0, row], latency[1, row])
        top[1].add(latency[1, row], latency[0, row])
        n = row + 1
        if n < first:
            continue
        critical = float(sequential.critical_value(sequential.optimal_r(ALPHA) * n / N_STAR, ALPHA))
        low, high = _limits(top, n, critical)
        crossed = (low > 0) | (high < 0)
        crossed_at = np.where((crossed_at < 0) & crossed, n, crossed_at)
        low, high = _limits(top, n, 1.96)
        naive_at |= (low > 0) | (high < 0)
        if n in sampled:
            state[sampled[n], n] = bool(crossed[sampled[n]])
    assert first >= estimates.MIN_PAIRS_ANYTIME
    for i in np.nonzero(crossed_at >= 0)[0]:
        state[int(i), int(crossed_at[i])] = True
    for (i, n), crossed_there in state.items():
        assert _decided(latency[:, :n, i]) == crossed_there, f"path and public functions disagree at pair {n}"
    return {"rejected": int((crossed_at >= 0).sum()), "naive": int(naive_at.sum()), "checked": len(state)}


def report_p99(sums: Sums) -> list[Line]:
    runs = sums["replications"]
    return [
        Line(name="latency p99, paired: anytime interval, every pair", seen=sums["rejected"] / runs, designed="-",
             bound=type_one_bound(runs), detail=f"{runs:.0f} runs, {sums['checked']:.0f} looks by quantile_difference, too"),
        Line(name="latency p99, paired: naive interval, every pair", seen=sums["naive"] / runs, designed="-",
             bound=0.15, at_least=True),
    ]  # fmt: skip


class _Top:
    """The largest values of every run, rising, with the other arm's value of the same pair beside each."""

    def __init__(self, runs: int) -> None:
        self.values = np.full((runs, KEPT), -np.inf)
        self.partners = np.full((runs, KEPT), -np.inf)
        self.rows = np.arange(runs)

    def add(self, values: Array, partners: Array) -> None:
        changed = np.nonzero(values > self.values[:, 0])[0]
        if len(changed) == 0:
            return
        v, w = self.values[changed], self.partners[changed]
        v[:, 0], w[:, 0] = values[changed], partners[changed]
        order = np.argsort(v, axis=1, kind="stable")
        self.values[changed] = np.take_along_axis(v, order, axis=1)
        self.partners[changed] = np.take_along_axis(w, order, axis=1)

    def quantile(self, n: int, level: float) -> Array:
        """The type-1 quantile of the n values seen."""
        rank = int(np.ceil(round(n * level, 9)))
        assert n - rank < KEPT, "the limit lies below the values kept"
        return self.values[:, KEPT - 1 - (n - rank)]


def _limits(top: list[_Top], n: int, c: float) -> tuple[Array, Array]:
    """MOVER on the log scale, treatment first; latencies are continuous, so F(Q) is the same in every run."""
    share = np.ceil(round(n * P, 9)) / n
    v = share * (1 - share) / (n - 1)
    s = np.sqrt(v) / (share * (1 - share))
    logit = np.log(share / (1 - share))
    levels = 1 / (1 + np.exp(-(logit + np.array([-1.0, 1.0]) * c * s)))
    q_t, q_c = (np.log(arm.quantile(n, P)) for arm in top)
    (low_t, low_c), (high_t, high_c) = ([np.log(arm.quantile(n, level)) for arm in top] for level in levels)
    above = int(n - np.ceil(round(n * P, 9)))
    tail = top[0].partners[:, KEPT - above :]
    both = (tail > np.exp(q_c)[:, None]).sum(axis=1) / n
    rho = (both - (1 - share) ** 2) / (share * (1 - share))
    d, x, y, x_up, y_up = q_t - q_c, q_t - low_t, high_c - q_c, high_t - q_t, q_c - low_c
    return (
        d - np.sqrt(np.maximum(0, x**2 + y**2 - 2 * rho * x * y)),
        d + np.sqrt(np.maximum(0, x_up**2 + y_up**2 - 2 * rho * x_up * y_up)),
    )


def _decided(latency: Array) -> bool:
    n = latency.shape[1]
    mode, users = Anytime(n_star=N_STAR, alpha=ALPHA), np.arange(n)
    c = quantiles.critical(n, n, paired=True, multiplier=mode, alpha=ALPHA)
    treatment, control = (quantiles.arm_limits(y, users, P, c) for y in latency)
    below = [y <= limits.quantile for y, limits in zip(latency, (treatment, control), strict=True)]
    rho = float(np.corrcoef(below[0], below[1])[0, 1])
    estimate = quantiles.quantile_difference(
        control, treatment, correlation=rho, paired=True, multiplier=mode, alpha=ALPHA
    )
    low, high = estimate.ci_low, estimate.ci_high
    return estimate.status == "ok" and low is not None and high is not None and not low <= 0 <= high
