"""The stored data opened for people: SQL, notebooks, and damaged files."""

from __future__ import annotations

import csv
import json
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evalpipe.analysis.result import Analysis, Check
from evalpipe.config import CONFIG_FILE
from evalpipe.errors import ConfigError, DataError
from evalpipe.files import make_folder, sync_folder, within_resources
from evalpipe.store.parquet import parquet_files, verify, whole_and_damaged
from evalpipe.store.query import Store, columns, open_store, plain, read_selection, run_query, writing
from evalpipe.store.schema import BY_NAME, DATASETS
from evalpipe.text import format_counted, printable, well_formed
from evalpipe.workspace.paths import Workspace, open_workspace

if TYPE_CHECKING:
    import pandas as pd

    from evalpipe.workspace.python_api import Decision


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
        warn(store.damaged, workspace.data)
        result = run_query(store, query)
        {"table": _table, "csv": _csv, "json": _json}[form](result, stream)


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


# A workspace in a notebook: its datasets as pandas frames, and SQL over them.


class Notebook:
    """The datasets of a workspace as of its opening; `refresh()` looks again.

    Each dataset is a property that reads the whole of it into a pandas frame: with a large log, ask `sql` for the columns
    and rows you need.
    """

    def __init__(
        self,
        workspace: Workspace,
        experiment: str | None = None,
        *,
        since: str | None = None,
        until: str | None = None,
        where: str | None = None,
    ) -> None:
        self.workspace = workspace
        self.experiment = experiment
        self._asked = {"since": since, "until": until, "where": where}
        self._selection = read_selection(since, until, where)
        self._store = self._open()

    def __repr__(self) -> str:
        of = f"experiment {self.experiment!r}" if self.experiment else f"{len(self.experiments)} experiments"
        return f"<evalpipe {of} in {str(self.workspace.data)!r}>"

    @property
    def experiments(self) -> list[str]:
        """The names of the experiments whose rows these are."""
        return self._store.experiments()

    @property
    def exchanges(self) -> pd.DataFrame:
        """One row per request and arm."""
        return self.sql("FROM exchanges")

    @property
    def pairs(self) -> pd.DataFrame:
        """One row per request both arms answered: the request's columns, then control_* and treatment_*."""
        return self.sql("FROM pairs")

    @property
    def judgments(self) -> pd.DataFrame:
        """One row per judge call."""
        return self.sql("FROM judgments")

    @property
    def labels(self) -> pd.DataFrame:
        """People's (or objective tests') preferences."""
        return self.sql("FROM labels")

    @property
    def feedback(self) -> pd.DataFrame:
        """End users' ratings."""
        return self.sql("FROM feedback")

    def sql(self, query: str) -> pd.DataFrame:
        """The result of one reading query as a frame. Raises ConfigError where it is none or does not work."""
        result = run_query(self._store, query)
        with warnings.catch_warnings():
            # DuckDB's own way of making an empty frame, which newer pandas will not have.
            warnings.filterwarnings("ignore", message="The inplace keyword")
            return result.df()

    def decide(self, *, judge: str | None = None) -> Decision:
        """The decision on these requests, as `evalpipe gate` makes it: a look, which goes on the experiment's record.

        Args:
            judge: the judge that decides; None: the first configured.

        Raises ConfigError where there are several experiments and none was named, no data, or no such judge.
        """
        from evalpipe.workspace.python_api import decide  # scipy and the statistics: not for who reads frames

        return decide(self.workspace, experiment=self.experiment, judge=judge, **self._asked)

    def refresh(self) -> Notebook:
        """Look at the files again: rows that were loaded meanwhile come in."""
        self._store.close()
        self._store = self._open()
        return self

    def _open(self) -> Store:
        store = open_store(self.workspace.data, self.experiment, selection=self._selection)
        if store.damaged:
            warnings.warn(f"{sentence(store.damaged, self.workspace.data)}; {REMEDY}", stacklevel=3)
        return store


def open_notebook(
    path: str | Path = ".",
    experiment: str | None = None,
    *,
    since: str | None = None,
    until: str | None = None,
    where: str | None = None,
) -> Notebook:
    """Open the workspace at `path`. `experiment`: the one named, else the workspace's own, else all that are there.

    Raises ConfigError where there is no such folder or its configuration is wrong.
    """
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ConfigError(f"no folder {root}: evalpipe.open takes a workspace, the folder with {CONFIG_FILE} or data/")
    workspace = open_workspace(root=root)
    if experiment is not None:
        experiment = workspace.experiment(experiment)
    elif workspace.config is not None:
        experiment = workspace.config.experiment.name
    return Notebook(workspace, experiment, since=since, until=until, where=where)


# Damaged files of the store: named by whatever reads without them, and moved out of the way by `evalpipe doctor
# --data`.


FOLDER = "damaged"
REMEDY = "run `evalpipe doctor --data`: it moves the damaged files out of the way and lists what is lost"


@dataclass(frozen=True, kw_only=True, slots=True)
class DamagedFile:
    """A file that does not hold what was written to it. `n_rows`: how many rows it held, where that can still be read."""

    dataset: str
    experiment: str
    date: str | None
    file: str
    n_rows: int | None
    moved_to: str | None = None


def sentence(damaged: Sequence[Path], data: Path) -> str:
    """What is missing because of them, in one sentence."""
    names = [_relative(path, data) for path in damaged]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    files, rows = ("file is", "its rows are") if len(names) == 1 else ("files are", "their rows are")
    return f"{len(names)} stored {files} damaged, {rows} left out: {shown}"


def warn(damaged: Sequence[Path], data: Path) -> None:
    """The sentence on stderr, where there is something to name."""
    if damaged:
        sys.stderr.write(printable(f"evalpipe: warning: {sentence(damaged, data)}; {REMEDY}\n"))


def with_damage(analysis: Analysis, damaged: Sequence[Path], data: Path) -> Analysis:
    """The analysis with a check that names the damaged files."""
    if not damaged:
        return analysis
    check = Check(name="damaged_files", status="warn", detail=sentence(damaged, data), remedy=REMEDY)
    facts = {**analysis.provenance, "damaged_files": [_relative(path, data) for path in damaged]}
    return replace(analysis, checks=[*analysis.checks, check], provenance=facts)


def refuse_damaged(data: Path, experiment: str, dataset: str) -> None:
    """Raise DataError where files of the dataset are damaged: what is lost there would be paid for again."""
    _, damaged = whole_and_damaged(parquet_files(data, BY_NAME[dataset], experiment))
    if damaged:
        raise DataError(
            f"{sentence(damaged, data)}; nothing was asked, since it would be paid for again: restore it from a backup, or "
            f"{REMEDY}; after that its pairs are judged anew"
        )


def find_damaged(workspace: Workspace) -> list[DamagedFile]:
    """Every damaged file of the data folder. Each page of each file is read."""
    return [
        _describe(path, workspace.data, dataset.name)
        for dataset in DATASETS
        for path in parquet_files(workspace.data, dataset, None)
        if not _reads(path)
    ]


def move_damaged(workspace: Workspace) -> list[DamagedFile]:
    """Move every damaged file to data/damaged/, under the same folders, and report what is lost with it."""
    data = workspace.data
    moved = []
    with within_resources("what was moved stays moved: run it again where there is more room"):
        for found in find_damaged(workspace):
            source = data / found.file
            target = data / FOLDER / found.file
            with writing(data, found.dataset):
                if not source.exists():  # another process was first
                    continue
                make_folder(target.parent, mode=0o700)
                source.rename(target)
                sync_folder(target.parent)
                sync_folder(source.parent)
            moved.append(replace(found, moved_to=_relative(target, data)))
    return moved


def _reads(path: Path) -> bool:
    whole, _ = whole_and_damaged([path])
    if not whole:
        return False
    try:
        with pq.ParquetFile(path) as file:
            schema, n_rows = file.schema_arrow, file.metadata.num_rows
        verify(path, schema, n_rows)
    except FileNotFoundError:  # loaded or moved meanwhile
        return True
    except (DataError, pa.ArrowException, OSError):
        return False
    return True


def _describe(path: Path, data: Path, dataset: str) -> DamagedFile:
    parts = dict(part.split("=", 1) for part in path.relative_to(data).parts if "=" in part)
    try:
        n_rows = pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError):
        n_rows = None
    return DamagedFile(
        dataset=dataset,
        experiment=parts["experiment"],
        date=parts.get("date"),
        file=_relative(path, data),
        n_rows=n_rows,
    )


def _relative(path: Path, data: Path) -> str:
    return path.relative_to(data).as_posix()
