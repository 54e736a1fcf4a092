"""One-sided tests against margins: non-inferiority and equivalence (TOST, Schuirmann 1987), as p-values to display.

The labels come from the interval (labels.py); these say the same thing as a probability, for a fixed look.
"""

from __future__ import annotations

from dataclasses import dataclass

from evalpipe.stats.estimate import Estimate
from evalpipe.stats.multiplier import Fixed


@dataclass(frozen=True, slots=True)
class Tost:
    """`p_lower`: of "difference ≤ low"; `p_upper`: of "difference ≥ high"; `p` of "outside" is their maximum."""

    p: float
    p_lower: float
    p_upper: float


def tost(estimate: Estimate, *, low: float, high: float) -> Tost | None:
    """Two one-sided t-tests of a Wald-type estimate on the absolute scale; None without a standard error."""
    if estimate.point is None or not estimate.standard_error or low > high:
        return None
    lower = _upper_tail((estimate.point - low) / estimate.standard_error, estimate.df)
    upper = _upper_tail((high - estimate.point) / estimate.standard_error, estimate.df)
    return Tost(max(lower, upper), lower, upper)


def _upper_tail(t: float, df: float | None) -> float:
    two_sided = Fixed().p_value(t, df=df) or 0.0
    return two_sided / 2 if t > 0 else 1 - two_sided / 2
