"""Findings as sentences, with their numbers in them: the only place where numbers are rounded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evalpipe.analysis.result import JudgeError, MetricResult
from evalpipe.analysis.settings import CORRECTED
from evalpipe.text import MINUS, MISSING, NumberFormat, number_format, percent_format

MONEY_DIGITS = 3


def amount(value: float | None, unit: str, *, signed: bool = False) -> str:
    """A value in its unit: 0.012 ratio → "1.2 %", 812.4 ms → "812 ms", 0.00123 usd → "$0.00123"."""
    if value is None:
        return "not known"
    sign = ("+" if value > 0 else MINUS if value < 0 else "") if signed else (MINUS if value < 0 else "")
    size = abs(value)
    if unit == "ratio":
        digits = _digits(100 * size)
        return f"{sign}{digits} {('point' if digits == '1' else 'points') if signed else '%'}"
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


def at_most(share: float) -> str:
    """The upper limit of a share of which nothing was seen, two significant digits: 0.0179 → "1.8 %"."""
    return f"{float(f'{100 * share:.2g}'):g} %"


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
    """What happened to a metric: "cost per request rose from $0.0012 to $0.0015 (+25 %, +22 to +28 %)".

    The verb follows the two values, which subtract to the difference; the digits are those of the table (`shown_metric`).
    """
    shown = format_metric(result)
    name = result.label[:1].lower() + result.label[1:]
    if result.name == CORRECTED:
        return _corrected(result, subject)
    if result.name.startswith("win_rate"):
        return _preferred(result, subject)
    if result.difference is None:
        return f"{name} cannot be compared ({shown.control} against {shown.treatment})"
    moved = f"{shown.difference}, {shown.interval}" if shown.interval != MISSING else shown.difference
    limit = result.treatment.ci_high
    if result.unit == "ratio" and result.control.numerator == 0 and result.treatment.numerator == 0 and limit:
        size = f"{count(result.treatment.n)} answers"
        return f"{name} stayed at {shown.treatment} (none in {size}; up to {at_most(limit)} would be compatible)"
    if shown.control == shown.treatment:
        return f"{name} stayed at {shown.treatment} ({moved})"
    return f"{name} {'rose' if result.difference > 0 else 'fell'} from {shown.control} to {shown.treatment} ({moved})"


def _preferred(result: MetricResult, subject: str) -> str:
    """The win rate in words; the mean over users is named where users have several pairs."""
    formats = metric_formats(result).values
    span = formats.value_interval(_plus_half(result.ci_low), _plus_half(result.ci_high))
    value = formats.value(result.treatment.value)
    by = "by the simulated judge's verdicts, " if result.simulated else ""
    where = " on later turns" if result.name == "win_rate_later_turns" else ""
    if result.n_clusters and result.n_clusters != result.n:
        size = f"{count(result.n)} judged pairs{where} of {count(result.n_clusters)} users"
        detail = f" ({span}; each user counted once)" if span != MISSING else " (each user counted once)"
    else:
        size = f"{count(result.n)} judged pairs{where}"
        detail = f" ({span})" if span != MISSING else ""
    if result.graded:  # a mean of graded preferences is no share of pairs
        return f"{by}{subject} win rate is {value} over {size}{detail}"
    return f"{by}{subject} answers were preferred in {value} of {size}{detail}"


def signed(points: float) -> str:
    """ "+3.1" or "−0.4"."""
    return f"{points:+.1f}".replace("-", MINUS)


def bias_sentence(error: JudgeError) -> str:
    """ "the judge favours the treatment's answers by 9.1 points against people's labels (4.0 to 14.2, 40 labels)"."""
    points = [100 * (one or 0.0) for one in (error.error, error.ci_low, error.ci_high)]
    whose = "control's" if error.arm == "control" else "the treatment's"
    return (
        f"the judge favours {whose} answers by {points[0]:.1f} points against people's labels "
        f"({points[1]:.1f} to {points[2]:.1f}, {count(error.n_labels)} labels)"
    )


def _corrected(result: MetricResult, subject: str) -> str:
    """The corrected win rate in words."""
    formats = metric_formats(result).values
    span = formats.value_interval(_plus_half(result.ci_low), _plus_half(result.ci_high))
    detail = f" ({span})" if span != MISSING else ""
    labels = f"{count(result.n)} label{'' if result.n == 1 else 's'}"
    return f"{subject} win rate, corrected by people's {labels}, is {formats.value(result.treatment.value)}{detail}"


def relative_change(result: MetricResult) -> str:
    """A won benefit in few words: "31 % cheaper ($0.0012 instead of $0.0017)"."""
    shown = format_metric(result)
    word = {"cost": "cheaper", "performance": "faster"}.get(result.group, "better")
    if result.direction == "higher" and result.group == "performance":
        word = "more"
    if result.relative is None:
        return change(result)
    name = result.label[:1].lower() + result.label[1:]
    return (
        f"{shown.difference.lstrip('+' + MINUS)} {word} "
        f"({name} {shown.treatment} instead of {shown.control}, {shown.interval})"
    )


def allowed(result: MetricResult) -> str:
    """The margin in words: "10 %" or "0.5 points"."""
    if result.scale == "relative":
        return percent(result.margin)
    return amount(result.margin, result.unit, signed=True).lstrip("+")


def is_beyond_margin(result: MetricResult) -> bool:
    """Whether the whole interval that is shown lies beyond the margin on the worse side: a loss larger than allowed, at the
    confidence of every finding. A stop for harm takes the stricter level that all metrics that decide share."""
    if not result.margin > 0 or result.status in {"no_data", "missing_arm", "not_measured"}:
        return False
    relative = result.scale == "relative" and result.relative is not None
    low, high = (result.relative_low, result.relative_high) if relative else (result.ci_low, result.ci_high)
    if result.direction == "lower":
        return low is not None and low > result.margin
    return high is not None and high < -result.margin


def sentence(text: str) -> str:
    """Capital first, full stop last."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def listed(items: Sequence[str]) -> str:
    """a, b and c."""
    items = list(items)
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1] if items else ""


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


# The numbers of one metric as text: the only place where they are rounded, for sentences and tables alike.


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricFormats:
    """How a metric's values, its absolute and its relative difference are written."""

    values: NumberFormat
    difference: NumberFormat
    relative: NumberFormat


@dataclass(frozen=True, kw_only=True, slots=True)
class FormattedMetric:
    """`difference` and `interval` are on the scale the decision uses."""

    control: str
    treatment: str
    difference: str
    interval: str


def metric_formats(metric: MetricResult) -> MetricFormats:
    """Two significant digits of the narrowest interval's half width decide the decimals of all its numbers."""
    values = [abs(v) for v in (metric.control.value, metric.treatment.value) if v is not None]
    largest = max(values, default=0.0)
    absolute_half = _half_width(metric.ci_low, metric.ci_high)
    arm_halves = [_half_width(arm.ci_low, arm.ci_high) for arm in (metric.control, metric.treatment)]
    known = [half for half in (absolute_half, *arm_halves) if half]
    own = number_format(metric.unit, largest=largest, half_width=min(known, default=None))
    difference = own if absolute_half else number_format(metric.unit, largest=abs(metric.difference or 0.0) or largest)
    relative = percent_format(_half_width(metric.relative_low, metric.relative_high), abs(metric.relative or 0.0))
    return MetricFormats(values=own, difference=difference, relative=relative)


def format_metric(metric: MetricResult) -> FormattedMetric:
    formats = metric_formats(metric)
    if metric.scale == "relative" and metric.relative is not None:
        difference = formats.relative.difference(metric.relative)
        interval = formats.relative.interval(metric.relative_low, metric.relative_high)
    else:
        difference = formats.difference.difference(metric.difference)
        interval = formats.difference.interval(metric.ci_low, metric.ci_high)
    return FormattedMetric(
        control=formats.values.value(metric.control.value),
        treatment=formats.values.value(metric.treatment.value),
        difference=difference,
        interval=interval,
    )


def _half_width(low: float | None, high: float | None) -> float | None:
    return None if low is None or high is None else (high - low) / 2
