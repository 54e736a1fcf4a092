"""Any value at any place: requests and answers with one value replaced are read, translated or refused, never an exception."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from evalpipe.providers.base import NotShadowableError
from evalpipe.providers.registry import answer_reader, read_answer, read_request
from evalpipe.providers.translate import render_treatment_request
from evalpipe.providers.translate_response import AnswerTranslator

ODD: list[Any] = [[], {}, [[]], [{}], {"type": []}, 5, -1.5, True, None, "", "x", 10**30]
PNG = "iVBORw0KGgo="
FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {"x": {"type": "string"}}}}
REQUESTS: dict[str, dict[str, Any]] = {
    "chat.completions": {
        "model": "gpt-4o",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                {"type": "file", "file": {"file_data": "data:application/pdf;base64,JVBERi0=", "filename": "a.pdf"}},
            ]},
            {"role": "assistant", "content": "Let me see.", "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": "1"}'}},
            ]},
            {"role": "tool", "tool_call_id": "c1", "content": "one"},
        ],
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}},
        "reasoning_effort": "low",
        "stop": ["END"],
        "n": 1,
        "max_completion_tokens": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
        "metadata": {"user_id": "u"},
        "user": "u",
    },
    "messages": {
        "model": "claude-haiku-4-5",
        "max_tokens": 9,
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "Hi"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
                {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}},
            ]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "so", "signature": "s"},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": "1"}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "one"}]},
            ]},
        ],
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "tool", "name": "f"},
        "thinking": {"type": "enabled", "budget_tokens": 2000},
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}, "effort": "low"},
        "stop_sequences": ["END"],
        "metadata": {"user_id": "u"},
        "stream": True,
    },
    "responses": {
        "model": "gpt-4o",
        "instructions": "Be brief.",
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x": "1"}'},
            {"type": "function_call_output", "call_id": "c1", "output": "one"},
        ],
        "tools": [{"type": "function", **FUNCTION}],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}},
        "reasoning": {"effort": "low"},
        "store": False,
        "stream": True,
    },
}  # fmt: skip
USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8,
         "prompt_tokens_details": {"cached_tokens": 1}, "completion_tokens_details": {"reasoning_tokens": 1}}  # fmt: skip
CALL = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
ANSWERS: dict[str, dict[str, Any]] = {
    "chat.completions": {
        "id": "a", "object": "chat.completion", "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": [{"type": "text", "text": "hi"}],
                     "reasoning_content": "so", "refusal": "no", "tool_calls": [CALL], "images": [{"type": "image_url"}],
                     "audio": {"transcript": "t"}, "annotations": [{"type": "url_citation"}]}, "finish_reason": "stop"}],
        "usage": USAGE, "service_tier": "default", "error": {"message": "late", "code": 5, "type": "t"},
    },
    "messages": {
        "id": "a", "type": "message", "role": "assistant", "model": "m",
        "content": [{"type": "thinking", "thinking": "so"}, {"type": "text", "text": "hi"},
                    {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}},
                    {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}}],
        "stop_reason": "tool_use", "stop_sequence": None,
        "usage": {"input_tokens": 5, "output_tokens": 3, "cache_creation": {"ephemeral_1h_input_tokens": 1},
                  "server_tool_use": {"web_search_requests": 1}, "service_tier": "standard",
                  "iterations": [{"type": "message", "input_tokens": 5, "output_tokens": 3}]},
    },
    "responses": {
        "id": "a", "object": "response", "status": "completed", "model": "m",
        "output": [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "hi"},
                    {"type": "refusal", "refusal": "no"}]},
                   {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x": 1}'},
                   {"type": "web_search_call", "action": {"type": "search"}},
                   {"type": "shell_call", "environment": {"type": "local"}, "action": {"commands": ["ls"]}}],
        "usage": {"input_tokens": 5, "output_tokens": 3, "input_tokens_details": {"cached_tokens": 1}},
        "incomplete_details": {"reason": "max_output_tokens"}, "error": {"code": "c", "message": "m"},
    },
}  # fmt: skip
EVENTS: dict[str, list[dict[str, Any]]] = {
    "chat.completions": [
        {"id": "a", "model": "m", "choices": [{"index": 0, "delta": {"role": "assistant", "content": "hi"}}]},
        {"choices": [{"index": 0, "delta": {"reasoning_content": "so", "refusal": "no", "tool_calls": [CALL]}}]},
        {"choices": [{"index": 0, "delta": {"function_call": {"name": "f", "arguments": "{}"}}}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}], "usage": USAGE},
    ],
    "messages": [
        {"type": "message_start", "message": {"id": "a", "model": "m", "usage": {"input_tokens": 5}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "h"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "i"}},
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"x":1}'}},
        {"type": "content_block_stop", "index": 1},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 3}},
        {"type": "message_stop"},
    ],
    "responses": [
        {"type": "response.created", "response": {"id": "a", "model": "m"}},
        {"type": "response.output_item.added", "output_index": 0, "item": {"type": "function_call", "call_id": "c", "name": "f"}},
        {"type": "response.function_call_arguments.delta", "output_index": 0, "delta": "{}"},
        {"type": "response.output_item.done", "output_index": 0,
         "item": {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}},
        {"type": "response.output_text.delta", "output_index": 1, "content_index": 0, "delta": "hi"},
        {"type": "response.refusal.delta", "output_index": 1, "content_index": 1, "delta": "no"},
        {"type": "response.completed", "response": ANSWERS["responses"]},
    ],
}  # fmt: skip
DIALECTS = list(REQUESTS)
CLIENTS = {
    "chat.completions": ["messages", "responses"],
    "messages": ["chat.completions", "responses"],
    "responses": [],
}


def places(value: Any) -> Iterator[tuple[Any, ...]]:
    """The path of every value within a document."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inside:
        yield (key,)
        for rest in places(one):
            yield (key, *rest)


def variants(document: Any) -> Iterator[Any]:
    """The document with each of its values replaced by each odd one."""
    for path in places(document):
        for odd in ODD:
            changed = copy.deepcopy(document)
            holder = changed
            for key in path[:-1]:
                holder = holder[key]
            holder[path[-1]] = odd
            yield changed


@pytest.mark.parametrize("endpoint", DIALECTS)
def test_any_request_is_read_and_translated_or_refused(endpoint: str) -> None:
    settings = [
        ("openai", "gpt-4o"),
        ("openai", "o3"),
        ("anthropic", "claude-opus-4-8"),
        ("anthropic", "claude-haiku-4-5"),
    ]
    n = 0
    for document in variants(REQUESTS[endpoint]):
        body = json.dumps(document).encode()
        read_request(endpoint, body)
        for provider, model in settings:
            try:
                outgoing = render_treatment_request(
                    endpoint, body, provider=provider, model=model, system_prompt="Be kind."
                )
            except NotShadowableError as refused:
                assert refused.reason
            else:
                assert isinstance(json.loads(outgoing.body), dict)
            n += 1
    assert n > 1000


@pytest.mark.parametrize("endpoint", DIALECTS)
def test_any_plain_answer_is_read_and_translated(endpoint: str) -> None:
    for document in variants(ANSWERS[endpoint]):
        body = json.dumps(document).encode()
        assert read_answer(endpoint, 200, {"content-type": "application/json"}, body).outcome
        _translate(endpoint, body, stream=False)


@pytest.mark.parametrize("endpoint", DIALECTS)
def test_any_event_of_a_stream_is_read_and_translated(endpoint: str) -> None:
    for events in variants(EVENTS[endpoint]):
        body = b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
        reader = answer_reader(endpoint, 200, {"content-type": "text/event-stream"})
        reader.feed(body)
        assert reader.finish().outcome
        _translate(endpoint, body, stream=True)


def _translate(endpoint: str, body: bytes, *, stream: bool) -> None:
    for client in CLIENTS[endpoint]:
        request = json.dumps({"model": "asked", "stream": stream}).encode()
        translator = AnswerTranslator(endpoint, client, request_body=request, answer_id="a", created=1)
        translator.head(200, {"content-type": "text/event-stream" if stream else "application/json"})
        assert translator.feed(body) + translator.finish()
