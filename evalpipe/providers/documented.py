"""Documented prices and rules that the price library does not hold, each with its page and the day it was read."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

BATCH_SHARE = 0.5
"""Of the standard price. "All usage is charged at 50% of the standard API prices"
(platform.claude.com/docs/en/build-with-claude/batch-processing, 2026-10); "50% cost discount compared to synchronous APIs"
(developers.openai.com/api/docs/guides/batch, 2026-10). Flex: "Tokens are priced at Batch API rates"
(developers.openai.com/api/docs/guides/flex-processing, 2026-10). Where the library holds a model's own batch or flex
price for the day, that one goes first."""

BATCH_VENDORS = frozenset({"openai", "anthropic"})
FLEX_VENDORS = frozenset({"openai"})

US_ONLY_SHARE = 1.1
"""Anthropic's `inference_geo: "us"`: "a 1.1x multiplier to all token categories" for Claude 4.6 and later
(platform.claude.com/docs/en/about-claude/pricing, 2026-10); older models refuse the parameter."""

FAST_SHARES: Mapping[str, float] = {"claude-opus-4-6": 6.0, "claude-opus-4-7": 6.0}
"""Of the standard price of the same prompt length: "6x standard Opus rates", $30 and $150 for Opus 4.6 and 4.7, $60 and $225
for Opus 4.6 over 200,000 input tokens while that length had a price of its own
(platform.claude.com/docs/en/build-with-claude/fast-mode, 2026-02 to 2026-06). Later models are in the library."""

BOUGHT_AHEAD: Mapping[tuple[str, str], str] = {
    (
        "anthropic",
        "priority",
    ): "Anthropic's Priority Tier is capacity bought ahead",  # platform.claude.com/…/service-tiers
    ("openai", "scale"): "OpenAI's Scale Tier is capacity bought ahead",  # openai.com/api-scale-tier
}
"""(vendor, service tier) of answers whose tokens are paid by contract: they have no list price. Read 2026-10."""


class AudioPrice(NamedTuple):
    """USD per million audio tokens, and the day from which it held."""

    input: float
    output: float
    since: datetime


AUDIO_PRICES: Mapping[str, AudioPrice] = {
    # developers.openai.com/api/docs/models/gpt-4o-audio-preview.md and …/gpt-4o-mini-audio-preview.md, 2026-10
    "gpt-4o-audio-preview": AudioPrice(40.0, 80.0, datetime(2024, 12, 17, tzinfo=UTC)),
    "gpt-4o-mini-audio-preview": AudioPrice(10.0, 20.0, datetime(2024, 12, 17, tzinfo=UTC)),
}
"""The library's id of a model that has only text prices there. The snapshot of 2024-10-01 was dearer before that day."""

TOOL_FEES: Mapping[tuple[str, str], float] = {
    # platform.claude.com/docs/en/about-claude/pricing#web-search-tool, 2026-10: $10 per 1,000 searches
    ("anthropic", "web_search"): 0.010,
    # developers.openai.com/api/docs/pricing#built-in-tools, 2026-10: web search (all models) and preview on reasoning
    # models $10, preview on other models $25, file search $2.50 per 1,000 calls
    ("openai", "web_search"): 0.010,
    ("openai", "web_search_preview"): 0.010,
    ("openai", "web_search_preview of a model without reasoning"): 0.025,
    ("openai", "file_search"): 0.0025,
}
"""(vendor, tool) → USD a call, beside the tokens. The tools that a usage can name: web_search, web_search_preview,
file_search, code_interpreter, image_generation, code_execution."""

FREE_OR_BY_THE_HOUR = frozenset({"code_execution"})
"""Anthropic's code execution is free beside its web tools, else $0.05 an hour and container after 1,550 free hours a month
(platform.claude.com/docs/en/about-claude/pricing#code-execution-tool, 2026-10): an answer's share is not in it."""

FIXED_SEARCH_CONTENT = ("gpt-4o-mini", "gpt-4.1-mini")
"""With the non-preview web search "search content tokens are billed as a fixed block of 8,000 input tokens per call"
(developers.openai.com/api/docs/pricing, 2026-10); whether the usage holds them is not documented."""

ALWAYS_SEARCHING = ("-search-preview", "-search-api")
"""Parts of the names of chat models that "always search before responding" (tools-web-search guide, 2026-08-05) and do
not report how often: each search has a fee."""
