"""The store: Parquet datasets of record, seen through DuckDB views in memory.

A store is opened on the files that are there at that moment and stays on them, so that everything one command computes
is of one state, whatever is written meanwhile. Writing never touches the connection: it adds files.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from evalpipe.core.judgment import Judgment
from evalpipe.core.traffic import Feedback, Label
from evalpipe.errors import DataError
from evalpipe.store.files import parquet_files, private_file, schema_mark, whole_and_damaged
from evalpipe.store.readers import Reader
from evalpipe.store.rows import to_table
from evalpipe.store.schema import BY_NAME, DATASETS, Dataset
from evalpipe.store.selection import Selection, select_requests
from evalpipe.store.writer import DatasetWriter


@dataclass(frozen=True, kw_only=True, slots=True)
class Store:
    """The datasets of a data folder, of one experiment (or of all where `experiment` is None), as of its opening.

    `connection` has the views `exchanges`, `pairs`, `judgments`, `labels`, `feedback`, and can reach no file but theirs.
    """

    data: Path
    experiment: str | None
    connection: duckdb.DuckDBPyConnection
    files: tuple[Path, ...]
    damaged: tuple[Path, ...] = ()
    """files that do not hold what was written: their rows are not in the views"""
    reader: Reader | None = None
    """keeps superseded files until this store is closed"""

    def close(self) -> None:
        self.connection.close()
        if self.reader is not None:
            self.reader.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def experiments(self) -> list[str]:
        """The experiments these views hold, by name."""
        names = {
            part.removeprefix("experiment=") for path in self.files for part in path.parts if "experiment=" in part
        }
        return sorted(names)

    def write_judgments(self, judgments: Iterable[Judgment]) -> int:
        """Add judgments to the open experiment; one whose `judgment_id` is there already is left out. Rows added."""
        return self._write("judgments", list(judgments))

    def write_labels(self, labels: Iterable[Label]) -> int:
        """Add labels to the open experiment, each (request, source, labeler) once. Rows added."""
        return self._write("labels", list(labels))

    def write_feedback(self, feedback: Iterable[Feedback]) -> int:
        """Add end users' ratings to the open experiment, each once. Rows added."""
        return self._write("feedback", list(feedback))

    def _write(self, name: str, rows: Sequence[Any]) -> int:
        if self.experiment is None:
            raise DataError("writing needs one experiment: open the store with its name")
        if not rows:
            return 0
        dataset = BY_NAME[name]
        with writing(self.data, name), DatasetWriter(self.data, dataset) as writer:
            return writer.add(self.experiment, to_table(dataset.schema, rows))


def open_store(data: Path, experiment: str | None = None, *, selection: Selection | None = None) -> Store:
    """Open the datasets under `data`. Empty datasets are empty views with the right columns.

    `selection` narrows every view to the requests it selects. A damaged file is left out and named in `damaged`. Raises
    DataError where a file cannot be read all the same, ConfigError where the selection is not valid.
    """
    connection = duckdb.connect(":memory:", config={"temp_directory": _spill_folder()})
    connection.execute("SET TimeZone = 'UTC'")
    files: list[Path] = []
    damaged: list[Path] = []
    reader = Reader(data)
    try:
        for dataset in DATASETS:
            listed = parquet_files(data, dataset, experiment)
            found, broken = whole_and_damaged(path for path in listed if _may_hold(path, selection))
            damaged += broken
            _create_stored(connection, dataset, found)
            files += found
        connection.execute("SET allowed_paths = $1", [[str(path) for path in files]])
        connection.execute("SET enable_external_access = false")
        narrowed = selection is not None and not selection.is_empty
        if selection is not None and narrowed:
            select_requests(connection, selection)
        _create_views(connection, narrowed=narrowed)
        connection.execute("SET lock_configuration = true")
    except duckdb.Error as error:
        connection.close()
        reader.close()
        raise DataError(f"the data under {data} cannot be read: {first_line(error)}") from error
    except BaseException:
        connection.close()
        reader.close()
        raise
    return Store(
        data=data,
        experiment=experiment,
        connection=connection,
        files=tuple(files),
        damaged=tuple(damaged),
        reader=reader,
    )


def readable(data: Path, experiment: str, selection: Selection) -> Selection:
    """The selection, of requests whose texts are still there: a judge cannot read the others, and must not be paid for them.

    Only where some were removed is anything narrowed; a file from which texts were removed has a name of its own.
    """
    removed = any("~" in path.name for path in parquet_files(data, BY_NAME["exchanges"], experiment))
    return replace(selection, readable=True) if removed else selection


@contextmanager
def writing(data: Path, name: str) -> Iterator[None]:
    """Hold the write lock of a dataset: the look for what is there already and the write are one step."""
    with private_file(data / name / ".lock", os.O_RDWR) as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # let go by the close
        yield


def first_line(error: BaseException) -> str:
    """The first line of a DuckDB error, which says what; the rest repeats the query."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _may_hold(path: Path, selection: Selection | None) -> bool:
    """Whether a file can hold rows of the selection, by its day. Nothing of a request comes before it; a repetition of it
    may come any time later."""
    day = path.parent.name.removeprefix("date=")
    if selection is None or selection.since is None or day == path.parent.name:
        return True
    return day >= selection.since.date().isoformat()


def _spill_folder() -> str:
    return str(Path(tempfile.gettempdir()) / f"evalpipe-duckdb-{os.getpid()}")


def _create_stored(connection: duckdb.DuckDBPyConnection, dataset: Dataset, files: list[Path]) -> None:
    """`stored_NAME`: the files as they are, `experiment` first and the other partitions last."""
    columns = ["experiment", *dataset.schema.names, *[name for name, _ in dataset.partitions if name != "experiment"]]
    selected = ", ".join(_name(column) for column in columns)
    if not files:
        connection.register("_nothing", dataset.schema.empty_table())
        nulls = ", ".join(f"NULL::{kind} AS {_name(name)}" for name, kind in dataset.partitions)
        connection.execute(
            f"CREATE TABLE stored_{dataset.name} AS SELECT {selected} FROM (SELECT *, {nulls} FROM _nothing)"
        )
        connection.unregister("_nothing")
        return
    paths = ", ".join(_literal(str(path)) for path in files)
    types = ", ".join(f"{_literal(name)}: {kind}" for name, kind in dataset.partitions)
    mixed = not all(path.name.endswith(schema_mark(dataset.schema)) for path in files)
    source = f"read_parquet([{paths}], hive_partitioning = true, hive_types = {{{types}}}, union_by_name = {str(mixed).lower()})"
    if mixed:
        selected = _selected(connection, dataset, source, columns)
    connection.execute(f"CREATE VIEW stored_{dataset.name} AS SELECT {selected} FROM {source}")


def _selected(connection: duckdb.DuckDBPyConnection, dataset: Dataset, source: str, columns: list[str]) -> str:
    """The columns of `source`; one that none of its files has, as they are all older than it, is null."""
    known = {row[0] for row in connection.execute(f"DESCRIBE FROM {source}").fetchall()}
    connection.register("_nothing", dataset.schema.empty_table())
    kinds = {row[0]: row[1] for row in connection.execute("DESCRIBE _nothing").fetchall()}
    connection.unregister("_nothing")
    return ", ".join(_name(name) if name in known else f"NULL::{kinds[name]} AS {_name(name)}" for name in columns)


def _create_views(connection: duckdb.DuckDBPyConnection, *, narrowed: bool) -> None:
    chosen = " SEMI JOIN selected USING (experiment, request_id)" if narrowed else ""
    sources = {dataset.name: f"stored_{dataset.name}{chosen}" for dataset in DATASETS}
    template = resources.files("evalpipe.store").joinpath("views.sql").read_text(encoding="utf-8")
    connection.execute(template.format(**sources))


def _name(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def empty_table(name: str) -> pa.Table:
    """No rows of the dataset, with its columns."""
    return BY_NAME[name].schema.empty_table()
