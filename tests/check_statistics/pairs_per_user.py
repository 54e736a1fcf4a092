"""At most k judged pairs a user: false decisions at a true win rate of ½ when users return and one looks every day.

The limits are those of the pairs present at each look; a user's pairs are taken by arrival, so a chosen pair is never
replaced by another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from chunks import Chunk, Sums
from experiments import Judge, activity, traffic, user_preferences
from lines import Line, type_one_bound

from evalpipe.stats import betting
from evalpipe.stats.sequential import Anytime
from evalpipe.stats.winrate import win_rate

ALPHA = 0.05
LIMITS = (1, 3, 0)
"""k; 0: every pair"""
USER_SD = 0.15


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Users, pairs a day, days (a look each), and n* of the bets; `tail`: index of the Pareto activity, None: all alike."""

    users: int
    a_day: int
    days: int
    n_star: float
    tail: float | None = None


SHAPES = {
    "300 users, 100 a day, n* 100": Shape(users=300, a_day=100, days=40, n_star=100),
    "300 users, 100 a day, n* 1000": Shape(users=300, a_day=100, days=40, n_star=1000),
    "100 users, 200 a day, n* 50": Shape(users=100, a_day=200, days=40, n_star=50),
    "300 Pareto users, 200 a day, n* 100": Shape(users=300, a_day=200, days=60, n_star=100, tail=1.2),
}
DESIGNED = {
    ("300 users, 100 a day, n* 100", 1): ".005",
    ("300 users, 100 a day, n* 100", 3): ".018",
    ("300 users, 100 a day, n* 100", 0): ".026",
    ("300 users, 100 a day, n* 1000", 1): ".004",
    ("300 users, 100 a day, n* 1000", 3): ".012",
    ("300 users, 100 a day, n* 1000", 0): ".018",
    ("100 users, 200 a day, n* 50", 1): ".002",
    ("100 users, 200 a day, n* 50", 3): ".004",
    ("100 users, 200 a day, n* 50", 0): ".010",
    ("300 Pareto users, 200 a day, n* 100", 1): ".003",
    ("300 Pareto users, 200 a day, n* 100", 3): ".010",
    ("300 Pareto users, 200 a day, n* 100", 0): ".017",
}


def simulate_pairs_per_user(chunk: Chunk, *, shape: str) -> Sums:
    """Runs in which ½ lies outside the limits at some look, by k; and the pairs that were judged."""
    how, rng = SHAPES[shape], chunk.rng
    bets = betting.tuned_bets(how.n_star, alpha=ALPHA)
    needed = np.log(2 / ALPHA)
    sums: Sums = {f"{what} {k}": 0.0 for what in ("false", "pairs") for k in LIMITS}
    for _ in range(chunk.n):
        asked = traffic(rng, n=how.a_day * how.days, days=how.days, shares=activity(rng, how.users, tail=how.tail))
        better = rng.random(asked.n) < user_preferences(rng, how.users, 0.5, sd=USER_SD)[asked.user]
        preference = sum(Judge().judge(rng, better)) / 2
        place = asked.place_in_user
        for k in LIMITS:
            chosen = place < k if k else np.ones(asked.n, bool)
            crossed = False
            for look in range(1, how.days + 1):
                first = chosen[: look * how.a_day]
                counts = np.bincount(asked.user[: look * how.a_day], weights=first)
                totals = np.bincount(asked.user[: look * how.a_day], weights=first * preference[: look * how.a_day])
                means = totals[counts > 0] / counts[counts > 0]
                wealth = max(betting.log_wealth(means, np.ones(len(means)), 0.5, bets))
                if (wealth >= needed) != crossed and not crossed:
                    crossed = True
                    _check(means, how.n_star, bets, wealth / needed)
            if rng.random() < 0.1:
                _check(means, how.n_star, bets, wealth / needed)
            sums[f"false {k}"] += crossed
            sums[f"pairs {k}"] += int(chosen.sum())
    return sums


def report_pairs_per_user(sums: Sums, *, shape: str) -> list[Line]:
    runs = sums["replications"]
    return [
        Line(
            name=f"{shape}, {f'{k} a user' if k else 'all pairs'}: false decisions",
            seen=sums[f"false {k}"] / runs,
            designed=DESIGNED[shape, k],
            bound=type_one_bound(runs),
            detail=f"{runs:.0f} runs, {SHAPES[shape].days} looks, {sums[f'pairs {k}'] / runs:.0f} judged pairs",
        )
        for k in LIMITS
    ]


def _check(means: np.ndarray, n_star: float, bets: betting.Bets, ratio: float) -> None:
    """`win_rate` concludes as the wealth does."""
    values, counts = np.unique(np.round(means, 12), return_counts=True)
    estimate = win_rate(values, counts, multiplier=Anytime(n_star=n_star), alpha=ALPHA, bets=bets)
    decided = not (estimate.ci_low or 0) <= 0.5 <= (estimate.ci_high or 0)
    assert abs(ratio - 1) < 1e-6 or decided == (ratio >= 1), "the wealth and win_rate disagree"
