"""The official SDKs, served by an arm of the other vendor: what the user got is what the store holds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import anthropic
import openai
import pytest
from collector_harness import RawUpstream, Received, Running
from translated_cases import Pieces, chat_cases, messages_cases

from evalpipe.store.query import open_store
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import open_workspace

TOOLS = [
    {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
    for name in "wv"
]
ANTHROPIC_TOOLS = [{"name": name, "input_schema": {"type": "object", "properties": {}}} for name in "wv"]
RESPONSES_TOOLS = [{"type": "function", "strict": False, **tool["function"]} for tool in TOOLS]


class Told(NamedTuple):
    """What the user's SDK gave: of an answer, or the error it raised."""

    text: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    finish: str | None = None
    tokens: tuple[int | None, int | None] | None = None
    error: str | None = None


def arguments(text: str) -> str:
    return json.dumps(json.loads(text or "{}"), sort_keys=True)


def ask_chat(client: openai.OpenAI, name: str) -> Told:
    options: dict[str, Any] = {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": f"case:{name}."}],
        "tools": TOOLS,
    }
    if name.startswith("p_"):
        answer = client.chat.completions.create(**options)
        [choice] = answer.choices
        said = choice.message
        calls = [(call.function.name, arguments(call.function.arguments)) for call in said.tool_calls or []]
        told = answer.usage and (answer.usage.prompt_tokens, answer.usage.completion_tokens)
        return Told(said.content or said.refusal or "", tuple(calls), choice.finish_reason, told)
    words: list[str] = []
    streamed: dict[int, list[str]] = {}
    usage = finish = None
    for chunk in client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        if chunk.usage:
            usage = (chunk.usage.prompt_tokens, chunk.usage.completion_tokens)
        for part in chunk.choices:
            words.append(part.delta.content or part.delta.refusal or "")
            finish = part.finish_reason or finish
            for call in part.delta.tool_calls or []:
                known = streamed.setdefault(call.index, ["", ""])
                known[0] += call.function.name or ""
                known[1] += call.function.arguments or ""
    return Told("".join(words), tuple((known, arguments(text)) for known, text in streamed.values()), finish, usage)


def ask_responses(client: openai.OpenAI, name: str) -> Told:
    options: dict[str, Any] = {"model": "gpt-5", "input": f"case:{name}.", "tools": RESPONSES_TOOLS, "store": False}
    if name.startswith("p_"):
        answer = client.responses.create(**options)
    else:
        answer = None
        for event in client.responses.create(**options, stream=True):
            if event.type == "error":
                raise openai.APIError(event.message, request=None, body=None)  # type: ignore[arg-type]
            if event.type in {"response.completed", "response.incomplete", "response.failed"}:
                answer = event.response
        assert answer is not None
    words = [
        part.text if part.type == "output_text" else part.refusal
        for item in answer.output
        if item.type == "message"
        for part in item.content
    ]
    calls = [(item.name, arguments(item.arguments)) for item in answer.output if item.type == "function_call"]
    refused = any(part.type == "refusal" for item in answer.output if item.type == "message" for part in item.content)
    reason = answer.incomplete_details and answer.incomplete_details.reason
    finish = "tool_calls" if calls and not reason else "refusal" if refused else reason or answer.status
    usage = answer.usage and (answer.usage.input_tokens, answer.usage.output_tokens)
    return Told("".join(words), tuple(calls), finish, usage)


def ask_messages(client: anthropic.Anthropic, name: str) -> Told:
    options: dict[str, Any] = {
        "model": "claude-haiku-4-5",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": f"case:{name}."}],
        "tools": ANTHROPIC_TOOLS,
    }
    if name.startswith("p_"):
        answer = client.messages.create(**options)
    else:
        with client.messages.stream(**options) as stream:
            for _ in stream:
                pass
            answer = stream.get_final_message()
    text = "".join(block.text for block in answer.content if block.type == "text")
    calls = [
        (block.name, json.dumps(block.input, sort_keys=True)) for block in answer.content if block.type == "tool_use"
    ]
    return Told(text, tuple(calls), answer.stop_reason, (answer.usage.input_tokens, answer.usage.output_tokens))


def asked(ask: Callable[[Any, str], Told], client: Any, name: str) -> Told:
    try:
        return ask(client, name)
    except (openai.APIError, anthropic.APIError) as error:
        return Told(error=str(error))


FINISH = {
    "chat": {"ok": "stop", "calls": "tool_calls", "truncated": "length", "refused": "content_filter", "words": "stop"},
    "responses": {
        "ok": "completed",
        "calls": "tool_calls",
        "truncated": "max_output_tokens",
        "refused": "content_filter",
        "words": "refusal",
    },
    "messages": {
        "ok": "end_turn",
        "calls": "tool_use",
        "truncated": "max_tokens",
        "refused": "refusal",
        "words": "refusal",
    },
}


def recorded(row: dict[str, Any], dialect: str) -> Told:
    """What a user must have been told of an answer that is recorded so."""
    if row["outcome"] not in {"ok", "truncated", "refused"} or row["status"] >= 300:
        return Told(error=row["error_message"])
    kind = row["outcome"]
    calls = [
        (call["name"], json.dumps(call["arguments"], sort_keys=True)) for call in json.loads(row["tool_calls"] or "[]")
    ]
    if kind == "ok" and calls:
        kind = "calls"
    if kind == "refused" and row["text"] and row["finish_reason"] in {"stop", "refusal"} and "I can't" in row["text"]:
        kind = "words"
    tokens = (row["input_tokens"], row["output_tokens"])
    if None in tokens:
        tokens = (tokens[0] or 0, tokens[1] or 0) if dialect == "messages" else None  # type: ignore[assignment]
    finish = FINISH[dialect][kind]
    if dialect == "messages" and row["finish_reason"] == "stop_sequence":
        finish = "stop_sequence"
    return Told(row["text"] or "", tuple(calls), finish, tokens)


def rows(running: Running) -> dict[str, dict[str, Any]]:
    running.stop()
    workspace = open_workspace(running.root / "evalpipe.toml", data=running.data)
    load(workspace)
    columns = "prompt, outcome, status, error_type, error_message, text, tool_calls, finish_reason, input_tokens, output_tokens"
    with open_store(running.data) as store:
        found = store.connection.sql(f"SELECT {columns} FROM exchanges").fetchall()
    named = [dict(zip(columns.split(", "), row, strict=True)) for row in found]
    return {re.search(r"case:(\w+)\.", row["prompt"])[1]: row for row in named}  # type: ignore[index]


def serve(cases: dict[str, Pieces]) -> Callable[[Received], Pieces]:
    def script(request: Received) -> Pieces:
        found = re.search(rb"case:(\w+)\.", request.body)
        assert found is not None
        return cases[found[1].decode()]

    return script


Upstream = Callable[[Any], RawUpstream]
Start = Callable[..., Running]


@pytest.mark.parametrize(("dialect", "arm"), [("chat", "messages"), ("responses", "messages"), ("messages", "chat")])
def test_the_user_got_what_is_recorded(
    dialect: str, arm: str, upstream: Upstream, collector: Start, tmp_path: Path
) -> None:
    cases = messages_cases() if arm == "messages" else chat_cases()
    treatment = upstream(serve(cases))
    control = upstream(lambda request: [b"HTTP/1.1 500 control was asked\r\nContent-Length: 0\r\n\r\n"])
    to_openai = dialect != "messages"
    running = collector(
        control.url,
        treatment.url,
        provider="openai" if to_openai else "anthropic",
        treatment_provider="anthropic" if to_openai else "openai",
        mode="ab",
        experiment="treatment_percent = 100\n",
    )
    client: Any
    if to_openai:
        client = openai.OpenAI(base_url=running.url + "/v1", api_key="k", max_retries=0, timeout=10)
    else:
        client = anthropic.Anthropic(base_url=running.url, api_key="k", max_retries=0, timeout=10)
    ask: Callable[[Any, str], Told] = {"chat": ask_chat, "responses": ask_responses, "messages": ask_messages}[dialect]
    told = {name: asked(ask, client, name) for name in cases}
    client.close()
    assert not control.received
    stored = rows(running)
    assert set(stored) == set(cases)
    differing = {}
    for name, user in told.items():
        expected = recorded(stored[name], dialect)
        if user.error is not None or expected.error is not None:
            same = None not in (user.error, expected.error) and _names(user.error, expected.error, stored[name])
        else:
            same = user == expected
        if not same:
            differing[name] = (user, expected, stored[name]["error_type"])
    assert not differing, "\n".join(f"{name}: {why}" for name, why in differing.items())
    assert len(told) >= 60


def _names(error: str | None, recorded_error: str | None, row: dict[str, Any]) -> bool:
    """Whether the exception says what the record says."""
    return recorded_error is None or recorded_error in (error or "") or (row["error_message"] or "") == ""
