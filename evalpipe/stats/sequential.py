"""How many standard errors an interval reaches, by the kind of monitoring (statistics.md 2).

Every method builds its interval as estimate ± c · standard error (or takes c in the place of z), so "one look", "look
whenever you like" and "looks on dates" are three small objects and nothing else changes (docs/statistics.md#looks).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from evalpipe.stats import special

DEFAULT_N_STAR_PAIRS = 1000
DEFAULT_N_STAR_USERS = 5000


class Multiplier(Protocol):
    """The interface of a monitoring mode. `df` None = normal limit; `n` = independent units seen (clusters), both arms."""

    @property
    def mode(self) -> str:
        """fixed | anytime | scheduled"""
        ...

    def critical(
        self, alpha: float, *, df: float | None = None, n: float | None = None, standard_error: float | None = None
    ) -> float:
        """Two-sided critical value at level `alpha`; math.inf where nothing may be concluded yet."""
        ...

    def p_value(
        self,
        statistic: float,
        *,
        df: float | None = None,
        n: float | None = None,
        standard_error: float | None = None,
    ) -> float | None:
        """Two-sided p-value of estimate / standard error, valid under this mode; None where there is none."""
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """One analysis at a sample size set beforehand: Student's t (normal where `df` is None)."""

    @property
    def mode(self) -> str:
        return "fixed"

    def critical(
        self, alpha: float, *, df: float | None = None, n: float | None = None, standard_error: float | None = None
    ) -> float:
        if df is None or math.isinf(df):
            return float(-special.ndtri(alpha / 2))
        return float(-special.stdtrit(df, alpha / 2)) if df > 0 else math.inf

    def p_value(
        self,
        statistic: float,
        *,
        df: float | None = None,
        n: float | None = None,
        standard_error: float | None = None,
    ) -> float | None:
        if df is None or math.isinf(df):
            return float(min(1.0, 2 * special.ndtr(-abs(statistic))))
        return float(min(1.0, 2 * special.stdtr(df, -abs(statistic)))) if df > 0 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Anytime:
    """Look whenever you like: an asymptotic confidence sequence, tightest after `n_star` units
    (docs/statistics.md#looks).

    `n_star` and `alpha` are fixed in the experiment record before the first look; half the fixed sample for the metric's
    smallest effect (planning.py), else 1000 pairs or 5000 A/B users. `information_star` (1/se² planned at `n_star`)
    switches the clock from units to information, for when users return and their number saturates. `alpha` tunes the
    p-value; an interval is tuned at the level it is asked for.
    """

    n_star: float = DEFAULT_N_STAR_PAIRS
    alpha: float = 0.05
    information_star: float | None = None

    def __post_init__(self) -> None:
        if not (self.n_star > 0 and math.isfinite(self.n_star)):
            raise ValueError(f"n_star must be positive and finite, got {self.n_star}")
        if self.information_star is not None and not self.information_star > 0:
            raise ValueError(f"information_star must be positive, got {self.information_star}")

    @property
    def mode(self) -> str:
        return "anytime"

    def _progress(self, n: float | None, standard_error: float | None) -> float:
        if self.information_star is not None and standard_error is not None and standard_error > 0:
            return 1 / (standard_error**2 * self.information_star)
        return (n or 0) / self.n_star

    def critical(
        self, alpha: float, *, df: float | None = None, n: float | None = None, standard_error: float | None = None
    ) -> float:
        progress = self._progress(n, standard_error)
        if progress <= 0:
            return math.inf
        return float(critical_value(optimal_r(alpha) * progress, alpha))

    def p_value(
        self,
        statistic: float,
        *,
        df: float | None = None,
        n: float | None = None,
        standard_error: float | None = None,
    ) -> float | None:
        log_e = self.log_e(statistic, n=n, standard_error=standard_error)
        return min(1.0, math.exp(-max(log_e, 0.0)))

    def log_e(self, statistic: float, *, n: float | None, standard_error: float | None = None) -> float:
        """ln of the e-value against "no difference"; feeds e-BH (multiplicity.py). 0 before anything was seen."""
        r = optimal_r(self.alpha) * self._progress(n, standard_error)
        return float(log_e_value(statistic, r))


# Asymptotic confidence sequences: intervals for means that stay valid however often one looks
# (docs/statistics.md#looks).
#
# Source: Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas, "Time-uniform central limit theory and asymptotic confidence
# sequences", Annals of Statistics 2024, eq. (4), with the normal-mixture boundary; checked against ville and gbstats.
# All functions take scalars or arrays.


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
