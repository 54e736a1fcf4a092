"""Latency quantiles in three SQL passes: the quantiles, how users spread around them, the quantiles at the limits.

Statistics.md 8: type-1 quantiles (`quantile_disc`), Woodruff limits per arm, MOVER for the difference. All levels that any
interval of the decision needs are asked for together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from evalpipe.analysis.connection import Connection, rows
from evalpipe.analysis.looking import Looking
from evalpipe.analysis.measure import Measured
from evalpipe.analysis.metrics import Metric, Quantile
from evalpipe.analysis.result import ArmValue, LatencyCurve
from evalpipe.analysis.sums import Aggregates, Below, UserSums
from evalpipe.stats.cluster import ArmAggregate
from evalpipe.stats.difference import Scale
from evalpipe.stats.estimate import Estimate
from evalpipe.stats.quantile import (
    LimitLevels,
    QuantileAggregate,
    QuantileLimits,
    critical,
    limit_levels,
    quantile_difference,
)

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
        self, connection: Connection, items: Sequence[Metric], looking: Looking, *, only: str | None = None
    ) -> None:
        """`only`: a condition on the rows that count, on top of each metric's own."""
        self._connection, self._looking = connection, looking
        chosen = [(item, item.values) for item in items if isinstance(item.values, Quantile)]
        self._quantiles = [
            (item, values if only is None else replace(values, rows=f"({values.rows} AND {only})"))
            for item, values in chosen
        ]
        self._points = _points(connection, [values for _, values in self._quantiles])
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
                self._looking,
                alphas,
            )
            for (item, values), column in zip(self._quantiles, columns, strict=True)
        ]
        limits = _quantiles_at(self._connection, requests)
        return [_measured(request, self._looking, limits) for request in requests]

    def _seen(self, values: Quantile) -> bool:
        return any(self._points[values.value, values.rows, arm].get(values.share) is not None for arm in (False, True))


def latency_curves(connection: Connection) -> list[LatencyCurve]:
    """The latency distribution of both arms over the requests of the latency metrics."""
    curves = []
    for arm, name in ((False, "control"), (True, "treatment")):
        row = rows(
            connection,
            f"SELECT count(latency_ms) AS n, quantile_disc(latency_ms, {list(CURVE)}) AS q FROM ev_rows "
            f"WHERE treatment = {arm} AND has_latency",
        )[0]
        if row["n"]:
            curves.append(LatencyCurve(arm=name, quantiles=list(CURVE), values_ms=list(row["q"]), n=row["n"]))
    return curves


def _points(
    connection: Connection, wanted: Sequence[Quantile]
) -> dict[tuple[str, str, bool], dict[float, float | None]]:
    """Pass 1: the quantiles themselves, by (value, rows, arm) and share."""
    found: dict[tuple[str, str, bool], dict[float, float | None]] = {}
    for value, condition in dict.fromkeys((one.value, one.rows) for one in wanted):
        shares = sorted({one.share for one in wanted if (one.value, one.rows) == (value, condition)})
        for arm in (False, True):
            row = rows(
                connection,
                f"SELECT quantile_disc({value}, {shares}) AS q FROM ev_rows WHERE treatment = {arm} AND {condition}",
            )[0]
            values = row["q"] or [None] * len(shares)
            found[value, condition, arm] = dict(zip(shares, values, strict=True))
    return found


def _request(
    item: Metric,
    values: Quantile,
    found: Aggregates | None,
    points: dict[tuple[str, str, bool], dict[float, float | None]],
    looking: Looking,
    alphas: Sequence[float],
) -> _Request:
    arms = {arm: _empty() for arm in (False, True)}
    correlation, users = 0.0, 0
    if found is not None:
        for arm, side in ((False, found.control), (True, found.treatment)):
            arms[arm] = _arm(side, points[values.value, values.rows, arm].get(values.share))
        both = found.paired.absolute
        v_t, v_c = arms[True].variance, arms[False].variance
        if looking.paired and both is not None and both.v_lin is not None and v_t and v_c:
            correlation = (v_t + v_c - both.v_lin) / (2 * math.sqrt(v_t * v_c))
        users = found.paired.n_clusters
    levels = {}
    multiplier = looking.multiplier(item.name)
    for alpha in alphas:
        c = critical(
            arms[False].n_clusters, arms[True].n_clusters, paired=looking.paired, multiplier=multiplier, alpha=alpha
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
    connection: Connection, requests: Sequence[_Request]
) -> dict[tuple[str, str, bool, float], float | None]:
    """Pass 3: the quantile at every level of every interval, one query per value and arm."""
    found: dict[tuple[str, str, bool, float], float | None] = {}
    for value, condition in dict.fromkeys((one.values.value, one.values.rows) for one in requests):
        for arm in (False, True):
            wanted = sorted(
                {
                    level
                    for one in requests
                    if (one.values.value, one.values.rows) == (value, condition)
                    for (_, side), levels in one.levels.items()
                    if side == arm
                    for level in (levels.low, levels.high)
                    if level is not None
                }
            )
            if not wanted:
                continue
            row = rows(
                connection,
                f"SELECT quantile_disc({value}, {[float(level) for level in wanted]}) AS q FROM ev_rows "
                f"WHERE treatment = {arm} AND {condition}",
            )[0]
            for level, quantile in zip(wanted, row["q"] or [None] * len(wanted), strict=True):
                found[value, condition, arm, level] = quantile
    return found


def _measured(
    request: _Request, looking: Looking, limits: dict[tuple[str, str, bool, float], float | None]
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
            paired=looking.paired,
            multiplier=looking.multiplier(request.item.name),
            alpha=alpha,
            scale=scale,
            n_clusters=request.n_users or None,
        )

    def shown(arm: bool) -> ArmValue:
        own = side(looking.alpha, arm)
        return ArmValue(value=own.quantile, n=own.n, ci_low=own.low, ci_high=own.high)

    return Measured(metric=request.item, control=shown(False), treatment=shown(True), at=at)
