"""How things went over time: the win rate as it grew with its interval, and plain rates per stretch of time."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from evalpipe.analysis.connection import Connection, rows
from evalpipe.analysis.looking import Looking
from evalpipe.analysis.preferences import preference_estimate
from evalpipe.analysis.prepare import Prepared
from evalpipe.analysis.result import Series, SeriesPoint
from evalpipe.analysis.verdicts import JudgeSeen

MAX_POINTS = 40
ROWS_PER_BIN = 40
"""a stretch of time holds as many rows of both arms on average: the rate of a handful of answers is noise"""
BINNED = {
    "error_rate": ("sum(failed::INTEGER)::DOUBLE / count(*)", "in_measured"),
    "p50_latency_ms": ("quantile_disc(latency_ms, 0.5)", "has_latency"),
    "cost_per_request_usd": ("avg(cost_usd)", "has_cost"),
    "output_tokens": ("avg(output_tokens)", "has_output"),
}


def measure_series(
    connection: Connection, prepared: Prepared, look: Looking, *, judge: JudgeSeen | None
) -> list[Series]:
    """Cumulative win rate (by the instant of the request) and binned rates of both arms."""
    found = []
    if judge is not None:
        found += _win_rate(connection, look, judge)
    if prepared.first_us is None or prepared.last_us is None or prepared.last_us <= prepared.first_us:
        return found
    n_rows = int(rows(connection, "SELECT count(*) AS n FROM ev_rows")[0]["n"])
    n_bins = max(2, min(MAX_POINTS, n_rows // ROWS_PER_BIN))
    width = max(1, -(-(prepared.last_us - prepared.first_us + 1) // n_bins))
    for name, (value, condition) in BINNED.items():
        points = _bins(connection, value, condition, prepared.first_us, width)
        if points:
            found.append(Series(metric=name, kind="binned", points=points))
    return found


def _win_rate(connection: Connection, look: Looking, judge: JudgeSeen) -> list[Series]:
    data = connection.execute(
        "SELECT x, dense_rank() OVER (ORDER BY v.u) - 1 AS u, at_us FROM ev_verdicts v JOIN ev_chosen c USING (id) "
        "WHERE judge = ? AND fingerprint = ? AND complete AND NOT c.later ORDER BY at_us, id",
        [judge.name, judge.fingerprint],
    ).fetchnumpy()
    x, users = np.asarray(data["x"], float), np.asarray(data["u"], np.int64)
    at = np.asarray(data["at_us"], np.int64)
    if len(x) < 2:
        return []
    points = []
    for n in np.unique(np.linspace(min(10, len(x)), len(x), MAX_POINTS).astype(int)):
        estimate = preference_estimate(x[:n], users[:n], look, look.alpha)
        treated = estimate.point if estimate.point is not None else 0.5
        points.append(
            SeriesPoint(
                at=_iso(int(at[n - 1])),
                control=1 - treated,
                treatment=treated,
                difference=treated - 0.5,
                ci_low=None if estimate.ci_low is None else estimate.ci_low - 0.5,
                ci_high=None if estimate.ci_high is None else estimate.ci_high - 0.5,
                n=int(n),
            )
        )
    return [Series(metric="win_rate", kind="cumulative", points=points)]


def _bins(connection: Connection, value: str, condition: str, first_us: int, width: int) -> list[SeriesPoint]:
    found = rows(
        connection,
        f"SELECT (at_us - {first_us}) // {width} AS bin, treatment, {value} AS value, count(*) AS n FROM ev_rows "
        f"WHERE {condition} GROUP BY ALL ORDER BY bin",
    )
    bins: dict[int, dict[bool, tuple[float, int]]] = {}
    for row in found:
        bins.setdefault(row["bin"], {})[row["treatment"]] = (row["value"], row["n"])
    points = []
    for position, arms in sorted(bins.items()):
        control, treatment = arms.get(False), arms.get(True)
        difference = treatment[0] - control[0] if control and treatment else None
        points.append(
            SeriesPoint(
                at=_iso(first_us + position * width),
                control=control[0] if control else None,
                treatment=treatment[0] if treatment else None,
                difference=difference,
                ci_low=None,
                ci_high=None,
                n=(control[1] if control else 0) + (treatment[1] if treatment else 0),
            )
        )
    return points


def _iso(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="milliseconds")
