"""The top of the page: the recommendation, and the questions a manager asks, answered in a line each."""

from __future__ import annotations

from dataclasses import dataclass

from evalpipe.analysis.result import Analysis, Decision
from evalpipe.core.format import (
    NBSP,
    format_counted,
    format_day,
    format_percent,
    full_sentence,
    p_clause,
    readable_instants,
    sentence_case,
    together,
    within_sentence,
)
from evalpipe.report.judge_trust import at_equal_length
from evalpipe.report.judge_view import JudgeView
from evalpipe.report.metric_view import Fact, MetricRow
from evalpipe.report.problems import Problem, problems
from evalpipe.report.words import LOOKS, MODES, POLICIES, RECOMMENDATIONS

PARTS = ("since", "until", "where")
MOST_NAMED = 4
"""metrics an answer names; the table has the rest"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The answer to a question: metrics with their differences where it is about metrics, then what is left to say."""

    name: str
    metrics: list[tuple[str, str]]
    rest: str

    @property
    def text(self) -> str:
        """All of it in one paragraph."""
        named = "; ".join(f"{within_sentence(label)} {change}" for label, change in self.metrics)
        return " ".join(part for part in (f"{sentence_case(named)}." if named else "", self.rest) if part)


@dataclass(frozen=True, kw_only=True, slots=True)
class SummaryView:
    recommendation: str
    recommendation_word: str
    headline: str
    reasons: list[str]
    would_change: list[str]
    answers: list[Answer]
    compared: list[Fact]
    problems: list[Problem]


def summary_view(analysis: Analysis, rows: list[MetricRow], judges: list[JudgeView]) -> SummaryView:
    decision = analysis.decision
    word = RECOMMENDATIONS.get(decision.recommendation, decision.recommendation)
    reasons = [_readable(reason) for reason in decision.reasons if reason]
    headline = headline_of(decision)
    if not decision.headline and reasons:
        reasons.pop(0)  # it is the headline
    warned = [check.detail for check in analysis.checks if check.status != "pass"]
    # What the headline or a problem above it says already is not said again.
    said = {_words(headline), _words(decision.headline)}
    reasons = [
        r
        for r in reasons
        if _words(r) not in said
        and _gist(r) not in _words(headline)
        and not any(w and w in _words(r) for w in map(_words, warned))
    ]
    return SummaryView(
        recommendation=decision.recommendation,
        recommendation_word=word,
        headline=headline,
        reasons=reasons,
        would_change=[_readable(line) for line in decision.what_would_change],
        answers=_answers(analysis, rows, judges),
        compared=_compared(analysis, judges),
        problems=problems(analysis),
    )


def _readable(text: str) -> str:
    """A sentence of the analysis as it is printed: instants as people write them, numbers and units together."""
    return together(readable_instants(text))


def _words(text: str) -> str:
    """The text as it is compared: plain spaces, small letters, no full stop."""
    return " ".join(text.split()).lower().rstrip(".")


def _gist(reason: str) -> str:
    """A reason as a headline that has named the treatment says it."""
    words = _words(reason).removeprefix("by the simulated judge's verdicts, ")
    return words.removeprefix("the treatment's ").removesuffix(": better")


def headline_of(decision: Decision) -> str:
    """The sentence under the recommendation, which need not say it again."""
    recommendation = RECOMMENDATIONS.get(decision.recommendation, decision.recommendation)
    text = _readable(decision.headline or next(filter(None, decision.reasons), ""))
    head, _, rest = text.partition(": ")
    same = head.lower() in {recommendation.lower(), "ship", "keep", "collect more", "invalid", "do not decide"}
    return sentence_case(rest.strip() if same and rest else text) or f"{recommendation}."


def _answers(analysis: Analysis, rows: list[MetricRow], judges: list[JudgeView]) -> list[Answer]:
    how_much = Answer(name="On how much?", metrics=[], rest=_how_much(analysis))
    if not rows:
        return [how_much]
    return [
        _found("What got better?", rows, "better", "Nothing is proven better."),
        _found(
            "What got worse?",
            rows,
            "worse",
            "Nothing is proven worse.",
            f"{_beyond(rows)} {_open_guardrails(rows)}".strip(),
        ),
        Answer(name="How sure?", metrics=[], rest=_how_sure(analysis, rows)),
        how_much,
        Answer(name="Can the judge be trusted?", metrics=[], rest=_judge_answer(judges)),
    ]


def _found(name: str, rows: list[MetricRow], finding: str, nothing: str, also: str = "") -> Answer:
    """The metrics with a finding, those that decide first."""
    found = [row for row in _deciding_first(rows) if row.finding == finding]
    n_more = len(found) - MOST_NAMED
    more = f"{sentence_case(_number_word(n_more))} more in the table below." if n_more > 0 else ""
    return Answer(
        name=name,
        metrics=[(row.label, row.difference_with_interval) for row in found[:MOST_NAMED]],
        rest=" ".join(part for part in ("" if found else nothing, more, also) if part),
    )


def _number_word(n: int) -> str:
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return words[n] if n < len(words) else str(n)


def _deciding_first(rows: list[MetricRow]) -> list[MetricRow]:
    order = {"primary": 0, "guardrail": 1}
    return sorted(rows, key=lambda row: order.get(row.raw.role, 2))


def _open_guardrails(rows: list[MetricRow]) -> str:
    """The guardrails that may still turn out to lose more than their margin."""
    named = [
        within_sentence(row.label)
        for row in rows
        if row.raw.role == "guardrail" and row.finding in {"inconclusive", "undefined"} and not row.raw.non_inferior
    ]
    return f"A loss beyond the margin is not ruled out yet: {', '.join(named)}." if named else ""


def _beyond(rows: list[MetricRow]) -> str:
    """Diagnostics that lose more than their margin for certain: they decide nothing, and are no small matter either."""
    named = [within_sentence(row.label) for row in rows if row.raw.role == "diagnostic" and row.is_beyond_margin]
    return f"For certain beyond their margins, though diagnostics only inform: {', '.join(named)}." if named else ""


def _how_sure(analysis: Analysis, rows: list[MetricRow]) -> str:
    level = rows[0].raw.confidence_level
    looks = analysis.decision.looks_explained or LOOKS.get(analysis.decision.looks, "")
    open_rows = [
        within_sentence(row.label)
        for row in rows
        if row.raw.role == "primary" and row.finding in {"inconclusive", "undefined"}
    ]
    settled = [
        f"{within_sentence(row.label)} is {row.finding_word}"
        + ("" if row.raw.p_value is None else f" ({p_clause(row.raw.p_value)})")
        for row in rows
        if row.raw.role == "primary" and row.finding in {"better", "worse"}
    ]
    text = f"{full_sentence('; '.join(settled))} Every interval has {format_percent(level)} confidence.".strip()
    text = f"{text} {full_sentence(looks)}".rstrip()
    if open_rows:
        text += f" Not settled: {', '.join(open_rows)}."
    deciding = next((judge for judge in analysis.judges if judge.feeds_decision), None)
    win_rate = next((row.raw for row in rows if row.name == "win_rate"), None)
    said = at_equal_length(deciding, win_rate) if deciding is not None and win_rate is not None else ""
    return f"{text} {said}".rstrip()


def _how_much(analysis: Analysis) -> str:
    funnel = analysis.funnel
    text = f"{format_counted(funnel.pairs, 'pair')} of answers from {format_counted(funnel.requests, 'request')}"
    if funnel.users and funnel.users == funnel.requests > 1:
        text += ", each counted as its own user"
    elif funnel.users:
        text += f" by {format_counted(funnel.users, 'user')}"
    text += f"; {format_counted(funnel.judged_pairs, 'pair')} judged" if funnel.judged_pairs else "; none judged"
    first, last = analysis.provenance.get("first_at"), analysis.provenance.get("last_at")
    return f"{text}{_period(first, last)}."


def _period(first: object, last: object) -> str:
    if not first or not last:
        return ""
    start, end = format_day(str(first)), format_day(str(last))
    if start == end:
        return f", on {start}"
    return f", from {start.removesuffix(end[-5:])} to {end}"  # the year once, where it is the same


def _judge_answer(judges: list[JudgeView]) -> str:
    deciding = next((judge for judge in judges if judge.feeds_decision), None)
    deciding = deciding or next((judge for judge in judges if not judge.is_labels), None)
    if deciding is None:
        return "No judge was asked; quality was not compared."
    return deciding.trust


def _arm(analysis: Analysis, arm: str) -> str:
    arms = analysis.provenance.get("arms")
    about = arms.get(arm) if isinstance(arms, dict) else None
    if not isinstance(about, dict):
        return "not recorded"
    models = about.get("models") or about.get("model") or []
    names = [models] if isinstance(models, str) else [str(model) for model in models]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    listed = about.get("providers") or about.get("provider") or []
    notes = [listed] if isinstance(listed, str) else [str(provider) for provider in listed]
    if about.get("simulated"):
        notes.append("simulated answers")
    aside = f" ({', '.join(notes)})" if notes else ""
    return f"{shown or 'model not recorded'}{aside}"


def _selection(analysis: Analysis) -> list[Fact]:
    """What part of the log this is about, where it is not all of it."""
    selection = analysis.provenance.get("selection")
    chosen = {k: v for k, v in selection.items() if k in PARTS and v} if isinstance(selection, dict) else {}
    if not chosen:
        return []
    said = ", ".join(f"{key} {readable_instants(str(value))}" for key, value in chosen.items())
    return [Fact(name="Only a part", text=f"log rows {said}")]


def _compared(analysis: Analysis, judges: list[JudgeView]) -> list[Fact]:
    decision, level = analysis.decision, None
    if analysis.metrics:
        level = f"{analysis.metrics[0].confidence_level * 100:g}{NBSP}%"
    names = [judge.name for judge in judges if judge.feeds_decision] or [judge.name for judge in judges[:1]]
    facts = [
        Fact(name="Control", text=_arm(analysis, "control")),
        Fact(name="Treatment", text=_arm(analysis, "treatment")),
        *_selection(analysis),
        Fact(name="Mode", text=MODES.get(analysis.mode, analysis.mode)),
        Fact(name="Judge", text=", ".join(names) or "none"),
        Fact(name="Policy", text=POLICIES.get(decision.policy, decision.policy)),
    ]
    if level:
        facts.append(Fact(name="Looks", text=f"{decision.looks}, at {level} confidence"))
    return facts
