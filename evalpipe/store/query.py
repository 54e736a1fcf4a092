"""The store opened for reading: datasets of record seen through DuckDB views, selections of requests, read-only SQL.

A store is opened on the files that are there at that moment and stays on them, so that everything one command computes
is of one state, whatever is written meanwhile. Writing never touches the connection: it adds files.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from evalpipe.errors import ConfigError, DataError
from evalpipe.files import sql_statements, take_lock, write_synced
from evalpipe.models import AGAINST_ITSELF, Judgment, Label
from evalpipe.objects.shared import shared_work
from evalpipe.store.parquet import DatasetWriter, Reader, parquet_files, private_file, schema_mark, whole_and_damaged
from evalpipe.store.schema import BY_NAME, DATASETS, Dataset, to_table


@dataclass(frozen=True, kw_only=True, slots=True)
class Store:
    """The datasets of a data folder, of one experiment (or of all where `experiment` is None), as of its opening.

    `connection` has the views `exchanges`, `pairs`, `judgments`, `labels`, `feedback`, and can reach no other file.
    """

    data: Path
    experiment: str | None
    connection: duckdb.DuckDBPyConnection
    files: tuple[Path, ...]
    damaged: tuple[Path, ...] = ()
    """files that do not hold what was written: their rows are not in the views"""
    reader: Reader | None = None
    """keeps superseded files until this store is closed"""
    scratch: Path | None = None
    """folder of what the connection writes to disk"""

    def of_exchanges(self, files: Iterable[Path]) -> list[Path]:
        """Those of these files that hold exchanges."""
        return [path for path in files if path.is_relative_to(self.data / "exchanges")]

    def close(self) -> None:
        self.connection.close()
        if self.reader is not None:
            self.reader.close()
        if self.scratch is not None:
            shutil.rmtree(self.scratch, ignore_errors=True)

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

    def _write(self, name: str, rows: Sequence[Any]) -> int:
        if self.experiment is None:
            raise DataError("writing needs one experiment: open the store with its name")
        return write_rows(self.data, self.experiment, name, rows)


def write_rows(data: Path, experiment: str, name: str, rows: Sequence[Any]) -> int:
    """Add records to a dataset; one whose key is there already is left out. Rows added."""
    if not rows:
        return 0
    dataset = BY_NAME[name]
    with writing(data, name), DatasetWriter(data, dataset) as writer:
        return writer.add(experiment, to_table(dataset.schema, rows))


LARGE_BYTES = 128_000_000
"""of exchanges' files: only from here on it is counted how many exchanges there are"""
LARGE = 4_000_000
"""exchanges from which on an analysis keeps its tables on disk: one of 3 million needs less than a gigabyte in memory"""
ANALYSIS_MEMORY = 1_500_000_000
"""bytes the database may take for an analysis, or a third of the machine's memory; the rest is the process's own"""
ON_DISK = "working"
"""name of the database on disk"""
READ_FILES = "exchange_files"
"""the variable that names the files which `exchanges` reads"""


def open_store(
    data: Path,
    experiment: str | None = None,
    *,
    selection: Selection | None = None,
    compared: bool = False,
    analysis: bool = False,
) -> Store:
    """Open the datasets under `data`. Empty datasets are empty views with the right columns.

    An experiment that takes its control from another one (`note_control_from`) has that one's control rows, under its own name.
    NAME~control is a pair of answers of one arm: control's, and its replayed ones as those of the treatment.

    Args:
        data: the folder.
        experiment: one; None: all.
        selection: narrows every view to the requests it selects.
        compared: `exchanges` holds what is compared: a replayed answer that belongs to a pair is there with role `replayed`, in
            place of what it replaces, and the others are not.
        analysis: for tables made of all exchanges. From `LARGE` of them on there is a database `working` on disk for such tables,
            the memory is limited, and `exchanges` reads the files that the variable `exchange_files` names (all of them, until
            it is set), so that they can be read a part at a time.

    Raises:
        DataError: where a file cannot be read. A damaged one is left out and named in `damaged`.
        ConfigError: where the selection is not valid.
    """
    mirrored = experiment is not None and experiment.endswith(AGAINST_ITSELF)
    base = experiment.removesuffix(AGAINST_ITSELF) if experiment is not None else None
    other = None if base is None else control_from(data, base)
    connection = duckdb.connect(":memory:", config={"temp_directory": _spill_folder()})
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET enable_progress_bar = false")  # it is printed on stdout, amid a command's JSON
    files: list[Path] = []
    added: list[Path] = []
    damaged: list[Path] = []
    reader = Reader(data)
    scratch: Path | None = None
    try:
        for dataset in DATASETS:
            exchanges = dataset.name == "exchanges"
            listed = parquet_files(data, dataset, base if exchanges else experiment)
            if exchanges and other is not None:
                listed = [*listed, *parquet_files(data, dataset, other)]
            found, broken = whole_and_damaged(path for path in listed if _may_hold(path, selection))
            damaged += broken
            files += found
            if exchanges and analysis and _is_large(connection, found):
                scratch = _work_on_disk(connection)
                added = [_empty_file(scratch, dataset)]
                _create_stored(connection, dataset, [*added, *found], variable=READ_FILES)
            else:
                _create_stored(connection, dataset, found)
        if base is not None and (other is not None or mirrored):
            _join_experiments(connection, base, other, mirrored=mirrored)
        connection.execute("SET allowed_paths = $1", [[str(path) for path in (*files, *added)]])
        connection.execute("SET enable_external_access = false")
        narrowed = selection is not None and not selection.is_empty
        if selection is not None and narrowed:
            select_requests(connection, selection)
        replays = _place_replays(connection) if not mirrored else False
        _create_views(connection, narrowed=narrowed, replays=replays, compared=compared)
        connection.execute("SET lock_configuration = true")
    except BaseException as error:
        connection.close()
        reader.close()
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        if isinstance(error, duckdb.Error):
            raise DataError(f"the data under {data} cannot be read: {first_line(error)}") from error
        raise
    return Store(
        data=data,
        experiment=experiment,
        connection=connection,
        files=tuple(files),
        damaged=tuple(damaged),
        reader=reader,
        scratch=scratch,
    )


@contextmanager
def open_files(
    files: Sequence[Path], *, selected: pa.Table | None, threads: int, memory: int
) -> Iterator[duckdb.DuckDBPyConnection]:
    """The view `exchanges` of some of an experiment's files, for a worker that reads a part of them.

    Args:
        files: of exchanges, in folders named by their partitions; none is replayed.
        selected: the requests that are selected (experiment, request_id), as `open_store` has them; None: all.
        threads: of the database.
        memory: bytes it may take; beyond, it works on disk.

    Raises:
        DataError: where a file cannot be read.
    """
    with duckdb.connect(":memory:", config={"temp_directory": _spill_folder()}) as connection:
        try:
            connection.execute(f"SET TimeZone = 'UTC'; SET threads = {threads:d}; SET memory_limit = '{memory:d}B'")
            for dataset in DATASETS:
                _create_stored(connection, dataset, list(files) if dataset.name == "exchanges" else [])
            connection.execute("SET allowed_paths = $1", [[str(path) for path in files]])
            connection.execute("SET enable_external_access = false")
            if selected is not None:
                connection.register("selected", selected)
            _create_views(connection, narrowed=selected is not None)
            connection.execute("SET lock_configuration = true")
            yield connection
        except duckdb.Error as error:
            raise DataError(f"a part of the files cannot be read: {first_line(error)}") from error


def readable(data: Path, experiment: str, selection: Selection) -> Selection:
    """The selection, of requests whose texts are still there: a judge cannot read the others, and must not be paid for them.

    Only where some were removed is anything narrowed; a file from which texts were removed has a name of its own.
    """
    base = experiment.removesuffix(AGAINST_ITSELF)
    names = [base, *([other] if (other := control_from(data, base)) else [])]
    removed = any("~" in path.name for name in names for path in parquet_files(data, BY_NAME["exchanges"], name))
    return replace(selection, readable=True) if removed else selection


@contextmanager
def writing(data: Path, name: str, *, erases: bool = False) -> Iterator[None]:
    """Hold the write lock of a dataset: the look for what is there already and the write are one step.

    Args:
        data: the data folder.
        name: of the dataset.
        erases: on a shared store, what the removed files held is deleted at once, though others may read it.
    """
    with private_file(data / name / ".lock", os.O_RDWR) as handle:
        take_lock(handle)
        with shared_work(data, f"write/{name}", erases=erases):
            yield


def first_line(error: BaseException) -> str:
    """The first line of a DuckDB error, which is the reason; the rest repeats the query."""
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


def _is_large(connection: duckdb.DuckDBPyConnection, files: Sequence[Path]) -> bool:
    """Whether the files hold so many exchanges that an analysis works on disk."""
    if sum(path.stat().st_size for path in files) < LARGE_BYTES:
        return False
    counted = "SELECT sum(num_rows) FROM parquet_file_metadata($1::VARCHAR[])"
    return bool(connection.execute(counted, [[str(path) for path in files]]).fetchall()[0][0] >= LARGE)


def _work_on_disk(connection: duckdb.DuckDBPyConnection) -> Path:
    """Limit the memory, and attach a database on disk, which keeps tables compressed; returns its folder."""
    folder = Path(tempfile.mkdtemp(prefix="evalpipe-report-"))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    connection.execute(f"SET memory_limit = '{min(ANALYSIS_MEMORY, memory // 3)}B'")
    path = folder / "working.duckdb"
    connection.execute(f"ATTACH {_literal(str(path))} AS {ON_DISK}")
    path.unlink()  # it is read by its handle: nothing is left of it when the process is killed
    connection.execute(f"SET search_path = 'memory,{ON_DISK}'")
    return folder


def _empty_file(folder: Path, dataset: Dataset) -> Path:
    """A Parquet file without a row, in partitions of its own."""
    path = folder.joinpath(*(f"{name}={'1970-01-01' if kind == 'DATE' else '~'}" for name, kind in dataset.partitions))
    path.mkdir(parents=True)
    pq.write_table(_nothing(dataset.schema), path / "empty.parquet")
    return path / "empty.parquet"


def _nothing(schema: pa.Schema) -> pa.Table:
    """A table without a row. (`Schema.empty_table` imports pandas, a third of a second for every command.)"""
    return pa.Table.from_batches([], schema=schema)


def _create_stored(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, files: list[Path], *, variable: str | None = None
) -> None:
    """`stored_NAME`: the files as they are, `experiment` first and the other partitions last. With `variable` it reads the files
    which that names: any part of `files` may follow the first, which is empty and has every column."""
    columns = ["experiment", *dataset.schema.names, *[name for name, _ in dataset.partitions if name != "experiment"]]
    selected = ", ".join(_name(column) for column in columns)
    if not files:
        kinds = {**_kinds(connection, dataset.name), **dict(dataset.partitions)}
        defined = ", ".join(f"{_name(column)} {kinds[column]}" for column in columns)
        connection.execute(f"CREATE TABLE stored_{dataset.name} ({defined})")
        return
    paths = ", ".join(_literal(str(path)) for path in files)
    types = ", ".join(f"{_literal(name)}: {kind}" for name, kind in dataset.partitions)
    mixed = not all(path.name.endswith(schema_mark(dataset.schema)) for path in files)
    read = f"[{paths}]"
    if variable is not None:
        connection.execute(f"SET VARIABLE {variable} = {read}")
        read = f"getvariable({_literal(variable)})"
    source = f"read_parquet({read}, hive_partitioning = true, hive_types = {{{types}}}, union_by_name = {str(mixed).lower()})"
    if mixed and variable is None:
        selected = _selected(connection, dataset, source, columns)
    elif mixed:
        kinds = {**_kinds(connection, dataset.name), **dict(dataset.partitions)}
        selected = ", ".join(f"{_name(column)}::{kinds[column]} AS {_name(column)}" for column in columns)
    connection.execute(f"CREATE VIEW stored_{dataset.name} AS SELECT {selected} FROM {source}")


_KINDS: dict[str, dict[str, str]] = {}
"""the columns of each dataset without its partitions, and DuckDB's type of each"""


def _kinds(connection: duckdb.DuckDBPyConnection, name: str) -> dict[str, str]:
    if name not in _KINDS:
        connection.register("_nothing", _nothing(BY_NAME[name].schema))
        _KINDS[name] = {row[0]: row[1] for row in connection.execute("DESCRIBE _nothing").fetchall()}
        connection.unregister("_nothing")
    return _KINDS[name]


def _selected(connection: duckdb.DuckDBPyConnection, dataset: Dataset, source: str, columns: list[str]) -> str:
    """The columns of `source`; one that none of its files has, as they are all older than it, is null."""
    known = {row[0] for row in connection.execute(f"DESCRIBE FROM {source}").fetchall()}
    kinds = _kinds(connection, dataset.name)
    return ", ".join(_name(name) if name in known else f"NULL::{kinds[name]} AS {_name(name)}" for name in columns)


def _create_views(
    connection: duckdb.DuckDBPyConnection, *, narrowed: bool, replays: bool = False, compared: bool = False
) -> None:
    chosen = " SEMI JOIN selected USING (experiment, request_id)" if narrowed else ""
    sources = {dataset.name: f"stored_{dataset.name}{chosen}" for dataset in DATASETS}
    paired = "exchanges"
    if replays:
        connection.execute(_SQL["compared"].format(source=sources["exchanges"]))
        paired = "compared_exchanges"
        if compared:
            sources["exchanges"] = paired
    template = resources.files("evalpipe.store").joinpath("views.sql").read_text(encoding="utf-8")
    connection.execute(template.format(paired=paired, **sources))


# Replayed answers: which of them belong to a pair, and what they replace.


_SQL = sql_statements("evalpipe.store", "replayed_pairs.sql")


def _place_replays(connection: duckdb.DuckDBPyConnection) -> bool:
    """Make the table `replay_places` where anything was replayed; whether it was."""
    if not connection.execute("SELECT 1 FROM stored_exchanges WHERE role = 'replay' LIMIT 1").fetchall():
        return False
    connection.execute(_SQL["places"])
    return True


def _join_experiments(connection: duckdb.DuckDBPyConnection, name: str, other: str | None, *, mirrored: bool) -> None:
    """`stored_exchanges` of an experiment with another one's control; or, mirrored, of control's answers in pairs."""
    kind = (
        "VIEW"
        if connection.execute("SELECT 1 FROM duckdb_views() WHERE view_name = 'stored_exchanges'").fetchall()
        else "TABLE"
    )
    connection.execute(f"ALTER {kind} stored_exchanges RENAME TO filed_exchanges")
    own, named = _literal(name), _literal(name + AGAINST_ITSELF if mirrored else name)
    rows = f"experiment = {own}"
    if other is not None:
        rows += f" OR (experiment = {_literal(other)} AND arm = 'control' AND role <> 'replay')"
    changed = [f"{named} AS experiment"]
    if other is not None or mirrored:  # shadow requests to another arm do not belong to this one
        kept = "NULL" if mirrored else f"CASE WHEN experiment = {own} THEN {{0}} END"
        changed += [f"{kept.format(column)} AS {column}" for column in ("shadow_status", "shadow_reason")]
    if mirrored:
        rows = f"({rows}) AND arm = 'control'"
        changed += [
            "CASE WHEN role = 'replay' THEN 'treatment' ELSE arm END AS arm",
            "CASE WHEN role = 'replay' THEN 'replayed' ELSE role END AS role",
        ]
    connection.execute(
        f"CREATE VIEW stored_exchanges AS SELECT * REPLACE ({', '.join(changed)}) FROM filed_exchanges WHERE {rows}"
    )


# Several candidates on one log: a candidate's experiment takes control's rows from another one.


def control_from_path(data: Path, experiment: str) -> Path:
    """Where it is kept whose control an experiment takes."""
    return data / "experiments" / f".{experiment}.control-from"


def control_from(data: Path, experiment: str) -> str | None:
    """The experiment whose control rows this one has; None: its own."""
    try:
        return control_from_path(data, experiment).read_text("utf-8").strip() or None
    except FileNotFoundError:
        return None


def candidates_on(data: Path, control: str) -> list[str]:
    """The experiments that take their control from this one, by name."""
    paths = sorted((data / "experiments").glob(".*.control-from"))
    names = [path.name.removeprefix(".").removesuffix(".control-from") for path in paths]
    return [name for name in names if control_from(data, name) == control]


def note_control_from(data: Path, experiment: str, other: str | None) -> None:
    """Keep whose control an experiment takes, so that every command reads the same pairs."""
    path = control_from_path(data, experiment)
    if control_from(data, experiment) == other:
        return
    if other is None:
        path.unlink(missing_ok=True)
    else:
        write_synced(path, f"{other}\n".encode())


def _name(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def empty_table(name: str) -> pa.Table:
    """No rows of the dataset, with its columns."""
    return BY_NAME[name].schema.empty_table()


# Read-only SQL over the views, for people: one query in, columns and rows out.


_READING = frozenset({duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN, duckdb.StatementType.RELATION})


def run_query(store: Store, query: str) -> duckdb.DuckDBPyConnection:
    """Run one reading statement and give the connection with its result (`description`, `fetchmany`, `df`).

    Raises ConfigError where the text is no query, more than one, or would change or reach anything (the store's connection
    could not write a file either: it reaches nothing but the datasets).
    """
    try:
        statements = store.connection.extract_statements(query)
    except duckdb.Error as error:
        raise ConfigError(f"the query cannot be read: {_message(error)}") from None
    if len(statements) != 1:
        n = len(statements)
        raise ConfigError(f"one query is run at a time, this is {n}" if n else "the query is empty")
    if statements[0].type not in _READING:
        kind = statements[0].type.name.replace("_", " ")
        raise ConfigError(f"only queries that read are run (SELECT, WITH, FROM, DESCRIBE, EXPLAIN), this is {kind}")
    try:
        return store.connection.execute(statements[0])
    except duckdb.Error as error:
        raise ConfigError(f"the query does not work: {_message(error)}") from None


def columns(result: duckdb.DuckDBPyConnection) -> list[str]:
    return [column[0] for column in result.description or []]


def plain(value: Any) -> Any:
    """A value as JSON can hold it: instants and dates in ISO 8601, decimals as numbers, NaN and Infinity as null."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    isoformat = getattr(value, "isoformat", None)
    if callable(isoformat):
        return isoformat()
    if hasattr(value, "as_integer_ratio"):
        return float(value)
    return str(value)


def _message(error: duckdb.Error) -> str:
    """DuckDB's message, its hint included, on one line."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    kept = []
    for line in lines:
        if line.startswith("LINE "):
            break
        if line:
            kept.append(line)
    return " ".join(kept) or type(error).__name__


# Which logged requests a command looks at: `--since`, `--until`, `--where`, those a log file holds, and not the
# excluded ones.
#
# The selection is of requests, made on the row the user was served (for an imported log: control's row): the other
# arm's shadow request follows its request. So `--where "model = 'gpt-4o'"` keeps the pairs of those requests, and a condition on
# what a user got never selects on the shadow response.


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """`since` (inclusive) and `until` (exclusive) bound `started_at`; `where` is an SQL expression over `exchanges`;
    `request_ids`: these requests only (None = all); `excluded`: periods [from, to) that are left out of both arms; `readable`:
    only requests whose texts are still there."""

    since: datetime | None = None
    until: datetime | None = None
    where: str | None = None
    request_ids: Collection[str] | None = None
    excluded: tuple[tuple[datetime, datetime], ...] = ()
    readable: bool = False

    @property
    def is_empty(self) -> bool:
        """Nothing is narrowed."""
        return self == Selection()

    @property
    def is_whole(self) -> bool:
        """The whole experiment, but for what is excluded from it."""
        return replace(self, excluded=()).is_empty


def read_selection(since: str | None = None, until: str | None = None, where: str | None = None) -> Selection:
    """The selection of the command line's options. Raises ConfigError with the option and the value that is wrong."""
    if where is not None:
        check_expression(where)
    first, last = _instant("--since", since), _instant("--until", until)
    if first is not None and last is not None and first >= last:
        raise ConfigError(f"--since {since} is not before --until {until}: the period is empty")
    return Selection(since=first, until=last, where=where)


def check_expression(text: str, *, name: str = "--where") -> None:
    """Refuse anything but one SQL expression. Raises ConfigError."""
    with duckdb.connect(":memory:") as parser:
        try:
            row = parser.execute("SELECT json_serialize_sql($1)", [f"SELECT {text}\n"]).fetchone()
        except duckdb.Error as error:
            raise ConfigError(f"{name} {text!r} is not an SQL expression: {error}") from None
    tree: dict[str, Any] = json.loads(row[0]) if row else {"error": True}
    if tree["error"]:
        raise ConfigError(f"{name} {text!r} is not an SQL expression: {tree.get('error_message', 'cannot be read')}")
    node = tree["statements"][0]["node"]
    # Anything but a bare expression after SELECT (a list, a FROM, a UNION, a second statement) shows in the tree.
    plain = (
        len(tree["statements"]) == 1
        and node["type"] == "SELECT_NODE"
        and len(node["select_list"]) == 1
        and node["select_list"][0]["type"] != "STAR"
        and not node["select_list"][0]["alias"]
        and node["from_table"]["type"] == "EMPTY"
        and node["aggregate_handling"] == "STANDARD_HANDLING"
        and not any(
            node[part] for part in ("modifiers", "where_clause", "group_expressions", "having", "qualify", "sample")
        )
    )
    if not plain:
        raise ConfigError(f"{name} {text!r} is more than one SQL expression: give only the condition")


def select_requests(connection: duckdb.DuckDBPyConnection, selection: Selection) -> None:
    """Make the table `selected` (experiment, request_id). Raises ConfigError where `where` does not fit the columns."""
    conditions = ["role <> 'shadow'", "role <> 'replay'", "(role = 'served' OR arm = 'control')"]
    values: list[datetime] = []
    for operator, instant in ((">=", selection.since), ("<", selection.until)):
        if instant is not None:
            values.append(instant)
            conditions.append(f"started_at {operator} ${len(values)}")
    for start, end in selection.excluded:
        values += [start, end]
        conditions.append(f"NOT (started_at >= ${len(values) - 1} AND started_at < ${len(values)})")
    if selection.readable:
        conditions.append("removed_at IS NULL")
    if selection.where is not None:
        check_expression(selection.where)
        conditions.append(f"(\n{selection.where}\n)")
    if selection.request_ids is not None:
        connection.register("_named", pa.table({"request_id": pa.array(list(selection.request_ids), pa.string())}))
        conditions.append("request_id IN (FROM _named)")
    named = ", ".join(f"{dataset.name} AS (FROM stored_{dataset.name})" for dataset in DATASETS)  # for sub-queries
    query = (
        f"WITH {named} SELECT DISTINCT experiment, request_id FROM stored_exchanges AS exchanges "
        f"WHERE {' AND '.join(conditions)}"
    )
    try:
        connection.execute(f"CREATE TABLE selected AS {query}", values or None)
    except duckdb.Error as error:
        if selection.where is None:
            raise
        lines = itertools.takewhile(lambda line: not line.startswith("LINE "), str(error).strip().splitlines())
        message = " ".join(line.strip() for line in lines if line.strip())  # with the names there are
        if isinstance(error, duckdb.ConversionException):  # its message quotes a value of the log
            message = "a value cannot be converted; try_cast gives NULL for such"
        raise ConfigError(f"--where {selection.where!r} does not work: {message}") from None
    finally:
        if selection.request_ids is not None:
            connection.unregister("_named")


def read_instant(option: str, text: str) -> datetime:
    """An instant of the command line, in UTC where no zone is given. Raises ConfigError with the option and the value."""
    found = _instant(option, text)
    assert found is not None
    return found


def _instant(option: str, text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        instant = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{option} {text!r} is not an ISO 8601 instant such as 2026-07-01 or 2026-07-01T12:00:00Z"
        ) from None
    return instant.replace(tzinfo=UTC) if instant.tzinfo is None else instant.astimezone(UTC)
