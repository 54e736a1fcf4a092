"""The prices of the configuration as the price list that loading, judging and the collector share."""

from __future__ import annotations

from evalpipe.config import Config
from evalpipe.providers.pricing import Price


def price_book(config: Config | None) -> dict[str, Price]:
    """model → its own price, USD per million tokens; models that are not here have the price library's."""
    if config is None:
        return {}
    return {model: Price(**own.model_dump()) for model, own in config.prices.items()}
