"""What a response cost: the user's own prices first, then the provider's own figure, then documented list prices.

Where none of them gives a cost there is none, with the reason in words: never 0, never a guess.
"""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from importlib.metadata import version
from typing import Any, NamedTuple

import msgspec

from evalpipe.providers.base import Usage
from evalpipe.providers.model_names import family, same_model, takes_max_completion_tokens

__all__ = ["Cost", "Price", "Unpriced", "cost_of", "is_priced", "library_version", "price_of"]

CONFIG = "config"
FREE_VARIANT = ":free"
"""OpenRouter's mark of a variant that costs nothing (openrouter.ai/docs/guides/routing/model-variants/free, 2026-10)."""
NOT_REPORTED = "the answer did not report its tokens"


def price_of(
    usage: Usage,
    *,
    model: str | None,
    provider: str | None,
    at: datetime,
    requested: str | None = None,
    prices: Mapping[str, Price] | None = None,
    batch: bool = False,
) -> Cost | Unpriced:
    """The cost of one answer in USD, or why none is known.

    Args:
        usage: What the answer used.
        model: The model that answered, by its own word; None where the answer names none.
        provider: The provider asked.
        at: When the request was made (UTC): it picks among prices that changed with time.
        requested: The model asked for. It replaces the response's where that names none, where both are one model, and
            where it is a name of the user's own (a deployment, an alias) with a price in `prices`.
        prices: The user's own prices by model name; they go before everything else.
        batch: Whether the answer came out of a batch.

    Returns:
        The cost with its source, or the reason why there is none. A fee that is certainly charged and whose price is
        not known leaves no cost at all; a part that may be nothing is named in the cost's `note`.
    """
    if not prices and not batch and usage.is_plain:
        ordinary = _ordinary_cost(usage, _known_names(model, requested, provider), at)
        if ordinary is not None:
            return ordinary
    names = _names(model, requested, provider)
    own = _own(names, requested, provider, prices or {})
    if own is None and usage.reported_usd is not None:
        return Cost(usd=usage.reported_usd, priced_at=at, source=usage.reported_by or "reported")
    if not names:
        return Unpriced(reason="neither the answer nor the request names a model")
    if own is None and _is_free(names, requested):
        return Cost(usd=0.0, priced_at=at, source="free variant")
    if usage.doubt is not None or usage.input_tokens is None or usage.output_tokens is None:
        return Unpriced(reason=usage.doubt or NOT_REPORTED)
    listed = next((found for name in names if (found := find_listed(name, provider)) is not None), None)
    if own is not None:
        name, price = own
        tokens, source = own_cost(usage, price, name, batch=batch), CONFIG
    elif listed is not None:
        price, source = None, library_version()
        tokens = list_cost(usage, listed, names[0], at=at, batch=batch)
    else:
        return Unpriced(reason=_unknown(names, model, requested, provider))
    if isinstance(tokens, Unpriced):
        return tokens
    fees = _fees(usage, price, listed, names[0])
    if isinstance(fees, Unpriced):
        return fees
    others = _others(usage, provider=provider, at=at, prices=prices, batch=batch)
    if isinstance(others, Unpriced):
        return others
    return Cost(usd=tokens + fees + others, priced_at=at, source=source, note=_left_out(usage, price, listed))


def cost_of(
    usage: Usage,
    *,
    model: str | None,
    provider: str | None,
    at: datetime,
    requested: str | None = None,
    prices: Mapping[str, Price] | None = None,
    batch: bool = False,
) -> Cost | None:
    """`price_of` without the reason: None where no cost is known."""
    found = price_of(usage, model=model, provider=provider, at=at, requested=requested, prices=prices, batch=batch)
    return None if isinstance(found, Unpriced) else found


def is_priced(model: str, provider: str | None, *, at: datetime, prices: Mapping[str, Price] | None = None) -> bool:
    """Whether answers of this model have a price at all."""
    usage = Usage(input_tokens=1, output_tokens=1)
    return cost_of(usage, model=model, provider=provider, at=at, prices=prices) is not None


def _ordinary_cost(usage: Usage, listed: Listed | None, at: datetime) -> Cost | None:
    """What nearly every answer costs: plain token counts at the list price. None where there is more to look at."""
    given, made = usage.input_tokens, usage.output_tokens
    if listed is None or given is None or made is None:
        return None
    prices = listed.info.get_prices(at) if listed.always is None else listed.always
    if (given and prices.input_mtok is None) or (made and prices.output_mtok is None):
        return None
    usd = _plain_usd(usage, prices)
    return None if isinstance(usd, Unpriced) else Cost(usd=usd, priced_at=at, source=library_version())


@lru_cache(maxsize=4096)
def _known_names(model: str | None, requested: str | None, provider: str | None) -> Listed | None:
    """The library's entry of these names; None where plain counts do not decide what such an answer costs."""
    names = _names(model, requested, provider)
    if not names or _is_free(names, requested):
        return None
    listed = next((found for name in names if (found := find_listed(name, provider)) is not None), None)
    return None if listed is None or any(part in listed.model for part in ALWAYS_SEARCHING) else listed


def _names(model: str | None, requested: str | None, provider: str | None) -> list[str]:
    """The names a price may be found under: the answer's, and the request's where it cannot be another model's."""
    if not model:
        return [requested] if requested else []
    if requested and requested != model and same_model(model, requested):
        return [model, requested]
    return [model]


def _is_free(names: list[str], requested: str | None) -> bool:
    """Whether a free variant answered; some answers leave its mark out of the name."""
    asked = requested or ""
    return names[0].endswith(FREE_VARIANT) or (
        asked.endswith(FREE_VARIANT) and same_model(names[0], asked.removesuffix(FREE_VARIANT))
    )


def _own(
    names: list[str], requested: str | None, provider: str | None, prices: Mapping[str, Price]
) -> tuple[str, Price] | None:
    """The user's price, with the name it was found for. A name of the user's own that was asked for holds whatever model
    answers; the name of a known model does not: a router may have answered with another one."""
    if not prices:
        return None
    for name in names:
        price = find_own_price(name, prices)
        if price is not None:
            return name, price
    if requested and requested not in names and find_listed(requested, provider) is None:
        price = find_own_price(requested, prices)
        if price is not None:
            return requested, price
    return None


def _unknown(names: list[str], model: str | None, requested: str | None, provider: str | None) -> str:
    asked = ""
    if model and requested and requested not in names:
        asked = f" ({requested} was asked)"
    return f'no list price of {names[0]}{asked} from {provider or "any provider"}: add [prices."{names[0]}"]'


def _fees(usage: Usage, price: Price | None, listed: Listed | None, model: str) -> float | Unpriced:
    """USD of the calls of tools that the provider ran: by the user's price, else as documented."""
    usd = 0.0
    for tool, n_calls in usage.server_tools:
        fee: float | Unpriced | None = None if price is None else price.fee(tool)
        if fee is None and tool in FREE_OR_BY_THE_HOUR:
            continue
        if fee is None:
            fee = tool_fee(tool, listed, model)
        if isinstance(fee, Unpriced):
            return Unpriced(reason=f"{fee.reason}, and the answer made {n_calls} such calls")
        usd += n_calls * fee
    return usd


def _others(
    usage: Usage, *, provider: str | None, at: datetime, prices: Mapping[str, Price] | None, batch: bool
) -> float | Unpriced:
    """USD of the models asked on the way, each at its own price and served as the answer was."""
    usd = 0.0
    for model, part in usage.other_models:
        served = msgspec.structs.replace(
            part, service_tier=usage.service_tier, speed=None, inference_geo=usage.inference_geo
        )
        found = price_of(served, model=model or None, provider=provider, at=at, prices=prices, batch=batch)
        if isinstance(found, Unpriced):
            return Unpriced(reason=f"{model or 'a model'} was asked on the way: {found.reason}")
        usd += found.usd
    return usd


def _left_out(usage: Usage, price: Price | None, listed: Listed | None) -> str | None:
    parts = [
        f"the container time of {n_calls} {tool.replace('_', ' ')} calls"
        for tool, n_calls in usage.server_tools
        if tool in FREE_OR_BY_THE_HOUR and (price is None or price.fee(tool) is None)
    ]
    if price is not None and listed is not None and any(name in listed.model for name in ALWAYS_SEARCHING):
        parts.append("the fees of its web searches, whose number it does not report")
    return f"without {' and '.join(parts)}" if parts else None


# The user's own prices: which of them holds for a model name, and what a usage costs by it. Pure.


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
        """USD for one call of `tool` (a name in `Usage.server_tools`); None where this price does not cover it."""
        per_1000 = {
            "web_search": self.web_search_per_1000,
            "web_search_preview": self.web_search_per_1000,
            "file_search": self.file_search_per_1000,
            "code_interpreter": self.code_interpreter_per_1000,
            "code_execution": self.code_interpreter_per_1000,
        }.get(tool)
        return None if per_1000 is None else per_1000 / 1000


class Cost(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """`usd`, at the price that held at `priced_at` (UTC), by `source`: "config", the price library and its version, or the
    provider's own field. `note`: what is not in it; None where nothing is known to be missing."""

    usd: float
    priced_at: datetime
    source: str
    note: str | None = None


class Unpriced(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """No cost is known; `reason` is one sentence for readers of the row."""

    reason: str


def find_own_price(model: str, prices: Mapping[str, Price]) -> Price | None:
    """The user's price for a model name.

    Args:
        model: As asked for or answered, with any prefix ("openai/gpt-4o"), date ("gpt-4o-2024-08-06", "@20250929",
            "-latest") or Bedrock's dress ("us.anthropic.claude-sonnet-4-5-20250929-v1:0").
        prices: Model name → price.

    Returns:
        The price under the most specific name. A variant behind a colon (":free", ":extended") and a fine-tuned model
        have the price written for themselves only, as their base model costs something else.
    """
    if not prices:
        return None
    found = next((prices[name] for name in _own_price_names(model) if name in prices), None)
    if found is not None:
        return found
    folded = {name.lower(): price for name, price in prices.items()}
    return next((folded[name] for name in _own_price_names(model.lower()) if name in folded), None)


def _own_price_names(model: str) -> Iterator[str]:
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
        model: The name used in reasons.
        batch: Whether the answer came out of a batch.

    Returns:
        USD, or why the user's price gives none.
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
    """The key of a price that is needed and that input's cannot replace."""
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


# List prices: what a usage costs by the kept library, by service tier, and by the documented rules it does not hold.


_SOLD_BY_ONE_VENDOR = frozenset({"claude", "gpt", "gemini"})
_PREVIEW = "web_search_preview"


class Listed(NamedTuple):
    """A model's entry in the library."""

    vendor: str
    """the library's id of its provider, e.g. "openai" """
    model: str
    info: Any
    always: Any = None
    """its prices where they have been the same at all times"""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Terms:
    """What holds for one answer: the library's price object, the share of it that is asked, and whether the object is the
    library's own for the standard way of serving."""

    prices: Any
    share: float
    is_standard: bool = True


@lru_cache(maxsize=1)
def library_version() -> str:
    """The price library and its version, as costs name their source."""
    return f"genai-prices {version('genai-prices')}"


@lru_cache(maxsize=4096)
def find_listed(model: str, provider: str | None) -> Listed | None:
    """The library's entry of a model.

    Args:
        model: As asked for or answered.
        provider: The provider asked (a library id, "litellm", or None).

    Returns:
        The entry, or None. A model that only its maker sells is also found behind another provider's name (a proxy that
        has OpenAI's dialect); an open model is not: the cost of its server is unknown.
    """
    from genai_prices import data_snapshot  # thousands of prices: only read where something is priced

    if (
        "gpt-oss" in model.lower()
    ):  # under "openai" in the library, at another seller's price: OpenAI sells no API of it
        return None
    snapshot = data_snapshot.get_snapshot()
    tries: list[str | None] = [provider] if provider else []
    if provider is None or family(model) in _SOLD_BY_ONE_VENDOR:
        tries.append(None)
    for provider_id in tries:
        name = model.rpartition("/")[2] if provider_id is None else model
        try:
            seller, info = snapshot.find_provider_model(name, None, provider_id, None)
        except LookupError:
            continue
        always = None if isinstance(info.prices, list) else info.prices
        return Listed(vendor=seller.id, model=info.id, info=info, always=always)
    return None


def list_cost(usage: Usage, listed: Listed, model: str, *, at: datetime, batch: bool) -> float | Unpriced:
    """USD of the tokens of one answer at list price, without the fees of tools.

    Args:
        usage: The counts; input and output have to be known.
        listed: The library's entry of the model.
        model: The name used in reasons.
        at: When the request was made (UTC): prices change with time.
        batch: Whether the answer came out of a batch.

    Returns:
        USD, or why no documented price holds for it.
    """
    if any(part in listed.model for part in ALWAYS_SEARCHING):
        return Unpriced(reason=f"{model} searches the web for each answer at a fee and does not report how often")
    terms = _terms(usage, listed, at, batch=batch)
    if isinstance(terms, Unpriced):
        return terms
    if usage.cache_write_12h_tokens:
        return Unpriced(reason=f"no price of cache writes kept for twelve hours is documented for {model}")
    needed = (("input_mtok", usage.input_tokens), ("output_mtok", usage.output_tokens))
    if any(count and getattr(terms.prices, key) is None for key, count in needed):
        return Unpriced(reason=f"{model} is not sold by the token")
    if _has_other_media(usage):
        prices = _with_audio_price(listed, terms.prices, model, at)
        usd = _mixed_usd(usage, prices, listed, model)
    else:
        usd = _plain_usd(usage, terms.prices, is_standard=terms.is_standard)
    return usd if isinstance(usd, Unpriced) else terms.share * usd


def tool_fee(tool: str, listed: Listed | None, model: str) -> float | Unpriced:
    """USD for one call of a tool that the provider ran.

    Args:
        tool: A name in `Usage.server_tools`.
        listed: The library's entry of the model, None where it has none.
        model: The name used in reasons.

    Returns:
        USD, or why no fee is documented.
    """
    if listed is None:
        return Unpriced(reason=f"no fee of {tool} is known for {model}")
    if tool == "web_search" and any(listed.model.startswith(name) for name in FIXED_SEARCH_CONTENT):
        return Unpriced(reason=f"how {model} bills the content of its web searches is not in the usage")
    if tool == _PREVIEW and not takes_max_completion_tokens(listed.model):
        tool = f"{_PREVIEW} of a model without reasoning"
    fee = TOOL_FEES.get((listed.vendor, tool))
    return Unpriced(reason=f"no fee of {tool} is documented for {model}") if fee is None else fee


# --- which price holds


def _terms(usage: Usage, listed: Listed, at: datetime, *, batch: bool) -> _Terms | Unpriced:
    """The price object of this way of serving. A tier whose price the library does not hold for the day is not the
    standard one: where no documented rule gives it either, there is no price."""
    tier = None if usage.service_tier == BATCH else usage.service_tier
    batch = batch or usage.service_tier == BATCH
    ways = {
        key: value
        for key, value in (("processing", BATCH if batch else None), ("service_tier", tier), ("speed", usage.speed))
        if value is not None
    }
    share = 1.0
    if usage.inference_geo is not None:
        if listed.vendor != "anthropic" or usage.inference_geo != "us":
            return Unpriced(reason=f"no price is documented for inference_geo {usage.inference_geo!r}")
        share = US_ONLY_SHARE
    if not ways:
        return _Terms(prices=listed.info.get_prices(at), share=share)
    if tier is not None and (ahead := BOUGHT_AHEAD.get((listed.vendor, tier))) is not None:
        return Unpriced(reason=f"{ahead}: it has no list price")
    described = ", ".join(f"{key.replace('processing', 'way')} {value!r}" for key, value in ways.items())
    if len(ways) > 1:
        return Unpriced(reason=f"no price is documented for {described} together")
    if _has_variant(listed.info, ways, at):
        return _Terms(prices=listed.info.get_prices(at, ways), share=share, is_standard=False)
    rule = _rule(ways, listed)
    if rule is None:
        return Unpriced(reason=f"no price of {listed.model} is documented for {described} on {at:%Y-%m-%d}")
    return _Terms(prices=listed.info.get_prices(at), share=share * rule)


def _rule(ways: Mapping[str, str], listed: Listed) -> float | None:
    """The documented share of the standard price, where there is one for every model of the vendor."""
    if ways.get("processing") == BATCH and listed.vendor in BATCH_VENDORS:
        return BATCH_SHARE
    if ways.get("service_tier") == "flex" and listed.vendor in FLEX_VENDORS:
        return BATCH_SHARE
    return FAST_SHARES.get(listed.model) if ways.get("speed") == "fast" else None


def _has_variant(info: Any, ways: Mapping[str, str], at: datetime) -> bool:
    return any(
        all(ways.get(key) == value for key, value in variant.when.items())
        and (variant.constraint is None or variant.constraint.active(at))
        for variant in info.price_variants or ()
    )


def _with_audio_price(listed: Listed, prices: Any, model: str, at: datetime) -> Any:
    audio = AUDIO_PRICES.get(listed.model)
    if audio is None or at < audio.since or model.endswith("2024-10-01"):
        return prices
    from genai_prices.types import ModelPrice

    own = {"input_audio_mtok": Decimal(str(audio.input)), "output_audio_mtok": Decimal(str(audio.output))}
    return ModelPrice(**{**vars(prices), **own})


# --- what the tokens cost


@dataclass(slots=True)
class _Counts:
    """Tokens that are priced apart from each other: together the whole input, and the output."""

    rest: int
    cached: int
    written_5m: int
    written_1h: int
    output: int


@dataclass(slots=True)
class _Rates:
    """USD per token of each of `_Counts`."""

    rest: float
    cached: float
    written_5m: float
    written_1h: float
    output: float


_rates: dict[int, _Rates | None] = {}
"""By identity of the library's own price object, which exists as long as the process; None where prices depend on more than the
counts (tiers by prompt length, a fee per request)."""


def _has_other_media(usage: Usage) -> bool:
    return bool(
        usage.audio_input_tokens or usage.audio_output_tokens or usage.image_input_tokens or usage.image_output_tokens
    )


def _plain_usd(usage: Usage, prices: Any, *, is_standard: bool = True) -> float | Unpriced:
    """USD at the standard share where all tokens are text, or images that cost what text costs. `is_standard`: see `_Terms`."""
    cached, written = usage.cached_input_tokens or 0, usage.cache_write_tokens or 0
    one_hour = min(usage.cache_write_1h_tokens or 0, written)
    rest = (usage.input_tokens or 0) - cached - written
    if rest < 0:
        # Counts that contradict each other (more cached than input): a provider's slip, not a price.
        return Unpriced(reason=CONTRADICTION)
    made = usage.output_tokens or 0
    rates = None
    if is_standard:  # else made for this answer: nothing to keep
        key = id(prices)
        if key not in _rates:
            _rates[key] = _read_rates(prices)
        rates = _rates[key]
    if rates is None:
        return _by_calculation(_Counts(rest, cached, written - one_hour, one_hour, made), prices)
    return (
        rest * rates.rest
        + cached * rates.cached
        + (written - one_hour) * rates.written_5m
        + one_hour * rates.written_1h
        + made * rates.output
    )


def _mixed_usd(usage: Usage, prices: Any, listed: Listed, model: str) -> float | Unpriced:
    """USD at the standard share with audio and images at their own prices.

    Where the library holds no price for audio in the input, Google's models take it at the price of text
    (ai.google.dev/gemini-api/docs/pricing, 2026-10: one price, or "text / image / video" beside "audio"); images in the
    input are text tokens for every chat model. In the output neither is.
    """
    import genai_prices

    counts: dict[str, int] = {}
    kinds = (
        ("input_audio", "audio in the input", usage.audio_input_tokens, listed.vendor == "google"),
        ("output_audio", "audio in the output", usage.audio_output_tokens, False),
        ("input_image", "images in the input", usage.image_input_tokens, True),
        ("output_image", "images in the output", usage.image_output_tokens, False),
    )
    for key, name, count, costs_as_text in kinds:
        if not count:
            continue
        if getattr(prices, f"{key}_mtok") is not None:
            counts[f"{key}_tokens"] = count
        elif not costs_as_text:
            return Unpriced(reason=f"no price of {name} is documented for {model}")
    if usage.cached_input_tokens and "input_audio_tokens" in counts:
        if usage.cached_audio_tokens is None:
            return Unpriced(reason=UNSPLIT_AUDIO)
        counts["cache_audio_read_tokens"] = usage.cached_audio_tokens
    if usage.cached_input_tokens and "input_image_tokens" in counts:
        return Unpriced(reason="which of the cached tokens are images is not reported")
    whole = genai_prices.Usage(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        cache_read_tokens=usage.cached_input_tokens or None,
        cache_write_tokens=usage.cache_write_tokens or None,
        cache_write_1h_tokens=usage.cache_write_1h_tokens or None,
        **counts,
    )
    try:
        return float(prices.calc_price(whole)["total_price"])
    except ValueError:
        return Unpriced(reason=CONTRADICTION)


def _read_rates(prices: Any) -> _Rates | None:
    """What the library asks for a million tokens of each kind, taken apart once: its own calculation takes 0.15 ms."""
    known = {key: value for key, value in vars(prices).items() if value is not None}
    if "requests_kcount" in known or any(not isinstance(value, Decimal) for value in known.values()):
        return None
    one = [_Counts(*(10**6 * (kind == other) for other in range(5))) for kind in range(5)]
    return _Rates(*[_by_calculation(counts, prices) / 1e6 for counts in one])


def _by_calculation(counts: _Counts, prices: Any) -> float:
    import genai_prices  # thousands of prices: only read where something is priced

    written = counts.written_5m + counts.written_1h
    usage = genai_prices.Usage(
        input_tokens=counts.rest + counts.cached + written,
        output_tokens=counts.output,
        cache_read_tokens=counts.cached or None,
        cache_write_tokens=written or None,
        cache_write_1h_tokens=counts.written_1h or None,
    )
    return float(prices.calc_price(usage)["total_price"])


# Documented prices and rules that the price library does not hold, each with its page and the day it was read.


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
