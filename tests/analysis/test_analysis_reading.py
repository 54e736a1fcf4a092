"""Parts that are worked on while the next is read: order, errors, an early end."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from evalpipe.analysis.sql import made_while_reading


def test_results_come_in_the_order_of_the_parts_which_this_thread_reads() -> None:
    readers = set()

    def parts() -> Iterator[int]:
        for number in range(20):
            readers.add(threading.current_thread())
            yield number

    assert list(made_while_reading(parts(), lambda number: number * number)) == [
        number * number for number in range(20)
    ]
    assert readers == {threading.current_thread()}
    assert list(made_while_reading([], str)) == []


def test_an_error_of_either_side_is_raised_and_leaves_no_thread_behind() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    def fails(number: int) -> int:
        raise ValueError(f"no {number}")

    before = threading.active_count()
    with pytest.raises(OSError, match="the disk is gone"):
        list(made_while_reading(broken(), str))
    with pytest.raises(ValueError, match="no 3"):
        list(made_while_reading(iter([3, 4]), fails))
    assert any(made_while_reading(iter(range(100)), lambda number: number > 2))
    assert threading.active_count() == before
