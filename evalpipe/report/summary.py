"""The top of the page: banners, the recommendation, and the questions a manager asks, answered in a line each."""

from __future__ import annotations

from dataclasses import dataclass

from evalpipe.analysis.result import Analysis, Check
from evalpipe.report.decision import (
    LEVEL,
    DecisionView,
    decision_view,
    headline_of,
    not_settled,
    readable,
    repeats_forecast,
)
from evalpipe.report.judge import LABELS_QUESTION, JudgeView, at_equal_length, labels_answer
from evalpipe.report.metrics import Fact, MetricRow, is_measured
from evalpipe.report.terms import LOOKS, MODES, POLICIES, RECOMMENDATIONS, ROLE_ORDER, RULES, check_name
from evalpipe.text import (
    MISSING,
    format_count,
    format_counted,
    format_day,
    format_percent,
    full_sentence,
    p_clause,
    readable_instants,
    sentence_case,
    within_sentence,
)

PARTS = ("since", "until", "where")
MOST_NAMED = 4
"""metrics an answer names; the table has the rest"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The answer to a question: metrics with their differences where it is about metrics, then what remains."""

    name: str
    metrics: list[tuple[str, str]]
    rest: str

    @property
    def text(self) -> str:
        """All of it in one paragraph."""
        named = "; ".join(f"{within_sentence(label)} {change}" for label, change in self.metrics)
        return " ".join(part for part in (f"{sentence_case(named)}." if named else "", self.rest) if part)


# What a reader must know before anything else: banners above the recommendation.


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something a reader must know before anything else. `level`: setup | simulated | fail | warn."""

    level: str
    title: str
    detail: str
    remedy: str


def problems(analysis: Analysis) -> list[Problem]:
    """What is above everything else: set-up faults, the simulated judge, then failed checks, then the warnings that concern a
    metric that decides. The other warnings are among the checks."""
    found = _setup_faults(analysis)
    if is_simulated(analysis):
        found.append(
            Problem(
                level="simulated",
                title="Simulated judge",
                detail="The verdicts in this report were made by a program that follows a stated rule, not by a language "
                "model and not by people. They show how evalpipe works. They are no evidence of which arm is better.",
                remedy="Judge with a real model: set its key, then run `evalpipe judge` and `evalpipe report`.",
            )
        )
    for status in ("fail", "warn"):
        for check in analysis.checks:
            if (
                check.status == status
                and not (status == "fail" and check.name == SETUP_FAULT)
                and not _is_about_simulation(check)
                and _can_decide(check, analysis)
            ):
                found.append(_problem(check, level=status))
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class SummaryView:
    """`decision`: what surrounds the recommendation; `arms`: which model is control and which is the treatment."""

    recommendation: str
    recommendation_word: str
    arms: list[Fact]
    headline: str
    decision: DecisionView
    reasons: list[str]
    would_change: list[str]
    answers: list[Answer]
    compared: list[Fact]
    problems: list[Problem]

    @property
    def questions(self) -> list[Answer]:
        """The answers in plain text, where how much longer it takes has no place of its own."""
        waiting = self.decision.how_much_longer
        return [*([Answer(name=HOW_MUCH_LONGER, metrics=[], rest=waiting)] if waiting else []), *self.answers]


HOW_MUCH_LONGER = "How much longer?"


def summary_view(analysis: Analysis, rows: list[MetricRow], judges: list[JudgeView]) -> SummaryView:
    decision = analysis.decision
    word = RECOMMENDATIONS.get(decision.recommendation, decision.recommendation)
    surroundings, found = decision_view(analysis), problems(analysis)
    headline = headline_of(decision)
    reasons = [readable(reason) for reason in decision.reasons if reason]
    if not decision.headline and reasons:
        reasons.pop(0)  # it is the headline
    # What the headline, a problem or another part of the head states already is not repeated.
    stated = {_words(headline), _words(decision.headline)}
    warned = [
        words for check in analysis.checks if check.status != "pass" and (words := _words(readable(check.detail)))
    ]
    warned += [words for fault in decision.setup_faults if (words := _words(readable(fault)))]
    reasons = [
        reason
        for reason in reasons
        if _words(reason) not in stated
        and _gist(reason) not in _words(headline)
        and not any(words in _words(reason) for words in warned)
        and not reason.startswith(LEVEL)
        and not repeats_forecast(reason, decision)
    ]
    cause = _words(headline)
    named = [_words(f"{problem.title}: {problem.detail}") for problem in found]
    repeated = any(cause in problem or cause.startswith(problem) for problem in named)
    if decision.recommendation == "invalid" and cause and repeated:
        headline = "No decision can be made before the problem above is corrected."
    remedies = {_words(problem.remedy) for problem in found}
    return SummaryView(
        recommendation=decision.recommendation,
        recommendation_word=word,
        arms=_arms(analysis),
        headline=headline,
        decision=surroundings,
        reasons=reasons,
        would_change=[
            readable(line)
            for line in decision.what_would_change
            if not repeats_forecast(line, decision) and _words(line) not in remedies
        ],
        answers=_answers(analysis, rows, judges, surroundings.level),
        compared=_compared(analysis, judges),
        problems=found,
    )


def _words(text: str) -> str:
    """The text as it is compared: plain spaces, small letters, no full stop."""
    return " ".join(text.split()).lower().rstrip(".")


def _gist(reason: str) -> str:
    """A reason in the words of a headline that has named the treatment."""
    words = _words(reason).removeprefix("by the simulated judge's verdicts, ")
    return words.removeprefix("the treatment's ").removesuffix(": better")


def _answers(analysis: Analysis, rows: list[MetricRow], judges: list[JudgeView], level: str) -> list[Answer]:
    how_much = Answer(name="On how much?", metrics=[], rest=_how_much(analysis))
    if not rows:
        return [how_much]
    return [
        _found("What got better?", rows, "better", "No metric is shown to be better."),
        _found(
            "What got worse?",
            rows,
            "worse",
            "No metric is shown to be worse.",
            f"{_beyond(rows)} {_not_ruled_out(analysis, rows)}".strip(),
        ),
        Answer(name="How sure?", metrics=[], rest=_how_sure(analysis, rows, level)),
        how_much,
        Answer(name="Can the judge be trusted?", metrics=[], rest=_judge_answer(judges)),
        *([Answer(name=LABELS_QUESTION, metrics=[], rest=labels)] if (labels := labels_answer(analysis)) else []),
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
    order = {role: place for place, role in enumerate(ROLE_ORDER)}
    return sorted(rows, key=lambda row: order.get(row.raw.role, len(order)))


def _not_ruled_out(analysis: Analysis, rows: list[MetricRow]) -> str:
    """The benefits and guardrails that may still turn out to lose more than their margin."""
    named = [
        within_sentence(row.label)
        for row in rows
        if row.raw.role in {"benefit", "guardrail"}
        and row.name in analysis.decision.blocking
        and not row.raw.non_inferior
        and not row.is_beyond_margin
    ]
    return f"A loss beyond the margin is not ruled out yet: {', '.join(named)}." if named else ""


def _beyond(rows: list[MetricRow]) -> str:
    """Diagnostics that lose more than their margin: they decide nothing, and are no small matter either."""
    named = [within_sentence(row.label) for row in rows if row.raw.role == "diagnostic" and row.is_beyond_margin]
    return f"Beyond the margin, though not deciding: {', '.join(named)}." if named else ""


def _how_sure(analysis: Analysis, rows: list[MetricRow], level: str) -> str:
    looks = analysis.decision.looks_explained or LOOKS.get(analysis.decision.looks, "")
    settled = [
        f"{within_sentence(row.label)} is {row.finding_word}"
        + ("" if row.raw.p_value is None else f" ({p_clause(row.raw.p_value)})")
        for row in rows
        if row.raw.role in {"primary", "benefit"} and row.finding in {"better", "worse"}
    ]
    parts = [full_sentence("; ".join(settled)), level, full_sentence(looks), not_settled(analysis)]
    deciding = next((judge for judge in analysis.judges if judge.feeds_decision), None)
    win_rate = next((row.raw for row in rows if row.name == "win_rate"), None)
    if deciding is not None and win_rate is not None:
        parts.append(at_equal_length(deciding, win_rate))
    return " ".join(part for part in parts if part)


def _how_much(analysis: Analysis) -> str:
    funnel = analysis.funnel
    text = f"{format_counted(funnel.pairs, 'pair')} of answers from {format_counted(funnel.requests, 'request')}"
    if funnel.users and funnel.users == funnel.requests > 1:
        text += ", each counted as its own user"
    elif funnel.users:
        text += f" by {format_counted(funnel.users, 'user')}"
    text += f"; {format_counted(funnel.judged_pairs, 'pair')} judged" if funnel.judged_pairs else "; none judged"
    first, last = analysis.provenance.get("first_at"), analysis.provenance.get("last_at")
    return f"{text}{_period(first, last)}.{_replayed(analysis)}"


def _replayed(analysis: Analysis) -> str:
    """Where answers come from, and how control's have changed when it was asked once more."""
    kinds = analysis.funnel.kinds
    if not kinds:
        return ""
    text = " Pairs by the origin of their answers (control + treatment): "
    text += ", ".join(f"{kind} {format_count(n)}" for kind, n in kinds.items()) + "."
    again = analysis.provenance.get("control_again")
    if not again:
        return text
    same = format_percent(again["same_text"] / again["requests"])
    text += f" Control gave {format_counted(again['requests'], 'request')} the same words once more in {same}"
    if "pairs" not in again:
        return f"{text}; `evalpipe judge -e {again['experiment']}` judges its new answers against its recorded ones."
    lost = format_percent(again["loses"] / again["pairs"]) if again["pairs"] else MISSING
    tied = format_percent(again["ties"] / again["pairs"]) if again["pairs"] else MISSING
    return (
        f"{text}; judged against itself in {format_counted(again['pairs'], 'pair')}, its recorded answer lost {lost} and "
        f"tied {tied}."
    )


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


def _arms(analysis: Analysis) -> list[Fact]:
    """Which model is which, where the log records it."""
    if not isinstance(analysis.provenance.get("arms"), dict):
        return []
    return [Fact(name=arm.capitalize(), text=_arm(analysis, arm)) for arm in ("control", "treatment")]


def _selection(analysis: Analysis) -> list[Fact]:
    """What part of the log this is about, where it is not all of it."""
    selection = analysis.provenance.get("selection")
    chosen = {k: v for k, v in selection.items() if k in PARTS and v} if isinstance(selection, dict) else {}
    if not chosen:
        return []
    named = ", ".join(f"{key} {readable_instants(str(value))}" for key, value in chosen.items())
    return [Fact(name="Only a part", text=f"log rows {named}")]


def _compared(analysis: Analysis, judges: list[JudgeView]) -> list[Fact]:
    decision = analysis.decision
    names = [judge.name for judge in judges if judge.feeds_decision] or [judge.name for judge in judges[:1]]
    facts = [
        Fact(name="Control", text=_arm(analysis, "control")),
        Fact(name="Treatment", text=_arm(analysis, "treatment")),
        *_selection(analysis),
        Fact(name="Mode", text=MODES.get(analysis.mode, analysis.mode)),
        Fact(name="Judge", text=", ".join(names) or "none"),
        Fact(name="Policy", text=POLICIES.get(decision.policy, decision.policy)),
    ]
    if decision.rule in RULES:
        facts.append(Fact(name="Rule applied", text=RULES[decision.rule]))
    if analysis.metrics:
        facts.append(Fact(name="Looks", text=decision.looks))
    return facts


def is_simulated(analysis: Analysis) -> bool:
    """Whether a simulated judge's verdicts feed anything on the page."""
    return bool(analysis.provenance.get("simulated_judge")) or any(judge.simulated for judge in analysis.judges)


def _setup_faults(analysis: Analysis) -> list[Problem]:
    """The set-up faults with what mends each; a fault that is only in the decision has no remedy of its own."""
    checks = [check for check in analysis.checks if check.name == SETUP_FAULT and check.status == "fail"]
    known = tuple(_one_line(check.detail) for check in checks)
    others = [
        Check(name=SETUP_FAULT, status="fail", detail=fault)
        for fault in analysis.decision.setup_faults
        if not _one_line(fault).startswith(known)  # the decision's sentence continues with what mends it
    ]
    return [_problem(check, level="setup") for check in (*checks, *others)]


def _problem(check: Check, *, level: str) -> Problem:
    title, detail = sentence_case(check_name(check.name, check.status)), _one_line(check.detail)
    whose, _, rest = detail.partition(": ")
    if level == "setup" and rest and whose.lower().startswith(title.lower()):  # "set-up fault of the treatment arm: …"
        title, detail = sentence_case(whose), rest
    return Problem(
        level=level,
        title=title,
        detail=full_sentence(readable_instants(detail)),
        remedy=full_sentence(_one_line(check.remedy or "")),
    )


def _one_line(text: str) -> str:
    """Words of a provider or a user may hold line breaks, which would look like further lines of the report."""
    return " ".join(text.split())


def _is_about_simulation(check: Check) -> bool:
    """The simulated judge's own check repeats its banner."""
    return check.name in {"simulated_judge", "judge_simulated"}


SETUP_FAULT = "setup_fault"
COST = frozenset({"cost_per_request_usd", "cost_per_1000_requests_usd", "cost_per_ok_answer_usd"})
TOKENS = frozenset({"input_tokens", "output_tokens", "tokens_used", "tokens_per_second"})
CONCERNED = {"price_unknown": COST, "no_usage_in_streams": COST | TOKENS}
"""the metrics that a warning is about; any other warning may concern them all"""


def _can_decide(check: Check, analysis: Analysis) -> bool:
    """Whether the check can change the verdict: it failed, or a metric that it is about decides (one's own might be)."""
    concerned = CONCERNED.get(check.name)
    if check.status == "fail" or concerned is None:
        return True
    return any(
        metric.role != "diagnostic" and is_measured(metric) and (metric.name in concerned or metric.group == "custom")
        for metric in analysis.metrics
    )
