"""The collector's prices for the budget and the metrics: the store's own, also on the short road of plain usage."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from evalpipe.collector.settings import ArmSettings, CollectorSettings
from evalpipe.collector.usage_metrics import Pricer
from evalpipe.http1.headers import LOGGED_ANSWER, logged, read_response_headers
from evalpipe.models import Outcome
from evalpipe.providers.base import Answer, Usage
from evalpipe.providers.pricing import Price, cost_of

CONTROL = ArmSettings(arm="control", provider="openai", base_url="http://arm.example", model="gpt-4o")


def pricer(arm: ArmSettings = CONTROL, **prices: dict[str, Any]) -> Pricer:
    return Pricer(CollectorSettings(experiment="e", control=arm, spool="", data="", prices=prices))


def cost(found: Pricer, usage: Usage, model: str | None = "gpt-4o-2024-08-06") -> float | None:
    return found.cost(Answer(outcome=Outcome.OK, model=model, usage=usage), CONTROL)


USAGES = {
    "plain": Usage(input_tokens=1000, output_tokens=100),
    "cached": Usage(input_tokens=1000, cached_input_tokens=900, output_tokens=100),
    "long": Usage(input_tokens=300_000, output_tokens=100),
    "audio": Usage(input_tokens=1000, audio_input_tokens=500, output_tokens=100),
    "priority": Usage(input_tokens=1000, output_tokens=100, service_tier="priority"),
    "searched": Usage(input_tokens=1000, output_tokens=100, server_tools=(("web_search", 2),)),
    "said": Usage(input_tokens=1000, output_tokens=100, reported_usd=0.25, reported_by="usage.cost"),
    "not told": Usage(),
    "doubtful": Usage(input_tokens=10, output_tokens=10, doubt="the counts contradict each other"),
    "more cached than sent": Usage(input_tokens=10, cached_input_tokens=20, output_tokens=10),
}
OWN = {"gpt-4o": {"input": 2.0, "output": 8.0, "tiers": {"priority": 1.7}}}


@pytest.mark.parametrize("usage", USAGES.values(), ids=USAGES)
@pytest.mark.parametrize("prices", [{}, OWN], ids=["list", "own"])
@pytest.mark.parametrize("model", ["gpt-4o-2024-08-06", "gpt-4.1", None])
def test_the_collector_and_the_store_agree(usage: Usage, prices: dict[str, dict[str, Any]], model: str | None) -> None:
    found = cost(pricer(**prices), usage, model)
    stored = cost_of(
        usage,
        model=model,
        requested="gpt-4o",
        provider="openai",
        at=datetime.now(UTC),
        prices={name: Price(**price) for name, price in prices.items()},
    )
    assert found == (None if stored is None else pytest.approx(stored.usd))


def test_own_prices_know_the_tier() -> None:
    found = pricer(**OWN)
    assert cost(found, USAGES["plain"]) == pytest.approx(1000 * 2e-6 + 100 * 8e-6)
    assert cost(found, USAGES["priority"]) == pytest.approx(1.7 * (1000 * 2e-6 + 100 * 8e-6))


def test_the_proxys_figure_is_logged() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-litellm-response-cost: 0.0042\r\nx-other: 1\r\n\r\n"
    assert logged(read_response_headers(head).lines, LOGGED_ANSWER) == {"x-litellm-response-cost": "0.0042"}
