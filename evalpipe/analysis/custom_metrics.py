"""Metrics of the user's own: an SQL expression in the configuration, checked to be read-only, or a Python function."""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

from evalpipe.analysis.metrics import Metric, custom_metric, metrics
from evalpipe.analysis.settings import CustomMetric, Settings
from evalpipe.analysis.sql import Connection, check_expression
from evalpipe.errors import ConfigError

NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


def custom_metrics(wanted: Sequence[CustomMetric]) -> list[Metric]:
    """The users' metrics as metrics like all others: a mean per answered request."""
    taken = {item.name for item in metrics()}
    found = []
    for position, one in enumerate(wanted):
        if one.name in taken:
            raise ConfigError(f"metrics.{one.name}: this name is evalpipe's own; choose another")
        if not NAME.fullmatch(one.name):
            raise ConfigError(f"metrics.{one.name}: a name is lower case letters, digits and _, such as my_metric")
        found.append(
            custom_metric(
                one.name,
                label=one.label,
                direction=cast(Literal["lower", "higher"], one.direction),
                unit=one.unit,
                column=_column(position),
            )
        )
    return found


def check_names(settings: Settings) -> None:
    """Every metric that the decision names must exist. Raises ConfigError with the nearest name."""
    known = [item.name for item in metrics()] + [one.name for one in settings.custom]
    asked = [(f"decision.metrics.{name}", name) for name in settings.metrics]
    asked += [(f"decision.primary: {name}", name) for name in settings.primary or ()]
    for where, name in asked:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{where} is no metric; {hint}")


def custom_columns(connection: Connection, wanted: Sequence[CustomMetric]) -> list[tuple[str, str]]:
    """(column, SQL expression over `exchanges`) of each; checked, so that they can be put into a query."""
    columns = []
    for position, one in enumerate(wanted):
        if one.sql is not None:
            check_expression(connection, one.sql, name=f"metrics.{one.name}.sql")
            expression = f"TRY_CAST(({one.sql}\n) AS DOUBLE)"
        else:
            expression = function_column(connection, one)
        columns.append((_column(position), expression))
    return columns


def _column(position: int) -> str:
    return f"custom_{position}"


# A user's metric as a Python function: "module:name", given frames of exchanges, giving a number per row.


CHUNK_ROWS = 20_000


def function_column(connection: Connection, wanted: CustomMetric) -> str:
    """Call the function on the exchanges, chunk by chunk, and return the SQL expression that looks its numbers up.

    The numbers go into a table keyed by request and arm; rows for which the function gives None or NaN have no value.
    """
    function = load_function(wanted)
    table = f"ev_function_{wanted.name}"
    connection.execute(f"CREATE OR REPLACE TEMP TABLE {table} (id UBIGINT, arm VARCHAR, value DOUBLE)")
    reader = connection.sql("SELECT * FROM exchanges WHERE outcome IN ('ok', 'refused', 'truncated')").to_arrow_reader(
        CHUNK_ROWS
    )
    frames = []
    for batch in reader:
        frame = batch.to_pandas()
        frames.append((frame["request_id"], frame["arm"], _values(function, frame, wanted)))
    for request_ids, arms, values in frames:
        connection.execute(
            f"INSERT INTO {table} SELECT hash(unnest(?::VARCHAR[])), unnest(?::VARCHAR[]), unnest(?::DOUBLE[])",
            [list(request_ids), list(arms), values],
        )
    return (
        f"(SELECT any_value(f.value) FROM {table} f WHERE f.id = hash(exchanges.request_id) AND f.arm = exchanges.arm)"
    )


def load_function(wanted: CustomMetric) -> Callable[[Any], Any]:
    """The function named "module:name", from the working directory or what is installed. Raises ConfigError."""
    key = f"metrics.{wanted.name}.function"
    module_name, _, name = (wanted.function or "").partition(":")
    if not module_name or not name:
        raise ConfigError(f'{key} = {wanted.function!r}: give "module:name"')
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(f"{key} = {wanted.function!r}: {error}") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{key} = {wanted.function!r}: {module_name} has no function {name}")
    return function  # type: ignore[no-any-return]


def _values(function: Callable[[Any], Any], frame: Any, wanted: CustomMetric) -> list[float | None]:
    key = f"metrics.{wanted.name}.function"
    try:
        found = list(function(frame))
        values = [None if value is None or value != value else float(value) for value in found]
    except Exception as error:
        raise ConfigError(f"{key} = {wanted.function!r} failed: {type(error).__name__}: {error}") from error
    if len(values) != len(frame):
        raise ConfigError(
            f"{key} = {wanted.function!r} gave {len(values)} values for {len(frame)} rows: one each is needed"
        )
    return values
