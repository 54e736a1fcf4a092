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
from evalpipe.providers.registry import read_request
from evalpipe.text import cut_middle

MAX_CHARACTERS = 6000
MAX_MESSAGES = 40
LATEST = 100_000
"""of larger logs, examples are taken from the latest requests only: texts are then read from a few row groups"""
MARGIN_US = 60_000_000
"""a copy's clock may run behind its request's"""
MAX_REQUEST = 400_000
"""characters of a request's JSON that are read as messages; a longer one shows its prompt as text"""

KINDS = """CASE
  WHEN control_failed OR treatment_failed THEN 'arm_failed'
  WHEN v.x IS NULL THEN 'unjudged'
  WHEN v.s_t IS NOT NULL AND v.s_c IS NOT NULL AND (v.s_t - 0.5) * (v.s_c - 0.5) < 0 THEN 'judge_contradicted'
  WHEN v.x > 0.5 THEN 'treatment_won' WHEN v.x < 0.5 THEN 'treatment_lost' ELSE 'tie' END"""


def select_examples(
    connection: Connection, prepared: Prepared, settings: Settings, *, experiment: str, judge: JudgeSummary | None
) -> list[Example]:
    """Up to `settings.n_examples` of each kind, chosen by hash: the same ones every time, and no cherries picked."""
    if not prepared.paired:
        return []
    name, fingerprint = (judge.name, judge.fingerprint) if judge else ("", "")
    n_requests = prepared.n_rows // 2
    since_us = scalar(
        connection, "SELECT quantile_disc(at_us, ?) FROM ev_ids", [max(0.0, 1 - LATEST / max(1, n_requests))]
    )
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE ev_examples AS
        SELECT id, kind, x FROM (
          SELECT i.id, {KINDS} AS kind, v.x FROM ev_ids i
          LEFT JOIN (SELECT * FROM ev_verdicts WHERE judge = ? AND fingerprint = ?) v USING (id)
          WHERE control_attempted AND treatment_attempted AND i.at_us >= {since_us}
        ) QUALIFY row_number() OVER (PARTITION BY kind ORDER BY hash(id)) <= ?""",
        [name, fingerprint, settings.n_examples],
    )
    half = MAX_CHARACTERS // 2
    found = rows(
        connection,
        f"""
        SELECT e.kind, e.x, x.request_id, x.arm, x.unit_id, epoch_us(x.started_at) AS at_us, x.endpoint, x.outcome,
          coalesce(x.error_message, x.error_type) AS error, x.finish_reason, left(x.tool_calls, {MAX_CHARACTERS}) AS tool_calls,
          x.model, x.latency_ms, x.cost_usd, x.output_tokens, greatest(length(x.text) - {MAX_CHARACTERS}, 0) AS n_cut,
          CASE WHEN length(x.text) > {MAX_CHARACTERS} THEN left(x.text, {half}) || chr(10) || '[…]' || chr(10)
            || right(x.text, {half}) ELSE x.text END AS text,
          CASE WHEN length(x.request) <= {MAX_REQUEST} THEN x.request END AS request, left(x.prompt, {MAX_CHARACTERS}) AS prompt
        FROM exchanges x JOIN ev_examples e ON hash(x.request_id) = e.id
        WHERE x.experiment = ? AND x.role <> 'replay' AND x.started_at >= ?
        ORDER BY e.kind, hash(e.id), x.request_id, x.arm""",
        [experiment, datetime.fromtimestamp((since_us - MARGIN_US) / 1e6, UTC)],
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
        prompt=_messages(control["endpoint"], control["request"], control["prompt"]),
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


def _messages(endpoint: str | None, request: str | None, prompt: str | None) -> list[dict[str, str]]:
    """The conversation as [{role, content}]; where the request cannot be read as messages, its prompt as one."""
    view = read_request(endpoint or "", request) if request else None
    if view is None or not view.messages:
        return [{"role": "user", "content": prompt or ""}]
    return [
        {"role": message["role"], "content": cut_middle(message["content"], MAX_CHARACTERS)[0]}
        for message in view.messages[-MAX_MESSAGES:]
    ]
