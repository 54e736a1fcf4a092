"""What an answer cost: the user's own prices first, then the provider's own figure, then documented list prices.

Where none of them gives a cost there is none, with the reason in words: never 0, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from evalpipe.providers import documented
from evalpipe.providers.base import Usage
from evalpipe.providers.list_prices import Listed, find_listed, library_version, list_cost, tool_fee
from evalpipe.providers.models import same_model
from evalpipe.providers.own_prices import Cost, Price, Unpriced, find_own_price, own_cost

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
        requested: The model asked for. It stands for the answer's where that names none, where both are one model, and
            where it is a name of the user's own (a deployment, an alias) with a price in `prices`.
        prices: The user's own prices by model name; they go before everything else.
        batch: Whether the answer came out of a batch.

    Returns:
        The cost with its source, or the reason why there is none. A fee that is charged for certain and whose price is
        not known leaves no cost at all; a part that may be nothing is named in the cost's `note`.
    """
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
        if fee is None and tool in documented.FREE_OR_BY_THE_HOUR:
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
        served = replace(part, service_tier=usage.service_tier, speed=None, inference_geo=usage.inference_geo)
        found = price_of(served, model=model or None, provider=provider, at=at, prices=prices, batch=batch)
        if isinstance(found, Unpriced):
            return Unpriced(reason=f"{model or 'a model'} was asked on the way: {found.reason}")
        usd += found.usd
    return usd


def _left_out(usage: Usage, price: Price | None, listed: Listed | None) -> str | None:
    parts = [
        f"the container time of {n_calls} {tool.replace('_', ' ')} calls"
        for tool, n_calls in usage.server_tools
        if tool in documented.FREE_OR_BY_THE_HOUR and (price is None or price.fee(tool) is None)
    ]
    if price is not None and listed is not None and any(name in listed.model for name in documented.ALWAYS_SEARCHING):
        parts.append("the fees of its web searches, whose number it does not report")
    return f"without {' and '.join(parts)}" if parts else None
