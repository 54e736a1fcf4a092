"""Checks of who the traffic comes from: units that do not look like users, and requests that one arm alone can answer."""

from __future__ import annotations

from typing import Final

from evalpipe.analysis.checks import WARN, CheckFunction, Evidence
from evalpipe.analysis.connection import Connection, rows
from evalpipe.analysis.result import Check
from evalpipe.core.traffic_shape import Finding, UnitCounts, client_name, uncopied_findings, unit_findings

MAX_READ: Final = 20_000
"""requests whose `meta` is read"""


def units_found(connection: Connection, experiment: str) -> list[Finding]:
    """What is unusual about the units of the requests that a collector served. Empty where nothing is, or none was."""
    found = rows(
        connection,
        "WITH served AS (SELECT coalesce(unit_id, conversation_id) AS unit, conversation_id AS talk, "
        "json_extract_string(meta, '$.unit_source') AS source FROM exchanges WHERE experiment = ? AND role = 'served' "
        f"AND NOT coalesce(forced, false) AND json_valid(meta) LIMIT {MAX_READ}), "
        "units AS (SELECT unit, source = 'conversation' AS unnamed, count(*) AS n, count(DISTINCT talk) AS talks FROM served "
        "WHERE source IS NOT NULL GROUP BY ALL) "
        "SELECT coalesce(sum(n), 0) AS n, coalesce(sum(n) FILTER (unnamed), 0) AS unnamed, "
        "count(*) FILTER (NOT unnamed) AS units, count(*) FILTER (NOT unnamed AND n = 1) AS single, "
        "count(*) FILTER (NOT unnamed AND n > 1 AND talks = 1) AS one, coalesce(max(n), 0) AS largest FROM units",
        [experiment],
    )[0]
    return unit_findings(
        UnitCounts(
            n_requests=int(found["n"]),
            n_unnamed=int(found["unnamed"]),
            n_units=found["units"],
            n_single=found["single"],
            n_of_one_conversation=found["one"],
            largest=found["largest"],
        )
    )


def uncopied_found(connection: Connection, experiment: str) -> list[Finding]:
    """Clients of whose requests a large share cannot be given to the treatment, and why."""
    chosen = "FROM exchanges WHERE experiment = ? AND role = 'served' AND shadow_status"
    if not rows(connection, f"SELECT 1 {chosen} = 'not_shadowable' LIMIT 1", [experiment]):
        return []
    found = rows(
        connection,
        "SELECT agent, reason, count(*) AS n FROM (SELECT "
        "CASE WHEN json_valid(meta) THEN json_extract_string(meta, '$.request_headers.\"user-agent\"') END AS agent, "
        "CASE WHEN shadow_status = 'not_shadowable' THEN coalesce(shadow_reason, 'unknown') END AS reason "
        f"FROM exchanges WHERE experiment = ? AND role = 'served' LIMIT {MAX_READ}) GROUP BY ALL",
        [experiment],
    )
    clients: dict[str, dict[str | None, int]] = {}
    for row in found:
        reasons = clients.setdefault(client_name(row["agent"]), {})
        reasons[row["reason"]] = reasons.get(row["reason"], 0) + row["n"]
    return uncopied_findings(clients)


def units(evidence: Evidence) -> Check | None:
    """Units that look like sessions or single requests, one that holds most, and traffic that names no user."""
    found = units_found(evidence.connection, evidence.experiment)
    if not found:
        return None
    detail = "; ".join(finding.detail for finding in found)
    return Check(name="units", status=WARN, detail=detail, remedy=found[0].remedy)


def uncopied(evidence: Evidence) -> Check | None:
    """The share of a client's requests that cannot be given to the treatment, and why."""
    found = uncopied_found(evidence.connection, evidence.experiment)
    if not found:
        return None
    detail = "; ".join(finding.detail for finding in found)
    return Check(name="uncopied", status=WARN, detail=detail, remedy=found[0].remedy)


CHECKS: list[CheckFunction] = [units, uncopied]
