"""What a client may send and an upstream may answer: each case's bytes through the collector equal those of a direct call."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import brotli
import zstandard
from collector_harness import CHAT, MESSAGES, Received, chat_answer, chat_request, chat_stream, chunked, plain

SSE = b"Content-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n"
JSON = b"Content-Type: application/json\r\n"


@dataclass(frozen=True)
class Case:
    name: str
    request: bytes
    """without its head's end marker of the case: built by `post`, `get`"""
    answer: tuple[bytes | float | str, ...]
    """the upstream's steps"""


def post(name: str, body: bytes, *, path: str = CHAT, headers: bytes = b"", framing: bytes | None = None) -> bytes:
    length = b"Content-Length: %d\r\n" % len(body) if framing is None else framing
    return (
        b"POST %b HTTP/1.1\r\nHost: localhost:8400\r\nX-Case: %b\r\nContent-Type: application/json\r\n%b%b"
        b"Connection: close\r\n\r\n%b" % (path.encode(), name.encode(), headers, length, body)
    )


def bare(method: str, name: str, path: str, *, version: bytes = b"1.1", headers: bytes = b"") -> bytes:
    return b"%b %b HTTP/%b\r\nHost: localhost\r\nX-Case: %b\r\n%bConnection: close\r\n\r\n" % (
        method.encode(),
        path.encode(),
        version,
        name.encode(),
        headers,
    )


def encoded(body: bytes, encoding: str, data: bytes) -> tuple[bytes, ...]:
    return (plain(data, headers=JSON + b"Content-Encoding: %b\r\nVary: Accept-Encoding\r\n" % encoding.encode()),)


def _events(*events: dict[str, object]) -> list[bytes]:
    return [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode() for event in events]


TOOL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln \\ud83d"}'}}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}]
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40).decode()
ANTHROPIC_STREAM = _events(
    {
        "type": "message_start",
        "message": {"id": "m", "type": "message", "usage": {"input_tokens": 3, "output_tokens": 1}},
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "…"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "ping"},
    {
        "type": "content_block_start",
        "index": 1,
        "content_block": {"type": "tool_use", "id": "t1", "name": "a", "input": {}},
    },
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"a": '}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "1}"}},
    {"type": "content_block_stop", "index": 1},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
    {"type": "message_stop"},
)
RESPONSES_STREAM = _events(
    {"type": "response.created", "sequence_number": 0, "response": {"id": "r"}},
    {"type": "response.output_text.delta", "sequence_number": 1, "item_id": "i", "output_index": 0, "delta": "Hi"},
    {"type": "response.completed", "sequence_number": 2, "response": {"id": "r", "usage": {"input_tokens": 1}}},
)


def _chunked_body(*pieces: bytes, extension: bytes = b"", trailer: bytes = b"") -> bytes:
    return b"".join(b"%x%b\r\n%b\r\n" % (len(p), extension, p) for p in pieces) + b"0\r\n" + trailer + b"\r\n"


def cases(*, large: bool = False) -> Iterator[Case]:
    """All cases; the ones of tens of megabytes only with `large`."""
    hello = plain(chat_answer())
    ask = chat_request()

    def case(name: str, request: bytes, *answer: bytes | float | str) -> Case:
        return Case(name, request, answer or (hello,))

    # requests
    yield case("plain", post("plain", ask))
    yield case("empty body", post("empty body", b""))
    yield case("one byte", post("one byte", b"x"))
    yield case("not json", post("not json", b"{not json"))
    yield case("not utf-8", post("not utf-8", b"\xff\xfe\x00" * 50))
    yield case("100 kB", post("100 kB", chat_request("a" * 100_000)))
    yield case("1 MB", post("1 MB", chat_request("é" * 500_000)))
    yield case("query", post("query", ask, path=CHAT + "?api-version=1&x=%20"))
    yield case("other path", post("other path", ask, path="/v1/embeddings"))
    yield case("odd path", post("odd path", ask, path="/v1//x/../y;z?a=b?c#"[:-1]))
    yield case("header case", post("header case", ask, headers=b"X-ODD-case: 1\r\nx-odd-Case: 2\r\n"))
    yield case("header latin-1", post("header latin-1", ask, headers=b"X-Name: J\xfcrgen\r\n"))
    yield case(
        "chunked request", post("chunked request", _chunked_body(ask), framing=b"Transfer-Encoding: chunked\r\n")
    )
    pieces = [ask[i : i + 7] for i in range(0, len(ask), 7)]
    yield case("many chunks", post("many chunks", _chunked_body(*pieces), framing=b"Transfer-Encoding: chunked\r\n"))
    extended = _chunked_body(ask, extension=b";a=b", trailer=b"X-T: 1\r\n")
    yield case("chunk extension", post("chunk extension", extended, framing=b"Transfer-Encoding: Chunked\r\n"))
    yield case("gzip request", post("gzip request", gzip.compress(ask), headers=b"Content-Encoding: gzip\r\n"))
    yield case("get", bare("GET", "get", "/v1/models"))
    yield case("get collected path", bare("GET", "get collected path", CHAT))
    yield case("delete", bare("DELETE", "delete", "/v1/files/1"))
    yield case("head", bare("HEAD", "head", "/v1/models"), hello[: hello.index(b"\r\n\r\n") + 4])
    yield case(
        "options",
        bare("OPTIONS", "options", "/v1/models"),
        plain(b"", status="204 No Content", headers=b"Allow: GET\r\n"),
    )
    yield case("http/1.0", bare("GET", "http/1.0", "/v1/models", version=b"1.0"))
    yield case(
        "image",
        post("image", chat_request([{"type": "image_url", "image_url": {"url": "data:image/png;base64," + PNG}}])),
    )  # type: ignore[arg-type]
    yield case("tools", post("tools", chat_request(tools=TOOLS)), plain(chat_answer(tool_calls=[TOOL, TOOL])))
    yield case(
        "json mode",
        post("json mode", chat_request(response_format={"type": "json_object"})),
        plain(chat_answer('{"a": 1}')),
    )
    yield case(
        "messages", post("messages", ask, path=MESSAGES, headers=b"anthropic-version: 2023-06-01\r\nx-api-key: k\r\n")
    )
    yield case("responses", post("responses", ask, path="/v1/responses"))
    yield case(
        "cookie",
        post("cookie", ask, headers=b"Cookie: a=b\r\n"),
        plain(b"{}", headers=JSON + b"Set-Cookie: a=b\r\nSet-Cookie: c=d\r\n"),
    )

    # answers
    body = chat_answer("ä" * 300)
    for status in (
        "201 Created",
        "400 Bad Request",
        "401 Unauthorized",
        "404 Not Found",
        "413 Too Large",
        "422 U",
        "429 Slow down",
        "500 Oops",
        "503 Busy",
        "529 Overloaded",
        "299 Odd",
    ):
        yield case(status, post(status, ask), plain(b'{"error": {"message": "x"}}', status=status))
    yield case("204", post("204", ask), b"HTTP/1.1 204 No Content\r\nX-A: b\r\n\r\n")
    yield case(
        "304", bare("GET", "304", "/v1/models"), b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 99\r\n\r\n"
    )
    yield case("no reason phrase", post("no reason phrase", ask), b"HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n{}")
    yield case("gzip", post("gzip", ask), *encoded(body, "gzip", gzip.compress(body)))
    yield case("deflate", post("deflate", ask), *encoded(body, "deflate", zlib.compress(body)))
    yield case("br", post("br", ask), *encoded(body, "br", brotli.compress(body)))
    yield case("zstd", post("zstd", ask), *encoded(body, "zstd", zstandard.compress(body)))
    yield case("answer 0 bytes", post("answer 0 bytes", ask), plain(b""))
    yield case("answer 1 byte", post("answer 1 byte", ask), plain(b"x"))
    yield case("answer 3 MB", post("answer 3 MB", ask), plain(bytes(range(256)) * 12_000))
    yield case("answer chunked", post("answer chunked", ask), *chunked([body[:10], body[10:]], headers=JSON))
    yield case("answer chunked at once", post("answer chunked at once", ask), b"".join(chunked([body], headers=JSON)))
    ext = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n2;a=b\r\nhi\r\n0\r\nX-T: 1\r\n\r\n"
    yield case("extension and trailer", post("extension and trailer", ask), ext)
    yield case(
        "answer until close",
        post("answer until close", ask),
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nabc",
        0.02,
        b"def",
        "close",
    )
    yield case("answer http/1.0", post("answer http/1.0", ask), b"HTTP/1.1 200 OK\r\nX: y\r\n\r\n" + body, "close")
    split = plain(body)
    yield case("head in pieces", post("head in pieces", ask), *(split[i : i + 9] for i in range(0, 90, 9)), split[90:])
    yield case(
        "100 and 103 first",
        post("100 and 103 first", ask),
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
        plain(b"{}"),
    )
    yield case(
        "many headers",
        post("many headers", ask),
        plain(b"{}", headers=b"".join(b"X-%d: %d\r\n" % (i, i) for i in range(90))),
    )
    yield case(
        "rate headers",
        post("rate headers", ask),
        plain(b"{}", headers=JSON + b"x-ratelimit-remaining-requests: 9\r\nretry-after: 1\r\n"),
    )
    yield case("odd spacing", post("odd spacing", ask), plain(b"{}", headers=b"X-A:b\r\nX-B:   c  \r\nX-C:\r\n"))
    yield case(
        "cut length", post("cut length", ask), b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc", 0.02, "close"
    )
    yield case("cut chunked", post("cut chunked", ask), *chunked([b"abc"])[:-1], 0.02, "close")
    yield case(
        "cut in chunk",
        post("cut in chunk", ask),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nff\r\nabc",
        0.02,
        "close",
    )

    # streams
    words = chat_stream(["Hel", "lo", " wörld", "🙂"])
    yield case("stream", post("stream", chat_request(stream=True)), *chunked(words, headers=SSE))
    yield case(
        "stream at once", post("stream at once", chat_request(stream=True)), b"".join(chunked(words, headers=SSE))
    )
    yield case(
        "stream with pauses",
        post("stream with pauses", chat_request(stream=True)),
        *(s for piece in chunked(words) for s in (piece, 0.005)),
    )
    joined = b"".join(words)
    yield case(
        "events split",
        post("events split", chat_request(stream=True)),
        *chunked([joined[i : i + 11] for i in range(0, len(joined), 11)]),
    )
    yield case(
        "one-byte chunks", post("one-byte chunks", chat_request(stream=True)), *chunked([bytes([b]) for b in joined])
    )
    framed = b"".join(chunked(words))
    yield case(
        "framing split",
        post("framing split", chat_request(stream=True)),
        *(framed[i : i + 5] for i in range(0, len(framed), 5)),
    )
    yield case(
        "crlf events",
        post("crlf events", chat_request(stream=True)),
        *chunked([b"data: a\r\n\r\n", b": comment\r\n\r\ndata: b\r\n\r\n"]),
    )
    yield case(
        "stream until close",
        post("stream until close", chat_request(stream=True)),
        b"HTTP/1.1 200 OK\r\n" + SSE + b"\r\n",
        *words,
        "close",
    )
    yield case(
        "stream gzip",
        post("stream gzip", chat_request(stream=True)),
        *chunked([gzip.compress(joined)[:50], gzip.compress(joined)[50:]], headers=SSE + b"Content-Encoding: gzip\r\n"),
    )
    yield case(
        "anthropic stream",
        post("anthropic stream", chat_request(stream=True), path=MESSAGES),
        *chunked(ANTHROPIC_STREAM),
    )
    yield case(
        "anthropic error event",
        post("anthropic error event", chat_request(stream=True), path=MESSAGES),
        *chunked([*ANTHROPIC_STREAM[:3], *_events({"type": "error", "error": {"type": "overloaded_error"}})]),
    )
    yield case(
        "responses stream",
        post("responses stream", chat_request(stream=True), path="/v1/responses"),
        *chunked(RESPONSES_STREAM),
    )
    yield case(
        "parallel tools stream",
        post("parallel tools stream", chat_request(stream=True)),
        *chunked(
            [
                b"data: "
                + json.dumps(
                    {
                        "choices": [
                            {"index": 0, "delta": {"tool_calls": [{"index": i % 2, "function": {"arguments": a}}]}}
                        ]
                    }
                ).encode()
                + b"\n\n"
                for i, a in enumerate(['{"a"', '{"b"', ": 1}", ": 2}"])
            ]
        ),
    )
    yield case(
        "usage chunk",
        post("usage chunk", chat_request(stream=True, stream_options={"include_usage": True})),
        *chunked([*words[:-1], b'data: {"choices": [], "usage": {"prompt_tokens": 1}}\n\n', words[-1]]),
    )
    yield case(
        "stream 5000 events",
        post("stream 5000 events", chat_request(stream=True)),
        *chunked(chat_stream([f"w{i}" for i in range(1000)]) * 5),
    )
    if large:
        yield case("20 MB context", post("20 MB context", chat_request("lorem ipsum " * 1_700_000)))
        yield case("50 MB request", post("50 MB request", b"\x00\xff" * 25_000_000))
        yield case("50 MB answer", post("50 MB answer", ask), plain(b"0123456789" * 5_000_000))
        yield case("50 MB chunked", post("50 MB chunked", ask), *chunked([b"0123456789" * 100_000] * 50))


def script_of(found: list[Case]):  # type: ignore[no-untyped-def]
    """The upstream's script: the case is named by a header."""
    by_name = {case.name.encode(): case for case in found}

    def script(request: Received) -> tuple[bytes | float | str, ...]:
        return by_name[request.header("x-case") or b""].answer

    return script


def comparable(answer: bytes) -> bytes:
    """An answer without what a proxy must change: Connection, and the collector's own headers."""
    interim = b""
    while answer.startswith(b"HTTP/1.1 1"):
        head, _, answer = answer.partition(b"\r\n\r\n")
        interim += head + b"\r\n\r\n"
    head, separator, body = answer.partition(b"\r\n\r\n")
    dropped = (b"connection:", b"x-evalpipe-", b"trailer:")
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(dropped)]
    return interim + b"\r\n".join(lines) + separator + body
