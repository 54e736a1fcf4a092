"""One judge (or one source of labels) → what a reader needs to know before trusting it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from evalpipe.analysis.result import Agreement, Check, JudgeResult, WinRate
from evalpipe.core.format import (
    MISSING,
    NBSP,
    format_count,
    format_counted,
    format_usd,
    full_sentence,
    number_format,
    p_clause,
)
from evalpipe.report.judge_trust import SHARE, agreements_of, judge_trust, kappa_text, share_with_interval
from evalpipe.report.metric_view import Fact
from evalpipe.report.words import WIN_RULES, plain, status_words


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
    """`trust` is the sentence on whether to trust it; `trust_level`: good | care | bad | unknown."""

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


_MAX_NAMED = 5
AGREEMENT_COLUMNS = ("Labels from", "Labelled pairs", "Agreement", "Kappa")


def judge_view(judge: JudgeResult, checks: Sequence[Check] = ()) -> JudgeView:
    level, trust = judge_trust(judge, checks if judge.feeds_decision else ())
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
        agreements=[_agreement_row(agreement) for agreement in agreements_of(judge)],
        rubric=judge.rubric,
        note=" ".join(full_sentence(text) for text in (_rule(judge), judge.note) if text),
        raw=judge,
    )


def _agreement_row(agreement: Agreement) -> list[str]:
    kappa = kappa_text(agreement)
    if agreement.kappa is None and agreement.status != "ok":
        kappa = status_words(agreement.status)
    return [
        agreement.source or MISSING,
        format_count(agreement.n_labels),
        share_with_interval(agreement.accuracy, agreement.accuracy_low, agreement.accuracy_high),
        kappa,
    ]


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


def _rule(judge: JudgeResult) -> str:
    return f"The rule it follows: {judge.simulated_rule}" if judge.simulated_rule else ""


def _facts(judge: JudgeResult) -> list[Fact]:
    facts = [Fact(name="Model", text=judge.model or MISSING)]
    if judge.win_rate is not None:
        text = f"{share_with_interval(judge.win_rate, judge.ci_low, judge.ci_high)}, {p_clause(judge.p_value)}"
        if judge.n_clusters and judge.n_clusters != judge.n_pairs and judge.win_rate_over_pairs is not None:
            text += f"; each user counted once (over these pairs {SHARE.value(judge.win_rate_over_pairs)})"
        facts.append(Fact(name="Win rate" if judge.graded else "Treatment preferred", text=text))
    counts = f"won {format_count(judge.wins)}, tied {format_count(judge.ties)}, lost {format_count(judge.losses)}"
    facts.append(Fact(name="Pairs", text=f"{format_count(judge.n_pairs)} judged; the treatment {counts}"))
    if judge.n_beyond:
        beyond = f"{format_counted(judge.n_beyond, 'more judged pair')} of users who have as many as count: shown, not counted"
        facts.append(Fact(name="Beyond the limit per user", text=beyond))
    if not judge.name.startswith("label:"):
        facts.append(Fact(name="Coverage", text=_coverage(judge)))
        if judge.other_models:
            facts.append(Fact(name="Answered by other models", text=_other_models(judge)))
        facts.append(Fact(name="Consistency", text=_consistency(judge)))
        seat = share_with_interval(judge.first_seat_rate, judge.first_seat_low, judge.first_seat_high)
        seat_text = f"{seat} of clear verdicts (50{NBSP}% = no seat bias)"
        facts.append(
            Fact(name="Picks the first seat", text="not measured" if judge.first_seat_rate is None else seat_text)
        )
        cost = format_usd(judge.cost_usd)
        if judge.cost_at_most_usd is not None:
            cost += ", calls that were cut off or answered without a usage at an estimate "
            cost += f"(at most {format_usd(judge.cost_at_most_usd)})"
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
    if judge.given_up:
        named = ", ".join(judge.given_up_requests[:_MAX_NAMED])
        more = ", …" if len(judge.given_up_requests) > _MAX_NAMED else ""
        text += f"; given up after answers without a verdict: {format_count(judge.given_up)} ({named}{more})"
    return text


def _other_models(judge: JudgeResult) -> str:
    named = ", ".join(f"{model} ({format_counted(n, 'call')})" for model, n in sorted(judge.other_models.items()))
    return f"{named}: these calls are priced as the model that answered"


def _consistency(judge: JudgeResult) -> str:
    if judge.consistency is None:
        return "not measured: no pair was judged in both orders"
    share = share_with_interval(judge.consistency, judge.consistency_low, judge.consistency_high)
    flips = format_count(judge.flips)
    return f"{share} of {format_count(judge.n_both_orders)} pairs judged in both orders; {flips} flipped the winner"
