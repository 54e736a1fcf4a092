"""`evalpipe status`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evalpipe.cli import options
from evalpipe.text import printable

if TYPE_CHECKING:
    from evalpipe.workspace.status import ExperimentStatus


def status(
    folders: Annotated[list[Path] | None, typer.Argument(help="Workspaces.  [default: this folder]")] = None,
    config: options.Config = None,
    data: options.Data = None,
    as_json: options.Json = False,
) -> int:
    """Every experiment in one table: whether it collects, what is loaded and judged, what it cost, the last decision.

    Reads only: nothing is loaded, judged or decided. Exit code 1 where a folder cannot be read.

    ```
    evalpipe status
    evalpipe status ~/experiments/*
    evalpipe status --json
    ```
    """
    from evalpipe.errors import ConfigError
    from evalpipe.workspace.paths import open_workspace
    from evalpipe.workspace.status import status_of_folders

    if folders and (config is not None or data is not None):
        raise ConfigError("folders and --config or --data (EVALPIPE_DATA) exclude each other: leave one out")
    found = status_of_folders(folders or [], None if folders else open_workspace(config, data))
    if as_json:
        typer.echo(json.dumps({"experiments": [one.as_json() for one in found]}, ensure_ascii=True))
    else:
        for line in status_lines(found):
            typer.echo(printable(line))
    return 1 if any(one.problem for one in found) else 0


def status_lines(found: list[ExperimentStatus]) -> list[str]:
    """The table, a line an experiment, then the headlines and problems."""
    head = (
        "experiment",
        "mode",
        "collects",
        "last request",
        "requests",
        "pairs",
        "judged",
        "judge",
        "decision",
        "last look",
    )
    rows = [head, *(_cells(one) for one in found)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    numbers = {4, 5, 6, 7}
    lines = [
        "  ".join(
            cell.rjust(width) if column in numbers else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    for one in found:
        name = one.experiment or str(one.folder)
        if one.headline:
            lines.append(f"{name}: {one.headline}")
        if one.waiting_bytes:
            lines.append(f"{name}: {one.waiting_bytes / 1e6:,.1f} MB of log wait for `evalpipe load`")
        if one.problem:
            lines.append(f"{name}: {one.problem}")
    return lines


def _cells(one: ExperimentStatus) -> tuple[str, ...]:
    return (
        one.experiment or str(one.folder),
        one.mode or "-",
        "yes" if one.is_collecting else "no",
        _instant(one.last_request_at),
        f"{one.n_requests:,}",
        f"{one.n_pairs:,}",
        f"{one.n_judged:,}",
        f"${one.judge_usd:,.2f}",
        one.recommendation or "-",
        _instant(one.last_look_at),
    )


def _instant(text: str | None) -> str:
    return "-" if text is None else text[:16].replace("T", " ")
