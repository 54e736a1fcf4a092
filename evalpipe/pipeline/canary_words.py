"""A canary's status and history as lines and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec

from evalpipe.core.canary import CanaryEvent
from evalpipe.pipeline.canary import Status


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def event_line(event: CanaryEvent) -> str:
    state = event.state
    return (
        f"{_when(event.at)}  {event.action:12} {state.percentage:6g} %  {state.status:12} by {event.who}: {event.why}"
    )


def event_document(event: CanaryEvent) -> dict[str, Any]:
    return {
        "seq": event.seq,
        "at": _when(event.at),
        "who": event.who,
        "action": event.action,
        "why": event.why,
        "status": event.state.status.value,
        "percentage": event.state.percentage,
        "stage": event.state.stage + 1,
    }


def status_document(status: Status) -> dict[str, Any]:
    """One JSON document; `stage` counts from 1, 0 before the first."""
    state, evaluation = status.state, status.evaluation
    return {
        "experiment": status.experiment,
        "status": state.status.value,
        "percentage": state.percentage,
        "stage": state.stage + 1,
        "n_stages": len(status.stages),
        "entered_at": _when(state.entered_at) if state.entered_at else None,
        "watched": status.watched,
        "history_lost": status.loss,
        "evaluated_at": _when(evaluation.at) if evaluation else None,
        "watched_s": evaluation.watched_s if evaluation else None,
        "n_control": evaluation.n_control if evaluation else None,
        "n_treatment": evaluation.n_treatment if evaluation else None,
        "guardrails": [msgspec.to_builtins(verdict) for verdict in evaluation.verdicts] if evaluation else [],
        "last_change": event_document(status.event) if status.event else None,
    }


def status_lines(status: Status) -> Iterator[str]:
    state, evaluation = status.state, status.evaluation
    where = f"stage {state.stage + 1} of {len(status.stages)}" if state.stage >= 0 else "no stage"
    yield f"{status.experiment}: {state.status}, {state.percentage:g} % treatment, {where}"
    if status.loss is not None:
        why = status.loss.split("; `evalpipe")[0]
        yield f"  history lost: {why}; users get control until `evalpipe canary reset` starts over"
    if status.event is not None:
        yield f"  since {_when(status.event.at)} by {status.event.who}: {status.event.why}"
    if not status.watched:
        yield "  nobody watches: start `evalpipe canary run` or `evalpipe collect`"
    if evaluation is None:
        return
    needed = status.stages[state.stage].duration_s if 0 <= state.stage < len(status.stages) else 0.0
    yield (
        f"  watched {evaluation.watched_s:.0f} s of {needed:.0f} s; requests: {evaluation.n_treatment} treatment, "
        f"{evaluation.n_control} control"
    )
    for verdict in evaluation.verdicts:
        yield f"  {verdict.status:9} {verdict.kind:10} {verdict.note}"
