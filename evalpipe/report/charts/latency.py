"""The latency distribution of both arms as cumulative curves, the medians and 99th percentiles marked."""

from __future__ import annotations

from bisect import bisect_left

from markupsafe import Markup

from evalpipe.analysis.result import LatencyCurve
from evalpipe.core.format import NBSP, number_format
from evalpipe.report.charts.svg import WIDTH, Scale, element, line, log_ticks, path, picture, text

LEFT, RIGHT, TOP, HEIGHT, BOTTOM = 48.0, 12.0, 16.0, 240.0, 196.0


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
    x = Scale(low * 0.9, high * 1.1, LEFT, WIDTH - RIGHT, log=True)
    y = Scale(0.0, 1.0, BOTTOM, TOP)
    parts: list[Markup] = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts += [line(LEFT, y(share), WIDTH - RIGHT, y(share), "grid")]
        parts += [text(LEFT - 6, y(share) + 4, f"{share * 100:.0f} %", "tick", "end")]
    ticks = log_ticks(x.low, x.high)
    shown_to = -100.0
    for tick in ticks:
        parts.append(line(x(tick), BOTTOM, x(tick), BOTTOM + 4, "axis"))
        if x(tick) - shown_to > 58 and LEFT + 10 < x(tick) < WIDTH - RIGHT - 12:
            parts.append(text(x(tick), BOTTOM + 18, _tick(tick, high), "tick", "middle"))
            shown_to = x(tick)
    parts.append(text((LEFT + WIDTH - RIGHT) / 2, BOTTOM + 38, "latency (logarithmic axis)", "tick", "middle"))
    for curve in drawn:
        points = [(x(value), y(share)) for share, value in zip(curve.quantiles, curve.values_ms, strict=False)]
        parts.append(path(points, f"curve {curve.arm}"))
    for curve in drawn:
        for share in (0.5, 0.99):
            at = latency_at(curve, share)
            if at is not None:
                parts.append(element("circle", cx=x(at), cy=y(share), r=4, class_=f"dot {curve.arm}"))
    return picture(*parts, height=HEIGHT, title="Latency of both arms", description=latency_words(drawn))


def latency_words(curves: list[LatencyCurve]) -> str:
    """What the picture shows, in words: the medians and 99th percentiles."""
    sentences = []
    for curve in curves:
        half, tail = latency_at(curve, 0.5), latency_at(curve, 0.99)
        parts = [f"half of its answers within {short_ms(half)}" if half is not None else ""]
        parts.append(f"99{NBSP}% within {short_ms(tail)}" if tail is not None else "")
        sentences.append(f"{curve.arm.capitalize()}: {', '.join(part for part in parts if part)}.")
    return " ".join(sentences)
