"""`evalpipe init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def init(
    folder: Annotated[Path, typer.Argument(help="Where to write it.")] = Path(),
    name: Annotated[str | None, typer.Option("--name", help="The experiment's name.  [default: the folder's]")] = None,
    mode: Annotated[str, typer.Option("--mode", help="shadow | ab | canary")] = "shadow",
) -> None:
    """Write a commented workspace: evalpipe.toml with every key, and folders for judges, prompts, data and reports.

    Example: `evalpipe init my-experiment --name claude-migration-v1`
    """
    from evalpipe.workspace.paths import init_workspace

    written = init_workspace(folder, name=name, mode=mode)
    for path in written:
        typer.echo(f"wrote {path}")
    typer.echo(
        'stream_usage = "inject": chat streams are asked for their token counts, which your clients do not get to see; '
        "without it the cost of streams is unknown"
    )
    typer.echo("next: edit evalpipe.toml, then `evalpipe doctor`, then `evalpipe collect`")
