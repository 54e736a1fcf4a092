"""Can the judge be trusted? A sentence that names what speaks for it and everything that was found against it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evalpipe.analysis.result import Agreement, Check, JudgeResult, MetricResult
from evalpipe.core.format import MISSING, NBSP, NumberFormat, format_counted, sentence_case
from evalpipe.report.metric_view import margin_text

SHARE = NumberFormat(factor=100.0, decimals=1, suffix=f"{NBSP}%")
TWO = NumberFormat(decimals=2)
CERTAIN_Z = 1.96
"""two-sided 5 %: the outer groups of answers by length differ by more than chance"""


def share_with_interval(value: float | None, low: float | None, high: float | None) -> str:
    """ "58.0 % (54.1 to 61.9 %)"; the interval only where there is one."""
    if value is None:
        return MISSING
    if low is None or high is None:
        return SHARE.value(value)
    return f"{SHARE.value(value)} ({SHARE.value_interval(low, high)})"


def judge_trust(judge: JudgeResult, checks: Sequence[Check] = ()) -> tuple[str, str]:
    """Can this judge be trusted? A level and a sentence with the numbers it rests on.

    bad: simulated, or not reliable by its status. care: orders agree in under 75 % of pairs, or agreement with
    people is not shown (lower limit of kappa under 0.4), or something speaks against it. good: none of these. unknown: never
    checked in either way. Whatever was found against it is named; `checks` has what follows from the judge's name.
    """
    if judge.name.startswith("label:"):
        return "good", "These are people's (or tests') own preferences; no judge is involved."
    if judge.simulated:
        return (
            "bad",
            "No: its verdicts are simulated by a stated rule. They show how the report works, not which arm is better.",
        )
    best = max(agreements_of(judge), key=lambda agreement: agreement.n_labels, default=None)
    parts: list[str] = []
    if judge.consistency is not None:
        share = share_with_interval(judge.consistency, judge.consistency_low, judge.consistency_high)
        parts.append(f"it names the same winner in both orders in {share} of pairs")
    if best is not None and best.accuracy is not None:
        kappa = "" if best.kappa is None else f", kappa {kappa_text(best)}"
        share = share_with_interval(best.accuracy, best.accuracy_low, best.accuracy_high)
        parts.append(f"it agrees with {format_counted(best.n_labels, 'label')} in {share}{kappa}")
    else:
        parts.append("no pair was labelled by people to compare it with")
    evidence, against = "; ".join(parts), _against(judge, checks)
    but = f" {sentence_case('; '.join(against))}." if against else ""
    if judge.status == "unreliable_judge":
        return "bad", f"No: {evidence}.{but}"
    if judge.consistency is None and best is None:
        return "unknown", f"Not known: it was asked in one order only, and {evidence}.{but}"
    checked = best is not None and best.kappa_low is not None and best.kappa_low >= 0.4
    consistent = judge.consistency is not None and judge.consistency >= 0.75
    if checked and (consistent or judge.consistency is None) and not against:
        return "good", f"Yes, as far as checked: {evidence}."
    return "care", f"With care: {evidence}.{but}"


def _against(judge: JudgeResult, checks: Sequence[Check]) -> list[str]:
    """What was found against trusting it, each with its numbers."""
    found = [check.detail for check in checks if check.name == "judge_family" and check.status != "pass"]
    low, high = judge.first_seat_low, judge.first_seat_high
    if low is not None and high is not None and (low > 0.5 or high < 0.5):
        seat = share_with_interval(judge.first_seat_rate, low, high)
        found.append(
            f"the answer shown {'first' if low > 0.5 else 'second'} is favoured: the first one gets {seat} of the preference"
        )
    length = _by_length(judge)
    return [*found, length] if length else found


def _by_length(judge: JudgeResult) -> str:
    """Whether the treatment is preferred more (or less) the longer its answer: the outermost groups compared."""
    bins = [one for one in judge.length_bins if one.n > 1 and one.win_rate is not None]
    if len(bins) < 2:
        return ""
    (n, short), (m, long) = ((one.n, one.win_rate or 0.0) for one in (bins[0], bins[-1]))
    # No spread of preferences in [0, 1] is wider than that of wins and losses alone.
    error = math.sqrt(short * (1 - short) / n + long * (1 - long) / m)
    if abs(long - short) <= CERTAIN_Z * error:
        return ""
    word = "longer" if long > short else "shorter"
    return (
        f"{word} answers are preferred (win rate {SHARE.value(short)} where the treatment's are shortest against control's, "
        f"{SHARE.value(long)} where they are longest)"
    )


def at_equal_length(judge: JudgeResult, metric: MetricResult) -> str:
    """One sentence where the win rate at equal length no longer supports the finding of the win rate, or a loss beyond its
    margin; else ""."""
    other = judge.length_controlled
    if (
        other is None
        or other.ci_low is None
        or other.ci_high is None
        or metric.ci_low is None
        or metric.ci_high is None
    ):
        return ""
    low, high, margin = other.ci_low - 0.5, other.ci_high - 0.5, metric.margin
    if metric.finding == "worse" and high >= 0:
        but = "no longer shown to be worse"
    elif metric.finding == "worse" and metric.ci_high < -margin <= high:
        but = f"worse, but no longer shown to exceed the margin of {margin_text(metric)}"
    elif metric.finding == "better" and low <= 0:
        but = "no longer shown to be better"
    elif metric.finding == "equivalent" and not (-margin < low and high < margin):
        but = "no longer shown to lie within the margin"
    else:
        return ""
    equal = share_with_interval(other.value, other.ci_low, other.ci_high)
    raw = share_with_interval(judge.win_rate, judge.ci_low, judge.ci_high)
    return f"Had both answers been equally long, the win rate would be {equal} instead of {raw}: {but}."


def agreements_of(judge: JudgeResult) -> list[Agreement]:
    listed = judge.agreements or [judge.agreement]
    return [agreement for agreement in listed if agreement.n_labels > 0]


def kappa_text(agreement: Agreement) -> str:
    """ "0.52 (0.36 to 0.68)"."""
    kappa = TWO.value(agreement.kappa)
    if agreement.kappa_low is None or agreement.kappa_high is None:
        return kappa
    return f"{kappa} ({TWO.value_interval(agreement.kappa_low, agreement.kappa_high)})"
