"""One judge's verdicts as arrays, and the win rate they make. Only judged pairs come here, never the log's rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from evalpipe.analysis.connection import Connection
from evalpipe.analysis.looking import Looking
from evalpipe.analysis.verdicts import JudgeSeen
from evalpipe.stats import betting, winrate
from evalpipe.stats.cluster import arm_aggregate
from evalpipe.stats.estimate import Estimate

Array = npt.NDArray[np.float64]
METRIC = "win_rate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdicts:
    """The pairs of one judge as arrays: preference x, scores by what was shown first (NaN = not judged so), users' sums."""

    x: Array
    treatment_first: Array
    control_first: Array
    length_difference: Array
    users: npt.NDArray[np.int64]
    ranks: npt.NDArray[np.int64]
    """of each pair's user in the planned order of judging"""

    @property
    def both_orders(self) -> npt.NDArray[np.bool_]:
        return ~np.isnan(self.treatment_first) & ~np.isnan(self.control_first)


def preference_estimate(
    x: Array,
    users: npt.NDArray[np.int64],
    looking: Looking,
    alpha: float,
    *,
    ranks: npt.NDArray[np.int64] | None = None,
    sigma2: float = betting.SIGMA2_BOTH_ORDERS,
) -> Estimate:
    """The win rate of pairs with preferences `x`, clustered by user, by the experiment's way of looking.

    `ranks`: of each pair's user in the planned order of judging; the evidence is then followed along it.
    """
    sums, counts = by_user(x, users)
    in_order = None
    if ranks is not None and len(x):
        in_order = (sums / counts)[np.argsort(np.bincount(users, weights=ranks) / np.bincount(users), kind="stable")]
    means, units = (
        np.unique(np.round(sums / counts, 12), return_counts=True) if len(x) else (np.array([]), np.array([]))
    )
    return winrate.win_rate(
        arm_aggregate(sums, counts, n=len(x)),
        values=means,
        counts=units,
        multiplier=looking.multiplier(METRIC),
        alpha=alpha,
        bets=looking.bets(METRIC, alpha, sigma2=sigma2),
        in_order=in_order,
    )


def read_verdicts(connection: Connection, judge: JudgeSeen) -> Verdicts:
    """The pairs that have what was promised, in the order of their hashes (`ev_lengths` must be there)."""
    found: dict[str, Any] = connection.execute(
        "SELECT x, coalesce(s_t, 'nan'::DOUBLE) AS s_t, coalesce(s_c, 'nan'::DOUBLE) AS s_c, "
        "coalesce(dl, 'nan'::DOUBLE)::DOUBLE AS dl, dense_rank() OVER (ORDER BY u) - 1 AS u, "
        "dense_rank() OVER (ORDER BY rank, u) - 1 AS user_rank "
        "FROM ev_verdicts LEFT JOIN ev_lengths USING (id) LEFT JOIN ev_order USING (u) "
        "WHERE judge = ? AND fingerprint = ? AND complete ORDER BY id",
        [judge.name, judge.fingerprint],
    ).fetchnumpy()
    return Verdicts(
        x=np.asarray(found["x"], float),
        treatment_first=np.asarray(found["s_t"], float),
        control_first=np.asarray(found["s_c"], float),
        length_difference=np.asarray(found["dl"], float),
        users=np.asarray(found["u"], np.int64),
        ranks=np.asarray(found["user_rank"], np.int64),
    )


def by_user(values: Array, users: npt.NDArray[np.int64]) -> tuple[Array, Array]:
    """(sum, count) of each user that has values."""
    if len(values) == 0:
        return np.array([]), np.array([])
    counts = np.asarray(np.bincount(users), float)
    sums = np.asarray(np.bincount(users, weights=values), float)
    return sums[counts > 0], counts[counts > 0]
