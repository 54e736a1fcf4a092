"""Asymptotic confidence sequences: intervals for means that stay valid however often one looks
(docs/statistics.md#looks).

Source: Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, "Time-uniform central limit theory and asymptotic confidence
sequences", Annals of Statistics 2024, eq. (4), with the normal-mixture boundary; checked against ville and gbstats.
All functions take scalars or arrays.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import special

Array = npt.NDArray[np.float64]


@lru_cache(maxsize=256)
def optimal_r(alpha: float) -> float:
    """r* = rho²·n*: the mixture that makes the interval tightest at n*. 8.212 at alpha = .05, 9.753 at .025."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha}")
    return float(-special.lambertw(-(alpha**2) / math.e, k=-1).real - 1)


def approximate_r(alpha: float) -> float:
    """r* in closed form, as gbstats has it: −2 ln α + ln(1 − 2 ln α). For comparison only."""
    return -2 * math.log(alpha) + math.log(1 - 2 * math.log(alpha))


def critical_value(r: npt.ArrayLike, alpha: float) -> Array:
    """c(r) = sqrt(2 (r+1)/r · ln(sqrt(r+1)/alpha)), the two-sided multiplier at r = rho²·n. Infinite at r = 0."""
    r = np.asarray(r, float)
    with np.errstate(divide="ignore"):
        return np.asarray(np.sqrt(2 * (r + 1) / r * (0.5 * np.log1p(r) - math.log(alpha))))


def one_sided_critical_value(r: npt.ArrayLike, alpha: float) -> Array:
    """sqrt(2 (r+1)/r · ln(1 + sqrt(r+1)/(2 alpha))): one limit only, at level `alpha`."""
    r = np.asarray(r, float)
    with np.errstate(divide="ignore"):
        return np.asarray(np.sqrt(2 * (r + 1) / r * np.log1p(np.sqrt(r + 1) / (2 * alpha))))


def log_e_value(statistic: npt.ArrayLike, r: npt.ArrayLike) -> Array:
    """ln E = r z²/(2(r+1)) − ln(r+1)/2: evidence against "no difference" of z = estimate / standard error."""
    z, r = np.asarray(statistic, float), np.asarray(r, float)
    return np.asarray(r * z**2 / (2 * (r + 1)) - np.log1p(r) / 2)
