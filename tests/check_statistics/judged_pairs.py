"""How many judged pairs until the win rate is decided, one pair a user and a look every ten, as `judge --until-decided` looks.

Decided: equivalent (within the margin), better or worse by the limits of the pairs present at a look.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from chunks import Chunk, Sums
from lines import Line, type_one_bound
from scipy import optimize
from scipy.special import expit, logit

from evalpipe.stats import betting, planning
from evalpipe.stats.estimates import label
from evalpipe.stats.sequential import Anytime
from evalpipe.stats.winrate import win_rate

FIXED = 502
"""pairs of a fixed sample with 90 % power at a win rate of .55 (pair variance .119)"""
MARGIN = 0.05
CAP = 3000
EVERY = 10
ALPHA = 0.05
N_STAR = planning.anytime_n_star(FIXED)
BETS = betting.tuned_bets(N_STAR, alpha=ALPHA)
BOUNDS = {0.50: 1.5, 0.55: 0.97, 0.60: 0.28, 0.65: 0.15}
DESIGNED = {0.50: "624 (1.24)", 0.55: "409 (.81)", 0.60: "112 (.22)", 0.65: "54 (.11)"}


def draw_pairs(rng: np.random.Generator, theta: float, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Preferences of a judge who favours the first seat (.62 of decisive calls at ½): pair variance .118, consistency .47."""
    seat = logit(0.62)
    shift = optimize.brentq(lambda d: (expit(seat + d) + expit(-seat + d)) / 2 - theta, -3, 3)
    first, second = rng.random(shape) < expit(seat + shift), rng.random(shape) < expit(-seat + shift)
    return (first.astype(float) + second) / 2


def simulate_judged_pairs(chunk: Chunk) -> Sums:
    """Runs at each true win rate."""
    sums: Sums = {}
    for theta in BOUNDS:
        x = draw_pairs(chunk.rng, theta, (chunk.n, CAP))
        stops, labels = _first_stops(x)
        true = "equivalent" if theta == 0.5 else "better"
        sums[f"pairs at {theta:.2f}"] = int(stops.sum())
        sums[f"right at {theta:.2f}"] = int((labels == true).sum())
        sums[f"false at {theta:.2f}"] = int(((labels != true) & (labels != "inconclusive")).sum())
        for i in chunk.rng.integers(0, chunk.n, 3):
            for n in (int(stops[i]) - EVERY, int(stops[i])):
                _check(x[i, :n], "inconclusive" if n < stops[i] else str(labels[i]))
    return sums


def _first_stops(x: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.str_]]:
    """(pairs used, finding) of every run; never decided: (all of them, inconclusive)."""
    needed = np.log(2 / ALPHA)
    up, down = (path[:, EVERY - 1 :: EVERY] for path in betting.log_wealth_path(x, 0.5, BETS))
    above = betting.log_wealth_path(x, 0.5 - MARGIN, BETS)[0][:, EVERY - 1 :: EVERY]
    below = betting.log_wealth_path(x, 0.5 + MARGIN, BETS)[1][:, EVERY - 1 :: EVERY]
    found = np.where(
        np.minimum(above, below) >= needed,
        "equivalent",
        np.where(up >= needed, "better", np.where(down >= needed, "worse", "inconclusive")),
    )
    decided = found != "inconclusive"
    first = np.where(decided.any(axis=1), decided.argmax(axis=1), found.shape[1] - 1)
    return (first + 1) * EVERY, found[np.arange(len(x)), first]


def _check(x: npt.NDArray[np.float64], expected: str) -> None:
    """The finding by the limits of `win_rate` is that of the wealth."""
    if not len(x):
        return
    values, counts = np.unique(x, return_counts=True)
    limits = win_rate(values, counts, multiplier=Anytime(n_star=N_STAR), alpha=ALPHA, bets=BETS)
    assert limits.ci_low is not None and limits.ci_high is not None
    found = label(limits.ci_low - 0.5, limits.ci_high - 0.5, margin=MARGIN).label
    assert found == expected, f"{found} by win_rate, {expected} by the wealth after {len(x)} pairs"


def report_judged_pairs(sums: Sums) -> list[Line]:
    runs = sums["replications"]
    lines = []
    for theta, share in BOUNDS.items():
        pairs, right, false = (sums[f"{what} at {theta:.2f}"] / runs for what in ("pairs", "right", "false"))
        lines += [
            Line(name=f"judged pairs at win rate {theta:.2f}, share of {FIXED}", seen=pairs / FIXED, designed=DESIGNED[theta],
                 bound=share, detail=f"mean {pairs:.0f} pairs, {right:.1%} decided rightly, {runs:.0f} runs"),
            Line(name=f"false decisions at win rate {theta:.2f}", seen=false, designed=".037" if theta == 0.5 else "",
                 bound=type_one_bound(runs)),
        ]  # fmt: skip
    return lines
