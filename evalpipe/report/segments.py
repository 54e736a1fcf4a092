"""Slices of the traffic: which of them differ from the rest, and all of them, worst first. Exploratory, never deciding."""

from __future__ import annotations

import math
from dataclasses import dataclass

from markupsafe import Markup

from evalpipe.analysis.result import Analysis, MetricResult, Segment
from evalpipe.analysis.segments import FALSE_DISCOVERY_RATE
from evalpipe.report.charts.intervals import Mark, interval_cell
from evalpipe.report.metrics import sign
from evalpipe.report.terms import FINDING_ORDER, plain
from evalpipe.stats import special
from evalpipe.stats.multiplicity import benjamini_hochberg
from evalpipe.text import format_count, format_counted, format_p, number_format

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
class DifferingSegment:
    """A slice whose difference between the arms is another one than in the rest of its dimension."""

    dimension: str
    value: str
    metric: str
    n: str
    here: str
    elsewhere: str
    p_adjusted: str
    is_worse: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class SegmentTable:
    """`differing`: the slices that differ from the rest; `sentence`: how many were looked at. Not shown: `n_hidden`, the least
    bad ones beyond the cap, and `n_silent`, with too little data or no event.

    `one_user_in`: every how many-th user was looked at; 1: all of them.
    """

    differing: list[DifferingSegment]
    sentence: str
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
    compared = _compared(usable, metrics)
    differing = [_differing(one, metrics.get(one.segment.metric)) for one in compared if one.p <= FALSE_DISCOVERY_RATE]
    return SegmentTable(
        differing=differing,
        sentence=_sentence(len({(one.dimension, one.value) for one in differing}), compared),
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


# Does a slice differ from the rest? Its difference between the arms against that of the other values of its dimension.


@dataclass(frozen=True, kw_only=True, slots=True)
class _Compared:
    """A slice, the difference of the rest in the same unit (or share of control), and the adjusted p-value of the contrast."""

    segment: Segment
    here: float
    rest: float
    relative: bool
    p: float


_Z = 1.959964
"""the half widths are of 95 % intervals; those that are valid at every look are wider, and the contrast with them"""


def _compared(segments: list[Segment], metrics: dict[str, MetricResult]) -> list[_Compared]:
    """Every slice against the weighted mean of the others of its dimension, most different first.

    With half widths h of the slice's and the rest's interval, z = 1.96 · (here − rest) / √(h² + h_rest²): as wide as the
    intervals are, so that what they allow at every look, this does, too. Users in several slices make it cautious. p is corrected
    for all contrasts (Benjamini-Hochberg).
    """
    groups: dict[tuple[str, str], list[tuple[Segment, float, float]]] = {}
    for one in segments:
        placed = _placed(one, metrics.get(one.metric))
        if placed is not None:
            groups.setdefault((one.dimension, one.metric), []).append((one, *placed))
    found: list[tuple[Segment, float, float, bool, float]] = []
    for (_, name), members in groups.items():
        for segment, here, half in members:
            rest = [(other.n, value, width) for other, value, width in members if other is not segment]
            size = sum(n for n, _, _ in rest)
            if not size:
                continue
            elsewhere = sum(n * value for n, value, _ in rest) / size
            spread = math.sqrt(half**2 + sum((n * width) ** 2 for n, _, width in rest) / size**2)
            p = 2 * float(special.ndtr(-_Z * abs(here - elsewhere) / spread)) if spread else 1.0
            found.append((segment, here, elsewhere, _is_relative(metrics.get(name)), p))
    adjusted = benjamini_hochberg([p for *_, p in found])
    made = [
        _Compared(segment=segment, here=here, rest=rest, relative=relative, p=p)
        for (segment, here, rest, relative, _), p in zip(found, adjusted, strict=True)
    ]
    return sorted(made, key=lambda one: one.p)


def _is_relative(metric: MetricResult | None) -> bool:
    return metric is not None and metric.scale == "relative"


def _placed(segment: Segment, metric: MetricResult | None) -> tuple[float, float] | None:
    """(difference, half width) on the scale that compares slices of other sizes: a share of control's value, where the metric
    is a relative one."""
    if segment.difference is None or segment.ci_low is None or segment.ci_high is None:
        return None
    scale = 1.0
    if _is_relative(metric):
        if not segment.control or segment.control < 0:
            return None
        scale = segment.control
    return segment.difference / scale, (segment.ci_high - segment.ci_low) / 2 / scale


def _differing(one: _Compared, metric: MetricResult | None) -> DifferingSegment:
    segment = one.segment
    unit = "ratio" if one.relative else (metric.unit if metric else "")
    scale = number_format(
        unit, largest=max(abs(one.here), abs(one.rest)), half_width=abs(one.here - one.rest) / 10 or None
    )
    here, elsewhere = scale.difference(one.here), scale.difference(one.rest)
    if one.relative:
        here, elsewhere = (text.replace("points", "%") for text in (here, elsewhere))
    oriented = sign(metric.direction if metric else "higher") * (one.here - one.rest)
    return DifferingSegment(
        dimension=plain(segment.dimension),
        value=segment.value,
        metric=metric.label if metric and metric.label else plain(segment.metric),
        n=format_count(segment.n),
        here=here,
        elsewhere=elsewhere,
        p_adjusted=format_p(one.p),
        is_worse=oriented < 0,
    )


def _sentence(n_differing: int, compared: list[_Compared]) -> str:
    if not compared:
        return "No part of the traffic has enough data to be compared with the rest."
    n = len({(one.segment.dimension, one.segment.value) for one in compared})
    by = f"in {format_counted(len({one.segment.metric for one in compared}), 'metric')}, after correction for their number"
    if not n_differing:
        return f"No segment differs from the rest: {format_counted(n, 'segment')} were compared {by}."
    verb = "differs" if n_differing == 1 else "differ"
    return f"{format_count(n_differing)} of {format_counted(n, 'segment')} {verb} from the rest, compared {by}."
