"""The decision as an object, for programs and notebooks: the same as `evalpipe gate`'s."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup, escape

from evalpipe.analysis.metric_formatting import format_metric
from evalpipe.analysis.result import Analysis, Horizon, MetricResult
from evalpipe.report.sanitize import escape_invisible
from evalpipe.report.terms import FINDING_WORDS, RECOMMENDATIONS, ROLES
from evalpipe.report.text import gate_lines
from evalpipe.text import printable
from evalpipe.workspace.decide import exit_code, verdict_and_analysis
from evalpipe.workspace.paths import Workspace


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricDecision:
    """A metric that decides.

    Attributes:
        role: primary | benefit | guardrail.
        control, treatment, difference: in the metric's unit; the difference is treatment − control. None: not known, never 0.
        ci_low, ci_high: of the difference, at `confidence_level`.
        finding: better | equivalent | worse | inconclusive | undefined.
        status: "ok", or why there is no finding.
        non_inferior: shown not to be worse than its margin.
        texts: the same as people read them: control, treatment, difference, interval.
    """

    name: str
    label: str
    role: str
    unit: str
    control: float | None
    treatment: float | None
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    confidence_level: float
    finding: str
    status: str
    non_inferior: bool | None
    texts: tuple[str, str, str, str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What `evalpipe gate` decides.

    Attributes:
        recommendation: ship | keep | collect_more | invalid.
        headline: one sentence.
        reasons: sentences, the most important first.
        rule: the rule that led to it.
        metrics: those that decide, with their intervals.
        horizon: how much longer until it is decided; None where no more is needed, or no forecast is possible.
        decided_at: ISO 8601 instant of a decision that is in force.
        exit_code: of `evalpipe gate`: 0 ship, 10 keep, 11 collect_more, 12 invalid.
    """

    experiment: str
    recommendation: str
    headline: str
    reasons: tuple[str, ...]
    rule: str
    metrics: tuple[MetricDecision, ...]
    horizon: Horizon | None
    decided_at: str | None
    exit_code: int
    _document: dict[str, Any] = field(repr=False, compare=False)

    def __str__(self) -> str:
        return "\n".join(printable(line) for line in gate_lines(self._document))

    def to_dict(self) -> dict[str, Any]:
        """What `evalpipe gate --json` prints, JSON-ready."""
        return copy.deepcopy(self._document)

    def _repr_html_(self) -> str:
        rows = Markup("").join(map(_row, self.metrics))
        return str(
            _PAGE.format(
                word=RECOMMENDATIONS.get(self.recommendation, self.recommendation),
                experiment=_shown(self.experiment),
                headline=_shown(self.headline),
                reasons=Markup("").join(Markup("<li>{}</li>").format(_shown(reason)) for reason in self.reasons),
                table=_TABLE.format(rows=rows, level=_level(self.metrics)) if self.metrics else "",
            )
        )


_PAGE = Markup(
    "<section><p><strong>{word}</strong> · <bdi>{experiment}</bdi></p><p><bdi>{headline}</bdi></p><ul>{reasons}</ul>"
    "{table}</section>"
)
_TABLE = Markup(
    "<table><thead><tr><th>metric</th><th>role</th><th>control</th><th>treatment</th><th>difference</th><th>{level}interval</th>"
    "<th>finding</th></tr></thead><tbody>{rows}</tbody></table>"
)
_ROW = Markup(
    "<tr><th><bdi>{label}</bdi></th><td>{role}</td><td>{control}</td><td>{treatment}</td><td>{difference}</td><td>{interval}</td>"
    "<td>{finding}</td></tr>"
)


def _row(metric: MetricDecision) -> Markup:
    control, treatment, difference, interval = map(_shown, metric.texts)
    return _ROW.format(
        label=_shown(metric.label),
        role=ROLES.get(metric.role, metric.role),
        control=control,
        treatment=treatment,
        difference=difference,
        interval=interval,
        finding=FINDING_WORDS.get(metric.finding, metric.finding),
    )


def _shown(text: str) -> Markup:
    return escape(escape_invisible(text))


def _level(metrics: Sequence[MetricDecision]) -> str:
    levels = {metric.confidence_level for metric in metrics}
    return f"{100 * levels.pop():g} % " if len(levels) == 1 else ""


def decide(
    workspace: Workspace,
    *,
    experiment: str | None = None,
    judge: str | None = None,
    since: str | None = None,
    until: str | None = None,
    where: str | None = None,
) -> Decision:
    """The decision as of now. It is a look, as `evalpipe gate` is: it goes on the experiment's record and, where it is about the
    whole of the workspace's experiment, into data/verdict.json.

    Args:
        experiment: the one named, else the workspace's, else the only one that is loaded.
        judge: the judge that decides; None: the first configured.
        since, until, where: select requests, as the command's options do.

    Raises:
        ConfigError: for an experiment without data, or an unknown judge.
    """
    document, analysis = verdict_and_analysis(
        workspace, experiment=experiment, judge=judge, since=since, until=until, where=where
    )
    return Decision(
        experiment=document["experiment"],
        recommendation=document["recommendation"],
        headline=document["headline"],
        reasons=tuple(document["reasons"]),
        rule=document["rule"],
        metrics=_metrics(document, analysis),
        horizon=None if document["horizon"] is None else Horizon(**document["horizon"]),
        decided_at=document["decided_at"],
        exit_code=exit_code(document),
        _document=document,
    )


def _metrics(document: dict[str, Any], analysis: Analysis | None) -> tuple[MetricDecision, ...]:
    results: dict[str, MetricResult] = {} if analysis is None else {one.name: one for one in analysis.metrics}
    found = []
    for one in document["metrics"]:
        result = results[one["name"]]
        shown = format_metric(result)
        texts = (shown.control, shown.treatment, shown.difference, shown.interval)
        found.append(
            MetricDecision(
                **one,
                unit=result.unit,
                confidence_level=result.confidence_level,
                texts=texts if result.status != "not_measured" else ("–", "–", "–", "–"),
            )
        )
    return tuple(found)
