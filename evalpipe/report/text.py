"""The report as text: Markdown, CSV, a table in the terminal, and the lines and JSON of `evalpipe gate`."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
from collections.abc import Mapping
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from evalpipe.analysis.reasons import horizon_sentence
from evalpipe.analysis.result import Analysis, Decision, DecisionChange, Horizon, MetricResult
from evalpipe.report.decision import ROLLBACK, set_sentence, undone_sentence
from evalpipe.report.metrics import MetricRow
from evalpipe.report.terms import FINDINGS, plain
from evalpipe.report.view import ReportView, report_view, sanitized_analysis
from evalpipe.text import NBSP, full_sentence, readable_instants, within_sentence

_SPECIAL = re.compile(r"([\\`*_{}\[\]()#+!|~-])")

CSV_COLUMNS = (
    "metric", "label", "group", "role", "unit", "direction", "scale",
    "control", "control_n", "treatment", "treatment_n", "difference", "ci_low", "ci_high",
    "relative", "relative_low", "relative_high", "confidence_level", "p_value", "margin", "n", "n_clusters",
    "method", "status", "finding", "non_inferior", "note", "missing_control", "missing_treatment", "share_left_out",
    "value_over_pairs",
)  # fmt: skip


def escape_markdown(text: str) -> str:
    """Untrusted text as one line of Markdown that shows just that: no markup, no HTML, no mention of anybody."""
    line = " ".join(text.split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("@", "&#64;")
    line = re.sub(r"(?i)\b(https?)://", r"\1&#58;//", line)
    return _SPECIAL.sub(r"\\\1", line)


def render_markdown(analysis: Analysis) -> str:
    """The recommendation, its reasons and the table. Numbers are the strings of the HTML."""
    view = report_view(analysis, max_examples=0)
    summary = view.summary
    lines = [f"## {escape_markdown(view.experiment)}: {escape_markdown(summary.recommendation_word)}", ""]
    for problem in summary.problems:
        mark = "⚠️" if problem.level == "warn" else "🛑"
        remedy = f" {escape_markdown(problem.remedy)}" if problem.level in {"setup", "fail"} and problem.remedy else ""
        lines += [f"> {mark} **{escape_markdown(problem.title)}.** {escape_markdown(problem.detail)}{remedy}", ""]
    lines += [f"**{escape_markdown(summary.headline)}**", ""]
    if summary.arms:
        lines += ["; ".join(f"{arm.name}: {escape_markdown(arm.text)}" for arm in summary.arms), ""]
    if summary.decision.head:
        lines += [f"- {f'**{name}:** ' if name else ''}{escape_markdown(text)}" for name, text in summary.decision.head]
    lines += [f"- {escape_markdown(reason)}" for reason in summary.reasons]
    lines += ["", *_metric_table(view)]
    for line in view.footnotes:
        lines += [escape_markdown(line), ""]
    lines += [f"- **{answer.name}** {escape_markdown(answer.text)}" for answer in summary.questions]
    if view.reproduce:
        fence = "`" * (max((len(run) for run in re.findall("`+", view.reproduce)), default=0) + 1)
        lines += ["", f"Reproduce: {fence} {' '.join(view.reproduce.split())} {fence}"]
    return "\n".join(lines).strip() + "\n"


def _metric_table(view: ReportView) -> list[str]:
    if not view.rows:
        return []
    lines = ["| Metric | Control | Treatment | Difference (interval) | Finding |", "|---|--:|--:|--:|---|"]
    for row in view.rows:
        finding = f"{FINDINGS[row.finding]} {row.finding_word}".replace("|", "\\|")
        cells = (escape_markdown(row.marked_label), row.control, row.treatment, row.difference_with_interval, finding)
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def render_csv(analysis: Analysis) -> str:
    """One line per metric with the numbers as they are, unrounded; missing is empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for m in sanitized_analysis(analysis).metrics:
        compared = (
            m.control.value, m.control.n, m.treatment.value, m.treatment.n, m.difference, m.ci_low, m.ci_high,
            m.relative, m.relative_low, m.relative_high,
        )  # fmt: skip
        sizes = (m.p_value, m.n, m.n_clusters)
        if m.status == "not_measured":  # empty, not 0
            compared, sizes = (None,) * len(compared), (None, None, None)  # type: ignore[assignment]
        p_value, n, n_clusters = sizes
        values = (
            m.name, m.label, m.group, m.role, m.unit, m.direction, m.scale, *compared, m.confidence_level, p_value,
            m.margin, n, n_clusters, m.method, m.status, m.finding, m.non_inferior, m.note, m.missing_control,
            m.missing_treatment, m.share_left_out, m.value_over_pairs,
        )  # fmt: skip
        writer.writerow([_cell(value) for value in values])
    return out.getvalue()


def _cell(value: object) -> object:
    """Text that a spreadsheet would run as a formula gets an apostrophe before it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t"}:
        return f"'{value}"
    return "" if value is None else value


# The report in a terminal: the recommendation, the table and the judge, with rich.


# The terminal's own palette: it fits light and dark themes alike, and is always beside a mark and a word.
STYLES = {"better": "bold green", "worse": "bold red", "equivalent": "bold", "inconclusive": "dim", "undefined": "dim"}
WIDE = 110
"""columns from which a row fits on one line"""
HEADLINE_STYLES = {"ship": "bold green", "keep": "bold", "collect_more": "bold", "invalid": "bold red"}


def print_summary(analysis: Analysis, console: Console | None = None) -> None:
    """Print the report's summary (to stdout, or to `console`). Untrusted text is printed as text: no markup, no escapes."""
    console = console or Console()
    console.print(summary(report_view(analysis, max_examples=0), wide=console.width >= WIDE))


def summary(view: ReportView, *, wide: bool = True) -> Group:
    """`wide`: difference and interval are on one line; else under each other, so that no number is broken."""
    parts: list[Text | Panel | Table | Padding] = []
    for problem in view.problems:
        style = "yellow" if problem.level == "warn" else "bold red"
        body = Text.assemble((problem.title, style), ("  " + problem.detail, ""))
        if problem.remedy and problem.level in {"setup", "fail"}:
            body.append(f"\n{problem.remedy}")
        parts.append(Panel(body, border_style=style) if problem.level == "simulated" else Padding(body, (0, 1)))
    word = view.summary.recommendation_word
    parts.append(Text(f"\n{word}", style=HEADLINE_STYLES.get(view.summary.recommendation, "bold")))
    if view.summary.arms:
        parts.append(Text("   ".join(f"{arm.name}: {arm.text}" for arm in view.summary.arms), style="dim"))
    parts.append(Text(view.summary.headline))
    parts += [Text.assemble((f"{name}: " if name else "", "bold"), text) for name, text in view.summary.decision.head]
    parts += [Padding(Text(f"• {reason}"), (0, 0, 0, 2)) for reason in view.summary.reasons]
    if view.rows:
        parts.append(_metrics(view, wide=wide))
    parts += [Text(line, style="dim") for line in view.footnotes]
    facts = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for answer in view.summary.questions:
        facts.add_row(Text(answer.name), Text(answer.text))
    parts.append(facts)
    return Group(*parts)


def _metrics(view: ReportView, *, wide: bool) -> Table:
    """A table whose numbers and findings are never cut: where it is narrow, what belongs together is in two lines."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1) if wide else (0, 1, 0, 0), show_edge=False)
    table.add_column("Metric", overflow="fold", min_width=14)
    for name in ("Control", "Treatment") if wide else ("Control\nTreatment",):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("Difference (interval)" if wide else "Difference\n(interval)", justify="right", no_wrap=True)
    table.add_column("Finding", no_wrap=True)
    for group, rows in view.groups:
        table.add_row(Text(group, style="dim italic"))
        for row in rows:
            values = (row.control, row.treatment) if wide else (f"{row.control}\n{row.treatment}",)
            table.add_row(
                Text(row.marked_label),
                *map(Text, values),
                Text(row.difference_with_interval if wide else _two_lines(row)),
                Text(f"{FINDINGS[row.finding]} {row.finding_word}", style=STYLES[row.finding]),
            )
    return table


def _two_lines(row: MetricRow) -> str:
    """The difference over its interval; "points" is there once."""
    return f"{row.difference}\n({row.interval.removesuffix(f'{NBSP}points')})" if row.has_interval else row.difference


# The verdict of `evalpipe gate`: as JSON-ready values for programs, and in lines for a terminal or a build log.


_EXCLUDE = "evalpipe exclude "


def gate_document(
    experiment: str, decision: Decision, analysis: Analysis | None, *, computed_at: str
) -> dict[str, Any]:
    """The decision for programs.

    Args:
        analysis: where it comes from; None before there are any data.
        computed_at: ISO 8601 instant.

    Returns:
        JSON-ready values. A metric that the source of the log cannot measure has no numbers: None, not 0.
    """
    metrics = [] if analysis is None else [one for one in analysis.metrics if one.role != "diagnostic"]
    horizon = decision.horizon
    return {
        "experiment": experiment,
        "recommendation": decision.recommendation,
        "headline": decision.headline,
        "reasons": decision.reasons,
        "rule": decision.rule,
        "computed_at": computed_at,
        "decided_at": decision.decided_at,
        "decided_look": decision.decided_look,
        "expected_more_requests": decision.expected_more_requests,
        "horizon": None if horizon is None else msgspec.to_builtins(horizon),
        "blocking": decision.blocking,
        "not_measured": decision.not_measured,
        "setup_faults": decision.setup_faults,
        "rollback": decision.rollback,
        "set_number": decision.set_number,
        "confidence_level": metrics[0].confidence_level if metrics else None,
        "changes": msgspec.to_builtins(decision.changes),
        "metrics": [_metric(one) for one in metrics],
        "remedies": []
        if analysis is None
        else [one.remedy for one in analysis.checks if one.status == "fail" and one.remedy],
        "damaged_files": [] if analysis is None else analysis.provenance.get("damaged_files", []),
        "failed_checks": [] if analysis is None else [one.name for one in analysis.checks if one.status == "fail"],
    }


def _metric(metric: MetricResult) -> dict[str, Any]:
    numbers: dict[str, float | None] = {
        "control": metric.control.value,
        "treatment": metric.treatment.value,
        "difference": metric.difference,
        "ci_low": metric.ci_low,
        "ci_high": metric.ci_high,
    }
    if metric.status == "not_measured":
        numbers = dict.fromkeys(numbers)
    return {
        "name": metric.name,
        "label": metric.label,
        "role": metric.role,
        "finding": metric.finding,
        "status": metric.status,
        **numbers,
        "non_inferior": metric.non_inferior,
    }


def gate_lines(document: Mapping[str, Any]) -> list[str]:
    """The verdict in lines, the headline first; texts of providers and users are on one line each.

    Args:
        document: from `gate_document`.
    """
    headline = _line(document["headline"])
    labels = {one["name"]: within_sentence(one["label"]) for one in document["metrics"]}
    changes = [msgspec.convert(one, type=DecisionChange) for one in document["changes"]]
    forecast = ""
    if document["horizon"] is not None:
        horizon = Horizon(**document["horizon"])
        named = dataclasses.replace(horizon, metric=labels.get(horizon.metric, horizon.metric))
        forecast = full_sentence(horizon_sentence(named, {}))
    lines = [headline]
    if document["rollback"]:
        lines.append(f"  {ROLLBACK}")
    for reason in map(_line, document["reasons"]):
        repeated = reason.rstrip(".").lower() in headline.lower()
        if not repeated and not (forecast and reason.startswith(_line(forecast).partition(" until ")[0])):
            lines.append(f"  - {reason}")
    printed = " ".join(lines)
    remedies = [remedy for remedy in map(_line, document["remedies"]) if not _is_printed(remedy, printed)]
    lines += [f"  Remedy: {remedy}" for remedy in remedies]
    if document["damaged_files"]:
        n = len(document["damaged_files"])
        names = ", ".join(document["damaged_files"][:3])
        lines.append(
            "  " + _line(f"Without {n} damaged stored file{'s' if n > 1 else ''} ({names}): `evalpipe doctor --data`")
        )
    if forecast:
        lines.append(f"  How much longer: {_line(forecast)}")
    if document["blocking"] and document["recommendation"] == "collect_more":
        open_ = ", ".join(labels.get(name, plain(name)) for name in document["blocking"])
        lines.append(f"  Not settled: {_line(open_)}.")
    undone = undone_sentence(changes, document["reasons"])
    if undone:
        lines.append(f"  {_line(undone)}")
    if document["set_number"] > 1:
        alpha = 1 - (document["confidence_level"] or 0.95)
        lines.append(f"  {_line(set_sentence(document['set_number'], alpha))}")
    return lines


def _is_printed(remedy: str, printed: str) -> bool:
    """Whether the lines before hold a remedy's command: the text of a set-up fault does."""
    _, command, arguments = remedy.partition(_EXCLUDE)
    return bool(command) and f"{command}{arguments.rstrip('.')}" in printed


def _line(text: str) -> str:
    return " ".join(readable_instants(text).split())
