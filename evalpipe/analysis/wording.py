"""Findings as sentences a manager understands, with their numbers in them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from evalpipe.analysis.result import MetricResult

MINUS = "−"
MONEY_DIGITS = 3


def amount(value: float | None, unit: str, *, signed: bool = False) -> str:
    """A value in its unit: 0.012 ratio → "1.2 %", 812.4 ms → "812 ms", 0.00123 usd → "$0.00123"."""
    if value is None:
        return "not known"
    sign = ("+" if value > 0 else MINUS if value < 0 else "") if signed else (MINUS if value < 0 else "")
    size = abs(value)
    if unit == "ratio":
        return f"{sign}{_digits(100 * size)} {'points' if signed else '%'}"
    if unit == "ms":
        return f"{sign}{_digits(size)} ms" if size < 10_000 else f"{sign}{_digits(size / 1000)} s"
    if unit == "usd":
        return f"{sign}${_significant(size)}"
    if unit == "tokens_per_second":
        return f"{sign}{_digits(size)} tokens/s"
    if unit == "tokens":
        return f"{sign}{_digits(size)} tokens"
    if unit == "score_10":
        return f"{sign}{size:.2f}{'' if signed else ' of 10'}"
    if unit == "score_1":
        return f"{sign}{size:.3f}"
    return f"{sign}{_significant(size)}{' ' + unit if unit else ''}"


def percent(share: float | None, *, signed: bool = False) -> str:
    """0.123 → "12.3 %"."""
    if share is None:
        return "not known"
    sign = ("+" if share > 0 else MINUS if share < 0 else "") if signed else (MINUS if share < 0 else "")
    return f"{sign}{_digits(100 * abs(share))} %"


def count(number: float) -> str:
    """12345.6 → "12,346"."""
    return f"{round(number):,}"


def rounded_up(number: float) -> int:
    """Two significant digits, upwards: a forecast is not more precise than that."""
    if number <= 0:
        return 0
    step = int(10 ** max(0, math.floor(math.log10(number)) - 1))
    return math.ceil(number / step) * step


def change(result: MetricResult, *, subject: str = "the treatment's") -> str:
    """What happened to a metric: "cost per request rose from $0.0012 to $0.0015 (+25 %, +22 to +28 %)"."""
    name = result.label[:1].lower() + result.label[1:]
    if result.name == "win_rate":
        return (
            f"{subject} answers were preferred in {percent(result.treatment.value)} of {count(result.n)} judged pairs "
            f"({_span(_plus_half(result.ci_low), _plus_half(result.ci_high))})"
        )
    before, after = amount(result.control.value, result.unit), amount(result.treatment.value, result.unit)
    if result.difference is None:
        return f"{name} cannot be compared ({before} against {after})"
    if before == after:
        return f"{name} stayed at {after} ({_interval(result)})"
    return f"{name} {'rose' if result.difference > 0 else 'fell'} from {before} to {after} ({_interval(result)})"


def allowed(result: MetricResult) -> str:
    """The margin in words: "10 %" or "0.5 points"."""
    if result.scale == "relative":
        return percent(result.margin)
    return amount(result.margin, result.unit, signed=True).lstrip("+")


def sentence(text: str) -> str:
    """Capital first, full stop last."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def listed(items: Sequence[str]) -> str:
    """a, b and c."""
    items = list(items)
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1] if items else ""


def _interval(result: MetricResult) -> str:
    """ "+25 %, +22 to +28 %": the difference and its limits on the scale that decides."""
    if result.scale == "relative" and result.relative is not None:
        point, low, high = result.relative, result.relative_low, result.relative_high
        shown = [None if value is None else percent(value, signed=True) for value in (point, low, high)]
    else:
        shown = [
            None if value is None else amount(value, result.unit, signed=True)
            for value in (result.difference, result.ci_low, result.ci_high)
        ]
    middle, lower, upper = shown
    if lower is None and upper is None:
        return f"{middle}, no interval yet"
    if lower is None:
        return f"{middle}, at most {upper}"
    if upper is None:
        return f"{middle}, at least {lower}"
    return f"{middle}, {_without_unit(lower, upper)} to {upper}"


def _without_unit(lower: str, upper: str) -> str:
    """The lower limit without the unit that the upper one repeats."""
    if " " in lower and lower.rsplit(" ", 1)[1] == upper.rsplit(" ", 1)[-1]:
        return lower.rsplit(" ", 1)[0]
    return lower


def _span(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "no interval yet"
    return f"{_digits(100 * low)}–{_digits(100 * high)} %"


def _plus_half(value: float | None) -> float | None:
    return None if value is None else min(1.0, max(0.0, value + 0.5))


def _digits(size: float) -> str:
    """Three significant digits, no more decimals than help."""
    if size == 0:
        return "0"
    if size >= 100:
        return f"{size:,.0f}"
    decimals = max(0, 2 - math.floor(math.log10(size)))
    text = f"{size:.{min(decimals, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _significant(size: float) -> str:
    if size == 0:
        return "0"
    decimals = max(0, MONEY_DIGITS - 1 - math.floor(math.log10(size)))
    return f"{size:,.{min(decimals, 12)}f}"
