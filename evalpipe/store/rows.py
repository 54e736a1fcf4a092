"""Nouns → Arrow tables in the columns of a dataset, with text that can be stored."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from evalpipe.core.text import well_formed
from evalpipe.core.traffic import FAILED


def to_table(schema: pa.Schema, rows: Sequence[Any]) -> pa.Table:
    """A table of nouns whose attributes are named as the columns. Enums become their text, mappings MAPs; a lone
    surrogate, which no UTF-8 file can hold, becomes U+FFFD."""
    return pa.Table.from_arrays(
        [_column([get(row) for row in rows], field.type) for field, get in _getters(schema)], schema=schema
    )


def holds_failures(exchanges: pa.Table) -> bool:
    """Whether a request failed in one of these rows of `exchanges`."""
    failed = pa.array(sorted(FAILED), pa.string())
    return bool(pc.any(pc.is_in(exchanges["outcome"], value_set=failed)).as_py())


def _getters(schema: pa.Schema) -> list[tuple[pa.Field, attrgetter[Any]]]:
    return [(field, attrgetter(field.name)) for field in schema]


def _column(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_map(kind):
        values = [None if value is None else list(value.items()) for value in values]
    try:
        return pa.array(values, kind)
    except (UnicodeEncodeError, pa.ArrowInvalid):
        if not pa.types.is_string(kind):
            raise
        return pa.array([None if value is None else well_formed(value) for value in values], kind)
