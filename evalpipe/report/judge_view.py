"""One judge (or one source of labels) → what a reader needs to know before believing it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from evalpipe.analysis.result import Agreement, JudgeResult, WinRate
from evalpipe.core.format import (
    MISSING,
    NBSP,
    NumberFormat,
    format_count,
    format_counted,
    format_usd,
    number_format,
    p_clause,
)
from evalpipe.report.metric_view import Fact
from evalpipe.report.words import WIN_RULES, plain, status_words

SHARE = NumberFormat(factor=100.0, decimals=1, suffix=f"{NBSP}%")
TWO = NumberFormat(decimals=2)


@dataclass(frozen=True, kw_only=True, slots=True)
class RateRow:
    """A win rate with its interval, one way of counting."""

    label: str
    rate: str
    interval: str
    n: str
    low: float | None
    point: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeView:
    """`trust` is the sentence that says whether to believe it; `trust_level`: good | care | bad | unknown."""

    name: str
    is_labels: bool
    is_shown: bool
    """in full; the others are folded"""
    preferred: str
    feeds_decision: bool
    simulated: bool
    trust: str
    trust_level: str
    facts: list[Fact]
    rates: list[RateRow]
    agreements: list[list[str]]
    rubric: str | None
    note: str
    raw: JudgeResult


AGREEMENT_COLUMNS = ("Labels from", "Labelled pairs", "Agreement", "Kappa")


def judge_view(judge: JudgeResult) -> JudgeView:
    level, trust = judge_trust(judge)
    return JudgeView(
        name=judge.name,
        is_labels=judge.name.startswith("label:"),
        is_shown=judge.feeds_decision,
        preferred=share_with_interval(judge.win_rate, judge.ci_low, judge.ci_high),
        feeds_decision=judge.feeds_decision,
        simulated=judge.simulated,
        trust=trust,
        trust_level=level,
        facts=_facts(judge),
        rates=_rates(judge),
        agreements=[_agreement_row(agreement) for agreement in _agreements(judge)],
        rubric=judge.rubric,
        note=judge.note or "",
        raw=judge,
    )


def share_with_interval(value: float | None, low: float | None, high: float | None) -> str:
    """ "58.0 % (54.1 to 61.9 %)"; the interval only where there is one."""
    if value is None:
        return MISSING
    if low is None or high is None:
        return SHARE.value(value)
    return f"{SHARE.value(value)} ({SHARE.value_interval(low, high)})"


def judge_trust(judge: JudgeResult) -> tuple[str, str]:
    """Can this judge be trusted? A level and a sentence with the numbers it rests on.

    bad: simulated, or a status other than ok that says so. care: orders agree in under 75 % of pairs, or agreement with
    people is not shown (lower limit of kappa under 0.4). good: neither. unknown: never checked in either way.
    """
    if judge.name.startswith("label:"):
        return "good", "These are people's (or tests') own preferences; no judge stands between."
    if judge.simulated:
        return (
            "bad",
            "No: its verdicts are simulated by a stated rule. They show how the report works, not which arm is better.",
        )
    best = max(_agreements(judge), key=lambda agreement: agreement.n_labels, default=None)
    parts: list[str] = []
    if judge.consistency is not None:
        share = share_with_interval(judge.consistency, judge.consistency_low, judge.consistency_high)
        parts.append(f"it names the same winner in both orders in {share} of pairs")
    if best is not None and best.accuracy is not None:
        kappa = "" if best.kappa is None else f", kappa {_kappa(best)}"
        share = share_with_interval(best.accuracy, best.accuracy_low, best.accuracy_high)
        parts.append(f"it agrees with {format_counted(best.n_labels, 'label')} in {share}{kappa}")
    else:
        parts.append("nobody has labelled pairs to check it against")
    evidence = "; ".join(parts)
    if judge.status == "unreliable_judge":
        return "bad", f"No: {evidence}."
    if judge.consistency is None and best is None:
        return "unknown", f"Not known: it was asked in one order only, and {evidence}."
    checked = best is not None and best.kappa_low is not None and best.kappa_low >= 0.4
    consistent = judge.consistency is not None and judge.consistency >= 0.75
    if checked and (consistent or judge.consistency is None):
        return "good", f"Yes, as far as checked: {evidence}."
    return "care", f"With care: {evidence}."


def _agreements(judge: JudgeResult) -> list[Agreement]:
    listed = judge.agreements or [judge.agreement]
    return [agreement for agreement in listed if agreement.n_labels > 0]


def _agreement_row(agreement: Agreement) -> list[str]:
    kappa = _kappa(agreement)
    if agreement.kappa is None and agreement.status != "ok":
        kappa = status_words(agreement.status)
    return [
        agreement.source or MISSING,
        format_count(agreement.n_labels),
        share_with_interval(agreement.accuracy, agreement.accuracy_low, agreement.accuracy_high),
        kappa,
    ]


def _kappa(agreement: Agreement) -> str:
    """ "0.52 (0.36 to 0.68)"."""
    kappa = TWO.value(agreement.kappa)
    if agreement.kappa_low is None or agreement.kappa_high is None:
        return kappa
    return f"{kappa} ({TWO.value_interval(agreement.kappa_low, agreement.kappa_high)})"


def _rates(judge: JudgeResult) -> list[RateRow]:
    rules = judge.rules or [
        WinRate(rule="mean", value=judge.win_rate, ci_low=judge.ci_low, ci_high=judge.ci_high, n=judge.n_pairs)
    ]
    one_order = judge.n_both_orders == 0
    if one_order:  # without a second order there is no disagreement to count one way or another
        rules = [dataclasses.replace(rules[0], rule="mean")]
    rows = [_rate_row(WIN_RULES.get(rule.rule, plain(rule.rule)), rule) for rule in rules]
    if judge.length_controlled is not None:
        rows.append(_rate_row("Had both answers been equally long", judge.length_controlled))
    if judge.missing_low is not None and judge.missing_high is not None and judge.missing_low < judge.missing_high:
        bounds = WinRate(
            rule="bounds", value=None, ci_low=judge.missing_low, ci_high=judge.missing_high, n=judge.asked_pairs
        )
        rows.append(_rate_row("Had every missing verdict gone one way", bounds))
    return rows


def _rate_row(label: str, rule: WinRate) -> RateRow:
    scale = number_format("ratio", largest=1.0, half_width=0.01)
    return RateRow(
        label=label,
        rate=scale.value(rule.value),
        interval=scale.value_interval(rule.ci_low, rule.ci_high),
        n=format_count(rule.n),
        low=rule.ci_low,
        point=rule.value,
        high=rule.ci_high,
    )


def _facts(judge: JudgeResult) -> list[Fact]:
    facts = [Fact(name="Model", text=judge.model or MISSING)]
    if judge.win_rate is not None:
        text = f"{share_with_interval(judge.win_rate, judge.ci_low, judge.ci_high)}, {p_clause(judge.p_value)}"
        facts.append(Fact(name="Treatment preferred", text=text))
    counts = f"won {format_count(judge.wins)}, tied {format_count(judge.ties)}, lost {format_count(judge.losses)}"
    facts.append(Fact(name="Pairs", text=f"{format_count(judge.n_pairs)} judged; the treatment {counts}"))
    if not judge.name.startswith("label:"):
        facts.append(Fact(name="Coverage", text=_coverage(judge)))
        facts.append(Fact(name="Consistency", text=_consistency(judge)))
        seat = share_with_interval(judge.first_seat_rate, judge.first_seat_low, judge.first_seat_high)
        seat_text = f"{seat} of clear verdicts (50{NBSP}% = no seat bias)"
        facts.append(
            Fact(name="Picks the first seat", text="not measured" if judge.first_seat_rate is None else seat_text)
        )
        cost = format_usd(judge.cost_usd)
        if judge.cost_at_most_usd is not None:
            cost += f", calls that were cut off at an estimate (at most {format_usd(judge.cost_at_most_usd)})"
        facts.append(Fact(name="Cost of judging", text=cost))
        facts.append(Fact(name="Fingerprint", text=judge.fingerprint))
    facts.append(Fact(name="Method", text=judge.method or MISSING))
    if judge.status != "ok":
        facts.append(Fact(name="Status", text=f"{judge.status}: {status_words(judge.status)}"))
    return facts


def _coverage(judge: JudgeResult) -> str:
    asked = judge.asked_pairs or judge.n_pairs
    text = f"{format_count(judge.n_pairs)} of {format_count(asked)} pairs have a verdict"
    failures = [f"{format_count(n)} {plain(kind)}" for kind, n in judge.failures.items() if n]
    if failures:
        text += f"; failed judgments: {', '.join(failures)}"
    return text


def _consistency(judge: JudgeResult) -> str:
    if judge.consistency is None:
        return "not measured: no pair was judged in both orders"
    share = share_with_interval(judge.consistency, judge.consistency_low, judge.consistency_high)
    flips = format_count(judge.flips)
    return f"{share} of {format_count(judge.n_both_orders)} pairs judged in both orders; {flips} flipped the winner"
