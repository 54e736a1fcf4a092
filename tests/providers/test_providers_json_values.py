"""Untrusted JSON: read as the standard library reads it, but for what no store could hold."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.providers.json_values import MalformedJSONError, as_count, dump, parse, parsed_or_raw

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(values, st.booleans())
def test_reads_what_the_standard_library_wrote(value: Any, ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert parse(text) == parse(text.encode()) == json.loads(text)
    assert parse(dump(value)) == value


@given(
    st.lists(
        st.sampled_from(["\\ud83d", "\\ude00", "\\uD83D", "\\uDE00", "a", "\\n", "\\\\", "\\u0041", "é"]), max_size=8
    )
)
def test_lone_surrogates_and_only_they_are_replaced(pieces: list[str]) -> None:
    text = '{"k' + "".join(pieces) + '": ["' + "".join(pieces) + '"]}'
    [(key, [value])] = parse(text).items()
    value.encode()
    [(raw_key, [raw])] = json.loads(text).items()
    assert len(value) == len(raw)
    assert all(
        a == b or (a == "\ufffd" and "\ud800" <= b <= "\udfff")
        for a, b in zip(key + value, raw_key + raw, strict=False)
    )


@pytest.mark.parametrize("text", ["", "{", "NaN", "[Infinity]", "'a'", '{"a":1,}', "[" * 100_000, "1 2", "\ufeff{}"])
def test_what_is_no_json(text: str) -> None:
    with pytest.raises(MalformedJSONError):
        parse(text)


def test_numbers() -> None:
    assert parse("[1e999, -1e999, 1.5]") == [None, None, 1.5]
    assert parse("123456789012345678901234567890") == 123456789012345678901234567890
    with pytest.raises(MalformedJSONError):
        parse("9" * 5000)  # Python refuses to read longer ones
    with pytest.raises(ValueError, match="JSON compliant"):
        dump(math.nan)


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (3, 3),
        (3.0, 3),
        (0, 0),
        (-1, None),
        (True, None),
        ("3", None),
        (3.5, None),
        (None, None),
        (2**63, None),
        (math.inf, None),
    ],
)
def test_counts(value: Any, count: int | None) -> None:
    assert as_count(value) == count


def test_tool_arguments() -> None:
    assert parsed_or_raw('{"a": 1}') == {"a": 1}
    assert parsed_or_raw(" ") == {}
    assert parsed_or_raw("{a: \ud800") == "{a: \ufffd"
