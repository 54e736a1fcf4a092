"""`evalpipe report`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from evalpipe.cli import options
from evalpipe.errors import ConfigError
from evalpipe.text import format_counted, printable


class Format(StrEnum):
    html = "html"
    markdown = "markdown"
    json = "json"
    csv = "csv"


def report(
    config: options.Config = None,
    data: options.Data = None,
    experiment: options.Experiment = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write.  [default: reports/NAME.html]")
    ] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", help="The judge that decides.  [default: the first configured]")
    ] = None,
    since: options.Since = None,
    until: options.Until = None,
    where: options.Where = None,
    format_: Annotated[
        Format, typer.Option("--format", "-f", help="html writes files; the others go to stdout, or to --output.")
    ] = Format.html,
    examples: Annotated[int, typer.Option("--examples", min=0, max=1000, help="Most pairs to read in the HTML.")] = 50,
    no_texts: Annotated[
        bool,
        typer.Option("--no-texts", help="A page without prompts, answers and judges' reasons, for a wide audience."),
    ] = False,
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option("--compare", metavar="A.json B.json", help="Two reports side by side.")
    ] = None,
    index: Annotated[bool, typer.Option("--index", help="A page that lists the experiments of the folder.")] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
    ray: options.RayTables = None,
    as_json: options.Json = False,
) -> None:
    """The report: one HTML file with the recommendation, every metric with its interval, the judge and examples.

    A report of the whole log is a look of the experiment, and the decision it reaches is recorded. One of a part of the log
    (`--since`, `--until`, `--where`) or with `--judge` records nothing. Each look is kept in reports/NAME with the page of its
    history, index.html.

    Examples:

    - `evalpipe report --open`

    - `evalpipe report --format markdown > comment.md`

    - `evalpipe report --no-texts -o for-everybody.html`

    - `evalpipe report --since 2026-03-01 --where "streamed" -o reports/streamed.html`

    - `evalpipe report --ray 10.0.0.1:6379`

    - `evalpipe report --compare reports/march.json reports/april.json` (`--format markdown` or `json` for these)
    """
    from evalpipe.workspace import report as workspace_report
    from evalpipe.workspace.history import write_index
    from evalpipe.workspace.paths import open_workspace
    from evalpipe.workspace.secrets import Outgoing

    if ray is not None and (compare or index):
        raise ConfigError("--ray is for reading a log, which --compare and --index do not: leave it out")
    workspace = open_workspace(config, data)
    check = Outgoing(workspace).checked
    if index:
        if format_ is not Format.html:
            raise ConfigError(f"--index is a page: it has no --format {format_.value}")
        page, n_reports = write_index(output.parent if output else workspace.reports, check=check)
        if as_json:
            typer.echo(json.dumps({"index": str(page), "reports": n_reports}))
        _done(page, f"lists {format_counted(n_reports, 'report')}", open_)
        return
    if compare:
        if format_ is not Format.html:
            _put(check(workspace_report.compare_as(format_.value, *compare), "the comparison"), output)
            return
        if as_json:
            typer.echo(check(workspace_report.compare_as("json", *compare), "the comparison").decode(), nl=False)
        _done(
            workspace_report.write_comparison(*compare, output, workspace.reports, check=check),
            "two reports side by side",
            open_,
        )
        return
    chosen = {"experiment": experiment, "judge": judge, "since": since, "until": until, "where": where}
    if format_ is not Format.html:
        with options.reading(workspace, ray) as connect:
            analysis = workspace_report.analyze(workspace, **chosen, connect=connect)
        _put(check(workspace_report.render_as(format_.value, analysis), "the report"), output)
        return
    with options.reading(workspace, ray) as connect:
        written = workspace_report.write_report(
            workspace, **chosen, output=output, max_examples=0 if no_texts else examples, connect=connect
        )
    if as_json:
        typer.echo(written.json.read_text(encoding="utf-8"), nl=False)
    else:
        from evalpipe.report.text import print_summary

        print_summary(written.analysis)
    if written.since:
        typer.echo(printable(written.since), err=True)
    _done(written.html, f"and {written.json.name} beside it", open_)


def _put(document: bytes, output: Path | None) -> None:
    """To the file, else to stdout."""
    from evalpipe.files import write_atomically

    if output:
        write_atomically(output, document)
        typer.echo(f"wrote {output}", err=True)
    else:
        typer.echo(document.decode(), nl=False)


def _done(path: Path, about: str, open_: bool) -> None:
    from evalpipe.workspace.report import open_in_browser

    typer.echo(f"wrote {path} ({about})", err=True)
    if open_ and not open_in_browser(path):
        typer.echo("no browser could be started here: open the file yourself", err=True)
