"""One look of an experiment as its JSON keeps it, and what changed between two of them. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from evalpipe.analysis.result import Analysis, Decision, Funnel, MetricResult
from evalpipe.analysis.wording import metric_formats
from evalpipe.report.arms import arm_names
from evalpipe.report.labels import RECOMMENDATIONS
from evalpipe.text import NBSP, format_count, format_instant, within_sentence

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
