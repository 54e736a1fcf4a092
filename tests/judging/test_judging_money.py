"""The arithmetic of the cap: what is reserved, held and released, to the dollar."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.calls.budget import SCHEMA_OVERHEAD_TOKENS, Budget, TokenEstimator, dearest, most_input_tokens
from evalpipe.providers.base import Usage


def test_the_most_input_is_one_token_a_byte_and_the_providers_own_schema() -> None:
    assert most_input_tokens(0) == SCHEMA_OVERHEAD_TOKENS == 1000
    assert most_input_tokens(4_000) == 5_000
    assert most_input_tokens(len("判断".encode())) == 6 + 1000


def test_a_call_whose_bill_nobody_reports_stays_held_at_its_worst() -> None:
    budget = Budget(cap=1.0)
    assert budget.reserve(0.4)
    budget.settle(0.4, 0.1, certain=False)
    assert (budget.spent, budget.held, budget.left) == (0.1, pytest.approx(0.3), pytest.approx(0.6))
    assert not budget.reserve(0.61)
    assert budget.reserve(0.6)
    budget.settle(0.6, 0.2)
    assert (budget.spent, budget.held) == (pytest.approx(0.3), pytest.approx(0.3))


def test_a_call_that_was_never_sent_releases_all_of_it() -> None:
    budget = Budget(cap=1.0)
    assert budget.reserve(0.7)
    budget.settle(0.7, 0.0)
    assert (budget.spent, budget.held, budget.left) == (0.0, 0.0, 1.0)


def test_the_cap_itself_may_be_reached_and_not_passed() -> None:
    budget = Budget(cap=1.0, spent=0.25, held=0.25)
    assert not budget.reserve(0.5000001)
    assert budget.reserve(0.5)
    assert not budget.reserve(0.0000001)
    assert Budget(cap=None).reserve(1e9)
    assert Budget(cap=None).left is None


@given(
    st.lists(
        st.tuples(st.floats(0.05, 0.2), st.floats(0, 1), st.booleans(), st.integers(0, 5)), min_size=30, max_size=60
    )
)
def test_what_can_have_been_billed_never_passes_the_cap(calls: list[tuple[float, float, bool, int]]) -> None:
    budget, most, flight = Budget(cap=1.0), 0.0, []
    for worst, share, certain, n_finished in calls:
        if budget.reserve(worst):
            flight.append((worst, share * worst, certain))
        for _ in range(min(n_finished, len(flight))):
            reserved, cost, is_certain = flight.pop(0)
            budget.settle(reserved, cost, certain=is_certain)
            most += cost if is_certain else reserved
        assert most + sum(reserved for reserved, _, _ in flight) <= 1.0 + 1e-9
        assert budget.spent + budget.held == pytest.approx(most + sum(reserved for reserved, _, _ in flight))


def test_the_dearest_of_all_models_that_may_answer() -> None:
    prices = {None: 1.0, "cheap": 0.5, "dear": 7.0, "unknown": None}

    def cost_of(usage: Usage, answered: str | None = None) -> float | None:
        return prices[answered]

    assert dearest(cost_of, Usage(), set()) == 1.0
    assert dearest(cost_of, Usage(), {"cheap"}) == 1.0
    assert dearest(cost_of, Usage(), {"cheap", "dear", "unknown"}) == 7.0


def test_a_reply_that_broke_off_is_estimated_as_whole_ones_are() -> None:
    estimator = TokenEstimator(max_tokens=1024)
    estimator.learn(100, Usage(input_tokens=50, output_tokens=200))
    estimator.learn(100, Usage(input_tokens=50, output_tokens=0), whole=False)
    assert (estimator.mean_output_tokens(), estimator.input_tokens(100)) == (200, 50)
