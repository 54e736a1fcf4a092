"""`evalpipe demo`."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from evalpipe.cli import options


def demo(
    folder: Annotated[Path, typer.Option("--folder", help="The workspace it writes and leaves behind.")] = Path(
        "evalpipe-demo"
    ),
    local_models: Annotated[
        bool, typer.Option("--local-models", help="Run the two small models here (pip install 'evalpipe[local]').")
    ] = False,
    arrivals_s: Annotated[
        float, typer.Option("--arrivals-s", min=1, help="The sample's half hour of arrivals takes this many seconds.")
    ] = 18.0,
    as_json: options.Json = False,
) -> None:
    """The main job on the shipped sample: collect → load → judge → report, with no key, server or configuration.

    Example: `evalpipe demo`, then `cd evalpipe-demo && evalpipe sql "SELECT arm, avg(latency_ms) FROM exchanges GROUP BY arm"`
    """
    from evalpipe.workspace.demo import run_demo

    done = run_demo(folder, local_models=local_models, arrivals_s=arrivals_s)
    if as_json:
        typer.echo(done.report.json.read_text("utf-8"))
        return
    from evalpipe.report.text import print_summary

    print_summary(done.report.analysis)
    typer.echo(f"report: {done.report.html}")
    typer.echo("the workspace stays; look at the page, then at the data:")
    typer.echo(f"  cd {shlex.quote(str(done.folder))} && {program_for(done.folder)} report --open")


def program_for(folder: Path) -> str:
    """How this program is started from inside `folder`, whether or not its environment is active."""
    started = Path(sys.argv[0])
    on_path = shutil.which("evalpipe")
    if on_path is not None or not started.exists() or started.name != "evalpipe":
        return "evalpipe" if on_path is not None else f"{shlex.quote(sys.executable)} -m evalpipe"
    return shlex.quote(os.path.relpath(started, folder))
