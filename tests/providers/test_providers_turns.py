"""Turn and step of a request, counted by hand in every dialect."""

from __future__ import annotations

import json
from typing import Any

import pytest

from evalpipe.providers.conversation import UNKNOWN, position_of
from evalpipe.providers.registry import read_request

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}
SYSTEM = {"role": "system", "content": "be kind"}
CALL = {"role": "assistant", "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{}"}}]}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "21"}
ITEM_CALL = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
ITEM_RESULT = {"type": "function_call_output", "call_id": "1", "output": "21"}
BLOCK_CALL = {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}]}
BLOCK_RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "21"}]}
BLOCK_MIXED = {
    "role": "user",
    "content": [{"type": "tool_result", "tool_use_id": "1"}, {"type": "text", "text": "and?"}],
}


def turn_and_step(endpoint: str, **body: Any) -> tuple[int | None, int | None]:
    view = read_request(endpoint, json.dumps({"model": "m", **body}))
    return view.turn, view.step


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER], (1, 0)),
        ([SYSTEM, USER], (1, 0)),
        ([{"role": "developer", "content": "x"}, USER, ASSISTANT, USER], (2, 0)),
        ([USER, CALL, RESULT], (1, 1)),
        ([USER, CALL, RESULT, CALL, RESULT], (1, 2)),
        ([USER, CALL, RESULT, ASSISTANT, USER], (2, 0)),
        ([USER, CALL, RESULT, ASSISTANT, USER, CALL, RESULT, RESULT], (2, 1)),
        (
            [USER, ASSISTANT, USER, ASSISTANT, USER, ASSISTANT, USER],
            (4, 0),
        ),  # few shots count: the head is the analysis's
        ([SYSTEM], (1, 0)),
        ([], (None, None)),
    ],
)
def test_chat_completions(messages: list[dict[str, Any]], expected: tuple[int | None, int | None]) -> None:
    assert turn_and_step("chat.completions", messages=messages) == expected


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([USER], (1, 0)),
        ([USER, ASSISTANT, USER], (2, 0)),
        ([USER, BLOCK_CALL, BLOCK_RESULT], (1, 1)),  # the tool's results are no turn of the user's
        ([USER, BLOCK_CALL, BLOCK_RESULT, BLOCK_CALL, BLOCK_RESULT], (1, 2)),
        ([USER, BLOCK_CALL, BLOCK_MIXED], (2, 0)),  # the user added words of their own
        ([USER, BLOCK_CALL, BLOCK_RESULT, ASSISTANT, USER], (2, 0)),
        ([{"role": "user", "content": []}], (1, 0)),
    ],
)
def test_messages(messages: list[dict[str, Any]], expected: tuple[int, int]) -> None:
    assert turn_and_step("messages", system="be kind", messages=messages) == expected


def test_a_thread_the_provider_keeps() -> None:
    create, go_on = {"type": "create"}, {"type": "continue", "previous_message_id": "msg_1"}
    assert turn_and_step("messages", thread=create, messages=[USER]) == (None, 0)
    assert turn_and_step("messages", thread=go_on, messages=[USER]) == (2, 0)
    assert turn_and_step("messages", thread=go_on, messages=[BLOCK_RESULT]) == (2, 1)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"input": "hi"}, (1, 0)),
        ({"input": "hi", "instructions": "be kind"}, (1, 0)),
        ({"input": [USER]}, (1, 0)),
        ({"input": [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]}]}, (1, 0)),
        ({"input": [USER, ASSISTANT, USER]}, (2, 0)),
        ({"input": [USER, ITEM_CALL, ITEM_RESULT]}, (1, 1)),
        (
            {"input": [USER, {"type": "reasoning", "summary": []}, ITEM_CALL, ITEM_CALL, ITEM_RESULT, ITEM_RESULT]},
            (1, 2),
        ),
        ({"input": [USER, {"type": "web_search_call", "id": "w"}, ASSISTANT, USER]}, (2, 0)),
        ({"input": "hi", "previous_response_id": "resp_1"}, (2, 0)),
        ({"input": [USER, ASSISTANT, USER], "previous_response_id": "resp_1"}, (3, 0)),
        ({"input": [ITEM_RESULT], "previous_response_id": "resp_1"}, (2, 1)),  # goes on in a tool loop
        ({"input": "hi", "conversation": "conv_1"}, (None, 0)),
        ({"input": "hi", "conversation": {"id": "conv_1"}}, (None, 0)),
        ({"input": [USER, ASSISTANT, USER], "conversation": "conv_1"}, (2, 0)),
        ({"input": [ITEM_RESULT], "conversation": "conv_1"}, (None, 1)),
        ({"prompt": {"id": "pmpt_1"}}, (None, None)),
    ],
)
def test_responses(body: dict[str, Any], expected: tuple[int | None, int | None]) -> None:
    assert turn_and_step("responses", **body) == expected


def test_other_tools_names_of_the_roles() -> None:
    assert position_of([{"role": "human"}, {"role": "ai"}, {"role": "function"}]) == (1, 1)
    assert position_of([{"role": "user"}, {"role": "model"}, {"role": "user"}]) == (2, 0)
    assert position_of([7, None, "text", {"content": "no role is the user's"}]) == (1, 0)


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b'{"messages": "hi"}', b'{"messages": [1]}'])
def test_what_cannot_be_read_has_no_turn(body: bytes) -> None:
    view = read_request("chat.completions", body)
    assert (view.turn, view.step) == UNKNOWN
