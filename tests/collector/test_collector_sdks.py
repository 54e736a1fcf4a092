"""The unmodified official SDKs through the collector: byte for byte what a direct call gives, plain and streamed."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import anthropic
import openai
import pytest
from collector_harness import RawUpstream, Received, Running, chat_answer, chat_stream, chunked, plain
from conformance_cases import ANTHROPIC_STREAM, RESPONSES_STREAM, TOOL, TOOLS

from evalpipe.store.query import open_store
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import open_workspace

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(300)).decode()
MESSAGE = {
    "id": "m",
    "type": "message",
    "role": "assistant",
    "model": "claude",
    "content": [
        {"type": "text", "text": "Grüße"},
        {"type": "tool_use", "id": "t", "name": "weather", "input": {"a": 1}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 1, "output_tokens": 2},
}


def script(request: Received) -> list[bytes | float | str]:
    streamed = json.loads(request.body).get("stream")
    if b"/messages" in request.line:
        return chunked(ANTHROPIC_STREAM) if streamed else [plain(json.dumps(MESSAGE).encode())]
    if b"/responses" in request.line:
        return chunked(RESPONSES_STREAM) if streamed else [plain(b'{"id": "r", "object": "response", "output": []}')]
    if streamed:
        return chunked(chat_stream(["a", "ß", "c"]))
    return [plain(chat_answer(tool_calls=[TOOL, {**TOOL, "id": "call_2"}]))]


def openai_calls(base: str) -> list[bytes]:
    client = openai.OpenAI(base_url=base + "/v1", api_key="sk-x", max_retries=0)
    image = [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}, {"type": "text", "text": "?"}]
    seen = []
    for more in (
        {},
        {"tools": TOOLS},
        {"response_format": {"type": "json_object"}},
        {"messages": [{"role": "user", "content": image}]},
    ):
        options: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], **more}
        seen.append(client.chat.completions.with_raw_response.create(**options).http_response.content)
        with client.chat.completions.with_streaming_response.create(**options, stream=True) as answer:
            seen.append(b"".join(answer.iter_bytes()))
        with client.chat.completions.stream(**{k: v for k, v in options.items() if k != "response_format"}) as stream:
            seen.append("".join(event.type for event in stream).encode())
    seen.append(client.responses.with_raw_response.create(model="gpt-4o", input="hi").http_response.content)
    with client.responses.with_streaming_response.create(model="gpt-4o", input="hi", stream=True) as answer:
        seen.append(b"".join(answer.iter_bytes()))
    client.close()
    return seen


def anthropic_calls(base: str) -> list[bytes]:
    client = anthropic.Anthropic(base_url=base, api_key="sk-x", max_retries=0)
    image = [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}]
    tool = {"name": "weather", "input_schema": {"type": "object"}}
    seen = []
    for more in ({}, {"tools": [tool]}, {"messages": [{"role": "user", "content": image}]}):
        options: dict[str, Any] = {
            "model": "claude",
            "max_tokens": 9,
            "messages": [{"role": "user", "content": "hi"}],
            **more,
        }
        seen.append(client.messages.with_raw_response.create(**options).http_response.content)
        with client.messages.with_streaming_response.create(**options, stream=True) as answer:
            seen.append(b"".join(answer.iter_bytes()))
    client.close()
    return seen


def test_sdk_clients_see_controls_bytes(
    upstream: Callable[..., RawUpstream], collector: Callable[..., Running]
) -> None:
    server = upstream(script)
    running = collector(server.url + "/v1", server.url)
    assert openai_calls(running.url) == openai_calls(server.url)
    assert anthropic_calls(running.url) == anthropic_calls(server.url)
    assert running.stop() == 0
    assert len(running.responses()) == len(running.requests()) == 20


@pytest.mark.parametrize("arm", ["control", "treatment"])
def test_injected_usage_is_logged_and_not_seen(
    upstream: Callable[..., RawUpstream], collector: Callable[..., Running], arm: str
) -> None:
    """Whichever arm serves: with one arm's tokens unknown the two could not be compared."""
    words = chat_stream(["a", "b"])
    usage = b'data: {"id":"x","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'

    def told(request: Received) -> list[bytes | float | str]:
        if not json.loads(request.body).get("stream_options"):
            return chunked(words)
        with_null = [word.replace(b"}\n\n", b', "usage": null}\n\n') for word in words[:-1]]
        pieces = b"".join([*with_null, usage, words[-1]])
        return chunked([pieces[i : i + 13] for i in range(0, len(pieces), 13)])

    server = upstream(told)
    split = {"mode": "ab", "experiment": "treatment_percent = 100", "treatment": server.url}
    options: dict[str, Any] = {} if arm == "control" else split
    running = collector(server.url, collector='stream_usage = "inject"', **options)
    seen = {}
    for base in (server.url, running.url):
        client = openai.OpenAI(base_url=base + "/v1", api_key="sk-x", max_retries=0)
        with client.chat.completions.with_streaming_response.create(
            model="gpt-4o", messages=[{"role": "user", "content": "hi"}], stream=True
        ) as answer:
            seen[base] = b"".join(answer.iter_bytes())
        client.close()
    assert seen[server.url] == seen[running.url]
    running.stop()
    (record,) = running.responses().values()
    assert (record.arm, b'"prompt_tokens":3' in record.body.data) == (arm, True)
    load(open_workspace(root=running.root))
    with open_store(running.data) as store:
        assert store.connection.sql(
            "SELECT arm, request_kind, input_tokens, output_tokens FROM exchanges"
        ).fetchall() == [(arm, "chat.completions streamed usage injected", 3, 2)]
