"""The two kinds of lines of the price tables, their short forms, and how one is priced: as a stored answer is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from evalpipe.providers.pricing import Cost, Price, Unpriced, price_of
from evalpipe.providers.registry import read_answer

NOVEMBER = datetime(2026, 11, 10, 12, tzinfo=UTC)
OPENAI = "https://developers.openai.com/api/docs/pricing"
CLAUDE = "https://platform.claude.com/docs/en/about-claude/pricing"
GEMINI = "https://ai.google.dev/gemini-api/docs/pricing"
SEARCH = "https://developers.openai.com/api/docs/guides/tools-web-search"
FAST = "https://platform.claude.com/docs/en/build-with-claude/fast-mode"


def usd(*parts: tuple[int, float]) -> float:
    """Σ tokens · USD per million."""
    return sum(tokens * price for tokens, price in parts) / 1e6


class Line(NamedTuple):
    """`answer` is laid over a minimal answer of the dialect; a dict with `prompt_tokens` or `input_tokens` is its usage."""

    vendor: str
    model: str
    answer: dict[str, Any]
    amount: float
    page: str
    read: str
    at: datetime = NOVEMBER
    endpoint: str = "chat.completions"
    provider: str = "openai"
    prices: Mapping[str, Price] = MappingProxyType({})
    headers: Mapping[str, str] = MappingProxyType({})
    requested: str | None = None
    batch: bool = False


def chat(model: str, usage: dict[str, Any], amount: float, page: str, read: str, **more: Any) -> Line:
    vendor = more.pop("vendor", "OpenAI")
    extra = more.pop("answer", {})
    return Line(vendor, model, {"usage": usage, **extra}, amount, page, read, **more)


def responses(model: str, usage: dict[str, Any], amount: float, page: str, read: str, **more: Any) -> Line:
    return chat(model, usage, amount, page, read, endpoint="responses", **more)


def messages(model: str, usage: dict[str, Any], amount: float, page: str, read: str, **more: Any) -> Line:
    more = {"vendor": "Anthropic", "provider": "anthropic", **more}
    return chat(model, usage, amount, page, read, endpoint="messages", **more)


def tokens(given: int, made: int, cached: int | None = None, **more: Any) -> dict[str, Any]:
    """Chat usage as OpenAI sends it."""
    details = {"prompt_tokens_details": {"cached_tokens": cached}} if cached is not None else {}
    return {"prompt_tokens": given, "completion_tokens": made, "total_tokens": given + made, **details, **more}


def used(given: int, made: int, cached: int = 0, **details: Any) -> dict[str, Any]:
    """Responses usage as OpenAI sends it."""
    return {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": cached, **details},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": given + made,
    }


def tier(word: str) -> dict[str, Any]:
    return {"answer": {"service_tier": word}}


def search(kind: str, *actions: str, **more: Any) -> dict[str, Any]:
    calls = [{"type": "web_search_call", "status": "completed", "action": {"type": action}} for action in actions]
    return {"answer": {"output": [*calls, MESSAGE_ITEM], "tools": [{"type": kind}], **more}}


MESSAGE_ITEM = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello"}]}


class Without(NamedTuple):
    """An answer that has no cost, and a part of the reason."""

    model: str
    answer: dict[str, Any]
    reason: str
    at: datetime = NOVEMBER
    endpoint: str = "chat.completions"
    provider: str = "openai"
    prices: Mapping[str, Price] = MappingProxyType({})
    headers: Mapping[str, str] = MappingProxyType({})
    requested: str | None = None
    batch: bool = False


def _body(line: Line | Without) -> dict[str, Any]:
    base: dict[str, Any] = {
        "chat.completions": {
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop"}]
        },
        "responses": {"status": "completed", "output": [MESSAGE_ITEM]},
        "messages": {"type": "message", "content": [{"type": "text", "text": "Hello"}], "stop_reason": "end_turn"},
    }[line.endpoint]
    return {**base, "model": line.model, **line.answer}


def price(line: Line | Without) -> Cost | Unpriced:
    headers = {"content-type": "application/json", **line.headers}
    answer = read_answer(line.endpoint, 200, headers, json.dumps(_body(line)).encode())
    return price_of(
        answer.usage,
        model=answer.model,
        requested=line.requested,
        provider=line.provider,
        at=line.at,
        prices=line.prices,
        batch=line.batch,
    )
