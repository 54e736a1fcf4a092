"""Does the judge stay consistent, and prefer the longer answer? By length difference of the two answers."""

from __future__ import annotations

from markupsafe import Markup

from evalpipe.analysis.result import LengthBin
from evalpipe.report.charts.svg import WIDTH, Scale, element, line, path, picture, text

LEFT, RIGHT, TOP, HEIGHT, BOTTOM = 48.0, 12.0, 22.0, 240.0, 186.0


def length_chart(bins: list[LengthBin]) -> Markup | None:
    rows = [b for b in bins if b.n > 0 and (b.consistency is not None or b.win_rate is not None)]
    if len(rows) < 2:
        return None
    y = Scale(0.0, 1.0, BOTTOM, TOP)
    step = (WIDTH - LEFT - RIGHT) / len(rows)
    parts: list[Markup] = []
    for share in (0.0, 0.5, 1.0):
        parts += [line(LEFT, y(share), WIDTH - RIGHT, y(share), "zero-line" if share == 0.5 else "grid")]
        parts += [text(LEFT - 6, y(share) + 4, f"{share * 100:.0f} %", "tick", "end")]
    for name, look in (("consistency", "control"), ("win_rate", "treatment")):
        values = [(LEFT + step * (i + 0.5), getattr(b, name)) for i, b in enumerate(rows)]
        placed = [(px, y(value)) for px, value in values if value is not None]
        if placed:
            parts.append(path(placed, f"curve {look}"))
            parts += [element("circle", cx=px, cy=py, r=3.6, class_=f"dot {look}") for px, py in placed]
    for index, row in enumerate(rows):
        x = LEFT + step * (index + 0.5)
        parts.append(text(x, BOTTOM + 17, short(row), "tick", "middle"))
    parts.append(text(LEFT, HEIGHT - 14, "← treatment shorter", "axis-word"))
    parts.append(text(WIDTH - RIGHT, HEIGHT - 14, "treatment longer (characters) →", "axis-word", "end"))
    words = " ".join(
        f"{span(row)} characters, {row.n} pairs: consistent {_share(row.consistency)}, won {_share(row.win_rate)}."
        for row in rows
    )
    return picture(*parts, height=HEIGHT, title="Consistency by length difference", description=words)


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
