"""Intervals as pictures on an axis all rows share: table cells, forest plot, win rates."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from evalpipe.report.charts.svg import (
    WIDTH,
    Scale,
    element,
    line,
    nice_ticks,
    path,
    picture,
    rect,
    short_label,
    text,
    text_width,
)

CELL_WIDTH, CELL_HEIGHT = 220.0, 34.0
PAD = 8.0
LABEL_ROOM = 204.0
"""at most, for the names beside a forest plot"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mark:
    """One interval on the shared axis, in the axis' unit. None: open on that side. `finding` picks its look."""

    label: str
    low: float | None
    point: float
    high: float | None
    finding: str
    text: str
    has_margin: bool = True


STRAIGHT_REACH = 6.0
"""margins up to which the shared axis is straight; beyond it is compressed, so that small and large effects are both seen"""
MOST_REACH = 100.0


def axis_reach(bounds: list[float]) -> float:
    """Half the width of the shared axis in margins: all intervals where they fit, from 2 to 100 margins."""
    return min(MOST_REACH, max([2.0, *(abs(bound) * 1.08 for bound in bounds)]))


def is_bent(reach: float) -> bool:
    """Whether an axis of that reach is compressed far from zero."""
    return reach > STRAIGHT_REACH


def _axis(reach: float, start: float, end: float) -> Scale:
    return Scale(-reach, reach, start, end, bent=is_bent(reach))


def _ticks(reach: float) -> list[float]:
    if not is_bent(reach):
        return nice_ticks(-reach, reach, 6)
    sizes = [size for size in (5.0, 20.0, 100.0) if size <= reach]
    return [-size for size in reversed(sizes)] + [0.0] + sizes


def interval_cell(mark: Mark, reach: float) -> Markup:
    """The picture in a row: zero solid, the margin dashed, right of zero is better for the treatment."""
    x = _axis(reach, PAD, CELL_WIDTH - PAD)
    middle = CELL_HEIGHT / 2
    parts = [line(PAD, middle, CELL_WIDTH - PAD, middle, "track")]
    if mark.has_margin:
        parts += [line(x(-1), 4, x(-1), CELL_HEIGHT - 4, "margin-line")]
        parts += [line(x(1), 8, x(1), CELL_HEIGHT - 8, "margin-line faint")]
    parts += [line(x(0), 2, x(0), CELL_HEIGHT - 2, "zero-line"), *interval_marks(mark, x, middle, reach)]
    return picture(
        *parts,
        width=CELL_WIDTH,
        height=CELL_HEIGHT,
        title=mark.label,
        description=mark.text,
        class_="interval",
    )


def interval_marks(mark: Mark, x: Scale, y: float, reach: float) -> list[Markup]:
    """Bar, point and, where the interval leaves the axis, an arrow head."""
    if mark.low is None and mark.high is None:  # a number without an interval
        return [point_mark(x(mark.point), y, mark.finding)] if abs(mark.point) <= reach else []
    low = -reach if mark.low is None else mark.low
    high = reach if mark.high is None else mark.high
    start, end = x(low), x(high)
    if abs(end - start) < 14 and abs(mark.point) > reach:  # wholly beyond the axis: a stump to carry the arrow head
        start, end = (start, start + 18) if mark.point < 0 else (end - 18, end)
    parts = [line(start, y, end, y, f"bar {mark.finding}")]
    for bound in (low, high):
        if abs(bound) > reach or bound in {-reach, reach}:
            # An arrow only on the side the interval leaves the axis; a whole interval beyond it points there too.
            tip = x(reach) if bound > 0 else x(-reach)
            back = tip - 7 if bound > 0 else tip + 7
            parts.append(path([(tip, y), (back, y - 4.5), (back, y + 4.5)], f"arrow {mark.finding}", closed=True))
        else:
            parts.append(line(x(bound), y - 5, x(bound), y + 5, f"cap {mark.finding}"))
    if abs(mark.point) <= reach:
        parts.append(point_mark(x(mark.point), y, mark.finding))
    return parts


def point_mark(x: float, y: float, finding: str) -> Markup:
    """A filled disc for a finding, a hollow one without."""
    return element("circle", cx=x, cy=y, r=4.6, class_=f"point {finding}")


def forest(marks: list[Mark], *, reach: float, title: str, description: str) -> Markup:
    """All intervals over one axis in margins, in the order given."""
    row, top = 24.0, 34.0
    label_width = min(LABEL_ROOM, max(text_width(mark.label) for mark in marks))
    width = WIDTH + 24
    height = top + row * len(marks) + 34
    x = _axis(reach, label_width + PAD, width - PAD)
    bottom = top + row * len(marks)
    parts = [
        text(x(0) - 10, 14, "← treatment worse", "axis-word", "end"),
        text(x(0) + 10, 14, "treatment better →", "axis-word"),
        line(x(-1), top - 8, x(-1), bottom + 4, "margin-line"),
        line(x(1), top - 8, x(1), bottom + 4, "margin-line faint"),
        line(x(0), top - 8, x(0), bottom + 4, "zero-line"),
        line(x(-reach), bottom + 4, x(reach), bottom + 4, "axis"),
    ]
    for tick in sorted({*_ticks(reach), -1.0} - {1.0}):
        parts.append(line(x(tick), bottom + 4, x(tick), bottom + 8, "axis"))
        if tick == -1:  # ends at its line, so that it stays clear of the zero however narrow the axis is
            parts.append(text(x(tick) + 6, bottom + 22, "margin", "tick", "end"))
        elif tick >= 0 or x(-1) - x(tick) > text_width("margin") + 8:
            parts.append(text(x(tick), bottom + 22, f"{abs(tick):g}×" if tick else "0", "tick", "middle"))
    for index, mark in enumerate(marks):
        y = top + row * (index + 0.5)
        parts.append(text(label_width, y + 4, short_label(mark.label, label_width), "label", "end"))
        parts += interval_marks(mark, x, y, reach)
    return picture(*parts, width=width, height=height, title=title, description=description, class_="chart")


# Win rates on one axis from 0 to 100 %: every way to count, every judge, with the even split marked.


RATE_CELL_WIDTH, RATE_CELL_HEIGHT, RATE_CELL_PAD = 220.0, 30.0, 8.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    low: float | None
    point: float | None
    high: float | None


def rate_axis(rates: list[Rate]) -> Scale:
    """An axis around the even split that includes every interval, never narrower than 40 to 60 %."""
    bounds = [x for rate in rates for x in (rate.low, rate.point, rate.high) if x is not None]
    reach = min(0.5, max([0.1, *(abs(x - 0.5) * 1.1 for x in bounds)]))
    return Scale(0.5 - reach, 0.5 + reach, RATE_CELL_PAD, RATE_CELL_WIDTH - RATE_CELL_PAD)


def rate_cell(rate: Rate, x: Scale, *, label: str, description: str) -> Markup:
    y = RATE_CELL_HEIGHT / 2
    parts = [
        line(RATE_CELL_PAD, y, RATE_CELL_WIDTH - RATE_CELL_PAD, y, "track"),
        line(x(0.5), 2, x(0.5), RATE_CELL_HEIGHT - 2, "zero-line"),
    ]
    certain = rate.low is not None and rate.high is not None and (rate.low > 0.5 or rate.high < 0.5)
    look = ("better" if (rate.low or 0) > 0.5 else "worse") if certain else "inconclusive"
    if rate.low is not None and rate.high is not None:
        parts.append(line(x(rate.low), y, x(rate.high), y, f"bar {look}"))
        parts += [line(x(bound), y - 5, x(bound), y + 5, f"cap {look}") for bound in (rate.low, rate.high)]
    if rate.point is not None:
        parts.append(point_mark(x(rate.point), y, look))
    return picture(
        *parts, width=RATE_CELL_WIDTH, height=RATE_CELL_HEIGHT, title=label, description=description, class_="interval"
    )


def rate_axis_cell(x: Scale) -> Markup:
    """The head of the column: where the axis begins and ends."""
    ticks = nice_ticks(x.low, x.high, 2)
    parts = [text(x(tick), 12, f"{tick * 100:g} %", "tick", "middle") for tick in ticks]
    return picture(
        *parts,
        width=RATE_CELL_WIDTH,
        height=16,
        title="Axis",
        description=f"from {x.low * 100:.0f} to {x.high * 100:.0f} percent, the even split marked",
        class_="interval",
    )


# Won, tied and lost in one bar: what a win rate is made of.


BAR_WIDTH, BAR_HEIGHT = 480.0, 26.0


def verdict_bar(won: int, tied: int, lost: int, *, description: str) -> Markup:
    """Three stretches of one bar: solid won, empty tied, hatched lost; the even split is marked."""
    total = won + tied + lost
    parts: list[Markup] = []
    x = 0.0
    for count, look in ((won, "won"), (tied, "tied"), (lost, "lost")):
        width = BAR_WIDTH * count / total
        parts.append(rect(x, 4, width, BAR_HEIGHT - 8, f"share {look}"))
        x += width
    parts.append(line(BAR_WIDTH / 2, 0, BAR_WIDTH / 2, BAR_HEIGHT, "zero-line"))
    return picture(
        *parts,
        width=BAR_WIDTH,
        height=BAR_HEIGHT,
        title="Won, tied and lost",
        description=description,
        class_="bar-of-verdicts",
    )
