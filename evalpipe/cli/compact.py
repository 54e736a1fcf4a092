"""`evalpipe compact`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from evalpipe.cli import options


def compact(
    config: options.Config = None,
    data: options.Data = None,
    experiment: Annotated[
        str | None, typer.Option("--experiment", "-e", help="One experiment.  [default: all of the data folder]")
    ] = None,
    grace_minutes: Annotated[
        float | None,
        typer.Option(
            "--grace-minutes",
            min=0.0,
            max=525_600.0,
            metavar="MINUTES",
            help="Delete replaced files after this time; 0: now, once no reader is left.  [default: [compact] grace_minutes]",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count only, change nothing.")] = False,
    as_json: options.Json = False,
) -> None:
    """Merge the many small files that frequent loads leave into a few: reports start faster, the rows are the same.

    It may run while anything else reads, loads or judges: each merge takes effect in one step, and every reader sees each row
    once. The files that were replaced are deleted by the first load or compaction after the grace time. `evalpipe load` merges
    by itself where a day has `[compact] min_files` small files. Killed at any point, the next load or compaction finishes or
    undoes it. A damaged file is left as it is and named.

    Examples:

    - `evalpipe compact --dry-run`

    - `evalpipe compact`

    - `evalpipe compact --grace-minutes 0 --json`
    """
    from evalpipe.cli.options import interrupt_on_sigterm
    from evalpipe.text import printable
    from evalpipe.workspace import compact as service
    from evalpipe.workspace.paths import open_workspace

    interrupt_on_sigterm()
    workspace = open_workspace(config, data)
    result = service.compact(workspace, experiment=experiment, grace_minutes=grace_minutes, dry_run=dry_run)
    for line in service.warnings(result, workspace.data):
        typer.echo(printable(f"evalpipe: warning: {line}"), err=True)
    if as_json:
        typer.echo(json.dumps(service.as_json(result, workspace.data), indent=2))
        return
    for line in service.lines(result, workspace.data):
        typer.echo(printable(line))
