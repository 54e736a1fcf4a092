"""From requests to verdicts: what was left at each step, as bars of one scale."""

from __future__ import annotations

from markupsafe import Markup

from evalpipe.core.format import format_count
from evalpipe.report.charts.svg import picture, rect, short_label, text

WIDTH, LABEL, COUNT, ROW, BAR = 480.0, 150.0, 84.0, 26.0, 15.0


def funnel_chart(steps: list[tuple[str, int, str]]) -> Markup | None:
    """`steps`: (name, count, look), look = kept | out."""
    if not steps or max(count for _, count, _ in steps) <= 0:
        return None
    largest = max(count for _, count, _ in steps)
    span = WIDTH - LABEL - COUNT - 8
    parts: list[Markup] = []
    for index, (name, count, look) in enumerate(steps):
        y = ROW * index + 6
        parts.append(
            text(LABEL - 8, y + 12.5, short_label(name, LABEL - 8), "label" if look == "kept" else "label muted", "end")
        )
        width = span * count / largest
        parts.append(rect(LABEL, y, max(width, 1.0) if count else 0.0, BAR, f"step {look}"))
        parts.append(text(LABEL + width + 7, y + 12.5, format_count(count), "count"))
    words = "; ".join(f"{name} {format_count(count)}" for name, count, _ in steps)
    return picture(
        *parts,
        width=WIDTH,
        height=ROW * len(steps) + 10,
        title="From requests to verdicts",
        description=f"{words}.",
    )
