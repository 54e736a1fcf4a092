"""All metrics of an experiment: the SQL passes in order, and latency quantiles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evalpipe.analysis.intervals import (
    Aggregates,
    Below,
    Discordant,
    EventCounts,
    Measured,
    StageCounts,
    Support,
    UserSums,
    measure_preference,
    measure_ratio,
    sum_by_user,
    unmeasured,
)
from evalpipe.analysis.metrics import JudgmentValue, Metric, Quantile, Ratio
from evalpipe.analysis.prepare import Prepared
from evalpipe.analysis.result import ArmValue, LatencyCurve
from evalpipe.analysis.settings import LookPlan
from evalpipe.analysis.sorted_values import SortedValues
from evalpipe.analysis.sql import Connection, rows
from evalpipe.analysis.verdicts import JudgeSummary, sum_quality, users_means
from evalpipe.stats import clusters as stats_clusters
from evalpipe.stats.clusters import ArmAggregate, PairedAggregate, Spread
from evalpipe.stats.estimates import Estimate
from evalpipe.stats.means import Scale
from evalpipe.stats.quantiles import (
    LimitLevels,
    QuantileAggregate,
    QuantileLimits,
    critical,
    limit_levels,
    quantile_difference,
)

BLOCK_HOURS = 4
"""hours of a block of the clock, a cluster of events between hour and day. In simulated A/A, own incidents of 8 h on 15 % of
days called the error rate different in 33 to 37 % of experiments with hours and days alone, in 0 to .7 % with these blocks"""
MIN_DAYS = 5
"""days of traffic from which on days are clusters of events, too"""
DAY_US = 86_400_000_000


def measure_all(
    connection: Connection,
    items: Sequence[Metric],
    look_plan: LookPlan,
    *,
    prepared: Prepared,
    sources: Mapping[str, bool],
    alphas: Sequence[float],
    judge: JudgeSummary | None,
    pointwise: Sequence[JudgeSummary],
    values: SortedValues,
) -> list[Measured]:
    """Measure every metric.

    Args:
        items: the metrics.
        look_plan: the plan of looks.
        prepared: what `prepare_rows` found.
        sources: by metric name, whether the source of the log can measure it; a name that is missing: it can.
        alphas: every level an interval may be asked at.
        judge: the judge whose win rate decides.
        pointwise: other judges, for their scores.
        values: the sorted values of `ev_rows`.

    Returns:
        The metrics in their order; one without data has status no_data, or not_measured where the source cannot measure it.
    """
    ratios = [item for item in items if isinstance(item.values, Ratio)]
    sums = [prepared.counted(item.values) for item in ratios if isinstance(item.values, Ratio)]
    quantiles = QuantilePass(values, items, look_plan, only=None if look_plan.paired else _latest_stage(connection))
    if look_plan.paired:
        sum_by_user(connection, [*sums, *quantiles.helpers], paired=True)
        users = below = UserSums(connection)
        first = len(ratios)
    else:
        # Stages are combined for means; a quantile has no such sum, so it is taken over the latest stage's rows.
        sum_by_user(connection, sums, paired=False, group="stage::VARCHAR")
        sum_by_user(connection, quantiles.helpers, paired=False, table="ev_below")
        users, below, first = UserSums(connection), UserSums(connection, "ev_below"), 0
    columns = [f"m{first + position}" for position in range(len(quantiles.helpers))]
    users.read_ahead([(f"m{position}", one.denominator != "1", one.binary) for position, one in enumerate(sums)])
    below.read_ahead([(column, False, False) for column in columns])
    judged = sum_quality(connection, judge=judge, pointwise=pointwise, paired=look_plan.paired)
    times = _Times(connection, ratios, prepared)
    measured: dict[str, Measured] = {}
    for position, item in enumerate(ratios):
        ratio = item.values
        assert isinstance(ratio, Ratio)
        if ratio.binary:
            found = _events(connection, item, f"m{position}", look_plan, prepared, times, users)
        else:
            groups = users.aggregate(f"m{position}", counted=ratio.denominator != "1")
            found = measure_ratio(item, combined(groups), look_plan)
        measured[item.name] = found.with_missing(prepared.missing.get(ratio.rows))
    for item in items:
        if isinstance(item.values, JudgmentValue):
            measured[item.name] = _verdict(connection, item, look_plan, judge, has_data=item.name in judged)
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
    control = stats_clusters.combine_arm([one.control for one in both], weights)
    treatment = stats_clusters.combine_arm([one.treatment for one in both], weights)
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
    return stats_clusters.stage_weights([(one.control.denominator, one.treatment.denominator) for one in both])


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
        self._connection = connection
        events = {item.name: item.values for item in ratios if isinstance(item.values, Ratio) and item.values.binary}
        self._columns = {name: f"m{position}" for position, name in enumerate(events)}
        group = "''" if prepared.paired else "stage::VARCHAR"
        sums: list[Ratio | Discordant] = list(events.values())
        if prepared.paired:
            self._discordant = {name: f"m{len(events) + position}" for position, name in enumerate(events)}
            sums += [Discordant(event=event) for event in events.values()]
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

    def discordant(self, item: Metric) -> EventCounts:
        """The pairs in which exactly one arm has the event, and how many count for the metric (shadow mode)."""
        column = self._discordant[item.name]
        parts = {"t_only": "st", "c_only": "sc", "n": "wt"}
        sums = ", ".join(f"coalesce(sum({column}_{part}), 0)::BIGINT AS {name}" for name, part in parts.items())
        return EventCounts(**rows(self._connection, f"SELECT {sums} FROM ev_hours")[0])

    def of(self, item: Metric) -> list[Aggregates]:
        """Hours, blocks of hours and days as clusters, the stages combined."""
        column = self._columns[item.name]
        found = (combined(table.aggregate(column, binary=True)) for table in self._tables)
        return [one for one in found if one is not None]


def _events(
    connection: Connection,
    item: Metric,
    column: str,
    look_plan: LookPlan,
    prepared: Prepared,
    times: _Times,
    users: UserSums,
) -> Measured:
    groups = users.aggregate(column, binary=True)
    found = combined(groups)
    if found is None:
        return measure_ratio(item, None, look_plan)
    happened = found.control.numerator + found.treatment.numerator > 0
    clusters = times.of(item) if happened else []
    if prepared.paired:
        counts = replace(times.discordant(item), times=clusters)
    else:
        staged = prepared.mode == "canary" and look_plan.mode == "anytime"
        counts = EventCounts(times=clusters, stages=_stages(connection, column, groups) if staged else ())
    return measure_ratio(item, found, look_plan, counts=counts)


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
    connection: Connection, item: Metric, look_plan: LookPlan, judge: JudgeSummary | None, *, has_data: bool
) -> Measured:
    if not has_data:
        return measure_ratio(item, None, look_plan)
    if item.name.startswith("win_rate") and judge is not None:
        values, counts, n_pairs = users_means(connection, judge, later=item.name == "win_rate_later_turns")
        return measure_preference(
            item, look_plan, support=Support(both=(values, counts), sigma2=judge.sigma2), n_pairs=n_pairs
        )
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE ev_one AS SELECT grp, u, st AS q_st, wt AS q_wt, sc AS q_sc, wc AS q_wc "
        "FROM ev_quality WHERE metric = ?",
        [item.name],
    )
    return measure_ratio(item, combined(UserSums(connection, "ev_one").aggregate("q")), look_plan)


# Latency quantiles in three passes: the quantiles, how users spread around them, the quantiles at the limits.
#
# Statistics.md 8: type-1 quantiles (`quantile_disc`), Woodruff limits per arm, MOVER for the difference. All levels
# that any interval of the decision needs are asked for together.


CURVE = (*(round(0.01 * k, 2) for k in range(1, 100)), 0.995, 0.999)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Request:
    """One metric's passes: its arms' aggregates and the levels of each interval."""

    item: Metric
    values: Quantile
    arms: dict[bool, QuantileAggregate]
    correlation: float
    levels: dict[tuple[float, bool], LimitLevels]
    n_users: int


class QuantilePass:
    """The quantile metrics of one experiment, in the three passes. Pass 2 may be shared with the means' sums: `helpers` are
    what to sum per user (requests at or below the quantile)."""

    def __init__(
        self, values: SortedValues, items: Sequence[Metric], look_plan: LookPlan, *, only: str | None = None
    ) -> None:
        """`only`: a condition on the rows that count, on top of each metric's own."""
        self._sorted, self._look_plan = values, look_plan
        chosen = [(item, item.values) for item in items if isinstance(item.values, Quantile)]
        self._quantiles = [
            (item, values if only is None else replace(values, rows=f"({values.rows} AND {only})"))
            for item, values in chosen
        ]
        self._points = _points(self._sorted, [values for _, values in self._quantiles])
        self.helpers = [
            Below(
                value=values.value,
                rows=values.rows,
                control=self._points[values.value, values.rows, False].get(values.share),
                treatment=self._points[values.value, values.rows, True].get(values.share),
            )
            for _, values in self._quantiles
        ]

    def measure(self, columns: Sequence[str], users: UserSums, alphas: Sequence[float]) -> list[Measured]:
        """Every metric, with intervals ready at each level of `alphas`; `columns`: the helpers' columns of `users`."""
        requests = [
            _request(
                item,
                values,
                users.aggregate(column).get("") if self._seen(values) else None,
                self._points,
                self._look_plan,
                alphas,
            )
            for (item, values), column in zip(self._quantiles, columns, strict=True)
        ]
        limits = _quantiles_at(self._sorted, requests)
        return [_measured(request, self._look_plan, limits) for request in requests]

    def _seen(self, values: Quantile) -> bool:
        return any(self._points[values.value, values.rows, arm].get(values.share) is not None for arm in (False, True))


def latency_curves(values: SortedValues) -> list[LatencyCurve]:
    """The latency distribution of both arms over the requests of the latency metrics."""
    curves = []
    for arm, name in ((False, "control"), (True, "treatment")):
        quantiles = values.quantiles("latency_ms", "has_latency", arm=arm, shares=CURVE)
        n = values.count("latency_ms", "has_latency", arm=arm)
        known = [value for value in quantiles if value is not None]
        if n:
            curves.append(LatencyCurve(arm=name, quantiles=list(CURVE), values_ms=known, n=n))
    return curves


def _points(values: SortedValues, wanted: Sequence[Quantile]) -> dict[tuple[str, str, bool], dict[float, float | None]]:
    """Pass 1: the quantiles themselves, by (value, rows, arm) and share."""
    found: dict[tuple[str, str, bool], dict[float, float | None]] = {}
    columns = list(dict.fromkeys((one.value, one.rows) for one in wanted))
    values.read(columns)
    for value, condition in columns:
        shares = sorted({one.share for one in wanted if (one.value, one.rows) == (value, condition)})
        for arm in (False, True):
            quantiles = values.quantiles(value, condition, arm=arm, shares=shares)
            found[value, condition, arm] = dict(zip(shares, quantiles, strict=True))
    return found


def _request(
    item: Metric,
    values: Quantile,
    found: Aggregates | None,
    points: dict[tuple[str, str, bool], dict[float, float | None]],
    look_plan: LookPlan,
    alphas: Sequence[float],
) -> _Request:
    arms = {arm: _empty() for arm in (False, True)}
    correlation, users = 0.0, 0
    if found is not None:
        for arm, side in ((False, found.control), (True, found.treatment)):
            arms[arm] = _arm(side, points[values.value, values.rows, arm].get(values.share))
        both = found.paired.absolute
        v_t, v_c = arms[True].variance, arms[False].variance
        if look_plan.paired and both is not None and both.v_lin is not None and v_t and v_c:
            correlation = (v_t + v_c - both.v_lin) / (2 * math.sqrt(v_t * v_c))
        users = found.paired.n_clusters
    levels = {}
    multiplier = look_plan.multiplier(item.name)
    for alpha in alphas:
        c = critical(
            arms[False].n_clusters, arms[True].n_clusters, paired=look_plan.paired, multiplier=multiplier, alpha=alpha
        )
        for arm in (False, True):
            levels[alpha, arm] = limit_levels(arms[arm], values.share, c)
    return _Request(item=item, values=values, arms=arms, correlation=correlation, levels=levels, n_users=users)


def _arm(side: ArmAggregate, point: float | None) -> QuantileAggregate:
    return QuantileAggregate(
        n=side.n,
        n_clusters=side.n_clusters,
        quantile=point if side.n else None,
        share_below=side.ratio,
        variance=None if side.spread is None else side.spread.v_lin,
    )


def _empty() -> QuantileAggregate:
    return QuantileAggregate(n=0, n_clusters=0, quantile=None, share_below=None, variance=None)


def _quantiles_at(
    values: SortedValues, requests: Sequence[_Request]
) -> dict[tuple[str, str, bool, float], float | None]:
    """Pass 3: the quantile at every level of every interval."""
    found: dict[tuple[str, str, bool, float], float | None] = {}
    for one in requests:
        value, condition = one.values.value, one.values.rows
        for (_, arm), levels in one.levels.items():
            wanted = [level for level in (levels.low, levels.high) if level is not None]
            quantiles = values.quantiles(value, condition, arm=arm, shares=wanted)
            found |= {(value, condition, arm, level): at for level, at in zip(wanted, quantiles, strict=True)}
    return found


def _measured(
    request: _Request, look_plan: LookPlan, limits: dict[tuple[str, str, bool, float], float | None]
) -> Measured:
    values = request.values

    def side(alpha: float, arm: bool) -> QuantileLimits:
        levels, own = request.levels[alpha, arm], request.arms[arm]

        def at(level: float | None) -> float | None:
            return None if level is None else limits[values.value, values.rows, arm, level]

        return QuantileLimits(
            quantile=own.quantile,
            low=at(levels.low),
            high=at(levels.high),
            n=own.n,
            n_clusters=own.n_clusters,
            status=levels.status,
            note=levels.note,
        )

    def at(alpha: float, scale: Scale) -> Estimate:
        return quantile_difference(
            side(alpha, False),
            side(alpha, True),
            correlation=request.correlation,
            paired=look_plan.paired,
            multiplier=look_plan.multiplier(request.item.name),
            alpha=alpha,
            scale=scale,
            n_clusters=request.n_users or None,
        )

    def shown(arm: bool) -> ArmValue:
        own = side(look_plan.alpha, arm)
        return ArmValue(value=own.quantile, n=own.n, ci_low=own.low, ci_high=own.high)

    return Measured(metric=request.item, control=shown(False), treatment=shown(True), at=at)
