"""`evalpipe doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict

import typer

from evalpipe.cli import options

MARKS = {"pass": "ok  ", "warn": "warn", "fail": "FAIL"}


def doctor(config: options.Config = None, data: options.Data = None, as_json: options.Json = False) -> None:
    """Say what is missing before a run: keys, unreachable upstreams, unwritable folders, unknown prices, broken judges.

    Example: `evalpipe doctor` (exit code 1 where something would fail; nothing is sent to a provider)
    """
    from evalpipe.core.text import printable
    from evalpipe.pipeline.doctor import diagnose
    from evalpipe.pipeline.workspace import open_workspace

    found = diagnose(open_workspace(config, data))
    if as_json:
        typer.echo(json.dumps([asdict(diagnosis) for diagnosis in found], indent=2))
    else:
        for diagnosis in found:
            remedy = f"  → {diagnosis.remedy}" if diagnosis.remedy else ""
            typer.echo(printable(f"{MARKS[diagnosis.status]}  {diagnosis.name}: {diagnosis.detail}{remedy}"))
    if any(diagnosis.status == "fail" for diagnosis in found):
        raise typer.Exit(1)
