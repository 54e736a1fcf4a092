"""SVG elements, scales and time axes: the few primitives the pictures are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from markupsafe import Markup, escape

from evalpipe.text import format_day

WIDTH = 480.0
"""of every figure, in its own units; the page scales it to the column"""


def number(value: float) -> str:
    """A coordinate with at most one decimal: a tenth of a unit is less than a pixel."""
    text = f"{value:.1f}"
    text = text.removesuffix(".0")
    return "0" if text == "-0" else text


def element(tag: str, *children: str | Markup, **attributes: float | str | None) -> Markup:
    """`<tag …>children</tag>`; `class_` → class, other `_` → `-`; None leaves an attribute out. Text is escaped."""
    parts = [tag]
    for name, value in attributes.items():
        if value is None:
            continue
        shown = value if isinstance(value, str) else number(value)
        parts.append(f'{name.rstrip("_").replace("_", "-")}="{escape(shown)}"')
    inner = Markup("").join(children)
    return Markup(f"<{' '.join(parts)}>{inner}</{tag}>")


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def text(x: float, y: float, content: str, class_: str = "", anchor: str | None = None) -> Markup:
    return element("text", content, x=x, y=y, class_=class_ or None, text_anchor=anchor)


def rect(x: float, y: float, width: float, height: float, class_: str) -> Markup:
    return element("rect", x=x, y=y, width=max(width, 0.0), height=height, class_=class_)


def path(points: Iterable[tuple[float, float]], class_: str, *, closed: bool = False) -> Markup:
    drawn = "L".join(f"{number(x)} {number(y)}" for x, y in points)
    return element("path", d=f"M{drawn}{'Z' if closed else ''}", class_=class_)


LETTER = 6.9
"""width of a letter of the pictures' text, in their units: a little more than the average of the fonts it may be shown in"""


def text_width(content: str) -> float:
    """About how wide a text is."""
    return LETTER * len(content)


def gutter(labels: Iterable[str], least: float = 30.0) -> float:
    """Room at the left of a picture for the labels of its values, so that none is cut off."""
    return max([least, *(text_width(label) + 10 for label in labels)])


def short_label(content: str, room: float) -> str:
    """A label that fits into `room`, its middle left out where it is too long (names differ at their ends)."""
    most = max(6, int(room / LETTER))
    if len(content) <= most:
        return content
    head = (most - 1) * 2 // 3
    return f"{content[:head].rstrip()}…{content[head + 1 - most :].lstrip()}"


def picture(
    *children: Markup, height: float, title: str, description: str, width: float = WIDTH, class_: str = "chart"
) -> Markup:
    """A whole picture, named and described for screen readers."""
    head = element("title", title) + element("desc", description)
    return element(
        "svg",
        head,
        *children,
        viewBox=f"0 0 {number(width)} {number(height)}",
        role="img",
        aria_label=f"{title}. {description}",
        class_=class_,
    )


@dataclass(frozen=True, slots=True)
class Scale:
    """A map from data to coordinates: straight, logarithmic, or bent (straight around zero, logarithmic far from it: the
    inverse hyperbolic sine). What lies outside the domain is held at its edge."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    bent: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (self._shaped(v) for v in (self.low, self.high, value))
        share = 0.5 if high == low else (value - low) / (high - low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)

    def _shaped(self, value: float) -> float:
        if self.bent:
            return math.asinh(value)
        return math.log(max(value, 1e-12)) if self.log else value


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers (1, 2, 5 × a power of ten) within [low, high], about `wanted` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / max(wanted, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 × the powers of ten within [low, high]; at least two."""
    if low <= 0 or high <= low:
        return [high]
    powers = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    ticks = [m * 10.0**p for p in powers for m in (1, 2, 5) if low <= m * 10.0**p <= high]
    return ticks if len(ticks) >= 2 else [low, high]


HATCH = Markup(
    '<svg class="defs" width="0" height="0" aria-hidden="true" focusable="false"><defs>'
    '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<rect width="6" height="6" class="hatch-ground"></rect><line x1="0" y1="0" x2="0" y2="6" class="hatch-line"></line>'
    "</pattern></defs></svg>"
)
"""the pattern of losses, once per page"""


# Instants on an axis: ticks at round times, labelled as finely as they are apart.


MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0
STEPS = (
    1, 2, 5, 10, 15, 30, MINUTE, 2 * MINUTE, 5 * MINUTE, 10 * MINUTE, 15 * MINUTE, 30 * MINUTE,
    HOUR, 2 * HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, DAY, 2 * DAY, 5 * DAY, 10 * DAY, 30 * DAY, 90 * DAY, 365 * DAY,
)  # fmt: skip
"""seconds between ticks: what clocks and calendars are divided into"""


def time_ticks(low: float, high: float, wanted: int = 5) -> list[tuple[float, str]]:
    """At most `wanted` + 1 (seconds since the epoch, label) within [low, high]: "16:25:30", "16:25" or "12 Mar", in UTC."""
    step = next((s for s in STEPS if (high - low) / s <= wanted), STEPS[-1])
    first = datetime.fromtimestamp(low, UTC).replace(hour=0, minute=0, second=0, microsecond=0).timestamp()
    n_before = -(-(low - first) // step)
    found = []
    at = first + n_before * step
    while at <= high:
        found.append((at, _label(datetime.fromtimestamp(at, UTC), step, days=high - low > DAY)))
        at += step
    return found


def _label(at: datetime, step: float, *, days: bool) -> str:
    if step >= DAY:
        return _short_day(at)
    if days and at == at.replace(hour=0, minute=0, second=0):
        return _short_day(at)
    return f"{at:%H:%M:%S}" if step < MINUTE else f"{at:%H:%M}"


def _short_day(at: datetime) -> str:
    return format_day(at.isoformat()).rsplit(" ", 1)[0]


def time_span(low: float, high: float) -> str:
    """What the axis spans, with its days: "23 Nov 2026, UTC" or "2 Mar to 12 Mar 2026, UTC"."""
    start, end = (datetime.fromtimestamp(at, UTC) for at in (low, high))
    last = format_day(end.isoformat())
    if end - start < timedelta(days=1) and start.date() == end.date():
        return f"{last}, UTC"
    first = format_day(start.isoformat())
    return f"{_short_day(start) if start.year == end.year else first} to {last}, UTC"
