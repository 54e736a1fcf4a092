"""Slices of the traffic, worst first: where the treatment may hurt some and help others. Exploratory, never deciding."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from evalpipe.analysis.result import Analysis, MetricResult, Segment
from evalpipe.core.format import format_count, format_p, number_format
from evalpipe.report.charts.interval import Mark, interval_cell
from evalpipe.report.metric_view import sign
from evalpipe.report.words import FINDING_ORDER, plain

MAX_SEGMENTS = 24


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentRow:
    dimension: str
    value: str
    metric: str
    n: str
    control: str
    treatment: str
    difference: str
    interval: str
    p_adjusted: str
    finding: str
    picture: Markup | None
    raw: Segment


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentTable:
    """Not shown: `n_hidden`, the least bad ones beyond the cap, and `n_silent`, with too little data or no event.

    `one_user_in`: every how many-th user was looked at; 1: all of them.
    """

    rows: list[SegmentRow]
    n_hidden: int
    n_silent: int
    n_discovered: int
    one_user_in: int


def segment_table(analysis: Analysis) -> SegmentTable | None:
    if not analysis.segments:
        return None
    metrics = {metric.name: metric for metric in analysis.metrics}
    usable = [s for s in analysis.segments if s.status == "ok" and (s.control or s.treatment)]
    reach = {name: _reach(name, analysis.segments) for name in {segment.metric for segment in analysis.segments}}
    ordered = sorted(usable, key=lambda s: _badness(s, metrics.get(s.metric), reach[s.metric]))
    rows = [_row(segment, metrics.get(segment.metric), reach[segment.metric]) for segment in ordered[:MAX_SEGMENTS]]
    return SegmentTable(
        rows=rows,
        n_hidden=max(0, len(ordered) - MAX_SEGMENTS),
        n_silent=len(analysis.segments) - len(usable),
        n_discovered=sum(segment.discovered for segment in analysis.segments),
        one_user_in=int(analysis.provenance.get("segments_one_user_in") or 1),
    )


def _reach(metric: str, segments: list[Segment]) -> float:
    """Half the width of the axis of a metric's segments, from its own unit: the widest point, or interval twice that."""
    own = [s for s in segments if s.metric == metric]
    points = [abs(s.difference) for s in own if s.difference is not None]
    bounds = [abs(b) for s in own for b in (s.ci_low, s.ci_high) if b is not None]
    largest = max(points, default=0.0)
    return min(max([largest, *bounds], default=1.0), largest * 3 or 1.0) or 1.0


def _badness(segment: Segment, metric: MetricResult | None, reach: float) -> tuple[bool, int, float]:
    """Sort key: discoveries first, then by finding, then by the oriented difference."""
    order = FINDING_ORDER.index(segment.finding) if segment.finding in FINDING_ORDER else len(FINDING_ORDER)
    oriented = sign(metric.direction if metric else "higher") * (segment.difference or 0.0) / reach
    return not (segment.discovered and segment.finding == "worse"), order, oriented


def _row(segment: Segment, metric: MetricResult | None, reach: float) -> SegmentRow:
    unit = metric.unit if metric else ""
    largest = max((abs(v) for v in (segment.control, segment.treatment) if v is not None), default=0.0)
    has_interval = segment.ci_low is not None and segment.ci_high is not None
    half = (segment.ci_high - segment.ci_low) / 2 if has_interval else None  # type: ignore[operator]
    scale = number_format(unit, largest=largest, half_width=half)
    difference, interval = scale.difference(segment.difference), scale.interval(segment.ci_low, segment.ci_high)
    label = metric.label if metric and metric.label else plain(segment.metric)
    return SegmentRow(
        dimension=plain(segment.dimension),
        value=segment.value,
        metric=label,
        n=format_count(segment.n),
        control=scale.value(segment.control),
        treatment=scale.value(segment.treatment),
        difference=difference,
        interval=interval,
        p_adjusted=format_p(segment.p_adjusted),
        finding=segment.finding,
        picture=_picture(segment, metric, reach, f"{label}, {segment.dimension} {segment.value}", difference, interval),
        raw=segment,
    )


def _picture(
    segment: Segment, metric: MetricResult | None, reach: float, label: str, difference: str, interval: str
) -> Markup | None:
    if segment.difference is None:
        return None
    s = sign(metric.direction if metric else "higher")
    low, high = (segment.ci_low, segment.ci_high) if s > 0 else (segment.ci_high, segment.ci_low)
    mark = Mark(
        label=label,
        low=None if low is None else s * low / reach,
        point=s * segment.difference / reach,
        high=None if high is None else s * high / reach,
        # Colour only for what survives the control of false discoveries.
        finding=segment.finding if segment.discovered else "inconclusive",
        text=f"{difference} ({interval})",
        has_margin=False,
    )
    return interval_cell(mark, 1.1)
