"""A metric over the looks of an experiment: its interval as a ribbon, the margin, exclusions and changes of the decision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from evalpipe.report.charts.svg import (
    WIDTH,
    Scale,
    element,
    gutter,
    line,
    nice_ticks,
    path,
    picture,
    rect,
    text,
    time_span,
    time_ticks,
)

TOP, BOTTOM, HEIGHT, RIGHT = 10.0, 160.0, 212.0, 14.0
FEW = 40
"""looks up to which each has a dot"""
LEAST_WIDTH = 3.0
"""of a period on the axis: an hour of a month would not be seen"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LookPoint:
    """A metric at a look, `at` in seconds since the epoch. None: no value, or no valid interval on that side."""

    at: float
    low: float | None
    value: float | None
    high: float | None


def ribbon_chart(
    points: Sequence[LookPoint],
    *,
    center: float,
    margin: float | None,
    show: Callable[[float], str],
    excluded: Sequence[tuple[float, float]],
    changes: Sequence[float],
    title: str,
    description: str,
) -> Markup | None:
    """The picture; None where there are not two looks with a value.

    Args:
        points: by look, oldest first.
        center: the value of no difference.
        margin: where a loss becomes too large; None without a margin.
        show: a value as text.
        excluded: periods taken out of both arms, seconds since the epoch.
        changes: when the decision changed.
        title: of the picture.
        description: in words.
    """
    seen = [point for point in points if point.value is not None]
    if len(seen) < 2 or seen[-1].at <= seen[0].at:
        return None
    reach = _reach(seen, center, margin)
    y = Scale(center - reach, center + reach, BOTTOM, TOP)
    ticks = nice_ticks(y.low, y.high, 6)
    left = gutter([show(tick) for tick in ticks])
    x = Scale(points[0].at, points[-1].at, left, WIDTH - RIGHT)
    parts: list[Markup] = []
    for since, until in excluded:
        if until >= x.low and since <= x.high:
            start = x(since)
            parts.append(rect(start, TOP, max(x(until) - start, LEAST_WIDTH), BOTTOM - TOP, "excluded-time"))
    for tick in ticks:
        parts += [
            line(left, y(tick), WIDTH - RIGHT, y(tick), "grid"),
            text(left - 6, y(tick) + 4, show(tick), "tick", "end"),
        ]
    parts += [path(side, "band", closed=True) for side in _ribbons(seen, x, y)]
    parts.append(line(left, y(center), WIDTH - RIGHT, y(center), "zero-line"))
    if margin is not None and abs(margin - center) <= reach:
        parts.append(line(left, y(margin), WIDTH - RIGHT, y(margin), "margin-line"))
    parts += [line(x(at), TOP, x(at), BOTTOM, "look-line") for at in changes if x.low <= at <= x.high]
    parts.append(path([(x(point.at), y(point.value or 0.0)) for point in seen], "curve treatment"))
    if len(seen) <= FEW:
        parts += [element("circle", cx=x(p.at), cy=y(p.value or 0.0), r=2.6, class_="dot treatment") for p in seen]
    for at, label in time_ticks(x.low, x.high):
        parts += [line(x(at), BOTTOM, x(at), BOTTOM + 4, "axis"), text(x(at), BOTTOM + 18, label, "tick", "middle")]
    parts.append(line(left, BOTTOM, WIDTH - RIGHT, BOTTOM, "axis"))
    parts.append(text((left + WIDTH - RIGHT) / 2, BOTTOM + 38, time_span(x.low, x.high), "tick", "middle"))
    return picture(*parts, height=HEIGHT, title=title, description=description)


def _reach(points: Sequence[LookPoint], center: float, margin: float | None) -> float:
    """Half the height of the axis: the last intervals wholly, of the wide first ones as much as leaves these to be seen."""

    def far(some: Sequence[LookPoint]) -> float:
        return max((abs(v - center) for p in some for v in (p.low, p.value, p.high) if v is not None), default=0.0)

    least = 0.0 if margin is None else abs(margin - center) * 1.3
    return max(min(far(points), 4 * far(points[-3:]) or far(points)), least) * 1.05 or 1.0


def _ribbons(points: Sequence[LookPoint], x: Scale, y: Scale) -> list[list[tuple[float, float]]]:
    """The outlines of the stretches of looks that have an interval."""
    found: list[list[LookPoint]] = [[]]
    for point in points:
        if point.low is None or point.high is None:
            found.append([])
        else:
            found[-1].append(point)
    return [
        [*((x(p.at), y(p.high or 0.0)) for p in run), *((x(p.at), y(p.low or 0.0)) for p in reversed(run))]
        for run in found
        if len(run) > 1
    ]
