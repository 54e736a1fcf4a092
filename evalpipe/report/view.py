"""`Analysis` → `ReportView`: every string and picture of the page, ready to be laid out. Pure."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from evalpipe.analysis.checks import CHECKS
from evalpipe.analysis.decision import MEASURED_BY_US
from evalpipe.analysis.result import Analysis, MetricResult
from evalpipe.report.examples import ExampleView, chosen, example_groups, example_views
from evalpipe.report.figures import Figure, figures, funnel_figure, judge_figures, more_figures
from evalpipe.report.first_screen import FirstScreen, first_screen
from evalpipe.report.judge import CorrectedView, JudgeView, corrected_view, judge_view, labels_answer
from evalpipe.report.metrics import LATER_TURNS, Fact, MetricRow, is_measured, metric_row
from evalpipe.report.sanitize import escape_invisible
from evalpipe.report.segments import SegmentTable, segment_table
from evalpipe.report.summary import Problem, SummaryView, summary_view
from evalpipe.report.terms import FINDINGS, GROUPS, NOT_MEASURED, check_name
from evalpipe.text import (
    format_counted,
    format_instant,
    full_sentence,
    readable_instants,
    sentence_case,
    within_sentence,
)

SIGNIFICANT_DIGITS = 6
"""of every number of a deterministic report: what differs beyond them differs between machines"""

RESTATED = {"cost_per_1000_requests_usd": ("cost_per_request_usd", 1000.0)}
"""Metrics that may be another one (times the factor) in another unit. Where both arms' values are, a row that does not decide is
left out of the page. Once an attempt fails they differ: the bill is of all attempts, the cost of a request of those answered."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckRow:
    name: str
    about: str
    status: str
    detail: str
    remedy: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportView:
    title: str
    experiment: str
    generated: str
    first: FirstScreen
    summary: SummaryView
    groups: list[tuple[str, list[MetricRow]]]
    unmeasured: list[str]
    foreign: list[str]
    """latencies that evalpipe did not measure, whether the log has some of another tool or not"""
    """labels of the metrics without a single observation"""
    figures: list[Figure]
    more_figures: list[Figure]
    """for statisticians"""
    judges: list[JudgeView]
    corrected: CorrectedView | None
    people: str
    """what labels show of the judge, or what it can hide without them"""
    judge_figures: list[Figure]
    segments: SegmentTable | None
    examples: list[ExampleView]
    example_groups: list[tuple[str, str, int]]
    n_left_out: int
    """examples of a copy without texts"""
    checks: list[CheckRow]
    funnel: Figure | None
    provenance: list[Fact]
    config: str
    reproduce: str
    marks: dict[str, str]

    @property
    def rows(self) -> list[MetricRow]:
        return [row for _, rows in self.groups for row in rows]

    @property
    def deciding(self) -> list[tuple[str, list[MetricRow]]]:
        """The rows that decide, by group."""
        return _grouped([row for row in self.rows if row.raw.role != "diagnostic"])

    @property
    def informing(self) -> list[tuple[str, list[MetricRow]]]:
        """The rows that decide nothing, by group."""
        return _grouped([row for row in self.rows if row.raw.role == "diagnostic"])

    @property
    def informing_counts(self) -> str:
        """ "9 worse, 2 better, 1 inconclusive": the findings of what decides nothing."""
        rows = [row for _, group in self.informing for row in group]
        counts = {
            word: sum(row.finding_word == word for row in rows) for word in dict.fromkeys(r.finding_word for r in rows)
        }
        return ", ".join(f"{count} {word}" for word, count in counts.items())

    @property
    def footnotes(self) -> list[str]:
        """What must be read with the table by people who see nothing else."""
        lines = [f"{row.mark} {row.label}: {within_sentence(row.footnote)}" for row in self.rows if row.mark]
        undefined = [row for row in self.rows if row.finding == "undefined" and row.finding_word != NOT_MEASURED]
        constant = [row for row in undefined if row.raw.status == "zero_variance"]
        equal = [row for row in constant if not row.raw.difference]
        if len(undefined) > len(constant):
            lines.append("No conclusion: no valid interval can be computed yet, so no difference is shown.")
        if equal:
            named = ", ".join(within_sentence(row.label) for row in equal)
            lines.append(f"No conclusion on {named}: all pairs have equal values, so no interval can be computed.")
        if len(constant) > len(equal):
            named = ", ".join(within_sentence(row.label) for row in constant if row.raw.difference)
            lines.append(
                f"No conclusion on {named}: the difference is the same in all pairs, so no interval can be computed."
            )
        if any(row.finding_word == NOT_MEASURED for row in self.rows):
            lines.append("Not measured: the source of this log does not measure it, so it decides nothing.")
        if self.foreign:
            named = ", ".join(map(within_sentence, self.foreign))
            lines.append(
                f"Not measured by evalpipe: {named}. Another tool's figures count where [decision.metrics] gives the "
                "metric a role."
            )
        if self.unmeasured:
            lines.append(f"No values in this log: {', '.join(map(within_sentence, self.unmeasured))}.")
        return lines

    @property
    def problems(self) -> list[Problem]:
        return self.summary.problems


def report_view(analysis: Analysis, *, deterministic: bool = False, max_examples: int = 50) -> ReportView:
    """The view of an analysis. `deterministic` rounds every number first and leaves out what differs between machines."""
    n_examples = len(analysis.examples)
    examples = example_views(chosen(analysis.examples, max_examples), experiment=analysis.experiment)
    analysis = sanitized_analysis(analysis, deterministic=deterministic)
    by_name = {metric.name: metric for metric in analysis.metrics}
    listed = [metric for metric in analysis.metrics if metric.role != "diagnostic" or not _restates(metric, by_name)]
    rows = _rows(listed, analysis)
    judges = _deciding_first([judge_view(judge, analysis.checks) for judge in analysis.judges])
    facts, config, reproduce = _provenance(analysis, deterministic=deterministic)
    summary = summary_view(analysis, rows, judges)
    absent = [metric for metric in listed if not _has_row(metric) and metric.name != LATER_TURNS]
    foreign = [metric for metric in absent if metric.name in MEASURED_BY_US and not metric.measurable]
    return ReportView(
        title=f"{analysis.experiment}: evalpipe report",
        experiment=analysis.experiment,
        generated=format_instant(analysis.generated_at),
        first=first_screen(analysis, rows, judges, summary.problems, examples),
        summary=summary,
        groups=_grouped(rows),
        unmeasured=[m.label or m.name for m in absent if m not in foreign],
        foreign=[m.label or m.name for m in foreign],
        figures=figures(analysis),
        more_figures=more_figures(analysis, rows),
        judges=judges,
        corrected=corrected_view(analysis),
        people=labels_answer(analysis),
        judge_figures=judge_figures(analysis),
        segments=segment_table(analysis),
        examples=examples,
        example_groups=example_groups(examples),
        n_left_out=0 if examples else n_examples,
        checks=[
            CheckRow(
                name=check_name(c.name, c.status),
                about=sentence_case(CHECKS.get(c.name, "")),
                status=c.status,
                detail=full_sentence(readable_instants(c.detail)),
                remedy=full_sentence(c.remedy or ""),
            )
            for c in analysis.checks
        ],
        funnel=funnel_figure(analysis),
        provenance=facts,
        config=config,
        reproduce=reproduce,
        marks=FINDINGS,
    )


def _restates(metric: MetricResult, others: Mapping[str, MetricResult]) -> bool:
    """Whether both arms' values are those of another metric in another unit, to the digits of a deterministic report."""
    name, factor = RESTATED.get(metric.name, ("", 1.0))
    other = others.get(name)
    if other is None:
        return False
    pairs = ((metric.control.value, other.control.value), (metric.treatment.value, other.treatment.value))
    return all(
        one is two if one is None or two is None else math.isclose(one, factor * two, rel_tol=1e-5)
        for one, two in pairs
    )


def _has_row(metric: MetricResult) -> bool:
    """What decides has a row whether it was measured or not: without a value it decides by that, too."""
    return is_measured(metric) or metric.role != "diagnostic"


def _rows(metrics: list[MetricResult], analysis: Analysis) -> list[MetricRow]:
    """The rows of the table, the footnotes numbered in its order."""
    later = any(metric.name == LATER_TURNS and is_measured(metric) for metric in metrics)
    turns = "first turns only" if later and analysis.provenance.get("turns") == "first" else None
    rows = _each_figure_once([metric_row(metric, turns=turns) for metric in metrics if _has_row(metric)])
    ordered = [row for _, group in _grouped(rows) for row in group]
    marks = {row.name: superscript(n) for n, row in enumerate((row for row in ordered if row.footnote), start=1)}
    return [dataclasses.replace(row, mark=marks.get(row.name, "")) for row in ordered]


def _each_figure_once(rows: list[MetricRow]) -> list[MetricRow]:
    """Diagnostics of one group with the very same numbers in one row, under all their names: a judge that gives one mark for
    everything."""
    by_figure: dict[tuple[object, ...], list[MetricRow]] = {}
    for row in rows:
        raw = row.raw
        numbers = (raw.control.value, raw.treatment.value, raw.difference, raw.ci_low, raw.ci_high, raw.n)
        same = (row.group, raw.unit, raw.margin, row.finding, *numbers)
        alone = raw.role != "diagnostic" or raw.difference is None
        by_figure.setdefault((row.name,) if alone else same, []).append(row)
    return [dataclasses.replace(found[0], label=_joined([row.label for row in found])) for found in by_figure.values()]


def _joined(labels: list[str]) -> str:
    """ "Accuracy, clarity and judge score"; what the first ones end with as well as the last is there once."""
    if len(labels) == 1:
        return labels[0]
    last = labels[-1].rpartition(" ")[2]
    if all(label.endswith(f" {last}") for label in labels):
        labels = [*(label.removesuffix(f" {last}") for label in labels[:-1]), labels[-1]]
    first, *rest = labels
    return f"{', '.join([first, *map(within_sentence, rest[:-1])])} and {within_sentence(rest[-1])}"


def superscript(number: int) -> str:
    """12 → "¹²"."""
    return str(number).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _deciding_first(judges: list[JudgeView]) -> list[JudgeView]:
    """The judge that decides, then people's labels, then the rest; where none decides, the first is shown in full."""
    ordered = sorted(judges, key=lambda judge: (not judge.feeds_decision, not judge.is_labels))
    if ordered and not any(judge.is_shown for judge in ordered):
        ordered[0] = dataclasses.replace(ordered[0], is_shown=True)
    return ordered


def sanitized_analysis(analysis: Analysis, *, deterministic: bool = False) -> Analysis:
    """The analysis without its examples, every text made visible, and (deterministic) every number rounded."""
    document = {
        field.name: msgspec.to_builtins(getattr(analysis, field.name))
        for field in dataclasses.fields(analysis)
        if field.name != "examples"
    }
    return msgspec.convert(_walk(document, deterministic), type=Analysis)


def _walk(value: Any, rounded: bool) -> Any:
    if isinstance(value, str):
        return escape_invisible(value)
    if isinstance(value, float):
        return round_significant(value) if rounded else value
    if isinstance(value, dict):
        return {escape_invisible(str(key)): _walk(item, rounded) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_walk(item, rounded) for item in value]
    return value


def round_significant(value: float, digits: int = SIGNIFICANT_DIGITS) -> float:
    """`value` to that many significant digits; 0, NaN and infinities as they are.

    Rounded to three digits more first: sums in another order differ in the last bits, and on a tie those would decide.
    """
    if value == 0 or not math.isfinite(value):
        return value
    return float(f"{float(f'{value:.{digits + 2}e}'):.{digits - 1}e}")


def _grouped(rows: list[MetricRow]) -> list[tuple[str, list[MetricRow]]]:
    names = list(dict.fromkeys([*GROUPS.values(), *(row.group for row in rows)]))
    grouped = [(name, [row for row in rows if row.group == name]) for name in names]
    return [(name, members) for name, members in grouped if members]


_NOTHING: tuple[object, ...] = (None, "", [], {})
_APART = frozenset(
    {
        "config",
        "reproduce",
        "simulated_judge",
        "arms",
        "about",
        "versions",
        "n_star",
        "data",
        "judge",
        "segments_one_user_in",
    }
)
_FACT_NAMES = {
    "evalpipe": "Version of evalpipe",
    "n_looks": "Looks so far",
    "first_at": "First request",
    "last_at": "Last request",
}


def _provenance(analysis: Analysis, *, deterministic: bool) -> tuple[list[Fact], str, str]:
    """The origin of the analysis as lines; the configuration and the reproduce line are apart."""
    provenance = analysis.provenance
    facts = [Fact(name="Report made", text=format_instant(analysis.generated_at))]
    for key, value in provenance.items():
        if key in _APART or value in _NOTHING:
            continue
        facts.append(Fact(name=_FACT_NAMES.get(key) or key.replace("_", " ").capitalize(), text=_flat(value)))
    if not deterministic and provenance.get("versions"):
        facts.append(Fact(name="Versions", text=_flat(provenance["versions"])))
    data = provenance.get("data")
    if isinstance(data, dict) and not deterministic:
        size = f"{format_counted(data.get('n_files'), 'file')}, {format_counted(data.get('n_bytes'), 'byte')}"
        facts.append(Fact(name="Data", text=f"{size}, fingerprint {data.get('fingerprint')}"))
    plan = {key: provenance[key] for key in ("config", "n_star") if provenance.get(key)}
    text = json.dumps(plan, indent=2, ensure_ascii=False) if plan else ""
    return facts, text, str(provenance.get("reproduce") or "")


def _flat(value: Any) -> str:
    """A small value of the provenance as one line of text."""
    if isinstance(value, dict):
        return "; ".join(f"{key}: {_flat(item)}" for key, item in value.items() if item not in _NOTHING) or "all"
    if isinstance(value, list):
        return ", ".join(_flat(item) for item in value)
    if isinstance(value, str) and len(value) > 10 and value[4:5] == "-" and "T" in value[10:11]:
        return format_instant(value)
    return str(value)
