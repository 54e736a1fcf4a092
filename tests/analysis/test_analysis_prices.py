"""The check of costs: it says whose cost is missing or not whole, in the row's own words, and what can be done about it."""

from __future__ import annotations

from typing import Any

import numpy as np
from experiment_builders import both_arms, check, run

TIER = "no price of gpt-5 is documented for service_tier 'priority' on 2026-09-01"
ZEROS = "the provider counted no input or output tokens beside an answer"
CONTAINER = "without the container time of 1 code interpreter calls"


def priced(**treatment: Any) -> Any:
    return check(run(both_arms(100, treatment=treatment)), "price_unknown")


def test_a_reason_is_told_in_the_words_of_the_rows() -> None:
    found = priced(cost_usd=np.nan, cost_note=TIER)
    assert (found.status, f"100: {TIER}" in found.detail) == ("warn", True)
    assert "add the model's price" not in found.remedy
    assert "[prices] takes tiers" in found.remedy


def test_a_model_without_a_price_is_the_remedys_own() -> None:
    reason = 'no list price of new-model from openai: add [prices."new-model"]'
    found = priced(cost_usd=np.nan, cost_note=reason, model="new-model")
    assert reason in found.detail
    assert found.remedy == 'add the model\'s price under [prices."new-model"] and load again'


def test_zeros_are_not_told_to_ask_for_usage() -> None:
    found = priced(cost_usd=np.nan, cost_note=ZEROS, input_tokens=np.nan, output_tokens=np.nan)
    assert ZEROS in found.detail
    assert "include_usage" not in found.remedy
    silent = priced(cost_usd=np.nan, cost_note="the answer did not report its tokens", output_tokens=np.nan)
    assert "100 of them did not report their tokens" in silent.detail
    assert "include_usage" in silent.remedy


def test_what_was_imported_without_costs_is_told_of_the_file_not_of_a_collector() -> None:
    some = np.where(np.arange(100) % 4 == 0, 0.001, np.nan)
    found = priced(role="imported", cost_usd=some, input_tokens=np.nan, output_tokens=np.nan)
    assert (found.status, "[collector]" in found.remedy, "include_usage" in found.remedy) == ("warn", False, False)
    assert "add the costs to the imported file" in found.remedy and "cost_usd_a" in found.remedy


def test_many_reasons_are_the_commonest_three_and_a_rest() -> None:
    notes = np.array([f"reason {'aaaabbbccd'[i % 10]}" for i in range(100)], dtype=object)
    found = priced(cost_usd=np.nan, cost_note=notes)
    assert "40: reason a; 30: reason b; 20: reason c; 10 for other reasons" in found.detail


def test_a_cost_without_a_part_says_so() -> None:
    few = priced(cost_note=np.array([CONTAINER if i == 0 else None for i in range(100)], dtype=object))
    assert (few.status, few.detail) == ("pass", f"every answer has a price, 1 of the costs is {CONTAINER}")
    many = priced(cost_note=CONTAINER)
    assert (many.status, "code_interpreter_per_1000" in many.remedy) == ("warn", True)
    assert f"100 of the costs are {CONTAINER}" in many.detail
