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
    experiment: options.Experiment = None,
    config: options.Config = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> None:
    """Turn the collector's log, or another tool's, into the datasets the other commands read.

    Loading twice adds nothing. A broken line is put aside in `data/rejected/` with its file, line number and reason,
    and stops nothing. It may run while the collector writes.

    Formats: `spool` (the collector's), `pairs` (JSONL: pair_id, prompt, response_a, response_b, label, judgements).

    ```
    evalpipe load
    evalpipe load --format pairs recorded_pairs.jsonl
    ```
    """
    from evalpipe.pipeline.load import load as run
    from evalpipe.pipeline.workspace import open_workspace

    tally = run(open_workspace(config, data), paths or [], experiment=experiment, format_name=log_format)
    if as_json:
        typer.echo(json.dumps(tally.as_json()))
        return
    for line in tally.lines():
        typer.echo(line)
