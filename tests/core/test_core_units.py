"""Who the user is and which conversation it is: values of real clients, parts of values, and what names nobody."""

from __future__ import annotations

import json
from typing import Any

import pytest

from evalpipe.identity import DEFAULT_SOURCES, conversation_of, read_source, read_sources, unit_of
from evalpipe.providers.registry import read_request

DEVICE = "ab12" * 16
ACCOUNT, SESSION = "11111111-2222-4333-8444-555555555555", "0f0f0f0f-aaaa-4bbb-8ccc-1234567890ff"


def found(document: Any, *sources: str, **headers: str) -> tuple[str | None, str]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return unit_of(read_sources(sources or DEFAULT_SOURCES), named.get, document)


@pytest.mark.parametrize(
    "user_id",
    [
        f"user_{DEVICE}_account_{ACCOUNT}_session_{SESSION}",
        f"user_{DEVICE}_account__session_{SESSION}",
        json.dumps({"device_id": DEVICE, "account_uuid": "", "session_id": SESSION}),
        json.dumps({"device_id": DEVICE, "account_uuid": ACCOUNT, "session_id": "another"}, indent=1),
    ],
)
def test_one_developer_of_claude_code_is_one_unit_in_every_spelling(user_id: str) -> None:
    assert found({"metadata": {"user_id": user_id}}) == (DEVICE, "preset:claude-code")


def test_users_where_frameworks_put_them() -> None:
    assert found({"safety_identifier": "s"}) == ("s", "body:safety_identifier")
    assert found({"user": "u", "safety_identifier": "s"}) == ("u", "body:user")
    assert found({"metadata": {"user_id": "plain"}}) == ("plain", "body:metadata.user_id")
    codex = {"client_metadata": {"x-codex-installation-id": "machine"}}
    assert found(codex, x_user_id="") == ("machine", "preset:codex")
    assert found({}, chatgpt_account_id="acc") == ("acc", "preset:codex")
    assert found({}) == (None, "")


def test_a_part_of_a_value_is_the_unit() -> None:
    team = "body:metadata.user_id~^team-([a-z]+)-"
    assert found({"metadata": {"user_id": "team-red-7"}}, team) == ("red", team)
    assert found({"metadata": {"user_id": "nobody"}, "user": "u"}, team, "body:user") == ("u", "body:user")
    assert found({}, "header:x-account~[0-9]+", x_account="id 42 of 7") == ("42", "header:x-account~[0-9]+")
    assert found({"user": "a~b"}, "body:user~~(.)") == ("b", "body:user~~(.)")


@pytest.mark.parametrize(
    ("source", "said"),
    [("cookie:x", "neither"), ("body:", "neither"), ("header:a b", "neither"), ("body:a~(", "regular expression"),
     ("preset:cursor", "claude-code, codex")],
)  # fmt: skip
def test_a_source_that_cannot_be_read_says_why(source: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read_source(source)


def conversation(endpoint: str, body: dict[str, Any]) -> str:
    view = read_request(endpoint, json.dumps(body))
    return conversation_of(view.system_text, view.first_user_message, body)


def test_a_cache_key_that_is_an_id_names_the_conversation_and_another_only_tells_openings_apart() -> None:
    def of(key: str, *texts: str) -> str:
        items = [{"role": "user", "content": text} for text in texts]
        return conversation("responses", {"input": items, "prompt_cache_key": key})

    assert of(SESSION, "a") == of(SESSION, "b"), "a sliding window, or another agent of the same run"
    assert of(SESSION, "a") != of(SESSION.replace("0f", "1f"), "a")
    assert of("support-bot", "a") != of("support-bot", "b"), "one key of a whole application"
    assert of("user-1", "a") != of("user-2", "a")
    named = {"input": "x", "conversation": {"id": "conv_1"}}
    assert conversation("responses", named) == conversation("responses", {"input": "y", "conversation": "conv_1"})


CONTEXT = "<environment_context>\n  <cwd>/src</cwd>\n</environment_context>"


@pytest.mark.parametrize("endpoint", ["chat.completions", "responses", "messages"])
def test_a_frame_that_every_session_begins_with_is_no_conversation(endpoint: str) -> None:
    def of(*texts: str, answer: bool = False) -> str:
        said = [{"role": "user", "content": [{"type": "text", "text": text}]} for text in texts]
        said += [{"role": "assistant", "content": "ok"}, {"role": "user", "content": "more"}] if answer else []
        return conversation(endpoint, {"input" if endpoint == "responses" else "messages": said})

    frame = ("<user_instructions>be brief</user_instructions>", CONTEXT)
    assert of(*frame, "fix the bug") != of(*frame, "write a test")
    assert of(*frame, "fix the bug") == of(*frame, "fix the bug", answer=True)
    assert of("# AGENTS.md instructions for /src\n\nbe kind", CONTEXT, "one") != of(
        "# AGENTS.md instructions for /src", "two"
    )
    assert of(CONTEXT, answer=True) == of(CONTEXT), "no word of the user before the answer: the frame is all there is"
    assert of("<b>Hello</b> world", "x") == of("<b>Hello</b> world", "y"), "words beside tags are the user's"
    assert of("<a>" * 20_000, "x") == of("<a>" * 20_000, "y")
