"""Two reports side by side: two experiments, or one at two dates."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
from markupsafe import Markup

from evalpipe.analysis.result import Analysis
from evalpipe.report.charts.intervals import axis_reach, interval_cell
from evalpipe.report.figures import mark_of
from evalpipe.report.metrics import MetricRow
from evalpipe.report.render import render_page
from evalpipe.report.terms import FINDINGS
from evalpipe.report.text import escape_markdown
from evalpipe.report.view import ReportView, report_view
from evalpipe.text import MISSING, format_count, format_instant, format_percent


@dataclass(frozen=True, kw_only=True, slots=True)
class ComparedMetric:
    """One metric in both reports; a side without it is None. `verdict`: whether the two agree."""

    label: str
    a: MetricRow | None
    b: MetricRow | None
    verdict: str

    @property
    def role(self) -> str:
        """The metric's role, both where the reports differ in it: "guardrail, then benefit"."""
        roles = dict.fromkeys(row.role for row in (self.a, self.b) if row is not None)
        return ", then ".join(roles)


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    a: ReportView
    b: ReportView
    name_a: str
    name_b: str
    metrics: list[ComparedMetric]
    facts: list[tuple[str, str, str]]


def compare(a: Analysis, b: Analysis) -> Comparison:
    views = report_view(a, max_examples=0), report_view(b, max_examples=0)
    rows_a, rows_b = ({row.name: row for row in view.rows} for view in views)
    names = list(dict.fromkeys([*rows_a, *rows_b]))
    compared = []
    for name in names:
        left, right = rows_a.get(name), rows_b.get(name)
        shown = left or right
        assert shown is not None
        compared.append(ComparedMetric(label=shown.label, a=left, b=right, verdict=agreement(left, right)))
    name_a, name_b = a.experiment, b.experiment
    if name_a == name_b:
        name_a, name_b = f"{name_a}, {views[0].generated}", f"{name_b}, {views[1].generated}"
    if name_a == name_b:
        name_a, name_b = f"{name_a} (first)", f"{name_b} (second)"
    return Comparison(a=views[0], b=views[1], name_a=name_a, name_b=name_b, metrics=compared, facts=_facts(a, b, views))


def agreement(a: MetricRow | None, b: MetricRow | None) -> str:
    """Do two findings on one metric agree? Intervals that do not overlap differ, whatever the findings."""
    if a is None or b is None:
        return "only in one"
    return f"{_agreement(a, b)}{'' if a.role == b.role else f'; {a.role}, then {b.role}'}"


def _agreement(a: MetricRow, b: MetricRow) -> str:
    low_a, high_a = _bounds(a)
    low_b, high_b = _bounds(b)
    if None not in (low_a, high_a, low_b, high_b) and (low_a > high_b or low_b > high_a):  # type: ignore[operator]
        return "different: the intervals do not overlap"
    if a.finding == b.finding:
        return f"same finding: {a.finding_word}"
    overlap = "" if None in (low_a, high_a, low_b, high_b) else "; the intervals overlap"
    return f"{a.finding_word}, then {b.finding_word}{overlap}"


def _bounds(row: MetricRow) -> tuple[float | None, float | None]:
    """The interval the row shows; none where nothing can be concluded."""
    if not row.has_interval:
        return None, None
    if row.raw.scale == "relative" and row.raw.relative is not None:
        return row.raw.relative_low, row.raw.relative_high
    return row.raw.ci_low, row.raw.ci_high


def _facts(a: Analysis, b: Analysis, views: tuple[ReportView, ReportView]) -> list[tuple[str, str, str]]:
    def judged(analysis: Analysis) -> str:
        return format_count(analysis.funnel.judged_pairs)

    compared_a, compared_b = ({fact.name: fact.text for fact in view.summary.compared} for view in views)
    rows = [(name, compared_a.get(name, MISSING), compared_b.get(name, MISSING)) for name in compared_a]
    return [
        ("Recommendation", views[0].summary.recommendation_word, views[1].summary.recommendation_word),
        ("In a sentence", views[0].summary.headline, views[1].summary.headline),
        ("Made", format_instant(a.generated_at), format_instant(b.generated_at)),
        ("Requests", format_count(a.funnel.requests), format_count(b.funnel.requests)),
        ("Pairs", format_count(a.funnel.pairs), format_count(b.funnel.pairs)),
        ("Users", format_count(a.funnel.users), format_count(b.funnel.users)),
        ("Judged pairs", judged(a), judged(b)),
        *[(name, x or MISSING, y or MISSING) for name, x, y in _surroundings(views) if x or y],
        *rows,
        *([("Candidates on one control", note, note)] if (note := several_candidates(a, b)) else []),
    ]


def several_candidates(a: Analysis, b: Analysis) -> str:
    """What it means that both are candidates on one control; "" where they are not. The ones that are not shown count, too."""
    controls = [one.provenance.get("control_of") or one.experiment for one in (a, b)]
    if a.experiment == b.experiment or controls[0] != controls[1]:
        return ""
    names = {a.experiment, b.experiment}
    for one in (a, b):
        names.update(one.provenance.get("candidates") or ())
    n = len(names)
    level = max((row.confidence_level for one in (a, b) for row in one.metrics if row.confidence_level), default=0.95)
    alpha = 1 - level
    return (
        f"{n} candidates ({', '.join(sorted(names))}) on the control of {controls[0]}. At {format_percent(level, 1)} confidence "
        f"each, some candidate that is no better is taken for better in up to {format_percent(min(1.0, n * alpha), 1)}; at "
        f"{format_percent(1 - alpha / n, 2)} each ([decision] confidence_level) it is {format_percent(alpha, 1)} over all of "
        "them. They share control's answers, so their results are not independent"
    )


def _surroundings(views: tuple[ReportView, ReportView]) -> list[tuple[str, str, str]]:
    """What was excluded, undone or is still needed, in either report."""
    a, b = (view.summary.decision for view in views)
    return [
        ("Excluded", "; ".join(a.exclusions), "; ".join(b.exclusions)),
        ("How much longer", a.how_much_longer, b.how_much_longer),
        ("Undone", a.undone, b.undone),
    ]


def render_comparison(a: Analysis, b: Analysis) -> str:
    """The comparison as one HTML file."""
    comparison = compare(a, b)
    rows = [row for metric in comparison.metrics for row in (metric.a, metric.b) if row is not None]
    effects = [row.effect for row in rows if row.effect is not None and row.effect.has_margin]
    reach = axis_reach([x for e in effects for x in (e.low, e.point, e.high) if x is not None])

    def picture(row: MetricRow | None) -> Markup:
        mark = None if row is None else mark_of(row)
        return Markup() if mark is None else interval_cell(mark, reach if mark.has_margin else 3.0)

    title = f"{comparison.name_a} and {comparison.name_b}: evalpipe comparison"
    return render_page("compare.html.j2", title=title, comparison=comparison, picture=picture, marks=FINDINGS)


def comparison_markdown(a: Analysis, b: Analysis) -> str:
    """The comparison as two tables, for a pull request or a chat."""
    comparison = compare(a, b)
    name_a, name_b = escape_markdown(comparison.name_a), escape_markdown(comparison.name_b)
    lines = [f"| | {name_a} | {name_b} |", "|---|---|---|"]
    lines += [f"| {name} | {escape_markdown(x)} | {escape_markdown(y)} |" for name, x, y in comparison.facts]
    lines += ["", f"| Metric | {name_a} | {name_b} | Do they agree? |", "|---|--:|--:|---|"]
    for metric in comparison.metrics:
        cells = [
            MISSING if row is None else f"{row.difference_with_interval} {row.finding_word}"
            for row in (metric.a, metric.b)
        ]
        lines.append(f"| {escape_markdown(metric.label)} | {cells[0]} | {cells[1]} | {metric.verdict} |")
    return "\n".join(lines) + "\n"


def comparison_json(a: Analysis, b: Analysis) -> bytes:
    """The comparison for programs: what each report states, and per metric both rows of the reports' own JSON."""
    comparison = compare(a, b)

    def report(name: str, analysis: Analysis) -> dict[str, object]:
        return {
            "name": name,
            "experiment": analysis.experiment,
            "generated_at": analysis.generated_at,
            "funnel": analysis.funnel,
            "decision": analysis.decision,
        }

    metrics = [
        {
            "name": (metric.a or metric.b).name,  # type: ignore[union-attr]
            "label": metric.label,
            "a": None if metric.a is None else metric.a.raw,
            "b": None if metric.b is None else metric.b.raw,
            "verdict": metric.verdict,
        }
        for metric in comparison.metrics
    ]
    document = {
        "schema_version": 1,
        "a": report(comparison.name_a, a),
        "b": report(comparison.name_b, b),
        "candidates": several_candidates(a, b) or None,
        "metrics": metrics,
    }
    return msgspec.json.format(msgspec.json.encode(msgspec.to_builtins(document)), indent=2) + b"\n"
