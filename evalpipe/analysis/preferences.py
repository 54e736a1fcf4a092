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
from evalpipe.stats.estimate import Estimate

Array = npt.NDArray[np.float64]
METRIC = "win_rate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdicts:
    """The pairs of one judge as arrays of one length.

    Attributes:
        x: preference for the treatment, in [0, 1].
        treatment_first: score with the treatment shown first; NaN where it was not judged so.
        control_first: likewise.
        length_difference: characters, treatment − control; NaN where an answer is not known or empty.
        users: the user's number, from 0.
        counts: whether the pair counts in the win rate (chosen, and of the turns that are the goal).
    """

    x: Array
    treatment_first: Array
    control_first: Array
    length_difference: Array
    users: npt.NDArray[np.int64]
    counts: npt.NDArray[np.bool_]

    @property
    def both_orders(self) -> npt.NDArray[np.bool_]:
        return ~np.isnan(self.treatment_first) & ~np.isnan(self.control_first)


def preference_estimate(
    x: Array,
    users: npt.NDArray[np.int64],
    looking: Looking,
    alpha: float,
    *,
    sigma2: float = betting.SIGMA2_BOTH_ORDERS,
) -> Estimate:
    """The win rate of pairs: the mean over users of their mean preference, by the experiment's way of looking.

    Args:
        x: preferences in [0, 1].
        users: each pair's user.
        alpha: two-sided level.
        sigma2: planned variance of a user's preference, which the bets are tuned to.
    """
    sums, counts = by_user(x, users)
    means, units = (
        np.unique(np.round(sums / counts, 12), return_counts=True) if len(x) else (np.array([]), np.array([]))
    )
    return winrate.win_rate(
        means,
        units,
        multiplier=looking.multiplier(METRIC),
        alpha=alpha,
        bets=looking.bets(METRIC, alpha, sigma2=sigma2),
        n=len(x),
    )


def read_verdicts(connection: Connection, judge: JudgeSeen, *, deciding: bool) -> Verdicts:
    """The pairs that have what was promised, in the order of their hashes.

    Args:
        deciding: only the pairs of `ev_chosen` count; of any other judge all do. `ev_lengths` must be there.
    """
    chosen = "c.id IS NOT NULL AND NOT c.later" if deciding else "true"
    found: dict[str, Any] = connection.execute(
        "SELECT x, coalesce(s_t, 'nan'::DOUBLE) AS s_t, coalesce(s_c, 'nan'::DOUBLE) AS s_c, "
        "coalesce(dl, 'nan'::DOUBLE)::DOUBLE AS dl, dense_rank() OVER (ORDER BY v.u) - 1 AS u, "
        f"{chosen} AS counts "
        "FROM ev_verdicts v LEFT JOIN ev_lengths l USING (id) LEFT JOIN ev_chosen c USING (id) "
        "WHERE judge = ? AND fingerprint = ? AND complete ORDER BY id",
        [judge.name, judge.fingerprint],
    ).fetchnumpy()
    return Verdicts(
        x=np.asarray(found["x"], float),
        treatment_first=np.asarray(found["s_t"], float),
        control_first=np.asarray(found["s_c"], float),
        length_difference=np.asarray(found["dl"], float),
        users=np.asarray(found["u"], np.int64),
        counts=np.asarray(found["counts"], bool),
    )


def by_user(values: Array, users: npt.NDArray[np.int64]) -> tuple[Array, Array]:
    """(sum, count) of each user that has values."""
    if len(values) == 0:
        return np.array([]), np.array([])
    counts = np.asarray(np.bincount(users), float)
    sums = np.asarray(np.bincount(users, weights=values), float)
    return sums[counts > 0], counts[counts > 0]
