"""`evalpipe doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from evalpipe.cli import options

MARKS = {"pass": "ok  ", "warn": "warn", "fail": "FAIL"}


Live = Annotated[
    bool, typer.Option("--live", help="Also send one real request to each arm and each judge; the cost is shown.")
]


def doctor(
    config: options.Config = None, data: options.Data = None, live: Live = False, as_json: options.Json = False
) -> None:
    """Say what is missing before a run: keys, unreachable upstreams, unwritable folders, unknown prices, broken judges.

    Example: `evalpipe doctor` (exit code 1 where something would fail; without --live nothing is sent to a provider)
    """
    from evalpipe.core.text import printable
    from evalpipe.pipeline.doctor import diagnose
    from evalpipe.pipeline.workspace import open_workspace

    workspace = open_workspace(config, data)
    found = diagnose(workspace)
    if live:
        from evalpipe.pipeline.doctor_live import diagnose_live

        found += diagnose_live(workspace)
    if as_json:
        typer.echo(json.dumps([asdict(diagnosis) for diagnosis in found], indent=2))
    else:
        for diagnosis in found:
            remedy = f"  → {diagnosis.remedy}" if diagnosis.remedy else ""
            typer.echo(printable(f"{MARKS[diagnosis.status]}  {diagnosis.name}: {diagnosis.detail}{remedy}"))
    if any(diagnosis.status == "fail" for diagnosis in found):
        raise typer.Exit(1)
