"""`stream_usage = "inject"` over real HTTP: hidden in every shape, and taken back where a server refuses it."""

from __future__ import annotations

import gzip
import io
import json
import socket
from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest
from collector_harness import (
    CHAT,
    RawUpstream,
    Received,
    Running,
    chat_request,
    chat_stream,
    chunked,
    eventually,
    exchange,
    plain,
)

from evalpipe.store.query import open_store
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import open_workspace

USAGE = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
INJECT = 'stream_usage = "inject"'


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o", "choices": [choice], **more}


def events(*chunks: dict[str, Any], end: str = "\n\n", done: bool = True) -> list[bytes]:
    pieces = [f"data: {json.dumps(value)}{end}".encode() for value in chunks]
    return [*pieces, f"data: [DONE]{end}".encode()] if done else pieces


HEL, LO, STOP = chunk({"content": "Hel"}), chunk({"content": "lo"}), chunk({}, "stop")
ENDING = {**chunk({}), "choices": [], "usage": USAGE}
AZURE = {
    "choices": [],
    "created": 0,
    "id": "",
    "model": "",
    "object": "",
    "prompt_filter_results": [{"prompt_index": 0}],
}
SPACED = b'data: {"id":"x", "choices":[{"index":0,"delta":{"content":"Hel"}}] , "usage" : {"a": {"b":[1,"}\\""]}} }\n\n'

SHAPES: dict[str, tuple[list[bytes], list[bytes]]] = {
    # name: (what the server sends with include_usage, what it sends without)
    "its own last chunk": (events(chunk({"content": "Hel"}, usage=None), STOP, ENDING), events(HEL, STOP)),
    "in a chunk with content": (
        events(HEL, chunk({"content": "lo"}, "stop", usage=USAGE)),
        events(HEL, chunk({"content": "lo"}, "stop")),
    ),
    "in every chunk": (
        events(chunk({"content": "Hel"}, usage=USAGE), chunk({}, "stop", usage=USAGE), ENDING),
        events(HEL, STOP),
    ),
    "first in its chunk": (events({"usage": None, **HEL}, {"usage": USAGE, **STOP}), events(HEL, STOP)),
    "a chunk without choices": (
        events(HEL, STOP, {k: v for k, v in ENDING.items() if k != "choices"}),
        events(HEL, STOP),
    ),
    "a chunk with null choices": (events(HEL, STOP, {**ENDING, "choices": None}), events(HEL, STOP)),
    "in a choice": (
        events(HEL, {**STOP, "choices": [{**STOP["choices"][0], "usage": USAGE}]}),
        events(HEL, {**STOP, "choices": [STOP["choices"][0]]}),
    ),
    "in x_groq": (
        events(HEL, {**STOP, "x_groq": {"id": "r", "usage": USAGE}}),
        events(HEL, {**STOP, "x_groq": {"id": "r"}}),
    ),
    "with obfuscation": (events(HEL, STOP, {**ENDING, "obfuscation": "abc"}), events(HEL, STOP)),
    "Azure's first chunk": (events(AZURE, HEL, STOP, ENDING), events(AZURE, HEL, STOP)),
    "an error beside the usage": (
        events(HEL, {"error": {"message": "no"}, "usage": USAGE}),
        events(HEL, {"error": {"message": "no"}}),
    ),
    "CRLF": (events(HEL, STOP, ENDING, end="\r\n\r\n"), events(HEL, STOP, end="\r\n\r\n")),
    "CR": (events(HEL, STOP, ENDING, end="\r\r"), events(HEL, STOP, end="\r\r")),
    "mixed line ends": (events(HEL, STOP, ENDING, end="\n\r\n"), events(HEL, STOP, end="\n\r\n")),
    "NaN in the chunk": (
        [b'data: {"choices":[{"index":0,"delta":{"content":"a"},"logprob":NaN}],"usage":null}\n\n', *events(ENDING)],
        [b'data: {"choices":[{"index":0,"delta":{"content":"a"},"logprob":NaN}]}\n\n', *events()],
    ),
    "data over two lines": (
        [b'event: x\ndata: {"choices":[{"index":0,"delta":{"content":"a"}}],\ndata:"usage":{"a":1}}\nid: 3\n\n'],
        [b'event: x\ndata: {"choices":[{"index":0,"delta":{"content":"a"}}]}\nid: 3\n\n'],
    ),
    "blanks and nesting": ([SPACED], [SPACED[: SPACED.index(b" , ")] + b" }\n\n"]),
    "the word in a text": (
        events(chunk({"content": 'say "usage": null, or {"usage": 1}'}), STOP, ENDING),
        events(chunk({"content": 'say "usage": null, or {"usage": 1}'}), STOP),
    ),
    "comments between": (
        [*events(HEL, STOP, done=False), b": ping\n\n", *events(ENDING)],
        [*events(HEL, STOP, done=False), b": ping\n\n", *events()],
    ),
    "an unfinished last event": ([*events(HEL, done=False), b'data: {"id'], [*events(HEL, done=False), b'data: {"id']),
}


def asks(request: Received) -> bool:
    return (json.loads(request.body).get("stream_options") or {}).get("include_usage") is True


def body_of(answer: bytes) -> bytes:
    """The payload of an answer, whatever its framing."""
    head, _, body = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return body
    payload = b""
    while body:
        size, _, body = body.partition(b"\r\n")
        payload += body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]
    return payload


def ask(port: int, *, version: bytes = b"1.1", **more: Any) -> bytes:
    body = chat_request(stream=True, **more)
    head = b"POST %b HTTP/%b\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n" % (
        CHAT.encode(),
        version,
    )
    return exchange(port, head + b"Content-Length: %d\r\n\r\n" % len(body) + body)


FRAMINGS: dict[str, Callable[[list[bytes]], list[bytes | float | str]]] = {
    "chunked": lambda pieces: list(chunked(pieces)),
    "byte by byte": lambda pieces: list(chunked([bytes([n]) for n in b"".join(pieces)])),
    "glued": lambda pieces: list(chunked([b"".join(pieces)])),
    "length": lambda pieces: [plain(b"".join(pieces), headers=b"Content-Type: text/event-stream\r\n")],
    "until close": lambda pieces: [b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n", *pieces, "close"],
    "gzip": lambda pieces: list(
        chunked(
            [gzip.compress(b"".join(pieces))],
            headers=b"Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\n",
        )
    ),
    "gzip with a length": lambda pieces: [
        plain(gzip.compress(b"".join(pieces)), headers=b"Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\n")
    ],
}


def test_injected_usage_is_hidden_in_every_shape_and_framing(
    upstream: Callable[..., RawUpstream], collector: Callable[..., Running]
) -> None:
    """The client gets what it would have got directly; a stream that came compressed although nobody asked comes plain."""
    now: dict[str, Any] = {}

    def script(request: Received) -> list[bytes | float | str]:
        pieces: list[bytes] = now["shape"][0 if asks(request) else 1]
        return FRAMINGS[now["framing"]](pieces)

    server = upstream(script)
    running = collector(server.url, collector=INJECT)
    for shape, (_, plainly) in SHAPES.items():
        for framing in FRAMINGS:
            for version in (b"1.1", b"1.0"):
                now.update(shape=SHAPES[shape], framing=framing)
                answer = ask(running.port, version=version)
                assert asks(server.received[-1])
                assert body_of(answer) == b"".join(plainly), (shape, framing, version, answer)
                assert b"content-encoding" not in answer.partition(b"\r\n\r\n")[0].lower()


def test_what_the_client_says_of_usage_stays(
    upstream: Callable[..., RawUpstream], collector: Callable[..., Running]
) -> None:
    server = upstream(lambda request: chunked(SHAPES["in every chunk"][0 if asks(request) else 1]))
    running = collector(server.url, collector=INJECT)
    for value in (True, False):
        options = {"include_usage": value}
        answer = ask(running.port, stream_options=options)
        assert json.loads(server.received[-1].body)["stream_options"] == options
        assert body_of(answer) == b"".join(SHAPES["in every chunk"][0 if value else 1])


def test_a_stream_is_passed_on_as_it_comes(
    upstream: Callable[..., RawUpstream], collector: Callable[..., Running]
) -> None:
    """Also a compressed one: the first words are there before the last ones are sent."""
    sink = io.BytesIO()
    packer = gzip.GzipFile(fileobj=sink, mode="wb")

    def packed(data: bytes, *, last: bool = False) -> bytes:
        packer.write(data)
        if last:
            packer.close()
        else:
            packer.flush()
        done = sink.getvalue()
        sink.seek(0)
        sink.truncate()
        return done

    first, rest = packed(events(HEL, done=False)[0]), packed(b"".join(events(STOP, ENDING)), last=True)
    headers = b"Content-Type: text/event-stream\r\nContent-Encoding: gzip\r\n"
    head, one, two, end = chunked([first, rest], headers=headers)
    server = upstream(lambda request: [head, one, 2.0, two, end])
    running = collector(server.url, collector=INJECT)
    body = chat_request(stream=True)
    with socket.create_connection(("127.0.0.1", running.port), timeout=1.5) as sock:
        sock.sendall(
            b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body)
        )
        seen = b""
        while b"Hel" not in seen:  # times out before the server goes on
            seen += sock.recv(1 << 16)


REFUSED = {
    "FastAPI, the field named": (
        "422 Unprocessable Entity",
        b'{"detail":[{"type":"extra_forbidden","loc":["body","stream_options"],"msg":"Extra inputs are not permitted"}]}',
    ),
    "OpenAI's shape": (
        "400 Bad Request",
        b'{"error":{"message":"Unrecognized request argument supplied: stream_options"}}',
    ),
    "include_usage alone": ("400 Bad Request", b'{"message":"unknown field: include_usage"}'),
    "the field not named": ("422 Unprocessable Entity", b'{"message":"Extra inputs are not permitted"}'),
}


@pytest.mark.parametrize(
    ("refusal", "ending"),
    [*((name, "length") for name in REFUSED), ("OpenAI's shape", "chunked"), ("the field not named", "close")],
)
def test_a_refusal_of_what_was_added_never_reaches_the_user(
    upstream: Callable[..., RawUpstream], collector: Callable[..., Running], refusal: str, ending: str
) -> None:
    """The user gets the answer of the request sent again without; the next one is not asked at all."""
    status, words = REFUSED[refusal]

    def refuse() -> list[bytes | float | str]:
        if ending == "length":
            return [plain(words, status=status)]
        head = b"HTTP/1.1 %b\r\nContent-Type: application/json\r\n" % status.encode()
        if ending == "close":
            return [head + b"\r\n", words[:20], 0.02, words[20:], "close"]
        pieces = chunked([words[:20], words[20:]])
        return [head + b"Transfer-Encoding: chunked\r\n\r\n", *pieces[1:]]

    def script(request: Received) -> list[bytes | float | str]:
        return refuse() if "stream_options" in json.loads(request.body) else list(chunked(events(HEL, LO, STOP)))

    server = upstream(script)
    running = collector(server.url, collector=INJECT)
    client = openai.OpenAI(base_url=running.url + "/v1", api_key="sk-x", max_retries=0)
    for _ in range(3):
        stream = client.chat.completions.create(
            model="gpt-4o", messages=[{"role": "user", "content": "hi"}], stream=True
        )
        assert "".join(part.choices[0].delta.content or "" for part in stream) == "Hello"
    client.close()
    assert [asks(request) for request in server.received] == [True, False, False, False]
    assert running.stop() == 0
    assert sum("refuses stream_options" in line for line in running.lines) == 1
    assert any(status[:3] in line and "refuses stream_options" in line for line in running.lines)
    records = list(running.responses().values())
    assert [(record.status, record.sent) for record in records] == [(200, None)] * 3  # the SDK may leave at [DONE]
    load(open_workspace(root=running.root))
    with open_store(running.data) as store:
        rows = store.connection.sql("SELECT outcome, text, cost_usd, cost_note IS NULL FROM exchanges").fetchall()
    assert rows == [("ok", "Hello", None, False)] * 3


def test_another_refusal_passes_as_it_came(
    upstream: Callable[..., RawUpstream], collector: Callable[..., Running]
) -> None:
    """Of the user's own field, or of something else: the refusal is the answer, and nothing is remembered."""
    words = b'{"error":{"message":"Unrecognized request argument supplied: top_k"}}'
    blocked = b'{"error":{"message":"messages: at least one message is required"}}'

    def script(request: Received) -> list[bytes | float | str]:
        body = json.loads(request.body)
        if "top_k" in body:
            return [plain(words, status="400 Bad Request")]
        if body["messages"][0]["content"] == "blocked":
            return [plain(blocked, status="400 Bad Request")]
        return list(chunked(SHAPES["its own last chunk"][0 if asks(request) else 1]))

    server = upstream(script)
    running = collector(server.url, collector=INJECT)
    assert body_of(ask(running.port, text="blocked")) == blocked
    assert len(server.received) == 1
    for _ in range(2):
        answer = ask(running.port, top_k=3)
        assert (answer[:12], body_of(answer)) == (b"HTTP/1.1 400", words)
    # Tried without once; the second time it is known that another field is meant.
    assert [asks(request) for request in server.received[1:]] == [True, False, True]
    assert body_of(ask(running.port)) == b"".join(SHAPES["its own last chunk"][1])
    assert asks(server.received[-1])
    assert not any("refuses stream_options" in line for line in running.lines)


def test_a_refusal_that_breaks_off_is_the_answer(
    upstream: Callable[..., RawUpstream], collector: Callable[..., Running]
) -> None:
    """Nobody can say what was refused: the client gets what there is of it, as it would have directly."""
    words = b'{"error":{"message":"Unrecognized request argument supplied: stream_options"}}'
    head = b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n" % (len(words) + 9)
    long = b'{"error":"' + b"stream_options " * 4400 + b'"}'
    ends: list[bytes | float | str] = ["close", "hang"]
    server = upstream(lambda request: [plain(long, status="400 No")] if not ends else [head, words, ends.pop(0)])
    running = collector(server.url, collector=INJECT + "\nidle_timeout_s = 0.5")
    for _ in range(2):
        assert ask(running.port).endswith(words)
    # No server says that little with so much, in however few reads its 66 kB come.
    for _ in range(10):
        assert body_of(ask(running.port)) == long
    assert len(server.received) == 12
    assert running.stop() == 0
    assert [record.ended for record in running.responses().values()] == ["cut", "timeout", *["complete"] * 10]


def test_a_translated_stream_is_asked_again_too(
    upstream: Callable[..., RawUpstream], collector: Callable[..., Running]
) -> None:
    """An Anthropic client served by a chat server that takes no stream_options."""
    status, words = REFUSED["FastAPI, the field named"]

    def script(request: Received) -> list[bytes | float | str]:
        if "stream_options" in json.loads(request.body):
            return [plain(words, status=status)]
        return list(chunked(events(HEL, LO, STOP)))

    control, treatment = upstream(lambda request: []), upstream(script)
    running = collector(
        control.url, treatment.url, provider="anthropic", mode="ab", experiment="treatment_percent = 100"
    )
    client = anthropic.Anthropic(base_url=running.url, api_key="sk-x", max_retries=0)
    for _ in range(2):
        with client.messages.stream(
            model="claude-haiku-4-5", max_tokens=9, messages=[{"role": "user", "content": "hi"}]
        ) as stream:
            assert "".join(stream.text_stream) == "Hello"
    client.close()
    assert [asks(request) for request in treatment.received] == [True, False, False]
    assert running.stop() == 0
    sent = [json.loads(record.sent.data) for record in running.responses().values() if record.sent is not None]
    assert [("stream_options" in body, body["stream"]) for body in sent] == [(False, True)] * 2


@pytest.mark.parametrize("own", [{}, {"stream_options": {"include_usage": True}}])
def test_a_copy_is_sent_again_without_what_its_server_refuses(
    upstream: Callable[..., RawUpstream], collector: Callable[..., Running], own: dict[str, Any]
) -> None:
    """Once; the copies after it are not asked. Control is asked for nothing of it."""
    status, words = REFUSED["FastAPI, the field named"]

    def script(request: Received) -> list[bytes | float | str]:
        if "stream_options" in json.loads(request.body):
            return [plain(words, status=status)]
        return list(chunked(events(HEL, LO, STOP)))

    control = upstream(lambda request: chunked(chat_stream(["a"])))
    treatment = upstream(script)
    running = collector(control.url, treatment.url)
    for number in range(3):
        ask(running.port, **own)
        eventually(lambda number=number: len(running.responses("shadow")) == number + 1)
    assert [asks(request) for request in treatment.received] == [True, False, False, False]
    assert [json.loads(request.body).get("stream_options") for request in control.received] == [
        own.get("stream_options")
    ] * 3
    assert running.stop() == 0
    assert [record.status for record in running.responses("shadow").values()] == [200] * 3
    assert sum("the treatment arm refuses stream_options" in line for line in running.lines) == 1


def test_an_arms_own_stream_options_are_its_own(
    upstream: Callable[..., RawUpstream], collector: Callable[..., Running]
) -> None:
    """`params` win over what evalpipe adds, `drop` keeps it out, also where streams are asked for their usage."""
    control = upstream(lambda request: chunked(chat_stream(["a"])))
    treatment = upstream(lambda request: chunked(chat_stream(["b"])))
    for treatment_arm, expected in (
        ("params = { stream_options = { include_usage = false } }", {"include_usage": False}),
        ('drop = ["stream_options"]', None),
    ):
        running = collector(control.url, treatment.url, treatment_arm=treatment_arm, collector=INJECT)
        ask(running.port)
        eventually(lambda running=running: len(running.responses("shadow")) == 1)
        assert json.loads(treatment.received[-1].body).get("stream_options") == expected
        assert asks(control.received[-1])
        assert running.stop() == 0
