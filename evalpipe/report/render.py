"""`Analysis` → one HTML file that needs nothing else: styles, script and pictures are inside it."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from typing import Any

import jinja2
from markupsafe import Markup, escape

from evalpipe.analysis.result import Analysis
from evalpipe.core.format import format_counted
from evalpipe.report.charts.interval import is_bent
from evalpipe.report.charts.rates import Rate, rate_axis, rate_axis_cell, rate_cell
from evalpipe.report.charts.svg import HATCH, Scale
from evalpipe.report.figures import row_picture, shared_reach
from evalpipe.report.judge_view import AGREEMENT_COLUMNS, JudgeView, RateRow
from evalpipe.report.metric_view import MetricRow
from evalpipe.report.untrusted import visible
from evalpipe.report.view import report_view
from evalpipe.report.words import CHECK_MARKS, FINDING_ORDER

DEFAULT_EXAMPLES = 50


def render(analysis: Analysis, *, deterministic: bool = False, max_examples: int = DEFAULT_EXAMPLES) -> str:
    """The report. `deterministic`: the same analysis gives the same bytes on every machine (numbers rounded first,
    no versions); used for the sample report."""
    view = report_view(analysis, deterministic=deterministic, max_examples=max_examples)
    reach = shared_reach(view.rows)
    return render_page(
        "report.html.j2",
        title=view.title,
        view=view,
        is_bent=is_bent(reach),
        row_picture=lambda row: row_picture(row, reach),
        rate_picture=_rate_picture,
        rate_axis=lambda judge: rate_axis_cell(_axis(judge)),
        agreement_columns=AGREEMENT_COLUMNS,
        check_marks=CHECK_MARKS,
        finding_rank=FINDING_ORDER.index,
        methods=_methods(view.rows),
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
        # The one door to the page: whatever text is put in, wherever it comes from, shows what it hides.
        finalize=lambda value: visible(value) if type(value) is str else value,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code"] = _code_spans
    environment.filters["counted"] = format_counted
    environment.filters["slug"] = lambda text: re.sub(r"[^a-z0-9]+", "-", str(text).lower()).strip("-")
    return environment


def _code_spans(text: str) -> Markup:
    """Plain text whose `backticks` become <code>; everything is escaped, an odd backtick stays."""
    parts = visible(text).split("`")
    if len(parts) % 2 == 0:
        return Markup(escape(visible(text)))
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
