"""One metric → one row of the decision table, as strings; the one place where its numbers become text."""

from __future__ import annotations

from dataclasses import dataclass

from evalpipe.analysis.result import ArmValue, MetricResult
from evalpipe.analysis.shown import ShownMetric, metric_formats, shown_metric
from evalpipe.core.format import (
    MISSING,
    NBSP,
    format_count,
    format_counted,
    format_p,
    format_usd,
    full_sentence,
    number_format,
)
from evalpipe.report.words import DIRECTIONS, FINDING_WORDS, FINDINGS, GROUPS, ROLES, status_note, status_words

FROM_EVEN = "from an even split"


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
    """A row of the decision table. `difference` and `interval` are on the scale the decision uses, and both missing where
    nothing can be concluded: a number without a valid interval is not shown. `aside`: what the difference is taken from,
    where that is not control; `subtracts`: whether it is the difference of the two values beside it."""

    name: str
    label: str
    group: str
    role: str
    margin: str
    control: str
    control_n: str
    treatment: str
    treatment_n: str
    difference: str
    interval: str
    aside: str
    subtracts: bool
    finding: str
    finding_word: str
    finding_note: str
    effect: Effect | None
    facts: list[Fact]
    how_to_read: str
    note: str
    raw: MetricResult

    @property
    def is_beyond_margin(self) -> bool:
        """Whether a loss beyond the margin is shown."""
        return self.finding == "worse" and _is_beyond_margin(self.raw)

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
    concluded = finding != "undefined"
    return MetricRow(
        name=metric.name,
        label=metric.label or metric.name,
        group=GROUPS.get(metric.group, metric.group),
        role=ROLES.get(metric.role, metric.role),
        margin=f"margin{NBSP}{margin_text(metric)}" if metric.margin > 0 else "no margin",
        control=shown.control,
        control_n=_count_text(metric.control, metric.unit),
        treatment=shown.treatment,
        treatment_n=_count_text(metric.treatment, metric.unit),
        difference=shown.difference if concluded else MISSING,
        interval=shown.interval if concluded else MISSING,
        aside=FROM_EVEN if concluded and metric.name == "win_rate" else "",
        subtracts=not concluded or metric.name == "win_rate" or _subtracts(metric),
        finding=finding,
        finding_word=FINDING_WORDS[finding],
        finding_note=_finding_note(metric, finding),
        effect=effect_of(metric) if concluded else None,
        facts=_facts(metric, shown, concluded=concluded),
        how_to_read=_how_to_read(metric, shown, finding),
        note=full_sentence(metric.note or ""),
        raw=metric,
    )


def _subtracts(metric: MetricResult) -> bool:
    """Whether treatment − control, as the row shows them, is the row's difference, but for the rounding."""
    control, treatment = metric.control.value, metric.treatment.value
    if control is None or treatment is None or metric.difference is None:
        return True
    values = metric_formats(metric).values
    step = 10.0**-values.decimals / values.factor
    if metric.scale == "relative" and metric.relative is not None and control:
        return abs((treatment / control - 1) - metric.relative) * abs(control) <= 1.01 * step
    return abs((treatment - control) - metric.difference) <= 1.01 * step


def margin_text(metric: MetricResult) -> str:
    """The margin in words: "10 % of control's value", "0.5 points"."""
    if metric.margin <= 0:
        return "none: any proven loss counts"
    if metric.scale == "relative":
        return f"{metric.margin * 100:g}{NBSP}%"
    scale = number_format(metric.unit, largest=metric.margin)
    suffix = scale.suffix if scale.difference_suffix is None else scale.difference_suffix
    amount = metric.margin * scale.factor
    if amount == 1 and suffix.endswith("points"):
        suffix = suffix.removesuffix("s")
    return f"{scale.prefix}{amount:g}{suffix}"


def _count_text(arm: ArmValue, unit: str) -> str:
    """What the value is made of: "12 of 2,400" for a share, else "n = 2,400"."""
    if unit == "ratio" and arm.numerator is not None and arm.denominator:
        decimals = 0 if float(arm.numerator).is_integer() else 1
        return f"{arm.numerator:,.{decimals}f} of {format_count(arm.denominator)}"
    return f"n{NBSP}={NBSP}{format_count(arm.n)}"


def _finding_note(metric: MetricResult, finding: str) -> str:
    """What matters beside the finding: can a loss beyond the margin be ruled out?"""
    if finding == "undefined":
        return _whose(metric, status_note(metric.status))
    if metric.margin <= 0 or finding in {"better", "equivalent"}:
        return ""
    if metric.non_inferior:
        return "loss within margin"
    return "loss exceeds margin" if _is_beyond_margin(metric) else "loss may exceed margin"


def _whose(metric: MetricResult, words: str) -> str:
    """Which users are meant: a cost per good answer has a value only for those who got one."""
    return words.replace("with values", "with a good answer") if metric.name == "cost_per_ok_answer_usd" else words


def _is_beyond_margin(metric: MetricResult) -> bool:
    """Whether the whole interval lies beyond the margin on the worse side."""
    effect = effect_of(metric)
    return effect is not None and effect.has_margin and effect.high is not None and effect.high < -1


def _facts(metric: MetricResult, shown: ShownMetric, *, concluded: bool) -> list[Fact]:
    formats = metric_formats(metric)
    users = format_counted(metric.n_clusters, "user")
    facts = [
        Fact(name="Role", text=f"{ROLES.get(metric.role, metric.role)}; {DIRECTIONS.get(metric.direction, '')}"),
        Fact(name="Margin", text=margin_text(metric)),
        Fact(name="Observations", text=f"{format_count(metric.n)} from {users}"),
        Fact(name="Method", text=metric.method or MISSING),
        Fact(name="p-value", text=format_p(metric.p_value if concluded else None)),
        Fact(name="Interval", text=f"{metric.confidence_level * 100:g}{NBSP}% confidence"),
        Fact(
            name="Status",
            text=metric.status
            if metric.status == "ok"
            else f"{metric.status}: {_whose(metric, status_words(metric.status))}",
        ),
    ]
    if metric.estimand:
        facts.insert(3, Fact(name="What is estimated", text=metric.estimand))
    if not concluded and shown.interval != MISSING:
        facts.append(Fact(name="Seen so far", text=f"{shown.difference}, without an interval that could be relied on"))
    elif concluded and metric.relative is not None and metric.ci_low is not None:
        own = f"{formats.difference.difference(metric.difference)} ({formats.difference.interval(metric.ci_low, metric.ci_high)})"
        facts.append(Fact(name="Difference in its own unit", text=own))
    if (
        metric.name == "cost_per_request_usd"
        and metric.control.value is not None
        and metric.treatment.value is not None
    ):
        control, treatment = (format_usd(1000 * arm) for arm in (metric.control.value, metric.treatment.value))
        facts.append(Fact(name="Per 1,000 requests", text=f"control {control}, treatment {treatment}"))
    for arm, value in (("Control alone", metric.control), ("Treatment alone", metric.treatment)):
        if value.ci_low is not None and value.ci_high is not None:
            values = formats.values
            text = f"{values.value(value.value)} ({values.value_interval(value.ci_low, value.ci_high)})"
            facts.append(Fact(name=arm, text=text))
    if metric.expected_more_requests is not None:
        text = f"about {format_counted(metric.expected_more_requests, 'more request')} at the present noise"
        facts.append(Fact(name="To settle it", text=text))
    return facts


def _how_to_read(metric: MetricResult, shown: ShownMetric, finding: str) -> str:
    """One or two sentences for somebody who has never read an interval."""
    subject = (metric.label or metric.name)[:1].lower() + (metric.label or metric.name)[1:]
    if finding == "undefined":
        return f"Nothing can be concluded on {subject}: {_whose(metric, status_words(metric.status))}."
    against = "an even split" if metric.name == "win_rate" else "control"
    seen = f"Against {against}, the treatment's {subject} differs by {shown.difference}; "
    seen += f"values from {shown.interval} fit the data."
    if metric.name != "win_rate" and not _subtracts(metric):
        seen += " It is estimated over the users or pairs both arms share: not exactly the treatment's value minus control's."
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
