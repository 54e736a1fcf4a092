"""How many judged pairs until the win rate is decided, through the rule of `judge --until-decided`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from lines import Line
from scipy import optimize
from scipy.special import expit, logit

from evalpipe.stats import betting, planning
from evalpipe.stats.stopping import StopRule, first_stop

FIXED = 502
"""pairs of a fixed sample with 90 % power at a win rate of .55 (pair variance .119)"""
MARGIN = 0.05
CAP = 3000
BOUNDS = {0.50: 1.35, 0.55: 0.9, 0.60: 0.25, 0.65: 0.15}
DESIGNED = {0.50: "624 (1.24)", 0.55: "409 (.81)", 0.60: "112 (.22)", 0.65: "54 (.11)"}


def draw_pairs(rng: np.random.Generator, theta: float, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Preferences of a judge who favours the first seat (.62 of decisive calls at ½): pair variance .118, consistency .47."""
    seat = logit(0.62)
    shift = optimize.brentq(lambda d: (expit(seat + d) + expit(-seat + d)) / 2 - theta, -3, 3)
    first, second = rng.random(shape) < expit(seat + shift), rng.random(shape) < expit(-seat + shift)
    return (first.astype(float) + second) / 2


def judged_pairs_lines(*, replications: int, seed: int) -> list[Line]:
    rng = np.random.default_rng(seed)
    rule = StopRule(bets=betting.tuned_bets(planning.anytime_n_star(FIXED)), margin=MARGIN)
    lines = []
    for theta, share in BOUNDS.items():
        x = draw_pairs(rng, theta, (replications, CAP))
        stops = [first_stop(rule, run) for run in x]
        pairs = float(np.mean([n for n, _ in stops]))
        true = {"equivalent"} if theta == 0.5 else {"better"}
        false = float(np.mean([word not in true and word != "inconclusive" for _, word in stops]))
        right = float(np.mean([word in true for _, word in stops]))
        lines.append(
            Line(name=f"judged pairs at win rate {theta:.2f}, share of {FIXED}", seen=pairs / FIXED, designed=DESIGNED[theta],
                 bound=share, detail=f"mean {pairs:.0f} pairs, {right:.1%} decided rightly, {replications} runs")
        )  # fmt: skip
        lines.append(
            Line(
                name=f"false decisions at win rate {theta:.2f}",
                seen=false,
                designed=".037" if theta == 0.5 else "",
                bound=0.05,
            )
        )
    return lines
