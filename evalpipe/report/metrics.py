"""The decision table: one metric as one row of strings."""

from __future__ import annotations

from dataclasses import dataclass

from evalpipe.analysis.metric_formatting import (
    FormattedMetric,
    at_most,
    format_metric,
    is_beyond_margin,
    metric_formats,
)
from evalpipe.analysis.result import ArmValue, MetricResult
from evalpipe.analysis.settings import CORRECTED
from evalpipe.report.terms import (
    DIRECTIONS,
    FINDING_WORDS,
    FINDINGS,
    GROUPS,
    NOT_MEASURED,
    ROLE_MEANINGS,
    ROLES,
    status_note,
    status_words,
)
from evalpipe.text import (
    MISSING,
    NBSP,
    format_count,
    format_counted,
    format_p,
    format_percent,
    full_sentence,
    number_format,
    together,
)

FROM_EVEN = "from an even split"
LATER_TURNS = "win_rate_later_turns"


def is_measured(metric: MetricResult) -> bool:
    """Whether either arm has a single observation of it, from a source that can measure it."""
    if metric.status == "not_measured":
        return False
    return metric.control.n > 0 or metric.treatment.n > 0 or metric.difference is not None


def is_win_rate(metric: MetricResult) -> bool:
    """Whether it is a win rate: its difference is taken from an even split, not from control."""
    return metric.name in {"win_rate", LATER_TURNS, CORRECTED}


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
    """A row of the decision table.

    `difference` and `interval` are on the scale the decision uses, and both missing where nothing can be concluded: a number
    without a valid interval is not shown. `aside`: what the difference is taken from, where that is not control. `footnote`:
    which requests the row is about, where that is not all of them; `mark`: its superscript number beside the label.
    """

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
    footnote: str
    finding: str
    finding_word: str
    finding_note: str
    effect: Effect | None
    facts: list[Fact]
    how_to_read: str
    note: str
    raw: MetricResult
    mark: str = ""

    @property
    def marked_label(self) -> str:
        """The label with the mark of its footnote, for plain text."""
        return f"{self.label}{self.mark}"

    @property
    def numbers(self) -> list[tuple[str, float | None]]:
        """The numbers of the row as they are, for programs that read the page; none where nothing was measured."""
        m = self.raw
        numbers = {
            "control": m.control.value,
            "treatment": m.treatment.value,
            "difference": m.difference,
            "ci-low": m.ci_low,
            "ci-high": m.ci_high,
        }
        return [(name, value) for name, value in numbers.items() if value is not None and m.status != "not_measured"]

    @property
    def is_beyond_margin(self) -> bool:
        """Whether a loss beyond the margin is shown."""
        return self.finding == "worse" and is_beyond_margin(self.raw)

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
    if point is None or metric.status in {"no_data", "missing_arm", "not_measured"}:
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


def metric_row(metric: MetricResult, *, turns: str | None = None) -> MetricRow:
    """The row of a metric.

    Args:
        turns: what the win rate is about, where that is worth a word ("first turns").
    """
    shown = format_metric(metric)
    known = metric.status != "not_measured"
    none = none_seen(metric)
    finding = metric.finding if metric.finding in FINDINGS and known else "undefined"
    concluded = finding != "undefined"
    return MetricRow(
        name=metric.name,
        label=metric.label or metric.name,
        group=GROUPS.get(metric.group, metric.group),
        role=ROLES.get(metric.role, metric.role),
        margin=f"margin{NBSP}{margin_text(metric)}" if metric.margin > 0 else "no margin",
        control=shown.control if known else MISSING,
        control_n=_count_text(metric.control, metric.unit) if known else "",
        treatment=shown.treatment if known else MISSING,
        treatment_n=_count_text(metric.treatment, metric.unit) if known else "",
        difference=("none seen" if none else shown.difference) if concluded else MISSING,
        interval=(f"up to {none}" if none else shown.interval) if concluded else MISSING,
        aside=FROM_EVEN if concluded and is_win_rate(metric) else "",
        footnote=_footnote(metric, turns) if known else "",
        finding=finding,
        finding_word=FINDING_WORDS[finding] if known else NOT_MEASURED,
        finding_note=_finding_note(metric, finding) if known else "",
        effect=effect_of(metric) if concluded else None,
        facts=_facts(metric, shown, concluded=concluded) if known else _role_facts(metric),
        how_to_read=_how_to_read(metric, shown, finding),
        note=full_sentence(metric.note or ""),
        raw=metric,
    )


def none_seen(metric: MetricResult) -> str:
    """The share of the treatment's requests that would still be compatible ("1.8 %"), where an event occurred in neither arm;
    "" otherwise."""
    limit = metric.treatment.ci_high
    if metric.unit != "ratio" or metric.control.numerator != 0 or metric.treatment.numerator != 0 or not limit:
        return ""
    return together(at_most(limit))


def _footnote(metric: MetricResult, turns: str | None) -> str:
    """Which requests the row is about: what was left out of it, what is unknown of the rest, how users are counted."""
    if metric.status == "missing_differs" and metric.note:
        return full_sentence(metric.note)  # the same with the line that mends it
    parts = []
    if metric.kinds_left_out:
        kinds = ", ".join(" ".join(kind.split()) for kind in metric.kinds_left_out)
        share = format_percent(metric.share_left_out, 1)
        parts.append(
            f"left out in both arms: {kinds} ({share} of the requests), whose values one arm mostly does not report"
        )
    if metric.missing_control or metric.missing_treatment:
        control, treatment = (format_percent(share, 1) for share in (metric.missing_control, metric.missing_treatment))
        parts.append(f"the value is unknown in {control} of control's and {treatment} of the treatment's requests")
    if metric.name == LATER_TURNS and metric.n:
        parts.append("the users of these turns replied to control's answers, so the row informs and does not decide")
    if is_win_rate(metric) and metric.n:
        parts += _users_counted(metric, turns)
    return full_sentence("; ".join(parts)) if parts else ""


def _users_counted(metric: MetricResult, turns: str | None) -> list[str]:
    """That a win rate counts each user once, where that differs from counting pairs; and the turns it is about."""
    parts = [turns] if turns and metric.name != LATER_TURNS else []
    if metric.name == CORRECTED:
        labels, users = format_counted(metric.n, "label"), format_counted(metric.n_clusters, "user")
        return [*parts, f"the judge's win rate corrected by {labels} of {users}, each user counted once"]
    if metric.n_clusters and metric.n_clusters != metric.n:
        pairs, users = format_counted(metric.n, "judged pair"), format_counted(metric.n_clusters, "user")
        parts.append(f"each user counted once ({pairs} of {users})")
        if metric.value_over_pairs is not None:
            parts.append(f"over these pairs {metric_formats(metric).values.value(metric.value_over_pairs)}")
    return parts


def margin_text(metric: MetricResult) -> str:
    """The margin in words: "10 % of control's value", "0.5 points"."""
    if metric.margin <= 0:
        return "none: any loss that is shown counts"
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
    return "loss exceeds margin" if is_beyond_margin(metric) else "loss may exceed margin"


def _whose(metric: MetricResult, words: str) -> str:
    """Which users are meant: a cost per good answer has a value only for those who got one."""
    return words.replace("with values", "with a good answer") if metric.name == "cost_per_ok_answer_usd" else words


def _role_facts(metric: MetricResult) -> list[Fact]:
    role, meaning = ROLES.get(metric.role, metric.role), ROLE_MEANINGS.get(metric.role)
    direction = DIRECTIONS.get(metric.direction, "")
    return [
        Fact(name="Role", text=f"{role}{f' ({meaning})' if meaning else ''}; {direction}"),
        Fact(
            name="Margin",
            text=f"{margin_text(metric)}{' (the default)' if metric.default_margin and metric.margin > 0 else ''}",
        ),
    ]


def _facts(metric: MetricResult, shown: FormattedMetric, *, concluded: bool) -> list[Fact]:
    formats = metric_formats(metric)
    users = format_counted(metric.n_clusters, "user")
    facts = [
        *_role_facts(metric),
        Fact(name="Observations", text=f"{format_count(metric.n)} from {users}"),
        Fact(name="Method", text=metric.method or MISSING),
        Fact(name="p-value", text=format_p(metric.p_value if concluded else None)),
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
        facts.append(Fact(name="Seen so far", text=f"{shown.difference}, without a valid interval"))
    elif concluded and none_seen(metric):
        facts.append(Fact(name="Difference", text=f"{shown.difference} ({shown.interval})"))
    elif concluded and metric.relative is not None and metric.ci_low is not None:
        own = f"{formats.difference.difference(metric.difference)} ({formats.difference.interval(metric.ci_low, metric.ci_high)})"
        facts.append(Fact(name="Difference in its own unit", text=own))
    for arm, value in (("Control alone", metric.control), ("Treatment alone", metric.treatment)):
        if value.ci_low is not None and value.ci_high is not None:
            values = formats.values
            text = f"{values.value(value.value)} ({values.value_interval(value.ci_low, value.ci_high)})"
            facts.append(Fact(name=arm, text=text))
    if metric.expected_more_requests is not None:
        unit = "more judged pair" if is_win_rate(metric) else "more request"
        unit = "more label" if metric.name == CORRECTED else unit
        text = f"about {format_counted(metric.expected_more_requests, unit)} at the present noise"
        facts.append(Fact(name="To settle it", text=text))
    return facts


def _how_to_read(metric: MetricResult, shown: FormattedMetric, finding: str) -> str:
    """One or two sentences for people who have never read an interval."""
    subject = (metric.label or metric.name)[:1].lower() + (metric.label or metric.name)[1:]
    if metric.status == "not_measured":
        return f"The source of this log does not measure {subject}, so it decides nothing."
    if finding == "undefined":
        return f"Nothing can be concluded on {subject}: {_whose(metric, status_words(metric.status))}."
    against = "an even split" if is_win_rate(metric) else "control"
    seen = f"Against {against}, the treatment's {subject} differs by {shown.difference}; "
    seen += f"values from {shown.interval} are compatible with the data."
    none = none_seen(metric)
    if metric.unit == "ratio" and metric.control.numerator == 0 and metric.treatment.numerator == 0:
        seen = f"It occurred in neither arm; values from {shown.interval} are compatible with the data."
    if none:
        seen = f"It occurred in neither arm; up to {none} would be compatible. The difference is {shown.interval}."
    ends = {
        "better": "The whole interval lies on the better side of zero.",
        "worse": "The whole interval lies on the worse side of zero.",
        "equivalent": f"The whole interval lies within the margin of {margin_text(metric)} on both sides: "
        "whatever difference there is, it is too small to matter.",
        "inconclusive": "The interval includes zero: these data do not show either arm to be better.",
    }[finding]
    if metric.margin > 0 and finding in {"inconclusive", "worse"}:
        ruled = "ruled out" if metric.non_inferior else "shown" if is_beyond_margin(metric) else "not ruled out"
        ends += f" A loss larger than the margin of {margin_text(metric)} is {ruled}."
    return f"{seen} {ends}"
