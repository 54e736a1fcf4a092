"""Looks on planned dates: group-sequential boundaries by alpha spending, two-sided
(docs/statistics.md#group-sequential).

Source: Lan & DeMets, Biometrika 1983; numerical integration as Armitage, McPherson & Rowe 1969 (Jennison & Turnbull 2000,
ch. 19): the sub-density of the score process is carried from look to look on a Gauss-Legendre grid. Checked against rpact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from evalpipe.stats import special

Array = npt.NDArray[np.float64]
Spending = Literal["obrien_fleming", "pocock"]
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
    nodes, weights = _legendre(_grid_points(fractions))
    boundaries: list[float] = []
    spent, before = 0.0, 0.0
    surviving: _Start | _Density = _Start()
    for t in fractions:
        total = alpha_spent(t, alpha, spending)
        target, spent = (total - spent) / 2, total
        c = _boundary(surviving, t, before, target)
        boundaries.append(c)
        edge = c * math.sqrt(t)
        surviving = surviving.propagated(edge * nodes, edge * weights, t - before)
        before = t
    return tuple(boundaries)


def _boundary(surviving: _Start | _Density, t: float, before: float, target: float) -> float:
    """The c whose crossing probability from above is `target`; CANNOT_STOP where even that has more."""

    def excess(c: float) -> float:
        return surviving.probability_above(c * math.sqrt(t), t - before) - target

    if target <= 0 or excess(CANNOT_STOP) >= 0:
        return CANNOT_STOP
    from scipy import optimize  # slow to load, and most runs need no root

    return float(optimize.brentq(excess, 0.3, CANNOT_STOP, xtol=1e-12))


@dataclass(frozen=True, slots=True)
class _Start:
    """The score process before the first look: 0 with certainty."""

    def probability_above(self, edge: float, elapsed: float) -> float:
        return float(special.ndtr(-edge / math.sqrt(elapsed)))

    def propagated(self, points: Array, widths: Array, elapsed: float) -> _Density:
        return _Density(points, np.exp(-(points**2) / (2 * elapsed)) / math.sqrt(2 * math.pi * elapsed) * widths)


@dataclass(frozen=True, slots=True)
class _Density:
    """The score process that has not stopped yet: probability `mass` at `points` (quadrature nodes)."""

    points: Array
    mass: Array

    def probability_above(self, edge: float, elapsed: float) -> float:
        return float(np.sum(self.mass * special.ndtr((self.points - edge) / math.sqrt(elapsed))))

    def propagated(self, points: Array, widths: Array, elapsed: float) -> _Density:
        kernel = np.exp(-((points[:, None] - self.points[None, :]) ** 2) / (2 * elapsed))
        return _Density(points, kernel @ self.mass / math.sqrt(2 * math.pi * elapsed) * widths)


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


@lru_cache(maxsize=4)
def _legendre(points: int) -> tuple[Array, Array]:
    nodes, weights = np.polynomial.legendre.leggauss(points)
    return np.asarray(nodes), np.asarray(weights)


def _grid_points(fractions: tuple[float, ...]) -> int:
    """801 quadrature nodes where looks lie close together; 201 give the same 14 digits where they do not."""
    steps = [b - a for a, b in zip((0.0, *fractions), fractions, strict=False)]
    return 201 if min(steps) >= 0.01 else 801


def _check(fractions: tuple[float, ...]) -> None:
    rising = all(b > a for a, b in zip((0.0, *fractions), fractions, strict=False))
    if not fractions or not rising or fractions[-1] > 1 + 1e-12 or len(fractions) > MAX_LOOKS:
        raise ValueError(f"information fractions must rise strictly in (0, 1], at most {MAX_LOOKS}: {fractions}")
