"""The SSE parser against the standard's own rules, whatever way the bytes are split."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from evalpipe.providers.sse import SseParser, render_event


def events(body: bytes, cuts: list[int] | None = None) -> list[tuple[str, str]]:
    parser, found, start = SseParser(), [], 0
    for cut in [*sorted(cuts or []), len(body)]:
        found += parser.feed(body[start : max(cut, start)])
        start = max(cut, start)
    return [(event.event, event.data) for event in found]


def test_the_examples_of_the_standard() -> None:
    assert events(b"data: YHOO\ndata: +2\ndata: 10\n\n") == [("message", "YHOO\n+2\n10")]
    assert events(b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n") == [
        ("message", "first event"),
        ("message", "second event"),
        ("message", " third event"),
    ]
    # Two events of one and two empty lines; the last one is unfinished.
    assert events(b"data\n\ndata\ndata\n\ndata:") == [("message", ""), ("message", "\n")]
    assert events(b"data:test\n\ndata: test\n\n") == [("message", "test")] * 2


def test_event_names_last_one_event_and_need_data() -> None:
    assert events(b"event: ping\n\nevent: a\ndata: 1\n\ndata: 2\n\n") == [("a", "1"), ("message", "2")]


def test_byte_order_mark_at_the_start_only() -> None:
    assert events(b"\xef\xbb\xbfdata: 1\n\n\xef\xbb\xbfdata: 2\n\n") == [("message", "1")]


def test_end_offset_counts_bytes_to_the_blank_line() -> None:
    body = "data: é\n\ndata: 2\r\n\r\n".encode()
    assert [event.end_offset for event in SseParser().feed(body)] == [10, len(body) - 1]  # its CR ends the line already


@given(
    st.lists(
        st.sampled_from(
            [
                "data: x",
                "data:é\u2028",
                "event: e",
                ": c",
                "",
                "",
                "id: 1",
                "data",
                "retry: 5",
                "da\N{GRINNING FACE}ta: 1",
            ]
        ),
        max_size=30,
    ),
    st.sampled_from(["\n", "\r", "\r\n"]),
    st.lists(st.integers(0, 400), max_size=12),
)
def test_line_ends_and_splits_change_nothing(lines: list[str], end: str, cuts: list[int]) -> None:
    expected = events("".join(line + "\n" for line in lines).encode())
    body = "".join(line + end for line in lines).encode()
    assert events(body, [min(cut, len(body)) for cut in cuts]) == expected
    assert events(body, list(range(len(body)))) == expected


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=8))
def test_any_bytes_in_any_pieces(body: bytes, cuts: list[int]) -> None:
    assert events(body, [min(cut, len(body)) for cut in cuts]) == events(body)


def test_ten_megabytes_of_carriage_returns_are_linear() -> None:
    body = b"data: x\r\r" * 60_000
    assert len(SseParser().feed(body)) == 60_000


def test_rendered_events_parse_back() -> None:
    assert events(render_event('{"a":"é"}', "x") + render_event("[DONE]")) == [
        ("x", '{"a":"é"}'),
        ("message", "[DONE]"),
    ]
