"""A metric over time: a cumulative difference with its interval, or both arms' plain rates per bin."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from markupsafe import Markup

from evalpipe.analysis.result import Series, SeriesPoint
from evalpipe.core.format import sentence_case
from evalpipe.report.charts.svg import WIDTH, Scale, element, gutter, line, nice_ticks, path, picture, text
from evalpipe.report.charts.time_axis import time_span, time_ticks

RIGHT, TOP, HEIGHT, BOTTOM = 14.0, 18.0, 232.0, 178.0
YEAR_S = 366 * 86400.0
Show = Callable[[float], str]


def seconds(instant: str) -> float | None:
    try:
        return datetime.fromisoformat(instant).timestamp()
    except ValueError:
        return None


def _times(points: list[SeriesPoint], *, by_count: bool = False) -> tuple[list[SeriesPoint], list[float]]:
    placed = [(point, float(point.n) if by_count else seconds(point.at)) for point in points]
    kept = [(point, at) for point, at in placed if at is not None]
    return [point for point, _ in kept], [at for _, at in kept]


def has_times(points: list[SeriesPoint]) -> bool:
    """False for imports without a time, whose instants only count up from the epoch."""
    known = [at for point in points if (at := seconds(point.at)) is not None]
    return bool(known) and max(known) >= YEAR_S and max(known) > min(known)


def _frame(
    times: list[float], points: list[SeriesPoint], y: Scale, show: Show, *, by_count: bool = False
) -> tuple[Scale, list[Markup]]:
    """The axes: values at the left, as much room as their labels need; times (or counts of pairs) below."""
    ticks = nice_ticks(min(y.low, y.high), max(y.low, y.high), 4)
    left = gutter([show(tick) for tick in ticks])
    x = Scale(min(times), max(times), left, WIDTH - RIGHT)
    parts: list[Markup] = []
    for tick in ticks:
        parts += [line(left, y(tick), WIDTH - RIGHT, y(tick), "grid")]
        parts += [text(left - 6, y(tick) + 4, show(tick), "tick", "end")]
    if by_count:
        below = [(tick, f"{tick:,.0f}") for tick in nice_ticks(x.low, x.high, 4)]
        span = "judged pairs, in the order of the import"
    else:
        below, span = time_ticks(x.low, x.high), time_span(x.low, x.high)
    for at, label in below:
        parts.append(line(x(at), BOTTOM, x(at), BOTTOM + 4, "axis"))
        parts.append(text(x(at), BOTTOM + 18, label, "tick", "middle"))
    parts.append(text((left + WIDTH - RIGHT) / 2, BOTTOM + 38, span, "tick", "middle"))
    parts.append(line(left, BOTTOM, WIDTH - RIGHT, BOTTOM, "axis"))
    return x, parts


def win_rate_chart(series: Series, show: Show, *, is_decided: bool = True) -> Markup | None:
    """The cumulative win rate of the treatment in its confidence sequence, and the look at which it was settled.

    `is_decided`: the decision is reached, not only this metric settled.
    """
    wanted = [p for p in series.points if p.treatment is not None]
    by_count = not has_times(wanted)
    points, times = _times(wanted, by_count=by_count)
    if len(points) < 2 or max(times) <= min(times):
        return None
    # The series has the difference θ − 0.5; the picture shows θ.
    lows = [None if p.ci_low is None else max(0.0, p.ci_low + 0.5) for p in points]
    highs = [None if p.ci_high is None else min(1.0, p.ci_high + 0.5) for p in points]
    known = [v for v in (*lows, *highs, *(p.treatment for p in points)) if v is not None]
    last_reach = max(abs(v - 0.5) for v in known[-3:]) if known else 0.1
    reach = min(0.5, max(0.1, min(max(abs(v - 0.5) for v in known), last_reach * 4)) * 1.05)
    y = Scale(0.5 - reach, 0.5 + reach, BOTTOM, TOP)
    x, parts = _frame(times, points, y, show, by_count=by_count)
    band = [(t, lo, hi) for t, lo, hi in zip(times, lows, highs, strict=True) if lo is not None and hi is not None]
    if len(band) > 1:
        upper = [(x(t), y(hi)) for t, _, hi in band]
        lower = [(x(t), y(lo)) for t, lo, _ in reversed(band)]
        parts.append(path([*upper, *lower], "band", closed=True))
    parts.append(line(x.start, y(0.5), x.end, y(0.5), "zero-line"))
    parts.append(path([(x(t), y(p.treatment or 0.0)) for t, p in zip(times, points, strict=True)], "curve treatment"))
    decided = _decided(series, points, times)
    note = ""
    if decided is not None:
        at = x(decided)
        parts.append(line(at, TOP, at, BOTTOM, "look-line"))
        word = "decided here" if is_decided else "win rate settled here"
        anchor = "end" if at > WIDTH * 0.6 else "start"
        parts.append(text(at + (-5 if anchor == "end" else 5), TOP - 6, word, "axis-word", anchor))
        note = f" {sentence_case(word.removesuffix(' here'))} at the marked look."
    last = points[-1]
    words = f"At the last look the win rate was {show(last.treatment or 0.0)}"
    if lows[-1] is not None and highs[-1] is not None:
        words += f", interval {show(lows[-1])} to {show(highs[-1])}"
    return picture(*parts, height=HEIGHT, title="Win rate over time", description=f"{words}.{note}")


def _decided(series: Series, points: list[SeriesPoint], times: list[float]) -> float | None:
    """Where the deciding look lies on the axis; None where it is not among what is drawn."""
    instant = seconds(series.decided_at) if series.decided_at else None
    if instant is None:
        return None
    for point, at in zip(points, times, strict=True):
        if (seconds(point.at) or 0.0) >= instant:
            return at
    return None


def rate_chart(series: Series, show: Show, *, title: str) -> Markup | None:
    """Both arms' values per bin of time; control dashed with squares, treatment solid with discs."""
    points, times = _times([p for p in series.points if p.control is not None or p.treatment is not None])
    if len(points) < 2 or not has_times(points):
        return None
    top = max(v for p in points for v in (p.control, p.treatment) if v is not None)
    if top <= 0:
        return None  # nothing happened in any interval: the table shows that
    y = Scale(0.0, top * 1.1, BOTTOM, TOP)
    x, parts = _frame(times, points, y, show)
    few = len(points) <= 40
    for arm in ("control", "treatment"):
        values = [(t, getattr(p, arm)) for t, p in zip(times, points, strict=True)]
        placed = [(x(t), y(v)) for t, v in values if v is not None]
        parts.append(path(placed, f"curve {arm}"))
        if few:
            parts += [element("circle", cx=px, cy=py, r=3, class_=f"dot {arm}") for px, py in placed]
    words = f"In the last of {len(points)} intervals of time: control "
    last = points[-1]
    words += " and ".join(
        f"{'' if arm == 'control' else 'treatment '}{'–' if value is None else show(value)}"
        for arm, value in (("control", last.control), ("treatment", last.treatment))
    )
    return picture(*parts, height=HEIGHT, title=title, description=f"{words}. Highest value {show(top)}.")
