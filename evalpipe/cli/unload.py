"""`evalpipe unload`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from evalpipe.cli import options
from evalpipe.text import printable


def unload(
    source: Annotated[
        str | None,
        typer.Argument(help="The file or folder that was loaded, or its name.  [default: print what was loaded]"),
    ] = None,
    experiment: options.Experiment = None,
    config: options.Config = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Undo a load of another tool's log: take out the rows it brought in. Rows that were there before it stay, and so
    do judgments.

    ```
    evalpipe unload
    evalpipe unload answers.csv
    ```
    """
    from evalpipe.store.load_history import loads_in
    from evalpipe.workspace.load import unload as run
    from evalpipe.workspace.paths import open_workspace

    workspace = open_workspace(config, data)
    if source is None:
        loads = [one for one in loads_in(workspace.data) if experiment in (None, one.experiment)]
        if as_json:
            rows = [
                {"experiment": one.experiment, "source": one.source, "at": one.at.isoformat(), "rows": one.n_rows}
                for one in loads
            ]
            typer.echo(json.dumps({"loads": rows}))
            return
        for one in loads:
            typer.echo(printable(f"{one.at:%Y-%m-%d %H:%M}  {one.experiment}  {one.n_rows:,} rows  {one.source}"))
        if not loads:
            typer.echo("no load of another tool's log is written down")
        return
    loads, counted = run(workspace, source, experiment=experiment)
    if as_json:
        typer.echo(json.dumps({"loads": len(loads), "rows": counted}))
        return
    taken = ", ".join(f"{n:,} {name}" for name, n in counted.items()) or "nothing: its rows were gone already"
    names = ", ".join(sorted({one.experiment for one in loads}))
    typer.echo(f"took out {taken} of {names}")
