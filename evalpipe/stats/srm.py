"""Sample-ratio mismatch and missing values: did the arms get their users, do losses matter? (statistics.md 13, 1.5)

Counts are users, the unit that is assigned. Sources: Pearson's chi-square; the anytime form is the Dirichlet-multinomial
e-value of Lindon & Malek 2022 (checked against savvi).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evalpipe.stats import special

PRIOR_WEIGHT = 1000.0
ALARM_E = 100.0
"""hold at E ≥ 100: .25 % false alarms over 60 daily looks"""
ALARM_P = 0.001
"""the fixed look's threshold"""


def chi_square(counts: Sequence[int], shares: Sequence[float]) -> tuple[float, float] | None:
    """(chi2, p) of the counts against the promised shares (any positive scale); None without a user."""
    n, ratio = sum(counts), _normalised(shares)
    if n == 0:
        return None
    chi2 = sum((k - n * r) ** 2 / (n * r) for k, r in zip(counts, ratio, strict=True))
    return chi2, chi_square_p(chi2, len(counts) - 1)


def chi_square_p(chi2: float, df: int) -> float:
    """The probability of a chi-square statistic of `df` degrees of freedom at least this large."""
    return float(special.chdtrc(df, chi2))


def log_e(counts: Sequence[int], shares: Sequence[float], *, prior_weight: float = PRIOR_WEIGHT) -> float:
    """ln E against the promised shares, valid at any look; 0 without a user. Over canary stages the logs add up."""
    ratio = _normalised(shares)
    before = [prior_weight * r for r in ratio]
    after = [a + k for a, k in zip(before, counts, strict=True)]
    return _log_beta(after) - _log_beta(before) - sum(k * math.log(r) for k, r in zip(counts, ratio, strict=True))


def _normalised(shares: Sequence[float]) -> list[float]:
    total = sum(shares)
    if not all(s > 0 for s in shares):
        raise ValueError(f"every promised share must be positive, got {list(shares)}")
    return [s / total for s in shares]


def _log_beta(weights: Sequence[float]) -> float:
    return float(sum(special.gammaln(w) for w in weights) - special.gammaln(sum(weights)))


# What is missing and how much it could matter: bounds, and whether the losses lean to one side
# (docs/statistics.md#missing).


LOPSIDED_P = 0.001
MAX_SHED_SHARE = 0.05


def win_rate_bounds(total_preference: float, n_judged: int, n_missing: int) -> tuple[float, float] | None:
    """(low, high) of the win rate if every missing pair had gone to control, or to the treatment; None without a pair.

    `total_preference` = Σx over the judged pairs.
    """
    n = n_judged + n_missing
    return None if n == 0 else (total_preference / n, (total_preference + n_missing) / n)


def worst_case_win_rate(
    total_preference: float, n_judged: int, *, control_failed: int, treatment_failed: int, both_failed: int = 0
) -> float | None:
    """The win rate with each lost pair a loss for the side that failed (both failed: a tie); None without a pair."""
    n = n_judged + control_failed + treatment_failed + both_failed
    return None if n == 0 else (total_preference + control_failed + both_failed / 2) / n


@dataclass(frozen=True, kw_only=True, slots=True)
class Losses:
    """`p_value` of "rows are as likely missing on either side" (exact binomial); `lopsided` when it is below .001."""

    treatment_only: int
    control_only: int
    p_value: float
    lopsided: bool


def losses(treatment_only: int, control_only: int) -> Losses:
    """Rows lost by evalpipe (not errors or timeouts of an arm: those are outcomes) on one side only, tested against a coin."""
    n = treatment_only + control_only
    p = min(1.0, 2 * float(special.bdtr(min(treatment_only, control_only), n, 0.5))) if n else 1.0
    return Losses(treatment_only=treatment_only, control_only=control_only, p_value=p, lopsided=p < LOPSIDED_P)


def too_much_shed(n_shed: int, n_sampled: int) -> bool:
    """Sheds are the treatment's by nature and are judged by their share alone: more than 5 % of the sampled."""
    return n_sampled > 0 and n_shed > MAX_SHED_SHARE * n_sampled
