"""`evalpipe prune`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from evalpipe.cli import options


def prune(
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="DAYS", help="Age, e.g. 90d.  [default: [experiment] keep_days]"),
    ] = None,
    config: options.Config = None,
    data: options.Data = None,
    experiment: options.Experiment = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count only, change nothing.")] = False,
    as_json: options.Json = False,
) -> None:
    """Take people's texts out of what is older than so many days: requests, answers, judges' reasons, comments, examples.

    The rows stay with every number (lengths, tokens, costs, verdicts), so a decision can still be computed; the texts become
    fillers of their length, and a judge is no longer asked about them. What waits in the log is loaded first. It is noted in
    `data/experiments/NAME.removals.jsonl`. Killed, it is finished by running it again.

    Examples:

    - `evalpipe prune --older-than 90d --dry-run`

    - `evalpipe prune --older-than 90d`
    """
    from evalpipe.cli.forget import removal_lines
    from evalpipe.cli.options import interrupt_on_sigterm
    from evalpipe.text import printable
    from evalpipe.workspace import retention
    from evalpipe.workspace.paths import open_workspace

    interrupt_on_sigterm()
    removal = retention.prune(
        open_workspace(config, data), older_than=older_than, experiment=experiment, dry_run=dry_run
    )
    if as_json:
        typer.echo(json.dumps(asdict(removal), indent=2))
        return
    for line in removal_lines(removal):
        typer.echo(printable(line))
