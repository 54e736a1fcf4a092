"""From rows to per-user sums to the aggregates the statistics take.

Pass 1, one query for all metrics, sums every metric's numerator and denominator per user and arm (`ev_users`, one row per group
and user); pass 2 makes each metric's totals and residual sums from these arrays (`stats.cluster`). A group is the whole
experiment, a canary stage, or one value of a segment. For events the clusters may also be clock hours, blocks of hours or days.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evalpipe.analysis.connection import Connection, rows
from evalpipe.analysis.metrics import Ratio
from evalpipe.stats.cluster import ArmAggregate, Array, PairedAggregate, paired_aggregate

READ_WHOLE = 50_000
"""users (of all groups) up to whom the sums are read at once"""
SIDES = ("t", "c")
ARM = {"t": "treatment", "c": "NOT treatment"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Below:
    """The requests of the flag `rows` whose `value` is at most the arm's limit (None: none is), for quantiles."""

    value: str
    rows: str
    control: float | None
    treatment: float | None

    def limit(self, side: str) -> str:
        """SQL of the limit of a side, t or c."""
        found = self.treatment if side == "t" else self.control
        return "NULL" if found is None else f"{found!r}::DOUBLE"


@dataclass(frozen=True, kw_only=True, slots=True)
class Aggregates:
    """One metric within one group: each arm alone and both together.

    `heaviness`: (control's, treatment's) ΣW²/ΣW over users with W requests; 1 where every user has one.
    """

    control: ArmAggregate
    treatment: ArmAggregate
    paired: PairedAggregate
    heaviness: tuple[float, float] = (1.0, 1.0)


def sum_by_user(
    connection: Connection,
    sums: Sequence[Ratio | Below],
    *,
    paired: bool,
    table: str = "ev_users",
    source: str | None = None,
    group: str = "''",
    condition: str = "true",
    cluster: str = "u",
) -> None:
    """Pass 1: `table` gets (grp, u, requests) and, of the k-th of `sums`, mk_st, mk_wt, mk_nt (treatment), mk_sc, mk_wc, mk_nc.

    Args:
        sums: what to sum.
        paired: the source has a row per pair (`ev_pairs`, or a table with its columns) rather than a row per exchange.
        table: the name of what is made; the sums themselves are in `table`_sums.
        source: the rows; by default `ev_pairs` or `ev_rows`.
        group: a SQL expression over the source.
        condition: selects its rows.
        cluster: a SQL expression: the unit that is summed over, the user by default.
    """
    columns: dict[str, str] = {}  # what to sum → its column; metrics that share a sum share the column
    named: list[str] = []

    def column(expression: str, side: str, factor: float = 1.0) -> str:
        name = columns.setdefault(expression, f"s{len(columns)}")
        arm = "" if paired else f"_{side}"
        times = "" if factor == 1 else f"{factor!r} * "
        return f"{times}coalesce({name}{arm}, 0)::DOUBLE"

    for position, one in enumerate(sums):
        for side in SIDES:
            parts = _sums(one, side, f"{side}_" if paired else "")
            named += [
                f"{column(expression, side, factor)} AS m{position}_{part}{side}"
                for part, (expression, factor) in parts.items()
            ]
    inner = ", ".join(f"{expression} AS {name}" for expression, name in columns.items())
    if paired:
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE {table}_sums AS SELECT {cluster} AS u, {group} AS grp, count(*) AS requests, {inner} "
            f"FROM {source or 'ev_pairs'} WHERE {condition} GROUP BY ALL"
        )
    else:
        # Once per user and arm, then the two arms beside each other: half the work of summing each arm apart.
        beside = ", ".join(
            f"any_value({name}) FILTER ({ARM[side]}) AS {name}_{side}" for name in columns.values() for side in SIDES
        )
        connection.execute(
            f"CREATE OR REPLACE TEMP TABLE {table}_sums AS WITH by_arm AS (SELECT {cluster} AS u, {group} AS grp, treatment, "
            f"count(*) AS requests, {inner} FROM {source or 'ev_rows'} WHERE {condition} GROUP BY ALL) "
            f"SELECT u, grp, sum(requests) AS requests, {beside} FROM by_arm GROUP BY u, grp"
        )
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW {table} AS SELECT u, grp, requests, {', '.join(named)} FROM {table}_sums"
    )


def _sums(values: Ratio | Below, side: str, prefix: str) -> dict[str, tuple[str, float]]:
    """The sums of one side by part (s numerator, w denominator, n requests): (SQL aggregate, factor)."""
    n = (f"sum({values.rows}::INTEGER)", 1.0)
    if isinstance(values, Below):
        limit = values.limit(side) if prefix else _limit_by_arm(values)
        return {"s": (f"sum(({values.rows} AND {prefix}{values.value} <= {limit})::INTEGER)", 1.0), "w": n}
    numerator = f"{prefix}{values.numerator}"
    if values.binary:
        return {"s": (f"sum(({values.rows} AND {numerator})::INTEGER)", 1.0), "w": n}
    total = (f"sum(CASE WHEN {values.rows} THEN {numerator} END)", values.factor)
    if values.denominator == "1":
        return {"s": total, "w": n}
    denominator = f"{prefix}{values.denominator}"
    return {"s": total, "w": (f"sum(CASE WHEN {values.rows} THEN {denominator}::DOUBLE END)", 1.0), "n": n}


def _limit_by_arm(values: Below) -> str:
    return f"CASE WHEN treatment THEN {values.limit('t')} ELSE {values.limit('c')} END"


class UserSums:
    """The users' sums of one table as arrays, by group.

    Small tables are read whole, as planning a query costs more than reading them; of large ones the columns of a metric are read
    when they are asked for, so that memory stays at six numbers a user.
    """

    def __init__(self, connection: Connection, table: str = "ev_users") -> None:
        """Args:
        connection: where `table` was made, by `sum_by_user` or with such columns.
        table: its name.
        """
        self._connection, self._table = connection, table
        sizes = rows(connection, f"SELECT grp, count(*) AS n FROM {table} GROUP BY grp ORDER BY grp")
        self._groups = [row["grp"] for row in sizes]
        self._whole: dict[Any, dict[str, Any]] | None = None
        if sum(row["n"] for row in sizes) <= READ_WHOLE:
            self._whole = {group: self._read("* EXCLUDE (u, grp)", group) for group in self._groups}

    def aggregate(
        self,
        name: str,
        *,
        counted: bool = False,
        binary: bool = False,
        discordant: Mapping[str, int] | None = None,
    ) -> dict[str, Aggregates]:
        """Pass 2: the aggregates of one of the sums, by group.

        Args:
            name: its columns' prefix, such as m0.
            counted: the requests are counted apart (name_nt, name_nc) because the denominator is not 1 per request.
            binary: events are counted for the gates.
            discordant: pairs in which exactly one arm had the event, by group.
        """
        n = f"{name}_n" if counted else f"{name}_w"
        columns = [f"{name}_st", f"{name}_wt", f"{name}_sc", f"{name}_wc", f"{n}t", f"{n}c"]
        found: dict[str, Aggregates] = {}
        for group in self._groups:
            read = (
                self._whole[group] if self._whole is not None else self._read(", ".join(dict.fromkeys(columns)), group)
            )
            st, wt, sc, wc, nt, nc = (np.asarray(read[column], float) for column in columns)
            seen = (wt > 0) | (wc > 0) | (st != 0) | (sc != 0)
            if seen.any():
                parts = [values[seen] for values in (st, wt, sc, wc, nt, nc)]
                found[str(group)] = _aggregates(*parts, binary=binary, n_discordant=(discordant or {}).get(str(group)))
        return found

    def _read(self, columns: str, group: Any) -> dict[str, Any]:
        query = f"SELECT {columns} FROM {self._table} WHERE grp IS NOT DISTINCT FROM ?"
        read: dict[str, Any] = self._connection.execute(query, [group]).fetchnumpy()
        return read


def _aggregates(
    st: Array, wt: Array, sc: Array, wc: Array, nt: Array, nc: Array, *, binary: bool, n_discordant: int | None
) -> Aggregates:
    """From the users' sums: numerator, denominator and requests of the treatment (t) and of control (c)."""
    paired = paired_aggregate(st, wt, sc, wc, n_pairs=round(float(np.minimum(nt, nc).sum())), n_discordant=n_discordant)
    treatment, control = (
        replace(arm, n=round(float(n.sum())), n_events=round(arm.numerator) if binary else None)
        for arm, n in ((paired.treatment, nt), (paired.control, nc))
    )
    return Aggregates(
        control=control,
        treatment=treatment,
        paired=replace(paired, control=control, treatment=treatment),
        heaviness=(_heaviness(nc), _heaviness(nt)),
    )


def _heaviness(requests: Array) -> float:
    """ΣW²/ΣW; 1 where there is none."""
    total = float(requests.sum())
    return float((requests * requests).sum()) / total if total > 0 else 1.0
