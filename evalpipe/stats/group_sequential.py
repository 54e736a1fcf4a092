"""Looks on planned dates: group-sequential boundaries by alpha spending, two-sided (statistics.md 2).

Source: Lan & DeMets, Biometrika 1983; numerical integration as Armitage, McPherson & Rowe 1969 (Jennison & Turnbull 2000,
ch. 19): the sub-density of the score process is carried from look to look on a Gauss-Legendre grid. Checked against rpact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import optimize, special

Spending = Literal["obrien_fleming", "pocock"]
GRID_POINTS = 801
MAX_LOOKS = 20
CANNOT_STOP = 10.0
"""the boundary where a look has no alpha to spend; anything above 5 means "cannot stop at this look" in practice"""


def alpha_spent(fraction: float, alpha: float, spending: Spending = "obrien_fleming") -> float:
    """Two-sided alpha spent by information fraction `fraction` in [0, 1]; all of `alpha` at 1."""
    if fraction <= 0:
        return 0.0
    t = min(fraction, 1.0)
    if spending == "pocock":
        return alpha * math.log(1 + (math.e - 1) * t)
    return float(4 * special.ndtr(special.ndtri(alpha / 4) / math.sqrt(t)))


@lru_cache(maxsize=512)
def critical_values(
    fractions: tuple[float, ...], alpha: float, spending: Spending = "obrien_fleming"
) -> tuple[float, ...]:
    """The boundary c_k of |estimate/se| at each look, for strictly rising information fractions in (0, 1].

    est ± c_k·se are repeated confidence intervals: valid together for all looks. c_k = 10 where nothing may be spent.
    """
    _check(fractions)
    nodes, weights = _legendre()
    boundaries: list[float] = []
    spent, points, density = 0.0, np.empty(0), np.empty(0)
    for k, t in enumerate(fractions):
        total = alpha_spent(t, alpha, spending)
        target, spent = (total - spent) / 2, total
        step = math.sqrt(t - (fractions[k - 1] if k else 0.0))

        def upper_tail(c: float, *, t: float = t, k: int = k, step: float = step) -> float:
            edge = c * math.sqrt(t)
            if k == 0:
                return float(special.ndtr(-c))
            return float(np.sum(density * special.ndtr((points - edge) / step)))

        c = CANNOT_STOP
        if target > 0 and upper_tail(CANNOT_STOP) < target:
            c = float(optimize.brentq(lambda c: upper_tail(c) - target, 0.3, CANNOT_STOP, xtol=1e-12))
        boundaries.append(c)
        if k + 1 < len(fractions):
            edge = c * math.sqrt(t)
            new_points = edge * nodes
            if k == 0:
                new_density = np.exp(-(new_points**2) / (2 * t)) / math.sqrt(2 * math.pi * t)
            else:
                kernel = np.exp(-((new_points[:, None] - points[None, :]) ** 2) / (2 * step**2))
                new_density = kernel @ density / (step * math.sqrt(2 * math.pi))
            points, density = new_points, new_density * weights * edge
    return tuple(boundaries)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheduled:
    """The multiplier at the last of the looks taken so far.

    `fractions`: the information fraction n_k / n_max (or I_k / I_max) of every look taken, the present one last, strictly
    rising in (0, 1]. Observed fractions replace planned ones; a look taken off the plan must be in the list.
    """

    fractions: tuple[float, ...]
    spending: Spending = "obrien_fleming"

    def __post_init__(self) -> None:
        _check(self.fractions)

    @property
    def mode(self) -> str:
        return "scheduled"

    def critical(
        self, alpha: float, *, df: float | None = None, n: float | None = None, standard_error: float | None = None
    ) -> float:
        return critical_values(self.fractions, alpha, self.spending)[-1]

    def p_value(
        self,
        statistic: float,
        *,
        df: float | None = None,
        n: float | None = None,
        standard_error: float | None = None,
    ) -> float | None:
        """The repeated p-value: the smallest alpha whose boundary at this look the statistic crosses.

        Found on a grid of levels, interpolated in log alpha against c (error below 1 % of the p-value); between 1e-6 and .5.
        """
        levels, boundaries = _boundary_table(self.fractions, self.spending)
        z = abs(statistic)
        if z <= boundaries[0]:
            return 1.0
        return float(np.exp(np.interp(z, boundaries, np.log(levels))))


@lru_cache(maxsize=64)
def _boundary_table(fractions: tuple[float, ...], spending: Spending) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(levels falling from .5 to 1e-6, the last look's boundary at each)."""
    levels = tuple(float(a) for a in np.geomspace(0.5, 1e-6, 28))
    return levels, tuple(critical_values(fractions, a, spending)[-1] for a in levels)


@lru_cache(maxsize=1)
def _legendre() -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(GRID_POINTS)


def _check(fractions: tuple[float, ...]) -> None:
    rising = all(b > a for a, b in zip((0.0, *fractions), fractions, strict=False))
    if not fractions or not rising or fractions[-1] > 1 + 1e-12 or len(fractions) > MAX_LOOKS:
        raise ValueError(f"information fractions must rise strictly in (0, 1], at most {MAX_LOOKS}: {fractions}")
