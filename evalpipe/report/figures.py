"""The pictures of a page, each with its caption: what it shows and how to read it."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from evalpipe.analysis.result import Analysis, MetricResult, Series
from evalpipe.report.charts.intervals import Mark, axis_reach, forest, interval_cell, is_bent
from evalpipe.report.charts.plots import (
    dimension_chart,
    funnel_chart,
    latency_chart,
    latency_words,
    length_chart,
    rate_chart,
    win_rate_chart,
)
from evalpipe.report.metrics import MetricRow
from evalpipe.report.terms import FINDING_ORDER, plain
from evalpipe.text import format_counted, format_percent, number_format

ARMS = ("control", "treatment")


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """`legend`: what the dashed and the solid line are, where there are two."""

    title: str
    picture: Markup
    caption: str
    legend: tuple[str, str] | None = None


def shared_reach(rows: list[MetricRow]) -> float:
    effects = [row.effect for row in rows if row.effect is not None and row.effect.has_margin]
    return axis_reach([b for effect in effects for b in (effect.low, effect.point, effect.high) if b is not None])


def mark_of(row: MetricRow) -> Mark | None:
    if row.effect is None:
        return None
    words = f"{row.difference_with_interval}, {row.finding}"
    return Mark(
        label=row.label,
        low=row.effect.low,
        point=row.effect.point,
        high=row.effect.high,
        finding=row.finding,
        text=words,
        has_margin=row.effect.has_margin,
    )


def row_picture(row: MetricRow, reach: float) -> Markup | None:
    """The picture in the row; a metric without margin fills its own axis."""
    mark = mark_of(row)
    if mark is None:
        return None
    return interval_cell(mark, reach if mark.has_margin else 3.0)


def figures(analysis: Analysis) -> list[Figure]:
    """Quality over time and speed, where there is data for them."""
    return [figure for figure in (_win_rate(analysis), _latency(analysis)) if figure is not None]


def more_figures(analysis: Analysis, rows: list[MetricRow]) -> list[Figure]:
    """The other pictures of the results there is data for, in reading order."""
    return [figure for figure in (_forest(rows), *_dimensions(analysis), *_binned(analysis)) if figure is not None]


def _forest(rows: list[MetricRow]) -> Figure | None:
    marks = [(row, mark) for row in rows if (mark := mark_of(row)) is not None and mark.has_margin]
    n_undefined = sum(row.finding == "undefined" for row in rows)
    if len(marks) < 2:
        return None
    marks.sort(key=lambda pair: (FINDING_ORDER.index(pair[0].finding), pair[1].point))
    words = " ".join(f"{mark.label}: {mark.text}." for _, mark in marks)
    reach = shared_reach(rows)
    return Figure(
        title="Every metric against its margin, worst first",
        picture=forest([mark for _, mark in marks], reach=reach, title="Forest plot of all metrics", description=words),
        caption="One unit is the metric's own margin, the largest loss that was declared acceptable. A bar wholly right of "
        "the dashed line rules out a loss beyond the margin; wholly right of zero, the treatment is better. A filled point "
        "is a finding, a hollow one is not. An arrow leaves the axis."
        + (" Far from zero the axis is compressed." if is_bent(reach) else "")
        + (f" Left out: {format_counted(n_undefined, 'metric')} without a conclusion." if n_undefined else ""),
    )


def _series(analysis: Analysis, metric: str, kind: str) -> Series | None:
    return next((s for s in analysis.series if s.metric == metric and s.kind == kind), None)


def _share_text(share: float) -> str:
    """Whole percents as such, others with one decimal."""
    return format_percent(share, 0 if abs(share * 100 - round(share * 100)) < 1e-9 else 1)


def _win_rate(analysis: Analysis) -> Figure | None:
    series = _series(analysis, "win_rate", "cumulative")
    is_decided = analysis.decision.recommendation in {"ship", "keep"}
    picture = None if series is None else win_rate_chart(series, _share_text, is_decided=is_decided)
    if picture is None:
        return None
    return Figure(
        title="Win rate of the treatment as pairs came in",
        picture=picture,
        caption="All pairs judged up to that point, each user counted once. The band is the interval, valid at every look; "
        "where it excludes the line at 50 %, one arm is preferred at the stated confidence.",
    )


def _latency(analysis: Analysis) -> Figure | None:
    picture = latency_chart(analysis.latency)
    if picture is None:
        return None
    return Figure(
        title="Latency of both arms",
        picture=picture,
        caption=f"The share of answers that took at most so long; the further left, the faster. Dots: median and 99th "
        f"percentile. {latency_words([c for c in analysis.latency if len(c.values_ms) >= 2])}",
        legend=ARMS,
    )


def _dimensions(analysis: Analysis) -> list[Figure]:
    found: list[Figure] = []
    for judge in analysis.judges:
        if len({(one.wins, one.ties, one.losses) for one in judge.dimensions}) < 2:
            continue  # one mark for everything: the first screen has it
        picture = dimension_chart(judge.dimensions)
        if picture is not None and (judge.feeds_decision or not found):
            found.append(
                Figure(
                    title="Won, tied and lost by dimension",
                    picture=picture,
                    caption=f"Pairs by which arm judge {judge.name} scored higher. Solid: the treatment; hatched: control.",
                )
            )
    return found[:1]


def _binned(analysis: Analysis) -> list[Figure]:
    found: list[Figure] = []
    metrics = {metric.name: metric for metric in analysis.metrics}
    for series in analysis.series:
        if series.kind != "binned":
            continue
        metric = metrics.get(series.metric)
        name = metric.label if metric and metric.label else plain(series.metric)
        picture = rate_chart(series, _shower(series, metric), title=f"{name.capitalize()} over time")
        if picture is not None:
            caption = "Each point is one interval of time on its own, not a running total."
            title = f"{name[:1].upper()}{name[1:]} over time"
            found.append(Figure(title=title, picture=picture, caption=caption, legend=ARMS))
    return found


def _shower(series: Series, metric: MetricResult | None):  # type: ignore[no-untyped-def]
    values = [abs(v) for p in series.points for v in (p.control, p.treatment) if v is not None]
    largest = max(values, default=0.0)
    scale = number_format(metric.unit if metric else "ratio", largest=largest, half_width=largest / 5 or None)
    return scale.value


_LENGTH_LINES = ("judged alike in both orders", "treatment preferred")


def judge_figures(analysis: Analysis) -> list[Figure]:
    """The judge's own pictures: consistency and win rate by length difference."""
    found: list[Figure] = []
    for judge in analysis.judges:
        picture = length_chart(judge.length_bins)
        if picture is not None and (judge.feeds_decision or not found):
            found.append(
                Figure(
                    title="Does length sway the judge?",
                    picture=picture,
                    legend=_LENGTH_LINES if any(b.consistency is not None for b in judge.length_bins) else None,
                    caption="Solid: how often the treatment was preferred, by how much longer its answer is. A line "
                    "that climbs from left to right means longer answers are preferred.",
                )
            )
    return found[:1]


def funnel_figure(analysis: Analysis) -> Figure | None:
    funnel = analysis.funnel
    steps = [("requests", funnel.requests, "kept")]
    steps += [(f"– {plain(reason)}", count, "out") for reason, count in funnel.exclusions.items() if count]
    steps.append(("pairs of answers", funnel.pairs, "kept"))
    if funnel.judged_pairs or funnel.judgments:
        steps.append(("judged pairs", funnel.judged_pairs, "kept"))
    picture = funnel_chart(steps)
    if picture is None:
        return None
    calls = ", ".join(f"{count:,} {plain(status)}" for status, count in funnel.judgments.items() if count)
    caption = "Pairs and exclusions add up to the requests, exactly."
    if funnel.requests != funnel.pairs + sum(funnel.exclusions.values()):
        caption = "Each arm answered other requests, so pairs and exclusions need not add up to the requests."
    return Figure(
        title="From requests to verdicts",
        picture=picture,
        caption=f"{caption} Judgments by status: {calls}." if calls else caption,
    )
