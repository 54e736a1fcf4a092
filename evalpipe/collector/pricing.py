"""What answers cost, for the treatment's budget and the metrics."""

from __future__ import annotations

from datetime import UTC, datetime

from evalpipe.collector.settings import ArmSettings, CollectorSettings
from evalpipe.core.spool import ResponseRecord
from evalpipe.providers.base import Answer, Usage
from evalpipe.providers.pricing import Price, cost_of
from evalpipe.providers.registry import read_answer

_DEFAULT_OUTPUT_TOKENS = 4096
"""reserved where a request names no limit"""
_BYTES_PER_TOKEN = 2.0
"""cautious: reserves more than any tokenizer counts for text"""


class Pricer:
    def __init__(self, settings: CollectorSettings) -> None:
        self._prices = {
            model: Price(
                input=price["input"] or 0.0,
                output=price["output"] or 0.0,
                cached_input=price.get("cached_input"),
                cache_write=price.get("cache_write"),
            )
            for model, price in settings.prices.items()
        }

    def warm_up(self, settings: CollectorSettings) -> None:
        """Read the price library now: the first copy's latency must not hold the time that takes."""
        for arm in (settings.control, settings.treatment):
            if arm is not None:
                self.worst_cost(arm, 1, 1)

    def read(self, record: ResponseRecord) -> Answer:
        ended = record.ended
        return read_answer(record.endpoint, record.status, record.headers, record.body.data, ended=ended)  # type: ignore[arg-type]

    def cost(self, answer: Answer, arm: ArmSettings) -> float | None:
        """USD of one answer, or None where usage or price are unknown."""
        model = answer.model or arm.model
        now = datetime.now(UTC)
        found = cost_of(answer.usage, model=model, provider=arm.provider, at=now, prices=self._prices)
        if found is None and answer.model and arm.model:
            found = cost_of(answer.usage, model=arm.model, provider=arm.provider, at=now, prices=self._prices)
        return None if found is None else found.usd

    def worst_cost(self, arm: ArmSettings, n_request_bytes: int, max_output_tokens: int | None) -> float:
        """USD to reserve before a copy is sent; 0 where the model has no price (that is refused at the start)."""
        usage = Usage(
            input_tokens=int(n_request_bytes / _BYTES_PER_TOKEN) + 1,
            output_tokens=max_output_tokens or _DEFAULT_OUTPUT_TOKENS,
        )
        cost = cost_of(usage, model=arm.model, provider=arm.provider, at=datetime.now(UTC), prices=self._prices)
        return 0.0 if cost is None else cost.usd
