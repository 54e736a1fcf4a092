"""The verdict of `evalpipe gate`: as JSON-ready values for programs, and in lines for a terminal or a build log."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec

from evalpipe.analysis.reasons import horizon_sentence
from evalpipe.analysis.result import Analysis, Decision, DecisionChange, Horizon, MetricResult
from evalpipe.core.format import full_sentence, readable_instants, within_sentence
from evalpipe.report.decision_view import ROLLBACK, set_sentence, undone_sentence
from evalpipe.report.words import plain

_EXCLUDE = "evalpipe exclude "


def gate_document(
    experiment: str, decision: Decision, analysis: Analysis | None, *, computed_at: str
) -> dict[str, Any]:
    """The decision for programs.

    Args:
        analysis: where it comes from; None before there are any data.
        computed_at: ISO 8601 instant.

    Returns:
        JSON-ready values. A metric that the source of the log cannot measure has no numbers: None, not 0.
    """
    metrics = [] if analysis is None else [one for one in analysis.metrics if one.role != "diagnostic"]
    horizon = decision.horizon
    return {
        "experiment": experiment,
        "recommendation": decision.recommendation,
        "headline": decision.headline,
        "reasons": decision.reasons,
        "rule": decision.rule,
        "computed_at": computed_at,
        "decided_at": decision.decided_at,
        "decided_look": decision.decided_look,
        "expected_more_requests": decision.expected_more_requests,
        "horizon": None if horizon is None else msgspec.to_builtins(horizon),
        "blocking": decision.blocking,
        "not_measured": decision.not_measured,
        "setup_faults": decision.setup_faults,
        "rollback": decision.rollback,
        "set_number": decision.set_number,
        "confidence_level": metrics[0].confidence_level if metrics else None,
        "changes": msgspec.to_builtins(decision.changes),
        "metrics": [_metric(one) for one in metrics],
        "remedies": []
        if analysis is None
        else [one.remedy for one in analysis.checks if one.status == "fail" and one.remedy],
        "damaged_files": [] if analysis is None else analysis.provenance.get("damaged_files", []),
        "failed_checks": [] if analysis is None else [one.name for one in analysis.checks if one.status == "fail"],
    }


def _metric(metric: MetricResult) -> dict[str, Any]:
    numbers: dict[str, float | None] = {
        "control": metric.control.value,
        "treatment": metric.treatment.value,
        "difference": metric.difference,
        "ci_low": metric.ci_low,
        "ci_high": metric.ci_high,
    }
    if metric.status == "not_measured":
        numbers = dict.fromkeys(numbers)
    return {
        "name": metric.name,
        "label": metric.label,
        "role": metric.role,
        "finding": metric.finding,
        "status": metric.status,
        **numbers,
        "non_inferior": metric.non_inferior,
    }


def gate_lines(document: Mapping[str, Any]) -> list[str]:
    """The verdict in lines, the headline first; texts of providers and users are on one line each.

    Args:
        document: from `gate_document`.
    """
    headline = _line(document["headline"])
    labels = {one["name"]: within_sentence(one["label"]) for one in document["metrics"]}
    changes = [msgspec.convert(one, type=DecisionChange) for one in document["changes"]]
    forecast = ""
    if document["horizon"] is not None:
        horizon = Horizon(**document["horizon"])
        named = dataclasses.replace(horizon, metric=labels.get(horizon.metric, horizon.metric))
        forecast = full_sentence(horizon_sentence(named, {}))
    lines = [headline]
    if document["rollback"]:
        lines.append(f"  {ROLLBACK}")
    for reason in map(_line, document["reasons"]):
        repeated = reason.rstrip(".").lower() in headline.lower()
        if not repeated and not (forecast and reason.startswith(_line(forecast).partition(" until ")[0])):
            lines.append(f"  - {reason}")
    printed = " ".join(lines)
    remedies = [remedy for remedy in map(_line, document["remedies"]) if not _is_printed(remedy, printed)]
    lines += [f"  Remedy: {remedy}" for remedy in remedies]
    if document["damaged_files"]:
        n = len(document["damaged_files"])
        names = ", ".join(document["damaged_files"][:3])
        lines.append(
            "  " + _line(f"Without {n} damaged stored file{'s' if n > 1 else ''} ({names}): `evalpipe doctor --data`")
        )
    if forecast:
        lines.append(f"  How much longer: {_line(forecast)}")
    if document["blocking"] and document["recommendation"] == "collect_more":
        open_ = ", ".join(labels.get(name, plain(name)) for name in document["blocking"])
        lines.append(f"  Not settled: {_line(open_)}.")
    undone = undone_sentence(changes, document["reasons"])
    if undone:
        lines.append(f"  {_line(undone)}")
    if document["set_number"] > 1:
        alpha = 1 - (document["confidence_level"] or 0.95)
        lines.append(f"  {_line(set_sentence(document['set_number'], alpha))}")
    return lines


def _is_printed(remedy: str, printed: str) -> bool:
    """Whether the lines before hold a remedy's command: the text of a set-up fault does."""
    _, command, arguments = remedy.partition(_EXCLUDE)
    return bool(command) and f"{command}{arguments.rstrip('.')}" in printed


def _line(text: str) -> str:
    return " ".join(readable_instants(text).split())
