"""Type-I error when one looks after every row: the methods of the report, and a naive interval in the same table.

The paths are computed for all replications at once; every crossing found, and a sample of the looks without one, is then
asked of the public function on the raw rows, and must agree.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from lines import Line, type_one_bound

from evalpipe.stats import betting, conditional, discordant, gates, paired, sequential
from evalpipe.stats.cluster import arm_aggregate, paired_aggregate
from evalpipe.stats.difference import paired_difference
from evalpipe.stats.multiplier import Anytime
from evalpipe.stats.winrate import win_rate

Array = npt.NDArray[np.float64]
ALPHA = 0.05
ROWS = 10_000
CHUNK = 100
NAIVE_FROM = 100
N_STAR = 1000


def mean_lines(
    name: str, draw: Callable[[np.random.Generator, int], Array], designed: str, *, replications: int, seed: int
) -> list[Line]:
    """`draw(rng, k)` → k independent sequences of `ROWS` paired differences with mean 0."""
    rng = np.random.default_rng(seed)
    n = np.arange(1, ROWS + 1, dtype=float)
    mode = Anytime(n_star=N_STAR, alpha=ALPHA)
    c = sequential.critical_value(sequential.optimal_r(ALPHA) * n / N_STAR, ALPHA)
    rejected = naive = checked = 0
    for start in range(0, replications, CHUNK):
        d = draw(rng, min(CHUNK, replications - start))
        z, skew = _paths(d, n)
        open_gate = (n >= gates.MIN_PAIRS_ANYTIME) & (np.abs(skew) <= gates.MAX_SKEW_ANYTIME)
        crossed = open_gate & (np.abs(z) > c)
        rejected += int(crossed.any(axis=1).sum())
        naive += int((np.abs(z[:, NAIVE_FROM - 1 :]) > 1.96).any(axis=1).sum())
        looks = [(int(i), int(np.argmax(crossed[i]))) for i in np.nonzero(crossed.any(axis=1))[0]]
        looks += [(int(i), int(rng.integers(1, ROWS))) for i in rng.integers(0, len(d), 2)]
        for i, at in looks:
            rows, ones = d[i, : at + 1], np.ones(at + 1)
            estimate = paired_difference(
                paired_aggregate(rows, ones, np.zeros(at + 1), ones), multiplier=mode, alpha=ALPHA
            )
            decided = estimate.status == "ok" and not (estimate.ci_low or 0) <= 0 <= (estimate.ci_high or 0)
            near = abs(abs(z[i, at]) / c[at] - 1) < 1e-6 or abs(abs(skew[i, at]) / gates.MAX_SKEW_ANYTIME - 1) < 1e-6
            assert near or decided == crossed[i, at], f"{name}: path and public function disagree at row {at + 1}"
            checked += 1
    return [
        Line(name=f"{name}: anytime interval, every row", seen=rejected / replications, designed=designed,
             bound=type_one_bound(replications), detail=f"{replications} runs, {checked} looks asked of paired_difference"),
        Line(name=f"{name}: naive interval, every row", seen=naive / replications, designed=".35-.54",
             bound=0.15, at_least=True),
    ]  # fmt: skip


def _paths(d: Array, n: Array) -> tuple[Array, Array]:
    """z = mean/se and the estimator's skewness after every row, from running central moments."""
    s1, s2, s3 = np.cumsum(d, axis=1), np.cumsum(d**2, axis=1), np.cumsum(d**3, axis=1)
    m = s1 / n
    m2 = np.maximum(s2 / n - m**2, 0)
    m3 = s3 / n - 3 * m * s2 / n + 2 * m**3
    with np.errstate(divide="ignore", invalid="ignore"):
        se = np.sqrt(m2 / (n - 1))
        return np.nan_to_num(m / se), np.nan_to_num(m3 / n**2 / se**3, nan=np.inf)


def draw_latency(rng: np.random.Generator, k: int) -> Array:
    """Paired latencies in seconds: a shared part and a part of each arm, both lognormal."""
    shared, t, c = (rng.normal(size=(k, ROWS)) for _ in range(3))
    return np.asarray(np.exp(0.5 * shared + 0.5 * t) - np.exp(0.5 * shared + 0.5 * c))


def draw_score(rng: np.random.Generator, k: int) -> Array:
    return np.rint(rng.normal(7, 1.5, (k, ROWS))) - np.rint(rng.normal(7, 1.5, (k, ROWS)))


COST_SIGMA = 1.2
COST_CAP = float(np.exp(COST_SIGMA * 3.0902323061678132))
"""the lognormal's 99.9 % quantile: a cap declared from control's history"""


def draw_capped_cost(rng: np.random.Generator, k: int) -> Array:
    """One sample of lognormal costs capped at p99.9, minus the capped mean (the estimand): the worst skewness there is."""
    return np.minimum(np.exp(COST_SIGMA * rng.normal(size=(k, ROWS))), COST_CAP) - _capped_mean()


def draw_cost(rng: np.random.Generator, k: int) -> Array:
    """The same costs as billed, as the report compares them: only the skewness gate holds early conclusions."""
    return np.exp(COST_SIGMA * rng.normal(size=(k, ROWS))) - np.exp(COST_SIGMA**2 / 2)


def _capped_mean() -> float:
    from scipy.stats import norm

    z = 3.0902323061678132
    return float(np.exp(COST_SIGMA**2 / 2) * norm.cdf(z - COST_SIGMA) + COST_CAP * norm.sf(z))


def win_rate_lines(*, replications: int, seed: int) -> list[Line]:
    """Verdicts in both orders at a true win rate of ½: the betting e-process and the naive interval."""
    rng = np.random.default_rng(seed)
    bets = betting.tuned_bets(N_STAR, alpha=ALPHA)
    n = np.arange(1, ROWS + 1, dtype=float)
    needed = np.log(2 / ALPHA)
    rejected = naive = checked = 0
    for start in range(0, replications, CHUNK):
        k = min(CHUNK, replications - start)
        x = ((rng.random((k, ROWS)) < 0.62).astype(float) + (rng.random((k, ROWS)) < 0.38)) / 2
        up, down = betting.log_wealth_path(x, 0.5, bets)
        crossed = np.maximum(up, down) >= needed
        rejected += int(crossed.any(axis=1).sum())
        z, _ = _paths(x - 0.5, n)
        naive += int((np.abs(z[:, NAIVE_FROM - 1 :]) > 1.96).any(axis=1).sum())
        looks = [(int(i), int(np.argmax(crossed[i]))) for i in np.nonzero(crossed.any(axis=1))[0]]
        looks += [(int(i), int(rng.integers(1, ROWS))) for i in rng.integers(0, k, 2)]
        for i, at in looks:
            values, counts = np.unique(x[i, : at + 1], return_counts=True)
            users = arm_aggregate(x[i, : at + 1], np.ones(at + 1))
            estimate = win_rate(users, values=values, counts=counts, multiplier=Anytime(n_star=N_STAR), alpha=ALPHA)
            decided = not (estimate.ci_low or 0) <= 0.5 <= (estimate.ci_high or 0)
            near = abs(max(up[i, at], down[i, at]) / needed - 1) < 1e-6
            assert near or decided == crossed[i, at], f"win rate: path and public function disagree at pair {at + 1}"
            checked += 1
    return [
        Line(name="win rate: betting e-process, every pair", seen=rejected / replications, designed=".029",
             bound=type_one_bound(replications), detail=f"{replications} runs, {checked} looks asked of win_rate"),
        Line(name="win rate: naive interval, every pair", seen=naive / replications, designed=".488",
             bound=0.15, at_least=True),
    ]  # fmt: skip


def paired_error_lines(*, replications: int, seed: int) -> list[Line]:
    """1 % of pairs discordant, either way alike: what paired_proportion says under anytime, by interval and by p-value."""
    rng = np.random.default_rng(seed)
    top = 260
    p_stops = np.array([[discordant.p_value(b, c) <= ALPHA for c in range(top)] for b in range(top)])
    bets = betting.tuned_bets(1000, sigma2=0.02 / 4, alpha=ALPHA)
    n = np.arange(1, ROWS + 1, dtype=float)
    by_p = by_interval = naive = checked = 0
    for start in range(0, replications, CHUNK):
        k = min(CHUNK, replications - start)
        kind = rng.random((k, ROWS))
        d = np.where(kind < 0.005, 1.0, np.where(kind < 0.01, -1.0, 0.0))
        b, c = np.cumsum(d > 0, axis=1), np.cumsum(d < 0, axis=1)
        by_p += int(p_stops[b, c].any(axis=1).sum())
        up, down = betting.log_wealth_path((1 + d) / 2, 0.5, bets)
        crossed = np.maximum(up, down) >= np.log(2 / ALPHA)
        by_interval += int(crossed.any(axis=1).sum())
        z, _ = _paths(d, n)
        naive += int((np.abs(z[:, NAIVE_FROM - 1 :]) > 1.96).any(axis=1).sum())
        for i in np.nonzero(crossed.any(axis=1))[0]:
            at = int(np.argmax(crossed[i]))
            estimate = paired.paired_proportion(
                t_only=int(b[i, at]), c_only=int(c[i, at]), n=at + 1, multiplier=Anytime(), alpha=ALPHA
            )
            assert not (estimate.ci_low or 0) < 0 < (estimate.ci_high or 0)
            checked += 1
    bound = type_one_bound(replications)
    return [
        Line(name="errors 1 %, paired: beta-binomial p, every pair", seen=by_p / replications, designed=".035", bound=bound,
             detail=f"{replications} runs"),
        Line(name="errors 1 %, paired: betting interval, every pair", seen=by_interval / replications, designed=".028",
             bound=bound, detail=f"{checked} looks asked of paired_proportion"),
        Line(name="errors 1 %, paired: naive interval, every pair", seen=naive / replications, designed=".353",
             bound=0.15, at_least=True),
    ]  # fmt: skip


def canary_error_lines(*, replications: int, seed: int) -> list[Line]:
    """1 % errors in both arms of a 10 % canary, 100 000 users, after every error: the conditional-event e-process."""
    rng = np.random.default_rng(seed)
    events, share = 1000, 0.1
    top = 260
    stop = np.log(1 / ALPHA)
    stage = [conditional.Stage(treatment_events=0, control_events=0, share=share)]
    assert conditional.log_e(stage) == 0
    grid = {
        (x, m): conditional.Stage(treatment_events=x, control_events=m - x, share=share)
        for m in range(1, events + 1)
        for x in range(max(0, m // 10 - 70), min(m, top, m // 10 + 70) + 1)
    }
    two_sided = np.zeros((top + 1, events + 1), bool)
    one_sided = np.zeros((top + 1, events + 1), bool)
    for (x, m), counts in grid.items():
        two_sided[x, m] = conditional.log_e([counts]) >= stop
        one_sided[x, m] = conditional.log_alarm([counts]) >= stop
    x = np.cumsum(rng.random((replications, events)) < share, axis=1)
    m = np.broadcast_to(np.arange(1, events + 1), x.shape)
    n_c = m - x
    with np.errstate(divide="ignore", invalid="ignore"):
        rate_t, rate_c = x / (m * 100 * share), n_c / (m * 100 * (1 - share))
        z = (rate_t - rate_c) / np.sqrt(rate_t / (m * 100 * share) + rate_c / (m * 100 * (1 - share)))
    naive = (np.abs(np.nan_to_num(z)) > 1.96)[:, 9:].any(axis=1).mean()
    bound = type_one_bound(replications)
    return [
        Line(name="errors 1 %, canary 10 %: conditional events", seen=float(two_sided[x, m].any(axis=1).mean()),
             designed=".037", bound=bound, detail=f"{replications} runs of 100 000 users"),
        Line(name="errors 1 %, canary 10 %: one-sided alarm", seen=float(one_sided[x, m].any(axis=1).mean()),
             designed=".040", bound=bound),
        Line(name="errors 1 %, canary 10 %: naive interval", seen=float(naive), designed=".36-.68", bound=0.15, at_least=True),
    ]  # fmt: skip
