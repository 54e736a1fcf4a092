"""The first screen: who asked what, the recommendation with the models' names, what it rests on, and four pairs to read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from evalpipe.analysis.metric_formatting import metric_formats
from evalpipe.analysis.result import Analysis, Check, JudgeResult
from evalpipe.analysis.settings import CORRECTED
from evalpipe.report.charts.intervals import verdict_bar
from evalpipe.report.examples import ExampleView
from evalpipe.report.findings import (
    Statement,
    decided_at,
    is_zero,
    known_and_open,
    lead,
    next_steps,
    of_no_use,
    zero_sentence,
)
from evalpipe.report.judge import JudgeView, answered_by
from evalpipe.report.metrics import MetricRow
from evalpipe.report.monthly_cost import COST, MonthlyCost, about, dollars, monthly_cost
from evalpipe.report.sanitize import one_line
from evalpipe.report.summary import Problem
from evalpipe.report.terms import FINDING_ORDER, FINDING_WORDS, NOT_MEASURED, ArmNames, arm_names
from evalpipe.text import (
    NBSP,
    format_count,
    format_counted,
    format_period_of_days,
    sentence_case,
)

QUESTION_LIMIT, EXCERPT_LIMIT = 110, 300
"""characters of a question and of an answer on the first screen"""
RELIABILITY = ("error_rate", "timeout_rate", "empty_rate")
SPEED = ("p50_latency_ms", "p50_ttft_ms")
_PLAIN_FINDINGS = {"equivalent": "no difference that matters", "inconclusive": "not settled"}
NOT_USABLE = "not usable"
"""the finding of every number, where the data cannot support a decision"""
_MARKS = re.compile(r"\*\*|__|`+|^#+ ", re.MULTILINE)
"""of Markdown, which mean nothing on one line"""
WEB_ADDRESS = re.compile(r"https?://[^\s<>\"]+", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tile:
    """One of quality, speed, reliability and cost: the old value and the new one, the finding, and what is behind it.

    `old`, `new` are "" where there is no pair of values and `value` is a sentence instead.
    """

    name: str
    old: str
    new: str
    value: str
    finding: str
    finding_word: str
    detail: str
    note: str
    picture: Markup | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A pair to read at a glance; `number` is the example's below."""

    number: int
    kind: str
    word: str
    question: str
    control: str
    treatment: str


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstScreen:
    """`title`: the recommendation with the models' names; `lead`: its reason in a sentence; `asked`: who asked;
    `link`: an http(s) address or ""; `facts`: when and on what data."""

    title: str
    lead: str
    question: str
    asked: str
    link: str
    names: ArmNames
    known: list[Statement]
    unknown: list[Statement]
    next: list[str]
    tiles: list[Tile]
    samples: list[Sample]
    facts: list[str]


def first_screen(
    analysis: Analysis,
    rows: list[MetricRow],
    judges: list[JudgeView],
    problems: list[Problem],
    examples: list[ExampleView],
) -> FirstScreen:
    """Everything above the fold. Texts may hold anything and are escaped where they are shown."""
    names, asked = arm_names(analysis.provenance), about(analysis.provenance)
    cost = monthly_cost(analysis)
    failed = [problem for problem in problems if problem.level in {"setup", "fail"}]
    is_usable = analysis.decision.recommendation != "invalid"
    stop_level = analysis.decision.harm_level if analysis.decision.recommendation == "collect_more" else None
    known, unknown = (
        known_and_open(rows, stop_level=stop_level) if is_usable else of_no_use([problem.title for problem in failed])
    )
    tiles = [_quality(analysis, names, rows), _speed(rows), _reliability(rows), _cost(rows, cost, analysis.checks)]
    owner, link = one_line(str(asked.get("owner") or ""), 60), str(asked.get("link") or "")
    return FirstScreen(
        title=names.title(analysis.decision.recommendation),
        lead=lead(analysis, names, rows),
        question=one_line(str(asked.get("question") or ""), 200),
        asked=f"asked by {owner}" if owner else "",
        link=link if WEB_ADDRESS.fullmatch(link) else "",
        names=names,
        known=known,
        unknown=unknown,
        next=next_steps(analysis, names, cost, has_remedy=any(problem.remedy for problem in failed)),
        tiles=tiles if is_usable else [replace(tile, finding="undefined", finding_word=NOT_USABLE) for tile in tiles],
        samples=_samples(examples),
        facts=_facts(analysis, judges),
    )


def _facts(analysis: Analysis, judges: list[JudgeView]) -> list[str]:
    funnel = analysis.funnel
    first, last = analysis.provenance.get("first_at"), analysis.provenance.get("last_at")
    period = "" if _has_no_times(first, last) else format_period_of_days(str(first), str(last))
    users = f" of {format_counted(funnel.users, 'user')}" if 0 < funnel.users < funnel.requests else ""
    data = f"{format_counted(funnel.requests, 'request')}{users}, {format_counted(funnel.pairs, 'pair')} of answers"
    deciding = next((judge for judge in judges if judge.feeds_decision), None)
    model = one_line(answered_by(deciding.raw) or deciding.name, 72) if deciding else ""
    judged = (
        f"{format_count(funnel.judged_pairs)} judged by {model}" if funnel.judged_pairs and model else "none judged"
    )
    facts = [
        f"Data{f' of {period}' if period else ''}: {data}, {judged if funnel.pairs else 'nothing to judge'}",
        decided_at(analysis),
        _confidence(analysis),
    ]
    return [fact for fact in facts if fact]


def _confidence(analysis: Analysis) -> str:
    """What the ranges in brackets are."""
    if not analysis.metrics:
        return ""
    return f"In brackets: {100 * analysis.metrics[0].confidence_level:.4g}{NBSP}% intervals"


def _has_no_times(first: object, last: object) -> bool:
    """Imports without a time count up from the epoch."""
    return not first or not last or str(first).startswith("1970-")


def _quality(analysis: Analysis, names: ArmNames, rows: list[MetricRow]) -> Tile:
    """Comparisons won, tied and lost, as a bar and as counts."""
    judge = _deciding_judge(analysis)
    row = next((row for name in (CORRECTED, "win_rate") for row in rows if row.name == name), None)
    if judge is None or judge.win_rate is None or judge.n_pairs == 0:
        rated = next((row for row in rows if row.raw.role == "primary" and row.has_interval), None)
        if rated is not None:
            return _row_tile("Quality", rated, note=rated.label)
        return _tile("Quality", value="Nobody compared the answers.", finding="undefined", word=NOT_MEASURED)
    finding, word = (row.finding, _word(row)) if row is not None else ("undefined", "")
    won, tied, lost = judge.wins, judge.ties, judge.losses
    rate = f"preferred in {row.treatment} ({_plus_half(row)})" if row is not None and row.has_interval else ""
    if judge.graded or not won + tied + lost:
        return _tile("Quality", value=f"{names.treatment}: {rate or 'no conclusion'}", finding=finding, word=word)
    counts = f"won {format_count(won)} · tied {format_count(tied)} · lost {format_count(lost)}"
    labels = (
        f"; the rate is corrected by {format_counted(row.raw.n, 'label')}"
        if row and row.name == CORRECTED and rate
        else ""
    )
    return Tile(
        name="Quality",
        old="",
        new="",
        value=counts,
        finding=finding,
        finding_word=word,
        detail=rate,
        note=f"{names.treatment} in {format_counted(won + tied + lost, 'comparison')}; 50{NBSP}% would be even{labels}",
        picture=verdict_bar(won, tied, lost, description=f"{names.treatment} {counts.replace(' ·', ',')}"),
    )


def _plus_half(row: MetricRow) -> str:
    """The interval of the win rate itself, not of its difference from one half."""
    low, high = row.raw.ci_low, row.raw.ci_high
    if low is None or high is None:
        return ""
    return metric_formats(row.raw).values.value_interval(max(0.0, low + 0.5), min(1.0, high + 0.5))


def _deciding_judge(analysis: Analysis) -> JudgeResult | None:
    judges = [judge for judge in analysis.judges if not judge.name.startswith("label:")] or analysis.judges
    return next((judge for judge in judges if judge.feeds_decision), judges[0] if judges else None)


def _speed(rows: list[MetricRow]) -> Tile:
    row = next((row for name in SPEED for row in rows if row.name == name and row.raw.status != "not_measured"), None)
    if row is None:
        return _tile("Speed", value="Not measured by evalpipe.", finding="undefined", word=NOT_MEASURED)
    return _row_tile(
        "Speed", row, note="the time within which half of the answers come" if row.name == SPEED[0] else row.label
    )


def _reliability(rows: list[MetricRow]) -> Tile:
    """The worst of errors, timeouts and empty answers; one sentence where none occurred."""
    found = [row for name in RELIABILITY for row in rows if row.name == name and row.raw.status != "not_measured"]
    found = [row for row in found if row.control != "–" or row.treatment != "–"]
    if not found:
        return _tile("Reliability", value="Not recorded in this log.", finding="undefined", word=NOT_MEASURED)
    zero = [row for row in found if is_zero(row)]
    seen = [row for row in found if row not in zero]
    if not seen:
        worst = min(zero, key=lambda row: FINDING_ORDER.index(row.finding))
        sentence, _, limit = zero_sentence(zero).partition("; ")
        return _tile("Reliability", value=sentence_case(sentence), finding=worst.finding, word=_word(worst), note=limit)
    worst = min(seen, key=lambda row: FINDING_ORDER.index(row.finding))
    return _row_tile("Reliability", worst, note=f"{worst.label}; {zero_sentence(zero)}" if zero else worst.label)


def _no_cost(checks: Sequence[Check]) -> str:
    """Why the cost of an arm is not known: the check of the costs names a price to add, or the answers have none."""
    priced = any(check.name == "price_unknown" and "model's price under" in (check.remedy or "") for check in checks)
    return "a model has no price" if priced else "too few answers in this log have a cost"


def _cost(rows: list[MetricRow], cost: MonthlyCost | None, checks: Sequence[Check]) -> Tile:
    row = next((row for row in rows if row.name == COST), None)
    if cost is None or row is None:
        return _tile("Cost", value=f"Not known: {_no_cost(checks)}.", finding="undefined", word=NOT_MEASURED)
    change = ""
    if cost.change_low is not None and cost.change_high is not None:
        saves = cost.change_high < 0
        low, high = sorted((abs(cost.change_low), abs(cost.change_high)))
        if saves or cost.change_low > 0:
            change = (
                f"{'saves' if saves else 'adds'} {dollars(abs(cost.change or 0.0))} ({dollars(low)} to {dollars(high)})"
            )
        else:
            change = f"{dollars(cost.change_low, signed=True)} to {dollars(cost.change_high, signed=True)}"
    return Tile(
        name=f"Cost {cost.unit}",
        old=dollars(cost.control),
        new=dollars(cost.treatment),
        value="",
        finding=row.finding,
        finding_word=_word(row),
        detail=change,
        note=f"at {cost.source}" if cost.source else "`requests_per_month` under [experiment] gives dollars a month",
    )


def _word(row: MetricRow) -> str:
    """A finding in a manager's words."""
    if row.finding == "inconclusive" and row.raw.margin > 0 and row.raw.non_inferior:
        return "not worse"
    return _PLAIN_FINDINGS.get(row.finding, row.finding_word)


def _row_tile(name: str, row: MetricRow, *, note: str) -> Tile:
    return Tile(
        name=name,
        old=row.control,
        new=row.treatment,
        value="",
        finding=row.finding,
        finding_word=_word(row),
        detail=row.difference_with_interval if row.has_interval else row.finding_note,
        note=note,
    )


def _tile(name: str, *, value: str, finding: str, word: str = "", note: str = "") -> Tile:
    return Tile(
        name=name,
        old="",
        new="",
        value=value,
        finding=finding,
        finding_word=word or FINDING_WORDS[finding],
        detail="",
        note=note,
    )


def _samples(examples: list[ExampleView]) -> list[Sample]:
    """Two pairs the treatment won and two it lost, most clearly first."""
    found = [
        view for kind in ("treatment_won", "treatment_lost") for view in [v for v in examples if v.kind == kind][:2]
    ]
    return [
        Sample(
            number=view.number,
            kind=view.kind,
            word="won" if view.kind == "treatment_won" else "lost",
            question=one_line(view.title, QUESTION_LIMIT),
            control=_excerpt(view, "control"),
            treatment=_excerpt(view, "treatment"),
        )
        for view in found
    ]


def _excerpt(view: ExampleView, arm: str) -> str:
    side = view.control if arm == "control" else view.treatment
    if side.text is not None:
        return one_line(_MARKS.sub("", side.text.raw), EXCERPT_LIMIT)
    return side.failed or ("tool calls" if side.tool_calls else "empty answer")
