"""`Analysis` → `ReportView`: every string and picture of the page, ready to be laid out. Pure."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any

import msgspec

from evalpipe.analysis.result import Analysis
from evalpipe.core.format import format_counted, format_instant, full_sentence, readable_instants, within_sentence
from evalpipe.report.example_view import ExampleView, chosen, example_groups, example_views
from evalpipe.report.figures import Figure, figures, funnel_figure, judge_figures
from evalpipe.report.judge_view import JudgeView, judge_view
from evalpipe.report.metric_view import Fact, MetricRow, is_measured, metric_row
from evalpipe.report.problems import Problem
from evalpipe.report.segment_view import SegmentTable, segment_table
from evalpipe.report.summary_view import SummaryView, summary_view
from evalpipe.report.untrusted import visible
from evalpipe.report.words import FINDINGS, GROUPS, check_name

SIGNIFICANT_DIGITS = 6
"""of every number of a deterministic report: what differs beyond them differs between machines"""

SAID_TWICE = frozenset({"cost_per_1000_requests_usd"})
"""metrics that are another one in another unit: in the JSON and the CSV; on the page only where they decide"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckRow:
    name: str
    status: str
    detail: str
    remedy: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportView:
    title: str
    experiment: str
    generated: str
    summary: SummaryView
    groups: list[tuple[str, list[MetricRow]]]
    unmeasured: list[str]
    """labels of the metrics without a single observation"""
    figures: list[Figure]
    judges: list[JudgeView]
    judge_figures: list[Figure]
    segments: SegmentTable | None
    examples: list[ExampleView]
    example_groups: list[tuple[str, str, int]]
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
    def footnotes(self) -> list[str]:
        """What a reader of the table must know who sees nothing else of it."""
        lines = []
        if any(not row.subtracts for row in self.rows):
            lines.append(
                "A difference is estimated over the users or pairs both arms share, so it need not be exactly the "
                "treatment's value minus control's."
            )
        if any(row.finding == "undefined" for row in self.rows):
            lines.append("No conclusion: the data cannot carry a valid interval yet, so no difference is shown.")
        if self.unmeasured:
            lines.append(f"Not measured in this log: {', '.join(map(within_sentence, self.unmeasured))}.")
        return lines

    @property
    def problems(self) -> list[Problem]:
        return self.summary.problems


def report_view(analysis: Analysis, *, deterministic: bool = False, max_examples: int = 50) -> ReportView:
    """The view of an analysis. `deterministic` rounds every number first and leaves out what differs between machines."""
    examples = example_views(chosen(analysis.examples, max_examples), experiment=analysis.experiment)
    analysis = tidy(analysis, deterministic=deterministic)
    told = [metric for metric in analysis.metrics if metric.name not in SAID_TWICE or metric.role != "diagnostic"]
    rows = [metric_row(metric) for metric in told if is_measured(metric)]
    judges = _deciding_first([judge_view(judge, analysis.checks) for judge in analysis.judges])
    facts, config, reproduce = _provenance(analysis, deterministic=deterministic)
    return ReportView(
        title=f"{analysis.experiment}: evalpipe report",
        experiment=analysis.experiment,
        generated=format_instant(analysis.generated_at),
        summary=summary_view(analysis, rows, judges),
        groups=_grouped(rows),
        unmeasured=[m.label or m.name for m in told if not is_measured(m)],
        figures=figures(analysis, rows),
        judges=judges,
        judge_figures=judge_figures(analysis),
        segments=segment_table(analysis),
        examples=examples,
        example_groups=example_groups(examples),
        checks=[
            CheckRow(
                name=check_name(c.name, c.status),
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


def _deciding_first(judges: list[JudgeView]) -> list[JudgeView]:
    """The judge that decides, then people's labels, then the rest; where none decides, the first is shown in full."""
    ordered = sorted(judges, key=lambda judge: (not judge.feeds_decision, not judge.is_labels))
    if ordered and not any(judge.is_shown for judge in ordered):
        ordered[0] = dataclasses.replace(ordered[0], is_shown=True)
    return ordered


def tidy(analysis: Analysis, *, deterministic: bool = False) -> Analysis:
    """The analysis without its examples, every text made visible, and (deterministic) every number rounded."""
    document = {
        field.name: msgspec.to_builtins(getattr(analysis, field.name))
        for field in dataclasses.fields(analysis)
        if field.name != "examples"
    }
    return msgspec.convert(_walk(document, deterministic), type=Analysis)


def _walk(value: Any, rounded: bool) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, float):
        return round_significant(value) if rounded else value
    if isinstance(value, dict):
        return {visible(str(key)): _walk(item, rounded) for key, item in value.items()}
    if isinstance(value, list):
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
    {"config", "reproduce", "simulated_judge", "arms", "versions", "n_star", "data", "judge", "segments_one_user_in"}
)
_FACT_NAMES = {
    "evalpipe": "Version of evalpipe",
    "n_looks": "Looks so far",
    "first_at": "First request",
    "last_at": "Last request",
}


def _provenance(analysis: Analysis, *, deterministic: bool) -> tuple[list[Fact], str, str]:
    """Everything the analysis says of its origin, as lines; the configuration and the reproduce line stand apart."""
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
