"""Pairs to read: where the treatment lost, won, tied, where the judge contradicted itself, where an arm failed.

Texts are cut in the database, so that an answer of megabytes never gets here.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from evalpipe.analysis.prepare import Prepared
from evalpipe.analysis.result import Example, ExampleSide
from evalpipe.analysis.settings import Settings
from evalpipe.analysis.sql import Connection, rows, scalar
from evalpipe.analysis.verdicts import JudgeSummary
from evalpipe.files import sql_statements
from evalpipe.providers.registry import read_request
from evalpipe.text import cut_middle

MAX_CHARACTERS = 6000
MAX_MESSAGES = 40
LATEST = 100_000
"""of larger logs, examples are taken from the latest requests only: texts are then read from a few row groups"""
SAMPLED = 1_000_000
"""requests by which their first instant is found"""
MARGIN_US = 60_000_000
"""a shadow request's clock may run behind its request's"""
MAX_REQUEST = 400_000
"""characters of a request's JSON that are read as messages; a longer one shows its prompt as text"""

_SQL = sql_statements("evalpipe.analysis", "examples.sql")


def select_examples(
    connection: Connection, prepared: Prepared, settings: Settings, *, experiment: str, judge: JudgeSummary | None
) -> list[Example]:
    """Up to `settings.n_examples` of each kind, chosen by hash: the same ones every time, without selection."""
    if not prepared.paired:
        return []
    name, fingerprint = (judge.name, judge.fingerprint) if judge else ("", "")
    n_requests = prepared.n_rows // 2
    every = max(1, n_requests // SAMPLED)  # ids are hashes
    since_us = scalar(
        connection,
        f"SELECT quantile_disc(at_us, ?) FROM ev_ids WHERE id % {every} = 0",
        [max(0.0, 1 - LATEST / max(1, n_requests))],
    )
    connection.execute(
        _SQL["choose"],
        {"judge": name, "fingerprint": fingerprint, "since_us": since_us, "n": settings.n_examples},
    )
    found = rows(
        connection,
        _SQL["read"],
        {
            "experiment": experiment,
            "since": datetime.fromtimestamp((since_us - MARGIN_US) / 1e6, UTC),
            "characters": MAX_CHARACTERS,
            "request_characters": MAX_REQUEST,
        },
    )
    by_request: dict[str, dict[str, dict[str, Any]]] = {}
    for row in found:
        by_request.setdefault(row["request_id"], {}).setdefault(row["arm"], row)
    verdicts = _verdicts(connection, experiment, judge, list(by_request))
    return [
        _example(request_id, arms, verdicts.get(request_id, []))
        for request_id, arms in by_request.items()
        if {"control", "treatment"} <= arms.keys()
    ]


def _verdicts(
    connection: Connection, experiment: str, judge: JudgeSummary | None, request_ids: list[str]
) -> dict[str, list[dict[str, Any]]]:
    if judge is None or not request_ids:
        return {}
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows(
        connection,
        f"""
        SELECT request_id, judge, shown_first, winner, preference, left(reasoning, {MAX_CHARACTERS}) AS reasoning, status,
          control_scores, treatment_scores
        FROM judgments WHERE experiment = ? AND judge = ? AND judge_fingerprint = ? AND list_contains(?::VARCHAR[], request_id)
        ORDER BY request_id, shown_first, repeat, attempt""",
        [experiment, judge.name, judge.fingerprint, request_ids],
    ):
        found.setdefault(row.pop("request_id"), []).append(row)
    return found


def _example(request_id: str, arms: Mapping[str, dict[str, Any]], verdicts: list[dict[str, Any]]) -> Example:
    control, treatment = arms["control"], arms["treatment"]
    scores = {side: _mean_scores(verdicts, f"{side}_scores") for side in ("control", "treatment")}
    shown = [{key: value for key, value in verdict.items() if not key.endswith("_scores")} for verdict in verdicts]
    return Example(
        request_id=request_id,
        kind=control["kind"],
        unit_id=control["unit_id"],
        started_at=datetime.fromtimestamp(control["at_us"] / 1e6, UTC).isoformat(timespec="seconds"),
        endpoint=control["endpoint"],
        prompt=messages_of(control["endpoint"], control["request"], control["prompt"]),
        control=_side(control, scores["control"]),
        treatment=_side(treatment, scores["treatment"]),
        preference=control["x"],
        verdicts=shown,
    )


def _side(row: Mapping[str, Any], scores: dict[str, float]) -> ExampleSide:
    return ExampleSide(
        text=row["text"],
        n_cut=row["n_cut"] or 0,
        outcome=row["outcome"],
        error=row["error"],
        finish_reason=row["finish_reason"],
        tool_calls=row["tool_calls"],
        model=row["model"],
        latency_ms=row["latency_ms"],
        cost_usd=row["cost_usd"],
        output_tokens=row["output_tokens"],
        scores=scores,
    )


def _mean_scores(verdicts: list[dict[str, Any]], key: str) -> dict[str, float]:
    collected: dict[str, list[float]] = {}
    for verdict in verdicts:
        for dimension, score in (verdict[key] or {}).items():
            if score is not None:
                collected.setdefault(dimension, []).append(score)
    return {dimension: sum(values) / len(values) for dimension, values in collected.items()}


def messages_of(endpoint: str | None, request: str | None, prompt: str | None) -> list[dict[str, str]]:
    """The conversation as [{role, content}]; where the request cannot be read as messages, its prompt as one."""
    view = read_request(endpoint or "", request) if request else None
    if view is None or not view.messages:
        return [{"role": "user", "content": prompt or ""}]
    return [
        {"role": message["role"], "content": cut_middle(message["content"], MAX_CHARACTERS)[0]}
        for message in view.messages[-MAX_MESSAGES:]
    ]
