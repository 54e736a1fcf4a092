"""Instants on an axis: ticks at round times, labelled as finely as they are apart."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from evalpipe.core.format import format_day

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
