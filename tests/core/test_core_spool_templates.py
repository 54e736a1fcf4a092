"""A record rendered from a template is the record."""

from __future__ import annotations

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.spool.format import Body, RequestRecord, ResponseRecord, read_record, render_record
from evalpipe.spool.writer import RequestTemplate, ResponseTemplate

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
BYTES = st.binary(max_size=40) | TEXT.map(str.encode)
N_DROPPED = st.just(0) | st.integers(1, 9)
SECONDS = st.floats(0, 4e9)
HEADERS = st.dictionaries(TEXT, TEXT, max_size=3)


@given(TEXT, HEADERS, BYTES, N_DROPPED, SECONDS, st.booleans(), st.none() | TEXT)
def test_requests(
    target: str, headers: dict[str, str], body: bytes, n_dropped: int, at: float, eligible: bool, unit: str | None
) -> None:
    record = RequestRecord(
        request_id="0a1c",
        experiment=target,
        mode="shadow",
        arm="control",
        received_at=at,
        unit_id=unit,
        endpoint="messages",
        target=target,
        headers=headers,
        body=Body.of(body, n_dropped_bytes=n_dropped) if body or n_dropped else Body(),
        eligible=eligible,
    )
    other = msgspec.structs.replace(record, request_id="ff2c", received_at=1.5, body=Body(text="other"))
    pieces: list[bytes] = []
    RequestTemplate(other).add(pieces, record.request_id, at, body, n_dropped)
    line = b"".join(pieces)
    assert line.endswith(b"}\n") and line.count(b"\n") == 1 and line.startswith(b'{"record":"request"')
    assert read_record(line) == record == read_record(render_record(record))


@given(
    HEADERS,
    BYTES,
    st.none() | BYTES.filter(bool),
    SECONDS,
    st.none() | SECONDS,
    st.lists(st.tuples(st.integers(0, 9), SECONDS), max_size=3),
    TEXT,
)
def test_responses(
    headers: dict[str, str],
    body: bytes,
    sent: bytes | None,
    ms: float,
    first: float | None,
    marks: list[tuple[int, float]],
    name: str,
) -> None:
    record = ResponseRecord(
        request_id="0a1c",
        experiment=name,
        arm="control",
        role="served",
        provider="openai",
        endpoint="chat.completions",
        started_at=ms,
        ended="complete",
        latency_ms=ms,
        first_byte_ms=first,
        marks=marks,
        status=200,
        headers=headers,
        body=Body.of(body) if body else Body(),
        sent=Body.of(sent) if sent else None,
    )
    other = msgspec.structs.replace(
        record,
        request_id="ff",
        started_at=2.5,
        headers={"a": "b"},
        status=404,
        marks=[(1, 2.0)],
        sent=Body(text="other"),
    )
    pieces: list[bytes] = []
    ResponseTemplate(other).add(
        pieces, "0a1c", ms, ms, first, marks, 200, msgspec.json.encode(headers), body, 0, sent or b""
    )
    line = b"".join(pieces)
    assert line.startswith(b'{"record":"response"') and line.count(b"\n") == 1
    assert read_record(line) == record
