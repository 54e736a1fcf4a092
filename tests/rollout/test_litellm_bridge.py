"""What a client may make the litellm library do: ask, and nothing else."""

from __future__ import annotations

import pytest

from evalpipe.collector.litellm_bridge import allowed

QUESTION = {"model": "claude-haiku-4-5", "messages": [{"role": "user", "content": "hi"}], "stream": True, "seed": 1}
HOSTILE = {
    "api_base": "http://attacker",
    "base_url": "http://attacker",
    "api_key": "k",
    "custom_llm_provider": "openai",
    "extra_headers": {"a": "b"},
    "vertex_credentials": "/etc/passwd",
    "mock_response": "free",
    "fallbacks": ["gpt-4o"],
    "num_retries": 99,
    "success_callback": ["langfuse"],
}


def test_addresses_keys_and_files_come_from_the_configuration_only() -> None:
    assert allowed({**QUESTION, **HOSTILE}, []) == QUESTION
    params = {"api_base": "http://ours", "max_tokens": 200}
    assert allowed({**QUESTION, **HOSTILE}, [params]) == QUESTION
    assert allowed({**QUESTION, **HOSTILE, **params}, [params]) == {**QUESTION, **params}


@pytest.mark.parametrize("body", [[], "x", 1, None])
def test_a_body_that_is_no_object_is_refused(body: object) -> None:
    with pytest.raises(ValueError, match="not a JSON object"):
        allowed(body, [])
