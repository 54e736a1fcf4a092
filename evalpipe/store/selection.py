"""Which logged requests a command looks at: `--since`, `--until`, `--where`, those a log file holds, and not the excluded ones.

The selection is of requests, made on the row the user was served (for an imported log: control's row): the other arm's
copy follows its request. So `--where "model = 'gpt-4o'"` keeps the pairs of those requests, and a condition on what a
user got never selects on what the copy answered.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import duckdb
import pyarrow as pa

from evalpipe.errors import ConfigError


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
    return Selection(since=_instant("--since", since), until=_instant("--until", until), where=where)


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
    query = (
        f"SELECT DISTINCT experiment, request_id FROM stored_exchanges AS exchanges WHERE {' AND '.join(conditions)}"
    )
    try:
        connection.execute(f"CREATE TABLE selected AS {query}", values or None)
    except duckdb.Error as error:
        if selection.where is None:
            raise
        said = itertools.takewhile(lambda line: not line.startswith("LINE "), str(error).strip().splitlines())
        message = " ".join(line.strip() for line in said if line.strip())  # with the names there are
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
