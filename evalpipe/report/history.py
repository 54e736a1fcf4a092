"""An experiment's looks: one as its JSON keeps it, what changed between two, and the page of its history. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import msgspec

from evalpipe.analysis.metric_formatting import metric_formats
from evalpipe.analysis.result import Analysis, Decision, Funnel, Horizon, MetricResult
from evalpipe.report.charts.history import LookPoint, ribbon_chart
from evalpipe.report.decision import exclusion_text, headline_of, readable
from evalpipe.report.figures import Figure
from evalpipe.report.metrics import is_win_rate, sign
from evalpipe.report.terms import RECOMMENDATIONS, arm_names
from evalpipe.text import (
    NBSP,
    NumberFormat,
    format_count,
    format_day,
    format_instant,
    full_sentence,
    percent_format,
    sentence_case,
    within_sentence,
)

FINAL = frozenset({"ship", "keep"})
_EVENTS = {
    "reached": "the same decision reached anew",
    "undone": "the decision undone",
    "set": "what decides changed",
}
"""a change of the record that left the recommendation as it was"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LookJudge:
    """A judge of a look."""

    name: str
    simulated: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What the history needs of a report's JSON; the rest of it is not read."""

    experiment: str
    mode: str
    generated_at: str
    provenance: dict[str, Any]
    funnel: Funnel
    metrics: list[MetricResult]
    decision: Decision
    exclusions: list[dict[str, Any]] = field(default_factory=list)
    judges: list[LookJudge] = field(default_factory=list)

    @property
    def deciding(self) -> list[MetricResult]:
        """The metrics that decide, goals first."""
        order = ("primary", "benefit", "guardrail")
        return sorted((one for one in self.metrics if one.role in order), key=lambda one: order.index(one.role))

    @property
    def data(self) -> str | None:
        """The fingerprint of the stored files it is about."""
        data = self.provenance.get("data")
        return str(data.get("fingerprint")) if isinstance(data, dict) else None

    @property
    def is_simulated(self) -> bool:
        """Whether a simulated judge's verdicts feed anything of it."""
        return bool(self.provenance.get("simulated_judge")) or any(judge.simulated for judge in self.judges)

    @property
    def title(self) -> str:
        """The recommendation with the models' names."""
        return arm_names(self.provenance).title(self.decision.recommendation)


def look_of(analysis: Analysis) -> Look:
    return Look(
        experiment=analysis.experiment,
        mode=analysis.mode,
        generated_at=analysis.generated_at,
        provenance=analysis.provenance,
        funnel=analysis.funnel,
        metrics=analysis.metrics,
        decision=analysis.decision,
        exclusions=analysis.exclusions,
        judges=[LookJudge(name=judge.name, simulated=judge.simulated) for judge in analysis.judges],
    )


def read_look(data: bytes) -> Look:
    """The look of a report's JSON. Raises `msgspec.DecodeError` where it is not one."""
    return msgspec.json.decode(data, type=Look)


def is_change(before: Look | None, now: Look) -> bool:
    """Whether the decision became another one, was reached or undone at this look."""
    if before is None:
        return now.decision.recommendation in FINAL
    if before.decision.recommendation != now.decision.recommendation:
        return True
    return len(now.decision.changes) > len(before.decision.changes)


def since_last(before: Look, now: Look) -> str:
    """What changed, in a line: "+1,204 pairs, win rate 53.1 → 54.0 %, decision unchanged"."""
    more = now.funnel.pairs - before.funnel.pairs
    count = f"{'+' if more > 0 else ''}{format_count(more)}{NBSP}{'pair' if abs(more) == 1 else 'pairs'}"
    parts = [count if more else "no new pairs", _moved(before, now), _decided(before, now)]
    return ", ".join(part for part in parts if part)


def since_sentence(before: Look, now: Look) -> str:
    """The line of the report's first screen."""
    return f"Since the report of {format_instant(before.generated_at)}: {since_last(before, now)}."


def _moved(before: Look, now: Look) -> str:
    """The first metric that decides and has values at both looks."""
    then = {one.name: one for one in before.metrics}
    for metric in now.deciding:
        old, new = then.get(metric.name), metric.treatment.value
        if old is not None and old.treatment.value is not None and new is not None and metric.status != "not_measured":
            values = metric_formats(metric).values
            start, end = values.value(old.treatment.value), values.value(new)
            if values.suffix and start.endswith(values.suffix):
                start = start.removesuffix(values.suffix)  # the unit once
            return f"{within_sentence(metric.label)} {start} → {end}"
    return ""


def _decided(before: Look, now: Look) -> str:
    old, new = before.decision.recommendation, now.decision.recommendation
    if old != new:
        return f"decision changed from “{RECOMMENDATIONS.get(old, old)}” to “{RECOMMENDATIONS.get(new, new)}”"
    later = now.decision.changes[len(before.decision.changes) :]
    return _EVENTS.get(later[-1].event, "decision changed") if later else "decision unchanged"


FOLD_AFTER = 14
"""looks that are listed at once; older ones are folded"""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptLook:
    """A look and its page: a relative address, "" where only the JSON is kept."""

    look: Look
    href: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class LookRow:
    """A look in the list. `since`: what changed to the look before, "" for the first one."""

    when: str
    recommendation: str
    recommendation_word: str
    since: str
    pairs: str
    href: str
    is_change: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that happened to the experiment: a decision, an exclusion, a change of what decides."""

    when: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryView:
    """`latest`: the address of the latest report; `rows`, newest first; `older`, likewise, folded."""

    experiment: str
    title: str
    headline: str
    since: str
    expected: str
    latest: str
    rows: list[LookRow]
    older: list[LookRow]
    figures: list[Figure]
    events: list[Event]


def history_view(kept: Sequence[KeptLook], *, latest: str) -> HistoryView:
    """The view of a history; texts may hold anything and are escaped where they are shown.

    Args:
        kept: oldest first, at least one.
        latest: relative address of the latest report.
    """
    looks = [one.look for one in kept]
    last = looks[-1]
    rows = [_row(one, before.look if before else None) for before, one in zip([None, *kept], kept, strict=False)][::-1]
    return HistoryView(
        experiment=last.experiment,
        title=last.title,
        headline=headline_of(last.decision),
        since=sentence_case(rows[0].since),
        expected=expected(last),
        latest=quote(latest),
        rows=rows[:FOLD_AFTER],
        older=rows[FOLD_AFTER:],
        figures=[figure for metric in last.deciding if (figure := _figure(metric, looks)) is not None],
        events=_events(last),
    )


def expected(look: Look) -> str:
    """When a decision is to be expected, in a few words."""
    decision = look.decision
    if decision.recommendation == "invalid":
        return "no decision before the problem is corrected"
    if decision.recommendation in {"ship", "keep"}:
        return f"decided{f' {format_day(decision.decided_at)}' if decision.decided_at else ''}"
    horizon = decision.horizon
    if horizon is None:
        return "no forecast yet"
    if not horizon.requests:
        return "decision expected from the requests in the log"
    return f"decision expected {_about_when(look, horizon)}"


def _about_when(look: Look, horizon: Horizon) -> str:
    requests = f"{format_count(horizon.requests)} more requests"
    made = _instant(look.generated_at)
    if horizon.days is None or made is None or horizon.days > 3650:
        return f"after about {requests}"
    return f"about {format_day((made + timedelta(days=horizon.days)).isoformat())} ({requests})"


def _row(kept: KeptLook, before: Look | None) -> LookRow:
    look = kept.look
    recommendation = look.decision.recommendation
    return LookRow(
        when=format_instant(look.generated_at),
        recommendation=recommendation,
        recommendation_word=RECOMMENDATIONS.get(recommendation, recommendation),
        since="" if before is None else since_last(before, look),
        pairs=format_count(look.funnel.pairs),
        href=quote(kept.href),
        is_change=is_change(before, look),
    )


def _events(last: Look) -> list[Event]:
    """Decisions and exclusions, oldest first."""
    words = {"reached": "decided", "undone": "undone", "set": "what decides changed"}
    found = []
    for change in last.decision.changes:
        what = RECOMMENDATIONS.get(change.recommendation or "", "")
        text = f"{sentence_case(words.get(change.event, change.event))}{f': {what}' if what else ''}."
        why = " ".join(readable(change.why).split())
        if what and why.lower().startswith(f"{what.lower()}: "):
            why = why[len(what) + 2 :]
        repeated = why.lower().startswith("what decides changed") and not what
        found.append((change.at, full_sentence(why) if repeated else f"{text} {full_sentence(why)}".strip()))
    found += [(str(entry.get("declared_at", "")), f"Excluded: {exclusion_text(entry)}.") for entry in last.exclusions]
    return [Event(when=format_instant(at), text=text) for at, text in sorted(found, key=lambda one: one[0])]


def _figure(metric: MetricResult, looks: Sequence[Look]) -> Figure | None:
    """A metric over the looks, on the scale the decision uses; a win rate as itself."""
    relative = metric.scale == "relative" and metric.relative is not None
    center = 0.5 if is_win_rate(metric) else 0.0
    points = [_point(look, metric, relative=relative, center=center) for look in looks]
    scale = _scale(metric, relative=relative)
    last = looks[-1]
    figure = ribbon_chart(
        [point for point in points if point is not None],
        center=center,
        margin=center - sign(metric.direction) * metric.margin if metric.margin > 0 else None,
        show=scale.value if is_win_rate(metric) else scale.difference,
        excluded=[period for entry in last.exclusions if (period := _period(entry)) is not None],
        changes=[at.timestamp() for change in last.decision.changes if (at := _instant(change.at)) is not None],
        title=f"{metric.label} over the looks",
        description=_description(metric, points[-1], scale),
    )
    if figure is None:
        return None
    return Figure(
        title=f"{metric.label}{'' if is_win_rate(metric) else ': treatment against control'}",
        picture=figure,
        caption=_description(metric, points[-1], scale),
    )


def _description(metric: MetricResult, last: LookPoint | None, scale: NumberFormat) -> str:
    if last is None or last.value is None:
        return "At the last look there was no value."
    if is_win_rate(metric):
        value, interval = scale.value(last.value), scale.value_interval(last.low, last.high)
    else:
        value, interval = scale.difference(last.value), scale.interval(last.low, last.high)
    return f"At the last look {value}{f' ({interval})' if last.low is not None and last.high is not None else ''}."


def _point(look: Look, metric: MetricResult, *, relative: bool, center: float) -> LookPoint | None:
    at = _instant(look.generated_at)
    if at is None:
        return None
    found = next((one for one in look.metrics if one.name == metric.name), None)
    if found is None or found.finding == "undefined" or found.status == "not_measured":
        return LookPoint(at=at.timestamp(), low=None, value=None, high=None)
    if relative:
        low, value, high = found.relative_low, found.relative, found.relative_high
    else:
        low, value, high = (
            None if one is None else one + center for one in (found.ci_low, found.difference, found.ci_high)
        )
    return LookPoint(at=at.timestamp(), low=low, value=value, high=high)


def _scale(metric: MetricResult, *, relative: bool) -> NumberFormat:
    formats = metric_formats(metric)
    if is_win_rate(metric):
        return formats.values
    return percent_format(0.1) if relative else formats.difference


def _period(entry: dict[str, object]) -> tuple[float, float] | None:
    since, until = _instant(str(entry.get("since", ""))), _instant(str(entry.get("until", "")))
    return None if since is None or until is None else (since.timestamp(), until.timestamp())


def _instant(text: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at
