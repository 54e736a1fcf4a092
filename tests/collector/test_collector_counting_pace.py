"""When the tokens and dollars of answers are counted between copies: where the count is behind, as long as that helps."""

from __future__ import annotations

import pytest

from evalpipe.collector.usage_metrics import CountingPace


def hurried_seconds(rate: int, capacity: int, seconds: int, burst: int = 0) -> tuple[int, int]:
    """Seconds of hurry and bytes left, where `rate` bytes come a second, a usual second counts 700 and a hurried one
    `capacity`; `burst` bytes are there at first."""
    left = burst
    pace = CountingPace(0.0, lambda: left)
    n_hurried = 0
    for second in range(1, seconds + 1):
        hurries = pace.hurries(float(second), is_calm=True)
        n_hurried += hurries
        left = max(left + rate - (capacity if hurries else 700), 0)
        if not left:
            pace.caught_up(float(second))
    return n_hurried, left


def test_a_rate_that_is_counted_in_the_pauses_needs_no_hurry() -> None:
    assert hurried_seconds(rate=600, capacity=2800, seconds=100) == (0, 0)


def test_a_rate_between_the_two_is_kept_up_with() -> None:
    n_hurried, left = hurried_seconds(rate=1500, capacity=2800, seconds=100)
    assert n_hurried >= 30
    assert left < 5000


def test_a_burst_is_caught_up_with_in_a_hurry() -> None:
    # 27,500 bytes at 2,800 a second but for the first, which is no hurry yet
    assert hurried_seconds(rate=0, capacity=2800, seconds=20, burst=27_500) == (10, 0)


def test_a_rate_that_cannot_be_counted_is_given_up_most_of_the_time() -> None:
    n_hurried, left = hurried_seconds(rate=50_000, capacity=2800, seconds=120)
    assert 5 <= n_hurried <= 25
    assert left > 5_000_000


@pytest.mark.parametrize("is_calm", [False, True])
def test_copies_go_first_where_they_come_fast(is_calm: bool) -> None:
    pace = CountingPace(0.0, lambda: 10)
    assert pace.hurries(5.0, is_calm=is_calm) is is_calm
    assert pace.slice_s(5.0, hurries=True) == pytest.approx(4 * pace.slice_s(5.0, hurries=False))
