"""One judge (or one source of labels) on the page: what a reader needs to know before trusting it, and what people's labels
correct of it: the win rate, the judge's error, and what a judge can hide where nobody labelled."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from evalpipe.analysis.result import Agreement, Analysis, Check, CorrectedRate, JudgeResult, MetricResult, WinRate
from evalpipe.report.metrics import Fact, margin_text
from evalpipe.report.terms import WIN_RULES, plain, status_words
from evalpipe.text import (
    MINUS,
    MISSING,
    NBSP,
    NumberFormat,
    format_count,
    format_counted,
    format_usd,
    full_sentence,
    number_format,
    p_clause,
    sentence_case,
)


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


def answered_by(judge: JudgeResult) -> str:
    """The model that gave the verdicts, or the program in its place; "" where it is not recorded."""
    if not judge.simulated:
        return judge.model or ""
    is_a_name = judge.model and not judge.model.startswith("simulated")
    stands_for = f" (in the place of {judge.model})" if is_a_name else ""
    return f"the simulated judge{stands_for}"


def _rule(judge: JudgeResult) -> str:
    return f"The rule it follows: {judge.simulated_rule}" if judge.simulated_rule else ""


def _facts(judge: JudgeResult) -> list[Fact]:
    facts = [Fact(name="Model", text=sentence_case(answered_by(judge)) if judge.simulated else judge.model or MISSING)]
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


# Can the judge be trusted? A sentence that names the evidence for it and everything that was found against it.


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
    people is not shown (lower limit of kappa under 0.4), or there is evidence against it. good: none of these. unknown: never
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


LABELS_QUESTION = "Do people agree with the judge?"
EFFECT = 5.0
"""points of a true difference, as an example"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CorrectedView:
    """Every figure of the correction."""

    facts: list[Fact]


def corrected_view(analysis: Analysis) -> CorrectedView | None:
    """None without labels."""
    found = analysis.corrected
    if found is None:
        return None
    return CorrectedView(facts=_labels_facts(found, _deciding(analysis)))


def labels_answer(analysis: Analysis) -> str:
    """What people's labels show of the judge; without labels what the judge can hide; "" without either."""
    judge, found = _deciding(analysis), analysis.corrected
    if found is None or not found.n_labels:
        return "" if judge is None else hidden(judge)
    parts = [_rate(found, judge)]
    if found.note:
        parts.append(found.note)
    favoured = found.biased
    error = next((one for one in found.errors if one.arm == "treatment"), None)
    if favoured is not None:
        whose = "control's" if favoured.arm == "control" else "the treatment's"
        size = _points(favoured.error, favoured.ci_low, favoured.ci_high)
        parts.append(f"the judge favours {whose} answers by {size}, which its own win rate does not show")
    elif error is not None and error.status == "ok":
        size = _points(error.error, error.ci_low, error.ci_high)
        parts.append(f"the judge is not shown to favour either arm (the treatment's answers: {size})")
    if found.sampling == "random" and found.n_labels < found.n_pairs and not found.decides:  # else a check reports it
        parts.append("the labels hold no probability of their draw, so they are taken for a random sample of the pairs")
    return " ".join(full_sentence(part) for part in parts)


def hidden(judge: JudgeResult) -> str:
    """What "preferred" is without labels, and how small a true difference shows by the judge's consistency."""
    first = "Not known: no pair was labelled. Preferred means preferred by this judge."
    low, high = judge.shows_at_least, judge.shows_at_most
    if low is None or high is None:
        return first
    if high == 0:
        return f"{first} Its two orders agree no better than chance: a true difference of any size can be hidden."
    at_least, at_most = EFFECT * low, EFFECT * high
    shown = f"{at_most:.1f}" if f"{at_least:.1f}" == f"{at_most:.1f}" else f"{at_least:.1f} to {at_most:.1f}"
    return (
        f"{first} By the agreement of its two orders a true lead of {EFFECT:.0f} points shows as {shown} points, if its mistakes "
        "in the two orders are independent and alike for both arms; a mistake made in both orders is not seen in its "
        "consistency, and can hide more or invent a difference."
    )


def _rate(found: CorrectedRate, judge: JudgeResult | None) -> str:
    rate = share_with_interval(found.value, found.ci_low, found.ci_high)
    own = "" if judge is None or judge.win_rate is None else f"; the judge alone: {SHARE.value(judge.win_rate)}"
    size = f"{format_counted(found.n_labels, 'label')} and the verdicts on {format_counted(found.n_pairs, 'pair')}"
    text = f"corrected by people, the treatment is preferred in {rate} ({size}{own})"
    if found.gain is not None and found.lam > 0:
        text += f"; with the judge one label is worth {found.gain:.1f}"
    if found.decides:
        return f"{text}. It decides in place of the judge's own win rate"
    if found.setting == "off":
        return f'{text}. It decides nothing (labels = "off" in [decision])'
    if found.needed_labels:
        more = format_counted(found.needed_labels, "more label")
        return f"{text}. It decides in place of the judge's own win rate from {more} on"
    return text


def _labels_facts(found: CorrectedRate, judge: JudgeResult | None) -> list[Fact]:
    used = f"{format_counted(found.n_labels, 'label')} of {format_counted(found.n_users, 'user')}"
    if found.n_left_out:
        left = format_counted(found.n_left_out, "labelled pair")
        used += f"; {left} not used (not among the pairs that count, or of another sample)"
    sampling = {
        "known": "drawn with recorded probabilities",
        "random": "taken for a random sample: no probability of the draw is recorded",
    }
    facts = [
        Fact(name="Corrected win rate", text=share_with_interval(found.value, found.ci_low, found.ci_high)),
        Fact(
            name="The judge alone",
            text=MISSING if judge is None else share_with_interval(judge.win_rate, judge.ci_low, judge.ci_high),
        ),
        Fact(name="Labels used", text=used),
        Fact(name="Labels from", text=", ".join(found.sources) or MISSING),
        Fact(name="How pairs were drawn", text=sampling.get(found.sampling, found.sampling)),
        Fact(name="Pairs in the win rate", text=format_count(found.n_pairs)),
        Fact(name="λ, how much of the judge is used", text=TWO.value(found.lam)),
        Fact(
            name="What a label is worth with the judge",
            text="not known" if found.gain is None else f"{found.gain:.2f} labels",
        ),
    ]
    for one in found.errors:
        whose = "control's" if one.arm == "control" else "the treatment's"
        text = _points(one.error, one.ci_low, one.ci_high) if one.status == "ok" else status_words(one.status)
        facts.append(Fact(name=f"The judge's error for {whose} answers", text=text))
    facts.append(Fact(name="Method", text=found.method or MISSING))
    if found.status != "ok":
        facts.append(Fact(name="Status", text=f"{found.status}: {status_words(found.status)}"))
    return facts


def _points(value: float | None, low: float | None, high: float | None) -> str:
    """ "+4.1 points (1.0 to 7.2)"."""
    if value is None:
        return MISSING
    text = f"{100 * value:+.1f}{NBSP}points"
    if low is not None and high is not None:
        text += f" ({100 * low:+.1f} to {100 * high:+.1f})"
    return text.replace("-", MINUS)


def _deciding(analysis: Analysis) -> JudgeResult | None:
    return next((one for one in analysis.judges if one.feeds_decision), None)
