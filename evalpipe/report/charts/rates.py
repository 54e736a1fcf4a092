"""Win rates on one axis from 0 to 100 %: every way to count, every judge, with the even split marked."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from evalpipe.report.charts.interval import point_mark
from evalpipe.report.charts.svg import Scale, line, nice_ticks, picture, text

CELL_WIDTH, CELL_HEIGHT, PAD = 220.0, 30.0, 8.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    low: float | None
    point: float | None
    high: float | None


def rate_axis(rates: list[Rate]) -> Scale:
    """An axis around the even split that includes every interval, never narrower than 40 to 60 %."""
    bounds = [x for rate in rates for x in (rate.low, rate.point, rate.high) if x is not None]
    reach = min(0.5, max([0.1, *(abs(x - 0.5) * 1.1 for x in bounds)]))
    return Scale(0.5 - reach, 0.5 + reach, PAD, CELL_WIDTH - PAD)


def rate_cell(rate: Rate, x: Scale, *, label: str, description: str) -> Markup:
    y = CELL_HEIGHT / 2
    parts = [line(PAD, y, CELL_WIDTH - PAD, y, "track"), line(x(0.5), 2, x(0.5), CELL_HEIGHT - 2, "zero-line")]
    certain = rate.low is not None and rate.high is not None and (rate.low > 0.5 or rate.high < 0.5)
    look = ("better" if (rate.low or 0) > 0.5 else "worse") if certain else "inconclusive"
    if rate.low is not None and rate.high is not None:
        parts.append(line(x(rate.low), y, x(rate.high), y, f"bar {look}"))
        parts += [line(x(bound), y - 5, x(bound), y + 5, f"cap {look}") for bound in (rate.low, rate.high)]
    if rate.point is not None:
        parts.append(point_mark(x(rate.point), y, look))
    return picture(
        *parts, width=CELL_WIDTH, height=CELL_HEIGHT, title=label, description=description, class_="interval"
    )


def rate_axis_cell(x: Scale) -> Markup:
    """The head of the column: where the axis begins and ends."""
    ticks = nice_ticks(x.low, x.high, 2)
    parts = [text(x(tick), 12, f"{tick * 100:g} %", "tick", "middle") for tick in ticks]
    return picture(
        *parts,
        width=CELL_WIDTH,
        height=16,
        title="Axis",
        description=f"from {x.low * 100:.0f} to {x.high * 100:.0f} percent, the even split marked",
        class_="interval",
    )
