"""The short ways to read ordinary answers, whole or streamed, give what the general readers give, or leave it to them."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalpipe.models import Outcome
from evalpipe.providers.ordinary import read_ordinary, read_ordinary_stream
from evalpipe.providers.registry import read_answer

JSON = {"content-type": "application/json"}
CHAT: dict[str, Any] = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4o-2024-08-06",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "It is 5 < 7.", "refusal": None, "annotations": []},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {
        "prompt_tokens": 1000,
        "completion_tokens": 100,
        "total_tokens": 1100,
        "prompt_tokens_details": {"cached_tokens": 5, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 7},
    },
    "service_tier": "default",
    "system_fingerprint": None,
}
MESSAGE: dict[str, Any] = {
    "id": "m1",
    "type": "message",
    "role": "assistant",
    "model": "claude-haiku-4-5",
    "content": [{"type": "text", "text": "It is "}, {"type": "text", "text": "naïve.", "citations": None}],
    "stop_reason": "max_tokens",
    "stop_sequence": None,
    "usage": {"input_tokens": 900, "output_tokens": 120, "cache_read_input_tokens": 3, "service_tier": "standard"},
}
ORDINARY = {"chat.completions": CHAT, "messages": MESSAGE}

# fmt: off
KEYS = [
    "error", "base_resp", "type", "object", "x_groq", "usage", "choices", "content", "tool_calls",
    "function_call", "audio", "images", "refusal", "reasoning", "delta", "reasoning_content",
    "stop_details", "stop_reason", "finish_reason", "message", "code", "provider", "model", "text",
    "unknown", "server_tool_use", "cost", "iterations", "speed", "total_tokens", "prompt_tokens",
    "output_tokens",
]
# fmt: on
VALUES = st.sampled_from(
    [
        *(None, "", 0, 5, -1, 1.5, True, 10**30, [], {}, "error", "x", ["a"], {"a": 1}, "  "),
        *("<think>a</think>b", "[THINK]x[/THINK]y", "a\n</think>\nb", " <b>", "é😀", "\ud83d"),
        *("refusal", "stop", "length", "tool_calls", "content_filter", "tool_use", "end_turn", "odd"),
        *(
            {"message": "boom", "code": 429},
            [{"type": "text", "text": "z"}],
            {"type": "tool_use", "id": "t", "name": "f"},
        ),
    ]
)


def containers(value: Any) -> list[Any]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [
        *([value] if isinstance(value, dict | list) else []),
        *(found for one in inner for found in containers(one)),
    ]


def change(draw: st.DrawFn, document: Any) -> None:
    """Up to three changes anywhere in a document."""
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(containers(document)))
        value = copy.deepcopy(draw(VALUES))
        if isinstance(place, list):
            place.insert(draw(st.integers(0, len(place))), value)
        elif draw(st.booleans()):
            place[draw(st.sampled_from([*place, *KEYS]))] = value
        else:
            place.pop(draw(st.sampled_from([*place, "none"])), None)


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, str]:
    """An endpoint and a body: an ordinary answer with up to three changes anywhere in it, or in its text."""
    endpoint = draw(st.sampled_from(sorted(ORDINARY)))
    document = copy.deepcopy(ORDINARY[endpoint])
    change(draw, document)
    text = json.dumps(document, ensure_ascii=draw(st.booleans()))
    old, new = draw(
        st.sampled_from([("", ""), ("1000", "NaN"), ("900", "1e999"), ("It", "\\x"), ("It", "\\ud83d"), ("}", "")])
    )
    text = text.replace(old, new, 1) if old else text
    return endpoint, text.encode("utf-8", "replace").decode()


@settings(max_examples=1500, deadline=None)
@given(answers())
def test_the_short_way_gives_what_the_general_reader_gives(answer: tuple[str, str]) -> None:
    endpoint, body = answer
    found = read_ordinary(endpoint, body)
    general = read_answer(endpoint, 200, JSON, body.encode())
    assert found is None or found == general
    assert read_answer(endpoint, 200, JSON, body) == general


@pytest.mark.parametrize(
    ("endpoint", "text", "outcome", "n_input"),
    [("chat.completions", "It is 5 < 7.", Outcome.OK, 1000), ("messages", "It is naïve.", Outcome.TRUNCATED, 903)],
)
def test_ordinary_answers_take_the_short_way(endpoint: str, text: str, outcome: Outcome, n_input: int) -> None:
    body = json.dumps(ORDINARY[endpoint])
    found = read_ordinary(endpoint, body)
    assert found is not None
    assert (found.text, found.outcome, found.usage.input_tokens) == (text, outcome, n_input)
    assert found.assembled == body


@pytest.mark.parametrize("status", [400, 500, None])
def test_an_ordinary_body_under_an_error_status_is_an_error(status: int | None) -> None:
    body = json.dumps(CHAT)
    assert read_answer("chat.completions", status, JSON, body) == read_answer(
        "chat.completions", status, JSON, body.encode()
    )
    assert read_answer("chat.completions", status, JSON, body).outcome is not Outcome.OK


# Streams.


STREAM = {"content-type": "text/event-stream"}
PIECES = st.sampled_from(
    ["", " ", "It is", " 5 < 7.", "naïve 😀", "a\n\nb", 'data: {"a": 1}', "<think>", "</think>", "["]
)


def chunk(delta: dict[str, Any], *, reason: str | None = None, **fields: Any) -> dict[str, Any]:
    choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o-2024-08-06"}
    return {**head, "service_tier": "default", "system_fingerprint": None, "choices": choices, **fields}


def chunks(pieces: list[str], *, reason: str | None, counts: bool) -> list[Any]:
    counted = chunk({}, choices=[], usage=copy.deepcopy(CHAT["usage"]), obfuscation="x")
    return [
        chunk({"role": "assistant", "content": "", "refusal": None}),
        *(chunk({"content": piece}, usage=None) for piece in pieces),
        chunk({}, reason=reason),
        *([counted] if counts else []),
    ]


def stream(documents: list[Any], *, end: str = "data: [DONE]\n\n") -> str:
    return "".join(f"data: {json.dumps(document, ensure_ascii=False)}\n\n" for document in documents) + end


def events(blocks: list[list[str]], *, reason: str | None) -> list[Any]:
    begun = {**MESSAGE, "content": [], "stop_reason": None, "usage": {"input_tokens": 900, "output_tokens": 1}}
    return [
        {"type": "message_start", "message": begun},
        {"type": "ping"},
        *(event for number, pieces in enumerate(blocks) for event in block_events(number, pieces)),
        {"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 120}},
        {"type": "message_stop"},
    ]


def block_events(number: int, pieces: list[str]) -> list[Any]:
    deltas: list[dict[str, Any]] = [
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": piece}} for piece in pieces
    ]
    start: dict[str, Any] = {"type": "content_block_start", "content_block": {"type": "text", "text": ""}}
    return [{**event, "index": number} for event in (start, *deltas, {"type": "content_block_stop"})]


def named_stream(documents: list[Any]) -> str:
    def name(document: Any) -> str:
        kind = document.get("type") if isinstance(document, dict) else None
        return kind if isinstance(kind, str) else "x"

    return "".join(
        f"event: {name(document)}\ndata: {json.dumps(document, ensure_ascii=False)}\n\n" for document in documents
    )


@st.composite
def streams(draw: st.DrawFn) -> tuple[str, str]:
    """An endpoint and an ordinary stream with changes anywhere in its events, or in its text."""
    if draw(st.booleans()):
        endpoint = "chat.completions"
        reason = draw(st.sampled_from(["stop", "length", "content_filter", "odd", None]))
        documents = chunks(draw(st.lists(PIECES, max_size=4)), reason=reason, counts=draw(st.booleans()))
    else:
        endpoint = "messages"
        reason = draw(st.sampled_from(["end_turn", "max_tokens", "refusal", "tool_use", None]))
        documents = copy.deepcopy(events(draw(st.lists(st.lists(PIECES, max_size=3), max_size=3)), reason=reason))
    if draw(st.booleans()):
        change(draw, documents)
    if draw(st.integers(0, 5)) == 5 and documents:
        documents.insert(draw(st.integers(0, len(documents))), copy.deepcopy(draw(st.sampled_from(documents))))
    end = draw(st.sampled_from(["data: [DONE]\n\n", "data: [DONE]\n\n", "data: [DONE]\n", ""]))
    text = stream(documents, end=end) if endpoint == "chat.completions" else named_stream(documents)
    changes = [("", ""), ("\n\ndata: ", ",\n\ndata: "), ("\n\ndata: ", ","), ("\n\ndata: ", "\ndata: ")]
    changes += [("\n", "\r\n"), ("data: ", "event: x\ndata: "), (", ", ",\n"), (", ", ",\r"), ("}", "}\n")]
    changes += [("data: ", "data:"), ("1", "1e999"), ("data: ", ": x\n\ndata: "), ("It", "\\ud83d"), ("\n\n", "")]
    changes += [("data: [", 'data: {"error": {"message": "boom"}}\n\ndata: ['), ("event: ping", "event: error")]
    old, new = draw(st.sampled_from(changes))
    parts = text.split(old) if old else [text]
    at = draw(st.integers(0, len(parts) - 1))
    text = old.join(parts[: at + 1]) + (new if len(parts) > at + 1 else "") + old.join(parts[at + 1 :])
    return endpoint, text.encode("utf-8", "replace").decode()


@settings(max_examples=800, deadline=None)
@given(streams())
def test_the_short_way_through_a_stream_gives_what_the_general_reader_gives(answer: tuple[str, str]) -> None:
    endpoint, body = answer
    found = read_ordinary_stream(endpoint, body)
    general = read_answer(endpoint, 200, STREAM, body.encode())
    assert found is None or found == general
    assert read_answer(endpoint, 200, STREAM, body) == general


@pytest.mark.parametrize(
    ("endpoint", "body", "n_input"),
    [
        ("chat.completions", stream(chunks(["It is ", "naïve."], reason="length", counts=True)), 1000),
        ("messages", named_stream(events([["It is ", ""], ["naïve."]], reason="max_tokens")), 900),
    ],
)
def test_ordinary_streams_take_the_short_way(endpoint: str, body: str, n_input: int) -> None:
    found = read_ordinary_stream(endpoint, body)
    assert found is not None
    assert (found.text, found.outcome, found.usage.input_tokens) == ("It is naïve.", Outcome.TRUNCATED, n_input)
    first = body.encode().index(b"It is ")
    assert found.content_offset == body.encode().index(b"\n\n", first) + 2
    whole = json.loads(found.assembled or "")
    blocks = whole["content"] if endpoint == "messages" else [{"text": whole["choices"][0]["message"]["content"]}]
    assert "".join(block["text"] for block in blocks) == "It is naïve."
