"""`evalpipe init`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer


def init(
    folder: Annotated[Path, typer.Argument(help="Where to write it.")] = Path(),
    name: Annotated[
        str | None,
        typer.Option("--name", help="The experiment's name.  [default: that of the data there, else the folder's]"),
    ] = None,
    mode: Annotated[str, typer.Option("--mode", help="shadow | ab | canary")] = "shadow",
    service: Annotated[
        bool,
        typer.Option(
            "--service", help="Write service/: systemd units, a crontab and a compose file for this workspace."
        ),
    ] = False,
) -> None:
    """Write a commented workspace: evalpipe.toml with every key, and folders for judges, prompts, data and reports.

    `--service` in a folder that is a workspace already writes only `service/`: the collector as a service, and `evalpipe run`
    every morning.

    ```
    evalpipe init my-experiment --name claude-migration-v1
    evalpipe init --service
    ```
    """
    from evalpipe.workspace.paths import init_workspace, is_workspace

    if service and is_workspace(folder):
        _write_services(folder)
        return
    written = init_workspace(folder, name=name, mode=mode)
    for path in written:
        typer.echo(f"wrote {path}")
    typer.echo(
        'stream_usage = "inject": chat streams are asked for their token counts, which your clients do not get to see; '
        "without it the cost of streams is unknown"
    )
    typer.echo("next: edit evalpipe.toml, then `evalpipe doctor`, then `evalpipe collect`")
    if service:
        _write_services(folder)


def _write_services(folder: Path) -> None:
    from evalpipe.workspace.paths import open_workspace, write_services

    program = shutil.which("evalpipe", path=str(Path(sys.executable).parent)) or shutil.which("evalpipe") or "evalpipe"
    written = write_services(open_workspace(root=folder), program)
    for path in written:
        typer.echo(f"wrote {path}")
    typer.echo(
        "next: put the keys into service/keys.env (mode 0600), then follow the first lines of the file you use"
        if written
        else "the service files are there already: remove those that shall be written anew"
    )
