"""The same report as Markdown (for a pull request or Slack) and as CSV (for a spreadsheet)."""

from __future__ import annotations

import csv
import io
import re

from evalpipe.analysis.result import Analysis
from evalpipe.report.view import ReportView, report_view, tidy
from evalpipe.report.words import FINDINGS

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
    for m in tidy(analysis).metrics:
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
