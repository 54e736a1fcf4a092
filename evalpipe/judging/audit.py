"""Audit of a judge on a log: seat bias, consistency, length effect, agreement with labels, and what to label next. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from evalpipe.analysis.corrected import JudgedPair
from evalpipe.analysis.result import Agreement, JudgeResult
from evalpipe.stats.ppi import draw_probabilities

LEAST_CONSISTENCY = 0.5
"""Below this a judge contradicts itself on most pairs it sees twice (`unreliable_judge` in
docs/statistics.md#win-rate)."""
MOST_SEAT_BIAS = 0.15
"""Distance of the first-seat rate from one half: a Claude-3-Haiku judge measured at .63 is inside, .70 is not."""
LEAST_KAPPA = 0.2
"""Agreement with labels at or below this is called slight (Landis and Koch 1977)."""
LEAST_LABELS = 20
"""below which an agreement without an interval is not evidence"""
MOST_FAILED = 0.2
PRIOR_LABELS = 2
"""labels that the error expected from the judge's consistency counts as, beside those of a kind of verdict"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairToLabel:
    """A pair without a label.

    Attributes:
        preference: the judge's for the treatment, in [0, 1].
        kind: orders_disagree | orders_agree | tie | one_order: what is known of the verdict's error by it.
        error: how likely the judge is wrong, calibrated on the labelled pairs of this kind.
        uncertainty: √(error·(1 − error)), what its label narrows the interval by, beside the others.
        probability: with which to draw it where as many pairs are drawn as are listed.
    """

    request_id: str
    preference: float
    kind: str
    error: float
    uncertainty: float
    probability: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """`trusted` None: too little is known. `reasons`: why not, or what is missing."""

    result: JudgeResult
    longer_wins: float | None
    trusted: bool | None
    reasons: list[str]
    labellers: list[Agreement] = field(default_factory=list)
    """the judge against each person"""
    people: list[Agreement] = field(default_factory=list)
    """every two people on the pairs that both labelled"""
    next_pairs: list[PairToLabel] = field(default_factory=list)

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
            "labellers": [{**_agreement(one), "labeller": one.labeller} for one in self.labellers],
            "people": [
                {**_agreement(one), "source": None, "people": [one.source, one.labeller]} for one in self.people
            ],
            "label_next": [
                {
                    "request_id": one.request_id,
                    "preference": one.preference,
                    "kind": one.kind,
                    "error": one.error,
                    "uncertainty": one.uncertainty,
                    "probability": one.probability,
                }
                for one in self.next_pairs
            ],
            "cost_usd": found.cost_usd,
        }


def audit(
    result: JudgeResult,
    *,
    labellers: Sequence[Agreement] = (),
    people: Sequence[Agreement] = (),
    next_pairs: Sequence[PairToLabel] = (),
) -> Audit:
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
        # A judge with one verdict for all has a kappa of 0 and no interval.
        bound = one.kappa_high
        if bound is None and one.n_labels >= LEAST_LABELS and (one.ac1 or 0.0) <= LEAST_KAPPA:
            bound = one.kappa
        if one.kappa is not None and bound is not None and bound <= LEAST_KAPPA:
            against.append(f"agrees with {one.source} no better than chance would: kappa {one.kappa:.2f}")
    asked = max(result.asked_pairs, result.n_judged)
    if asked and (asked - result.n_judged) / asked > MOST_FAILED:
        against.append(f"gave no verdict on {asked - result.n_judged:,} of {asked:,} pairs")
    if not result.n_judged:
        against.append("has judged no pair")
    trusted = False if against else None if missing else True
    return Audit(
        result=result,
        longer_wins=_longer_wins(result),
        trusted=trusted,
        reasons=against + missing,
        labellers=list(labellers),
        people=list(people),
        next_pairs=list(next_pairs),
    )


def pairs_to_label(pairs: Sequence[JudgedPair], n: int) -> list[PairToLabel]:
    """The `n` pairs without a label whose labels would narrow the interval of the corrected win rate most, those first.

    The judge's error is estimated for each kind of verdict: the mean distance of its preference from the labels, with the error
    that its consistency suggests as a prior of two labels. A pair of a user with k pairs that count weighs 1/k.
    """
    expected = _expected_errors(pairs)
    found: dict[str, list[float]] = {}
    for pair in pairs:
        if pair.label is not None:
            found.setdefault(_kind(pair), []).append(abs(pair.preference - pair.label))
    errors = {
        kind: (sum(found.get(kind, [])) + PRIOR_LABELS * prior) / (len(found.get(kind, [])) + PRIOR_LABELS)
        for kind, prior in expected.items()
    }
    open_ = [pair for pair in pairs if pair.label is None]
    uncertainties = [math.sqrt(errors[_kind(pair)] * (1 - errors[_kind(pair)])) for pair in open_]
    weights = [u / pair.of_user for u, pair in zip(uncertainties, open_, strict=True)]
    probabilities = draw_probabilities(weights, n).tolist()
    ranked = sorted(range(len(open_)), key=lambda k: -weights[k])  # equals stay in the order they came, which is random
    return [
        PairToLabel(
            request_id=open_[k].request_id,
            preference=open_[k].preference,
            kind=_kind(open_[k]),
            error=errors[_kind(open_[k])],
            uncertainty=uncertainties[k],
            probability=probabilities[k],
        )
        for k in ranked[:n]
    ]


def _kind(pair: JudgedPair) -> str:
    first, second = pair.treatment_first, pair.control_first
    if first is None or second is None:
        return "tie" if pair.preference == 0.5 else "one_order"
    signs = {(value > 0.5) - (value < 0.5) for value in (first, second)}
    if len(signs) > 1:
        return "orders_disagree"
    return "tie" if signs == {0} else "orders_agree"


def _expected_errors(pairs: Sequence[JudgedPair]) -> dict[str, float]:
    """How often a judge of this consistency is wrong by kind of verdict, if both orders err independently and as often: right
    with a in each, it agrees with itself in c = a² + (1 − a)², and is then wrong in (1 − a)²/c."""
    kinds = [_kind(pair) for pair in pairs]
    agree, disagree = kinds.count("orders_agree"), kinds.count("orders_disagree")
    consistency = agree / (agree + disagree) if agree + disagree else 0.75
    right = (1 + math.sqrt(max(0.0, 2 * consistency - 1))) / 2
    wrong = 1 - right
    both = right**2 + wrong**2
    return {"orders_agree": wrong**2 / both, "orders_disagree": 0.5, "tie": 0.5, "one_order": wrong}


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
        "ac1": [one.ac1, one.ac1_low, one.ac1_high],
        "status": one.status,
    }
