"""What an arm is sent for a logged request: whole, in its own dialect, and never with a trace of ours."""

from __future__ import annotations

import json
from typing import Any

import pytest

from evalpipe.models import Arm
from evalpipe.providers.base import NotShadowableError
from evalpipe.replay.requests import LoggedRequest, ReplayArm, counted_bytes, longest_answer, outgoing_of

TOOL = {
    "type": "function",
    "function": {"name": "look_up", "parameters": {"type": "object", "properties": {"id": {"type": "string"}}}},
}


def arm(provider: str = "anthropic", which: Arm = Arm.TREATMENT, **settings: Any) -> ReplayArm:
    values: dict[str, Any] = {"model": "claude-haiku-4-5" if provider == "anthropic" else "gpt-4.1-mini"}
    return ReplayArm(
        arm=which, provider=provider, base_url="http://127.0.0.1:9", urls={}, key={}, **{**values, **settings}
    )


def request(body: Any, endpoint: str = "chat.completions", **columns: Any) -> LoggedRequest:
    text = body if isinstance(body, str) else json.dumps(body)
    return LoggedRequest(request_id="r", request=text, endpoint=endpoint, **columns)


def sent(logged: LoggedRequest, to: ReplayArm, **options: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(outgoing_of(logged, to, **options).body)
    return document


def test_a_conversation_with_tools_goes_whole_and_is_not_executed() -> None:
    body = {
        "model": "gpt-4.1",
        "messages": [
            {"role": "system", "content": "Help."},
            {"role": "user", "content": "Where is order 7?"},
            {
                "role": "assistant",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": '{"id": "7"}'}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "content": "on its way"},
        ],
        "tools": [TOOL],
        "temperature": 0.2,
        "max_tokens": 300,
    }
    found = sent(request(body), arm())
    assert (found["model"], found["system"], found["max_tokens"]) == ("claude-haiku-4-5", "Help.", 300)
    assert [message["role"] for message in found["messages"]] == ["user", "assistant", "user"]
    assert found["messages"][1]["content"][-1]["input"] == {"id": "7"}
    assert found["messages"][2]["content"][0]["type"] == "tool_result"
    assert [tool["name"] for tool in found["tools"]] == ["look_up"]


def test_control_gets_what_it_got_and_the_treatment_its_own_settings() -> None:
    body = {"model": "gpt-4.1", "messages": [{"role": "user", "content": "q"}], "temperature": 0.3}
    control = arm("openai", Arm.CONTROL, rewrite=False, params={"temperature": 1.0}, system_prompt="New.")
    assert sent(request(body), control) == body
    changed = sent(request(body), arm("openai", params={"temperature": 1.0}, system_prompt="New."))
    assert (changed["model"], changed["temperature"]) == ("gpt-4.1-mini", 1.0)
    assert changed["messages"][0] == {"role": "system", "content": "New."}


def test_nothing_is_stored_at_the_provider() -> None:
    body = {"model": "gpt-4.1", "input": "q", "store": True}
    assert sent(request(body, "responses"), arm("openai"))["store"] is False


@pytest.mark.parametrize(
    ("body", "endpoint", "reason"),
    [
        ("{", "chat.completions", "unreadable_request"),
        ({"model": "m", "input": "q", "previous_response_id": "resp_1"}, "responses", "needs_server_state"),
    ],
)
def test_what_has_no_faithful_form_is_named(body: Any, endpoint: str, reason: str) -> None:
    with pytest.raises(NotShadowableError) as refused:
        outgoing_of(request(body, endpoint), arm("openai"))
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"messages": [{"role": "user", "content": "q"}]}, "chat.completions"),
        ({"input": "q"}, "responses"),
        ({"system": "s", "messages": [{"role": "user", "content": "q"}]}, "messages"),
    ],
)
def test_an_imported_request_is_read_by_its_fields_and_gets_the_logs_model(body: Any, expected: str) -> None:
    logged = request(body, model="logged-model", is_imported=True)
    provider = "anthropic" if expected == "messages" else "openai"
    made = outgoing_of(logged, arm(provider, Arm.CONTROL, rewrite=False))
    assert (made.endpoint, json.loads(made.body)["model"]) == (expected, "logged-model")


def test_a_batch_takes_no_stream() -> None:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "q"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    found = sent(request(body), arm("openai"), batch=True)
    assert "stream" not in found and "stream_options" not in found
    assert sent(request(body), arm("openai"))["stream"] is True


def test_the_bounds_of_a_calls_cost() -> None:
    assert longest_answer(b'{"max_tokens": 70}') == 70
    assert longest_answer(b'{"max_completion_tokens": 70, "n": 3}') == 210
    assert longest_answer(b"{}") == 32_768
    picture = b"A" * 1_000_000
    assert counted_bytes(b'{"url": "' + picture + b'"}') == 11 + 8_000
    assert counted_bytes(b"some words") == 10
