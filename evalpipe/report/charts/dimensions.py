"""Won, tied and lost pairs by dimension, as one bar each."""

from __future__ import annotations

from markupsafe import Markup

from evalpipe.analysis.result import DimensionResult
from evalpipe.report.charts.svg import WIDTH, picture, rect, short_label, text

LEFT, RIGHT, TOP, ROW = 110.0, 8.0, 28.0, 34.0


def dimension_chart(dimensions: list[DimensionResult]) -> Markup | None:
    rows = [d for d in dimensions if d.wins + d.ties + d.losses > 0]
    if not rows:
        return None
    span = WIDTH - LEFT - RIGHT
    parts = [
        text(LEFT, 14, "treatment won", "axis-word"),
        text(LEFT + span / 2, 14, "tie", "axis-word", "middle"),
        text(WIDTH - RIGHT, 14, "lost", "axis-word", "end"),
    ]
    for index, row in enumerate(rows):
        total = row.wins + row.ties + row.losses
        y = TOP + ROW * index
        parts.append(text(LEFT - 8, y + 17, short_label(row.name.replace("_", " "), LEFT - 8), "label", "end"))
        x = LEFT
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
    return picture(*parts, height=TOP + ROW * len(rows) + 4, title="Won, tied and lost by dimension", description=words)
