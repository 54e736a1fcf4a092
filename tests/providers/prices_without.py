"""Answers that have no cost, with a part of the reason."""

from __future__ import annotations

from datetime import UTC, datetime

from prices_lines import MESSAGE_ITEM, Without, search, tokens, used

from evalpipe.providers.pricing import Price

OWN = {"m": Price(input=3, output=15, cached_input=0.3, cache_write=3.75)}
WITHOUT = [
    Without("gpt-4o", {"usage": tokens(0, 0)}, "counted no input or output tokens beside an answer"),
    Without("gpt-4o", {"usage": tokens(12, 0)}, "counted no output tokens"),
    Without("gpt-4o", {}, "did not report its tokens"),
    Without("gpt-4o", {"usage": tokens(10, 1, 500)}, "contradict each other"),
    Without(
        "gemini-2.5-flash",
        {"usage": {**tokens(10, 5), "total_tokens": 60, "completion_tokens_details": {"reasoning_tokens": 20}}},
        "total_tokens is 45 more",
    ),
    Without("my-model", {"usage": tokens(10, 5)}, 'add [prices."my-model"]'),
    Without("gpt-oss-120b", {"usage": tokens(10, 5)}, 'add [prices."gpt-oss-120b"]'),
    Without("whisper-1", {"usage": tokens(10, 5)}, "not sold by the token"),
    Without("gpt-9", {"usage": tokens(10, 5)}, "(gpt-4o was asked)", requested="gpt-4o"),
    # A way of serving without a documented price is not the standard one.
    Without(
        "gpt-5",
        {"usage": tokens(10, 5), "service_tier": "priority"},
        "service_tier 'priority' on 2026-06-01",
        at=datetime(2026, 6, 1, tzinfo=UTC),
    ),
    Without("gpt-5.6-sol", {"usage": tokens(10, 5), "service_tier": "ultrafast"}, "service_tier 'ultrafast'"),
    Without("gpt-4o", {"usage": tokens(10, 5), "service_tier": "scale"}, "bought ahead"),
    Without(
        "claude-sonnet-4-6",
        {"usage": {"input_tokens": 10, "output_tokens": 5, "service_tier": "priority"}},
        "bought ahead",
        endpoint="messages",
        provider="anthropic",
    ),
    Without(
        "claude-sonnet-4-6",
        {"usage": {"input_tokens": 10, "output_tokens": 5, "speed": "fast"}},
        "speed 'fast'",
        endpoint="messages",
        provider="anthropic",
    ),
    Without(
        "claude-opus-5",
        {"usage": {"input_tokens": 10, "output_tokens": 5, "inference_geo": "eu"}},
        "inference_geo 'eu'",
        endpoint="messages",
        provider="anthropic",
    ),
    Without("gpt-4o", {"usage": tokens(10, 5, completion_tokens_details={"audio_tokens": 5})}, "audio in the output"),
    Without(
        "gemini-2.5-flash",
        {"usage": tokens(1000, 5, prompt_tokens_details={"audio_tokens": 600, "cached_tokens": 500})},
        "which of the cached tokens are audio",
    ),
    Without(
        "gpt-6.1-terra",
        {
            "usage": used(
                3000,
                5,
                cache_write_tokens=2000,
                cache_write_tokens_details={"ttl_30m_tokens": 0, "ttl_12h_tokens": 2000},
            )
        },
        "kept for twelve hours",
        endpoint="responses",
    ),
    # Fees that are charged for certain, at a price nobody documents.
    Without(
        "gpt-5",
        {"usage": used(10, 5), "output": [{"type": "code_interpreter_call"}, MESSAGE_ITEM]},
        "no fee of code_interpreter",
        endpoint="responses",
    ),
    Without(
        "gpt-5",
        {"usage": used(10, 5), "output": [{"type": "image_generation_call", "result": "AAAA"}]},
        "no fee of image_generation",
        endpoint="responses",
    ),
    Without(
        "gpt-4.1-mini",
        {"usage": used(10, 5), **search("web_search", "search")["answer"]},
        "the content of its web searches",
        endpoint="responses",
    ),
    Without("gpt-4o-search-preview", {"usage": tokens(10, 5)}, "searches the web for each answer"),
    Without("gpt-5-search-api", {"usage": tokens(10, 5)}, "searches the web for each answer"),
    Without(
        "m",
        {"usage": {"input_tokens": 10, "output_tokens": 5, "server_tool_use": {"web_search_requests": 2}}},
        "made 2 such calls",
        endpoint="messages",
        provider="anthropic",
        prices=OWN,
    ),
    Without(
        "claude-opus-4-8",
        {
            "usage": {
                "input_tokens": 10,
                "output_tokens": 5,
                "iterations": [
                    {"type": "message", "model": "claude-fable-5", "input_tokens": 10, "output_tokens": 0},
                    {"type": "fallback_message", "model": "claude-opus-4-8", "input_tokens": 10, "output_tokens": 5},
                ],
            }
        },
        "'fallback_message'",
        endpoint="messages",
        provider="anthropic",
    ),
    Without("openai/gpt-4o:online", {"usage": tokens(10, 5, cost=0.02, is_byok=True)}, "no list price"),
    # LiteLLM writes 0 for models it has no price for, and a stream's headers are sent before the answer is made.
    Without(
        "my-model",
        {"usage": tokens(10, 5)},
        "no list price",
        provider="litellm",
        headers={"x-litellm-response-cost": "0.0"},
    ),
    Without(
        "my-model",
        {"usage": tokens(10, 5)},
        "no list price",
        provider="litellm",
        headers={"x-litellm-response-cost": "None"},
    ),
    Without("my-model", {"usage": tokens(10, 5, cost=0)}, "no list price"),
    # The user's own price, where it says nothing of what was used.
    Without(
        "m",
        {
            "usage": {
                "input_tokens": 1,
                "cache_creation_input_tokens": 2000,
                "cache_creation": {"ephemeral_1h_input_tokens": 1000},
                "output_tokens": 1,
            }
        },
        "has no cache_write_1h",
        endpoint="messages",
        provider="anthropic",
        prices=OWN,
    ),
    Without("m", {"usage": tokens(10, 5, prompt_tokens_details={"audio_tokens": 5})}, "has no audio_input", prices=OWN),
    Without("m", {"usage": tokens(10, 5), "service_tier": "flex"}, "add tiers = { flex = … }", prices=OWN),
    # What only looks like the model a price was written for.
    Without("openai/m:free-trial", {"usage": tokens(10, 5)}, "no list price", prices=OWN),
    Without(
        "gpt-9",
        {"usage": tokens(10, 5)},
        "no list price",
        requested="gpt-4o",
        prices={"gpt-4o": Price(input=1, output=1)},
    ),
]
