"""The numbers of one metric as text: the only place where they are rounded, for sentences and tables alike."""

from __future__ import annotations

from dataclasses import dataclass

from evalpipe.analysis.result import MetricResult
from evalpipe.core.format import NumberFormat, number_format, percent_format


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricFormats:
    """How a metric's values, its absolute and its relative difference are written."""

    values: NumberFormat
    difference: NumberFormat
    relative: NumberFormat


@dataclass(frozen=True, kw_only=True, slots=True)
class ShownMetric:
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


def shown_metric(metric: MetricResult) -> ShownMetric:
    formats = metric_formats(metric)
    if metric.scale == "relative" and metric.relative is not None:
        difference = formats.relative.difference(metric.relative)
        interval = formats.relative.interval(metric.relative_low, metric.relative_high)
    else:
        difference = formats.difference.difference(metric.difference)
        interval = formats.difference.interval(metric.ci_low, metric.ci_high)
    return ShownMetric(
        control=formats.values.value(metric.control.value),
        treatment=formats.values.value(metric.treatment.value),
        difference=difference,
        interval=interval,
    )


def _half_width(low: float | None, high: float | None) -> float | None:
    return None if low is None or high is None else (high - low) / 2
