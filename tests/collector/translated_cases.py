"""Answers of arms, as fixed bytes: what a chat server or Messages sends, plain and streamed, with all the ways servers differ."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from typing import Any

from collector_harness import chunked, plain

Pieces = list[bytes | str]
USAGE = {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
SSE = b"Content-Type: text/event-stream\r\n"


def dumps(value: Any) -> bytes:
    return json.dumps(value).encode()


def sse(events: Iterable[Any], *, end: str = "\n\n", done: bool = True) -> list[bytes]:
    """Each event is JSON, or bytes as they are."""
    pieces = [event if isinstance(event, bytes) else b"data: " + dumps(event) + end.encode() for event in events]
    return [*pieces, b"data: [DONE]" + end.encode()] if done else pieces


# --- chat completions


def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **more}


def call_delta(**call: Any) -> dict[str, Any]:
    return {"tool_calls": [call]}


def function(name: str | None = None, arguments: Any = None) -> dict[str, Any]:
    return {
        **({"name": name} if name is not None else {}),
        **({"arguments": arguments} if arguments is not None else {}),
    }


USAGE_CHUNK = {**chunk({}), "choices": [], "usage": USAGE}


def answer(message: dict[str, Any], finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    whole = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": USAGE}
    return {**whole, **more}


def text_stream(*words: str, finish: str | None = "stop") -> list[Any]:
    return [*(chunk({"content": word}) for word in words), chunk({}, finish), USAGE_CHUNK]


OSLO, ROME = '{"c":"Oslo"}', '{"c":"Rome"}'


def whole_call(call_id: str | None, name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": function(name, arguments), **more}


def chat_cases() -> dict[str, Pieces]:
    """name → what the server sends; names that begin with `s_` are for requests that stream."""
    cases: dict[str, Pieces] = {}

    def add_plain(name: str, body: Any, headers: bytes = b"Content-Type: application/json\r\n", **more: Any) -> None:
        cases["p_" + name] = [plain(body if isinstance(body, bytes) else dumps(body), headers=headers, **more)]

    def add_stream(name: str, events: Iterable[Any], headers: bytes = SSE, **more: Any) -> None:
        cases["s_" + name] = [*chunked(sse(events, **more), headers=headers)]

    for name, text in {
        "text": "Hello",
        "empty": "",
        "unicode": "héllo 😀 \u2028 x",
        "blanks": "  two\n\nlines \n",
        "tags_inside": "use <think> tags",
        "json": '{"a": [1, "b"]}',
        "long": "word " * 4000,
    }.items():
        add_plain(name, answer({"content": text}))
        add_stream(name, text_stream(*[text[i : i + 7] for i in range(0, len(text), 7)]))
        add_stream(name + "_once", text_stream(text))
    for finish in (
        "stop",
        "length",
        "content_filter",
        "error",
        "MAX_TOKENS",
        "SAFETY",
        "STOP",
        "model_length",
        "insufficient_system_resource",
        "sensitive",
        "eos",
        "brand_new_reason",
        "tool_calls",
        None,
    ):
        add_plain(f"finish_{finish}", answer({"content": "Hello"}, finish))
        add_stream(f"finish_{finish}", text_stream("Hel", "lo", finish=finish))
    for call_kind, deltas in {
        "one": [
            call_delta(index=0, **whole_call("a", "w", "")),
            call_delta(index=0, function=function(None, OSLO[:5])),
            call_delta(index=0, function=function(None, OSLO[5:])),
        ],
        "two": [call_delta(index=0, **whole_call("a", "w", OSLO)), call_delta(index=1, **whole_call("b", "w", ROME))],
        "two_without_index": [call_delta(**whole_call("a", "w", OSLO)), call_delta(**whole_call("b", "w", ROME))],
        "two_at_index_0": [
            call_delta(index=0, **whole_call("a", "w", OSLO)),
            call_delta(index=0, **whole_call("b", "w", ROME)),
        ],
        "two_without_id": [call_delta(function=function("w", OSLO)), call_delta(function=function("w", ROME))],
        "two_in_a_chunk": [{"tool_calls": [whole_call("a", "w", OSLO), whole_call("b", "v", ROME)]}],
        "interleaved": [
            call_delta(index=0, **whole_call("a", "w", "")),
            call_delta(index=1, **whole_call("b", "v", ROME[:4])),
            call_delta(index=0, function=function(None, OSLO)),
            call_delta(index=1, function=function(None, ROME[4:])),
        ],
        "object_arguments": [call_delta(index=0, **whole_call("a", "w", {"c": "Oslo"}))],
        "no_arguments": [
            call_delta(index=0, **whole_call("a", "w", "")),
            call_delta(index=1, **whole_call("b", "v", "")),
        ],
        "repeated_head": [
            call_delta(index=0, **whole_call("a", "w", OSLO[:3])),
            call_delta(index=0, **whole_call("a", "w", OSLO[3:])),
        ],
        "after_text": [{"content": "Let me see. "}, call_delta(index=0, **whole_call("a", "w", OSLO))],
        "before_text": [call_delta(index=0, **whole_call("a", "w", OSLO)), {"content": "That is all."}],
    }.items():
        add_stream(f"call_{call_kind}", [*(chunk(delta) for delta in deltas), chunk({}, "tool_calls"), USAGE_CHUNK])
        add_stream(f"call_{call_kind}_stop", [*(chunk(delta) for delta in deltas), chunk({}, "stop"), USAGE_CHUNK])
    for call_kind, calls in {
        "one": [whole_call("a", "w", OSLO)],
        "two": [whole_call("a", "w", OSLO), whole_call("b", "w", ROME)],
        "object_arguments": [whole_call("a", "w", {"c": "Oslo"})],
        "no_arguments": [whole_call("a", "w", "")],
        "without_id": [whole_call(None, "w", OSLO), whole_call(None, "v", ROME)],
    }.items():
        add_plain(f"call_{call_kind}", answer({"content": None, "tool_calls": calls}, "tool_calls"))
    errors: dict[str, Any] = {
        "object": {"error": {"message": "boom", "type": "server_error", "code": None}},
        "number": {"error": {"message": "boom", "code": 502}},
        "text": {"error": "boom"},
        "vllm": {"object": "error", "message": "boom", "type": "InternalServerError", "param": None, "code": 500},
        "list": [{"error": {"code": 429, "message": "boom", "status": "RESOURCE_EXHAUSTED"}}],
        "minimax": {"id": "x", "choices": None, "base_resp": {"status_code": 1004, "status_msg": "boom"}},
    }
    for kind, error in errors.items():
        add_plain(f"error_{kind}", error)
        add_stream(f"error_{kind}", [chunk({"content": "Hel"}), error])
        add_stream(f"error_{kind}_first", [error])
    broken = chunk({"content": ""}, "error")
    broken["choices"][0]["error"] = {"code": 502, "message": "boom"}
    add_stream("error_in_choice", [chunk({"content": "Hel"}), broken])
    add_stream("error_named", [chunk({"content": "Hel"}), b'event: error\ndata: {"message": "boom"}\n\n'], done=False)
    add_stream("error_named_text", [chunk({"content": "Hel"}), b"event: error\ndata: boom\n\n"], done=False)
    add_plain("error_detail_200", {"detail": "boom"})
    for status in ("400 Bad Request", "401 Unauthorized", "429 Too Many Requests", "500 Oops", "503 Busy"):
        add_plain(f"status_{status[:3]}", {"error": {"message": "boom", "type": "t", "code": "c"}}, status=status)
        cases[f"s_status_{status[:3]}"] = cases[f"p_status_{status[:3]}"]
    add_plain("refusal", answer({"content": None, "refusal": "I can't"}))
    add_stream("refusal", [chunk({"refusal": "I "}), chunk({"refusal": "can't"}), chunk({}, "stop"), USAGE_CHUNK])
    add_plain("think", answer({"content": "<think>\nsecret\n</think>\n\nYes"}))
    add_stream("think", text_stream("<th", "ink>sec", "ret</thi", "nk>\n\n", "Yes"))
    add_plain("reasoning", answer({"content": "Yes", "reasoning_content": "secret"}))
    add_stream("reasoning", [chunk({"reasoning_content": "secret"}), *text_stream("Yes")])
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "secret"}]}, {"type": "text", "text": "Yes"}]
    add_plain("parts", answer({"content": parts}))
    add_stream("parts", [chunk({"content": [part]}) for part in parts] + [chunk({}, "stop"), USAGE_CHUNK])
    halves = [b'data: {"choices":[{"index":0,"delta":{"content":"\\u%b"}}]}\n\n' % half for half in (b"d83d", b"de00")]
    add_stream("surrogates", [*halves, *text_stream("!")])
    add_stream("bare_end", [chunk({"content": "Hel"}), chunk({"content": "lo"}, "stop")], done=False)
    add_stream("no_end", [chunk({"content": "Hel"})], done=False)
    add_stream("empty_reason_no_end", [chunk({"content": "Hel"}, "")], done=False)
    add_stream("not_json", [chunk({"content": "Hel"}), b"data: {oops\n\n", *text_stream("lo")])
    add_stream("crlf", text_stream("Hel", "lo"), end="\r\n\r\n")
    add_stream("cr", text_stream("Hel", "lo"), end="\r\r")
    add_stream("comments", [b": PROCESSING\n\n", *text_stream("Hel", "lo")], headers=b"Content-Type: text/plain\r\n")
    add_stream("json_type", text_stream("Hel", "lo"), headers=b"Content-Type: application/json\r\n")
    add_stream("no_type", text_stream("Hel", "lo"), headers=b"")
    nan = b'{"choices":[{"index":0,"%b":{"content":"Hello"},"logprobs":{"content":[{"logprob":-Infinity}]}}],"x":NaN}'
    add_stream("nan", [b"data: " + nan % b"delta" + b"\n\n", *text_stream("!")])
    add_plain("nan", nan % b"message")
    body = dumps(answer({"content": "Hello"}))
    add_plain("bom", b"\xef\xbb\xbf" + body)
    add_plain("utf16", body.decode().encode("utf-16"))
    add_plain("keep_alive_lines", b"\n\n\n" + body)
    add_plain("coding_utf8", body, headers=b"Content-Type: application/json\r\nContent-Encoding: utf-8\r\n")
    add_plain("gzip", gzip.compress(body), headers=b"Content-Encoding: gzip\r\n")
    add_plain("gzip_twice", gzip.compress(gzip.compress(body)), headers=b"Content-Encoding: gzip, gzip\r\n")
    add_plain("gzip_not", body, headers=b"Content-Encoding: gzip\r\n")
    cases["s_json_instead"] = [plain(body)]
    cases["s_bytes"] = [*chunked(_bytes(b"".join(sse(text_stream("h\u00e9", "\U0001f600")))))]
    cases["p_stream_instead"] = [*chunked(sse(text_stream("Hel", "lo")))]
    length = b"Content-Length: %d\r\n" % len(body)
    cases["p_lengths"] = [b"HTTP/1.1 200 OK\r\n" + length + length + b"\r\n" + body]
    cases["p_line_feeds"] = [(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n").replace(b"\r\n", b"\n") + body]
    cases["p_empty_choices"] = [plain(dumps({**answer({}), "choices": []}))]
    cases["p_html"] = [plain(b"<html>busy</html>", headers=b"Content-Type: text/html\r\n")]
    return cases


def _bytes(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


# --- Messages


def start(**usage: Any) -> dict[str, Any]:
    message = {"id": "m", "type": "message", "role": "assistant", "model": "claude", "content": []}
    return {
        "type": "message_start",
        "message": {**message, "usage": usage or {"input_tokens": 100, "output_tokens": 1}},
    }


def block(index: int, content: dict[str, Any], *deltas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"type": "content_block_start", "index": index, "content_block": content},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


def text_block(index: int, *words: str) -> list[dict[str, Any]]:
    return block(index, {"type": "text", "text": ""}, *({"type": "text_delta", "text": word} for word in words))


def tool_block(index: int, call_id: str, name: str, *parts: str, **given: Any) -> list[dict[str, Any]]:
    content = {"type": "tool_use", "id": call_id, "name": name, "input": given}
    return block(index, content, *({"type": "input_json_delta", "partial_json": part} for part in parts))


def stopped(reason: str | None = "end_turn", usage: Any = "told") -> list[dict[str, Any]]:
    told = {"output_tokens": 50} if usage == "told" else usage
    delta = {"type": "message_delta", "delta": {"stop_reason": reason, "stop_sequence": None}, "usage": told}
    return [delta, {"type": "message_stop"}]


def message(content: list[Any], stop: str | None = "end_turn", **more: Any) -> dict[str, Any]:
    whole = {"id": "m", "type": "message", "role": "assistant", "model": "claude", "content": content}
    usage = {"input_tokens": 100, "output_tokens": 50}
    return {**whole, "stop_reason": stop, "stop_sequence": None, "usage": usage, **more}


def messages_cases() -> dict[str, Pieces]:
    """See `chat_cases`."""
    cases: dict[str, Pieces] = {}

    def add_plain(name: str, body: Any, **more: Any) -> None:
        cases["p_" + name] = [plain(body if isinstance(body, bytes) else dumps(body), **more)]

    def add_stream(name: str, events: Iterable[Any], *, named: bool = True, end: str = "\n\n") -> None:
        pieces = []
        for event in events:
            if isinstance(event, bytes):
                pieces.append(event)
                continue
            head = f"event: {event['type']}\n".encode() if named else b""
            pieces.append(head + b"data: " + dumps(event) + end.encode())
        cases["s_" + name] = [*chunked(pieces, headers=SSE)]

    for name, text in {"text": "Hello", "unicode": "h\u00e9llo \U0001f600", "blanks": " a\n\nb ", "empty": ""}.items():
        add_plain(name, message([{"type": "text", "text": text}]))
        add_stream(name, [start(), *text_block(0, *[text[i : i + 2] for i in range(0, len(text), 2)]), *stopped()])
    for stop in (
        "end_turn",
        "max_tokens",
        "stop_sequence",
        "refusal",
        "model_context_window_exceeded",
        "pause_turn",
        "tool_use",
        "brand_new_reason",
        None,
    ):
        add_plain(f"stop_{stop}", message([{"type": "text", "text": "Hello"}], stop))
        add_stream(f"stop_{stop}", [start(), *text_block(0, "Hel", "lo"), *stopped(stop)])
    use = {"type": "tool_use", "id": "t1", "name": "w", "input": {"c": "Oslo"}}
    add_plain("call", message([use], "tool_use"))
    add_plain("call_text", message([{"type": "text", "text": "Let me see."}, use], "tool_use"))
    add_plain("two_calls", message([use, {**use, "id": "t2", "input": {}}], "tool_use"))
    add_stream("call", [start(), *tool_block(0, "t1", "w", "", '{"c":"Os', 'lo"}'), *stopped("tool_use")])
    add_stream("call_given", [start(), *tool_block(0, "t1", "w", c="Oslo"), *stopped("tool_use")])
    add_stream("call_empty", [start(), *tool_block(0, "t1", "w"), *stopped("tool_use")])
    two = [*tool_block(1, "t1", "w", OSLO), *tool_block(2, "t2", "v", ROME)]
    add_stream("two_calls", [start(), *text_block(0, "Let me see."), *two, *stopped("tool_use")])
    late = [*tool_block(0, "t1", "w", OSLO), *text_block(1, "That ", "is all.")]
    add_stream("call_before_text", [start(), *late, *stopped("tool_use")])
    server = [
        *block(0, {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}),
        *block(1, {"type": "web_search_tool_result", "tool_use_id": "s", "content": []}),
        *text_block(2, "Hel", "lo"),
    ]
    server.insert(
        1, {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": '{"q":1}'}}
    )
    add_stream("server_tool", [start(), *server, *stopped()])
    thinking = {"type": "thinking", "thinking": "secret", "signature": "s"}
    add_plain("thinking", message([thinking, {"type": "text", "text": "Yes"}]))
    deltas = [{"type": "thinking_delta", "thinking": "secret"}, {"type": "signature_delta", "signature": "s"}]
    thought = block(0, {"type": "thinking", "thinking": "", "signature": ""}, *deltas)
    add_stream("thinking", [start(), *thought, *text_block(1, "Yes"), *stopped()])
    add_stream("pings", [start(), {"type": "ping"}, *text_block(0, "Hel", "lo"), {"type": "ping"}, *stopped()])
    add_stream("unnamed", [start(), *text_block(0, "Hel", "lo"), *stopped()], named=False)
    add_stream("crlf", [start(), *text_block(0, "Hel", "lo"), *stopped()], end="\r\n\r\n")
    add_stream("no_stop_event", [start(), *text_block(0, "Hel", "lo"), stopped()[0]])
    add_stream("no_block_start", [start(), text_block(0, "Hello")[1], *stopped()])
    add_stream("no_usage", [start(), *text_block(0, "Hello"), *stopped(usage=None)])
    add_stream(
        "late_input",
        [start(input_tokens=0), *text_block(0, "Hi"), *stopped(usage={"input_tokens": 7, "output_tokens": 9})],
    )
    add_stream("cut", [start(), *text_block(0, "Hel")])
    overloaded = {"type": "error", "error": {"type": "overloaded_error", "message": "boom"}}
    add_stream("error", [start(), *text_block(0, "Hel"), overloaded])
    add_stream("error_first", [overloaded])
    add_stream("error_text", [start(), b"event: error\ndata: boom\n\n"])
    add_plain("error_200", overloaded)
    for status in ("400 Bad Request", "401 Unauthorized", "429 Too Many Requests", "500 Oops", "529 Busy"):
        add_plain(f"status_{status[:3]}", {"type": "error", "error": {"type": "t", "message": "boom"}}, status=status)
        cases[f"s_status_{status[:3]}"] = cases[f"p_status_{status[:3]}"]
    add_plain("empty_content", message([]))
    add_plain("explained_refusal", message([], "refusal", stop_details={"explanation": "I can't"}))
    add_plain("bom", b"\xef\xbb\xbf" + dumps(message([{"type": "text", "text": "Hello"}])))
    add_plain("not_a_message", {"hello": "world"})
    cases["s_json_instead"] = [plain(dumps(message([{"type": "text", "text": "Hello"}])))]
    return cases
