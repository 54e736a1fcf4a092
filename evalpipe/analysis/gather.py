"""All metrics of an experiment: the SQL passes in order, and each metric's numbers by its kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from evalpipe.analysis.connection import Connection, rows
from evalpipe.analysis.looking import Looking
from evalpipe.analysis.measure import BinaryCounts, Measured, Support, measure_preference, measure_ratio
from evalpipe.analysis.metrics import Metric, Ratio, Verdict
from evalpipe.analysis.quantiles import QuantilePass
from evalpipe.analysis.sums import Aggregates, aggregate, sum_by_user
from evalpipe.analysis.verdicts import MAX_ORDERED, JudgeSeen, sum_quality
from evalpipe.stats import betting, conditional, stages
from evalpipe.stats.cluster import PairedAggregate

EVENTS = {
    "error_rate": "failed",
    "timeout_rate": "timed_out",
    "refusal_rate": "refused",
    "truncation_rate": "truncated",
}


def measure_all(
    connection: Connection,
    items: Sequence[Metric],
    looking: Looking,
    *,
    alphas: Sequence[float],
    judge: JudgeSeen | None,
    pointwise: Sequence[JudgeSeen],
) -> list[Measured]:
    """Every metric of `items` in their order; one that has no data comes with status no_data."""
    ratios = [item for item in items if isinstance(item.values, Ratio)]
    quantiles = QuantilePass(connection, items, looking, only=None if looking.paired else _latest_stage(connection))
    if looking.paired:
        sum_by_user(connection, [*ratios, *quantiles.helpers])
        below, first = "ev_users", len(ratios)
    else:
        # Stages are combined for means; a quantile has no such sum, so it is taken over the latest stage's rows.
        sum_by_user(connection, ratios, group="stage::VARCHAR")
        sum_by_user(connection, quantiles.helpers, table="ev_below")
        below, first = "ev_below", 0
    judged = sum_quality(connection, judge=judge, pointwise=pointwise, paired=looking.paired)
    measured: dict[str, Measured] = {}
    for position, item in enumerate(ratios):
        measured[item.name] = _ratio(connection, item, f"m{position}", looking)
    for item in items:
        if isinstance(item.values, Verdict):
            measured[item.name] = (
                _verdict(connection, item, looking, judge)
                if item.name in judged
                else measure_ratio(item, None, looking)
            )
    columns = [f"m{first + position}" for position in range(len(quantiles.helpers))]
    for one in quantiles.measure(columns, below, alphas):
        measured[one.metric.name] = one
    return [measured[item.name] for item in items]


def _latest_stage(connection: Connection) -> str | None:
    """The rows of the present percentage, where there were several: early control traffic is no match for late treatment."""
    found = rows(connection, "SELECT stage, max(at_us) AS last FROM ev_rows GROUP BY stage ORDER BY last DESC")
    return f"stage = {found[0]['stage']!r}::FLOAT" if len(found) > 1 else None


def combined(groups: Mapping[str, Aggregates]) -> Aggregates | None:
    """One aggregate of a metric: the only group's, or the stages' of a canary combined."""
    usable = [one for one in groups.values() if one.control.n_clusters or one.treatment.n_clusters]
    if not usable:
        return None
    if len(usable) == 1:
        return usable[0]
    both = [one for one in usable if one.control.ratio is not None and one.treatment.ratio is not None]
    if not both:
        return usable[-1]
    control, treatment = stages.combine([(one.control, one.treatment) for one in both])
    return Aggregates(
        control=control,
        treatment=treatment,
        paired=PairedAggregate(
            control=control,
            treatment=treatment,
            n_pairs=0,
            n_clusters=control.n_clusters + treatment.n_clusters,
            absolute=None,
        ),
    )


def _ratio(connection: Connection, item: Metric, column: str, looking: Looking) -> Measured:
    values = item.values
    assert isinstance(values, Ratio)
    counts = None
    discordant: dict[str, int] = {}
    if values.binary:
        if looking.paired:
            counts = _paired_counts(connection, item)
            discordant = {"": counts.t_only + counts.c_only}
        else:
            counts = BinaryCounts(stages=_stages(connection, column))
    groups = aggregate(
        connection, column, counted=values.denominator != "1", binary=values.binary, discordant=discordant
    )
    support = _binary_support(connection, column, looking) if values.binary else None
    return measure_ratio(item, combined(groups), looking, counts=counts, support=support)


def _verdict(connection: Connection, item: Metric, looking: Looking, judge: JudgeSeen | None) -> Measured:
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE ev_one AS SELECT grp, u, st AS q_st, wt AS q_wt, sc AS q_sc, wc AS q_wc "
        "FROM ev_quality WHERE metric = ?",
        [item.name],
    )
    found = combined(aggregate(connection, "q", table="ev_one"))
    if item.name != "win_rate":
        return measure_ratio(item, found, looking)
    counted = rows(
        connection, "SELECT round(q_st / q_wt, 12) AS x, count(*) AS n FROM ev_one WHERE q_wt > 0 GROUP BY x ORDER BY x"
    )
    in_order = None
    if judge is not None and looking.mode == "anytime" and sum(row["n"] for row in counted) <= MAX_ORDERED:
        ordered = rows(
            connection, "SELECT q_st / q_wt AS x FROM ev_one JOIN ev_order USING (u) WHERE q_wt > 0 ORDER BY rank, u"
        )
        in_order = [row["x"] for row in ordered]
    support = Support(
        both=([row["x"] for row in counted], [row["n"] for row in counted]),
        in_order=in_order,
        sigma2=betting.SIGMA2_BOTH_ORDERS if judge is None else judge.sigma2,
    )
    return measure_preference(item, found, looking, support=lambda: support)


def _paired_counts(connection: Connection, item: Metric) -> BinaryCounts:
    """Pairs in which exactly one arm had the event, of the pairs whose both rows count for the metric."""
    event = EVENTS.get(item.name)
    assert event is not None and isinstance(item.values, Ratio)
    rows_of = "true" if item.values.rows == "attempted" else "NOT (control_failed OR treatment_failed)"
    row = rows(
        connection,
        f"SELECT count(*) AS n, count(*) FILTER (treatment_{event} AND NOT control_{event}) AS t, "
        f"count(*) FILTER (control_{event} AND NOT treatment_{event}) AS c FROM ev_ids "
        f"WHERE control_attempted AND treatment_attempted AND {rows_of}",
    )[0]
    return BinaryCounts(t_only=row["t"], c_only=row["c"], n=row["n"])


def _stages(connection: Connection, column: str) -> list[conditional.Stage]:
    found = rows(
        connection,
        f"SELECT grp, count(*) FILTER ({column}_wt > 0) AS users_t, count(*) FILTER ({column}_wc > 0) AS users_c, "
        f"count(*) FILTER ({column}_st > 0) AS x, count(*) FILTER ({column}_sc > 0) AS y FROM ev_users GROUP BY grp ORDER BY grp",
    )
    return [
        conditional.Stage(
            treatment_events=row["x"],
            control_events=row["y"],
            share=row["users_t"] / (row["users_t"] + row["users_c"]),
        )
        for row in found
        if row["users_t"] and row["users_c"]
    ]


def _binary_support(connection: Connection, column: str, looking: Looking) -> Callable[[], Support]:
    """Read only where an exact method is asked for."""

    def counted(expression: str, condition: str) -> tuple[list[float], list[float]]:
        found = rows(
            connection,
            f"SELECT round({expression}, 12) AS x, count(*) AS n FROM ev_users WHERE {condition} GROUP BY x ORDER BY x",
        )
        return [row["x"] for row in found], [row["n"] for row in found]

    k = column
    if looking.paired:
        return lambda: Support(
            both=counted(f"(1 + {k}_st / {k}_wt - {k}_sc / {k}_wc) / 2", f"{k}_wt > 0 AND {k}_wc > 0")
        )
    return lambda: Support(
        control=counted(f"{k}_sc / {k}_wc", f"{k}_wc > 0"), treatment=counted(f"{k}_st / {k}_wt", f"{k}_wt > 0")
    )
