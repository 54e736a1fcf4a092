"""A user's metric as a Python function: "module:name", given frames of exchanges, giving a number per row."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from evalpipe.analysis.connection import Connection
from evalpipe.analysis.settings import CustomMetric
from evalpipe.errors import ConfigError

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
