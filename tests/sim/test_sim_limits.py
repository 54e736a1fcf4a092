"""The provider limits: what passes in any stretch of time, and what the meters tell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.sim.limits import Limiter
from evalpipe.sim.settings import Limits

arrivals = st.lists(st.tuples(st.floats(0, 3), st.integers(1, 2000)), min_size=1, max_size=120)


@given(arrivals)
def test_no_stretch_of_time_passes_more_than_the_bucket_and_its_refill(gaps: list[tuple[float, int]]) -> None:
    limiter = Limiter(Limits(requests=60, input_tokens=6000), 0.0)
    now, passed = 0.0, []
    for gap, tokens in gaps:
        now += gap
        if limiter.admit(tokens, now) is None:
            passed.append((now, tokens))
    for start in range(len(passed)):
        for end in range(start, len(passed)):
            seconds = passed[end][0] - passed[start][0]
            assert end - start + 1 <= 10 + seconds + 1e-6
            # One request may be larger than the bucket: it passes when the bucket is full, and then nothing for long.
            tokens_before_last = sum(tokens for _, tokens in passed[start:end])
            assert tokens_before_last <= 1000 + 100 * seconds + max(tokens for _, tokens in passed) + 1e-6


@given(arrivals)
def test_waiting_as_told_is_enough(gaps: list[tuple[float, int]]) -> None:
    limiter = Limiter(Limits(requests=60, input_tokens=6000), 0.0)
    now = 0.0
    for gap, tokens in gaps:
        now += gap
        refused = limiter.admit(tokens, now)
        if refused is not None:
            now += refused[1] + 1e-6
            assert limiter.admit(tokens, now) is None


def test_output_counts_as_it_is_generated() -> None:
    limiter = Limiter(Limits(output_tokens=600), 0.0)
    assert limiter.admit(1, 0.0) is None
    limiter.generated(150, 1.0)
    assert limiter.meters(1.0)["output-tokens"].remaining == 0
    name, wait = limiter.admit(1, 1.0) or ("", 0.0)
    # 50 below zero and one needed, at ten a second.
    assert (name, wait) == ("output-tokens", pytest.approx(5.1))
    assert limiter.admit(1, 6.2) is None


def test_meters() -> None:
    limiter = Limiter(Limits(requests=60, input_tokens=6000), 0.0)
    limiter.admit(500, 0.0)
    meters = limiter.meters(0.0)
    assert (meters["requests"].limit, meters["requests"].remaining, meters["requests"].reset_s) == (60, 9, 1.0)
    assert (meters["input-tokens"].remaining, meters["input-tokens"].reset_s) == (500, 5.0)
    assert "output-tokens" not in meters
    assert Limiter(Limits(), 0.0).admit(10**9, 0.0) is None
