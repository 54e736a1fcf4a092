"""What an answer used, read from the usage objects of all vendors: one function a dialect. Pure; never raises.

Each dialect has two functions: `read_*_usage` takes a usage object alone, `*_usage` the whole message, which also names the
service tier and the tools the provider ran. Documents are named with the day they were read.
"""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from msgspec.structs import replace

from evalpipe.providers.base import Usage
from evalpipe.providers.decoding import header
from evalpipe.providers.json_values import as_count, as_dict, as_list, as_scalar, as_text

COST_HEADER = "x-litellm-response-cost"
"""LiteLLM's own figure in USD (docs.litellm.ai/docs/proxy/response_headers, 2026-10-15); "None" where it has no price."""

_XAI_TICKS_PER_USD = 10**10  # docs.x.ai/developers/cost-tracking, 2026-10
_STANDARD = frozenset({"", "auto", "default", "standard", "standard_only", "on_demand", "none", "normal", "global"})
"""Words for the ordinary way of serving; `auto` in an answer means that nothing else was chosen."""
_NO_GEO = "not_available"
ZERO_COUNTS = "the provider counted no {} tokens beside an answer"
_CODE_EXECUTION = frozenset({"code_execution", "bash_code_execution", "text_editor_code_execution"})

# --- chat completions


def chat_usage(message: dict[str, Any], *, has_content: bool) -> Usage:
    """The usage of a whole chat completion.

    Args:
        message: The answer as the provider would have sent it unstreamed.
        has_content: Whether the answer holds text or tool calls: a count of 0 tokens beside them is implausible.

    Returns:
        The counts with service tier and tools; no counts where the provider reported none.
    """
    usage = read_chat_usage(usage_in(message))
    return plausible(replace(usage, service_tier=tier(message.get("service_tier"))), has_content=has_content)


def usage_in(message: dict[str, Any]) -> Any:
    """The usage object of a chat completion or of one of its chunks, wherever the vendor puts it: at the top, in
    `x_groq` (Groq's streams) or in a choice (Moonshot's streams). None where there is none."""
    if message.get("usage") is not None:
        return message["usage"]
    found = as_dict(message.get("x_groq")).get("usage")
    if found is not None:
        return found
    return next(
        (choice["usage"] for choice in map(as_dict, as_list(message.get("choices"))) if choice.get("usage")), None
    )


def counts_something(usage: Any) -> bool:
    """Whether a usage object holds any count above 0: a later chunk full of zeros does not replace it."""
    return any(as_count(value) for value in as_dict(usage).values())


def read_chat_usage(value: Any) -> Usage:
    """Chat usage: `prompt_tokens` includes cached ones and `completion_tokens` reasoning, unless the sums contradict it."""
    usage = as_dict(value)
    prompt, completion = as_dict(usage.get("prompt_tokens_details")), as_dict(usage.get("completion_tokens_details"))
    written_1h = as_dict(usage.get("cache_creation") or prompt.get("cache_creation_token_details"))
    reported, by = _reported(usage)
    tools = as_dict(usage.get("server_tool_use"))
    counts = Usage(
        input_tokens=as_count(usage.get("prompt_tokens")),
        # OpenAI and most · DeepSeek · Moonshot, Together · LiteLLM
        cached_input_tokens=_first(
            prompt.get("cached_tokens"),
            usage.get("prompt_cache_hit_tokens"),
            usage.get("cached_tokens"),
            usage.get("cache_read_input_tokens"),
        ),
        # OpenAI, OpenRouter · LiteLLM · Alibaba · LiteLLM, Anthropic's names
        cache_write_tokens=_first(
            prompt.get("cache_write_tokens"),
            prompt.get("cache_creation_tokens"),
            prompt.get("cache_creation_input_tokens"),
            usage.get("cache_creation_input_tokens"),
        ),
        cache_write_1h_tokens=as_count(written_1h.get("ephemeral_1h_input_tokens")),
        cache_write_12h_tokens=as_count(as_dict(prompt.get("cache_write_tokens_details")).get("ttl_12h_tokens")),
        output_tokens=as_count(usage.get("completion_tokens")),
        reasoning_tokens=_first(completion.get("reasoning_tokens"), usage.get("reasoning_tokens")),
        audio_input_tokens=as_count(prompt.get("audio_tokens")),
        cached_audio_tokens=as_count(as_dict(prompt.get("cached_tokens_details")).get("audio_tokens")),
        image_input_tokens=as_count(prompt.get("image_tokens")),
        audio_output_tokens=as_count(completion.get("audio_tokens")),
        image_output_tokens=as_count(completion.get("image_tokens")),
        server_tools=_tools(
            {"web_search": _first(tools.get("web_search_requests"), prompt.get("web_search_requests")) or 0}
        ),
        service_tier=tier(usage.get("service_tier")),
        speed=tier(usage.get("speed")),
        inference_geo=geography(usage.get("inference_geo")),
        reported_usd=reported,
        reported_by=by,
    )
    return settled(counts, as_count(usage.get("total_tokens")))


# --- Responses


def responses_usage(message: dict[str, Any], *, has_content: bool) -> Usage:
    """The usage of a whole response, with the calls of OpenAI's hosted tools.

    Args:
        message: The response object.
        has_content: Whether it holds text or tool calls: a count of 0 tokens beside them is implausible.

    Returns:
        The counts with service tier and tools. Of web searches only actions that search are counted: "Search actions
        incur a tool call cost", opening a page does not (developers.openai.com/api/docs/guides/tools-web-search, 2026-08-05);
        `tool_usage.web_search.num_requests`, where there, "counts billable searches" (openai SDK 3.54).
    """
    items = [as_dict(item) for item in as_list(message.get("output"))]
    calls = dict.fromkeys(("file_search", "code_interpreter", "image_generation"), 0)
    n_searches = 0
    for item in items:
        kind = as_text(item.get("type")) or ""
        tool = kind.removesuffix("_call")
        if tool in calls and kind != tool:
            calls[tool] += 1
        elif kind == "shell_call":  # in a container of OpenAI's, or on the client's own machine
            calls["code_interpreter"] += as_scalar(as_dict(item.get("environment")).get("type")) not in {None, "local"}
        elif kind == "web_search_call":
            n_searches += as_scalar(as_dict(item.get("action")).get("type")) in {None, "search"}
    billed = as_count(as_dict(as_dict(message.get("tool_usage")).get("web_search")).get("num_requests"))
    kinds = [as_text(as_dict(tool).get("type")) or "" for tool in as_list(message.get("tools"))]
    name = "web_search_preview" if any(kind.startswith("web_search_preview") for kind in kinds) else "web_search"
    usage = replace(
        read_responses_usage(message.get("usage")),
        service_tier=tier(message.get("service_tier")),
        server_tools=_tools({name: n_searches if billed is None else billed, **calls}),
    )
    return plausible(usage, has_content=has_content)


def read_responses_usage(value: Any) -> Usage:
    """Responses usage: `input_tokens` includes cached ones, `output_tokens` reasoning, unless the sums contradict it."""
    usage = as_dict(value)
    given, made = as_dict(usage.get("input_tokens_details")), as_dict(usage.get("output_tokens_details"))
    reported, by = _reported(usage)
    counts = Usage(
        input_tokens=as_count(usage.get("input_tokens")),
        cached_input_tokens=as_count(given.get("cached_tokens")),
        cache_write_tokens=as_count(given.get("cache_write_tokens")),
        cache_write_12h_tokens=as_count(as_dict(given.get("cache_write_tokens_details")).get("ttl_12h_tokens")),
        output_tokens=as_count(usage.get("output_tokens")),
        reasoning_tokens=as_count(made.get("reasoning_tokens")),
        audio_input_tokens=as_count(given.get("audio_tokens")),
        image_input_tokens=as_count(given.get("image_tokens")),
        audio_output_tokens=as_count(made.get("audio_tokens")),
        image_output_tokens=as_count(made.get("image_tokens")),
        reported_usd=reported,
        reported_by=by,
    )
    return settled(counts, as_count(usage.get("total_tokens")))


# --- Messages


def messages_usage(message: dict[str, Any], *, has_content: bool) -> Usage:
    """The usage of a whole Messages answer.

    Args:
        message: The message object.
        has_content: Whether it holds text or tool calls: a count of 0 tokens beside them is implausible.

    Returns:
        The counts with service tier, speed, geography and tools.
    """
    usage = read_messages_usage(message.get("usage"))
    if "code_execution" not in dict(usage.server_tools):
        blocks = [as_dict(block) for block in as_list(message.get("content"))]
        n_runs = sum(
            block.get("type") == "server_tool_use" and as_scalar(block.get("name")) in _CODE_EXECUTION
            for block in blocks
        )
        usage = replace(usage, server_tools=usage.server_tools + _tools({"code_execution": n_runs}))
    return plausible(usage, has_content=has_content)


def read_messages_usage(value: Any) -> Usage:
    """Messages usage: `input_tokens` is only the uncached rest, so the whole input is the sum of three counts.

    Where a request took several rounds (`iterations`), its own model's are summed, compaction included: "not included in
    the top-level usage fields" (anthropic SDK 2.12). An advisor's tokens are billed at the advisor's price
    (platform.claude.com/docs/en/agents-and-tools/tool-use/advisor-tool, 2026-10).
    """
    usage = as_dict(value)
    counts = _messages_counts(usage)
    rounds = [as_dict(entry) for entry in as_list(usage.get("iterations"))]
    own = [_messages_counts(entry) for entry in rounds if as_scalar(entry.get("type")) in {"message", "compaction"}]
    if own and all(entry.input_tokens is not None and entry.output_tokens is not None for entry in own):
        counts = replace(_summed(own), reasoning_tokens=counts.reasoning_tokens)
    kinds = {as_text(entry.get("type")) or "" for entry in rounds}
    other = kinds - {"message", "compaction", "advisor_message"}
    tools = as_dict(usage.get("server_tool_use"))
    reported, by = _reported(usage)
    return replace(
        counts,
        server_tools=_tools(
            {
                "web_search": as_count(tools.get("web_search_requests")) or 0,
                "code_execution": as_count(tools.get("code_execution_requests")) or 0,
            }
        ),
        service_tier=tier(usage.get("service_tier")),
        speed=tier(usage.get("speed")),
        inference_geo=geography(usage.get("inference_geo")),
        other_models=tuple(
            (as_text(entry.get("model")) or "", _messages_counts(entry))
            for entry in rounds
            if entry.get("type") == "advisor_message"
        ),
        reported_usd=reported,
        reported_by=by,
        doubt=f"how a round of type {min(other)!r} is billed is not documented" if other else None,
    )


def _messages_counts(usage: dict[str, Any]) -> Usage:
    rest = as_count(usage.get("input_tokens"))
    cached = as_count(usage.get("cache_read_input_tokens"))
    written = as_count(usage.get("cache_creation_input_tokens"))
    return Usage(
        input_tokens=None if rest is None else rest + (cached or 0) + (written or 0),
        cached_input_tokens=cached,
        cache_write_tokens=written,
        cache_write_1h_tokens=as_count(as_dict(usage.get("cache_creation")).get("ephemeral_1h_input_tokens")),
        output_tokens=as_count(usage.get("output_tokens")),
        reasoning_tokens=as_count(as_dict(usage.get("output_tokens_details")).get("thinking_tokens")),
    )


def _summed(parts: Iterable[Usage]) -> Usage:
    parts = list(parts)

    def total(values: Iterable[int | None]) -> int | None:
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    return Usage(
        input_tokens=total(part.input_tokens for part in parts),
        cached_input_tokens=total(part.cached_input_tokens for part in parts),
        cache_write_tokens=total(part.cache_write_tokens for part in parts),
        cache_write_1h_tokens=total(part.cache_write_1h_tokens for part in parts),
        output_tokens=total(part.output_tokens for part in parts),
    )


# --- shared


def with_reported_header(usage: Usage, headers: Mapping[str, str], model: str | None, *, streamed: bool) -> Usage:
    """The usage with LiteLLM's own figure, where the answer's headers hold one and its body does not.

    The headers of a stream are sent before anything is generated: no figure of theirs is its cost. A figure of 0 is
    accepted for a free variant only, as LiteLLM writes it for models it has no price for, too.
    """
    text = header(headers, COST_HEADER)
    if streamed or usage.reported_usd is not None or not text:
        return usage
    usd = _amount(text)
    if usd is None or (usd == 0 and not (model or "").endswith(":free")):
        return usage
    return replace(usage, reported_usd=usd, reported_by=COST_HEADER)


def settled(counts: Usage, total: int | None) -> Usage:
    """The counts with what a vendor leaves outside of them put inside, by the sum it reports.

    Gemini and xAI count thinking outside `completion_tokens` but inside `total_tokens`
    (discuss.ai.google.dev/t/98760, 2025-08-19: 758 + 102 ≠ 1,725); gateways that keep Anthropic's names leave cached
    tokens outside `prompt_tokens`. Where the gap fits neither, the counts are in doubt.
    """
    given, made = counts.input_tokens, counts.output_tokens
    if given is None:
        return counts
    if made is None:  # all of it was thinking
        return counts if not total or total <= given else _thought_outside(counts, total - given)
    reasoning = counts.reasoning_tokens or 0
    cache = (counts.cached_input_tokens or 0) + (counts.cache_write_tokens or 0)
    gap = (total or 0) - given - made
    if not total and reasoning > made:
        return replace(counts, output_tokens=made + reasoning)
    if gap <= 0:
        return counts
    if reasoning and gap == reasoning:
        return replace(counts, output_tokens=made + reasoning)
    if cache and gap == cache:
        return replace(counts, input_tokens=given + cache)
    if reasoning and cache and gap == reasoning + cache:
        return replace(counts, input_tokens=given + cache, output_tokens=made + reasoning)
    if reasoning:
        return replace(counts, doubt=f"total_tokens is {gap} more than the counts it is the sum of")
    return _thought_outside(counts, gap)


def _thought_outside(counts: Usage, n_tokens: int) -> Usage:
    return replace(counts, output_tokens=(counts.output_tokens or 0) + n_tokens, reasoning_tokens=n_tokens)


def plausible(usage: Usage, *, has_content: bool) -> Usage:
    """No request has an input of 0 tokens, and no text an output of 0: servers that do not count write 0."""
    no_input, no_output = usage.input_tokens == 0, usage.output_tokens == 0 and has_content
    if not (no_input or no_output):
        return usage
    which = "input or output" if no_input and no_output else "input" if no_input else "output"
    return replace(
        usage,
        input_tokens=None if no_input else usage.input_tokens,
        cached_input_tokens=None if no_input else usage.cached_input_tokens,
        cache_write_tokens=None if no_input else usage.cache_write_tokens,
        output_tokens=None if no_output else usage.output_tokens,
        reasoning_tokens=None if no_output else usage.reasoning_tokens,
        doubt=usage.doubt or ZERO_COUNTS.format(which),
    )


def _reported(usage: dict[str, Any]) -> tuple[float | None, str | None]:
    """The provider's own figure in USD, and the field it was read from.

    xAI: `cost_in_usd_ticks`. Perplexity: `cost.total_cost`. OpenRouter and gateways like it: `cost`; under a key of
    the user's own (`is_byok`) that is OpenRouter's fee alone, and `cost_details.upstream_inference_cost` comes on top
    (openrouter.ai/docs/use-cases/usage-accounting, 2026). A bare `cost` of 0 is accepted from OpenRouter only, which
    sends `cost_details` or `is_byok` beside it.
    """
    ticks = _amount(usage.get("cost_in_usd_ticks"))
    if ticks is not None:
        return ticks / _XAI_TICKS_PER_USD, "usage.cost_in_usd_ticks"
    cost = usage.get("cost")
    if cost is None:
        return None, None
    if isinstance(cost, dict):
        usd = _amount(cost.get("total_cost"))
        return (usd, "usage.cost.total_cost") if usd is not None else (None, None)
    usd = _amount(cost)
    if usd is None:
        return None, None
    if usage.get("is_byok") is True:
        upstream = _amount(as_dict(usage.get("cost_details")).get("upstream_inference_cost"))
        return (usd + upstream, "usage.cost with upstream_inference_cost") if upstream is not None else (None, None)
    if usd == 0 and "cost_details" not in usage and "is_byok" not in usage:
        return None, None
    return usd, "usage.cost"


def _amount(value: Any) -> float | None:
    """A sum of money or ticks: finite and not negative, as a number or as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        amount = float(value)
    except (ValueError, OverflowError):
        return None
    return amount if math.isfinite(amount) and amount >= 0 else None


def _first(*values: Any) -> int | None:
    for value in values:
        count = as_count(value)
        if count is not None:
            return count
    return None


def _tools(calls: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    return tuple([(tool, n) for tool, n in calls.items() if n])


def tier(value: Any) -> str | None:
    """A way of serving in the provider's own lower-case word; None for the standard one."""
    if not isinstance(value, str):
        return None
    word = value.strip().lower()
    return None if word in _STANDARD else word


def geography(value: Any) -> str | None:
    """Where an answer was made, where that was asked for."""
    geo = tier(value)
    return None if geo == _NO_GEO else geo
