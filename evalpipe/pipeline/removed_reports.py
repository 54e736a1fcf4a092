"""Reports without people's texts: each page is made again from the numbers in the JSON beside it, without examples."""

from __future__ import annotations

import re
from collections.abc import Collection

from evalpipe.errors import DataError
from evalpipe.files import unfinished, unlink_synced
from evalpipe.pipeline.record import write_atomically
from evalpipe.pipeline.report import load_report
from evalpipe.pipeline.workspace import Workspace
from evalpipe.report.render import render

_WORD = re.compile(rb"[A-Za-z0-9_.:-]{4,}")


def scrub_reports(workspace: Workspace, experiment: str, requests: Collection[str], *, dry_run: bool) -> int:
    """Take the examples out of every HTML report of the experiment in reports/. The number of pages changed.

    A page whose JSON is gone, or is no report, is deleted where it names one of the requests: nothing tells its texts from its
    numbers.
    """
    names = {name.encode("utf-8", "surrogatepass") for name in requests}
    n_changed = 0
    if not dry_run:
        unlink_synced(unfinished(workspace.reports, "*.html"))
    for html in sorted(workspace.reports.glob("*.html")):
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
        if analysis.experiment != experiment:
            continue
        without = render(analysis).encode()
        if without != page:
            n_changed += 1
            if not dry_run:
                write_atomically(html, without)
    return n_changed
