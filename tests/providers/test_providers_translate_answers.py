"""Answers said in another dialect: the client reads what the arm said, plain, streamed in any pieces, and in errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from anthropic.types import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from evalpipe.models import Outcome
from evalpipe.providers.base import Reply, ReplyCall, ReplyWriter, Usage
from evalpipe.providers.chat import ChatWriter, plain_chat
from evalpipe.providers.json_values import dump
from evalpipe.providers.messages import MessagesWriter, plain_messages
from evalpipe.providers.registry import read_answer
from evalpipe.providers.translate_response import AnswerTranslator


def stream_reply(writer: ReplyWriter, reply: Reply) -> bytes:
    """A whole answer as one stream."""
    parts = [writer.start(reply.usage)]
    if reply.text:
        parts.append(writer.text(reply.text))
    if reply.refusal:
        parts.append(writer.refusal(reply.refusal))
    for call in reply.calls:
        parts += [writer.call_start(call.id, call.name), writer.call_arguments(call.arguments)]
    parts.append(writer.finish(reply.stop, reply.usage, reply.stop_sequence))
    return b"".join(parts)


JSON = {"content-type": "application/json"}
SSE = {"content-type": "text/event-stream"}
ROUTES = [
    ("messages", "chat.completions"),
    ("chat.completions", "messages"),
    ("messages", "responses"),
    ("chat.completions", "responses"),
]

USAGE = Usage(input_tokens=50, cached_input_tokens=10, output_tokens=7)
texts = st.text(max_size=30)
calls = st.lists(
    st.builds(
        ReplyCall,
        id=st.from_regex(r"[a-z0-9_]{1,8}", fullmatch=True),
        name=st.sampled_from(["f", "g", "get_weather"]),
        arguments=st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=8), max_size=3).map(dump),
    ),
    max_size=3,
    unique_by=lambda call: call.id,
)
replies = st.builds(
    lambda text, calls, stop: Reply(
        id="a",
        model="m",
        created=1,
        text=text if text or not calls else None,
        calls=calls,
        stop="tool_use" if calls else stop,
        usage=USAGE,
    ),
    texts,
    calls,
    st.sampled_from(["end", "max_tokens", "stop_sequence"]),
)


def plain(endpoint: str, reply: Reply) -> bytes:
    return dump(plain_messages(reply) if endpoint == "messages" else plain_chat(reply)).encode()


def writer(endpoint: str) -> ReplyWriter:
    if endpoint == "messages":
        return MessagesWriter(answer_id="a", model="m")
    return ChatWriter(answer_id="a", model="m", created=1, include_usage=True)


def request(*, stream: bool) -> bytes:
    return dump({"model": "asked", "stream": stream, "stream_options": {"include_usage": True}}).encode()


def translate(route: tuple[str, str], body: bytes, *, stream: bool, cuts: list[int] = [], status: int = 200) -> bytes:  # noqa: B006
    translator = AnswerTranslator(*route, request_body=request(stream=stream), answer_id="new", created=5)
    translator.head(status, SSE if stream and status == 200 else JSON)
    pieces, start = [], 0
    for cut in [*sorted(cuts), len(body)]:
        pieces.append(translator.feed(body[start : max(cut, start)]))
        start = max(cut, start)
    return b"".join(pieces) + translator.finish()


def said(endpoint: str, body: bytes, *, stream: bool) -> tuple[Any, ...]:
    answer = read_answer(endpoint, 200, SSE if stream else JSON, body)
    usage = (answer.usage.input_tokens, answer.usage.cached_input_tokens, answer.usage.output_tokens)
    return answer.outcome, answer.text or "", answer.tool_calls, usage


@pytest.mark.parametrize("route", ROUTES)
@settings(max_examples=40)
@given(reply=replies)
def test_plain_answers_say_the_same(route: tuple[str, str], reply: Reply) -> None:
    body = plain(route[0], reply)
    assert said(route[1], translate(route, body, stream=False), stream=False) == said(route[0], body, stream=False)


@pytest.mark.parametrize("route", ROUTES)
@settings(max_examples=40)
@given(reply=replies, cuts=st.lists(st.integers(0, 3000), max_size=10))
def test_streams_say_the_same_in_any_pieces(route: tuple[str, str], reply: Reply, cuts: list[int]) -> None:
    body = stream_reply(writer(route[0]), reply)
    translated = translate(route, body, stream=True, cuts=[min(cut, len(body)) for cut in cuts])
    assert said(route[1], translated, stream=True) == said(route[0], body, stream=True)
    whole = AnswerTranslator(*route, request_body=request(stream=True), answer_id="new", created=5)
    whole.head(200, SSE)
    assert whole.feed(body) + whole.finish() == translated


@pytest.mark.parametrize("route", ROUTES)
def test_content_is_passed_on_as_it_comes(route: tuple[str, str]) -> None:
    arm = writer(route[0])
    translator = AnswerTranslator(*route, request_body=request(stream=True), answer_id="new", created=5)
    assert translator.head(200, SSE) == (200, "text/event-stream; charset=utf-8", True)
    translator.feed(arm.start(USAGE))
    assert b"Hel" in translator.feed(arm.text("Hel"))
    assert b"lo" in translator.feed(arm.text("lo"))


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.9])
def test_a_cut_stream_ends_in_an_error_event(route: tuple[str, str], share: float) -> None:
    arm = writer(route[0])
    body = arm.start(USAGE) + b"".join(arm.text(f"word{i} ") for i in range(20))
    translated = translate(route, body[: int(len(body) * share)], stream=True)
    answer = read_answer(route[1], 200, SSE, translated)
    assert answer.outcome is Outcome.HTTP_ERROR
    assert answer.error_message is not None


@pytest.mark.parametrize("route", ROUTES)
def test_an_error_event_stays_an_error_event_and_is_the_last(route: tuple[str, str]) -> None:
    arm = writer(route[0])
    body = arm.start(USAGE) + arm.text("half") + arm.error("overloaded_error", "Overloaded")
    answer = read_answer(route[1], 200, SSE, translate(route, body, stream=True))
    assert (answer.outcome, answer.error_message) == (Outcome.HTTP_ERROR, "Overloaded")


@pytest.mark.parametrize(
    ("route", "status", "body", "expected_status", "kind"),
    [
        (ROUTES[0], 529, {"type": "error", "error": {"type": "overloaded_error", "message": "m"}}, 503, "server_error"),
        (
            ROUTES[0],
            429,
            {"type": "error", "error": {"type": "rate_limit_error", "message": "m"}},
            429,
            "rate_limit_error",
        ),
        (ROUTES[1], 503, {"error": {"type": "server_error", "message": "m"}}, 529, "overloaded_error"),
        (ROUTES[1], 400, {"error": {"type": "invalid_request_error", "message": "m"}}, 400, "invalid_request_error"),
        (ROUTES[1], 401, {"error": {"type": "invalid_request_error", "message": "m"}}, 401, "authentication_error"),
    ],
)
def test_errors_in_the_clients_shape(
    route: tuple[str, str], status: int, body: Any, expected_status: int, kind: str
) -> None:
    for stream in (False, True):
        translator = AnswerTranslator(*route, request_body=request(stream=stream), answer_id="new", created=5)
        assert translator.head(status, JSON) == (expected_status, "application/json", False)
        translator.feed(dump(body).encode())
        error = json.loads(translator.finish())
        assert (error["error"]["type"], error["error"]["message"]) == (kind, "m")
        assert ("type" in error) == (route[1] == "messages")


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("body", [b"", b"{", b"<html>", b"[]", b'{"choices":[]}'])
def test_garbage_becomes_an_error(route: tuple[str, str], body: bytes) -> None:
    translator = AnswerTranslator(*route, request_body=request(stream=False), answer_id="new", created=5)
    assert translator.head(200, JSON)[0] == translator.status == 200
    translator.feed(body)
    assert json.loads(translator.finish())["error"]["message"]
    assert translator.status == 502
    streamed = read_answer(route[1], 200, SSE, translate(route, body, stream=True))
    assert streamed.outcome is Outcome.HTTP_ERROR


def test_interleaved_parallel_calls_are_put_in_order() -> None:
    def chunk(index: int, **function: str) -> bytes:
        more = {"id": f"id{index}"} if "name" in function else {}
        delta = {"tool_calls": [{"index": index, "function": function, **more}]}
        return b"data: " + dump({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"

    end = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}\n\ndata: [DONE]\n\n'
    body = (
        chunk(0, name="f", arguments="")
        + chunk(1, name="g", arguments='{"b"')
        + chunk(0, arguments='{"a":1}')
        + chunk(1, arguments=":2}")
        + end
    )
    answer = read_answer("messages", 200, SSE, translate(ROUTES[1], body, stream=True))
    assert [(call["name"], call["arguments"]) for call in answer.tool_calls] == [("f", {"a": 1}), ("g", {"b": 2})]


def chat_events(*deltas: dict[str, Any], finish: str) -> bytes:
    choices = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": finish})
    return b"".join(b"data: " + dump({"choices": [one]}).encode() + b"\n\n" for one in choices) + b"data: [DONE]\n\n"


def chat_body(message: dict[str, Any], *, finish: str) -> bytes:
    return dump({"choices": [{"index": 0, "message": message, "finish_reason": finish}]}).encode()


@pytest.mark.parametrize("stream", [False, True])
def test_a_forced_call_that_chat_calls_a_stop_is_tool_use(stream: bool) -> None:
    """OpenAI ends an answer whose call `tool_choice` named with finish_reason "stop"; Anthropic's loops look at stop_reason."""
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    body = chat_events(message, finish="stop") if stream else chat_body(message, finish="stop")
    answer = read_answer("messages", 200, SSE if stream else JSON, translate(ROUTES[1], body, stream=stream))
    assert answer.finish_reason == "tool_use"
    assert [call["arguments"] for call in answer.tool_calls] == [{"a": 1}]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES[1::2])
def test_a_refusal_in_words_is_a_refusal_streamed_too(route: tuple[str, str], stream: bool) -> None:
    message = {"role": "assistant", "content": None, "refusal": "No."}
    body = chat_events(message, finish="stop") if stream else chat_body(message, finish="stop")
    answer = read_answer(route[1], 200, SSE if stream else JSON, translate(route, body, stream=stream))
    assert (answer.outcome, answer.text) == (Outcome.REFUSED, "No.")


@pytest.mark.parametrize("route", ROUTES[1::2])
def test_a_refusal_amid_a_call_waits_for_its_end(route: tuple[str, str]) -> None:
    """Written at once it would end the call's block, and the arguments behind it would be lost."""
    call = {"index": 0, "id": "c1", "function": {"name": "f", "arguments": '{"a"'}}
    rest = {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]}
    deltas = ({"tool_calls": [call]}, {"refusal": "No, "}, {"content": "never."}, rest)
    answer = read_answer(route[1], 200, SSE, translate(route, chat_events(*deltas, finish="stop"), stream=True))
    assert answer.text == "No, never."
    assert [(call["name"], call["arguments"]) for call in answer.tool_calls] == [("f", {"a": 1})]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("client", ["chat.completions", "responses"])
def test_calls_with_one_id_are_two_calls_to_the_client(client: str, stream: bool) -> None:
    """A client answers each call by its id."""
    reply = Reply(
        id="a",
        model="m",
        created=1,
        text=None,
        calls=[
            ReplyCall(id="toolu_1", name="f", arguments='{"n":1}'),
            ReplyCall(id="toolu_1", name="f", arguments="{}"),
        ],
        stop="tool_use",
        usage=USAGE,
    )
    body = stream_reply(writer("messages"), reply) if stream else plain("messages", reply)
    answer = read_answer(client, 200, SSE if stream else JSON, translate(("messages", client), body, stream=stream))
    assert [call["arguments"] for call in answer.tool_calls] == [{"n": 1}, {}]
    ids = [call["id"] for call in answer.tool_calls]
    assert ids[0] == "toolu_1" and ids[1] != "toolu_1"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES[::2])
@pytest.mark.parametrize("text", ["", "half an"])
def test_a_refusal_without_words_is_not_an_empty_answer(route: tuple[str, str], stream: bool, text: str) -> None:
    reply = Reply(id="a", model="m", created=1, text=text, stop="refusal", usage=USAGE)
    body = stream_reply(writer("messages"), reply) if stream else plain("messages", reply)
    answer = read_answer(route[1], 200, SSE if stream else JSON, translate(route, body, stream=stream))
    assert (answer.outcome, answer.text) == (Outcome.REFUSED, text)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES[1::2])
def test_a_call_without_arguments_has_an_empty_object(route: tuple[str, str], stream: bool) -> None:
    calls = [
        {"index": index, "id": f"c{index}", "type": "function", "function": {"name": name, "arguments": ""}}
        for index, name in enumerate("fg")
    ]
    message = {"role": "assistant", "content": None, "tool_calls": calls}
    body = chat_events(message, finish="tool_calls") if stream else chat_body(message, finish="tool_calls")
    translated = translate(route, body, stream=stream)
    answer = read_answer(route[1], 200, SSE if stream else JSON, translated)
    assert [(call["name"], call["arguments"]) for call in answer.tool_calls] == [("f", {}), ("g", {})]
    if route[1] == "responses":  # clients parse the text themselves
        assert translated.count(b'"arguments":"{}"') >= 2


def test_thinking_is_not_said_to_a_client_who_cannot_read_it() -> None:
    blocks: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"usage": {"input_tokens": 3, "cache_read_input_tokens": 7}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "secret"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "secret"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "ping"},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "redacted_thinking", "data": "secret"}},
        {"type": "content_block_stop", "index": 1},
        {"type": "content_block_start", "index": 2, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 2, "delta": {"type": "text_delta", "text": "h\u00e9 \U0001f600"}},
        {"type": "content_block_stop", "index": 2},
        {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 9}},
        {"type": "message_stop"},
    ]
    body = b"".join(
        b"event: " + one["type"].encode() + b"\ndata: " + json.dumps(one, ensure_ascii=False).encode() + b"\n\n"
        for one in blocks
    )
    for route in ROUTES[::2]:
        for cuts in ([], list(range(len(body)))):  # a byte at a time too: characters arrive in pieces
            told = translate(route, body, stream=True, cuts=cuts)
            assert b"secret" not in told
            assert said(route[1], told, stream=True) == (Outcome.OK, "h\u00e9 \U0001f600", [], (10, 7, 9))


def test_usage_chunk_only_where_the_client_asked() -> None:
    arm = writer("messages")
    body = stream_reply(arm, Reply(id="a", model="m", created=1, text="x", usage=USAGE))
    asked = translate(ROUTES[0], body, stream=True)
    assert b'"usage":{"prompt_tokens":50' in asked
    translator = AnswerTranslator(*ROUTES[0], request_body=b'{"stream":true}', answer_id="new", created=5)
    translator.head(200, SSE)
    assert b"usage" not in translator.feed(body) + translator.finish()


@pytest.mark.parametrize("route", ROUTES)
@settings(max_examples=60)
@given(body=st.binary(max_size=200), stream=st.booleans())
def test_any_bytes_are_survived(route: tuple[str, str], body: bytes, stream: bool) -> None:
    translate(route, body, stream=stream)
    translate(route, b"data: " + body + b"\n\n", stream=stream)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_ran_into_the_context_window_is_cut_off_for_the_client_too(stream: bool) -> None:
    blocks = [
        {"type": "message_start", "message": {"usage": {"input_tokens": 3}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "half"}},
        {"type": "message_delta", "delta": {"stop_reason": "model_context_window_exceeded"}},
        {"type": "message_stop"},
    ]
    body = b"".join(b"data: " + dump(block).encode() + b"\n\n" for block in blocks)
    for route in ROUTES[::2]:
        told = read_answer(route[1], 200, SSE if stream else JSON, translate(route, body, stream=stream))
        reason = "length" if route[1] == "chat.completions" else "max_output_tokens"
        assert (told.outcome, told.finish_reason, told.text) == (Outcome.TRUNCATED, reason, "half")


@pytest.mark.parametrize("route", ROUTES[1::2])
def test_text_behind_a_tool_call_reaches_the_client(route: tuple[str, str]) -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    body = chat_events({"tool_calls": [call]}, {"content": "That "}, {"content": "is all."}, finish="tool_calls")
    told = read_answer(route[1], 200, SSE, translate(route, body, stream=True))
    assert (told.text, [call["name"] for call in told.tool_calls]) == ("That is all.", ["f"])


@settings(max_examples=40)
@given(reply=replies, stream=st.booleans())
def test_translated_answers_pass_the_types_of_the_sdks(reply: Reply, stream: bool) -> None:
    """Also those of readers that refuse null where a type has no null (zod): a text block without citations has no such key."""
    types = {"messages": Message, "chat.completions": ChatCompletion, "responses": Response}
    for route in ROUTES:
        body = translate(route, plain(route[0], reply), stream=False)
        document = json.loads(body)
        types[route[1]].model_validate(document)
        assert b'"citations":null' not in body
        assert all("citations" not in block for block in document.get("content", []))


def test_tokens_that_are_not_known_are_left_out_where_the_dialect_can() -> None:
    reply = Reply(id="a", model="m", created=1, text="x")
    silent = json.dumps({"choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}]}).encode()
    assert "usage" not in plain_chat(reply)
    assert "usage" not in json.loads(translate(ROUTES[3], silent, stream=False))
    events = stream_reply(ChatWriter(answer_id="a", model="m", created=1, include_usage=True), reply)
    assert b"prompt_tokens" not in events


def test_tags_that_the_client_asked_for_stay_in_its_answer() -> None:
    body = chat_body({"role": "assistant", "content": "<think>a</think>b"}, finish="stop")
    prompt = {"model": "m", "messages": [{"role": "user", "content": "Think in <think> tags."}]}
    for request_body, text in ((dump(prompt).encode(), "<think>a</think>b"), (request(stream=False), "b")):
        translator = AnswerTranslator(*ROUTES[1], request_body=request_body, answer_id="new", created=5)
        translator.head(200, JSON)
        translator.feed(body)
        assert json.loads(translator.finish())["content"] == [{"type": "text", "text": text}]


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        ({"message": "slow down", "code": 429}, 429, "rate_limit_error"),
        ({"message": "slow down", "code": "429", "type": "whatever"}, 429, "rate_limit_error"),
        ({"message": "slow down", "type": "rate_limit_error"}, 429, "rate_limit_error"),
        ({"message": "quota", "code": 429, "status": "RESOURCE_EXHAUSTED"}, 429, "rate_limit_error"),
        ({"message": "no key", "code": "invalid_api_key"}, 401, "authentication_error"),
        ({"message": "too long", "code": "context_length_exceeded"}, 400, "invalid_request_error"),
        ({"message": "busy", "code": 503}, 529, "overloaded_error"),
        ({"message": "busy", "code": 1305}, 502, "api_error"),
        ({"message": "busy", "code": 200}, 502, "api_error"),
        ({"message": "busy"}, 502, "api_error"),
    ],
)
def test_an_error_within_a_200_has_its_own_status(error: dict[str, Any], status: int, kind: str) -> None:
    """Clients wait, retry or give up by it. In a stream the status is out; the event's kind says it."""
    body = dump({"error": error}).encode()
    translator = AnswerTranslator(*ROUTES[1], request_body=request(stream=False), answer_id="new", created=5)
    assert translator.head(200, JSON)[0] == 200
    translator.feed(body)
    told = json.loads(translator.finish())
    assert (translator.status, told["error"]["type"], told["error"]["message"]) == (status, kind, error["message"])
    streamed = translate(ROUTES[1], b"data: " + body + b"\n\n", stream=True)
    assert f'"type":"{kind}"'.encode() in streamed
