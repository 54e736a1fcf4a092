"""`evalpipe forget`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from evalpipe.cli import options

if TYPE_CHECKING:
    from evalpipe.workspace.retention import Removal


def forget(
    user: Annotated[str, typer.Option("--user", metavar="ID", help="The user's plain id, as the app sends it.")],
    config: options.Config = None,
    data: options.Data = None,
    experiment: Annotated[
        str | None, typer.Option("--experiment", "-e", help="This experiment only.  [default: all of the data folder]")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Count only, change nothing.")] = False,
    as_json: options.Json = False,
) -> None:
    """Take everything one user wrote and was answered out of the log, the data, the judgments and the reports.

    Stored ids are keyed hashes: give the plain id. The rows stay with their numbers, under another id that leads nowhere.
    Exit code 1 where something is left (in log files that a running collector still writes), with what to do.

    Example: `evalpipe forget --user u-4711 --dry-run`
    """
    from evalpipe.cli.options import interrupt_on_sigterm
    from evalpipe.text import printable
    from evalpipe.workspace import retention
    from evalpipe.workspace.paths import open_workspace

    interrupt_on_sigterm()
    found = retention.forget(open_workspace(config, data), user, experiment=experiment, dry_run=dry_run)
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in found], indent=2))
    else:
        for removal in found:
            for line in removal_lines(removal):
                typer.echo(printable(line))
        if not found:
            typer.echo("no experiment is loaded: nothing is stored")
    if not dry_run and any(one.waiting or one.damaged for one in found):
        raise typer.Exit(1)


_COUNTED = {
    "exchanges": "answer",
    "judgments": "judgment",
    "feedback": "comment",
    "labels": "label",
    "rejected": "rejected line",
    "reports": "report page",
}


def removal_lines(removal: Removal) -> Iterator[str]:
    """The counts in one line, then what is left, and why."""
    counts = [f"{n:,} {word}{'s' * (n != 1)}" for name, word in _COUNTED.items() if (n := getattr(removal, name))]
    done = "would take" if removal.dry_run else "took"
    whose = f" before {removal.before}" if removal.before else ""
    if counts:
        yield f"{removal.experiment}: {done} the texts out of {', '.join(counts)}{whose}"
    else:
        hint = "" if removal.before else "; is it the plain id, as the app sends it?"
        yield f"{removal.experiment}: nothing to remove{whose}{hint}"
    yield from (f"  {note}" for note in removal.notes)
