"""The short way to read ordinary answers gives what the general readers give, or leaves the answer to them."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evalpipe.models import Outcome
from evalpipe.providers.ordinary import read_ordinary
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


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, str]:
    """An endpoint and a body: an ordinary answer with up to three changes anywhere in it, or in its text."""
    endpoint = draw(st.sampled_from(sorted(ORDINARY)))
    document = copy.deepcopy(ORDINARY[endpoint])
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(containers(document)))
        value = copy.deepcopy(draw(VALUES))
        if isinstance(place, list):
            place.insert(draw(st.integers(0, len(place))), value)
        elif draw(st.booleans()):
            place[draw(st.sampled_from([*place, *KEYS]))] = value
        else:
            place.pop(draw(st.sampled_from([*place, "none"])), None)
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
