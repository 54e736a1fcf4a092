"""Served through the translation: what the SDK read is what the record holds, also where it shows late what it was."""

from __future__ import annotations

import json
from collections.abc import Callable

import anthropic
import pytest
from collector_harness import RawUpstream, Received, Running, chat_answer, chat_stream, chunked, plain

from evalpipe.store.query import open_store
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import open_workspace

Upstream = Callable[..., RawUpstream]
Start = Callable[..., Running]
ASKED = {"model": "claude-haiku-4-5", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
SPLIT = {"provider": "anthropic", "mode": "ab", "experiment": "treatment_percent = 100"}


def stored(running: Running) -> list[tuple[str, str]]:
    assert running.stop() == 0
    load(open_workspace(root=running.root))
    with open_store(running.data) as store:
        return store.connection.sql("SELECT outcome, text FROM exchanges ORDER BY streamed, started_at").fetchall()


def test_reasoning_with_a_closing_tag_alone_is_recorded_as_the_user_got_it(
    upstream: Upstream, collector: Start
) -> None:
    """A template that holds the opening tag (DeepSeek R1, QwQ): in a stream the reasoning has passed before the tag comes."""
    words = ["Let me", " see.\n", "</think>", "\n\nHel", "lo"]

    def script(request: Received) -> list[bytes | float | str]:
        if json.loads(request.body).get("stream"):
            return list(chunked(chat_stream(words)))
        return [plain(chat_answer("".join(words)))]

    server = upstream(script)
    running = collector(upstream(lambda request: []).url, server.url, **SPLIT)
    client = anthropic.Anthropic(base_url=running.url, api_key="sk-x", max_retries=0)
    with client.messages.stream(**ASKED) as stream:
        streamed = "".join(stream.text_stream)
    whole = client.messages.create(**ASKED).content[0].text
    client.close()
    assert whole == "Hello"
    assert streamed == "".join(words)
    assert stored(running) == [("ok", whole), ("ok", streamed)]


def test_a_rate_limit_within_a_200_is_one_for_the_sdk(upstream: Upstream, collector: Start) -> None:
    body = json.dumps({"error": {"message": "slow down", "code": 429}}).encode()
    server = upstream(lambda request: [plain(body)])
    running = collector(upstream(lambda request: []).url, server.url, **SPLIT)
    client = anthropic.Anthropic(base_url=running.url, api_key="sk-x", max_retries=0)
    with pytest.raises(anthropic.RateLimitError, match="slow down"):
        client.messages.create(**ASKED)
    client.close()
    assert [outcome for outcome, _ in stored(running)] == ["http_error"]
