"""The columns of the stored datasets, and records as Arrow tables in these columns.

Not measured is null, never 0 or "". Times are UTC instants, `_ms` milliseconds, `_usd` dollars, tokens as billed.
`experiment` (and `date` of exchanges) are folders of the Hive layout, not columns of the files.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import astuple

from evalpipe.models import FAILED
from evalpipe.text import BLANK, well_formed

_TEXT = pa.string()
_TIME = pa.timestamp("us", tz="UTC")
_COUNT = pa.int64()
_NUMBER = pa.float64()
_SCORES = pa.map_(pa.string(), pa.float64())

EXCHANGES = pa.schema(
    [
        pa.field("request_id", _TEXT, nullable=False),
        pa.field("arm", _TEXT, nullable=False),
        pa.field("role", _TEXT, nullable=False),
        pa.field("unit_id", _TEXT),
        pa.field("conversation_id", _TEXT),
        pa.field("started_at", _TIME, nullable=False),
        pa.field("provider", _TEXT),
        pa.field("endpoint", _TEXT),
        pa.field("model_requested", _TEXT),
        pa.field("model", _TEXT),
        pa.field("request", _TEXT),
        pa.field("response", _TEXT),
        pa.field("meta", _TEXT),
        pa.field("text", _TEXT),
        pa.field("tool_calls", _TEXT),
        pa.field("finish_reason", _TEXT),
        pa.field("outcome", _TEXT, nullable=False),
        pa.field("status", pa.int32()),
        pa.field("error_type", _TEXT),
        pa.field("error_message", _TEXT),
        pa.field("latency_ms", _NUMBER),
        pa.field("ttft_ms", _NUMBER),
        pa.field("streamed", pa.bool_()),
        pa.field("input_tokens", _COUNT),
        pa.field("cached_input_tokens", _COUNT),
        pa.field("cache_write_tokens", _COUNT),
        pa.field("output_tokens", _COUNT),
        pa.field("reasoning_tokens", _COUNT),
        pa.field("cost_usd", _NUMBER),
        pa.field("priced_at", _TIME),
        pa.field("config_fingerprint", _TEXT),
        pa.field("simulated", pa.bool_(), nullable=False),
        pa.field("shadow_status", _TEXT),
        pa.field("shadow_reason", _TEXT),
        # Beyond the contract: the prompt as a person reads it, and what the split was when the request came.
        pa.field("prompt", _TEXT),
        pa.field("percentage", _NUMBER),
        pa.field("forced", pa.bool_()),
        # The request's position in its conversation: user messages so far (null: the conversation is kept by the provider,
        # or the file is older than the column), assistant messages since the last of them; and the kind of request, by what
        # the client asked for before any arm answered.
        pa.field("turn", pa.int32()),
        pa.field("step", pa.int32()),
        pa.field("request_kind", _TEXT),
        # Where the cost comes from ("config", the price library, the provider's own field), and why there is none or what is
        # not in it.
        pa.field("cost_source", _TEXT),
        pa.field("cost_note", _TEXT),
        # What an import gives to check answers against (tool results and documents of a request are read from it).
        pa.field("context", _TEXT),
        pa.field("reference", _TEXT),
        # When `prune` or `forget` took the texts out; their columns hold filler of their length since then.
        pa.field("removed_at", _TIME),
        # Whether the answer has neither a text nor a tool call, so that a report reads neither; made of the two when rows are
        # written, null only in files older than the column.
        pa.field("answer_empty", pa.bool_()),
    ]
)

JUDGMENTS = pa.schema(
    [
        pa.field("judgment_id", _TEXT, nullable=False),
        pa.field("key", _TEXT, nullable=False),
        pa.field("attempt", pa.int32(), nullable=False),
        pa.field("request_id", _TEXT, nullable=False),
        pa.field("judge", _TEXT, nullable=False),
        pa.field("judge_fingerprint", _TEXT, nullable=False),
        pa.field("judge_model", _TEXT),
        pa.field("shown_first", _TEXT, nullable=False),
        pa.field("repeat", pa.int32(), nullable=False),
        pa.field("status", _TEXT, nullable=False),
        pa.field("winner", _TEXT),
        pa.field("preference", _NUMBER),
        pa.field("control_scores", _SCORES),
        pa.field("treatment_scores", _SCORES),
        pa.field("reasoning", _TEXT),
        pa.field("raw_reply", _TEXT),
        pa.field("input_tokens", _COUNT),
        pa.field("output_tokens", _COUNT),
        pa.field("cached_input_tokens", _COUNT),
        pa.field("cost_usd", _NUMBER),
        pa.field("latency_ms", _NUMBER),
        pa.field("judged_at", _TIME),
        pa.field("batch_id", _TEXT),
        pa.field("simulated", pa.bool_(), nullable=False),
        # Notes on the row, e.g. how much of a response was cut.
        pa.field("note", _TEXT),
    ]
)

LABELS = pa.schema(
    [
        pa.field("request_id", _TEXT, nullable=False),
        pa.field("preference", _NUMBER),
        pa.field("source", _TEXT, nullable=False),
        pa.field("labeler", _TEXT),
        pa.field("labeled_at", _TIME),
        pa.field("note", _TEXT),
        # Beyond the contract: how the pair came into the draw that was labelled, and a person's scores of the two answers.
        # Several people's labels of one pair are several rows; an analysis counts their mean.
        pa.field("probability", _NUMBER),
        pa.field("stratum", _TEXT),
        pa.field("control_score", _NUMBER),
        pa.field("treatment_score", _NUMBER),
    ]
)

FEEDBACK = pa.schema(
    [
        pa.field("request_id", _TEXT, nullable=False),
        pa.field("arm", _TEXT),
        pa.field("rating", _NUMBER, nullable=False),
        pa.field("comment", _TEXT),
        pa.field("at", _TIME, nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """A dataset of the store. `key`: the columns that make a row one of its kind; a second row of that key is not written.

    `partitions`: the folders below the dataset, outermost first, with their SQL types.
    """

    name: str
    schema: pa.Schema
    key: tuple[str, ...]
    partitions: tuple[tuple[str, str], ...] = (("experiment", "VARCHAR"),)


DATASETS = (
    Dataset(
        name="exchanges",
        schema=EXCHANGES,
        key=("request_id", "arm", "role"),
        partitions=(("experiment", "VARCHAR"), ("date", "DATE")),
    ),
    Dataset(name="judgments", schema=JUDGMENTS, key=("judgment_id",)),
    Dataset(name="labels", schema=LABELS, key=("request_id", "source", "labeler")),
    Dataset(name="feedback", schema=FEEDBACK, key=("request_id", "at", "rating", "comment")),
)
"""Every dataset; `BY_NAME` finds one."""

BY_NAME = {dataset.name: dataset for dataset in DATASETS}


# Records → Arrow tables in the columns of a dataset, with text that can be stored.


def forgo_pandas() -> None:
    """For a process of evalpipe's own that makes arrays of records only: before its first one pyarrow imports pandas, to see
    whether it is given a column of a frame, which takes 0.3 s and 40 MB. It takes note of an import that fails. Not where it
    has to find the type of a value: there each array and scalar needs a named one, also as an argument of `pyarrow.compute`."""
    if "pandas" in sys.modules:
        return
    sys.modules["pandas"] = None  # type: ignore[assignment]
    try:
        with suppress(AttributeError, ImportError):
            pa.array([])
    finally:
        del sys.modules["pandas"]


def to_table(schema: pa.Schema, rows: Sequence[Any]) -> pa.Table:
    """A table of records whose attributes are named as the columns. Enums become their text, mappings MAPs; a lone
    surrogate, which no UTF-8 file can hold, becomes U+FFFD. `answer_empty` follows from the others."""
    fields = [field for field in schema if field.name != ANSWER_EMPTY]
    columns = _columns([field.name for field in fields], rows) if rows else [()] * len(fields)
    return table_of(
        {field.name: _column(values, field.type) for field, values in zip(fields, columns, strict=True)}, schema
    )


def table_of(arrays: Mapping[str, pa.Array], schema: pa.Schema) -> pa.Table:
    """A table of columns by name; `answer_empty` follows from the others."""
    if ANSWER_EMPTY in schema.names:
        arrays = {**arrays, ANSWER_EMPTY: _answer_empty(arrays["text"], arrays["tool_calls"])}
    return pa.Table.from_arrays([arrays[name] for name in schema.names], schema=schema)


ANSWER_EMPTY = "answer_empty"


def _answer_empty(text: pa.Array, tool_calls: pa.Array) -> pa.Array:
    """Whether there is neither a text to read nor a tool call."""
    blank = pc.or_kleene(pc.is_null(text), pc.match_substring_regex(text, rf"\A{BLANK}\z"))
    return pc.and_(blank, pc.is_in(tool_calls, value_set=pa.array([None, "[]"], pa.string())))


def _columns(names: Sequence[str], rows: Sequence[Any]) -> list[tuple[Any, ...]]:
    first = rows[0]
    if not isinstance(first, msgspec.Struct):
        return list(zip(*map(attrgetter(*names), rows), strict=True))
    by_name = dict(zip(first.__struct_fields__, zip(*map(astuple, rows), strict=True), strict=True))
    return [by_name[name] for name in names]


def with_missing(table: pa.Table, dataset: Dataset, names: list[str]) -> pa.Table:
    """These columns of a table of a file; one that the file does not have is null."""
    for name in names:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, dataset.schema.field(name).type))
    return table.select(names)


def conformed(table: pa.Table, dataset: Dataset) -> pa.Table:
    """A table of an older file in today's columns."""
    if table.schema.equals(dataset.schema):
        return table
    table = with_missing(table, dataset, dataset.schema.names).cast(dataset.schema)
    return table_of(dict(zip(table.column_names, table.columns, strict=True)), dataset.schema)


def holds_failures(exchanges: pa.Table) -> bool:
    """Whether a request failed in one of these rows of `exchanges`."""
    failed = pa.array(sorted(FAILED), pa.string())
    return bool(pc.any(pc.is_in(exchanges["outcome"], value_set=failed)).as_py())


def _is_constant(values: Sequence[Any]) -> bool:
    """Whether they are the same text, or none is one: in a batch of exchanges half the columns are like that."""
    first = values[0]
    return (first is None or isinstance(first, str)) and values[-1] == first and values.count(first) == len(values)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_INSTANTS = frozenset({datetime, type(None)})
"""no classes derived of it: pandas's has nanoseconds"""


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if len(values) > 1 and _is_constant(values):
        return (
            pa.nulls(len(values), kind) if values[0] is None else pa.repeat(_column(values[:1], kind)[0], len(values))
        )
    if pa.types.is_map(kind):
        values = [None if value is None else list(value.items()) for value in values]
    elif kind == _TIME and _INSTANTS.issuperset(map(type, values)):
        with suppress(TypeError):  # one without a time zone
            # Arrow asks each instant for its offset, in Python: five times as long as the subtraction.
            since = [None if value is None else value - _EPOCH for value in values]
            return pa.array(since, pa.duration("us")).view(kind)
    try:
        return pa.array(values, kind)
    except (UnicodeEncodeError, pa.ArrowInvalid):
        if not pa.types.is_string(kind):
            raise
        return pa.array([None if value is None else well_formed(value) for value in values], kind)
