"""Token counts under every name that vendors and tools give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from evalpipe.store.importers.paths import find, opened
from evalpipe.store.importers.values import count


class Tokens(NamedTuple):
    """Counts as the store has them: `input` is the whole input, `output` the whole output; None: not reported."""

    input: int | None = None
    cached: int | None = None
    cache_write: int | None = None
    output: int | None = None
    reasoning: int | None = None


NO_TOKENS = Tokens()
INPUT = (
    "prompt_tokens", "input_tokens", "inputTokens", "promptTokens", "input", "prompt", "promptTokenCount", "inputTokenCount",
    "prompt_token_count", "input_token_count", "prompt_token", "prompt_eval_count", "tokens_in", "billed_units.input_tokens",
    "tokens.input_tokens", "inputTextTokenCount", "num_input_tokens", "prompt_n", "n_input_tokens",
)  # fmt: skip
OUTPUT = (
    "completion_tokens", "output_tokens", "outputTokens", "completionTokens", "output", "completion", "candidatesTokenCount",
    "outputTokenCount", "completion_token_count", "output_token_count", "candidates_token_count", "completion_token",
    "eval_count", "tokens_out", "billed_units.output_tokens", "tokens.output_tokens", "num_output_tokens", "generated_tokens",
    "response_tokens", "predicted_n", "n_output_tokens",
)  # fmt: skip
CACHED = (
    "prompt_tokens_details.cached_tokens", "input_tokens_details.cached_tokens", "cache_read_input_tokens", "cached_tokens",
    "input_cached_tokens", "input_cache_read", "cachedContentTokenCount", "cachedInputTokens", "cacheReadInputTokens",
    "prompt_cache_hit_tokens", "input_tokens_cache_read", "input_token_details.cache_read", "cache_read_tokens",
    "cachedPromptTokens", "inputTokenDetails.cacheReadTokens", "cached_input_tokens", "prompt_details.cache_read",
    "prompt_cached_tokens", "cache_read_tokens", "numRequestsCached",
)  # fmt: skip
WRITTEN = (
    "cache_creation_input_tokens", "prompt_tokens_details.cache_creation_tokens", "prompt_tokens_details.cache_write_tokens",
    "input_cache_creation", "cacheWriteInputTokens", "input_tokens_cache_write", "input_token_details.cache_creation",
    "inputTokenDetails.cacheWriteTokens", "cache_write_tokens", "cache_creation_tokens", "prompt_cache_creation_tokens",
    "prompt_details.cache_write",
)  # fmt: skip
REASONING = (
    "completion_tokens_details.reasoning_tokens", "output_tokens_details.reasoning_tokens", "reasoning_tokens",
    "output_reasoning_tokens", "output_reasoning", "thoughtsTokenCount", "reasoningTokens", "output_token_details.reasoning",
    "outputTokenDetails.reasoningTokens", "completion_details.reasoning", "completion_reasoning_tokens",
    "output_tokens_details.thinking_tokens",
)  # fmt: skip


def read_tokens(usage: Any, *, apart: bool = False) -> Tokens:
    """The counts of a usage object.

    Args:
        usage: the object, or its JSON text; anything else counts nothing.
        apart: cached, written and reasoning tokens are not part of input and output (Langfuse's buckets).
    """
    usage = opened(usage)
    if not isinstance(usage, Mapping) or not usage:
        return Tokens()
    found = Tokens(*(_first(usage, names) for names in (INPUT, CACHED, WRITTEN, OUTPUT, REASONING)))
    if apart or _counts_apart(usage, found):
        return found._replace(
            input=_sum(found.input, found.cached, found.cache_write),
            output=_sum(found.output, found.reasoning) if apart else found.output,
        )
    if "thoughtsTokenCount" in usage:  # Gemini counts thoughts beside the candidates
        return found._replace(output=_sum(found.output, found.reasoning))
    return found


def _counts_apart(usage: Mapping[str, Any], found: Tokens) -> bool:
    """Whether cached and written tokens come on top of the input: where a total is given, by its sum; else by the names.
    Anthropic's `input_tokens` are those that no cache was asked about; so are Bedrock's."""
    if not (found.cached or found.cache_write) or found.input is None:
        return False
    total = _first(usage, ("total_tokens", "totalTokens", "total"))
    together = found.input + (found.output or 0)
    if total is not None and total in {together, together + (found.cached or 0) + (found.cache_write or 0)}:
        return total != together
    names = ("cache_read_input_tokens", "cache_creation_input_tokens", "cacheReadInputTokens", "cacheWriteInputTokens",
             "input_tokens_cache_read", "input_tokens_cache_write")  # fmt: skip
    return any(name in usage for name in names) and "prompt_tokens" not in usage


def _first(usage: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        found = count(usage.get(name)) if "." not in name else count(find(usage, name))
        if found is not None:
            return found
    return None


def _sum(*counts: int | None) -> int | None:
    known = [one for one in counts if one is not None]
    return sum(known) if known else None
