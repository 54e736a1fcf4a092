"""Dollars of answers: list prices as published, the user's own, and no price at all."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from evalpipe.providers.base import Usage
from evalpipe.providers.model_names import family, same_family, same_model, takes_max_completion_tokens, takes_sampling
from evalpipe.providers.pricing import Price, cost_of, is_priced

AT = datetime(2026, 6, 1, tzinfo=UTC)


def usd(usage: Usage, model: str, provider: str | None, **more: object) -> float | None:
    cost = cost_of(usage, model=model, provider=provider, at=AT, **more)  # type: ignore[arg-type]
    return None if cost is None else cost.usd


def test_list_prices_by_kind_of_token() -> None:
    # Claude Haiku 4.5: $1 in, $5 out; cache read 0.1×, write 5 min 1.25×, write 1 h 2× (published price list).
    usage = Usage(
        input_tokens=1000,
        cached_input_tokens=400,
        cache_write_tokens=300,
        cache_write_1h_tokens=100,
        output_tokens=200,
    )
    expected = (300 * 1 + 400 * 0.1 + 200 * 1.25 + 100 * 2 + 200 * 5) / 1e6
    assert usd(usage, "claude-haiku-4-5", "anthropic") == pytest.approx(expected, rel=1e-12)
    assert usd(usage, "claude-haiku-4-5-20251001", "anthropic") == pytest.approx(expected, rel=1e-12)
    assert usd(usage, "claude-haiku-4-5", "anthropic", batch=True) == pytest.approx(expected / 2, rel=1e-12)
    # GPT-4o: $2.50 in, $1.25 cached, $10 out.
    assert usd(
        Usage(input_tokens=1000, cached_input_tokens=200, output_tokens=100), "gpt-4o", "openai"
    ) == pytest.approx((800 * 2.5 + 200 * 1.25 + 100 * 10) / 1e6, rel=1e-12)


def test_unknown_is_none() -> None:
    usage = Usage(input_tokens=1, output_tokens=1)
    assert usd(usage, "no-such-model", "openai") is None
    assert usd(Usage(output_tokens=1), "gpt-4o", "openai") is None
    assert usd(Usage(input_tokens=1), "gpt-4o", "openai") is None
    assert cost_of(usage, model=None, provider="openai", at=AT) is None
    # An open model on somebody's own server has no list price, though some vendor sells it.
    assert usd(usage, "llama-3.1-8b-instruct", "openai") is None
    assert not is_priced("no-such-model", None, at=AT)


def test_a_proxy_sells_the_makers_model() -> None:
    usage = Usage(input_tokens=10, output_tokens=10)
    assert usd(usage, "claude-haiku-4-5", "openai") == usd(usage, "claude-haiku-4-5", "anthropic")
    assert usd(usage, "anthropic/claude-haiku-4-5", "litellm") == usd(usage, "claude-haiku-4-5", "anthropic")


def test_own_prices_go_first() -> None:
    prices = {"gpt-4o": Price(input=1, output=2, cached_input=0.5), "mine": Price(input=4, output=4)}
    usage = Usage(input_tokens=1000, cached_input_tokens=100, cache_write_tokens=100, output_tokens=10)
    expected = (800 + 50 + 100 + 20) / 1e6
    for model in ("gpt-4o", "gpt-4o-2024-08-06"):
        assert usd(usage, model, "openai", prices=prices) == pytest.approx(expected)
    assert usd(usage, "mine", "openai", prices=prices, batch=True) == pytest.approx(1010 * 2 / 1e6)
    cost = cost_of(usage, model="mine", provider=None, at=AT, prices=prices)
    assert cost is not None
    assert (cost.source, cost.priced_at) == ("config", AT)


def test_contradicting_counts_have_no_price() -> None:
    usage = Usage(input_tokens=10, cached_input_tokens=500, output_tokens=1)
    assert usd(usage, "claude-haiku-4-5", "anthropic") is None


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("claude-opus-4-8", "claude"),
        ("anthropic/claude-3-5-sonnet", "claude"),
        ("gpt-4o-mini", "gpt"),
        ("o3-mini", "gpt"),
        ("openai/o4-mini", "gpt"),
        ("gemma-3-270m", "gemma"),
        ("Llama-3.2-1B", "llama"),
        ("SmolLM2-135M-Instruct", "smollm"),
        ("my-own", None),
        (None, None),
    ],
)
def test_families(model: str | None, expected: str | None) -> None:
    assert family(model) == expected
    assert same_family(model, model) is (expected is not None)


@pytest.mark.parametrize(
    ("model", "sampling", "completion"),
    [
        ("gpt-4o", True, False),
        ("gpt-4.1-mini", True, False),
        ("o3", False, True),
        ("gpt-5-mini", False, True),
        ("gpt-5.4", False, True),
        ("claude-haiku-4-5-20251001", True, False),
        ("claude-3-5-sonnet-20241022", True, False),
        ("claude-sonnet-4-20250514", True, False),
        ("claude-opus-4-6", True, False),
        ("claude-opus-4-7", False, False),
        ("claude-opus-4-8", False, False),
        ("claude-sonnet-5", False, False),
        ("claude-haiku-5-5", False, False),
        ("claude-mythos-preview", False, False),
        ("smollm2", True, False),
    ],
)
def test_parameters_models_take(model: str, sampling: bool, completion: bool) -> None:
    assert takes_sampling(model) is sampling
    assert takes_max_completion_tokens(model) is completion


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("gpt-4-1106-preview", "gpt4_1106_preview", True),
        ("openai/GPT-4o", "gpt-4o-2024-08-06", True),
        ("claude-sonnet-4", "claude-sonnet-4-20250514", True),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-08-06", False),
        ("gpt-4o", "gpt-4o-mini", False),
        ("gpt-3.5-turbo-1106", "gpt-3.5-turbo-1106_verbose", False),
        (None, None, False),
    ],
)
def test_names_of_one_model(first: str | None, second: str | None, same: bool) -> None:
    assert same_model(first, second) is same is same_model(second, first)


def test_an_own_price_of_a_model_that_always_searches_says_what_is_not_in_it() -> None:
    prices = {"gpt-4o-search-preview": Price(input=2.5, output=10)}
    usage = Usage(input_tokens=1000, output_tokens=100)
    cost = cost_of(usage, model="gpt-4o-search-preview-2025-03-11", provider="openai", at=AT, prices=prices)
    assert cost is not None
    assert (cost.usd, cost.note) == (
        pytest.approx(0.0035),
        "without the fees of its web searches, whose number it does not report",
    )
