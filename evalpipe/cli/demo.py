"""`evalpipe demo`."""

from __future__ import annotations

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
    from evalpipe.pipeline.demo import run_demo

    done = run_demo(folder, local_models=local_models, arrivals_s=arrivals_s)
    if as_json:
        typer.echo(done.report.json.read_text("utf-8"))
        return
    from evalpipe.report.terminal import print_summary

    print_summary(done.report.analysis)
    typer.echo(f"report: {done.report.html}")
    typer.echo(f"the workspace stays: cd {done.folder}, then e.g. `evalpipe report --open`")
