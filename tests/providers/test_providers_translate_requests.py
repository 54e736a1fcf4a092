"""Requests said to an arm: same dialect with other settings, the other dialect, and the reasons why not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalpipe.providers.base import NotShadowableError
from evalpipe.providers.registry import DIALECTS, PROVIDERS, read_request
from evalpipe.providers.translate import render_treatment_request

USER = {"role": "user", "content": "hi"}
PNG = "iVBORw0KGgo="
CHAT_CALL = {"id": "call.1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
CHAT_TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


def sent(endpoint: str, body: dict[str, Any], provider: str, **more: Any) -> dict[str, Any]:
    document = {"model": "gpt-4o" if endpoint != "messages" else "claude-haiku-4-5", **body}
    outgoing = render_treatment_request(endpoint, json.dumps(document).encode(), provider=provider, **more)
    result: dict[str, Any] = json.loads(outgoing.body)
    return result


def reason(endpoint: str, body: dict[str, Any], provider: str, **more: Any) -> str:
    with pytest.raises(NotShadowableError) as caught:
        sent(endpoint, body, provider, **more)
    return caught.value.reason


def to_claude(body: dict[str, Any], **more: Any) -> dict[str, Any]:
    return sent("chat.completions", body, "anthropic", **{"model": "claude-haiku-4-5", **more})


def to_gpt(body: dict[str, Any], **more: Any) -> dict[str, Any]:
    return sent("messages", {"max_tokens": 100, **body}, "openai", **{"model": "gpt-4o", **more})


def test_chat_to_messages() -> None:
    body = {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "developer", "content": "And kind."},
            {"role": "user", "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                {"type": "image_url", "image_url": {"url": "https://example.com/a.jpg"}},
            ]},
            {"role": "assistant", "content": "Let me see.", "tool_calls": [
                CHAT_CALL, {**CHAT_CALL, "id": "call.2"},
            ]},
            {"role": "tool", "tool_call_id": "call.1", "content": "one"},
            {"role": "tool", "tool_call_id": "call.2", "content": "two"},
            {"role": "user", "content": "So?"},
        ],
        "tools": [CHAT_TOOL],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": False,
        "max_completion_tokens": 77,
        "stop": ["END", "STOP"],
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "stream": True,
    }  # fmt: skip
    result = to_claude(body)
    assert result == {
        "model": "claude-haiku-4-5",
        "system": "Be brief.\n\nAnd kind.",
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "What is this?"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
                {"type": "image", "source": {"type": "url", "url": "https://example.com/a.jpg"}},
            ]},
            {"role": "assistant", "content": [
                {"type": "text", "text": "Let me see."},
                {"type": "tool_use", "id": "call_1", "name": "f", "input": {"x": 1}},
                {"type": "tool_use", "id": "call_2", "name": "f", "input": {"x": 1}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": "one"},
                {"type": "tool_result", "tool_use_id": "call_2", "content": "two"},
                {"type": "text", "text": "So?"},
            ]},
        ],
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        "max_tokens": 77,
        "stop_sequences": ["END", "STOP"],
        "temperature": 0.5,
        "stream": True,
    }  # fmt: skip


def test_messages_to_chat() -> None:
    body = {
        "system": [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        "messages": [
            {"role": "user", "content": [
                {"type": "text", "text": "Look"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
                {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}},
            ]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "I'll call."},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "42"}]},
                {"type": "text", "text": "So?"},
            ]},
        ],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
        "stop_sequences": ["END"],
        "temperature": 1.0,
        "top_k": 5,
        "stream": True,
    }  # fmt: skip
    assert to_gpt(body) == {
        "model": "gpt-4o",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [
                {"type": "text", "text": "Look"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                {"type": "file", "file": {"filename": "document.pdf", "file_data": "data:application/pdf;base64,JVBE"}},
            ]},
            {"role": "assistant", "content": "I'll call.", "tool_calls": [
                {"id": "t1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
            ]},
            {"role": "tool", "tool_call_id": "t1", "content": "42"},
            {"role": "user", "content": "So?"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_completion_tokens": 100,
        "stop": ["END"],
        "temperature": 1.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip


def test_responses_to_messages() -> None:
    body = {
        "instructions": "Be brief.",
        "input": [
            {"role": "user", "content": [
                {"type": "input_text", "text": "What?"},
                {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"},
            ]},
            {"type": "reasoning", "id": "rs_1", "summary": []},
            {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"x":1}'},
            {"type": "function_call_output", "call_id": "c1", "output": "42"},
        ],
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": False}],
        "max_output_tokens": 50,
        "store": True,
    }  # fmt: skip
    result = sent("responses", body, "anthropic", model="claude-opus-4-8")
    assert result["system"] == "Be brief."
    assert [message["role"] for message in result["messages"]] == ["user", "assistant", "user"]
    assert result["messages"][2]["content"] == [{"type": "tool_result", "tool_use_id": "c1", "content": "42"}]
    assert result["max_tokens"] == 50
    chat = sent("responses", {"input": "hi", "max_output_tokens": 5}, "litellm", model="mistral/large")
    assert chat == {"model": "mistral/large", "messages": [USER], "max_tokens": 5}


def test_schemas_become_each_others_structured_output() -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer", "minimum": 1}, "minimum": {"$ref": "#/$defs/x"}},
        "required": ["n", "minimum"],
        "$defs": {"x": {"type": "string", "maxLength": 5}},
    }
    chat = {
        "messages": [USER],
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    }
    given = to_claude(chat)["output_config"]["format"]
    assert given["type"] == "json_schema"
    # Bounds are left out as keywords, and kept as names of properties; objects are closed.
    assert given["schema"] == {
        "type": "object",
        "properties": {"n": {"type": "integer", "description": "{minimum: 1}"}, "minimum": {"$ref": "#/$defs/x"}},
        "required": ["n", "minimum"],
        "$defs": {"x": {"type": "string", "description": "{maxLength: 5}"}},
        "additionalProperties": False,
    }
    back = to_gpt({"messages": [USER], "output_config": {"format": given}})["response_format"]
    assert back["json_schema"] == {"name": "answer", "schema": given["schema"], "strict": True}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"n": 2}, "several_choices"),
        ({"functions": [{"name": "f"}]}, "legacy_functions"),
        ({"web_search_options": {}}, "server_tools"),
        ({"logit_bias": {"1": 5}}, "logit_bias"),
        ({"audio": {"voice": "a"}}, "audio"),
        ({"response_format": {"type": "json_object"}}, "json_mode_without_schema"),
        ({"stop": ["\n"]}, "blank_stop_sequence"),
        ({"something_new": 1}, "unknown_parameter"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "custom_tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tool_name"),
        ({"messages": []}, "no_messages"),
        ({"messages": [{"role": "assistant", "content": "a"}, USER]}, "starts_with_assistant"),
        ({"messages": [USER, {"role": "assistant", "content": "a"}]}, "assistant_prefill"),
        ({"messages": [USER, {"role": "system", "content": "s"}, USER]}, "system_message_mid_conversation"),
        ({"messages": [{"role": "user", "content": " "}]}, "empty_message"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "audio"),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}]}, "provider_file"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc"}}]}]},
         "image_unreadable"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [CHAT_CALL]}, USER]}, "tools_missing"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [
            {**CHAT_CALL, "function": {"name": "f", "arguments": "{"}}]}, USER], "tools": [CHAT_TOOL]},
         "tool_arguments_not_json"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {
            "type": "object", "properties": {"self": {"$ref": "#"}}}}}}, "recursive_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {
            "type": "object", "additionalProperties": True}}}}, "open_schema"),
    ],
)  # fmt: skip
def test_what_messages_cannot_say(body: dict[str, Any], expected: str) -> None:
    assert reason("chat.completions", {"messages": [USER], **body}, "anthropic", model="claude-haiku-4-5") == expected


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"mcp_servers": [{"url": "x"}]}, "server_tools"),
        ({"container": "c"}, "server_tools"),
        ({"max_tokens": 0}, "cache_prewarm"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "provider_tools"),
        ({"stop_sequences": list("abcde")}, "too_many_stop_sequences"),
        ({"messages": [USER, {"role": "assistant", "content": "a"}]}, "assistant_prefill"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file", "file_id": "f"}}]}]},
         "provider_file"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [
            {"type": "image", "source": {"type": "url", "url": "https://x"}}]}]}]}, "image_in_tool_result"),
    ],
)  # fmt: skip
def test_what_chat_cannot_say(body: dict[str, Any], expected: str) -> None:
    assert reason("messages", {"max_tokens": 5, "messages": [USER], **body}, "openai", model="gpt-4o") == expected


def test_stop_sequences_are_not_said_to_models_that_refuse_them() -> None:
    body = {"max_tokens": 5, "messages": [USER], "stop_sequences": ["END"]}
    assert reason("messages", body, "openai", model="gpt-5-mini") == "stop_sequences_not_taken"
    assert to_gpt({"messages": [USER], "stop_sequences": ["END"]})["stop"] == ["END"]


@pytest.mark.parametrize(
    ("parameters", "strict"),
    [
        ({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}, True),
        ({"type": "object", "properties": {"n": {"type": "integer", "minimum": 1}}, "required": ["n"],
          "additionalProperties": False}, False),
        ({"type": "object", "properties": {"self": {"$ref": "#"}}, "required": ["self"], "additionalProperties": False},
         False),
    ],
)  # fmt: skip
def test_a_strict_tool_keeps_its_schema(parameters: dict[str, Any], strict: bool) -> None:
    """Anthropic's strict mode answers 400 to bounds and recursion: such a tool is offered whole, but not strict."""
    tool = {"type": "function", "function": {"name": "f", "strict": True, "parameters": parameters}}
    (given,) = to_claude({"messages": [USER], "tools": [tool]})["tools"]
    assert (given["input_schema"], given.get("strict", False)) == (parameters, strict)


def test_a_call_without_arguments_in_the_history() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    messages = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": ""},
    ]
    said = to_claude({"messages": messages, "tools": [CHAT_TOOL]})["messages"]
    assert said[1]["content"] == [{"type": "tool_use", "id": "c1", "name": "f", "input": {}}]
    assert said[2]["content"] == [{"type": "tool_result", "tool_use_id": "c1", "content": ""}]


@pytest.mark.parametrize(
    ("endpoint", "provider", "body", "expected"),
    [
        ("responses", "openai", {"input": "x", "previous_response_id": "r"}, "needs_server_state"),
        ("responses", "openai", {"input": "x", "conversation": "c"}, "needs_server_state"),
        ("responses", "openai", {"input": [{"type": "item_reference", "id": "i"}]}, "needs_server_state"),
        ("responses", "openai", {"input": "x", "background": True}, "background"),
        ("responses", "openai", {"input": "x", "prompt": {"id": "p"}}, "stored_prompt"),
        ("responses", "openai", {"input": "x", "tools": [{"type": "web_search"}]}, "server_tools"),
        ("responses", "openai", {"input": "x", "tools": [{"type": "mcp", "server_url": "u"}]}, "server_tools"),
        ("responses", "openai", {"input": [{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}]},
         "provider_file"),
        ("chat.completions", "openai", {"messages": [USER], "web_search_options": {}}, "server_tools"),
        ("messages", "anthropic", {"messages": [USER], "tools": [{"type": "code_execution_20250825"}]}, "server_tools"),
        ("messages", "anthropic", {"messages": [USER], "mcp_servers": [{}]}, "server_tools"),
        ("messages", "anthropic", {"messages": [USER], "thread": {"type": "create"}}, "needs_server_state"),
        ("messages", "anthropic", {"messages": [USER], "session": "s"}, "unknown_parameter"),
        ("messages", "anthropic", {"messages": [USER], "tools": [{"type": "advisor_20260301", "name": "a"}]}, "server_tools"),
        ("chat.completions", "openai", {"messages": [USER], "session_params": {"id": "s"}}, "unknown_parameter"),
        ("chat.completions", "openai", {"messages": [USER], "request_id": "r"}, "unknown_parameter"),
        ("chat.completions", "openai", {"messages": [USER], "tools": [{"type": "browser_search"}]}, "server_tools"),
        ("chat.completions", "openai", {"messages": [USER, {"role": "assistant", "audio": {"id": "audio_1"}}, USER]},
         "needs_server_state"),
        ("responses", "openai", {"input": "x", "client_metadata": {"a": "b"}}, "unknown_parameter"),
        ("responses", "openai", {"input": [{"type": "compaction", "encrypted_content": "e"}]}, "needs_server_state"),
        ("responses", "openai", {"input": "x", "tools": [{"type": "code_interpreter", "container": "c"}]}, "server_tools"),
    ],
)  # fmt: skip
def test_a_copy_never_has_effects(endpoint: str, provider: str, body: dict[str, Any], expected: str) -> None:
    assert reason(endpoint, body, provider, model=None) == expected
    # Served, it is the user's own request, and nobody else's business.
    assert sent(endpoint, body, provider, served=True) == {
        "model": "gpt-4o" if endpoint != "messages" else "claude-haiku-4-5",
        **body,
    }


def test_the_key_that_keeps_a_request_from_being_copied_is_named() -> None:
    def stored(endpoint: str, body: dict[str, Any], **arm: Any) -> str:
        with pytest.raises(NotShadowableError) as found:
            sent(endpoint, body, "anthropic" if endpoint == "messages" else "openai", **arm)
        return found.value.stored

    assert stored("responses", {"input": "x", "client_metadata": {}}) == "unknown_parameter:client_metadata"
    assert stored("messages", {"messages": [USER], "thread": {"type": "create"}}) == "needs_server_state:thread"
    assert stored("responses", {"input": "x", "previous_response_id": "r"}) == "needs_server_state:previous_response_id"
    assert stored("chat.completions", {"messages": [USER], "a@b.example/x": 1}) == "unknown_parameter:a?b.example?x"
    # What the arm's own configuration sets is known to whoever wrote it.
    result = sent("chat.completions", {"messages": [USER], "new": 1}, "openai", params={"new": 2})
    assert result["new"] == 2


def test_a_copy_is_counted_to_nobody_and_kept_nowhere() -> None:
    """A gateway's budget by `user`, a credit that can be redeemed once: used up by a copy they would be missing for the user."""
    counted = {"user": "u", "safety_identifier": "s", "metadata": {"a": "b"}, "store": None}
    assert sent("chat.completions", {"messages": [USER], **counted}, "openai") == {
        "model": "gpt-4o",
        "messages": [USER],
    }
    credit = {"metadata": {"user_id": "u"}, "fallback_credit_token": "t", "user_profile_id": "p"}
    assert sent("messages", {"messages": [USER], **credit}, "anthropic") == {
        "model": "claude-haiku-4-5",
        "messages": [USER],
    }
    body = {"messages": [USER]}
    assert sent("chat.completions", body, "openai", stores_by_default=True)["store"] is False
    assert "store" not in sent("chat.completions", body, "openai")
    assert sent("responses", {"input": "x", "user": "u"}, "openai")["store"] is False


def test_same_dialect_settings_are_replaced_and_traces_left_out() -> None:
    body = {
        "messages": [{"role": "system", "content": "old"}, {"role": "developer", "content": "old too"}, USER],
        "store": True,
        "metadata": {"a": "b"},
        "prompt_cache_key": "k",
        "temperature": 0.2,
        "max_tokens": 10,
        "stream": True,
        "stream_options": {"include_obfuscation": False},
    }
    result = sent(
        "chat.completions",
        body,
        "openai",
        model="gpt-4o-mini",
        params={"max_tokens": 99, "seed": 1},
        system_prompt="new",
    )
    assert result == {
        "model": "gpt-4o-mini",
        "messages": [{"role": "system", "content": "new"}, USER],
        "temperature": 0.2,
        "max_tokens": 99,
        "seed": 1,
        "store": False,
        "stream": True,
        "stream_options": {"include_obfuscation": False, "include_usage": True},
    }


def test_newer_models_get_what_they_take() -> None:
    body = {"messages": [USER], "temperature": 0.2, "max_tokens": 10}
    assert sent("chat.completions", body, "openai", model="gpt-5") == {
        "model": "gpt-5",
        "messages": [USER],
        "max_completion_tokens": 10,
    }
    # A parameter the user configured is sent, come what may.
    assert sent("chat.completions", body, "openai", model="gpt-5", params={"temperature": 1})["temperature"] == 1
    thinking = {"type": "enabled", "budget_tokens": 2000}
    moved = sent("messages", {"messages": [USER], "max_tokens": 9, "top_k": 1, "thinking": thinking}, "anthropic",
                 model="claude-opus-4-8")  # fmt: skip
    assert moved == {"model": "claude-opus-4-8", "messages": [USER], "max_tokens": 9, "thinking": {"type": "adaptive"}}
    prefill = {"messages": [USER, {"role": "assistant", "content": "{"}], "max_tokens": 9}
    assert reason("messages", prefill, "anthropic", model="claude-sonnet-5") == "assistant_prefill"
    assert sent("messages", prefill, "anthropic", model="claude-sonnet-4-5")["messages"] == prefill["messages"]


def test_responses_copies_are_not_stored() -> None:
    given = [
        {"type": "message", "id": "msg_1", "role": "user", "content": "a"},
        {"type": "reasoning", "id": "rs_1"},
        {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"},
    ]
    result = sent("responses", {"input": given, "prompt_cache_key": "k"}, "openai", system_prompt="new")
    assert result["store"] is False
    assert result["instructions"] == "new"
    assert [item.get("id") for item in result["input"]] == [None, None]
    assert "prompt_cache_key" not in result


def test_nothing_to_change_changes_no_byte() -> None:
    body = b'{ "model":"gpt-4o",  "messages":[{"role":"user","content":"\\u00e9"}] }'
    outgoing = render_treatment_request("chat.completions", body, provider="openai")
    assert outgoing.body == body
    assert outgoing.path == "/v1/chat/completions"


def test_headers_hold_no_credentials() -> None:
    headers = {"Authorization": "Bearer x", "x-api-key": "y", "anthropic-beta": "b", "anthropic-version": "2023-06-01"}
    body = b'{"model":"claude-haiku-4-5","max_tokens":1,"messages":[{"role":"user","content":"x"}]}'
    same = render_treatment_request("messages", body, provider="anthropic", headers=headers)
    assert dict(same.headers) == {
        "content-type": "application/json",
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "b",
    }
    other = render_treatment_request("messages", body, provider="openai", model="gpt-4o", headers=headers)
    assert dict(other.headers) == {"content-type": "application/json"}


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null", b'{"messages": 5}', b"\xff", b"[" * 5000])
def test_unreadable_requests_have_a_reason(body: bytes) -> None:
    for endpoint in DIALECTS:
        with pytest.raises(NotShadowableError):
            render_treatment_request(
                endpoint, body, provider="litellm" if endpoint == "messages" else "anthropic", model="m"
            )


KEYS = ["model", "messages", "input", "role", "content", "type", "text", "tools", "function", "name", "tool_calls", "source",
        "max_tokens", "temperature", "stop", "stream", "response_format", "json_schema", "schema", "tool_choice", "image_url",
        "arguments", "id", "system", "thinking", "stream_options", "output_config", "format", "output"]  # fmt: skip
shaped = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from(["user", "assistant", "tool", "text", "function", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=25,
)


@settings(max_examples=200)
@given(st.sampled_from(list(DIALECTS)), st.sampled_from(list(PROVIDERS)), shaped, st.booleans())
def test_any_json_is_sent_or_has_a_reason(endpoint: str, provider: str, body: Any, served: bool) -> None:
    try:
        outgoing = render_treatment_request(
            endpoint, json.dumps(body).encode(), provider=provider, model="m", system_prompt="s", served=served
        )
    except NotShadowableError as error:
        assert error.reason.isidentifier()
        return
    json.loads(outgoing.body)


chat_turns = st.lists(
    st.tuples(
        st.sampled_from(["user", "assistant"]), st.text(min_size=1, max_size=20).filter(lambda text: text.strip())
    ),
    min_size=1,
    max_size=6,
)


@given(chat_turns, st.text(max_size=10))
def test_there_and_back_says_the_same(turns: list[tuple[str, str]], system: str) -> None:
    messages = [{"role": role, "content": text} for role, text in turns]
    if messages[0]["role"] != "user" or messages[-1]["role"] != "user":
        messages = [USER, *messages, USER]
    body = {"model": "gpt-4o", "messages": [{"role": "system", "content": system}, *messages]}
    raw = json.dumps(body).encode()
    there = render_treatment_request("chat.completions", raw, provider="anthropic", model="claude-haiku-4-5")
    back = render_treatment_request("messages", there.body, provider="openai", model="gpt-4o")

    def words(endpoint: str, data: bytes) -> str:
        return "".join("".join(m["content"].split()) for m in read_request(endpoint, data).messages)

    assert words("chat.completions", raw) == words("messages", there.body) == words("chat.completions", back.body)
