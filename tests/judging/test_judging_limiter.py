"""The limiter against a second account of the same limits: a provider's buckets, simulated exactly."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.calls.budget import Budget, TokenEstimator
from evalpipe.calls.limiter import KINDS, Limiter, Reported, TokenReservation, read_limits, read_retry_after
from evalpipe.providers.base import Usage


def limiter(requests: float = 600, input_tokens: float = 60_000, output_tokens: float = 6_000) -> Limiter:
    return Limiter(
        requests_per_minute=requests, input_tokens_per_minute=input_tokens, output_tokens_per_minute=output_tokens
    )


@given(
    st.lists(st.tuples(st.integers(50, 400), st.integers(1, 60)), min_size=50, max_size=150),
    st.floats(0.5, 2.0),
)
def test_no_provider_bucket_ever_runs_dry_and_the_binding_one_is_used_up(
    calls: list[tuple[int, int]], error: float
) -> None:
    """Calls use what they use; estimates are off by a factor. The provider's buckets hold ten seconds of the limits."""
    mine, now = limiter(), 0.0
    left = {"requests": 100.0, "input_tokens": 10_000.0, "output_tokens": 1_000.0}
    full, rate = dict(left), {"requests": 10.0, "input_tokens": 1_000.0, "output_tokens": 100.0}
    used = dict.fromkeys(KINDS, 0.0)
    for n_in, n_out in calls:
        need = TokenReservation(input_tokens=n_in * error, output_tokens=n_out * error)
        while (wait := mine.reserve(now, need)) > 0:
            step = max(wait, 1e-4)
            now += step
            left = {kind: min(full[kind], left[kind] + step * rate[kind]) for kind in KINDS}
        actual = TokenReservation(input_tokens=n_in, output_tokens=n_out)
        mine.settle(now, need, actual)
        for kind in KINDS:
            left[kind] -= actual.of(kind)
            used[kind] += actual.of(kind)
            assert left[kind] >= 0
    # What was used is what the binding limit allows in that time, but for the burst and one call's debt.
    slack = {kind: rate[kind] + {"requests": 1, "input_tokens": 800, "output_tokens": 120}[kind] for kind in KINDS}
    assert any(used[kind] >= now * rate[kind] - slack[kind] for kind in KINDS)
    assert all(used[kind] <= now * rate[kind] + slack[kind] for kind in KINDS)


def test_headers_lower_the_rate_at_once_and_never_raise_it_above_the_configured_one() -> None:
    mine = limiter()
    mine.observe(0.0, {"requests": Reported(limit=60)})
    assert mine.limits()["requests"] == 60
    mine.observe(1.0, {"requests": Reported(limit=100_000)})
    assert mine.limits()["requests"] == 600


def test_what_others_used_of_the_key_is_followed() -> None:
    mine = limiter()
    mine.observe(0.0, {"requests": Reported(limit=600, remaining=0)})
    assert mine.reserve(0.0, TokenReservation()) == pytest.approx(0.1)  # one request at ten a second


def test_a_pause_holds_everything() -> None:
    mine = limiter()
    mine.pause(0.0, 3.0)
    assert mine.reserve(1.0, TokenReservation()) == pytest.approx(2.0)
    assert mine.reserve(3.0, TokenReservation()) == 0.0


def test_a_call_larger_than_the_bucket_waits_for_a_full_one_and_leaves_a_debt() -> None:
    mine = limiter(input_tokens=60)  # one token a second, one second's worth
    assert mine.reserve(0.0, TokenReservation(input_tokens=10)) == 0.0
    assert mine.reserve(0.0, TokenReservation(input_tokens=10)) == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
        ({"retry-after": "Mon, 01 Jun 2026 00:00:30 GMT"}, 30.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0s"}, 360.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "12ms"}, 0.012),
        (
            {
                "anthropic-ratelimit-output-tokens-remaining": "0",
                "anthropic-ratelimit-output-tokens-reset": "2026-06-01T00:00:09Z",
            },
            9.0,
        ),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "999999"}, 600.0),
        ({}, None),
    ],
)
def test_how_long_a_429_wants_us_to_wait(headers: dict[str, str], seconds: float | None) -> None:
    assert read_retry_after(headers, datetime(2026, 6, 1, tzinfo=UTC)) == (
        None if seconds is None else pytest.approx(seconds)
    )


def test_both_vendors_limit_headers() -> None:
    anthropic = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-input-tokens-remaining": "1000",
        "anthropic-ratelimit-output-tokens-limit": "nonsense",
    }
    assert read_limits(anthropic) == {
        "requests": Reported(limit=50.0),
        "input_tokens": Reported(remaining=1000.0),
    }
    openai = {"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-tokens": "5"}
    assert read_limits(openai) == {"requests": Reported(limit=60.0), "input_tokens": Reported(remaining=5.0)}


@given(st.lists(st.tuples(st.floats(0.001, 0.2), st.floats(0, 1), st.booleans()), max_size=60))
def test_the_cap_is_never_passed_whatever_calls_cost(calls: list[tuple[float, float, bool]]) -> None:
    budget, true_bill = Budget(cap=1.0), 0.0
    for worst, share, known in calls:
        if not budget.reserve(worst):
            continue
        true_bill += worst * share
        budget.settle(worst, worst * (share if known else share / 2), certain=known)
        assert true_bill <= 1.0 + 1e-9


def test_the_estimator_learns_ratio_and_quantile() -> None:
    estimator = TokenEstimator(max_tokens=1000)
    for n in range(1, 101):
        estimator.learn(400, Usage(input_tokens=100, output_tokens=n))
    assert estimator.input_tokens(800) == 200
    assert estimator.output_tokens() == 76  # the 75 % quantile of 1…100
    assert estimator.mean_output_tokens() == 50
