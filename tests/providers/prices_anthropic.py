"""Anthropic's documented amounts: caches, tools, rounds, speed, geography, batches."""

from __future__ import annotations

from datetime import UTC, datetime

from prices_lines import CLAUDE, FAST, chat, messages, tokens, usd

LINES = [
    # --- Anthropic: caches, prompt length, dated and prefixed names
    messages(
        "claude-haiku-4-5-20251001",
        {"input_tokens": 100, "output_tokens": 50},
        usd((100, 1), (50, 5)),
        CLAUDE,
        "2026-10-14",
    ),
    messages(
        "claude-sonnet-4-5",
        {
            "input_tokens": 0,
            "cache_creation_input_tokens": 2000,
            "cache_read_input_tokens": 1000,
            "cache_creation": {"ephemeral_5m_input_tokens": 1000, "ephemeral_1h_input_tokens": 1000},
            "output_tokens": 10,
            "service_tier": "standard",
        },
        usd((1000, 3.75), (1000, 6), (1000, 0.3), (10, 15)),
        CLAUDE,
        "2026-10-14",
    ),
    messages(
        "claude-sonnet-4-5@20250929",
        {"input_tokens": 200_001, "output_tokens": 1000},
        usd((200_001, 6), (1000, 22.5)),
        "https://platform.claude.com/docs/en/api/service-tiers",
        "2026-02-20",
        at=datetime(2025, 12, 1, tzinfo=UTC),
    ),
    messages(
        "claude-fable-5-1",
        {"input_tokens": 100, "cache_read_input_tokens": 4000, "output_tokens": 50},
        usd((100, 10), (4000, 0.25), (50, 50)),
        CLAUDE,
        "2026-10-14",
    ),
    messages(
        "claude-haiku-5-5",
        {"input_tokens": 100_001, "output_tokens": 100},
        usd((100_001, 0.5), (100, 2.5)),
        f"{CLAUDE}#long-context-pricing",
        "2026-10-14",
    ),
    chat(
        "anthropic/claude-sonnet-4.5",
        tokens(1000, 100),
        usd((1000, 3), (100, 15)),
        CLAUDE,
        "2026-10-14",
        vendor="Anthropic",
        provider="litellm",
    ),
    # --- Anthropic: tools, rounds, speed, geography, batches
    messages(
        "claude-sonnet-4-6",
        {
            "input_tokens": 105,
            "output_tokens": 6039,
            "cache_read_input_tokens": 7123,
            "cache_creation_input_tokens": 7345,
            "server_tool_use": {"web_search_requests": 1},
        },
        usd((105, 3), (7123, 0.3), (7345, 3.75), (6039, 15)) + 10 / 1000,
        f"{CLAUDE}#web-search-tool",
        "2026-10-14",
    ),
    messages(
        "claude-haiku-4-5",
        {"input_tokens": 100, "output_tokens": 50, "server_tool_use": {"web_search_requests": 10}},
        usd((100, 1), (50, 5)) + 10 * 10 / 1000,
        f"{CLAUDE}#web-search-tool",
        "2026-10-14",
    ),
    messages(
        "claude-sonnet-4-6",
        {"input_tokens": 25039, "output_tokens": 931, "server_tool_use": {"web_fetch_requests": 1}},
        usd((25039, 3), (931, 15)),
        f"{CLAUDE}#web-fetch-tool",
        "2026-10-14",
    ),
    messages(
        "claude-sonnet-4-6",
        {
            "input_tokens": 412,
            "output_tokens": 531,
            "iterations": [
                {"type": "message", "input_tokens": 412, "output_tokens": 89},
                {"type": "advisor_message", "model": "claude-opus-4-7", "input_tokens": 823, "output_tokens": 1612},
                {"type": "message", "input_tokens": 1348, "cache_read_input_tokens": 412, "output_tokens": 442},
            ],
        },
        usd((412 + 1348, 3), (412, 0.3), (89 + 442, 15), (823, 5), (1612, 25)),
        "https://platform.claude.com/docs/en/agents-and-tools/tool-use/advisor-tool",
        "2026-10-07",
    ),
    messages(
        "claude-opus-4-6",
        {
            "input_tokens": 23_000,
            "output_tokens": 1000,
            "iterations": [
                {"type": "compaction", "input_tokens": 180_000, "output_tokens": 3500},
                {"type": "message", "input_tokens": 23_000, "output_tokens": 1000},
            ],
        },
        usd((203_000, 5), (4500, 25)),
        "https://platform.claude.com/docs/en/build-with-claude/compaction-threshold",
        "2026-10-30",
    ),
    messages(
        "claude-opus-4-6",
        {"input_tokens": 100, "output_tokens": 50, "speed": "fast"},
        usd((100, 30), (50, 150)),
        FAST,
        "2026-06-01",
        at=datetime(2026, 5, 1, tzinfo=UTC),
    ),
    messages(
        "claude-opus-4-6",
        {"input_tokens": 200_001, "output_tokens": 50, "speed": "fast"},
        usd((200_001, 60), (50, 225)),
        FAST,
        "2026-02-20",
        at=datetime(2026, 2, 20, tzinfo=UTC),
    ),
    messages(
        "claude-opus-5",
        {"input_tokens": 100, "cache_read_input_tokens": 1000, "output_tokens": 50, "speed": "fast"},
        usd((100, 10), (1000, 1), (50, 50)),
        FAST,
        "2026-10-14",
    ),
    messages(
        "claude-opus-5-5",
        {"input_tokens": 100, "output_tokens": 50, "speed": "fast", "inference_geo": "us"},
        usd((100, 8), (50, 40)) * 1.1,
        f"{CLAUDE}#data-residency-pricing",
        "2026-10-14",
    ),
    messages(
        "claude-opus-4-6",
        {"input_tokens": 25, "output_tokens": 150, "inference_geo": "us"},
        usd((25, 5), (150, 25)) * 1.1,
        "https://platform.claude.com/docs/en/build-with-claude/data-residency",
        "2026-10-14",
    ),
    messages(
        "claude-haiku-4-5",
        {"input_tokens": 100, "output_tokens": 50, "inference_geo": "not_available", "speed": "standard"},
        usd((100, 1), (50, 5)),
        "https://platform.claude.com/docs/en/build-with-claude/data-residency",
        "2026-10-14",
    ),
    messages(
        "claude-sonnet-4-6",
        {"input_tokens": 1000, "output_tokens": 100, "service_tier": "batch"},
        usd((1000, 1.5), (100, 7.5)),
        f"{CLAUDE}#batch-processing",
        "2026-10-14",
    ),
]
