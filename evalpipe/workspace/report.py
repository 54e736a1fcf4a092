"""`evalpipe report`: the analysis of a workspace, written as the files people read."""

from __future__ import annotations

import dataclasses
import re
import webbrowser
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from evalpipe.analysis.result import Analysis, read_analysis_json, render_analysis_json
from evalpipe.config import ReportConfig
from evalpipe.errors import ConfigError, DataError, EvalpipeError
from evalpipe.files import unfinished, unlink_synced, write_atomically
from evalpipe.models import AGAINST_ITSELF
from evalpipe.report.compare import comparison_json, comparison_markdown, render_comparison
from evalpipe.report.history import Look, look_of, since_sentence
from evalpipe.report.render import DEFAULT_EXAMPLES, render
from evalpipe.report.text import render_csv, render_markdown
from evalpipe.report.view import sanitized_analysis
from evalpipe.workspace.history import Check, keep_look, look_before
from evalpipe.workspace.paths import Workspace, check_judge, loaded_experiment
from evalpipe.workspace.secrets import Outgoing

if TYPE_CHECKING:
    from evalpipe.workspace.analyze import Connect

MACHINE_FACTS = frozenset({"evalpipe", "versions", "data"})
"""what the provenance records of one machine: versions, and the sizes of the files it wrote"""


def _as_it_is(data: bytes, name: str) -> bytes:
    return data


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenReport:
    """The files of one report and what they hold. `since`: what changed since the report before, "" for the first one."""

    html: Path
    json: Path
    analysis: Analysis
    since: str = ""


def write_report(
    workspace: Workspace,
    *,
    experiment: str | None = None,
    judge: str | None = None,
    since: str | None = None,
    until: str | None = None,
    where: str | None = None,
    output: Path | None = None,
    max_examples: int = DEFAULT_EXAMPLES,
    connect: Connect | None = None,
) -> WrittenReport:
    """Analyse and write reports/NAME.html (or `output`) with the JSON beside it; a look of the experiment is kept in
    reports/NAME, too. `connect`: how the store is read, by default on this machine. Raises EvalpipeError."""
    analysis = analyze(
        workspace, experiment=experiment, judge=judge, since=since, until=until, where=where, connect=connect
    )
    check = Outgoing(workspace).checked
    html = output or workspace.reports / f"{analysis.experiment}.html"
    if any(part is not None for part in (judge, since, until, where)):  # no look: a part of the log, or another judge
        return write_analysis(analysis, html, max_examples=max_examples, check=check)
    look = look_of(sanitized_analysis(analysis))
    before = look_before(workspace.reports / analysis.experiment, look)
    written = write_analysis(analysis, html, max_examples=max_examples, check=check, before=before)
    keep_look(
        workspace.reports,
        look,
        page=written.html.read_bytes(),
        document=written.json.read_bytes(),
        keep_days=workspace.config.report.keep if workspace.config else ReportConfig().keep,
        check=check,
    )
    return written


def analyze(
    workspace: Workspace,
    *,
    experiment: str | None = None,
    judge: str | None = None,
    since: str | None = None,
    until: str | None = None,
    where: str | None = None,
    connect: Connect | None = None,
) -> Analysis:
    """The analysis of a workspace. Raises ConfigError for an experiment without data or an unknown judge."""
    from evalpipe.workspace.analyze import analyze_workspace

    name = loaded_experiment(workspace, experiment)
    check_judge(workspace, name, judge)
    return analyze_workspace(
        workspace,
        experiment=name,
        judge=judge,
        since=since,
        until=until,
        where=where,
        connect=connect,
    )


def write_analysis(
    analysis: Analysis,
    html: Path,
    *,
    max_examples: int = DEFAULT_EXAMPLES,
    deterministic: bool = False,
    check: Check = _as_it_is,
    before: Look | None = None,
) -> WrittenReport:
    """The HTML at `html` and the JSON beside it, each whole under its name or not at all; `check`: the last look at each;
    `before`: the look that this one is compared with."""
    since = "" if before is None else since_sentence(before, look_of(sanitized_analysis(analysis)))
    page = render(analysis, deterministic=deterministic, max_examples=max_examples, since=since)
    beside = html.with_suffix(".json")
    if beside == html:
        raise EvalpipeError(
            f"{html}: the report is HTML; give it another ending than .json (the JSON is written beside it)"
        )
    write_atomically(html, check(page.encode(), html.name))
    write_atomically(beside, check(report_json(analysis, deterministic=deterministic), beside.name))
    return WrittenReport(html=html, json=beside, analysis=analysis, since=since)


def report_json(analysis: Analysis, *, deterministic: bool = False) -> bytes:
    """The JSON of the contract; texts from outside are made visible, so that every one of them can be encoded."""
    return render_analysis_json(sanitized_analysis(analysis, deterministic=deterministic))


def sample_report(analysis: Analysis, folder: Path) -> WrittenReport:
    """`sample.html` and `sample.json` in `folder`, the same bytes on every machine: the clock is the sample's last
    instant, versions are left out, and every number is rounded before it is shown."""
    last = analysis.provenance.get("last_at")
    provenance = {key: value for key, value in analysis.provenance.items() if key not in MACHINE_FACTS}
    prices = provenance.get("prices")
    if isinstance(prices, dict):
        provenance["prices"] = {key: value for key, value in prices.items() if key != "library"}
    at = str(last) if last else analysis.generated_at
    stable = dataclasses.replace(analysis, generated_at=at, provenance=provenance)
    return write_analysis(stable, folder / "sample.html", deterministic=True)


def load_report(path: Path) -> Analysis:
    """The analysis of a report's JSON file. Raises DataError in one line."""
    try:
        return read_analysis_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise DataError(f"{path} is not the JSON of a report ({error}); `evalpipe report` writes one") from error


def write_comparison(
    first: Path, second: Path, output: Path | None, reports: Path, *, check: Check = _as_it_is
) -> Path:
    """Two reports' JSON files → one page that shows them side by side."""
    a, b = load_report(first), load_report(second)
    path = output or reports / f"compare-{first.stem}-{second.stem}.html"
    write_atomically(path, check(render_comparison(a, b).encode(), path.name))
    return path


def compare_as(format_: str, first: Path, second: Path) -> bytes:
    """Two reports side by side as `markdown` or `json`. Raises ConfigError for a form it does not have."""
    if format_ not in {"markdown", "json"}:
        raise ConfigError(f"--compare has no --format {format_}: choose html, markdown or json")
    a, b = sanitized_analysis(load_report(first)), sanitized_analysis(load_report(second))
    return comparison_json(a, b) if format_ == "json" else comparison_markdown(a, b).encode()


def open_in_browser(path: Path) -> bool:
    """Open a file in the user's browser; False where there is none."""
    return webbrowser.open(path.resolve().as_uri())


def render_as(format_: str, analysis: Analysis) -> bytes:
    """The report as `markdown`, `json` or `csv`."""
    if format_ == "json":
        return report_json(analysis)
    return (render_markdown if format_ == "markdown" else render_csv)(analysis).encode()


# Reports without people's texts: each page is made again from the numbers in the JSON beside it, without examples.


_WORD = re.compile(rb"[A-Za-z0-9_.:-]{4,}")
_EXAMPLE = b'<details class="example'
"""how each pair to read begins on a page"""


def scrub_reports(workspace: Workspace, experiment: str, requests: Collection[str], *, dry_run: bool) -> int:
    """Take the examples out of every HTML report of the experiment, in reports/ and in its history. The number of pages changed.

    A page whose JSON is gone, or is no report, is deleted where it names one of the requests: nothing separates its texts from
    its numbers.
    """
    names = {name.encode("utf-8", "surrogatepass") for name in requests}
    experiments = (experiment, f"{experiment}{AGAINST_ITSELF}")
    folders = (workspace.reports, *(workspace.reports / one for one in experiments))
    n_changed = 0
    if not dry_run:
        for folder in folders:
            unlink_synced(unfinished(folder, "*.html"))
    for html in [page for folder in folders for page in sorted(folder.glob("*.html"))]:
        page = html.read_bytes()
        try:
            analysis = load_report(html.with_suffix(".json"))
        except DataError:
            if names.isdisjoint(_WORD.findall(page)):
                continue
            n_changed += 1
            if not dry_run:
                unlink_synced([html])
            continue
        if analysis.experiment not in experiments or _EXAMPLE not in page:
            continue
        n_changed += 1
        if not dry_run:
            write_atomically(html, render(analysis).encode())
    return n_changed
