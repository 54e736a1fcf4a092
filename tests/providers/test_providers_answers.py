"""Answers of all three dialects, plain and streamed: text, tool calls, usage, outcomes, failures of every kind."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from evalpipe.models import Outcome
from evalpipe.providers.base import Answer
from evalpipe.providers.registry import DIALECTS, read_answer, read_request
from evalpipe.spool.format import Ended

JSON = {"content-type": "application/json"}
SSE = {"Content-Type": "text/event-stream; charset=utf-8"}


def sse(*events: Any, named: bool = False) -> bytes:
    lines = []
    for event in events:
        data = event if isinstance(event, str) else json.dumps(event)
        name = f"event: {event['type']}\n" if named else ""
        lines.append(f"{name}data: {data}\n\n")
    return "".join(lines).encode()


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"id": "c", "model": "gpt-4o", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}


def chat(message: dict[str, Any], finish: str = "stop", **more: Any) -> bytes:
    return json.dumps(
        {"model": "gpt-4o", "choices": [{"index": 0, "message": message, "finish_reason": finish}], **more}
    ).encode()


CHAT_STREAM = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "Hel"}),
    chunk({"content": "lo"}),
    chunk({}, "stop"),
    {"id": "c", "model": "gpt-4o", "choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}},
    "[DONE]",
]
MESSAGES_STREAM = [
    {
        "type": "message_start",
        "message": {
            "id": "m",
            "model": "claude-haiku-4-5",
            "content": [],
            "stop_reason": None,
            "usage": {
                "input_tokens": 10,
                "cache_read_input_tokens": 100,
                "cache_creation_input_tokens": 20,
                "cache_creation": {"ephemeral_1h_input_tokens": 5, "ephemeral_5m_input_tokens": 15},
                "output_tokens": 1,
            },
        },
    },
    {"type": "ping"},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Hello"}},
    {"type": "content_block_stop", "index": 1},
    {
        "type": "content_block_start",
        "index": 2,
        "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}},
    },
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"a"'}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": ":1}"}},
    {"type": "content_block_stop", "index": 2},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 7}},
    {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 9}},
    {"type": "message_stop"},
]


def test_chat_plain() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    broken = {"id": "b", "type": "function", "function": {"name": "g", "arguments": "{oops"}}
    usage = {
        "prompt_tokens": 30,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 10},
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    body = chat({"role": "assistant", "content": None, "tool_calls": [call, broken]}, "tool_calls", usage=usage)
    answer = read_answer("chat.completions", 200, JSON, body)
    assert answer.outcome is Outcome.OK
    assert answer.text is None
    assert answer.tool_calls == [
        {"id": "a", "name": "f", "arguments": {"x": 1}},
        {"id": "b", "name": "g", "arguments": "{oops"},
    ]
    assert (answer.usage.input_tokens, answer.usage.cached_input_tokens) == (30, 10)
    assert (answer.usage.output_tokens, answer.usage.reasoning_tokens) == (5, 3)
    assert answer.assembled == body.decode()
    assert not answer.streamed


@pytest.mark.parametrize(
    ("message", "finish", "outcome", "text"),
    [
        ({"content": "x"}, "stop", Outcome.OK, "x"),
        ({"content": "x"}, "length", Outcome.TRUNCATED, "x"),
        ({"content": ""}, "content_filter", Outcome.REFUSED, ""),
        ({"content": None, "refusal": "I can't"}, "stop", Outcome.REFUSED, "I can't"),
        ({"content": None}, "stop", Outcome.OK, ""),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "stop", Outcome.OK, "a\nb"),
        ({"content": None, "function_call": {"name": "f", "arguments": "{}"}}, "function_call", Outcome.OK, None),
    ],
)
def test_chat_outcomes(message: dict[str, Any], finish: str, outcome: Outcome, text: str | None) -> None:
    answer = read_answer("chat.completions", 200, JSON, chat(message, finish))
    assert (answer.outcome, answer.text, answer.finish_reason) == (outcome, text, finish)
    assert answer.usage.input_tokens is None


def test_chat_stream() -> None:
    answer = read_answer("chat.completions", 200, SSE, sse(*CHAT_STREAM))
    assert (answer.outcome, answer.text, answer.finish_reason) == (Outcome.OK, "Hello", "stop")
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.streamed) == (9, 2, True)
    assert answer.content_offset == len(sse(*CHAT_STREAM[:2]))
    assert answer.assembled is not None
    assert json.loads(answer.assembled)["choices"][0]["message"] == {"role": "assistant", "content": "Hello"}


def test_chat_stream_of_parallel_tool_calls() -> None:
    def call(index: int, **function: str) -> dict[str, Any]:
        more = {"id": f"id{index}"} if "name" in function else {}
        return chunk({"tool_calls": [{"index": index, "function": function, **more}]})

    answer = read_answer(
        "chat.completions",
        200,
        SSE,
        sse(
            call(0, name="f", arguments=""),
            call(1, name="g", arguments='{"b"'),
            call(0, arguments='{"a":'),
            call(1, arguments=":2}"),
            call(0, arguments="1}"),
            chunk({}, "tool_calls"),
            "[DONE]",
        ),
    )
    assert answer.tool_calls == [
        {"id": "id0", "name": "f", "arguments": {"a": 1}},
        {"id": "id1", "name": "g", "arguments": {"b": 2}},
    ]
    assert (answer.outcome, answer.text) == (Outcome.OK, None)


def test_messages_stream() -> None:
    answer = read_answer("messages", 200, SSE, sse(*MESSAGES_STREAM, named=True))
    assert (answer.outcome, answer.text, answer.finish_reason) == (Outcome.OK, "Hello", "tool_use")
    assert answer.tool_calls == [{"id": "t", "name": "f", "arguments": {"a": 1}}]
    usage = answer.usage
    assert (usage.input_tokens, usage.cached_input_tokens, usage.cache_write_tokens) == (130, 100, 20)
    # Overwritten, never added.
    assert (usage.cache_write_1h_tokens, usage.output_tokens) == (5, 9)
    # Thinking is content too: the time to first token is the time to the first thinking.
    assert answer.content_offset == len(sse(*MESSAGES_STREAM[:4], named=True))
    assert answer.assembled is not None
    assert [block["type"] for block in json.loads(answer.assembled)["content"]] == ["thinking", "text", "tool_use"]


@pytest.mark.parametrize(
    ("stop", "content", "outcome", "text"),
    [
        ("end_turn", [{"type": "thinking", "thinking": "t"}, {"type": "text", "text": "x"}], Outcome.OK, "x"),
        ("max_tokens", [{"type": "text", "text": "x"}], Outcome.TRUNCATED, "x"),
        ("model_context_window_exceeded", [{"type": "text", "text": "x"}], Outcome.TRUNCATED, "x"),
        ("refusal", [], Outcome.REFUSED, ""),
        ("end_turn", [], Outcome.OK, ""),
        ("pause_turn", [{"type": "text", "text": "x"}], Outcome.TRUNCATED, "x"),
        ("tool_use", [{"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}], Outcome.OK, None),
    ],
)
def test_messages_outcomes(stop: str, content: list[Any], outcome: Outcome, text: str | None) -> None:
    body = json.dumps({"type": "message", "model": "m", "content": content, "stop_reason": stop}).encode()
    answer = read_answer("messages", 200, JSON, body)
    assert (answer.outcome, answer.text) == (outcome, text)


def response(status: str = "completed", output: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    usage = {"input_tokens": 8, "output_tokens": 4, "input_tokens_details": {"cached_tokens": 2}}
    return {
        "id": "r",
        "object": "response",
        "model": "gpt-5",
        "status": status,
        "output": output or [],
        "usage": usage,
        **more,
    }


TEXT_ITEM = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hi"}]}


@pytest.mark.parametrize(
    ("body", "outcome", "text"),
    [
        (response(output=[{"type": "reasoning", "summary": []}, TEXT_ITEM]), Outcome.OK, "Hi"),
        (
            response("incomplete", [TEXT_ITEM], incomplete_details={"reason": "max_output_tokens"}),
            Outcome.TRUNCATED,
            "Hi",
        ),
        (response("incomplete", [], incomplete_details={"reason": "content_filter"}), Outcome.REFUSED, ""),
        (
            response(output=[{"type": "message", "content": [{"type": "refusal", "refusal": "No"}]}]),
            Outcome.REFUSED,
            "No",
        ),
        (response("queued"), Outcome.UNREADABLE, ""),
        (
            response(output=[{"type": "function_call", "call_id": "c", "name": "f", "arguments": '{"a":1}'}]),
            Outcome.OK,
            None,
        ),
    ],
)
def test_responses_outcomes(body: dict[str, Any], outcome: Outcome, text: str | None) -> None:
    answer = read_answer("responses", 200, JSON, json.dumps({**body, "error": None}).encode())
    assert (answer.outcome, answer.text) == (outcome, text)
    assert (answer.usage.input_tokens, answer.usage.cached_input_tokens) == (8, 2)


def test_responses_stream_whole_cut_and_failed() -> None:
    begin = [
        {"type": "response.created", "response": {**response("in_progress"), "usage": None}},
        {"type": "response.output_item.added", "output_index": 0, "item": {"type": "message", "content": []}},
    ]
    deltas = [
        {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": part}
        for part in ("H", "i")
    ]
    end = {"type": "response.completed", "response": response(output=[TEXT_ITEM])}
    whole = read_answer("responses", 200, SSE, sse(*begin, *deltas, end, named=True))
    assert (whole.outcome, whole.text, whole.usage.output_tokens) == (Outcome.OK, "Hi", 4)
    assert whole.content_offset == len(sse(*begin, deltas[0], named=True))

    cut = read_answer("responses", 200, SSE, sse(*begin, *deltas, named=True), ended="cut")
    assert (cut.outcome, cut.text, cut.error_type) == (Outcome.UNREADABLE, "Hi", "cut")

    error = {"code": "server_error", "message": "boom"}
    failed = {"type": "response.failed", "response": {**response("failed"), "error": error}}
    answer = read_answer("responses", 200, SSE, sse(*begin, failed, named=True))
    assert (answer.outcome, answer.error_type, answer.error_message) == (Outcome.HTTP_ERROR, "server_error", "boom")


STREAMS = [
    ("chat.completions", sse(*CHAT_STREAM)),
    ("messages", sse(*MESSAGES_STREAM, named=True)),
]


@pytest.mark.parametrize(("endpoint", "body"), STREAMS)
def test_a_stream_cut_anywhere_is_never_ok(endpoint: str, body: bytes) -> None:
    full = read_answer(endpoint, 200, SSE, body)
    for end in range(0, len(body) - 1, 7):
        answer = read_answer(endpoint, 200, SSE, body[:end], ended="cut")
        assert answer.outcome is Outcome.UNREADABLE or answer.text == full.text
        closed = read_answer(endpoint, 200, SSE, body[:end], ended="client_closed")
        assert closed.outcome is Outcome.CLIENT_CLOSED or closed.text == full.text


@pytest.mark.parametrize(("endpoint", "body"), STREAMS)
def test_a_client_that_leaves_after_the_last_event_has_had_it_all(endpoint: str, body: bytes) -> None:
    assert read_answer(endpoint, 200, SSE, body, ended="client_closed").outcome is Outcome.OK
    assert read_answer(endpoint, 200, SSE, body, ended="timeout").outcome is Outcome.OK


def test_partial_answers_keep_what_came() -> None:
    body = sse(*MESSAGES_STREAM[:7], named=True)
    answer = read_answer("messages", 200, SSE, body, ended="timeout")
    assert (answer.outcome, answer.text, answer.usage.input_tokens) == (Outcome.TIMEOUT, "Hello", 130)


@pytest.mark.parametrize(
    ("endpoint", "body", "kind"),
    [
        ("chat.completions", sse(CHAT_STREAM[1], {"error": {"type": "server_error", "message": "m"}}), "server_error"),
        (
            "messages",
            sse(
                *MESSAGES_STREAM[:3],
                {"type": "error", "error": {"type": "overloaded_error", "message": "m"}},
                named=True,
            ),
            "overloaded_error",
        ),
        ("responses", sse({"type": "error", "code": "server_error", "message": "m"}, named=True), "server_error"),
    ],
)
@pytest.mark.parametrize("ended", ["complete", "closed_by_upstream", "client_closed", "timeout"])
def test_an_error_after_200_however_the_connection_ended(endpoint: str, body: bytes, kind: str, ended: Ended) -> None:
    answer = read_answer(endpoint, 200, SSE, body, ended=ended)
    assert (answer.outcome, answer.error_type, answer.error_message) == (Outcome.HTTP_ERROR, kind, "m")


@pytest.mark.parametrize("endpoint", DIALECTS)
def test_http_errors(endpoint: str) -> None:
    body = b'{"type":"error","error":{"type":"rate_limit_error","message":"slow down"},"request_id":"r"}'
    answer = read_answer(endpoint, 429, JSON, body)
    assert (answer.outcome, answer.error_type, answer.error_message) == (
        Outcome.HTTP_ERROR,
        "rate_limit_error",
        "slow down",
    )
    page = read_answer(endpoint, 502, {"content-type": "text/html"}, b"<html>Bad gateway" + b"x" * 9000)
    assert (page.outcome, page.error_type) == (Outcome.HTTP_ERROR, "http_502")
    assert page.error_message is not None
    assert len(page.error_message) <= 2001
    quota = read_answer(endpoint, 429, JSON, b'{"error":{"type":"x","code":"insufficient_quota","message":"m"}}')
    assert quota.error_type == "insufficient_quota"


@pytest.mark.parametrize(
    ("status", "body", "ended", "outcome"),
    [
        (None, b"", "connect_error", Outcome.HTTP_ERROR),
        (None, b"", "timeout", Outcome.TIMEOUT),
        (None, b"", "client_closed", Outcome.CLIENT_CLOSED),
        (None, b"", "protocol_error", Outcome.UNREADABLE),
        (200, b"", "complete", Outcome.UNREADABLE),
        (200, b"{", "complete", Outcome.UNREADABLE),
        (200, b"[]", "complete", Outcome.UNREADABLE),
        (200, b"{}", "complete", Outcome.UNREADABLE),
        (200, b'{"choices": [], "content": "", "output": 3}', "complete", Outcome.UNREADABLE),
        (200, b'{"error": {"message": "no"}}', "complete", Outcome.HTTP_ERROR),
        (200, b"[" * 100_000, "complete", Outcome.UNREADABLE),
    ],
)
@pytest.mark.parametrize("endpoint", DIALECTS)
def test_failures(endpoint: str, status: int | None, body: bytes, ended: Any, outcome: Outcome) -> None:
    assert read_answer(endpoint, status, JSON, body, ended=ended).outcome is outcome


ENCODERS = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": lambda data: brotli.compress(data, quality=3),
    "zstd": zstandard.compress,
}


@pytest.mark.parametrize("encoding", ENCODERS)
def test_content_encodings(encoding: str) -> None:
    # Random-looking text so that the compressed stream spans several pieces.
    noise = [chunk({"content": f"{i * 7919 % 10007:x}"}) for i in range(8000)]
    plain = sse(chunk({"role": "assistant"}), *noise, chunk({}, "stop"), "[DONE]")
    headers = {**SSE, "content-encoding": encoding}
    encoded = ENCODERS[encoding](plain)
    answer = read_answer("chat.completions", 200, headers, encoded)
    assert answer.text == "".join(f"{i * 7919 % 10007:x}" for i in range(8000))
    # The offset is in bytes as received: the first piece that holds the first content.
    assert answer.content_offset is not None
    assert 0 < answer.content_offset <= len(encoded)
    cut = read_answer("chat.completions", 200, headers, encoded[: len(encoded) // 2], ended="cut")
    assert cut.outcome is Outcome.UNREADABLE
    wrong = read_answer("chat.completions", 200, headers, b"not encoded at all")
    assert wrong.outcome is Outcome.UNREADABLE


def test_raw_deflate_and_two_encodings() -> None:
    compressor = zlib.compressobj(wbits=-15)
    raw = compressor.compress(chat({"content": "x"})) + compressor.flush()
    headers = {**JSON, "content-encoding": "deflate"}
    assert read_answer("chat.completions", 200, headers, raw).text == "x"
    double = {**JSON, "content-encoding": "gzip, br"}  # the last one named was applied last (RFC 9110 8.4)
    body = brotli.compress(gzip.compress(chat({"content": "x"}), mtime=0))
    assert read_answer("chat.completions", 200, double, body).text == "x"
    assert read_answer("chat.completions", 200, double, b"\xff" * 8).error_type == "encoding"
    unknown = {**JSON, "content-encoding": "utf-8"}  # passed over, as httpx does
    assert read_answer("chat.completions", 200, unknown, chat({"content": "x"})).text == "x"


def test_a_bomb_is_refused() -> None:
    bomb = gzip.compress(b"a" * (130 * 1024 * 1024), compresslevel=1)
    answer = read_answer("messages", 200, {**JSON, "content-encoding": "gzip"}, bomb)
    assert (answer.outcome, answer.error_type) == (Outcome.UNREADABLE, "encoding")


def test_lone_surrogates_are_replaced_everywhere() -> None:
    body = rb'{"choices":[{"message":{"content":"a\ud800b\ud83d\ude00"},"finish_reason":"stop"}]}'
    answer = read_answer("chat.completions", 200, JSON, body)
    assert answer.text == "a\ufffdb\N{GRINNING FACE}"
    assert answer.assembled is not None
    answer.assembled.encode()
    assert "ud800" not in answer.assembled


def test_ten_megabytes_of_one_letter() -> None:
    text = "a" * 10_000_000
    assert read_answer("chat.completions", 200, JSON, chat({"content": text})).text == text


@pytest.mark.shared
def test_recorded_answers_of_real_providers(shared: Path) -> None:
    folder = shared / "data/log-samples"
    cassette = json.loads((folder / "openai_chat_cassette.json").read_text("utf-8"))["response"]
    answer = read_answer("chat.completions", cassette["status"], JSON, json.dumps(cassette["body"]).encode())
    assert (answer.text, answer.usage.input_tokens, answer.usage.output_tokens) == ("This is a test.", 12, 5)
    chunks = (folder / "openai_chat_completions_streaming_example.jsonl").read_text("utf-8").splitlines()
    streamed = read_answer("chat.completions", 200, SSE, sse(*chunks, "[DONE]"))
    contents = [json.loads(line)["choices"][0]["delta"].get("content") for line in chunks]
    assert streamed.outcome is Outcome.TRUNCATED
    assert streamed.text == "".join(filter(None, contents)) != ""


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)
KEYS = [
    "choices", "message", "content", "delta", "tool_calls", "function", "function_call", "name", "arguments",
    "index", "id", "type", "text", "input", "output", "usage", "error", "response", "item", "output_index",
    "content_block", "content_index", "finish_reason", "stop_reason", "refusal", "status", "model", "custom",
    "incomplete_details", "reason", "prompt_tokens_details", "summary", "citation", "partial_json", "thinking",
    "stop_details",
]  # fmt: skip
TYPES = [
    *[event["type"] for event in MESSAGES_STREAM],
    "text", "tool_use", "error", "text_delta", "input_json_delta", "citations_delta", "thinking_delta",
    "response.created", "response.completed", "response.output_item.added", "response.output_text.delta",
    "response.function_call_arguments.delta", "response.refusal.delta", "message", "function_call", "output_text",
]  # fmt: skip
shaped = st.recursive(
    json_values | st.sampled_from(TYPES) | st.integers(0, 3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=25,
)


def check(answer: Answer) -> None:
    for text in (answer.text, answer.assembled, answer.error_message):
        if text is not None:
            text.encode()
    json.dumps(answer.tool_calls, allow_nan=False)


@settings(max_examples=150)
@given(st.sampled_from(list(DIALECTS)), shaped, st.sampled_from(["complete", "cut", "client_closed", "timeout"]))
def test_any_json_is_survived(endpoint: str, value: Any, ended: Any) -> None:
    check(read_answer(endpoint, 200, JSON, json.dumps(value).encode(), ended=ended))
    read_request(endpoint, json.dumps(value))


@settings(max_examples=150)
@given(st.sampled_from(list(DIALECTS)), st.lists(st.tuples(st.sampled_from(TYPES), shaped), max_size=6))
def test_any_events_are_survived(endpoint: str, events: list[tuple[str, Any]]) -> None:
    body = sse(*[{**value, "type": kind} if isinstance(value, dict) else [kind, value] for kind, value in events])
    check(read_answer(endpoint, 200, SSE, body))


@settings(max_examples=100)
@given(st.sampled_from(list(DIALECTS)), st.binary(max_size=200), st.sampled_from([JSON, SSE, {}]))
def test_any_bytes_are_survived(endpoint: str, body: bytes, headers: dict[str, str]) -> None:
    check(read_answer(endpoint, 200, headers, body))
    read_request(endpoint, body)
