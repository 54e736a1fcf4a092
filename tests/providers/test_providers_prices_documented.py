"""Costs by vendor, as documented: the answer as the vendor sends it, the amount in USD, the page and the day it was read,
by us in a dated copy or by the keepers of the price library.

The amount of a line is written as tokens times the page's prices in USD per million (`usd`), or is the figure the provider
itself gave. An answer that cannot be priced has no cost, with its reason: the second table.
"""

from __future__ import annotations

from datetime import date

import prices_anthropic
import prices_openai
import prices_others
import pytest
from prices_lines import CLAUDE, Line, Without, messages, price, usd
from prices_without import WITHOUT

from evalpipe.providers.pricing import Cost, Unpriced

LINES = [*prices_openai.LINES, *prices_anthropic.LINES, *prices_others.LINES]


@pytest.mark.parametrize("line", LINES, ids=[f"{n}-{line.vendor}-{line.model}" for n, line in enumerate(LINES)])
def test_the_documented_amount(line: Line) -> None:
    found = price(line)
    assert isinstance(found, Cost), found
    assert found.usd == pytest.approx(line.amount, rel=1e-9, abs=1e-15)
    assert found.priced_at == line.at
    assert found.note is None


@pytest.mark.parametrize("line", WITHOUT, ids=[f"{n}-{line.model}-{line.reason}" for n, line in enumerate(WITHOUT)])
def test_no_cost_with_its_reason(line: Without) -> None:
    found = price(line)
    assert isinstance(found, Unpriced), found
    assert line.reason in found.reason


def test_every_line_names_its_page_and_day() -> None:
    assert len(LINES) >= 40
    for line in LINES:
        assert line.page.startswith("https://") or line.vendor == "own prices"
        assert date.fromisoformat(line.read) <= date(2026, 11, 28)
    assert {"OpenAI", "Anthropic", "Google", "xAI", "OpenRouter", "DeepSeek", "Moonshot", "Perplexity", "LiteLLM"} <= {
        line.vendor for line in LINES
    }


def test_the_source_of_a_cost() -> None:
    sources = {line.vendor: found.source for line in LINES if isinstance(found := price(line), Cost)}
    assert sources["Anthropic"].startswith("genai-prices ")
    assert sources["own prices"] == "config"
    assert sources["Perplexity"] == "usage.cost.total_cost"
    by_header = next(line for line in LINES if line.headers)
    found = price(by_header)
    assert isinstance(found, Cost) and found.source == "x-litellm-response-cost"


def test_a_part_that_may_be_nothing_is_named() -> None:
    usage = {"input_tokens": 105, "output_tokens": 239, "server_tool_use": {"code_execution_requests": 1}}
    found = price(messages("claude-sonnet-4-6", usage, 0.0, CLAUDE, "2026-10-14"))
    assert isinstance(found, Cost)
    assert found.usd == pytest.approx(usd((105, 3), (239, 15)))
    assert found.note == "without the container time of 1 code execution calls"
