"""SQL over the views of one experiment: the connection, and expressions that users write, which may only compute over a row.

The workspace passes one in (DuckDB); naming only what is used keeps this package free of any database library.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from evalpipe.errors import ConfigError


class Connection(Protocol):
    """The part of a DuckDB connection that is used here. `execute` returns the connection, which then holds the rows; `sql`
    a relation that can be read in Arrow batches."""

    def execute(self, query: str, parameters: Any = ..., /) -> Any: ...

    def sql(self, query: str, /, *, params: Any = ...) -> Any: ...


def rows(
    connection: Connection, query: str, parameters: list[Any] | dict[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The rows of a small result, each as {column: value}."""
    result = connection.execute(query, parameters) if parameters else connection.execute(query)
    names = [column[0] for column in result.description]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def scalar(connection: Connection, query: str, parameters: list[Any] | dict[str, Any] | None = None) -> Any:
    """The first value of the first row; None where there is no row."""
    result = connection.execute(query, parameters) if parameters else connection.execute(query)
    found = result.fetchall()  # to the end: an unfinished result would block the connection
    return found[0][0] if found else None


def columns(connection: Connection, relation: str) -> set[str]:
    """The column names of a table or view."""
    return {row["column_name"] for row in rows(connection, f"DESCRIBE {relation}")}


# Of a large experiment the store has a database on disk for what is made of all its exchanges, and a variable that names the
# files which `exchanges` reads: tables that do not fit into memory, made a part of the files at a time.


ON_DISK = "working"
"""the database on disk"""
READ_FILES = "exchange_files"
"""the variable; its first file is empty"""


def large_table(connection: Connection) -> str:
    """What comes before the name of a table of all exchanges after CREATE OR REPLACE: on disk for large experiments."""
    return f"TABLE {ON_DISK}." if is_on_disk(connection) else "TEMP TABLE "


def fill_large(connection: Connection, name: str, *, is_first: bool) -> str:
    """The beginning of a statement that makes such a table of a query's rows, or, where it is not the first, appends them."""
    table = f"{large_table(connection)}{name}"
    return f"CREATE OR REPLACE {table} AS" if is_first else f"INSERT INTO {table.rpartition(' ')[2]}"


def hash_ranges(column: str, n: int) -> list[str]:
    """Conditions on a column of 64-bit hashes that take its values apart into `n` parts of about the same size."""
    width = -(-(2**64) // n)
    return [f"{column} BETWEEN {k * width} AND {min((k + 1) * width, 2**64) - 1}" for k in range(n)]


def is_on_disk(connection: Connection) -> bool:
    """Whether the experiment is so large that its tables are on disk."""
    return bool(scalar(connection, f"SELECT count(*) FROM duckdb_databases() WHERE database_name = '{ON_DISK}'"))


def file_parts(connection: Connection, n_rows: int) -> list[list[str]]:
    """The files of `exchanges` in parts of about `n_rows` rows, in the order of their days; empty where they are read at once."""
    if not scalar(connection, f"SELECT getvariable('{READ_FILES}') IS NOT NULL"):
        return []
    every = scalar(connection, f"SELECT getvariable('{READ_FILES}')")
    return parts_of(count_rows(connection, every), n_rows)


def count_rows(connection: Connection, files: Sequence[str]) -> dict[str, int]:
    """How many rows each Parquet file has."""
    found = rows(connection, "SELECT file_name, num_rows FROM parquet_file_metadata($1::VARCHAR[])", [list(files)])
    return {row["file_name"]: int(row["num_rows"]) for row in found}


def parts_of(sizes: Mapping[str, int], n_rows: int) -> list[list[str]]:
    """Files of these rows in parts of about `n_rows` rows, in the order of their days; empty ones are left out."""
    parts: list[list[str]] = []
    n = n_rows
    for name in sorted(filter(sizes.get, sizes), key=lambda name: name.split("/")[-2:]):
        if n + sizes[name] > n_rows:
            parts.append([])
            n = 0
        parts[-1].append(name)
        n += sizes[name]
    return parts


@contextmanager
def reading_parts(connection: Connection, parts: Sequence[Sequence[str]]) -> Iterator[Iterator[int]]:
    """Iterate over the parts' numbers from 0, while `exchanges` reads the files of each; afterwards it reads all again."""
    every = scalar(connection, f"SELECT getvariable('{READ_FILES}')")

    def steps() -> Iterator[int]:
        for position, part in enumerate(parts):
            connection.execute(f"SET VARIABLE {READ_FILES} = $1::VARCHAR[]", [[every[0], *part]])
            yield position

    try:
        yield steps()
    finally:
        connection.execute(f"SET VARIABLE {READ_FILES} = $1::VARCHAR[]", [every])


_Read = TypeVar("_Read")
_Made = TypeVar("_Made")


def made_while_reading(parts: Iterable[_Read], make: Callable[[_Read], _Made]) -> Iterator[_Made]:
    """`make` of each part in turn, in another thread, while the next part is read in this one: the connection is used by one
    thread only, and two parts are in memory at most."""
    with ThreadPoolExecutor(max_workers=1) as worker:
        last: Future[_Made] | None = None
        for part in parts:
            if last is not None:
                yield last.result()
            last = worker.submit(make, part)
            del part
        if last is not None:
            yield last.result()


# SQL that users write (selections, metrics, segments) is data: it may compute over a row, and nothing else.


FORBIDDEN_FUNCTIONS = frozenset(
    [
        "getenv",
        "getvariable",
        "current_setting",
        "current_user",
        "current_database",
        "current_schema",
        "current_schemas",
        "current_query",
        "nextval",
        "currval",
        "setseed",
        "random",
        "uuid",
        "gen_random_uuid",
        "uuidv4",
        "uuidv7",
        "now",
        "today",
        "current_date",
        "current_timestamp",
        "get_current_time",
        "get_current_timestamp",
        "transaction_timestamp",
        "txid_current",
        "current_localtime",
        "current_localtimestamp",
        "write_log",
        "read_text",
        "read_blob",
        "glob",
        "query",
        "query_table",
        "json_execute_serialized_sql",
        "from_substrait",
        "pg_read_file",
        "load_extension",
        "parse_duckdb_log_message",
        "in_search_path",
        "version",
    ]
)
"""Functions that look outside the row: files, settings, the environment, the clock, chance. A report must be the same twice."""

FORBIDDEN_NODES = frozenset({"SUBQUERY", "WINDOW", "PARAMETER", "LAMBDA_SUBQUERY", "STAR", "DEFAULT"})
"""Other tables come in only through a subquery; windows and aggregates look at other rows."""

AGGREGATES_SQL = (
    "SELECT list(DISTINCT function_name) FROM duckdb_functions() "
    "WHERE function_type IN ('aggregate', 'table', 'pragma')"
)


def check_expression(connection: Connection, expression: str, *, name: str, relation: str = "exchanges") -> None:
    """Refuse anything but one read-only expression over the row of `relation`. Raises ConfigError with one line.

    The database's own parser reads it (nothing is executed), so there is no second grammar to disagree with.
    """
    if not expression.strip():
        raise ConfigError(f"{name} is empty: give one SQL expression over a row of {relation}")
    tree = _parse(connection, f"SELECT ({expression}\n) FROM {relation}", name=name, expression=expression)
    statements = tree.get("statements", [])
    node = statements[0].get("node", {}) if len(statements) == 1 else {}
    plain = (
        node.get("type") == "SELECT_NODE"
        and len(node.get("select_list", [])) == 1
        and node.get("where_clause") is None
        and not node.get("group_expressions")
        and node.get("having") is None
        and not node.get("modifiers")
        and node.get("from_table", {}).get("type") == "BASE_TABLE"
    )
    if not plain:
        raise ConfigError(f"{name} = {expression!r}: give one SQL expression over a row of {relation}, nothing more")
    aggregates = set(scalar(connection, AGGREGATES_SQL) or [])
    _walk(node["select_list"][0], name=name, expression=expression, aggregates=aggregates)
    try:
        connection.execute(f"EXPLAIN SELECT ({expression}\n) FROM {relation}").fetchall()
    except Exception as error:  # noqa: BLE001 - the message names the wrong name or type
        raise ConfigError(f"{name} = {expression!r}: {_first_line(error)}") from None


def _parse(connection: Connection, statement: str, *, name: str, expression: str) -> dict[str, Any]:
    text = scalar(connection, "SELECT json_serialize_sql(?::VARCHAR)", [statement])
    tree: dict[str, Any] = json.loads(text)
    if tree.get("error"):
        raise ConfigError(f"{name} = {expression!r} is not valid SQL: {tree.get('error_message', 'cannot be read')}")
    return tree


def _walk(node: Any, *, name: str, expression: str, aggregates: set[str]) -> None:
    if isinstance(node, list):
        for child in node:
            _walk(child, name=name, expression=expression, aggregates=aggregates)
        return
    if not isinstance(node, dict):
        return
    if node.get("class") in FORBIDDEN_NODES or node.get("type") in FORBIDDEN_NODES:
        raise ConfigError(
            f"{name} = {expression!r}: subqueries, windows and * are not allowed, only this row's columns"
        )
    function = str(node.get("function_name", "")).lower()
    if function in FORBIDDEN_FUNCTIONS:
        raise ConfigError(f"{name} = {expression!r}: {function}() looks outside the row and is not allowed")
    if function and function in aggregates and node.get("class") == "FUNCTION" and not node.get("is_operator"):
        raise ConfigError(f"{name} = {expression!r}: {function}() is an aggregate; give a value per row")
    for child in node.values():
        _walk(child, name=name, expression=expression, aggregates=aggregates)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
