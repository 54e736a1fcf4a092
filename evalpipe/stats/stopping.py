"""When may judging stop? The rule behind `judge --until-decided` (statistics.md 6 and 7): exact at every look.

Look only at the completed prefix of the planned order (hash order; all pairs of a user adjacent, one preference per user),
every ten pairs or more. The wealths only ever count at their highest (Ville), so a stop once reached stays reached.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from evalpipe.stats import betting

LOOK_EVERY = 10
NULL = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class StopRule:
    """Stop when the win rate is proven better, worse or equivalent within ±`margin` (in θ) at level `alpha`, two-sided.

    `bets` come from `betting.tuned_bets` at half the planned sample, before the first verdict. margin 0: no equivalence.
    """

    bets: betting.Bets
    margin: float = 0.03
    alpha: float = 0.05

    def __post_init__(self) -> None:
        if not 0 <= self.margin < 0.5:
            raise ValueError(f"the margin of a win rate lies in [0, 0.5), got {self.margin}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """The highest ln wealth so far against: θ ≤ ½ (`better`), θ ≥ ½ (`worse`), θ ≤ ½ − margin (`non_inferior`),
    θ ≥ ½ + margin (`non_superior`); and the `n` units at the last look."""

    better: float = 0.0
    worse: float = 0.0
    non_inferior: float = 0.0
    non_superior: float = 0.0
    n: int = 0

    def conclusion(self, rule: StopRule) -> str:
        """better | worse | equivalent | inconclusive; equivalent outranks better, as in labels.py."""
        needed = math.log(2 / rule.alpha)
        if rule.margin > 0 and min(self.non_inferior, self.non_superior) >= needed:
            return "equivalent"
        if self.better >= needed:
            return "better"
        if self.worse >= needed:
            return "worse"
        return "inconclusive"

    def is_decided(self, rule: StopRule) -> bool:
        return self.conclusion(rule) != "inconclusive"


def look(rule: StopRule, values: npt.ArrayLike, counts: npt.ArrayLike, previous: Evidence | None = None) -> Evidence:
    """The evidence after the units seen so far: distinct preferences `values` in [0, 1] with `counts` of units."""
    before = previous or Evidence()
    up, down = betting.log_wealth(values, counts, NULL, rule.bets)
    above = below = 0.0
    if rule.margin > 0:
        above = betting.log_wealth(values, counts, NULL - rule.margin, rule.bets)[0]
        below = betting.log_wealth(values, counts, NULL + rule.margin, rule.bets)[1]
    return Evidence(
        better=max(before.better, up),
        worse=max(before.worse, down),
        non_inferior=max(before.non_inferior, above),
        non_superior=max(before.non_superior, below),
        n=round(float(np.sum(counts))),
    )


def look_in_order(rule: StopRule, preferences: npt.ArrayLike) -> Evidence:
    """The evidence of all preferences so far in their planned order: the highest wealth after any of them counts.

    Sharper than `look`, which sees only the present counts: about 5 % fewer pairs when one looks every ten.
    """
    x = np.asarray(preferences, float)
    if len(x) == 0:
        return Evidence()
    tops = {name: max(0.0, float(path.max())) for name, path in _paths(rule, x).items()}
    return Evidence(n=len(x), **tops)


def first_stop(rule: StopRule, preferences: npt.ArrayLike, *, every: int = LOOK_EVERY) -> tuple[int, str]:
    """(units used, conclusion) when the preferences arrive in this order and one looks every `every` units.

    Never decided: (all of them, inconclusive).
    """
    x = np.asarray(preferences, float)
    needed = math.log(2 / rule.alpha)
    looks = np.arange(every, len(x) + 1, every) - 1
    if len(looks) == 0:
        return len(x), "inconclusive"
    tops = {name: np.maximum.accumulate(path)[looks] for name, path in _paths(rule, x).items()}
    evidence = {"better": tops["better"], "worse": tops["worse"]}
    if rule.margin > 0:
        evidence = {"equivalent": np.minimum(tops["non_inferior"], tops["non_superior"]), **evidence}
    reached = {name: np.nonzero(top >= needed)[0] for name, top in evidence.items()}
    firsts = [(int(hits[0]), name) for name, hits in reached.items() if len(hits)]
    if not firsts:
        return len(x), "inconclusive"
    position, name = min(firsts, key=lambda first: first[0])
    return int(looks[position]) + 1, name


def _paths(rule: StopRule, x: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    up, down = betting.log_wealth_path(x, NULL, rule.bets)
    paths = {"better": up, "worse": down}
    if rule.margin > 0:
        paths["non_inferior"] = betting.log_wealth_path(x, NULL - rule.margin, rule.bets)[0]
        paths["non_superior"] = betting.log_wealth_path(x, NULL + rule.margin, rule.bets)[1]
    return paths
