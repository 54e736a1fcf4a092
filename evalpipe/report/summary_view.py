"""The top of the page: the recommendation, and the six questions a manager asks, answered in a line each."""

from __future__ import annotations

from dataclasses import dataclass

from evalpipe.analysis.result import Analysis, Check
from evalpipe.core.format import NBSP, format_count, format_day, format_percent, readable_instants
from evalpipe.report.judge_view import JudgeView
from evalpipe.report.metric_view import Fact, MetricRow
from evalpipe.report.words import LOOKS, MODES, POLICIES, RECOMMENDATIONS

PARTS = ("since", "until", "where")


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something a reader must know before anything else. `level`: simulated | fail | warn."""

    level: str
    title: str
    detail: str
    remedy: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SummaryView:
    recommendation: str
    recommendation_word: str
    headline: str
    reasons: list[str]
    would_change: list[str]
    answers: list[Fact]
    compared: list[Fact]
    problems: list[Problem]


def summary_view(analysis: Analysis, rows: list[MetricRow], judges: list[JudgeView]) -> SummaryView:
    decision = analysis.decision
    word = RECOMMENDATIONS.get(decision.recommendation, decision.recommendation)
    reasons = [readable_instants(reason) for reason in decision.reasons if reason]
    headline = _headline(readable_instants(decision.headline) or (reasons.pop(0) if reasons else ""), word)
    warned = [check.detail for check in analysis.checks if check.status != "pass"]
    # What the headline or a problem above it says already is not said again.
    said = {_words(headline), _words(decision.headline)}
    reasons = [
        r for r in reasons if _words(r) not in said and not any(w and w in _words(r) for w in map(_words, warned))
    ]
    return SummaryView(
        recommendation=decision.recommendation,
        recommendation_word=word,
        headline=headline,
        reasons=reasons,
        would_change=[readable_instants(line) for line in decision.what_would_change],
        answers=_answers(analysis, rows, judges),
        compared=_compared(analysis, judges),
        problems=problems(analysis),
    )


def sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def full_sentence(text: str) -> str:
    """Capital first, full stop last."""
    shown = sentence(text.strip())
    return shown if not shown or shown[-1] in ".!?…" else f"{shown}."


def _words(text: str) -> str:
    """The text as it is compared: plain spaces, small letters, no full stop."""
    return " ".join(text.split()).lower().rstrip(".")


def _headline(text: str, recommendation: str) -> str:
    """The sentence under the recommendation, which need not say it again."""
    head, _, rest = text.partition(": ")
    same = head.lower() in {recommendation.lower(), "ship", "keep", "collect more", "invalid", "do not decide"}
    return sentence(rest.strip() if same and rest else text) or f"{recommendation}."


def is_simulated(analysis: Analysis) -> bool:
    """Whether a simulated judge's verdicts feed anything on the page."""
    return bool(analysis.provenance.get("simulated_judge")) or any(judge.simulated for judge in analysis.judges)


def problems(analysis: Analysis) -> list[Problem]:
    """What stands above everything else: the simulated judge, then failed checks, then warnings."""
    found: list[Problem] = []
    if is_simulated(analysis):
        found.append(
            Problem(
                level="simulated",
                title="Simulated judge",
                detail="The verdicts in this report were made by a program that follows a stated rule, not by a language "
                "model and not by people. They show how evalpipe works. They do not say which arm is better.",
                remedy="Judge with a real model: set its key, then run `evalpipe judge` and `evalpipe report`.",
            )
        )
    for status in ("fail", "warn"):
        for check in analysis.checks:
            if check.status == status and not _is_about_simulation(check):
                found.append(
                    Problem(
                        level=status,
                        title=sentence(check.name.replace("_", " ")),
                        detail=full_sentence(check.detail),
                        remedy=full_sentence(check.remedy or ""),
                    )
                )
    return found


def _is_about_simulation(check: Check) -> bool:
    """The simulated judge's own check says what its banner says."""
    return check.name in {"simulated_judge", "judge_simulated"}


def _answers(analysis: Analysis, rows: list[MetricRow], judges: list[JudgeView]) -> list[Fact]:
    if not rows:
        return [Fact(name="On how much?", text=_how_much(analysis))]
    return [
        Fact(name="What got better?", text=_listed(rows, "better", "Nothing is proven better.")),
        Fact(name="What got worse?", text=_worse(rows)),
        Fact(name="How sure?", text=_how_sure(analysis, rows)),
        Fact(name="On how much?", text=_how_much(analysis)),
        Fact(name="Can the judge be trusted?", text=_judge_answer(judges)),
    ]


def _named(row: MetricRow) -> str:
    return f"{row.label} {row.difference_with_interval}"


def _listed(rows: list[MetricRow], finding: str, nothing: str) -> str:
    named = [_named(row) for row in _deciding_first(rows) if row.finding == finding]
    if not named:
        return nothing
    more = f"; and {len(named) - 4} more below" if len(named) > 4 else ""
    return f"{sentence('; '.join(named[:4]))}{more}."


def _deciding_first(rows: list[MetricRow]) -> list[MetricRow]:
    order = {"primary": 0, "guardrail": 1}
    return sorted(rows, key=lambda row: order.get(row.raw.role, 2))


def _worse(rows: list[MetricRow]) -> str:
    text = _listed(rows, "worse", "Nothing is proven worse.")
    open_guardrails = [
        row.label
        for row in rows
        if row.raw.role == "guardrail" and row.finding in {"inconclusive", "undefined"} and not row.raw.non_inferior
    ]
    if open_guardrails:
        text += f" Not yet ruled out beyond its margin: {', '.join(open_guardrails)}."
    return text


def _how_sure(analysis: Analysis, rows: list[MetricRow]) -> str:
    level = rows[0].raw.confidence_level
    looks = analysis.decision.looks_explained or LOOKS.get(analysis.decision.looks, "")
    open_rows = [
        row.label for row in rows if row.raw.role == "primary" and row.finding in {"inconclusive", "undefined"}
    ]
    text = f"Every interval has {format_percent(level)} confidence. {sentence(looks.rstrip('.'))}".rstrip(". ") + "."
    if open_rows:
        text += f" Not settled: {', '.join(open_rows)}."
    return text


def _how_much(analysis: Analysis) -> str:
    funnel = analysis.funnel
    text = f"{format_count(funnel.pairs)} pairs of answers from {format_count(funnel.requests)} requests"
    if funnel.users and funnel.users == funnel.requests:
        text += ", each counted as its own user"
    elif funnel.users:
        text += f" by {format_count(funnel.users)} users"
    text += f"; {format_count(funnel.judged_pairs)} pairs judged" if funnel.judged_pairs else "; none judged"
    first, last = analysis.provenance.get("first_at"), analysis.provenance.get("last_at")
    return f"{text}{_period(first, last)}."


def _period(first: object, last: object) -> str:
    if not first or not last:
        return ""
    start, end = format_day(str(first)), format_day(str(last))
    return f", on {start}" if start == end else f", from {start} to {end}"


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
