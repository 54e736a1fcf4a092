"""What answers cost, for the treatment's budget and the metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from evalpipe.collector.settings import ArmSettings, CollectorSettings
from evalpipe.core.spool import ResponseRecord
from evalpipe.providers.base import Answer, Usage
from evalpipe.providers.pricing import Price, cost_of
from evalpipe.providers.registry import read_answer

_DEFAULT_OUTPUT_TOKENS = 4096
"""reserved where a request names no limit"""
_BYTES_PER_TOKEN = 2.0
"""cautious: reserves more than any tokenizer counts for text"""
_LINEAR_BELOW = 32_000
"""input tokens under which no provider's price depends on the prompt's length: costs are sums of products there"""
_SOME_MODEL = "gpt-4o-mini"
"""priced to read the library where an arm has no model of its own"""
_RATES_KEPT_S = 300.0
"""list prices change by the day"""


class _Rates(NamedTuple):
    """USD per token."""

    input: float
    cached: float
    output: float
    until: float


class Pricer:
    def __init__(self, settings: CollectorSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rates: dict[tuple[str | None, str | None, str], _Rates] = {}
        self._prices = {model: Price(**price) for model, price in settings.prices.items()}
        for arm in (settings.control, settings.treatment):
            if (
                arm is not None
            ):  # reads the price library now: a copy's latency must not hold that, nor may files be short then
                self._cost(Usage(input_tokens=1, output_tokens=1), None, arm.model or _SOME_MODEL, arm.provider)

    def read(self, record: ResponseRecord) -> Answer:
        ended = record.ended
        return read_answer(record.endpoint, record.status, record.headers, record.body.data, ended=ended)  # type: ignore[arg-type]

    def cost(self, answer: Answer, arm: ArmSettings) -> float | None:
        """USD of one answer, or None where usage or price are unknown."""
        return self._cost(answer.usage, answer.model, arm.model, arm.provider)

    def worst_cost(self, arm: ArmSettings, n_request_bytes: int, max_output_tokens: int | None) -> float:
        """USD to reserve before a copy is sent; 0 where the model has no price (that is refused at the start)."""
        if arm.model is None:
            return 0.0
        usage = Usage(
            input_tokens=int(n_request_bytes / _BYTES_PER_TOKEN) + 1,
            output_tokens=max_output_tokens or _DEFAULT_OUTPUT_TOKENS,
        )
        return self._cost(usage, None, arm.model, arm.provider) or 0.0

    def _cost(self, usage: Usage, model: str | None, requested: str | None, provider: str) -> float | None:
        if not usage.is_plain:
            return self._exact_cost(usage, model, requested, provider)
        if usage.input_tokens is None or usage.output_tokens is None:
            return None
        if usage.input_tokens >= _LINEAR_BELOW or usage.cache_write_tokens:
            return self._exact_cost(usage, model, requested, provider)
        key = (model, requested, provider)
        rates = self._rates.get(key)
        if rates is None or rates.until < self._clock():
            rates = self._rates[key] = self._find_rates(model, requested, provider)
        if rates.input < 0:
            return None
        cached = usage.cached_input_tokens or 0
        if cached > usage.input_tokens:
            return None
        return (usage.input_tokens - cached) * rates.input + cached * rates.cached + usage.output_tokens * rates.output

    def _find_rates(self, model: str | None, requested: str | None, provider: str) -> _Rates:
        def usd(n_input: int, n_cached: int, n_output: int) -> float:
            usage = Usage(input_tokens=n_input, cached_input_tokens=n_cached or None, output_tokens=n_output)
            cost = self._exact_cost(usage, model, requested, provider)
            return -1.0 if cost is None else cost / 1000

        return _Rates(usd(1000, 0, 0), usd(1000, 1000, 0), usd(0, 0, 1000), self._clock() + _RATES_KEPT_S)

    def _exact_cost(self, usage: Usage, model: str | None, requested: str | None, provider: str) -> float | None:
        found = cost_of(
            usage, model=model, requested=requested, provider=provider, at=datetime.now(UTC), prices=self._prices
        )
        return None if found is None else found.usd
