"""The user's own prices: which of them holds for a model name, and what a usage costs by it. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from evalpipe.providers.base import Usage
from evalpipe.providers.documented import BATCH_SHARE

BATCH = "batch"
_PER = 1e6
_DATE = re.compile(r"[-@_:]?(?:latest|20\d{2}-?[01]\d-?[0-3]\d)$")
_BEDROCK_HEAD = re.compile(
    r"^(?:[a-z]{2,6}(?:-gov)?\.)?(?:anthropic|amazon|cohere|deepseek|meta|mistral|openai|qwen)\."
)
_BEDROCK_TAIL = re.compile(r"-v\d+(?::\d+)?$")
_FINE_TUNED = re.compile(r"^(ft:[^:]+):")


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """USD per million tokens; `_per_1000`: USD per 1,000 calls of a tool that the provider runs.

    Without `cached_input` or `cache_write` those tokens cost what input costs, and images without `image_input`. Other
    kinds without a price of their own (audio, images in the answer, long cache writes beside a price for short ones)
    have no cost. `tiers`: the provider's word for a way of serving ("flex", "priority", "fast", "us") → its share of
    the token prices; "batch" is half without it.
    """

    input: float
    output: float
    cached_input: float | None = None
    cache_write: float | None = None
    cache_write_1h: float | None = None
    cache_write_12h: float | None = None
    audio_input: float | None = None
    audio_output: float | None = None
    image_input: float | None = None
    image_output: float | None = None
    web_search_per_1000: float | None = None
    file_search_per_1000: float | None = None
    code_interpreter_per_1000: float | None = None
    tiers: Mapping[str, float] = field(default_factory=dict)

    def fee(self, tool: str) -> float | None:
        """USD for one call of `tool` (a name in `Usage.server_tools`); None where this price says nothing of it."""
        per_1000 = {
            "web_search": self.web_search_per_1000,
            "web_search_preview": self.web_search_per_1000,
            "file_search": self.file_search_per_1000,
            "code_interpreter": self.code_interpreter_per_1000,
            "code_execution": self.code_interpreter_per_1000,
        }.get(tool)
        return None if per_1000 is None else per_1000 / 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """`usd`, at the price that held at `priced_at` (UTC), by `source`: "config", the price library and its version, or the
    provider's own field. `note`: what is not in it; None where nothing is known to be missing."""

    usd: float
    priced_at: datetime
    source: str
    note: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Unpriced:
    """No cost is known; `reason` is one sentence for the person who reads the row."""

    reason: str


def find_own_price(model: str, prices: Mapping[str, Price]) -> Price | None:
    """The user's price for a model name.

    Args:
        model: As asked for or answered, with any prefix ("openai/gpt-4o"), date ("gpt-4o-2024-08-06", "@20250929",
            "-latest") or Bedrock's dress ("us.anthropic.claude-sonnet-4-5-20250929-v1:0").
        prices: Model name → price.

    Returns:
        The price under the name that says most. A variant behind a colon (":free", ":extended") and a fine-tuned model
        have the price written for themselves only, as their base model costs something else.
    """
    if not prices:
        return None
    found = next((prices[name] for name in _names(model) if name in prices), None)
    if found is not None:
        return found
    folded = {name.lower(): price for name, price in prices.items()}
    return next((folded[name] for name in _names(model.lower()) if name in folded), None)


def _names(model: str) -> Iterator[str]:
    """The names a price may be written under, from the whole name to the barest."""
    bases = [model]
    while "/" in bases[-1]:
        bases.append(bases[-1].partition("/")[2])
    tuned = _FINE_TUNED.match(bases[-1])
    if tuned:
        bases.append(tuned[1])
    bare = _BEDROCK_TAIL.sub("", _BEDROCK_HEAD.sub("", bases[-1]))
    if bare != bases[-1]:
        bases.append(bare)
    for name in bases:
        yield name
        undated = _DATE.sub("", name)
        if undated and undated != name:
            yield undated


def own_cost(usage: Usage, price: Price, model: str, *, batch: bool) -> float | Unpriced:
    """USD of the tokens of one answer by the user's price, without the fees of tools.

    Args:
        usage: The counts; input and output have to be known.
        price: The user's price.
        model: The name to speak of in reasons.
        batch: Whether the answer came out of a batch.

    Returns:
        USD, or why the user's price does not say.
    """
    share = _share(usage, price, batch=batch)
    if isinstance(share, str):
        return Unpriced(reason=f'[prices."{model}"] has no share for {share!r}: add tiers = {{ {share} = … }}')
    missing = _missing(usage, price)
    if missing is not None:
        return Unpriced(reason=f'[prices."{model}"] has no {missing}, and the answer used such tokens')
    cached, written = usage.cached_input_tokens or 0, usage.cache_write_tokens or 0
    if cached and usage.audio_input_tokens and usage.cached_audio_tokens is None:
        return Unpriced(reason=UNSPLIT_AUDIO)
    long = min((usage.cache_write_1h_tokens or 0) + (usage.cache_write_12h_tokens or 0), written)
    audio, image = usage.audio_input_tokens or 0, usage.image_input_tokens or 0
    audio_cached = usage.cached_audio_tokens or 0
    rest = (usage.input_tokens or 0) - cached - written - (audio - audio_cached) - image
    made = (usage.output_tokens or 0) - (usage.audio_output_tokens or 0) - (usage.image_output_tokens or 0)
    if rest < 0 and image and price.image_input is None:
        rest, image = rest + image, 0  # images may be among the cached tokens; they cost what input costs anyhow
    if rest < 0 or made < 0:
        return Unpriced(reason=CONTRADICTION)
    dollars = (
        rest * price.input
        + cached * _or(price.cached_input, price.input)
        + (written - long) * _or(price.cache_write, price.input)
        + min(usage.cache_write_1h_tokens or 0, written) * _or(price.cache_write_1h, price.input)
        + min(usage.cache_write_12h_tokens or 0, written) * _or(price.cache_write_12h, price.input)
        + (audio - audio_cached) * _or(price.audio_input, 0.0)
        + image * _or(price.image_input, price.input)
        + made * price.output
        + (usage.audio_output_tokens or 0) * _or(price.audio_output, 0.0)
        + (usage.image_output_tokens or 0) * _or(price.image_output, 0.0)
    )
    return share * dollars / _PER


CONTRADICTION = "the provider's token counts contradict each other: the parts are more than the whole"
UNSPLIT_AUDIO = "which of the cached tokens are audio is not reported"


def _share(usage: Usage, price: Price, *, batch: bool) -> float | str:
    """The share of the token prices that this way of serving costs, or the word the user's price has no share for."""
    share = 1.0
    words = dict.fromkeys([BATCH] if batch else [])
    words |= dict.fromkeys(word for word in (usage.service_tier, usage.speed, usage.inference_geo) if word)
    for word in words:
        one = price.tiers.get(word, BATCH_SHARE if word == BATCH else None)
        if one is None:
            return word
        share *= one
    return share


def _missing(usage: Usage, price: Price) -> str | None:
    """The key of a price that is needed and that input's does not stand for."""
    has_short = price.cache_write is not None
    needed = (
        (usage.cache_write_1h_tokens, price.cache_write_1h, "cache_write_1h", has_short),
        (usage.cache_write_12h_tokens, price.cache_write_12h, "cache_write_12h", has_short),
        (usage.audio_input_tokens, price.audio_input, "audio_input", True),
        (usage.audio_output_tokens, price.audio_output, "audio_output", True),
        (usage.image_output_tokens, price.image_output, "image_output", True),
    )
    return next((key for count, value, key, matters in needed if count and value is None and matters), None)


def _or(value: float | None, other: float) -> float:
    return other if value is None else value
