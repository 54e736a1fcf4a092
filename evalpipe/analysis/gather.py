"""All metrics of an experiment: the SQL passes in order, and each metric's numbers by its kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from evalpipe.analysis.connection import Connection, rows
from evalpipe.analysis.looking import Looking
from evalpipe.analysis.measure import (
    EventCounts,
    Measured,
    StageCounts,
    Support,
    measure_preference,
    measure_ratio,
    unmeasured,
)
from evalpipe.analysis.metrics import Metric, Ratio, Verdict
from evalpipe.analysis.prepare import Prepared
from evalpipe.analysis.quantiles import QuantilePass
from evalpipe.analysis.sums import Aggregates, UserSums, sum_by_user
from evalpipe.analysis.verdicts import JudgeSeen, sum_quality, users_means
from evalpipe.stats import stages
from evalpipe.stats.cluster import PairedAggregate, Spread

BLOCK_HOURS = 4
"""hours of a block of the clock, a cluster of events between hour and day. In simulated A/A, own incidents of 8 h on 15 % of
days called the error rate different in 33 to 37 % of experiments with hours and days alone, in 0 to .7 % with these blocks"""
MIN_DAYS = 5
"""days of traffic from which on days are clusters of events, too"""
DAY_US = 86_400_000_000


def measure_all(
    connection: Connection,
    items: Sequence[Metric],
    looking: Looking,
    *,
    prepared: Prepared,
    sources: Mapping[str, bool],
    alphas: Sequence[float],
    judge: JudgeSeen | None,
    pointwise: Sequence[JudgeSeen],
) -> list[Measured]:
    """Measure every metric.

    Args:
        items: the metrics.
        looking: the way of looking.
        prepared: what `prepare_rows` found.
        sources: by metric name, whether the source of the log can measure it; a name that is missing: it can.
        alphas: every level an interval may be asked at.
        judge: the judge whose win rate decides.
        pointwise: other judges, for their scores.

    Returns:
        The metrics in their order; one without data has status no_data, or not_measured where the source cannot measure it.
    """
    ratios = [item for item in items if isinstance(item.values, Ratio)]
    sums = [prepared.counted(item.values) for item in ratios if isinstance(item.values, Ratio)]
    quantiles = QuantilePass(connection, items, looking, only=None if looking.paired else _latest_stage(connection))
    if looking.paired:
        sum_by_user(connection, [*sums, *quantiles.helpers], paired=True)
        users = below = UserSums(connection)
        first = len(ratios)
    else:
        # Stages are combined for means; a quantile has no such sum, so it is taken over the latest stage's rows.
        sum_by_user(connection, sums, paired=False, group="stage::VARCHAR")
        sum_by_user(connection, quantiles.helpers, paired=False, table="ev_below")
        users, below, first = UserSums(connection), UserSums(connection, "ev_below"), 0
    judged = sum_quality(connection, judge=judge, pointwise=pointwise, paired=looking.paired)
    times = _Times(connection, ratios, prepared)
    measured: dict[str, Measured] = {}
    for position, item in enumerate(ratios):
        values = item.values
        assert isinstance(values, Ratio)
        if values.binary:
            found = _events(connection, item, f"m{position}", looking, prepared, times, users)
        else:
            groups = users.aggregate(f"m{position}", counted=values.denominator != "1")
            found = measure_ratio(item, combined(groups), looking)
        measured[item.name] = found.with_missing(prepared.missing.get(values.rows))
    for item in items:
        if isinstance(item.values, Verdict):
            measured[item.name] = _verdict(connection, item, looking, judge, has_data=item.name in judged)
    columns = [f"m{first + position}" for position in range(len(quantiles.helpers))]
    for one in quantiles.measure(columns, below, alphas):
        measured[one.metric.name] = one.with_missing(prepared.missing.get(one.metric.values.rows))  # type: ignore[union-attr]
    for name, measurable in sources.items():
        if not measurable and name in measured and measured[name].is_empty:
            measured[name] = unmeasured(measured[name].metric, "not_measured")
    return [measured[item.name] for item in items]


def _latest_stage(connection: Connection) -> str | None:
    """The rows of the present percentage, where there were several: early control traffic is no match for late treatment."""
    found = rows(connection, "SELECT stage, max(at_us) AS last FROM ev_rows GROUP BY stage ORDER BY last DESC")
    return f"stage = {found[0]['stage']!r}::FLOAT" if len(found) > 1 else None


def combined(groups: Mapping[str, Aggregates]) -> Aggregates | None:
    """One aggregate of a metric: the only group's, or the stages' of a canary combined: both arms' values and everything made
    of them carry the same weights."""
    usable = [one for one in groups.values() if one.control.n_clusters or one.treatment.n_clusters]
    if not usable:
        return None
    if len(usable) == 1:
        return usable[0]
    both = [one for one in usable if one.control.ratio is not None and one.treatment.ratio is not None]
    if not both:
        return usable[-1]
    weights = _weights(both)
    control = stages.combine_arm([one.control for one in both], weights)
    treatment = stages.combine_arm([one.treatment for one in both], weights)
    return Aggregates(
        control=control,
        treatment=treatment,
        paired=PairedAggregate(
            control=control,
            treatment=treatment,
            n_pairs=0,
            n_clusters=sum(one.paired.n_clusters for one in both),
            absolute=_combined_spread([one.paired for one in both], weights),
        ),
        heaviness=(
            sum(one.heaviness[0] * one.control.n for one in both) / control.n,
            sum(one.heaviness[1] * one.treatment.n for one in both) / treatment.n,
        ),
    )


def _weights(both: Sequence[Aggregates]) -> list[float]:
    return stages.stage_weights([(one.control.denominator, one.treatment.denominator) for one in both])


def _combined_spread(parts: Sequence[PairedAggregate], weights: Sequence[float]) -> Spread | None:
    """Of Σ weight · (R_T − R_C): the clusters of different stages are different ones."""
    known = [(one.absolute, weight) for one, weight in zip(parts, weights, strict=True) if weight > 0]
    spreads = [(spread, weight) for spread, weight in known if spread is not None and spread.v_lin is not None]
    if len(spreads) < len(known):
        return None
    jack = [spread.v_jack for spread, _ in spreads]
    third = [spread.m3sum for spread, _ in spreads]
    return Spread(
        v_jack=None if None in jack else sum((s.v_jack or 0.0) * w**2 for s, w in spreads),
        v_lin=sum((s.v_lin or 0.0) * w**2 for s, w in spreads),
        m3sum=None if None in third else sum((s.m3sum or 0.0) * w**3 for s, w in spreads),
    )


class _Times:
    """The events summed by clock hour, by `BLOCK_HOURS` of the clock and, from `MIN_DAYS` on, by day (UTC): a provider's
    incident fails every user at once, for minutes or for many hours."""

    def __init__(self, connection: Connection, ratios: Sequence[Metric], prepared: Prepared) -> None:
        events = [item for item in ratios if isinstance(item.values, Ratio) and item.values.binary]
        self._columns = {item.name: f"m{position}" for position, item in enumerate(events)}
        group = "''" if prepared.paired else "stage::VARCHAR"
        sums = [item.values for item in events if isinstance(item.values, Ratio)]
        sum_by_user(connection, sums, paired=prepared.paired, table="ev_hours", group=group, cluster="hour")
        self._tables = [UserSums(connection, "ev_hours")]
        spans = {"ev_blocks": BLOCK_HOURS}
        first, last = prepared.first_us, prepared.last_us
        if first is not None and last is not None and last - first >= MIN_DAYS * DAY_US:
            spans["ev_days"] = 24
        parts = ", ".join(
            f"sum({column}_{part}{side}) AS {column}_{part}{side}"
            for column in self._columns.values()
            for part in "sw"
            for side in "tc"
        )
        for table, hours in spans.items():
            connection.execute(
                f"CREATE OR REPLACE TEMP TABLE {table} AS "
                f"SELECT u // {hours} AS u, grp, {parts} FROM ev_hours GROUP BY ALL"
            )
            self._tables.append(UserSums(connection, table))

    def of(self, item: Metric) -> list[Aggregates]:
        """Hours, blocks of hours and days as clusters, the stages combined."""
        column = self._columns[item.name]
        found = (combined(table.aggregate(column, binary=True)) for table in self._tables)
        return [one for one in found if one is not None]


def _events(
    connection: Connection,
    item: Metric,
    column: str,
    looking: Looking,
    prepared: Prepared,
    times: _Times,
    users: UserSums,
) -> Measured:
    groups = users.aggregate(column, binary=True)
    found = combined(groups)
    if found is None:
        return measure_ratio(item, None, looking)
    happened = found.control.numerator + found.treatment.numerator > 0
    clusters = times.of(item) if happened else []
    if looking.paired:
        counts = replace(_paired_counts(connection, item), times=clusters)
    else:
        staged = prepared.mode == "canary" and looking.mode == "anytime"
        counts = EventCounts(times=clusters, stages=_stages(connection, column, groups) if staged else ())
    return measure_ratio(item, found, looking, counts=counts)


def _paired_counts(connection: Connection, item: Metric) -> EventCounts:
    """Pairs in which exactly one arm had the event, of the pairs that count for the metric."""
    values = item.values
    assert isinstance(values, Ratio)
    event = values.numerator
    row = rows(
        connection,
        f"SELECT count(*) AS n, count(*) FILTER (t_{event} AND NOT c_{event}) AS t, "
        f"count(*) FILTER (c_{event} AND NOT t_{event}) AS c FROM ev_pairs WHERE {values.rows}",
    )[0]
    return EventCounts(t_only=row["t"], c_only=row["c"], n=row["n"])


def _stages(connection: Connection, column: str, groups: Mapping[str, Aggregates]) -> list[StageCounts]:
    """The stages that have both arms, with their weights."""
    found = rows(
        connection,
        f"SELECT grp, count(*) FILTER ({column}_wt > 0) AS users_t, count(*) FILTER ({column}_wc > 0) AS users_c, "
        f"count(*) FILTER ({column}_st > 0) AS x, count(*) FILTER ({column}_sc > 0) AS y FROM ev_users GROUP BY grp ORDER BY grp",
    )
    both = [row for row in found if row["users_t"] and row["users_c"]]
    parts = [groups[str(row["grp"])] for row in both]
    return [
        StageCounts(
            treatment_users=row["x"],
            control_users=row["y"],
            share=row["users_t"] / (row["users_t"] + row["users_c"]),
            treatment_n=part.treatment.denominator,
            control_n=part.control.denominator,
            events=part.treatment.numerator + part.control.numerator,
            weight=weight,
        )
        for row, part, weight in zip(both, parts, _weights(parts), strict=True)
    ]


def _verdict(
    connection: Connection, item: Metric, looking: Looking, judge: JudgeSeen | None, *, has_data: bool
) -> Measured:
    if not has_data:
        return measure_ratio(item, None, looking)
    if item.name.startswith("win_rate") and judge is not None:
        values, counts, n_pairs = users_means(connection, judge, later=item.name == "win_rate_later_turns")
        return measure_preference(
            item, looking, support=Support(both=(values, counts), sigma2=judge.sigma2), n_pairs=n_pairs
        )
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE ev_one AS SELECT grp, u, st AS q_st, wt AS q_wt, sc AS q_sc, wc AS q_wc "
        "FROM ev_quality WHERE metric = ?",
        [item.name],
    )
    return measure_ratio(item, combined(UserSums(connection, "ev_one").aggregate("q")), looking)
