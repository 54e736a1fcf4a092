"""The report in a terminal: the recommendation, the table and the judge, with rich."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from evalpipe.analysis.result import Analysis
from evalpipe.core.format import NBSP
from evalpipe.report.metric_view import MetricRow
from evalpipe.report.view import ReportView, report_view
from evalpipe.report.words import FINDINGS

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
