"""The spool's records survive a round trip with any bytes; untrusted text becomes storable and printable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.spool.format import (
    Body,
    FeedbackRecord,
    RequestRecord,
    ResponseRecord,
    ShadowRecord,
    read_record,
    render_record,
)
from evalpipe.text import cut_middle, printable, well_formed


@given(st.binary(), st.text(st.characters(codec="utf-8")), st.floats(0, 4e9))
def test_a_record_survives_its_line(data: bytes, text: str, at: float) -> None:
    records = [
        RequestRecord(request_id=text, experiment="e", mode="shadow", arm="control", received_at=at, body=Body.of(data)),
        ResponseRecord(
            request_id="r", experiment="e", arm="treatment", role="shadow", provider="openai", endpoint="messages",
            started_at=at, ended="cut", latency_ms=at, marks=[(1, 0.5)], body=Body.of(data), headers={"a": text},
        ),
        ShadowRecord(request_id="r", experiment="e", status="shed", at=at, reason=text),
        FeedbackRecord(request_id="r", experiment="e", arm=None, rating=0.5, at=at, comment=text),
    ]  # fmt: skip
    for record in records:
        line = render_record(record)
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        assert read_record(line) == record
    assert records[0].body.data == data  # type: ignore[union-attr]


@given(st.binary(max_size=200))
def test_a_broken_line_is_a_value_error(line: bytes) -> None:
    try:
        record = read_record(line)
    except ValueError:
        return
    assert render_record(record)


def test_lone_surrogates_become_replacement_characters() -> None:
    assert well_formed("a\ud800b") == "a\ufffdb"
    assert well_formed("😀") == "😀"


def test_a_terminal_gets_no_escape_sequence() -> None:
    assert printable("\x1b[31mred\u202eevil\ttab\n") == "\ufffd[31mred\ufffdevil\ttab\n"


@given(st.text(), st.integers(1, 50))
def test_cutting_keeps_both_ends_and_counts(text: str, limit: int) -> None:
    cut, n_cut = cut_middle(text, limit)
    assert n_cut == max(0, len(text) - limit)
    if n_cut == 0:
        assert cut == text
    else:
        assert cut.startswith(text[: (limit + 1) // 2])
        assert f"{n_cut:,} characters cut" in cut


def test_cutting_five_megabytes_keeps_the_limit() -> None:
    cut, n_cut = cut_middle("x" * 5_000_000, 1000)
    assert n_cut == 4_999_000
    assert len(cut) < 1100


def test_read_record_names_what_is_missing() -> None:
    with pytest.raises(ValueError, match="request_id"):
        read_record(b'{"record": "shadow", "experiment": "e"}')
