"""`evalpipe exclude`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from evalpipe.cli import options

if TYPE_CHECKING:
    from evalpipe.analysis.settings import Exclusion


def exclude(
    config: options.Config = None,
    data: options.Data = None,
    experiment: options.Experiment = None,
    since: Annotated[
        str | None, typer.Option("--since", help="First instant of the period (ISO 8601; UTC where no zone is given).")
    ] = None,
    until: Annotated[str | None, typer.Option("--until", help="End of the period, not included.")] = None,
    why: Annotated[str | None, typer.Option("--why", help="The reason; it is shown in every report.")] = None,
    remove: Annotated[
        int | None, typer.Option("--remove", metavar="N", help="Count the period N of the list again.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the excluded periods.")] = False,
    as_json: options.Json = False,
) -> None:
    """Take a period (of a wrong key, of an outage on your side) out of both arms; every report shows it, with the reason.

    Requests belong to the period by the time the user was served; their shadow requests follow. A recorded decision
    that rests on the period is undone.

    A period that is excluded after its data were seen is outside the error guarantee, and the report names the decision with and
    without it. Where a set-up fault was found in the period the guarantee holds: the fault's message holds the command to run.
    `--list` shows which it is. An experiment that is not loaded is exit code 2, with those that are.

    ```
    evalpipe exclude --since 2026-11-27T09:00Z --until 2026-11-27T11:30Z --why "wrong key of the treatment"
    evalpipe exclude --list
    evalpipe exclude --remove 1
    ```
    """
    import msgspec

    from evalpipe.errors import ConfigError
    from evalpipe.text import printable
    from evalpipe.workspace import decide
    from evalpipe.workspace.paths import open_workspace

    workspace = open_workspace(config, data)
    if remove is not None:
        entry = decide.include_again(workspace, remove, experiment=experiment)
        typer.echo(printable(f"no longer excluded: {entry.since} to {entry.until} ({entry.why})"), err=True)
    elif not list_:
        if since is None or until is None or why is None:
            raise ConfigError("give --since, --until and --why, or --list")
        entry = decide.exclude(workspace, since=since, until=until, why=why, experiment=experiment)
        typer.echo(printable(f"excluded: {entry.since} to {entry.until} ({entry.why}); {_guarantee(entry)}"), err=True)
    found = decide.exclusions(workspace, experiment=experiment)
    if as_json:
        typer.echo(json.dumps(msgspec.to_builtins(found), ensure_ascii=False, indent=2))
    elif list_:
        for number, one in enumerate(found, 1):
            declared = f"declared {one.declared_at}; {_guarantee(one)}"
            typer.echo(printable(f"{number}. {one.since} to {one.until}: {one.why} ({declared})"))
        if not found:
            typer.echo("nothing is excluded")


def _guarantee(exclusion: Exclusion) -> str:
    """What the exclusion does to the error guarantee."""
    if exclusion.fault:
        return "a set-up fault was found in it, so the error guarantee holds"
    if exclusion.seen:
        return "its data had been seen before: outside the error guarantee, so the report shows the decision with and without it"
    return "its data had not been seen, so the error guarantee holds"
