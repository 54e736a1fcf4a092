"""OpenAI's documented amounts: kinds of tokens, service tiers, audio, hosted tools."""

from __future__ import annotations

from datetime import UTC, datetime

from prices_lines import MESSAGE_ITEM, OPENAI, SEARCH, chat, responses, search, tier, tokens, usd, used

LINES = [
    # --- OpenAI: kinds of tokens, snapshots, prompt length, price changes
    chat("gpt-4o-2024-08-06", tokens(1000, 100, 200), usd((800, 2.5), (200, 1.25), (100, 10)), OPENAI, "2026-10-12"),
    chat("gpt-4o-2024-05-13", tokens(1000, 100), usd((1000, 5), (100, 15)), OPENAI, "2026-10-12"),
    chat("gpt-5", tokens(1486, 651, 1408), usd((78, 1.25), (1408, 0.125), (651, 10)), OPENAI, "2026-10-12"),
    chat("gpt-5.4", tokens(272_000, 1000), usd((272_000, 2.5), (1000, 15)), OPENAI, "2026-10-12"),
    chat("gpt-5.4", tokens(272_001, 1000), usd((272_001, 5), (1000, 22.5)), OPENAI, "2026-10-12"),
    chat(
        "gpt-5.6-luna",
        tokens(3000, 500, prompt_tokens_details={"cached_tokens": 1000, "cache_write_tokens": 1500}),
        usd((500, 0.20), (1000, 0.02), (1500, 0.25), (500, 1.20)),
        "https://developers.openai.com/api/docs/models/gpt-5.6-luna",
        "2026-10-15",
    ),
    chat(
        "gpt-5.6-luna",
        tokens(3000, 500),
        usd((3000, 1), (500, 6)),
        "https://docs.laozhang.ai/en/announcements/gpt-5-6-pricing-2026-07.md",
        "2026-08-01",
        at=datetime(2026, 7, 29, tzinfo=UTC),
    ),
    chat(
        "ft:gpt-4o-mini-2024-07-18:acme::abc123", tokens(2000, 200), usd((2000, 0.3), (200, 1.2)), OPENAI, "2026-10-14"
    ),
    # --- OpenAI: service tiers, batches
    responses(
        "gpt-5", used(100, 50, 40), usd((60, 0.625), (40, 0.0625), (50, 5)), OPENAI, "2026-10-12", **tier("flex")
    ),
    responses(
        "gpt-5",
        used(100, 50, 40),
        usd((60, 1.25), (40, 0.125), (50, 10)) / 2,
        "https://developers.openai.com/api/docs/guides/flex-processing",
        "2026-10-05",
        at=datetime(2026, 6, 1, tzinfo=UTC),
        **tier("flex"),
    ),
    chat(
        "o4-mini",
        tokens(1000, 400, 600),
        usd((400, 0.55), (600, 0.138), (400, 2.2)),
        OPENAI,
        "2026-10-12",
        **tier("flex"),
    ),
    responses(
        "gpt-5", used(100, 50, 40), usd((60, 2.5), (40, 0.25), (50, 20)), OPENAI, "2026-10-12", **tier("priority")
    ),
    chat(
        "gpt-4o",
        tokens(1000, 100, 200),
        usd((800, 4.25), (200, 2.125), (100, 17)),
        OPENAI,
        "2026-10-12",
        **tier("priority"),
    ),
    chat("gpt-4.1-mini", tokens(1000, 100), usd((1000, 0.7), (100, 2.8)), OPENAI, "2026-10-12", **tier("priority")),
    chat(
        "gpt-5.6-sol",
        tokens(1000, 100, 500),
        usd((500, 8), (500, 0.8), (100, 40)),
        "https://openai.com/api-fast-mode/",
        "2026-10-12",
        **tier("priority"),
    ),
    chat("gpt-5.6-sol", tokens(1000, 100), usd((1000, 4), (100, 20)), OPENAI, "2026-10-12", **tier("default")),
    chat("o3", tokens(1000, 100), usd((1000, 1), (100, 4)), OPENAI, "2026-10-14", batch=True),
    chat("gpt-3.5-turbo-1106", tokens(1000, 100), usd((1000, 1), (100, 2)), OPENAI, "2026-10-14", batch=True),
    # --- OpenAI: audio
    chat(
        "gpt-4o-audio-preview",
        tokens(
            1000,
            1000,
            prompt_tokens_details={"audio_tokens": 1000, "cached_tokens": 0},
            completion_tokens_details={"audio_tokens": 1000},
        ),
        usd((1000, 40), (1000, 80)),
        "https://developers.openai.com/api/docs/models/gpt-4o-audio-preview.md",
        "2026-10-20",
    ),
    chat(
        "gpt-4o-mini-audio-preview",
        tokens(1000, 500, prompt_tokens_details={"audio_tokens": 600}, completion_tokens_details={"audio_tokens": 400}),
        usd((400, 0.15), (600, 10), (100, 0.6), (400, 20)),
        "https://developers.openai.com/api/docs/models/gpt-4o-mini-audio-preview.md",
        "2026-10-20",
    ),
    chat(
        "gpt-audio",
        tokens(1000, 500, prompt_tokens_details={"audio_tokens": 800}, completion_tokens_details={"audio_tokens": 450}),
        usd((200, 2.5), (800, 32), (50, 10), (450, 64)),
        "https://openrouter.ai/openai/gpt-audio/api",
        "2026-01-19",
    ),
    # --- OpenAI: fees of hosted tools
    responses(
        "gpt-5",
        used(9000, 500),
        usd((9000, 1.25), (500, 10)) + 2 * 10 / 1000,
        SEARCH,
        "2026-08-05",
        **search("web_search", "search", "open_page", "search", "find_in_page"),
    ),
    responses(
        "gpt-5",
        used(9000, 500),
        usd((9000, 1.25), (500, 10)) + 1 * 10 / 1000,
        OPENAI,
        "2026-10-12",
        **search("web_search", "search", "search", tool_usage={"web_search": {"num_requests": 1}}),
    ),
    responses(
        "gpt-4.1",
        used(400, 300),
        usd((400, 2), (300, 8)) + 25 / 1000,
        OPENAI,
        "2026-10-12",
        **search("web_search_preview", "search"),
    ),
    responses(
        "o4-mini",
        used(400, 300),
        usd((400, 1.1), (300, 4.4)) + 10 / 1000,
        OPENAI,
        "2026-10-12",
        **search("web_search_preview_2025_03_11", "search"),
    ),
    responses(
        "gpt-4.1",
        used(2000, 300),
        usd((2000, 2), (300, 8)) + 2 * 2.5 / 1000,
        OPENAI,
        "2026-10-12",
        answer={"output": [{"type": "file_search_call"}, {"type": "file_search_call"}, MESSAGE_ITEM]},
    ),
]
