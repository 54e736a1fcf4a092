"""`evalpipe sql`: a query on the stored data, printed as a table, CSV or JSON."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TextIO

import duckdb
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evalpipe.errors import ConfigError
from evalpipe.store.query import columns, open_store, plain, run_query
from evalpipe.text import format_counted, printable, well_formed
from evalpipe.workspace.damaged import warn_of_damage
from evalpipe.workspace.paths import Workspace

FORMATS = ("table", "csv", "json")
TABLE_ROWS = 1000
"""Rows of a printed table at most, with a note on the rest; CSV and JSON have every row."""

CELL_CHARACTERS = 2000
COLUMN_CHARACTERS = 24
"""A cell of the grid folds from here on; where the columns need more width than there is, rows are printed value by value."""

_BATCH = 1000


def sql(
    workspace: Workspace, query: str, *, experiment: str | None = None, form: str = "table", out: TextIO | None = None
) -> None:
    """Run `query` on the views and print the result in `form` to `out` (stdout).

    `experiment`: the one named, else the workspace's, else (a folder without configuration) all that are there. Raises
    ConfigError for a wrong format or query.
    """
    if form not in FORMATS:
        raise ConfigError(f"--format {form}: choose one of {', '.join(FORMATS)}")
    stream = out or sys.stdout
    if experiment is not None or workspace.config is not None:
        experiment = workspace.experiment(experiment)
    with open_store(workspace.data, experiment) as store:
        warn_of_damage(store.damaged, workspace.data)
        show = {"table": _table, "csv": _csv, "json": _json}[form]
        _interruptible(store.connection, lambda: show(run_query(store, query), stream))


def _interruptible(connection: duckdb.DuckDBPyConnection, work: Callable[[], None]) -> None:
    """Do it in another thread, so that Ctrl-C comes at once: within a step of a query, which may take hours, the database looks
    for no signals."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        working = pool.submit(work)
        try:
            working.result()
        except KeyboardInterrupt:
            connection.interrupt()
            raise


def _rows(result: duckdb.DuckDBPyConnection) -> Iterator[tuple[Any, ...]]:
    while rows := result.fetchmany(_BATCH):
        yield from rows


def _table(result: duckdb.DuckDBPyConnection, out: TextIO) -> None:
    names, rows = columns(result), result.fetchmany(TABLE_ROWS + 1)
    more, rows = len(rows) > TABLE_ROWS, rows[:TABLE_ROWS]
    console = Console(file=out, width=None if out.isatty() else 200, highlight=False)
    wide = _grid_width(names, rows) > console.width
    if wide and not rows:  # headers of one letter a line are unreadable
        console.print(Text(f"columns: {', '.join(names)}"))
    elif wide:
        _print_records(console, names, rows)
    else:
        console.print(_grid(names, rows))
    n = f"the first {TABLE_ROWS:,} rows; --format csv or json has all" if more else format_counted(len(rows), "row")
    why = (
        f", one value a line: {len(names)} columns are wider than this terminal"
        if wide and rows and out.isatty()
        else ""
    )
    console.print(Text(f"{n}{why}", style="dim"))


def _grid_width(names: list[str], rows: list[tuple[Any, ...]]) -> int:
    """Characters the grid needs so that no short cell is broken."""
    widths = [len(name) for name in names]
    for row in rows:
        widths = [max(width, min(COLUMN_CHARACTERS, len(_cell(cell)))) for width, cell in zip(widths, row, strict=True)]
    return sum(width + 3 for width in widths)


def _grid(names: list[str], rows: list[tuple[Any, ...]]) -> Table:
    table = Table(show_edge=False, header_style="bold")
    for i, name in enumerate(names):
        number = bool(rows) and isinstance(rows[0][i], int | float) and not isinstance(rows[0][i], bool)
        table.add_column(Text(_cell(name)), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(_shown, row))
    return table


def _print_records(console: Console, names: list[str], rows: list[tuple[Any, ...]]) -> None:
    """Rows too wide for a grid: one line a value, as `\\x` does in psql."""
    for number, row in enumerate(rows, 1):
        console.rule(Text(f"row {number}", style="bold"), align="left")
        block = Table(show_edge=False, show_header=False, box=None)
        block.add_column(no_wrap=True)
        block.add_column(overflow="fold")
        for name, value in zip(names, row, strict=True):
            block.add_row(Text(_cell(name), style="bold"), _shown(value))
        console.print(block)


def _shown(value: Any) -> Text:
    """Text, not str: what was logged is no markup."""
    return Text("NULL", style="dim") if plain(value) is None else Text(_cell(value))


def _csv(result: duckdb.DuckDBPyConnection, out: TextIO) -> None:
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns(result))
    for row in _rows(result):
        cells = ("" if plain(value) is None else _csv_cell(value) for value in row)
        # A terminal executes control characters, so they are escaped there; a file keeps what was logged.
        writer.writerow([printable(cell) for cell in cells] if out.isatty() else list(cells))


def _json(result: duckdb.DuckDBPyConnection, out: TextIO) -> None:
    """One list of objects, written as it comes."""
    names = columns(result)
    out.write("[")
    for n, row in enumerate(_rows(result)):
        out.write("\n" if n == 0 else ",\n")
        out.write(json.dumps({name: plain(value) for name, value in zip(names, row, strict=True)}))
    out.write("\n]\n")


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else _csv_cell(value)
    cut = text if len(text) <= CELL_CHARACTERS else text[:CELL_CHARACTERS] + "…"
    return printable(cut)


def _csv_cell(value: Any) -> str:
    if isinstance(value, str):
        return well_formed(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    simple = plain(value)
    return json.dumps(simple) if isinstance(simple, dict | list) else str(simple)
