"""Numbers as a reader sees them: every rule of the formatting is a row here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evalpipe.text import (
    MINUS,
    decimals_for,
    format_count,
    format_instant,
    format_number,
    format_p,
    format_percent,
    format_usd,
    number_format,
    percent_format,
    readable_instants,
)

S = "\u00a0"  # the space between number and unit never breaks


@pytest.mark.parametrize(
    ("value", "decimals", "signed", "expected"),
    [
        (0.0, 2, False, "0.00"),
        (-0.0, 2, True, "0.00"),
        (-0.004, 2, True, "0.00"),
        (0.004, 2, True, "0.00"),
        (-0.005001, 2, True, f"{MINUS}0.01"),
        (1234567.891, 1, False, "1,234,567.9"),
        (-1234.5, 0, False, f"{MINUS}1,234"),
        (12.0, 0, True, "+12"),
    ],
)
def test_number(value: float, decimals: int, signed: bool, expected: str) -> None:
    assert format_number(value, decimals, signed=signed) == expected


@pytest.mark.parametrize(
    ("half_width", "largest", "limit", "expected"),
    [
        (4.1, 58.0, 3, 1),  # 58.0 ± 4.1
        (41.0, 900.0, 3, 0),
        (0.41, 58.0, 3, 2),
        (0.0041, 58.0, 3, 3),  # held at the unit's limit
        (None, 0.5, 3, 3),
        (None, 912.0, 3, 0),
        (None, 41.3, 3, 1),
        (0.0, 0.0, 3, 0),
    ],
)
def test_decimals_are_two_significant_digits_of_the_half_width(
    half_width: float | None, largest: float, limit: int, expected: int
) -> None:
    assert decimals_for(half_width, largest, limit) == expected


@pytest.mark.parametrize(
    ("unit", "largest", "half_width", "value", "expected"),
    [
        ("ratio", 0.58, 0.041, 0.58, f"58.0{S}%"),
        ("ratio", 0.005, 0.004, 0.005, f"0.50{S}%"),
        ("ms", 912.4, 28.0, 912.4, f"912{S}ms"),
        ("ms", 34_100.0, 2000.0, 34_100.0, f"34.1{S}s"),
        ("usd", 0.002134, 0.00004, 0.002134, "$0.002134"),
        ("usd", 1.5, 0.2, -1.5, f"{MINUS}$1.50"),
        ("tokens", 187.2, 7.0, 187.2, "187.2"),
        ("tokens_per_second", 41.3, 2.4, 41.3, f"41.3{S}tok/s"),
        ("score_10", 7.3, 0.15, 7.3, "7.30"),
        ("score_1", 0.84, 0.02, 0.84, "0.840"),
        ("words", 12.0, 1.0, 12.0, f"12.0{S}words"),
        ("", 12.0, 1.0, 12.0, "12.0"),
    ],
)
def test_value_with_its_unit(unit: str, largest: float, half_width: float, value: float, expected: str) -> None:
    assert number_format(unit, largest=largest, half_width=half_width).value(value) == expected


def test_a_difference_of_shares_is_in_points_and_signed() -> None:
    shown = number_format("ratio", largest=0.58, half_width=0.041)
    assert shown.difference(0.08) == f"+8.0{S}points"
    assert shown.interval(-0.002, 0.121) == f"{MINUS}0.2 to +12.1{S}points"
    assert shown.interval(None, 0.121) == f"– to +12.1{S}points"
    assert shown.interval(None, None) == "–"
    assert shown.value(None) == "–"


def test_a_relative_difference_is_in_percent() -> None:
    shown = percent_format(0.02, 0.31)
    assert shown.difference(-0.31) == f"{MINUS}31.0{S}%"
    assert shown.interval(-0.33, -0.29) == f"{MINUS}33.0 to {MINUS}29.0{S}%"


@pytest.mark.parametrize(
    ("share", "decimals", "expected"),
    [
        (None, 0, "–"),
        (0.0, 0, f"0{S}%"),
        (1.0, 0, f"100{S}%"),
        (0.001, 0, f"<{S}1{S}%"),  # a few are not none
        (0.999, 0, f">{S}99{S}%"),  # nearly all are not all
        (0.5, 1, f"50.0{S}%"),
    ],
)
def test_percent(share: float | None, decimals: int, expected: str) -> None:
    assert format_percent(share, decimals) == expected


@pytest.mark.parametrize(
    ("p_value", "expected"),
    [(None, "–"), (0.0, f"<{S}0.001"), (0.00099, f"<{S}0.001"), (0.0312, "0.031"), (0.314, "0.31"), (1.0, "1.00")],
)
def test_p_value(p_value: float | None, expected: str) -> None:
    assert format_p(p_value) == expected


@pytest.mark.parametrize(
    ("amount", "expected"),
    [
        (None, "–"),
        (0.0, "$0.00"),
        (3.1274, "$3.13"),
        (0.0841, "$0.084"),
        (0.0000213, "$0.000021"),
        (1234.5, "$1,234.50"),
    ],
)
def test_usd(amount: float | None, expected: str) -> None:
    assert format_usd(amount) == expected


@pytest.mark.parametrize(
    ("instant", "expected"),
    [
        ("2026-03-02T09:00:00+00:00", "2 Mar 2026, 09:00 UTC"),
        ("2026-03-02T09:00:00Z", "2 Mar 2026, 09:00 UTC"),
        ("2026-03-02T10:00:00+01:00", "2 Mar 2026, 09:00 UTC"),
        ("2026-03-02T09:00:00", "2 Mar 2026, 09:00 UTC"),
        ("", "–"),
        (None, "–"),
        ("not a time", "not a time"),
    ],
)
def test_instant(instant: str | None, expected: str) -> None:
    assert format_instant(instant) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("decided at look 3 (2026-03-02T09:00:00+00:00)", "decided at look 3 (2 Mar 2026, 09:00 UTC)"),
        (
            "bad key (2026-11-28T04:30:02Z to 2026-11-28T04:30:41Z)",
            "bad key (28 Nov 2026, 04:30:02 to 04:30:41 UTC)",
        ),
        ("from 2026-11-28T04:30:02Z to 2026-11-28T06:00:00Z", "from 28 Nov 2026, 04:30 to 06:00 UTC"),
        (
            "2026-11-28T23:30:00+00:00 to 2026-11-29T01:00:00+00:00",
            "28 Nov 2026, 23:30 UTC to 29 Nov 2026, 01:00 UTC",
        ),
        # A command is there to be copied.
        (
            "evalpipe exclude --since 2026-03-02T09:00:00Z --until 2026-03-02T10:00:00Z",
            "evalpipe exclude --since 2026-03-02T09:00:00Z --until 2026-03-02T10:00:00Z",
        ),
    ],
)
def test_instants_in_a_sentence(text: str, expected: str) -> None:
    assert readable_instants(text) == expected


def test_counts_have_thousands_separators() -> None:
    assert format_count(5_000_000) == "5,000,000"
    assert format_count(None) == "–"


@given(st.floats(-1e12, 1e12), st.integers(0, 8))
def test_a_formatted_number_reads_back_within_its_rounding(value: float, decimals: int) -> None:
    text = format_number(value, decimals, signed=True)
    back = float(text.replace(",", "").replace(MINUS, "-"))
    assert abs(back - value) <= 0.5 * 10**-decimals * (1 + 1e-9) + abs(value) * 1e-12
    assert not text.startswith(f"{MINUS}0") or any(digit in text for digit in "123456789")
