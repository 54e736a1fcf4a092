"""`evalpipe status`."""

from __future__ import annotations

import json
import sys
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
        print_status(found)
    return 1 if any(one.problem for one in found) else 0


HEADS = (
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
_NUMBERS = {"requests", "pairs", "judged", "judge"}
_WIDTH = 200
"""columns where the output is no terminal"""


def print_status(found: list[ExperimentStatus]) -> None:
    """The table, a row an experiment, then the headlines and problems."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    table = Table(show_edge=False, header_style="bold")
    for head in HEADS:
        table.add_column(Text(head), justify="right" if head in _NUMBERS else "left", overflow="fold")
    for one in found:
        table.add_row(*(Text(printable(cell)) for cell in _cells(one)))
    console.print(table)
    for one in found:
        for line in _notes(one):
            console.print(Text(printable(f"{one.experiment or one.folder}: {line}")), soft_wrap=True)


def _notes(one: ExperimentStatus) -> list[str]:
    waiting = f"{one.waiting_bytes / 1e6:,.1f} MB of log wait for `evalpipe load`" if one.waiting_bytes else None
    return [line for line in (one.headline, waiting, one.problem) if line]


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
