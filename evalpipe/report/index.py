"""A page that lists a folder's reports, the newest first."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote

from evalpipe.analysis.result import Analysis
from evalpipe.core.format import format_instant
from evalpipe.report.decision_view import headline_of
from evalpipe.report.problems import is_simulated
from evalpipe.report.render import render_page
from evalpipe.report.untrusted import visible
from evalpipe.report.words import RECOMMENDATIONS


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One report. `href` is a relative address within the folder, percent-encoded."""

    experiment: str
    href: str
    recommendation: str
    recommendation_word: str
    headline: str
    generated: str
    pairs: int
    simulated: bool


def render_index(reports: list[tuple[str, Analysis]], *, skipped: int = 0) -> str:
    """`reports`: (file name of the HTML, its analysis). `skipped` files could not be read and are counted on the page."""
    ordered = sorted(reports, key=lambda report: report[1].generated_at, reverse=True)
    entries = [_entry(name, analysis) for name, analysis in ordered]
    return render_page("index.html.j2", title="Reports: evalpipe", entries=entries, skipped=skipped)


def _entry(name: str, analysis: Analysis) -> Entry:
    decision = analysis.decision
    return Entry(
        experiment=visible(analysis.experiment),
        href=quote(name, errors="replace"),
        recommendation=decision.recommendation,
        recommendation_word=RECOMMENDATIONS.get(decision.recommendation, decision.recommendation),
        headline=visible(headline_of(decision)),
        generated=format_instant(analysis.generated_at),
        pairs=analysis.funnel.pairs,
        simulated=is_simulated(analysis),
    )
