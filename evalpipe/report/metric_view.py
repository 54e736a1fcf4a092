"""One metric → one row of the decision table, as strings; the one place where its numbers become text."""

from __future__ import annotations

from dataclasses import dataclass

from evalpipe.analysis.result import ArmValue, MetricResult
from evalpipe.analysis.shown import ShownMetric, metric_formats, shown_metric
from evalpipe.core.format import (
    MISSING,
    NBSP,
    NumberFormat,
    format_count,
    format_p,
    number_format,
)
from evalpipe.report.words import DIRECTIONS, FINDINGS, GROUPS, ROLES, status_note, status_words


def is_measured(metric: MetricResult) -> bool:
    """Whether either arm has a single observation of it."""
    return metric.control.n > 0 or metric.treatment.n > 0 or metric.difference is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """Where the interval lies on the axis all rows share: in margins, right of zero = the treatment is better.

    `has_margin` False: the metric has no margin, and the row is scaled to its own interval. Bounds may be None (one-sided).
    """

    low: float | None
    point: float
    high: float | None
    has_margin: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """A line of a description list."""

    name: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricRow:
    """A row of the decision table. `difference` and `interval` are on the scale the decision uses; `aside` is the other one."""

    name: str
    label: str
    group: str
    role: str
    control: str
    control_n: str
    treatment: str
    treatment_n: str
    difference: str
    interval: str
    aside: str
    finding: str
    finding_word: str
    finding_note: str
    effect: Effect | None
    facts: list[Fact]
    how_to_read: str
    note: str
    raw: MetricResult

    @property
    def has_interval(self) -> bool:
        return self.interval != MISSING

    @property
    def difference_with_interval(self) -> str:
        return f"{self.difference} ({self.interval})" if self.has_interval else self.difference


def sign(direction: str) -> int:
    """+1 where higher is better, −1 where lower is."""
    return -1 if direction == "lower" else 1


def effect_of(metric: MetricResult) -> Effect | None:
    """The metric's interval in margins, oriented; None where there is no number to draw."""
    relative = metric.scale == "relative" and metric.relative is not None
    point = metric.relative if relative else metric.difference
    low, high = (metric.relative_low, metric.relative_high) if relative else (metric.ci_low, metric.ci_high)
    if point is None or metric.status in {"no_data", "missing_arm"}:
        return None
    s = sign(metric.direction)
    if s < 0:
        low, high = high, low
    largest = max(abs(x) for x in (point, low, high) if x is not None)
    # Without a margin there is no yardstick: the interval fills two thirds of the axis.
    unit = metric.margin if metric.margin > 0 else (largest / 2 or 1.0)
    scaled = [None if x is None else s * x / unit for x in (low, point, high)]
    assert scaled[1] is not None
    return Effect(low=scaled[0], point=scaled[1], high=scaled[2], has_margin=metric.margin > 0)


def metric_row(metric: MetricResult) -> MetricRow:
    shown = shown_metric(metric)
    finding = metric.finding if metric.finding in FINDINGS else "undefined"
    return MetricRow(
        name=metric.name,
        label=metric.label or metric.name,
        group=GROUPS.get(metric.group, metric.group),
        role=ROLES.get(metric.role, metric.role),
        control=shown.control,
        control_n=_count_text(metric.control, metric.unit),
        treatment=shown.treatment,
        treatment_n=_count_text(metric.treatment, metric.unit),
        difference=shown.difference,
        interval=shown.interval,
        aside=shown.aside,
        finding=finding,
        finding_word=finding,
        finding_note=_finding_note(metric, finding),
        effect=effect_of(metric),
        facts=_facts(metric, metric_formats(metric).values, margin_text(metric)),
        how_to_read=_how_to_read(metric, shown, finding),
        note=metric.note or "",
        raw=metric,
    )


def margin_text(metric: MetricResult) -> str:
    """The margin in words: "10 % of control's value", "0.5 points"."""
    if metric.margin <= 0:
        return "none: any proven loss counts"
    if metric.scale == "relative":
        return f"{metric.margin * 100:g}{NBSP}%"
    scale = number_format(metric.unit, largest=metric.margin)
    suffix = scale.suffix if scale.difference_suffix is None else scale.difference_suffix
    return f"{scale.prefix}{metric.margin * scale.factor:g}{suffix}"


def _count_text(arm: ArmValue, unit: str) -> str:
    """What the value is made of: "12 of 2,400" for a share, else "n = 2,400"."""
    if unit == "ratio" and arm.numerator is not None and arm.denominator:
        decimals = 0 if float(arm.numerator).is_integer() else 1
        return f"{arm.numerator:,.{decimals}f} of {format_count(arm.denominator)}"
    return f"n{NBSP}={NBSP}{format_count(arm.n)}"


def _finding_note(metric: MetricResult, finding: str) -> str:
    """What matters beside the finding: can a loss beyond the margin be ruled out?"""
    if finding == "undefined":
        return status_note(metric.status)
    if metric.margin <= 0 or finding in {"better", "equivalent"}:
        return ""
    if metric.non_inferior:
        return "loss within its margin"
    return "loss beyond its margin" if _is_beyond_margin(metric) else "loss beyond margin not ruled out"


def _is_beyond_margin(metric: MetricResult) -> bool:
    """Whether the whole interval lies beyond the margin on the worse side."""
    effect = effect_of(metric)
    return effect is not None and effect.has_margin and effect.high is not None and effect.high < -1


def _facts(metric: MetricResult, values: NumberFormat, margin: str) -> list[Fact]:
    users = format_count(metric.n_clusters)
    facts = [
        Fact(name="Role", text=f"{ROLES.get(metric.role, metric.role)}; {DIRECTIONS.get(metric.direction, '')}"),
        Fact(name="Margin", text=margin),
        Fact(name="Observations", text=f"{format_count(metric.n)} from {users} users"),
        Fact(name="Method", text=metric.method or MISSING),
        Fact(name="p-value", text=format_p(metric.p_value)),
        Fact(name="Interval", text=f"{metric.confidence_level * 100:g}{NBSP}% confidence"),
        Fact(
            name="Status",
            text=metric.status if metric.status == "ok" else f"{metric.status}: {status_words(metric.status)}",
        ),
    ]
    for arm, value in (("Control alone", metric.control), ("Treatment alone", metric.treatment)):
        if value.ci_low is not None and value.ci_high is not None:
            text = f"{values.value(value.value)} ({values.value_interval(value.ci_low, value.ci_high)})"
            facts.append(Fact(name=arm, text=text))
    if metric.estimand:
        facts.insert(3, Fact(name="What is estimated", text=metric.estimand))
    if metric.expected_more_requests is not None:
        text = f"about {format_count(metric.expected_more_requests)} more requests at the present noise"
        facts.append(Fact(name="To settle it", text=text))
    return facts


def _how_to_read(metric: MetricResult, shown: ShownMetric, finding: str) -> str:
    """One or two sentences for somebody who has never read an interval."""
    subject = (metric.label or metric.name)[:1].lower() + (metric.label or metric.name)[1:]
    if finding == "undefined":
        return f"Nothing can be concluded on {subject}: {status_words(metric.status)}."
    against = "an even split" if metric.name == "win_rate" else "control"
    seen = f"Against {against}, the treatment's {subject} differs by {shown.difference}; "
    seen += f"values from {shown.interval} fit the data."
    ends = {
        "better": "The whole interval lies on the better side of zero.",
        "worse": "The whole interval lies on the worse side of zero.",
        "equivalent": f"The whole interval lies within the margin of {margin_text(metric)} on both sides: "
        "whatever difference there is, it is too small to matter.",
        "inconclusive": "The interval holds zero: on this data neither arm can be called better.",
    }[finding]
    if metric.margin > 0 and finding in {"inconclusive", "worse"}:
        ruled = "ruled out" if metric.non_inferior else "shown" if _is_beyond_margin(metric) else "not ruled out"
        ends += f" A loss larger than the margin of {margin_text(metric)} is {ruled}."
    return f"{seen} {ends}"
