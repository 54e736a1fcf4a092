"""From requests to verdicts: how many there were at each step, and why the rest fell out."""

from __future__ import annotations

from evalpipe.analysis.connection import Connection, rows, scalar
from evalpipe.analysis.prepare import Prepared
from evalpipe.analysis.result import Funnel
from evalpipe.analysis.verdicts import JudgeSeen


def count_funnel(connection: Connection, *, experiment: str, prepared: Prepared, judge: JudgeSeen | None) -> Funnel:
    """requests = pairs + Σ exclusions, exactly (shadow mode); in ab and canary mode a served exchange is a request and
    there are no pairs."""
    outcomes: dict[str, dict[str, int]] = {"control": {}, "treatment": {}}
    for row in rows(
        connection,
        "SELECT arm, outcome, count(*) AS n FROM exchanges WHERE experiment = ? AND role <> 'replay' GROUP BY ALL ORDER BY ALL",
        [experiment],
    ):
        outcomes.setdefault(row["arm"], {})[row["outcome"]] = row["n"]
    shadow: dict[str, int] = {}
    if prepared.paired:
        requests, pairs, exclusions = _pairs(connection)
        shadow = {
            row["shadow_status"]: row["n"]
            for row in rows(
                connection,
                "SELECT shadow_status, count(*) AS n FROM ev_ids WHERE shadow_status IS NOT NULL GROUP BY ALL ORDER BY ALL",
            )
        }
    else:
        requests, pairs, exclusions = _served(connection, prepared)
    judgments = {
        row["status"]: row["n"]
        for row in rows(connection, "SELECT status, count(*) AS n FROM ev_calls GROUP BY ALL ORDER BY ALL")
    }
    judged = 0
    if judge is not None:
        judged = scalar(
            connection,
            "SELECT count(*) FROM ev_verdicts WHERE judge = ? AND fingerprint = ? AND complete",
            [judge.name, judge.fingerprint],
        )
    return Funnel(
        requests=requests,
        pairs=pairs,
        exclusions=exclusions,
        judgments=judgments,
        judged_pairs=judged,
        users=prepared.n_users,
        shadow=shadow,
        outcomes=outcomes,
    )


def _pairs(connection: Connection) -> tuple[int, int, dict[str, int]]:
    counted = rows(
        connection,
        """
        SELECT CASE
            WHEN control_attempted AND treatment_attempted THEN 'pair'
            WHEN NOT has_control THEN 'control_missing'
            WHEN NOT control_attempted THEN 'control_' || coalesce(control_lost, 'missing')
            WHEN has_treatment THEN 'treatment_' || coalesce(treatment_lost, 'missing')
            WHEN shadow_status IN ('not_sampled', 'shed') THEN shadow_status
            WHEN shadow_status = 'not_shadowable'
              THEN 'not_shadowable' || coalesce(': ' || reason, '')
            ELSE 'treatment_missing' END AS why, count(*) AS n
        FROM ev_ids LEFT JOIN ev_reasons USING (id) GROUP BY ALL ORDER BY n DESC, 1""",
    )
    pairs = next((row["n"] for row in counted if row["why"] == "pair"), 0)
    exclusions = {row["why"]: row["n"] for row in counted if row["why"] != "pair"}
    return pairs + sum(exclusions.values()), pairs, exclusions


def _served(connection: Connection, prepared: Prepared) -> tuple[int, int, dict[str, int]]:
    counted = rows(connection, "SELECT reason, n FROM ev_lost WHERE n > 0 ORDER BY n DESC, reason")
    exclusions = {row["reason"]: row["n"] for row in counted}
    return prepared.n_rows + sum(exclusions.values()), 0, exclusions
