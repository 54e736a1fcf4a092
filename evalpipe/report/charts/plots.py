"""The plots of a report: over time, latency, length, dimensions, funnel."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from datetime import datetime

from markupsafe import Markup

from evalpipe.analysis.result import DimensionResult, LatencyCurve, LengthBin, Series, SeriesPoint
from evalpipe.report.charts.svg import (
    WIDTH,
    Scale,
    element,
    gutter,
    line,
    log_ticks,
    nice_ticks,
    path,
    picture,
    rect,
    short_label,
    text,
    time_span,
    time_ticks,
)
from evalpipe.text import NBSP, format_count, number_format, sentence_case

OVER_TIME_RIGHT, OVER_TIME_TOP, OVER_TIME_HEIGHT, OVER_TIME_BOTTOM = 14.0, 18.0, 232.0, 178.0
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
    x = Scale(min(times), max(times), left, WIDTH - OVER_TIME_RIGHT)
    parts: list[Markup] = []
    for tick in ticks:
        parts += [line(left, y(tick), WIDTH - OVER_TIME_RIGHT, y(tick), "grid")]
        parts += [text(left - 6, y(tick) + 4, show(tick), "tick", "end")]
    if by_count:
        below = [(tick, f"{tick:,.0f}") for tick in nice_ticks(x.low, x.high, 4)]
        span = "judged pairs, in the order of the import"
    else:
        below, span = time_ticks(x.low, x.high), time_span(x.low, x.high)
    for at, label in below:
        parts.append(line(x(at), OVER_TIME_BOTTOM, x(at), OVER_TIME_BOTTOM + 4, "axis"))
        parts.append(text(x(at), OVER_TIME_BOTTOM + 18, label, "tick", "middle"))
    parts.append(text((left + WIDTH - OVER_TIME_RIGHT) / 2, OVER_TIME_BOTTOM + 38, span, "tick", "middle"))
    parts.append(line(left, OVER_TIME_BOTTOM, WIDTH - OVER_TIME_RIGHT, OVER_TIME_BOTTOM, "axis"))
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
    y = Scale(0.5 - reach, 0.5 + reach, OVER_TIME_BOTTOM, OVER_TIME_TOP)
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
        parts.append(line(at, OVER_TIME_TOP, at, OVER_TIME_BOTTOM, "look-line"))
        word = "decided here" if is_decided else "win rate settled here"
        anchor = "end" if at > WIDTH * 0.6 else "start"
        parts.append(text(at + (-5 if anchor == "end" else 5), OVER_TIME_TOP - 6, word, "axis-word", anchor))
        note = f" {sentence_case(word.removesuffix(' here'))} at the marked look."
    last = points[-1]
    words = f"At the last look the win rate was {show(last.treatment or 0.0)}"
    if lows[-1] is not None and highs[-1] is not None:
        words += f", interval {show(lows[-1])} to {show(highs[-1])}"
    return picture(*parts, height=OVER_TIME_HEIGHT, title="Win rate over time", description=f"{words}.{note}")


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
    y = Scale(0.0, top * 1.1, OVER_TIME_BOTTOM, OVER_TIME_TOP)
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
    return picture(*parts, height=OVER_TIME_HEIGHT, title=title, description=f"{words}. Highest value {show(top)}.")


# The latency distribution of both arms as cumulative curves, the medians and 99th percentiles marked.


LATENCY_LEFT, LATENCY_RIGHT, LATENCY_TOP, LATENCY_HEIGHT, LATENCY_BOTTOM = 48.0, 12.0, 16.0, 240.0, 196.0


def latency_at(curve: LatencyCurve, share: float) -> float | None:
    """The latency below which `share` of the answers lie, read off the curve; None beyond its ends."""
    quantiles, values = curve.quantiles, curve.values_ms
    at = bisect_left(quantiles, share - 1e-9)
    if at >= len(quantiles):
        return None
    if at == 0 or abs(quantiles[at] - share) < 1e-9:
        return values[at]
    left, right = quantiles[at - 1], quantiles[at]
    return values[at - 1] + (values[at] - values[at - 1]) * (share - left) / (right - left)


def _left_edge(curves: list[LatencyCurve]) -> float:
    """Where the axis begins: at the fastest hundredth, so that a single quick answer does not stretch it by decades."""
    return min(latency_at(c, 0.01) or min(v for v in c.values_ms if v > 0) for c in curves)


def short_ms(value: float) -> str:
    """A latency with two digits."""
    return number_format("ms", largest=value, half_width=value / 10).value(value)


def _tick(value_ms: float, high_ms: float) -> str:
    """A round latency, from a second on in seconds where the axis goes beyond ten."""
    return f"{value_ms / 1000:g}{NBSP}s" if high_ms >= 10_000 and value_ms >= 1000 else f"{value_ms:,g}{NBSP}ms"


def latency_chart(curves: list[LatencyCurve]) -> Markup | None:
    """None where there is nothing to draw."""
    drawn = [curve for curve in curves if len(curve.values_ms) >= 2 and max(curve.values_ms) > 0]
    if not drawn:
        return None
    values = [value for curve in drawn for value in curve.values_ms if value > 0]
    low, high = _left_edge(drawn), max(values)
    x = Scale(low * 0.9, high * 1.1, LATENCY_LEFT, WIDTH - LATENCY_RIGHT, log=True)
    y = Scale(0.0, 1.0, LATENCY_BOTTOM, LATENCY_TOP)
    parts: list[Markup] = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts += [line(LATENCY_LEFT, y(share), WIDTH - LATENCY_RIGHT, y(share), "grid")]
        parts += [text(LATENCY_LEFT - 6, y(share) + 4, f"{share * 100:.0f} %", "tick", "end")]
    ticks = log_ticks(x.low, x.high)
    shown_to = -100.0
    for tick in ticks:
        parts.append(line(x(tick), LATENCY_BOTTOM, x(tick), LATENCY_BOTTOM + 4, "axis"))
        if x(tick) - shown_to > 58 and LATENCY_LEFT + 10 < x(tick) < WIDTH - LATENCY_RIGHT - 12:
            parts.append(text(x(tick), LATENCY_BOTTOM + 18, _tick(tick, high), "tick", "middle"))
            shown_to = x(tick)
    parts.append(
        text(
            (LATENCY_LEFT + WIDTH - LATENCY_RIGHT) / 2,
            LATENCY_BOTTOM + 38,
            "latency (logarithmic axis)",
            "tick",
            "middle",
        )
    )
    for curve in drawn:
        points = [(x(value), y(share)) for share, value in zip(curve.quantiles, curve.values_ms, strict=False)]
        parts.append(path(points, f"curve {curve.arm}"))
    for curve in drawn:
        for share in (0.5, 0.99):
            at = latency_at(curve, share)
            if at is not None:
                parts.append(element("circle", cx=x(at), cy=y(share), r=4, class_=f"dot {curve.arm}"))
    return picture(*parts, height=LATENCY_HEIGHT, title="Latency of both arms", description=latency_words(drawn))


def latency_words(curves: list[LatencyCurve]) -> str:
    """What the picture shows, in words: the medians and 99th percentiles."""
    sentences = []
    for curve in curves:
        half, tail = latency_at(curve, 0.5), latency_at(curve, 0.99)
        parts = [f"half of its answers within {short_ms(half)}" if half is not None else ""]
        parts.append(f"99{NBSP}% within {short_ms(tail)}" if tail is not None else "")
        sentences.append(f"{curve.arm.capitalize()}: {', '.join(part for part in parts if part)}.")
    return " ".join(sentences)


# Does the judge stay consistent, and prefer the longer answer? By length difference of the two answers.


LENGTH_LEFT, LENGTH_RIGHT, LENGTH_TOP, LENGTH_HEIGHT, LENGTH_BOTTOM = 48.0, 12.0, 22.0, 240.0, 186.0


def length_chart(bins: list[LengthBin]) -> Markup | None:
    rows = [b for b in bins if b.n > 0 and (b.consistency is not None or b.win_rate is not None)]
    if len(rows) < 2:
        return None
    y = Scale(0.0, 1.0, LENGTH_BOTTOM, LENGTH_TOP)
    step = (WIDTH - LENGTH_LEFT - LENGTH_RIGHT) / len(rows)
    parts: list[Markup] = []
    for share in (0.0, 0.5, 1.0):
        parts += [line(LENGTH_LEFT, y(share), WIDTH - LENGTH_RIGHT, y(share), "zero-line" if share == 0.5 else "grid")]
        parts += [text(LENGTH_LEFT - 6, y(share) + 4, f"{share * 100:.0f} %", "tick", "end")]
    for name, look in (("consistency", "control"), ("win_rate", "treatment")):
        values = [(LENGTH_LEFT + step * (i + 0.5), getattr(b, name)) for i, b in enumerate(rows)]
        placed = [(px, y(value)) for px, value in values if value is not None]
        if placed:
            parts.append(path(placed, f"curve {look}"))
            parts += [element("circle", cx=px, cy=py, r=3.6, class_=f"dot {look}") for px, py in placed]
    for index, row in enumerate(rows):
        x = LENGTH_LEFT + step * (index + 0.5)
        parts.append(text(x, LENGTH_BOTTOM + 17, short(row), "tick", "middle"))
    parts.append(text(LENGTH_LEFT, LENGTH_HEIGHT - 14, "← treatment shorter", "axis-word"))
    parts.append(text(WIDTH - LENGTH_RIGHT, LENGTH_HEIGHT - 14, "treatment longer (characters) →", "axis-word", "end"))
    words = " ".join(
        f"{span(row)} characters, {row.n} pairs: consistent {_share(row.consistency)}, won {_share(row.win_rate)}."
        for row in rows
    )
    return picture(*parts, height=LENGTH_HEIGHT, title="Consistency by length difference", description=words)


def _share(value: float | None) -> str:
    return "not measured" if value is None else f"{value * 100:.0f} %"


def _edge(value: float) -> str:
    if abs(value) >= 1e7:
        return ""
    sign = "−" if value < 0 else ""
    size = abs(value)
    return f"{sign}{size / 1000:.1f}k".replace(".0k", "k") if size >= 1000 else f"{sign}{size:.0f}"


def short(row: LengthBin) -> str:
    """The bin by its middle, or its one finite end."""
    low, high = _edge(row.low), _edge(row.high)
    if not low:
        return f"< {high}"
    if not high:
        return f"> {low}"
    return _edge((row.low + row.high) / 2)


def span(row: LengthBin) -> str:
    low, high = _edge(row.low), _edge(row.high)
    return f"{low} to {high}" if low and high else short(row)


# Won, tied and lost pairs by dimension, as one bar each.


DIMENSION_LEFT, DIMENSION_RIGHT, DIMENSION_TOP, DIMENSION_ROW = 110.0, 8.0, 28.0, 34.0


def dimension_chart(dimensions: list[DimensionResult]) -> Markup | None:
    rows = [d for d in dimensions if d.wins + d.ties + d.losses > 0]
    if not rows:
        return None
    span = WIDTH - DIMENSION_LEFT - DIMENSION_RIGHT
    parts = [
        text(DIMENSION_LEFT, 14, "treatment won", "axis-word"),
        text(DIMENSION_LEFT + span / 2, 14, "tie", "axis-word", "middle"),
        text(WIDTH - DIMENSION_RIGHT, 14, "lost", "axis-word", "end"),
    ]
    for index, row in enumerate(rows):
        total = row.wins + row.ties + row.losses
        y = DIMENSION_TOP + DIMENSION_ROW * index
        parts.append(
            text(
                DIMENSION_LEFT - 8, y + 17, short_label(row.name.replace("_", " "), DIMENSION_LEFT - 8), "label", "end"
            )
        )
        x = DIMENSION_LEFT
        for count, look in ((row.wins, "won"), (row.ties, "tied"), (row.losses, "lost")):
            width = span * count / total
            parts.append(rect(x, y, width, 24, f"share {look}"))
            share = f"{count / total * 100:.0f} %"
            if width > 34:
                # A plate behind the number of a hatched bar: digits on hatching cannot be read.
                if look == "lost":
                    parts.append(rect(x + width / 2 - 19, y + 4, 38, 16, "plate"))
                parts.append(text(x + width / 2, y + 16.5, share, f"share-text {look}", "middle"))
            x += width
    words = " ".join(
        f"{row.name}: {row.wins} won, {row.ties} tied, {row.losses} lost by the treatment." for row in rows
    )
    return picture(
        *parts,
        height=DIMENSION_TOP + DIMENSION_ROW * len(rows) + 4,
        title="Won, tied and lost by dimension",
        description=words,
    )


# From requests to verdicts: what was left at each step, as bars of one scale.


FUNNEL_WIDTH, LABEL, COUNT, FUNNEL_ROW, BAR = 480.0, 150.0, 84.0, 26.0, 15.0


def funnel_chart(steps: list[tuple[str, int, str]]) -> Markup | None:
    """`steps`: (name, count, look), look = kept | out."""
    if not steps or max(count for _, count, _ in steps) <= 0:
        return None
    largest = max(count for _, count, _ in steps)
    span = FUNNEL_WIDTH - LABEL - COUNT - 8
    parts: list[Markup] = []
    for index, (name, count, look) in enumerate(steps):
        y = FUNNEL_ROW * index + 6
        parts.append(
            text(LABEL - 8, y + 12.5, short_label(name, LABEL - 8), "label" if look == "kept" else "label muted", "end")
        )
        width = span * count / largest
        parts.append(rect(LABEL, y, max(width, 1.0) if count else 0.0, BAR, f"step {look}"))
        parts.append(text(LABEL + width + 7, y + 12.5, format_count(count), "count"))
    words = "; ".join(f"{name} {format_count(count)}" for name, count, _ in steps)
    return picture(
        *parts,
        width=FUNNEL_WIDTH,
        height=FUNNEL_ROW * len(steps) + 10,
        title="From requests to verdicts",
        description=f"{words}.",
    )
