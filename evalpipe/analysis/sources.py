"""What the source of the log can measure: fixed by roles, statuses and configuration, not by what happens to have happened.

Answers imported from a file carry no status unless the file has one: that none of them failed is then not a measurement, and
neither are the latencies somebody else took. What cannot be measured is listed and decides nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalpipe.analysis.connection import Connection, rows, scalar
from evalpipe.analysis.metrics import Verdict, metrics
from evalpipe.analysis.settings import Settings

FAILURES = ("error_rate", "timeout_rate")
LATENCIES = ("p50_latency_ms", "p99_latency_ms")
COSTS = ("cost_per_request_usd", "cost_per_1000_requests_usd", "cost_per_ok_answer_usd")


def find_sources(
    connection: Connection, settings: Settings, *, paired: bool, has_texts: bool = True
) -> dict[str, bool]:
    """Whether the source of the log can measure a metric, by name; a name that is missing: it can.

    Args:
        connection: after `prepare_rows` (it reads `ev_sources`).
        settings: `priced` and the judges count.
        paired: shadow mode.
        has_texts: the log has answers' texts.

    Returns:
        False for: error and timeout rate where all of an arm's rows are imported and none shows a status, a failure or a timeout
        (beside served rows such rows are left out of both rates); latencies where any row is imported; costs where an arm was
        imported without costs, or its configured model has no price; the share of empty answers where the log has no texts; in
        ab and canary mode, ratings and a pointwise judge's scores where there are none.
    """
    arms: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for row in rows(connection, "SELECT * FROM ev_sources ORDER BY treatment, imported"):
        arms[row["treatment"]].append(row)
    found: dict[str, bool] = {"empty_rate": has_texts}
    failures = all(not arm or any(not one["imported"] or one["n_with_status"] for one in arm) for arm in arms.values())
    found |= dict.fromkeys(FAILURES, failures)
    found |= dict.fromkeys(LATENCIES, not any(one["imported"] for arm in arms.values() for one in arm))
    priced = all(
        _has_costs(connection, name, arm, settings.priced.get(name))
        for arm, name in ((arms[False], "control"), (arms[True], "treatment"))
    )
    found |= dict.fromkeys(COSTS, priced)
    if not paired:
        found |= _judged(connection)
    return found


def _has_costs(connection: Connection, name: str, arm: list[dict[str, Any]], priced: bool | None) -> bool:
    """Costs come with an import, from the price of the arm's model, or from the provider."""
    if any(one["imported"] and one["n_priced"] for one in arm):
        return True
    if arm and all(one["imported"] for one in arm):
        return False
    if priced is not False:
        return True
    billed = "SELECT count(*) FROM exchanges WHERE arm = ? AND outcome = 'ok' AND cost_usd IS NOT NULL"
    return bool(scalar(connection, billed, [name]))


def _judged(connection: Connection) -> Mapping[str, bool]:
    """The goals of a split that exist only where somebody rates or a judge scores the answers."""
    scored = {row["dimension"] for row in rows(connection, "SELECT DISTINCT dimension FROM ev_scores")}
    rated = bool(scalar(connection, "SELECT count(*) FROM feedback"))
    return {
        item.name: rated if item.values.source == "rating" else item.values.source.removeprefix("dimension:") in scored
        for item in metrics()
        if isinstance(item.values, Verdict) and item.role_split == "primary"
    }
