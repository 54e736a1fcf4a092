"""Type-I error when one looks after every row: the methods of the report, and a naive interval in the same table.

The paths are computed for all replications at once; every crossing found, and a sample of the looks without one, is then
computed by the public function from the raw rows, too, and must agree.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt
from chunks import Chunk, Sums
from lines import Line, type_one_bound

from evalpipe.stats import betting, estimates, event_rates, sequential
from evalpipe.stats.clusters import paired_aggregate
from evalpipe.stats.event_rates import paired_events
from evalpipe.stats.means import paired_difference
from evalpipe.stats.sequential import Anytime
from evalpipe.stats.winrate import win_rate

Array = npt.NDArray[np.float64]
ALPHA = 0.05
ROWS = 10_000
NAIVE_FROM = 100
N_STAR = 1000


def simulate_mean(chunk: Chunk, *, draw: str, title: str, designed: str) -> Sums:
    """`draw`: a name in `DRAWS`, whose function gives k independent sequences of `ROWS` paired differences with mean 0."""
    rng = chunk.rng
    n = np.arange(1, ROWS + 1, dtype=float)
    mode = Anytime(n_star=N_STAR, alpha=ALPHA)
    c = sequential.critical_value(sequential.optimal_r(ALPHA) * n / N_STAR, ALPHA)
    d = DRAWS[draw](rng, chunk.n)
    z, skew = _paths(d, n)
    open_gate = (n >= estimates.MIN_PAIRS_ANYTIME) & (np.abs(skew) <= estimates.MAX_SKEW_ANYTIME)
    crossed = open_gate & (np.abs(z) > c)
    naive = int((np.abs(z[:, NAIVE_FROM - 1 :]) > 1.96).any(axis=1).sum())
    looks = [(int(i), int(np.argmax(crossed[i]))) for i in np.nonzero(crossed.any(axis=1))[0]]
    looks += [(int(i), int(rng.integers(1, ROWS))) for i in rng.integers(0, len(d), 2)]
    for i, at in looks:
        rows, ones = d[i, : at + 1], np.ones(at + 1)
        estimate = paired_difference(paired_aggregate(rows, ones, np.zeros(at + 1), ones), multiplier=mode, alpha=ALPHA)
        decided = estimate.status == "ok" and not (estimate.ci_low or 0) <= 0 <= (estimate.ci_high or 0)
        near = abs(abs(z[i, at]) / c[at] - 1) < 1e-6 or abs(abs(skew[i, at]) / estimates.MAX_SKEW_ANYTIME - 1) < 1e-6
        assert near or decided == crossed[i, at], f"{title}: path and public function disagree at row {at + 1}"
    return {"rejected": int(crossed.any(axis=1).sum()), "naive": naive, "checked": len(looks)}


def report_mean(sums: Sums, *, draw: str, title: str, designed: str) -> list[Line]:
    return _two_lines(
        sums,
        f"{title}: anytime interval, every row",
        designed,
        "paired_difference",
        f"{title}: naive interval, every row",
        ".35-.54",
    )


def _two_lines(sums: Sums, name: str, designed: str, function: str, naive: str, naive_designed: str) -> list[Line]:
    """The method's own line, and a plain 95 % interval's beside it."""
    runs = sums["replications"]
    return [
        Line(name=name, seen=sums["rejected"] / runs, designed=designed, bound=type_one_bound(runs),
             detail=f"{runs:.0f} runs, {sums['checked']:.0f} looks by {function}, too"),
        Line(name=naive, seen=sums["naive"] / runs, designed=naive_designed, bound=0.15, at_least=True),
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


DRAWS: dict[str, Callable[[np.random.Generator, int], Array]] = {
    "latency": draw_latency,
    "score": draw_score,
    "capped cost": draw_capped_cost,
    "cost": draw_cost,
}


def simulate_win_rate(chunk: Chunk) -> Sums:
    """Verdicts in both orders at a true win rate of ½: the betting e-process and the naive interval."""
    rng = chunk.rng
    bets = betting.tuned_bets(N_STAR, alpha=ALPHA)
    n = np.arange(1, ROWS + 1, dtype=float)
    needed = np.log(2 / ALPHA)
    k = chunk.n
    x = ((rng.random((k, ROWS)) < 0.62).astype(float) + (rng.random((k, ROWS)) < 0.38)) / 2
    up, down = betting.log_wealth_path(x, 0.5, bets)
    crossed = np.maximum(up, down) >= needed
    z, _ = _paths(x - 0.5, n)
    naive = int((np.abs(z[:, NAIVE_FROM - 1 :]) > 1.96).any(axis=1).sum())
    looks = [(int(i), int(np.argmax(crossed[i]))) for i in np.nonzero(crossed.any(axis=1))[0]]
    looks += [(int(i), int(rng.integers(1, ROWS))) for i in rng.integers(0, k, 2)]
    for i, at in looks:
        values, counts = np.unique(x[i, : at + 1], return_counts=True)
        estimate = win_rate(values, counts, multiplier=Anytime(n_star=N_STAR), alpha=ALPHA)
        decided = not (estimate.ci_low or 0) <= 0.5 <= (estimate.ci_high or 0)
        near = abs(max(up[i, at], down[i, at]) / needed - 1) < 1e-6
        assert near or decided == crossed[i, at], f"win rate: path and public function disagree at pair {at + 1}"
    return {"rejected": int(crossed.any(axis=1).sum()), "naive": naive, "checked": len(looks)}


def report_win_rate(sums: Sums) -> list[Line]:
    return _two_lines(
        sums,
        "win rate: betting e-process, every pair",
        ".029",
        "win_rate",
        "win rate: naive interval, every pair",
        ".488",
    )


def simulate_paired_error(chunk: Chunk) -> Sums:
    """1 % of pairs discordant, either way alike, one pair a user: the interval of paired_events under anytime."""
    rng = chunk.rng
    bets = betting.tuned_bets(N_STAR, sigma2=0.02 / 4, alpha=ALPHA)
    n = np.arange(1, ROWS + 1, dtype=float)
    needed = np.log(2 / ALPHA)
    kind = rng.random((chunk.n, ROWS))
    d = np.where(kind < 0.005, 1.0, np.where(kind < 0.01, -1.0, 0.0))
    up, down = betting.log_wealth_path((1 + d) / 2, 0.5, bets)
    wealth = np.maximum(up, down)
    crossed = wealth >= needed
    z, _ = _paths(d, n)
    looks = [(int(i), int(np.argmax(crossed[i]))) for i in np.nonzero(crossed.any(axis=1))[0]]
    looks += [(int(i), int(rng.integers(100, ROWS))) for i in rng.integers(0, chunk.n, 2)]
    for i, at in looks:
        rows, ones = d[i, : at + 1], np.ones(at + 1)
        users = paired_aggregate(rows == 1, ones, rows == -1, ones)
        estimate = paired_events(
            t_only=int((rows == 1).sum()),
            c_only=int((rows == -1).sum()),
            n=at + 1,
            users=users,
            multiplier=Anytime(n_star=N_STAR),
            alpha=ALPHA,
            bets=bets,
        )
        decided = not (estimate.ci_low or 0) <= 0 <= (estimate.ci_high or 0)
        near = abs(wealth[i, at] / needed - 1) < 1e-6
        assert near or decided == crossed[i, at], f"errors: path and public function disagree at pair {at + 1}"
    return {
        "rejected": int(crossed.any(axis=1).sum()),
        "naive": int((np.abs(z[:, NAIVE_FROM - 1 :]) > 1.96).any(axis=1).sum()),
        "checked": len(looks),
    }


def report_paired_error(sums: Sums) -> list[Line]:
    return _two_lines(
        sums,
        "errors 1 %, paired: betting interval, every pair",
        ".028",
        "paired_events",
        "errors 1 %, paired: naive interval, every pair",
        ".353",
    )


CANARY_EVENTS, CANARY_SHARE, CANARY_TOP = 1000, 0.1, 260


@cache
def _canary_tables() -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Whether x of m events in the treatment are evidence enough: two-sided, and by the one-sided alarm."""
    events, share, top = CANARY_EVENTS, CANARY_SHARE, CANARY_TOP
    stop = np.log(1 / ALPHA)
    two_sided = np.zeros((top + 1, events + 1), bool)
    one_sided = np.zeros((top + 1, events + 1), bool)
    for m in range(1, events + 1):
        for x in range(max(0, m // 10 - 70), min(m, top, m // 10 + 70) + 1):
            counts = event_rates.Stage(treatment_events=x, control_events=m - x, share=share)
            two_sided[x, m] = event_rates.log_e([counts]) >= stop
            one_sided[x, m] = event_rates.log_alarm([counts]) >= stop
    return two_sided, one_sided


def simulate_canary_error(chunk: Chunk) -> Sums:
    """1 % errors in both arms of a 10 % canary, 100 000 users, after every error: the conditional-event e-process."""
    share = CANARY_SHARE
    two_sided, one_sided = _canary_tables()
    x = np.cumsum(chunk.rng.random((chunk.n, CANARY_EVENTS)) < share, axis=1)
    m = np.broadcast_to(np.arange(1, CANARY_EVENTS + 1), x.shape)
    n_c = m - x
    with np.errstate(divide="ignore", invalid="ignore"):
        rate_t, rate_c = x / (m * 100 * share), n_c / (m * 100 * (1 - share))
        z = (rate_t - rate_c) / np.sqrt(rate_t / (m * 100 * share) + rate_c / (m * 100 * (1 - share)))
    return {
        "two-sided": int(two_sided[x, m].any(axis=1).sum()),
        "one-sided": int(one_sided[x, m].any(axis=1).sum()),
        "naive": int((np.abs(np.nan_to_num(z)) > 1.96)[:, 9:].any(axis=1).sum()),
    }


def report_canary_error(sums: Sums) -> list[Line]:
    runs = sums["replications"]
    bound = type_one_bound(runs)
    return [
        Line(name="errors 1 %, canary 10 %: conditional events", seen=sums["two-sided"] / runs,
             designed=".037", bound=bound, detail=f"{runs:.0f} runs of 100 000 users"),
        Line(name="errors 1 %, canary 10 %: one-sided alarm", seen=sums["one-sided"] / runs,
             designed=".040", bound=bound),
        Line(name="errors 1 %, canary 10 %: naive interval", seen=sums["naive"] / runs, designed=".36-.68", bound=0.15,
             at_least=True),
    ]  # fmt: skip
