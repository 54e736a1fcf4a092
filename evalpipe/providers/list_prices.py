"""List prices: what a usage costs by the kept library, by service tier, and by the documented rules it does not hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from importlib.metadata import version
from typing import Any, NamedTuple

from evalpipe.providers import documented
from evalpipe.providers.base import Usage
from evalpipe.providers.models import family, takes_max_completion_tokens
from evalpipe.providers.own_prices import BATCH, CONTRADICTION, UNSPLIT_AUDIO, Unpriced

_Rates = tuple[float, ...]
_SOLD_BY_ONE_VENDOR = frozenset({"claude", "gpt", "gemini"})
_PREVIEW = "web_search_preview"


class Listed(NamedTuple):
    """A model's entry in the library."""

    vendor: str
    """the library's id of who sells it, e.g. "openai" """
    model: str
    info: Any


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
        speaks OpenAI's dialect); an open model is not: nobody knows what its server costs.
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
        return Listed(vendor=seller.id, model=info.id, info=info)
    return None


def list_cost(usage: Usage, listed: Listed, model: str, *, at: datetime, batch: bool) -> float | Unpriced:
    """USD of the tokens of one answer at list price, without the fees of tools.

    Args:
        usage: The counts; input and output have to be known.
        listed: The library's entry of the model.
        model: The name to speak of in reasons.
        at: When the request was made (UTC): prices change with time.
        batch: Whether the answer came out of a batch.

    Returns:
        USD, or why no documented price holds for it.
    """
    if any(part in listed.model for part in documented.ALWAYS_SEARCHING):
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
        usd = _plain_usd(usage, terms)
    return usd if isinstance(usd, Unpriced) else terms.share * usd


def tool_fee(tool: str, listed: Listed | None, model: str) -> float | Unpriced:
    """USD for one call of a tool that the provider ran.

    Args:
        tool: A name in `Usage.server_tools`.
        listed: The library's entry of the model, None where it has none.
        model: The name to speak of in reasons.

    Returns:
        USD, or why no fee is documented.
    """
    if listed is None:
        return Unpriced(reason=f"no fee of {tool} is known for {model}")
    if tool == "web_search" and any(listed.model.startswith(name) for name in documented.FIXED_SEARCH_CONTENT):
        return Unpriced(reason=f"how {model} bills the content of its web searches is not in the usage")
    if tool == _PREVIEW and not takes_max_completion_tokens(listed.model):
        tool = f"{_PREVIEW} of a model without reasoning"
    fee = documented.TOOL_FEES.get((listed.vendor, tool))
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
        share = documented.US_ONLY_SHARE
    if not ways:
        return _Terms(prices=listed.info.get_prices(at), share=share)
    if tier is not None and (ahead := documented.BOUGHT_AHEAD.get((listed.vendor, tier))) is not None:
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
    if ways.get("processing") == BATCH and listed.vendor in documented.BATCH_VENDORS:
        return documented.BATCH_SHARE
    if ways.get("service_tier") == "flex" and listed.vendor in documented.FLEX_VENDORS:
        return documented.BATCH_SHARE
    return documented.FAST_SHARES.get(listed.model) if ways.get("speed") == "fast" else None


def _has_variant(info: Any, ways: Mapping[str, str], at: datetime) -> bool:
    return any(
        all(ways.get(key) == value for key, value in variant.when.items())
        and (variant.constraint is None or variant.constraint.active(at))
        for variant in info.price_variants or ()
    )


def _with_audio_price(listed: Listed, prices: Any, model: str, at: datetime) -> Any:
    audio = documented.AUDIO_PRICES.get(listed.model)
    if audio is None or at < audio.since or model.endswith("2024-10-01"):
        return prices
    from genai_prices.types import ModelPrice

    own = {"input_audio_mtok": Decimal(str(audio.input)), "output_audio_mtok": Decimal(str(audio.output))}
    return ModelPrice(**{**vars(prices), **own})


# --- what the tokens cost


class _Counts(NamedTuple):
    """Tokens that are priced apart from each other: together the whole input, and the output."""

    rest: int
    cached: int
    written_5m: int
    written_1h: int
    output: int


_rates: dict[int, _Rates | None] = {}
"""By identity of the library's own price object, which lives as long as the process: USD per token of each of `_Counts`, or
None where prices depend on more than the counts (tiers by prompt length, a fee per request)."""


def _has_other_media(usage: Usage) -> bool:
    return bool(
        usage.audio_input_tokens or usage.audio_output_tokens or usage.image_input_tokens or usage.image_output_tokens
    )


def _plain_usd(usage: Usage, terms: _Terms) -> float | Unpriced:
    """USD at the standard share where all tokens are text, or images that cost what text costs."""
    cached, written = usage.cached_input_tokens or 0, usage.cache_write_tokens or 0
    one_hour = min(usage.cache_write_1h_tokens or 0, written)
    rest = (usage.input_tokens or 0) - cached - written
    if rest < 0:
        # Counts that contradict each other (more cached than input): a provider's slip, not a price.
        return Unpriced(reason=CONTRADICTION)
    counts, prices = _Counts(rest, cached, written - one_hour, one_hour, usage.output_tokens or 0), terms.prices
    if not terms.is_standard:  # made for this answer: nothing to keep
        return _by_calculation(counts, prices)
    if id(prices) not in _rates:
        _rates[id(prices)] = _read_rates(prices)
    rates = _rates[id(prices)]
    if rates is None:
        return _by_calculation(counts, prices)
    return sum(count * rate for count, rate in zip(counts, rates, strict=True))


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
    return tuple(_by_calculation(counts, prices) / 1e6 for counts in one)


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
