"""What an answer cost: list prices from the kept library, the user's own over them, and None where no price is known."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from importlib.metadata import version
from typing import Any, NamedTuple

from evalpipe.providers.base import Usage
from evalpipe.providers.models import family

BATCH_SHARE = 0.5
"""Both vendors ask half the list price for batches (docs of Message Batches and of the Batch API)."""

_DATED = re.compile(r"-\d{4}-?\d{2}-?\d{2}$")
_Rates = tuple[float, ...]
_SOLD_BY_ONE_VENDOR = frozenset({"claude", "gpt", "gemini"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """USD per million tokens. Without `cached_input` or `cache_write` those tokens cost what input costs."""

    input: float
    output: float
    cached_input: float | None = None
    cache_write: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """`usd`, at the price that held at `priced_at` (UTC), by `source`: "config", or the price library and its version."""

    usd: float
    priced_at: datetime
    source: str


def cost_of(
    usage: Usage,
    *,
    model: str | None,
    provider: str | None,
    at: datetime,
    prices: Mapping[str, Price] | None = None,
    batch: bool = False,
) -> Cost | None:
    """The cost of one answer; None where the usage is not told or no price is known: never 0, never a guess.

    `prices` (model → Price) goes before the library; its names also match a dated model ("gpt-4o" prices
    "gpt-4o-2024-08-06"). `at` (UTC) picks among prices that changed with time.
    """
    if model is None or usage.input_tokens is None or usage.output_tokens is None:
        return None
    share = BATCH_SHARE if batch else 1.0
    own = _own_price(model, prices or {})
    if own is not None:
        return Cost(usd=share * _by_price(usage, own), priced_at=at, source="config")
    usd = _by_library(usage, model, provider, at)
    return None if usd is None else Cost(usd=share * usd, priced_at=at, source=library_version())


def is_priced(model: str, provider: str | None, *, at: datetime, prices: Mapping[str, Price] | None = None) -> bool:
    """Whether answers of this model have a price at all."""
    usage = Usage(input_tokens=1, output_tokens=1)
    return cost_of(usage, model=model, provider=provider, at=at, prices=prices) is not None


@lru_cache(maxsize=1)
def library_version() -> str:
    return f"genai-prices {version('genai-prices')}"


def _own_price(model: str, prices: Mapping[str, Price]) -> Price | None:
    return prices.get(model) or prices.get(_DATED.sub("", model))


def _by_price(usage: Usage, price: Price) -> float:
    cached, written = usage.cached_input_tokens or 0, usage.cache_write_tokens or 0
    rest = max((usage.input_tokens or 0) - cached - written, 0)
    dollars = (
        rest * price.input
        + cached * (price.input if price.cached_input is None else price.cached_input)
        + written * (price.input if price.cache_write is None else price.cache_write)
        + (usage.output_tokens or 0) * price.output
    )
    return dollars / 1e6


def _by_library(usage: Usage, model: str, provider: str | None, at: datetime) -> float | None:
    found = _find(model, provider)
    if found is None:
        return None
    _, info = found
    cached, written = usage.cached_input_tokens or 0, usage.cache_write_tokens or 0
    one_hour = min(usage.cache_write_1h_tokens or 0, written)
    rest = (usage.input_tokens or 0) - cached - written
    if rest < 0:
        # Counts that contradict each other (more cached than input): a provider's slip, not a price.
        return None
    prices = info.get_prices(at)
    if id(prices) not in _rates:
        _rates[id(prices)] = _read_rates(prices)
    rates = _rates[id(prices)]
    counts = _Counts(rest, cached, written - one_hour, one_hour, usage.output_tokens or 0)
    if rates is None:
        return _by_calculation(counts, prices)
    return sum(count * rate for count, rate in zip(counts, rates, strict=True))


class _Counts(NamedTuple):
    """Tokens that are priced apart from each other: together the whole input, and the output."""

    rest: int
    cached: int
    written_5m: int
    written_1h: int
    output: int


_rates: dict[int, _Rates | None] = {}
"""By identity of the library's price object, which lives as long as the process: USD per token of each of `_Counts`, or None
where prices depend on more than the counts (tiers by prompt length, a fee per request)."""


def _read_rates(prices: Any) -> _Rates | None:
    """What the library asks for a million tokens of each kind, taken apart once: its own calculation takes 0.15 ms."""
    told = {key: value for key, value in vars(prices).items() if value is not None}
    if "requests_kcount" in told or any(not isinstance(value, Decimal) for value in told.values()):
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


@lru_cache(maxsize=4096)
def _find(model: str, provider: str | None) -> tuple[Any, Any] | None:
    """The library's vendor and model. A model that only its maker sells is also found behind another provider's name
    (a proxy that speaks OpenAI's dialect); an open model is not: nobody knows what its server costs."""
    from genai_prices import data_snapshot

    snapshot = data_snapshot.get_snapshot()
    known = family(model)
    tries: list[str | None] = [provider] if provider else []
    if provider is None or (known in _SOLD_BY_ONE_VENDOR and "oss" not in model.lower()):
        tries.append(None)
    for provider_id in tries:
        name = model.rpartition("/")[2] if provider_id is None else model
        try:
            return snapshot.find_provider_model(name, None, provider_id, None)
        except LookupError:
            continue
    return None
