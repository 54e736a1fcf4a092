"""Audit of a judge on a log: seat bias, consistency, length effect and agreement with labels. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evalpipe.analysis.result import Agreement, JudgeResult

LEAST_CONSISTENCY = 0.5
"""Below this a judge contradicts itself on most pairs it sees twice (`unreliable_judge` in
docs/statistics.md#win-rate)."""
MOST_SEAT_BIAS = 0.15
"""Distance of the first-seat rate from one half: a Claude-3-Haiku judge measured at .63 is inside, .70 is not."""
LEAST_KAPPA = 0.2
"""Agreement with labels at or below this is called slight (Landis and Koch 1977)."""
MOST_FAILED = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """`trusted` None: too little is known. `reasons`: why not, or what is missing."""

    result: JudgeResult
    longer_wins: float | None
    trusted: bool | None
    reasons: list[str]

    def as_json(self) -> dict[str, Any]:
        found = self.result
        return {
            "judge": found.name,
            "fingerprint": found.fingerprint,
            "model": found.model,
            "simulated": found.simulated,
            "trusted": self.trusted,
            "reasons": self.reasons,
            "n_pairs": found.n_judged,
            "asked_pairs": found.asked_pairs,
            "failures": dict(found.failures),
            "consistency": [found.consistency, found.consistency_low, found.consistency_high],
            "n_both_orders": found.n_both_orders,
            "flips": found.flips,
            "first_seat_rate": [found.first_seat_rate, found.first_seat_low, found.first_seat_high],
            "longer_wins": self.longer_wins,
            "agreements": [_agreement(one) for one in found.agreements],
            "cost_usd": found.cost_usd,
        }


def audit(result: JudgeResult) -> Audit:
    """Audit a judge. A limit counts as broken only where the whole interval lies beyond it."""
    against: list[str] = []
    missing: list[str] = []
    if result.consistency is None:
        missing.append("no pair was judged in both orders: consistency and seat bias are not known")
    elif result.consistency_high is not None and result.consistency_high < LEAST_CONSISTENCY:
        against.append(f"contradicts itself when the order is swapped: consistent on {result.consistency:.0%} of pairs")
    low, high = result.first_seat_low, result.first_seat_high
    if low is not None and high is not None and (low > 0.5 + MOST_SEAT_BIAS or high < 0.5 - MOST_SEAT_BIAS):
        seat = "first" if low > 0.5 else "second"
        against.append(f"prefers the {seat} seat: the first one gets {result.first_seat_rate:.0%}")
    labelled = [one for one in result.agreements if one.n_labels]
    if not labelled:
        missing.append("no labelled pairs: whether it is right is not known")
    for one in labelled:
        if one.kappa_high is not None and one.kappa_high <= LEAST_KAPPA:
            against.append(f"agrees with {one.source} no better than chance would: kappa {one.kappa:.2f}")
    asked = max(result.asked_pairs, result.n_judged)
    if asked and (asked - result.n_judged) / asked > MOST_FAILED:
        against.append(f"gave no verdict on {asked - result.n_judged:,} of {asked:,} pairs")
    if not result.n_judged:
        against.append("has judged no pair")
    trusted = False if against else None if missing else True
    return Audit(result=result, longer_wins=_longer_wins(result), trusted=trusted, reasons=against + missing)


def _longer_wins(result: JudgeResult) -> float | None:
    """How often the longer answer wins, over pairs whose lengths differ, ties as half."""
    won = n = 0.0
    for bin_ in result.length_bins:
        if bin_.win_rate is None or bin_.low < 0 < bin_.high or not bin_.n:
            continue
        won += bin_.n * (bin_.win_rate if bin_.low >= 0 else 1 - bin_.win_rate)
        n += bin_.n
    return won / n if n else None


def _agreement(one: Agreement) -> dict[str, Any]:
    return {
        "source": one.source,
        "n_labels": one.n_labels,
        "accuracy": [one.accuracy, one.accuracy_low, one.accuracy_high],
        "kappa": [one.kappa, one.kappa_low, one.kappa_high],
        "status": one.status,
    }
