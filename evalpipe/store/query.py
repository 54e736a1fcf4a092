"""Read-only SQL over the views, for people: one query in, columns and rows out."""

from __future__ import annotations

from typing import Any

import duckdb

from evalpipe.errors import ConfigError
from evalpipe.store.datasets import Store

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
    """What DuckDB says, its hint included, on one line."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    kept = []
    for line in lines:
        if line.startswith("LINE "):
            break
        if line:
            kept.append(line)
    return " ".join(kept) or type(error).__name__
