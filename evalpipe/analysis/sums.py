"""From rows to per-user sums to the aggregates the statistics take: three SQL passes for all metrics together.

Pass 1 sums every metric's numerator and denominator per user and arm (`ev_users`, one row per group and user); pass 2 makes
each metric's totals and residual sums from it (statistics.md 3; residuals in a second look, never Σx² − n·x̄²). A group is
the whole experiment, a canary stage, or one value of a segment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evalpipe.analysis.connection import Connection, rows
from evalpipe.analysis.metrics import Metric, Ratio
from evalpipe.stats.cluster import ArmAggregate, PairedAggregate, Spread, effective_df

SIDES = ("t", "c")
ARM = {"t": "treatment", "c": "NOT treatment"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Aggregates:
    """One metric within one group: each arm alone and both together."""

    control: ArmAggregate
    treatment: ArmAggregate
    paired: PairedAggregate


def sum_by_user(
    connection: Connection,
    metrics: Sequence[Metric],
    *,
    table: str = "ev_users",
    source: str = "ev_rows",
    group: str = "''",
    condition: str = "true",
) -> None:
    """Pass 1: `table` gets (grp, u) and for every ratio metric `k`: k_st, k_wt, k_nt (treatment) and k_sc, k_wc, k_nc.

    `group` is a SQL expression over `source`, `condition` selects its rows.
    """
    columns: dict[str, str] = {}  # what to sum → its column; metrics that share a sum share the column
    outer: list[str] = []
    for position, item in enumerate(metrics):
        if not isinstance(item.values, Ratio):
            continue
        for part, (expression, factor) in _sums(item.values).items():
            column = columns.setdefault(expression, f"s{len(columns)}")
            times = "" if factor == 1 else f"{factor!r} * "
            outer += [
                f"{times}coalesce(any_value({column}) FILTER ({ARM[side]}), 0)::DOUBLE AS m{position}_{part}{side}"
                for side in SIDES
            ]
    # Once per user and arm, then the two arms beside each other: half the work of summing each arm apart.
    inner = ", ".join(f"{expression} AS {column}" for expression, column in columns.items())
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE {table} AS WITH by_arm AS (SELECT u, {group} AS grp, treatment, {inner} "
        f"FROM {source} WHERE {condition} GROUP BY ALL) SELECT u, grp, {', '.join(outer)} FROM by_arm GROUP BY u, grp"
    )


def _sums(values: Ratio) -> dict[str, tuple[str, float]]:
    """The sums of a ratio by part (s numerator, w denominator, n rows): (SQL aggregate, factor)."""
    # Yes/no columns are never NULL; leaving the test out lets their counts be one and the same.
    tests = [] if values.binary else [f"({values.numerator}) IS NOT NULL"]
    tests += [] if values.denominator == "1" else [f"({values.denominator}) IS NOT NULL"]
    measured = " AND ".join([values.rows, *tests])
    if values.binary:
        return {
            "s": (f"count(*) FILTER ({measured} AND {values.numerator})", 1.0),
            "w": (f"count(*) FILTER ({measured})", 1.0),
        }
    numerator = (f"sum(({values.numerator})::DOUBLE) FILTER ({measured})", values.factor)
    if values.denominator == "1":
        return {"s": numerator, "w": (f"count(*) FILTER ({measured})", 1.0)}
    return {
        "s": numerator,
        "w": (f"sum(({values.denominator})::DOUBLE) FILTER ({measured})", 1.0),
        "n": (f"count(*) FILTER ({measured})", 1.0),
    }


def aggregate(
    connection: Connection,
    name: str,
    *,
    table: str = "ev_users",
    counted: bool = False,
    binary: bool = False,
    discordant: Mapping[str, int] | None = None,
) -> dict[str, Aggregates]:
    """Pass 2: the aggregates of metric column `name` of `table`, by group.

    `counted`: the rows are counted apart (k_nt, k_nc) because the denominator is not 1 per row. `binary`: events are counted
    for the gates; `discordant` gives the pairs in which exactly one arm had the event, by group.
    """
    n = f"{name}_n" if counted else f"{name}_w"
    query = f"""
    WITH v AS (
      SELECT grp, u, {name}_st AS st, {name}_wt AS wt, {name}_sc AS sc, {name}_wc AS wc, {n}t AS nt, {n}c AS nc
      FROM {table} WHERE {name}_wt > 0 OR {name}_wc > 0 OR {name}_st <> 0 OR {name}_sc <> 0
    ), total AS (
      SELECT grp, count(*) AS g, count(*) FILTER (wt > 0) AS gt, count(*) FILTER (wc > 0) AS gc,
        sum(st) AS s_t, sum(wt) AS w_t, sum(sc) AS s_c, sum(wc) AS w_c, sum(nt) AS n_t, sum(nc) AS n_c,
        nullif(sum(wt), 0) AS dt, nullif(sum(wc), 0) AS dc, max(wt) AS max_t, max(wc) AS max_c,
        sum(least(nt, nc)) AS n_pairs,
        -- Where every user has both sides alike, the difference is summed itself: R_T - R_C would lose its digits.
        bool_and(wt = wc) AS balanced, sum(st - sc) / nullif(sum(wt), 0) AS delta
      FROM v GROUP BY grp
    ), terms AS (
      SELECT v.grp, g, gt, gc, s_t, w_t, s_c, w_c, n_t, n_c, n_pairs, max_t, max_c, s_t / dt AS r_t, s_c / dc AS r_c,
        balanced, delta,
        CASE WHEN balanced THEN coalesce((st - sc - delta * wt) / dt, 0) END AS eb,
        CASE WHEN balanced THEN coalesce((st - sc - delta * wt) / nullif(dt - wt, 0), 0) END AS jb,
        coalesce((st - s_t / dt * wt) / dt, 0) AS et, coalesce((sc - s_c / dc * wc) / dc, 0) AS ec,
        coalesce((st - s_t / dt * wt) / nullif(dt - wt, 0), 0) AS jt,
        coalesce((sc - s_c / dc * wc) / nullif(dc - wc, 0), 0) AS jc,
        wt / nullif(dt - wt, 0) AS qt, wc / nullif(dc - wc, 0) AS qc,
        (wt + wc) / nullif(w_t + w_c - wt - wc, 0) AS qd
      FROM v JOIN total USING (grp)
    )
    SELECT grp, any_value(g) AS g, any_value(gt) AS gt, any_value(gc) AS gc, any_value(s_t) AS s_t, any_value(w_t) AS w_t,
      any_value(s_c) AS s_c, any_value(w_c) AS w_c, any_value(n_t) AS n_t, any_value(n_c) AS n_c,
      any_value(n_pairs) AS n_pairs, any_value(max_t) AS max_t, any_value(max_c) AS max_c,
      any_value(r_t) AS r_t, any_value(r_c) AS r_c,
      any_value(CASE WHEN balanced THEN delta END) AS difference,
      sum(jt * jt) AS jtt, sum(jc * jc) AS jcc, sum(pow(coalesce(jb, jt - jc), 2)) AS jdd,
      sum(et * et) AS ett, sum(ec * ec) AS ecc, sum(pow(coalesce(eb, et - ec), 2)) AS edd,
      sum(pow(et, 3)) AS et3, sum(pow(ec, 3)) AS ec3, sum(pow(coalesce(eb, et - ec), 3)) AS ed3,
      sum(pow(CASE WHEN r_t > 0 AND r_c > 0 THEN et / r_t - ec / r_c END, 2)) AS rdd,
      sum(pow(CASE WHEN r_t > 0 AND r_c > 0 THEN et / r_t - ec / r_c END, 3)) AS rd3,
      sum(pow(CASE WHEN r_t > 0 AND r_c > 0 AND jt < r_t AND jc < r_c
                   THEN ln(1 - jt / r_t) - ln(1 - jc / r_c) END, 2)) AS rjj,
      bool_and(coalesce(jt < r_t AND jc < r_c, false)) AS rj_defined,
      {", ".join(f"sum({q}) AS {q}1, sum({q} * {q}) AS {q}2, sum(pow({q}, 4)) AS {q}4" for q in ("qt", "qc", "qd"))}
    FROM terms GROUP BY grp"""
    return {
        str(row["grp"]): _aggregates(row, binary=binary, n_discordant=(discordant or {}).get(str(row["grp"])))
        for row in rows(connection, query)
    }


def _aggregates(row: Mapping[str, Any], *, binary: bool, n_discordant: int | None) -> Aggregates:
    arms = {}
    for side in SIDES:
        g, whole = row[f"g{side}"], row[f"max_{side}"] >= row[f"w_{side}"]
        spread = None
        if g >= 2:
            spread = Spread(
                v_jack=None if whole else (g - 1) / g * row[f"j{side}{side}"],
                v_lin=g / (g - 1) * row[f"e{side}{side}"],
                m3sum=row[f"e{side}3"],
                df=_degrees(row, f"q{side}"),
            )
        arms[side] = ArmAggregate(
            n=int(row[f"n_{side}"]),
            n_clusters=g,
            numerator=row[f"s_{side}"],
            denominator=row[f"w_{side}"],
            spread=spread,
            n_events=round(row[f"s_{side}"]) if binary else None,
        )
    g = row["g"]
    absolute = relative = None
    if g >= 2 and row["r_t"] is not None and row["r_c"] is not None:
        whole = row["max_t"] >= row["w_t"] or row["max_c"] >= row["w_c"]
        df = _degrees(row, "qd")
        absolute = Spread(
            v_jack=None if whole else (g - 1) / g * row["jdd"], v_lin=g / (g - 1) * row["edd"], m3sum=row["ed3"], df=df
        )
        if row["r_t"] > 0 and row["r_c"] > 0:
            defined = row["rj_defined"] and not whole
            relative = Spread(
                v_jack=(g - 1) / g * row["rjj"] if defined else None,
                v_lin=g / (g - 1) * row["rdd"],
                m3sum=row["rd3"],
                df=df,
            )
    return Aggregates(
        control=arms["c"],
        treatment=arms["t"],
        paired=PairedAggregate(
            control=arms["c"],
            treatment=arms["t"],
            n_pairs=int(row["n_pairs"]),
            n_clusters=g,
            absolute=absolute,
            relative=relative,
            n_discordant=n_discordant,
            difference=row["difference"],
        ),
    )


def _degrees(row: Mapping[str, Any], q: str) -> float | None:
    """None where one user holds all the weight."""
    sums = [row[f"{q}{power}"] for power in (1, 2, 4)]
    return None if None in sums else effective_df(*sums)
