"""What the analysis asks of its database: a connection that runs SQL over the views of one experiment.

The pipeline hands one in (DuckDB); naming only what is used keeps this room free of any database library.
"""

from __future__ import annotations

from typing import Any, Protocol


class Connection(Protocol):
    """The part of a DuckDB connection that is used here. `execute` returns the connection, which then holds the rows; `sql`
    a relation that can be read in Arrow batches."""

    def execute(self, query: str, parameters: Any = ..., /) -> Any: ...

    def sql(self, query: str, /) -> Any: ...


def rows(connection: Connection, query: str, parameters: list[Any] | None = None) -> list[dict[str, Any]]:
    """The rows of a small result, each as {column: value}."""
    result = connection.execute(query, parameters) if parameters else connection.execute(query)
    names = [column[0] for column in result.description]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def scalar(connection: Connection, query: str, parameters: list[Any] | None = None) -> Any:
    """The first value of the first row; None where there is no row."""
    result = connection.execute(query, parameters) if parameters else connection.execute(query)
    found = result.fetchall()  # to the end: an unfinished result would block the connection
    return found[0][0] if found else None


def columns(connection: Connection, relation: str) -> set[str]:
    """The column names of a table or view."""
    return {row["column_name"] for row in rows(connection, f"DESCRIBE {relation}")}
