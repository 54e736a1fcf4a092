"""What an arm's `drop` takes out of its requests, and the fields evalpipe itself leaves out or renames."""

from __future__ import annotations

import json
from typing import Any

import pytest

from evalpipe.config import read_config
from evalpipe.errors import ConfigError
from evalpipe.providers.base import NotShadowableError
from evalpipe.providers.translate import render_treatment_request

USER = {"role": "user", "content": "hi"}
HISTORY = [
    USER,
    {"role": "assistant", "content": "Hello", "reasoning_content": "greet back"},
    {"role": "user", "content": [{"type": "text", "text": "?", "cache_control": {"type": "ephemeral"}}]},
]


def sent(body: dict[str, Any], *, endpoint: str = "chat.completions", provider: str = "openai", **more: Any) -> Any:
    document = {"model": "gpt-4o", "messages": [USER], **body}
    return json.loads(render_treatment_request(endpoint, json.dumps(document).encode(), provider=provider, **more).body)


def test_fields_are_dropped_by_path_through_lists() -> None:
    body = {
        "messages": HISTORY,
        "top_k": 5,
        "chat_template_kwargs": {"enable_thinking": False, "other": 1},
        "tools": [{"type": "function", "function": {"name": "f", "strict": True}}],
    }
    dropped = sent(
        body,
        drop=[
            "top_k",
            "chat_template_kwargs.enable_thinking",
            "messages.reasoning_content",
            "messages.content.cache_control",
            "tools.function.strict",
            "absent.path",
        ],
    )
    assert dropped == {
        "model": "gpt-4o",
        "messages": [
            USER,
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": [{"type": "text", "text": "?"}]},
        ],
        "chat_template_kwargs": {"other": 1},
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }


def test_nothing_to_drop_leaves_a_served_request_as_it_came() -> None:
    body = b'{ "model":"gpt-4o", "messages":[{"role":"user","content":"hi"}] }'
    outgoing = render_treatment_request("chat.completions", body, provider="openai", drop=["top_k"], served=True)
    assert outgoing.body == body


def test_a_dropped_field_no_longer_stands_in_the_way_of_a_copy() -> None:
    """A parameter the translation does not know, a tool of the server's own, a cheap look at an image."""
    template = {"chat_template_kwargs": {"enable_thinking": False}}
    search = {"web_search_options": {}}
    image = {"url": "https://example.com/a.png", "detail": "low"}
    look = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": image}]}]}
    for body, drop, reason in (
        (template, "chat_template_kwargs", "unknown_parameter"),
        (search, "web_search_options", "server_tools"),
        (look, "messages.content.image_url.detail", "image_detail"),
    ):
        with pytest.raises(NotShadowableError) as caught:
            sent(body, provider="anthropic", model="claude-haiku-4-5")
        assert caught.value.reason == reason
        assert sent(body, provider="anthropic", model="claude-haiku-4-5", drop=[drop])["max_tokens"] == 8192


def test_what_the_translation_writes_can_be_dropped_too() -> None:
    body = {"max_tokens": 9, "messages": [USER], "stream": True, "temperature": 0.5}
    options: dict[str, Any] = {"endpoint": "messages", "provider": "openai", "model": "my-model"}
    assert sent(body, **options) == {
        "model": "my-model",
        "messages": [USER],
        "max_tokens": 9,
        "temperature": 0.5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert sent(body, **options, drop=["temperature", "stream_options"]) == {
        "model": "my-model",
        "messages": [USER],
        "max_tokens": 9,
        "stream": True,
    }


@pytest.mark.parametrize(
    ("given", "drop", "model", "params", "expected"),
    [
        # The server knows one of the two names only: the limit goes out under the other one.
        ({"max_completion_tokens": 9}, ["max_completion_tokens"], "m", {}, {"max_tokens": 9}),
        ({"max_tokens": 9}, ["max_tokens"], "m", {}, {"max_completion_tokens": 9}),
        ({"max_completion_tokens": 9}, ["max_completion_tokens"], "gpt-5", {}, {"max_tokens": 9}),
        ({"max_tokens": 9, "max_completion_tokens": 8}, ["max_tokens"], "m", {}, {"max_completion_tokens": 8}),
        ({"max_tokens": 9}, ["max_completion_tokens", "max_tokens"], "m", {}, {}),
        ({}, ["max_completion_tokens"], "gpt-5", {"max_tokens": 7}, {"max_tokens": 7}),
        # Without `drop`: as OpenAI's models take it, and the older name for the models of others.
        ({"max_completion_tokens": 9}, [], "mistral-large-latest", {}, {"max_tokens": 9}),
        ({"max_completion_tokens": 9}, [], "Qwen/Qwen3-8B", {}, {"max_tokens": 9}),
        ({"max_tokens": 9}, [], "mistral-large-latest", {}, {"max_tokens": 9}),
        ({"max_completion_tokens": 9}, [], "gpt-4.1", {}, {"max_completion_tokens": 9}),
        ({"max_tokens": 9}, [], "gpt-5", {}, {"max_completion_tokens": 9}),
        ({"max_completion_tokens": 9}, [], "my-deployment", {}, {"max_completion_tokens": 9}),
    ],
)
def test_the_token_limit_goes_under_the_name_the_server_knows(
    given: dict[str, Any], drop: list[str], model: str, params: dict[str, Any], expected: dict[str, Any]
) -> None:
    body = sent(given, drop=drop, model=model, params=params)
    assert {key: body[key] for key in ("max_tokens", "max_completion_tokens") if key in body} == expected


def test_messages_keeps_the_limit_it_requires() -> None:
    body = {"max_tokens": 9, "messages": [USER]}
    assert sent(body, endpoint="messages", provider="anthropic", drop=["max_tokens"])["max_tokens"] == 9
    # The name is chat completions' one: the client's own limit reaches the arm under the other name.
    chat = sent(body, endpoint="messages", provider="openai", model="m", drop=["max_tokens"])
    assert (chat.get("max_tokens"), chat["max_completion_tokens"]) == (None, 9)


def test_the_arms_own_stream_options_win() -> None:
    asked = sent({"stream": True})
    assert asked["stream_options"] == {"include_usage": True}
    own = {"include_usage": False, "include_obfuscation": False}
    assert sent({"stream": True}, params={"stream_options": own})["stream_options"] == own
    assert "stream_options" not in sent({"stream": True}, drop=["stream_options"])
    assert "stream_options" not in sent({"stream": True}, ask_usage=False)
    kept = {"include_usage": True, "include_obfuscation": False}
    assert sent({"stream": True, "stream_options": kept}, drop=["stream_options.include_usage"])["stream_options"] == {
        "include_obfuscation": False
    }


def test_a_failed_tool_says_so_in_chat() -> None:
    """Chat completions has no `is_error`: the text carries it, once."""

    def result(block: dict[str, Any]) -> str:
        call = {"type": "tool_use", "id": "t", "name": "w", "input": {}}
        messages = [
            USER,
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", **block}]},
        ]
        body = {"max_tokens": 9, "messages": messages, "tools": [{"name": "w", "input_schema": {"type": "object"}}]}
        said = sent(body, endpoint="messages", provider="openai", model="gpt-4o")["messages"]
        text: str = said[-1]["content"]
        return text

    assert result({"is_error": True, "content": "no such city"}) == "Error: no such city"
    assert result({"is_error": True}) == "Error"
    assert result({"is_error": True, "content": "Error: timeout"}) == "Error: timeout"
    assert result({"is_error": False, "content": "no such city"}) == "no such city"


@pytest.mark.parametrize(("detail", "is_copied"), [("low", False), ("high", True), ("auto", True), (None, True)])
@pytest.mark.parametrize("endpoint", ["chat.completions", "responses"])
def test_a_cheap_look_at_an_image_is_not_copied_as_a_whole_one(
    endpoint: str, detail: str | None, is_copied: bool
) -> None:
    more = {} if detail is None else {"detail": detail}
    if endpoint == "responses":
        part = {"type": "input_image", "image_url": "https://example.com/a.png", **more}
        body: dict[str, Any] = {"input": [{"role": "user", "content": [part]}], "messages": None}
    else:
        image = {"url": "https://example.com/a.png", **more}
        body = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": image}]}]}
    options: dict[str, Any] = {"endpoint": endpoint, "provider": "anthropic", "model": "claude-haiku-4-5"}
    if is_copied:
        (block,) = sent(body, **options)["messages"][0]["content"]
        assert block == {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}}
        return
    with pytest.raises(NotShadowableError, match="image_detail"):
        sent(body, **options)


def test_a_blank_system_prompt_is_left_out() -> None:
    blank = {"role": "system", "content": " \n"}
    assert "system" not in sent({"messages": [blank, USER]}, provider="anthropic", model="claude-haiku-4-5")
    chat = sent({"max_tokens": 9, "system": " "}, endpoint="messages", provider="openai", model="gpt-4o")
    assert chat["messages"] == [USER]


def config(arm: str) -> str:
    """What is wrong with a treatment of these settings."""
    import tomllib

    text = (
        f'[experiment]\nname = "e"\n[arms.control]\nprovider = "openai"\n[arms.treatment]\nprovider = "openai"\n{arm}'
    )
    with pytest.raises(ConfigError) as caught:
        read_config(tomllib.loads(text))
    return str(caught.value)


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ('drop = ["messages"]', "'messages' cannot be dropped"),
        ('drop = ["previous_response_id"]', "without it the request would be another one"),
        ('drop = ["model"]', "set the arm's model instead"),
        ('drop = ["a..b"]', "'a..b' is no field"),
        ("drop = [3]", "3 is no field"),
        ('drop = ["top_k"]\nparams = { top_k = 3 }', "'top_k' is in params and in drop"),
        ('drops = ["top_k"]', "did you mean 'drop'"),
    ],
)
def test_what_cannot_be_dropped_is_named(arm: str, words: str) -> None:
    message = config(arm)
    assert words in message
    assert "\n" not in message


def test_requests_are_read_whatever_was_imported_first() -> None:
    """A module of a dialect's package must not take the place of the function of the same name."""
    import subprocess
    import sys

    code = (
        "from evalpipe.providers.translate import render_treatment_request\n"
        "from evalpipe.providers.registry import read_request\n"
        "for name in ('chat.completions', 'responses', 'messages'):\n    read_request(name, b'{}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_limits_of_a_schema_are_said_as_anthropics_sdk_says_them() -> None:
    """Anthropic enforces no bounds; its SDK moves them into the description, and so does a translated request."""
    from anthropic import transform_schema

    properties = {
        "n": {"type": "integer", "minimum": 1, "maximum": 10, "description": "A number"},
        "s": {"type": "string", "maxLength": 5},
    }
    schema = {"type": "object", "properties": properties, "required": ["n", "s"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body = sent({"response_format": wanted}, provider="anthropic", model="claude-haiku-4-5")
    assert body["output_config"]["format"]["schema"] == transform_schema(schema)
