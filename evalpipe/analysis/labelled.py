"""People's labels: as judges of their own (`label:SOURCE`), and as what the judges are measured against."""

from __future__ import annotations

import math

import numpy as np

from evalpipe.analysis.connection import Connection, rows
from evalpipe.analysis.looking import Looking
from evalpipe.analysis.result import Agreement, JudgeResult
from evalpipe.analysis.verdicts import JudgeSeen
from evalpipe.stats import betting, winrate
from evalpipe.stats.agreement import agreement
from evalpipe.stats.cluster import arm_aggregate
from evalpipe.stats.paired import mcnemar

PREFIX = "label:"


def prepare_labels(connection: Connection, *, experiment: str) -> None:
    """`ev_labels`: one preference per source and pair (the mean where several people labelled it)."""
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE ev_labels AS SELECT source, l.id, i.u, preference FROM ("
        "  SELECT source, hash(request_id) AS id, avg(preference) AS preference FROM labels "
        "  WHERE experiment = ? AND preference IS NOT NULL GROUP BY source, request_id"
        ") l JOIN ev_ids i USING (id)",
        [experiment],
    )


def label_results(connection: Connection, looking: Looking) -> list[JudgeResult]:
    """Every source of labels as a judge: win rate, and McNemar's exact p of wins against losses."""
    results = []
    for row in rows(connection, "SELECT source, count(*) AS n FROM ev_labels GROUP BY source ORDER BY n DESC, source"):
        found = connection.execute(
            "SELECT sum(preference) AS s, count(*) AS w FROM ev_labels WHERE source = ? GROUP BY u ORDER BY u",
            [row["source"]],
        ).fetchnumpy()
        sums, counts = np.asarray(found["s"], float), np.asarray(found["w"], float)
        means, units = np.unique(np.round(sums / counts, 12), return_counts=True)
        users = arm_aggregate(sums / counts, np.ones(len(counts)))
        estimate = winrate.win_rate(
            means,
            units,
            n=row["n"],
            multiplier=looking.multiplier("win_rate"),
            alpha=looking.alpha,
            bets=looking.bets("win_rate", looking.alpha, sigma2=betting.SIGMA2_ONE_ORDER),
        )
        wins, ties, losses = connection.execute(
            "SELECT count(*) FILTER (preference > 0.5), count(*) FILTER (preference = 0.5), "
            "count(*) FILTER (preference < 0.5) FROM ev_labels WHERE source = ?",
            [row["source"]],
        ).fetchall()[0]
        variance = None if users.spread is None else users.spread.variance("jackknife")
        results.append(
            JudgeResult(
                name=PREFIX + row["source"],
                fingerprint="",
                mode="label",
                model=None,
                simulated=False,
                imported=False,
                feeds_decision=False,
                win_rate=estimate.point,
                ci_low=estimate.ci_low,
                ci_high=estimate.ci_high,
                standard_error=None if variance is None else math.sqrt(variance),
                confidence_level=1 - looking.alpha,
                n_pairs=row["n"],
                n_clusters=users.n_clusters,
                p_value=mcnemar(wins, losses).p_exact,
                method=f"{estimate.method}; p: exact McNemar, one look",
                wins=wins,
                ties=ties,
                losses=losses,
                asked_pairs=row["n"],
                status=estimate.status,
                note=estimate.note,
            )
        )
    return results


def agreements_of(connection: Connection, judge: JudgeSeen, *, alpha: float) -> list[Agreement]:
    """The judge against every source of labels on the pairs that have both, most labels first.

    Categories: control, tie, treatment, as far as either side uses them.
    """
    found = rows(
        connection,
        "SELECT source, sign(x - 0.5)::INTEGER AS judged, sign(l.preference - 0.5)::INTEGER AS labelled, count(*) AS n "
        "FROM ev_verdicts v JOIN ev_labels l USING (id) WHERE judge = ? AND fingerprint = ? AND complete GROUP BY ALL",
        [judge.name, judge.fingerprint],
    )
    results = []
    for source in sorted({row["source"] for row in found}):
        cells = [row for row in found if row["source"] == source]
        used = sorted({row["judged"] for row in cells} | {row["labelled"] for row in cells})
        if len(used) < 2:
            used = sorted({*used, -1, 1})
        table = np.zeros((len(used), len(used)))
        for row in cells:
            table[used.index(row["judged"]), used.index(row["labelled"])] += row["n"]
        result = agreement(table, alpha=alpha)
        results.append(
            Agreement(
                source=source,
                n_labels=result.n,
                accuracy=result.accuracy.point,
                accuracy_low=result.accuracy.ci_low,
                accuracy_high=result.accuracy.ci_high,
                kappa=result.kappa.point,
                kappa_low=result.kappa.ci_low,
                kappa_high=result.kappa.ci_high,
                ac1=result.ac1,
                status=result.status,
            )
        )
    return sorted(results, key=lambda one: -one.n_labels)
