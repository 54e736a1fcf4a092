"""One metric's numbers by the method that fits its kind and the monitoring plan, from sums per user.

A row has one population and one estimator: the two arms' values subtract to the difference, and the point lies in its interval.
The win rate is the exception: treatment θ, control 1 − θ, difference θ − 1/2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from evalpipe.analysis.distributed import as_distributed, over_pairs
from evalpipe.analysis.metrics import Metric, Ratio
from evalpipe.analysis.populations import STATUS as MISSING_DIFFERS
from evalpipe.analysis.populations import Missing, note_of
from evalpipe.analysis.result import ArmValue
from evalpipe.analysis.settings import SIGMA2_PAIRED_BINARY, LookPlan
from evalpipe.analysis.sql import Connection, fill_large, hash_ranges, is_on_disk, made_while_reading, rows, scalar
from evalpipe.stats import betting, estimates, event_rates
from evalpipe.stats.clusters import ArmAggregate, Array, PairedAggregate, Spread, carrying, paired_aggregate
from evalpipe.stats.estimates import Estimate
from evalpipe.stats.event_rates import paired_events, unpaired_events
from evalpipe.stats.means import Scale, arm_interval, paired_difference, unpaired_difference
from evalpipe.stats.winrate import win_rate

MIN_EVENTS = 10
"""users with an event in both arms, below which the conditional test has no result yet (canary)"""
MAX_REPEATS = 1.2
"""events per user with an event, above which "one event per user" no longer describes them"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Support:
    """The users' mean preferences in [0, 1]: distinct means, and how many users have each.

    `sigma2`: planned variance of a user's preference, which the bets are tuned to.
    """

    both: tuple[Sequence[float], Sequence[float]]
    sigma2: float = betting.SIGMA2_BOTH_ORDERS


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A metric with its arms' values.

    Attributes:
        metric: which.
        control: control's value with its own interval.
        treatment: the treatment's.
        at: `at(alpha, scale)` is the difference at a level: treatment − control, or treatment / control − 1.
        missing: what is unknown of its values; None where none can be, or nothing was measured at all.
        user_terms: (users, each user's part of the error of the difference), for a metric whose sums per user are in no table.
    """

    metric: Metric
    control: ArmValue
    treatment: ArmValue
    at: Callable[[float, Scale], Estimate]
    missing: Missing | None = None
    user_terms: tuple[Sequence[int], Sequence[float]] | None = None

    def both(self, level: float) -> tuple[Estimate, Estimate]:
        """The difference and the relative difference at a level, which agree on whether there is one.

        Their intervals come from two approximations (a difference, the logarithm of a ratio) that may part at the very edge;
        where one reaches 0, the other is extended to it, so that a row never concludes against one of its own intervals.
        """
        absolute, relative = self.at(level, "absolute"), self.at(level, "relative")
        if absolute.reaches_zero:
            return absolute, relative.extended_to_zero()
        return (absolute.extended_to_zero() if relative.reaches_zero else absolute), relative

    def deciding(self, level: float, scale: Scale) -> Estimate:
        """What is compared with the margin: the difference on the margin's scale."""
        return self.both(level)[1] if scale == "relative" else self.at(level, "absolute")

    @property
    def is_empty(self) -> bool:
        """Neither arm has a value."""
        return self.control.value is None and self.treatment.value is None

    def with_missing(self, missing: Missing | None) -> Measured:
        """The same numbers beside what is unknown; where the arms are then not comparable, they conclude nothing."""
        note = None if missing is None else note_of(missing, self.metric.name)
        if missing is None or note is None:
            return replace(self, missing=missing)
        measured, differs = self.at, missing.differs

        @cache
        def at(level: float, scale: Scale) -> Estimate:
            estimate = measured(level, scale)
            status = MISSING_DIFFERS if differs else estimate.status
            both = "; ".join(part for part in (None if differs else estimate.note, note) if part)
            return replace(estimate, status=status, note=both)

        return replace(self, at=at, missing=missing)


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCounts:
    """One canary stage of an event: users with the event of either arm, the treatment's share of the users, and by request
    control's and the treatment's number and both arms' events. `weight` of the stage in the values and the difference."""

    treatment_users: int
    control_users: int
    share: float
    treatment_n: float
    control_n: float
    events: float
    weight: float


# From rows to per-user sums to the aggregates the statistics take.
#
# Pass 1, one query for all metrics, sums every metric's numerator and denominator per user and arm (`ev_users`, one row
# per group and user); pass 2 makes each metric's totals and residual sums from these arrays (`stats.clusters`). A group
# is the whole experiment, a canary stage, or one value of a segment. For events the clusters may also be clock hours,
# blocks of hours or days.


@dataclass(frozen=True, kw_only=True, slots=True)
class Aggregates:
    """One metric within one group: each arm alone and both together.

    `heaviness`: (control's, treatment's) ΣW²/ΣW over users with W requests; 1 where every user has one.
    """

    control: ArmAggregate
    treatment: ArmAggregate
    paired: PairedAggregate
    heaviness: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class EventCounts:
    """What the methods for events need beside the users' aggregates.

    Attributes:
        t_only: pairs in which only the treatment has the event (shadow mode), of `n` pairs.
        c_only: pairs in which only control has it.
        n: pairs.
        times: the event summed by clock hour, by block of hours and by day.
        stages: of a canary that is looked at any time.
    """

    t_only: int = 0
    c_only: int = 0
    n: int = 0
    times: Sequence[Aggregates] = ()
    stages: Sequence[StageCounts] = ()


def unmeasured(item: Metric, status: str) -> Measured:
    """A metric without values."""
    empty = ArmValue(value=None, n=0)

    def at(level: float, scale: Scale) -> Estimate:
        return Estimate(point=None, confidence_level=1 - level, status=status)

    return Measured(metric=item, control=empty, treatment=empty, at=at)


def measure_ratio(
    item: Metric, found: Aggregates | None, look_plan: LookPlan, *, counts: EventCounts | None = None
) -> Measured:
    """A mean, a ratio, or with `counts` the rate of an event; `found` None where no request has a value."""
    if found is None:
        return unmeasured(item, "no_data")
    multiplier = look_plan.multiplier(item.name)

    @cache  # the table, the rules and the reasons ask for the same few levels
    def at(level: float, scale: Scale) -> Estimate:
        if counts is not None:
            return _event_difference(item, found, look_plan, counts, level, scale)
        if look_plan.paired:
            return paired_difference(found.paired, multiplier=multiplier, alpha=level, scale=scale)
        return unpaired_difference(found.control, found.treatment, multiplier=multiplier, alpha=level, scale=scale)

    times = () if counts is None else counts.times
    return Measured(
        metric=item,
        control=_arm_value(found.control, [one.control for one in times], look_plan, item.name),
        treatment=_arm_value(found.treatment, [one.treatment for one in times], look_plan, item.name),
        at=at,
    )


def measure_preference(item: Metric, look_plan: LookPlan, *, support: Support, n_pairs: int) -> Measured:
    """The win rate: treatment θ = the mean over users of their mean preference, control 1 − θ, difference θ − 1/2.

    Args:
        item: the metric.
        look_plan: the plan of looks.
        support: the users' means.
        n_pairs: judged pairs behind them.
    """
    values, counts = support.both
    if not sum(counts):
        return unmeasured(item, "no_data")

    @cache
    def at(level: float, scale: Scale) -> Estimate:
        estimate = win_rate(
            values,
            counts,
            multiplier=look_plan.multiplier(item.name),
            alpha=level,
            bets=look_plan.bets(item.name, level, sigma2=support.sigma2),
            n=n_pairs,
        )
        return from_half(estimate, scale)

    shown = at(look_plan.alpha, "absolute")
    point, low, high = (None if one is None else one + 0.5 for one in (shown.point, shown.ci_low, shown.ci_high))
    treatment = ArmValue(value=point, n=n_pairs, ci_low=low, ci_high=high)
    control = ArmValue(value=one_minus(point), n=n_pairs, ci_low=one_minus(high), ci_high=one_minus(low))
    return Measured(metric=item, control=control, treatment=treatment, at=at)


def _event_difference(
    item: Metric, found: Aggregates, look_plan: LookPlan, counts: EventCounts, alpha: float, scale: Scale
) -> Estimate:
    """Errors, timeouts, empty answers, refusals, truncations, per request."""
    multiplier = look_plan.multiplier(item.name)
    times = [one.paired for one in counts.times]
    if counts.stages:
        with_event = sum(one.treatment_users + one.control_users for one in counts.stages)
        if with_event >= MIN_EVENTS and sum(one.events for one in counts.stages) <= MAX_REPEATS * with_event:
            return _conditional(found, counts.stages, times, alpha, scale)
    if scale == "relative":
        if look_plan.paired:
            widest = _widest(found.paired, times)
            return paired_difference(widest, multiplier=multiplier, alpha=alpha, scale=scale)
        effect = _design_effect(found, times)
        control, treatment = (_inflated(arm, effect) for arm in (found.control, found.treatment))
        return unpaired_difference(control, treatment, multiplier=multiplier, alpha=alpha, scale=scale)
    if not look_plan.paired:
        return unpaired_events(
            found.control,
            found.treatment,
            times=times,
            heaviness=found.heaviness,
            multiplier=multiplier,
            alpha=alpha,
        )
    return paired_events(
        t_only=counts.t_only,
        c_only=counts.c_only,
        n=counts.n,
        users=found.paired,
        times=times,
        heaviness=max(found.heaviness),
        multiplier=multiplier,
        alpha=alpha,
        bets=look_plan.bets(item.name, alpha, sigma2=SIGMA2_PAIRED_BINARY),
    )


def _conditional(
    found: Aggregates, stages: Sequence[StageCounts], times: Sequence[PairedAggregate], alpha: float, scale: Scale
) -> Estimate:
    """A canary's rates: whose event was it? The counts are divided by the design effect of time.

    The point is that of the weighted rates; the limits of the rate ratio become limits of the difference at the same weights,
    stage by stage at the stage's pooled rate (of rare events it is known far better than the ratio). Weighted rates and the
    ratio of counts may disagree a little: the limits are widened to hold the point.
    """
    rate_c, rate_t = found.control.ratio or 0.0, found.treatment.ratio or 0.0
    effect = _design_effect(found, times)
    ratio = event_rates.rate_ratio(
        [
            event_rates.Stage(
                treatment_events=one.treatment_users / effect,
                control_events=one.control_users / effect,
                share=one.share,
            )
            for one in stages
        ],
        alpha=alpha,
    )

    def difference(above: float | None) -> float | None:
        """A limit of ratio − 1 as a difference; None is no upper limit of the ratio."""
        if above is None:
            return sum(one.weight * one.events / one.treatment_n for one in stages)
        rho = 1 + above
        return sum(one.weight * (rho - 1) * one.events / (rho * one.treatment_n + one.control_n) for one in stages)

    low, high = ratio.ci_low, ratio.ci_high
    point: float | None = rate_t - rate_c
    if scale == "relative":
        point = rate_t / rate_c - 1 if rate_c > 0 else None
    elif ratio.status == "ok":
        low, high = difference(low), difference(high)
    if point is not None:
        low = None if low is None else min(low, point)
        high = None if high is None else max(high, point)
    return replace(
        ratio,
        point=point,
        ci_low=low,
        ci_high=high,
        n=found.control.n + found.treatment.n,
        n_clusters=found.control.n_clusters + found.treatment.n_clusters,
        method=f"conditional events{'' if effect == 1 else ' / design effect'}, anytime",
        estimand=ratio.estimand if scale == "relative" else "treatment - control",
    )


def _design_effect(found: Aggregates, times: Sequence[PairedAggregate]) -> float:
    """How many times the variance is larger with times instead of users as clusters, at least 1 (unpaired)."""
    parts = [
        None if arm.spread is None else arm.spread.variance("jackknife") for arm in (found.control, found.treatment)
    ]
    users = sum(part or 0.0 for part in parts)
    largest = max((_variance(one.absolute, one.n_clusters) for one in times), default=0.0)
    return max(1.0, largest / users) if users > 0 else 1.0


def _widest(users: PairedAggregate, times: Sequence[PairedAggregate]) -> PairedAggregate:
    """The users' aggregate with the largest relative spread over users, hours, blocks of hours or days."""
    candidates = [(users.relative, users.n_clusters), *((one.relative, one.n_clusters) for one in times)]
    spread, _ = max(candidates, key=lambda one: _variance(*one))
    return replace(users, relative=spread)


def _variance(spread: Spread | None, n_clusters: int) -> float:
    """The jackknife variance; 0 where there are too few clusters to have one."""
    if spread is None or n_clusters < estimates.MIN_CLUSTERS:
        return 0.0
    return spread.variance("jackknife") or 0.0


def _inflated(arm: ArmAggregate, effect: float) -> ArmAggregate:
    if arm.spread is None or effect == 1:
        return arm
    v_jack, v_lin = arm.spread.v_jack, arm.spread.v_lin
    spread = replace(
        arm.spread,
        v_jack=None if v_jack is None else effect * v_jack,
        v_lin=None if v_lin is None else effect * v_lin,
    )
    return replace(arm, spread=spread)


def _arm_value(arm: ArmAggregate, times: Sequence[ArmAggregate], look_plan: LookPlan, name: str) -> ArmValue:
    """An arm's value with its own interval, over the clusters (users, hours, blocks of hours, days) with the largest variance."""
    widest = max([arm, *times], key=lambda one: _variance(one.spread, one.n_clusters))
    estimate = arm_interval(widest, multiplier=look_plan.multiplier(name), alpha=look_plan.alpha)
    value, low, high = arm.ratio, estimate.ci_low, estimate.ci_high
    if value is not None and low is not None and high is not None:
        low, high = min(low, value), max(high, value)
    return ArmValue(
        value=value,
        n=arm.n,
        ci_low=low,
        ci_high=high,
        numerator=arm.numerator,
        denominator=arm.denominator,
    )


def from_half(estimate: Estimate, scale: Scale) -> Estimate:
    """A win rate as its difference to one half; on the relative scale as a share of one half."""
    unit = 0.5 if scale == "relative" else 1.0

    def moved(value: float | None) -> float | None:
        return None if value is None else (value - 0.5) / unit

    return replace(
        estimate,
        point=moved(estimate.point),
        ci_low=moved(estimate.ci_low),
        ci_high=moved(estimate.ci_high),
        standard_error=None if estimate.standard_error is None else estimate.standard_error / unit,
        estimand="treatment - control",
    )


def one_minus(value: float | None) -> float | None:
    """Control's share where the treatment's is `value`."""
    return None if value is None else 1 - value


READ_WHOLE = 50_000
"""users (of all groups) up to whom the sums are read at once"""
USERS_AT_ONCE = 600_000
"""users whose sums are made at once: some 300 MB"""
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
class Discordant:
    """The pairs in which only that side has the event (a binary `Ratio`), of the pairs that count for it."""

    event: Ratio


def sum_by_user(
    connection: Connection,
    sums: Sequence[Ratio | Below | Discordant],
    *,
    paired: bool,
    table: str = "ev_users",
    source: str | None = None,
    group: str = "''",
    condition: str = "true",
    cluster: str = "u",
    n_users: int | None = None,
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
        n_users: how many users those rows have, about; None: to be found.
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
    # Once per user and arm, then the two arms beside each other: half the work of summing each arm apart.
    beside = ", ".join(
        f"any_value({name}) FILTER ({ARM[side]}) AS {name}_{side}" for name in columns.values() for side in SIDES
    )
    rows_of = source or ("ev_pairs" if paired else "ev_rows")

    def summed(users: str) -> str:
        by_arm = "" if paired else "treatment, "
        query = (
            f"SELECT {cluster} AS u, {group} AS grp, {by_arm}count(*) AS requests, {inner} FROM {rows_of} "
            f"WHERE ({condition}) AND {users} GROUP BY ALL"
        )
        if not paired:
            query = f"SELECT u, grp, sum(requests) AS requests, {beside} FROM ({query}) GROUP BY u, grp"
        return query

    distributed = as_distributed(connection)
    if distributed is not None and distributed.by_user and rows_of == "ev_pairs":
        (made,) = over_pairs(connection, [summed("true")])
        if cluster == "u":
            connection.execute(f"CREATE OR REPLACE TEMP VIEW {table}_sums AS FROM {made}")
        else:
            totals = ", ".join(f"sum({name}) AS {name}" for name in ("requests", *columns.values()))
            connection.execute(
                f"CREATE OR REPLACE TEMP TABLE {table}_sums AS SELECT u, grp, {totals} FROM {made} GROUP BY u, grp"
            )
    else:
        slices = _slices(connection, rows_of, condition, n_users) if cluster == "u" else ["true"]
        for number, slice_ in enumerate(slices):
            connection.execute(f"{fill_large(connection, f'{table}_sums', is_first=not number)} {summed(slice_)}")
    connection.execute(
        f"CREATE OR REPLACE TEMP VIEW {table} AS SELECT u, grp, requests, {', '.join(named)} FROM {table}_sums"
    )


def _slices(connection: Connection, source: str, condition: str, n_users: int | None) -> list[str]:
    """Conditions on u that take the users apart, where the sums of all of them at once would not fit into memory."""
    if not is_on_disk(connection):
        return ["true"]
    if n_users is None:
        n_users = int(scalar(connection, f"SELECT approx_count_distinct(u) FROM {source} WHERE {condition}"))
    return hash_ranges("u", n_users // USERS_AT_ONCE + 1)


def _sums(values: Ratio | Below | Discordant, side: str, prefix: str) -> dict[str, tuple[str, float]]:
    """The sums of one side by part (s numerator, w denominator, n requests): (SQL aggregate, factor)."""
    if isinstance(values, Discordant):
        event, other = values.event, "c_" if side == "t" else "t_"
        only = f"{event.rows} AND {prefix}{event.numerator} AND NOT {other}{event.numerator}"
        return {"s": (_count(only), 1.0), "w": (_count(event.rows), 1.0)}
    n = (_count(values.rows), 1.0)
    if isinstance(values, Below):
        limit = values.limit(side) if prefix else _limit_by_arm(values)
        return {"s": (_count(f"{values.rows} AND {prefix}{values.value} <= {limit}"), 1.0), "w": n}
    numerator = f"{prefix}{values.numerator}"
    if values.binary:
        return {"s": (_count(f"{values.rows} AND {numerator}"), 1.0), "w": n}
    total = (f"sum(CASE WHEN {values.rows} THEN {numerator} END)", values.factor)
    if values.denominator == "1":
        return {"s": total, "w": n}
    denominator = f"{prefix}{values.denominator}"
    return {"s": total, "w": (f"sum(CASE WHEN {values.rows} THEN {denominator}::DOUBLE END)", 1.0), "n": n}


def _count(condition: str) -> str:
    """SQL: in how many rows the condition holds. With millions of users the state of a sum takes four times the memory."""
    return f"count(CASE WHEN {condition} THEN 1 END)"


def _limit_by_arm(values: Below) -> str:
    return f"CASE WHEN treatment THEN {values.limit('t')} ELSE {values.limit('c')} END"


_Wanted = tuple[str, bool, bool]


class UserSums:
    """The users' sums of one table as arrays, by group.

    Small tables are read whole, as planning a query costs more than reading them; of large ones the columns of a metric are read
    when they are asked for, so that memory stays at six numbers a user, and as many while the next ones are read.
    """

    def __init__(self, connection: Connection, table: str = "ev_users") -> None:
        """Args:
        connection: where `table` was made, by `sum_by_user` or with such columns.
        table: its name.
        """
        self._connection, self._table = connection, table
        self._found: dict[_Wanted, dict[str, Aggregates]] = {}
        sizes = rows(connection, f"SELECT grp, count(*) AS n FROM {table} GROUP BY grp ORDER BY grp")
        self._groups = [row["grp"] for row in sizes]
        self._whole: dict[Any, dict[str, Any]] | None = None
        if sum(row["n"] for row in sizes) <= READ_WHOLE:  # Arrow takes longer to import than these take to read
            query = self._query("* EXCLUDE (u, grp)")
            self._whole = {group: connection.execute(query, [group]).fetchnumpy() for group in self._groups}

    def aggregate(
        self,
        name: str,
        *,
        counted: bool = False,
        binary: bool = False,
    ) -> dict[str, Aggregates]:
        """Pass 2: the aggregates of one of the sums, by group.

        Args:
            name: its columns' prefix, such as m0.
            counted: the requests are counted apart (name_nt, name_nc) because the denominator is not 1 per request.
            binary: events are counted for the gates.
        """
        self.read_ahead([(name, counted, binary)])
        return self._found[name, counted, binary]

    def read_ahead(self, wanted: Sequence[_Wanted]) -> None:
        """Make the aggregates of these (name, counted, binary), see `aggregate`: the sums of one are read while another's
        aggregates are made."""
        missing = [key for key in dict.fromkeys(wanted) if key not in self._found]
        self._found |= {key: {} for key in missing}
        steps = [(key, group) for key in missing for group in self._groups]
        read = ((key, group, self._arrays(group, *key[:2])) for key, group in steps)
        made = made_while_reading(read, _aggregated) if self._whole is None else map(_aggregated, read)
        for key, group, aggregates in made:
            if aggregates is not None:
                self._found[key][group] = aggregates

    def _arrays(self, group: Any, name: str, counted: bool) -> list[Array]:
        """Of each user: the treatment's numerator and denominator, control's, and the requests of both."""
        n = f"{name}_n" if counted else f"{name}_w"
        columns = [f"{name}_st", f"{name}_wt", f"{name}_sc", f"{name}_wc", f"{n}t", f"{n}c"]
        read = self._whole[group] if self._whole is not None else self._read(group, dict.fromkeys(columns))
        return [np.asarray(read[column], float) for column in columns]

    def _query(self, columns: str) -> str:
        """The query of a group's rows; its parameter is the group."""
        return f"SELECT {columns} FROM {self._table} WHERE grp IS NOT DISTINCT FROM ?"

    def _read(self, group: Any, columns: Iterable[str]) -> dict[str, Any]:
        """By way of Arrow: a quarter of the time that NumPy's arrays of millions of users take by themselves."""
        table = self._connection.sql(self._query(", ".join(columns)), params=[group]).to_arrow_table()
        return {name: table.column(name).to_numpy() for name in columns}


def _aggregated(read: tuple[_Wanted, Any, list[Array]]) -> tuple[_Wanted, str, Aggregates | None]:
    """The aggregates of a group's sums; None where there is nothing in them."""
    (name, counted, binary), group, (st, wt, sc, wc, nt, nc) = read
    if not any(bool(one.any()) for one in (wt, wc, st, sc)):
        return (name, counted, binary), str(group), None
    if counted:  # else the requests are the denominators
        seen = carrying(st, wt) | carrying(sc, wc)
        nt, nc = nt[seen], nc[seen]
    return (name, counted, binary), str(group), _aggregates(st, wt, sc, wc, nt, nc, binary=binary)


def _aggregates(st: Array, wt: Array, sc: Array, wc: Array, nt: Array, nc: Array, *, binary: bool) -> Aggregates:
    """From the users' sums: numerator, denominator and requests of the treatment (t) and of control (c)."""
    paired = paired_aggregate(st, wt, sc, wc, n_pairs=round(float(np.minimum(nt, nc).sum())))
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
