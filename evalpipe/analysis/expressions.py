"""SQL that users write (selections, metrics, segments) is data: it may compute over a row, and nothing else."""

from __future__ import annotations

import json
from typing import Any

from evalpipe.analysis.connection import Connection, scalar
from evalpipe.errors import ConfigError

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
    except Exception as error:  # noqa: BLE001 - the message says which name or type is wrong
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
