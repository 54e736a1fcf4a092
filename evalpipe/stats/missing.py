"""What is missing and how much it could matter: bounds, and whether the losses lean to one side
(docs/statistics.md#missing)."""

from __future__ import annotations

from dataclasses import dataclass

from scipy import stats as distributions

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
    """Rows lost by us (not errors or timeouts of an arm: those are outcomes) on one side only, tested against a coin."""
    n = treatment_only + control_only
    p = float(distributions.binomtest(treatment_only, n, 0.5).pvalue) if n else 1.0
    return Losses(
        treatment_only=treatment_only, control_only=control_only, p_value=min(1.0, p), lopsided=p < LOPSIDED_P
    )


def too_much_shed(n_shed: int, n_sampled: int) -> bool:
    """Sheds are the treatment's by nature and are judged by their share alone: more than 5 % of the sampled."""
    return n_sampled > 0 and n_shed > MAX_SHED_SHARE * n_sampled
