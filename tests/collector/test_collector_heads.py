"""Request heads that are remembered: what was worked out for one is never said of another."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.collector.forward_headers import HeaderCache
from evalpipe.collector.settings import Origin
from evalpipe.http1.headers import (
    CHUNKED,
    HttpError,
    check_response,
    end_of_bare_head,
    read_response_headers,
    response_length,
    with_crlf,
)

ORIGIN = Origin.of("http://arm.example:81/base")


def heads() -> HeaderCache:
    return HeaderCache(ORIGIN, b"")


def passed(known: HeaderCache, head: bytes) -> bytes:
    facts, _, length_line = known.read(head)
    return facts.before + length_line + facts.after


def test_the_length_stands_where_it_stood_and_is_read_anew() -> None:
    known = heads()
    for length in (12, 7, 0, 123456):
        head = b"POST /v1/messages HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nX-B: c\r\n\r\n" % length
        facts, found, _ = known.read(head)
        assert (facts.endpoint, found) == ("messages", length)
        assert passed(known, head) == (
            b"POST /base/v1/messages HTTP/1.1\r\nHost: arm.example:81\r\nContent-Length: %d\r\nX-B: c\r\n\r\n" % length
        )


@pytest.mark.parametrize(
    "rest",
    [
        b"Content-Length: 4\r\n",
        b"content-length: 3\r\n",
        b"CONTENT-LENGTH: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b" 3\r\n",
        b"Content-Length : 3\r\n",
        b"Host: b\r\n",
    ],
)
def test_a_remembered_head_opens_no_door_for_a_second_length(rest: bytes) -> None:
    known = heads()
    plain = b"POST /v1/messages HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n"
    for _ in range(2):
        assert known.read(plain + b"\r\n")[1] == 3
        with pytest.raises(HttpError):
            known.read(plain + rest + b"\r\n")
        with pytest.raises(HttpError):
            known.read(plain.replace(b"Host: a\r\n", b"Host: a\r\n" + rest.replace(b" 3", b" 9")) + b"\r\n")


@pytest.mark.parametrize(
    "spelling", [b"CONTENT-length: 5", b"Content-Length:5", b"content-length:\t5 ", b"Content-Length: 005"]
)
def test_other_spellings_of_the_length(spelling: bytes) -> None:
    known = heads()
    for _ in range(2):
        head = b"POST /x HTTP/1.1\r\nHost: a\r\n" + spelling + b"\r\n\r\n"
        assert known.read(head)[1] == 5
        assert passed(known, head).endswith(b"Host: arm.example:81\r\n" + spelling + b"\r\n\r\n")


def test_a_connection_header_drops_no_length_and_no_host() -> None:
    head = (
        b"POST /x HTTP/1.1\r\nHost: a\r\nConnection: content-length, host, x-c\r\nX-C: d\r\nContent-Length: 5\r\n\r\n"
    )
    assert passed(heads(), head) == b"POST /base/x HTTP/1.1\r\nHost: arm.example:81\r\nContent-Length: 5\r\n\r\n"


def test_chunked_and_without_a_body() -> None:
    known = heads()
    for _ in range(2):
        assert known.read(b"POST /x HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")[1] == CHUNKED
        assert known.read(b"POST /x HTTP/1.1\r\nHost: a\r\n\r\n")[1] == 0
        assert known.read(b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n")[0].method == b"GET"


_NAMES = st.sampled_from(
    [b"X-User", b"x-user", b"Accept", b"Content-Length", b"content-length", b"Connection", b"Expect"]
)
_VALUES = st.sampled_from([b"1", b"2", b"close", b"x-user", b"100-continue", b"a b"])


@given(st.lists(st.lists(st.tuples(_NAMES, _VALUES), max_size=4), min_size=1, max_size=12))
def test_a_memory_that_knows_other_heads_says_what_a_fresh_one_says(requests: list[list[tuple[bytes, bytes]]]) -> None:
    known = heads()
    for lines in requests:
        head = b"POST /v1/messages HTTP/1.1\r\nHost: a\r\n" + b"".join(b"%b: %b\r\n" % line for line in lines) + b"\r\n"
        told = []
        for reader in (known, heads(), known):
            try:
                facts, length, length_line = reader.read(head)
                told.append((facts.before + length_line + facts.after, length, facts.keep, facts.expects, facts.lines))
            except HttpError as error:
                told.append(error.status)
        assert told[0] == told[1] == told[2]


_ANSWER_LINES = st.sampled_from(
    [
        b"Content-Length: 5",
        b"content-length: 5",
        b"Content-Length: 6",
        b"Content-Length: +6",
        b"Transfer-Encoding: chunked",
        b"Transfer-Encoding: chunked, gzip",
        b"Connection: close",
        b"Connection: upgrade",
        b"Upgrade: h2c",
        b"X-Request-Id: 1",
        b"Content-Type: text/event-stream",
        b"Bad Name: 1",
        b" folded",
        b"no colon",
        b"X: a\0b",
        b"X: a\nb",
        b"",
    ]
)
_STATUS_LINES = st.sampled_from(
    [b"HTTP/1.1 200 OK", b"HTTP/1.0 200 OK", b"HTTP/1.1 204 ", b"HTTP/1.1 999 ?", b"HTTP/1.1 2OO OK", b"ICY 200 OK"]
)


@given(st.lists(st.tuples(_STATUS_LINES, st.lists(_ANSWER_LINES, max_size=5)), min_size=1, max_size=20))
def test_an_answer_of_known_lines_is_read_as_llhttp_reads_it(answers: list[tuple[bytes, list[bytes]]]) -> None:
    """Every head after the first ones is made of lines that were seen before."""
    for first, lines in answers + answers:
        head = b"\r\n".join([first, *lines, b"", b""])
        if b"\r\n\r\n" in head[:-4]:  # the head would end there
            continue
        told: list[object] = []
        try:
            answer = read_response_headers(head)
            if answer.is_repaired:  # see the next tests
                continue
            told.append((answer.status, [line.raw for line in answer.lines], answer.first))
        except HttpError as error:
            told.append(str(error))
        try:
            told.append((check_response(head), lines, first))
        except HttpError as error:
            told.append(str(error))
        assert told[0] == told[1]


@pytest.mark.parametrize(
    ("lines", "length", "kept"),
    [
        (b"Content-Length: 5\r\nContent-Length: 5\r\n", 5, b"Content-Length: 5\r\n"),
        (b"Content-Length: 5, 5\r\n", 5, b"Content-Length: 5\r\n"),
        (b"content-length:5\r\nX-A: b\r\nCONTENT-LENGTH: 5\r\n", 5, b"Content-Length: 5\r\nX-A: b\r\n"),
        (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", CHUNKED, b"Transfer-Encoding: chunked\r\n"),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", CHUNKED, b"Transfer-Encoding: chunked\r\n"),
    ],
)
def test_an_answers_equal_lengths_are_one_and_a_length_beside_chunked_is_none(
    lines: bytes, length: int, kept: bytes
) -> None:
    """RFC 9110 8.6 and RFC 9112 6.3; the OpenAI SDK reads such answers from the server itself."""
    for _ in range(2):  # known lines open no other way
        answer = read_response_headers(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n")
        assert answer.raw == b"HTTP/1.1 200 OK\r\n" + kept + b"\r\n"
        assert response_length(answer, head_request=False) == length
        assert answer.is_repaired


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5, 6\r\n",
        b"Content-Length: 5\r\nContent-Length: 05\r\n",
        b"Content-Length: -5\r\nContent-Length: -5\r\n",
        b"Content-Length: 5 5\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: gzip\r\n",
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 5\r\n X-Folded: a\r\n",
    ],
)
def test_what_two_readers_could_read_in_two_ways_is_no_answer(lines: bytes) -> None:
    for _ in range(2):
        with pytest.raises(HttpError):
            read_response_headers(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n")


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\nContent-Type: a/b\nContent-Length: 5\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Type: a/b\nContent-Length: 5\r\n\n",
        b"HTTP/1.1 200 OK\nContent-Type: a/b\r\nContent-Length: 5\n\r\n",
    ],
)
def test_a_head_of_bare_line_feeds_ends_where_it_ends(head: bytes) -> None:
    assert end_of_bare_head(head + b"a\r\n\r\nb") == len(head)
    assert not any(end_of_bare_head(head[:end]) for end in range(len(head)))
    answer = read_response_headers(with_crlf(head))
    assert answer.raw == b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 5\r\n\r\n"
    assert response_length(answer, head_request=False) == 5
