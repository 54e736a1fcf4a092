"""`evalpipe load`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from evalpipe.cli import options


def load(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Files or folders to load.  [default: the workspace's spool]")
    ] = None,
    log_format: Annotated[
        str, typer.Option("--format", "-f", help="auto, spool, pairs, or one of the formats listed above.")
    ] = "auto",
    arm: Annotated[
        str, typer.Option("--arm", help="control or treatment: whose answers a log without arms holds.")
    ] = "control",
    experiment: options.Experiment = None,
    config: options.Config = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Turn the collector's log, or another tool's, into the datasets the other commands read.

    Loading twice adds nothing. A broken line is put aside in `data/rejected/` with its file, line number and reason,
    and stops nothing. It may run while the collector writes.

    Formats: `spool` (the collector's), `pairs` (JSONL: pair_id, prompt, response_a for control, response_b for treatment,
    label, judgements), and logs of one arm: `litellm`, `langfuse`, `otel` (gen_ai spans), `tensorzero`, `inspect`, `http`
    (recorded requests). `auto` finds out.

    ```
    evalpipe load
    evalpipe load --format pairs recorded_pairs.jsonl
    evalpipe load --arm treatment new_model.json
    ```
    """
    from evalpipe.cli.stopping import interrupt_on_sigterm
    from evalpipe.pipeline.load import load as run
    from evalpipe.pipeline.workspace import open_workspace

    interrupt_on_sigterm()
    tally = run(open_workspace(config, data), paths or [], experiment=experiment, format_name=log_format, arm=arm)
    if as_json:
        typer.echo(json.dumps(tally.as_json()))
        return
    for line in tally.lines():
        typer.echo(line)
