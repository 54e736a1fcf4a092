"""`Analysis` → one HTML file that needs nothing else; a page that lists a folder's reports."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup, escape

from evalpipe.analysis.result import Analysis
from evalpipe.report.charts.intervals import Rate, is_bent, rate_axis, rate_axis_cell, rate_cell
from evalpipe.report.charts.svg import HATCH, Scale
from evalpipe.report.figures import row_picture, shared_reach
from evalpipe.report.findings import MOST_NAMED
from evalpipe.report.history import KeptLook, Look, expected, history_view
from evalpipe.report.judge import AGREEMENT_COLUMNS, LABELS_QUESTION, JudgeView, RateRow
from evalpipe.report.metrics import MetricRow
from evalpipe.report.monthly_cost import about
from evalpipe.report.sanitize import escape_invisible, one_line
from evalpipe.report.terms import CHECK_MARKS, FINDING_ORDER, RECOMMENDATIONS, glossary, with_terms
from evalpipe.report.view import report_view
from evalpipe.text import format_counted, format_instant, sentence_case

DEFAULT_EXAMPLES = 50
ELSEWHERE = frozenset({"What got better?", "What got worse?", "Can the judge be trusted?", LABELS_QUESTION})
"""questions that the page answers in another place: the first screen and the table, and the judge"""


def render(
    analysis: Analysis, *, deterministic: bool = False, max_examples: int = DEFAULT_EXAMPLES, since: str = ""
) -> str:
    """The report. `deterministic`: the same analysis gives the same bytes on every machine (numbers rounded first,
    no versions); used for the sample report. `since`: what changed since the report before."""
    view = report_view(analysis, deterministic=deterministic, max_examples=max_examples)
    reach = shared_reach(view.rows)
    return render_page(
        "report.html.j2",
        title=view.title,
        view=view,
        since=since,
        is_bent=is_bent(reach),
        row_picture=lambda row: row_picture(row, reach),
        rate_picture=_rate_picture,
        rate_axis=lambda judge: rate_axis_cell(_axis(judge)),
        agreement_columns=AGREEMENT_COLUMNS,
        check_marks=CHECK_MARKS,
        finding_rank=FINDING_ORDER.index,
        methods=_methods(view.rows),
        most_named=MOST_NAMED,
        elsewhere=ELSEWHERE,
        question_of_labels=LABELS_QUESTION,
        sampled={sample.number for sample in view.first.samples},
        glossary=glossary(),
    )


def render_page(template: str, *, title: str, **values: Any) -> str:
    """A page of the family: its style and script inlined, and allowed by their hashes alone."""
    css, script = _source("report.css"), _source("report.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(css)}'; script-src '{_hash(script)}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    page = _environment().get_template(template)
    return page.render(title=title, policy=policy, css=Markup(css), script=Markup(script), hatch=HATCH, **values)


def _rates(judge: JudgeView) -> list[Rate]:
    return [Rate(low=rate.low, point=rate.point, high=rate.high) for rate in judge.rates]


def _axis(judge: JudgeView) -> Scale:
    return rate_axis(_rates(judge))


def _rate_picture(judge: JudgeView, rate: RateRow) -> Markup:
    return rate_cell(
        Rate(low=rate.low, point=rate.point, high=rate.high),
        _axis(judge),
        label=rate.label,
        description=f"{rate.rate} ({rate.interval})",
    )


def _methods(rows: list[MetricRow]) -> list[tuple[str, str]]:
    """(method, the metrics it made) in the order of the table."""
    by_method: dict[str, list[str]] = {}
    for row in rows:
        if row.raw.method:
            by_method.setdefault(row.raw.method, []).append(row.label)
    return [(method, ", ".join(labels)) for method, labels in by_method.items()]


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("evalpipe.report"),
        autoescape=True,
        # The one way onto the page: whatever text is put in, wherever it comes from, shows what it hides.
        finalize=lambda value: escape_invisible(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _code_spans
    environment.filters["terms"] = with_terms
    environment.filters["capitalize_first"] = sentence_case
    environment.filters["counted"] = format_counted
    environment.filters["slug"] = lambda text: re.sub(r"[^a-z0-9]+", "-", str(text).lower()).strip("-")
    return environment


def _code_spans(text: str) -> Markup:
    """Plain text whose `backticks` become <code>; everything is escaped, an odd backtick stays."""
    parts = escape_invisible(text).split("`")
    if len(parts) % 2 == 0:
        return Markup(escape(escape_invisible(text)))
    shown = [Markup("<code>{}</code>").format(part) if n % 2 else escape(part) for n, part in enumerate(parts)]
    return Markup("").join(shown)


@cache
def _source(name: str) -> str:
    loader = _environment().loader
    assert loader is not None
    return loader.get_source(_environment(), name)[0]


def _hash(text: str) -> str:
    """The source expression of an inline style or script (CSP 3, 2.3.1)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


# Pages about several reports: a folder's, the newest first, and the history of an experiment.


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """A report of the folder: its look, the name of its file, and of its experiment's history ("" where there is none)."""

    look: Look
    name: str
    history: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One report. `href` and `history` are relative addresses within the folder, percent-encoded."""

    experiment: str
    href: str
    history: str
    recommendation: str
    recommendation_word: str
    title: str
    question: str
    expected: str
    generated: str
    pairs: int
    simulated: bool


def render_index(reports: list[Listed], *, skipped: int = 0) -> str:
    """`skipped` files could not be read and are counted on the page."""
    ordered = sorted(reports, key=lambda report: report.look.generated_at, reverse=True)
    entries = [_entry(report) for report in ordered]
    return render_page("index.html.j2", title="Reports: evalpipe", entries=entries, skipped=skipped)


def _entry(report: Listed) -> Entry:
    look = report.look
    decision = look.decision
    return Entry(
        experiment=look.experiment,
        href=quote(report.name, errors="replace"),
        history=quote(report.history, errors="replace"),
        recommendation=decision.recommendation,
        recommendation_word=RECOMMENDATIONS.get(decision.recommendation, decision.recommendation),
        title=look.title,
        question=one_line(str(about(look.provenance).get("question") or ""), 200),
        expected=expected(look),
        generated=format_instant(look.generated_at),
        pairs=look.funnel.pairs,
        simulated=look.is_simulated,
    )


def render_history(kept: Sequence[KeptLook], *, latest: str) -> str:
    """The history of an experiment, `kept` oldest first; `latest`: relative address of the latest report."""
    view = history_view(kept, latest=latest)
    return render_page("history.html.j2", title=f"{view.experiment}: history", view=view)
