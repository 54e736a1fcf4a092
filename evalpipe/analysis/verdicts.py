"""From judge calls to one verdict per pair and judge, the pairs that count, and the win rate they make.

Tables made here (all temporary; only judged pairs, so they are small):

- `ev_verdicts`: judge, fingerprint, id, u, x (preference for the treatment, the mean of what was answered per order),
  s_t and s_c (the score with the treatment, the control shown first), `complete` (every order that was promised has a final
  answer), failures and length difference.
- `ev_scores`: judge, fingerprint, id, u, dimension, control and treatment (mean score over orders and repeats).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from evalpipe.analysis.intervals import Aggregates, UserSums
from evalpipe.analysis.record import ExperimentRecord
from evalpipe.analysis.settings import JudgeInfo, LookPlan, Settings
from evalpipe.analysis.sql import Connection, rows, scalar
from evalpipe.analysis.turns import LEAST_TO_TELL, goal_turns, mark_first_turns
from evalpipe.files import sql_statements
from evalpipe.models import FINAL
from evalpipe.stats import betting, winrate
from evalpipe.stats.estimates import Estimate

IMPORTED = "imported"
"""what the fingerprint of a judge starts with that another tool ran: nothing but its name is known of it"""

_SQL = sql_statements("evalpipe.analysis", "verdicts.sql")

SUPERSEDED = """SELECT experiment, key,
            (CASE WHEN json_valid(note) THEN note END ->> '$.reparsed_attempt')::BIGINT AS attempt
          FROM judgments WHERE contains(note, 'reparsed_attempt')"""
"""Attempts whose stored reply was read again: they count as the later row reads them, a verdict or none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeSummary:
    """A judge that the judgments hold: one entry per name and fingerprint (a changed rubric is another judge)."""

    name: str
    fingerprint: str
    model: str | None
    simulated: bool
    imported: bool
    pairwise: bool
    n_pairs: int
    orders: str

    @property
    def sigma2(self) -> float:
        """The planned variance of a user's preference, which the bets are tuned to."""
        return betting.SIGMA2_BOTH_ORDERS if self.orders == "both" else betting.SIGMA2_ONE_ORDER


def prepare_verdicts(connection: Connection, *, experiment: str, settings: Settings) -> list[JudgeSummary]:
    """Make `ev_verdicts` and `ev_scores`; returns the judges, the one judged with last first within a name."""
    connection.execute(_SQL["calls"].format(superseded=SUPERSEDED), {"final": sorted(FINAL), "experiment": experiment})
    judges = _judges_seen(connection, settings.judges)
    # What every pair is due: both orders, unless configured otherwise; nothing in other tools' logs.
    relaxed = [judge.fingerprint for judge in judges if judge.imported or judge.orders != "both"]
    connection.execute(_SQL["verdicts"], {"relaxed": relaxed})
    connection.execute(_SQL["scores"])
    return judges


def users_means(
    connection: Connection, judge: JudgeSummary, *, later: bool = False
) -> tuple[list[float], list[int], int]:
    """The users' mean preferences x_u for the treatment over the pairs that count (`ev_chosen`).

    Args:
        judge: whose complete verdicts count.
        later: of the pairs of later turns.

    Returns:
        Distinct means in [0, 1], how many users have each, and the pairs behind them.
    """
    found = rows(
        connection,
        "SELECT round(x, 12) AS x, count(*) AS users, sum(n)::BIGINT AS pairs FROM ("
        "  SELECT avg(x) AS x, count(*) AS n FROM ev_verdicts v JOIN ev_chosen c USING (id) "
        f"  WHERE judge = ? AND fingerprint = ? AND complete AND {'c.later' if later else 'NOT c.later'} GROUP BY v.u"
        ") GROUP BY 1 ORDER BY 1",
        [judge.name, judge.fingerprint],
    )
    return [row["x"] for row in found], [row["users"] for row in found], sum(row["pairs"] for row in found)


def _judges_seen(connection: Connection, infos: Sequence[JudgeInfo]) -> list[JudgeSummary]:
    orders = {info.name: info.orders for info in infos}
    seen = rows(connection, _SQL["judges"])
    return [
        JudgeSummary(
            name=row["judge"],
            fingerprint=row["fingerprint"],
            model=row["model"],
            simulated=bool(row["simulated"]),
            imported=row["fingerprint"].startswith(IMPORTED),
            pairwise=bool(row["pairwise"]),
            n_pairs=row["n_pairs"],
            orders=orders.get(row["judge"], "both"),
        )
        for row in seen
    ]


def deciding_judge(judges: Sequence[JudgeSummary], settings: Settings) -> JudgeSummary | None:
    """The judge whose win rate decides: the one asked for, else the first configured, else the one with most pairs.

    Of several fingerprints of one name: the configured one, else the one judged with last.
    """
    candidates = [judge for judge in judges if judge.pairwise]
    wanted = [settings.judge] if settings.judge else [info.name for info in settings.judges]
    fingerprints = {info.name: info.fingerprint for info in settings.judges if info.fingerprint}
    for name in wanted:
        named = [judge for judge in candidates if judge.name == name]
        if named:
            exact = [judge for judge in named if judge.fingerprint == fingerprints.get(name)]
            return (exact or named)[0]
    if settings.judge or not candidates:
        return None
    return max(candidates, key=lambda judge: (judge.n_pairs, judge.name))


def sum_quality(
    connection: Connection,
    *,
    judge: JudgeSummary | None,
    pointwise: Sequence[JudgeSummary],
    paired: bool,
    table: str = "ev_quality",
    group: str = "''",
    join: str = "",
) -> list[str]:
    """Per-user sums of every verdict metric that has data, in long form: `table` (metric, grp, u, st, wt, sc, wc). The win rate
    counts every user once (x_u over 1).

    Returns the names of the metrics with data. `join` adds a table that `group` refers to (segments).
    """
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE {table} (metric VARCHAR, grp VARCHAR, u UBIGINT, "
        "st DOUBLE, wt DOUBLE, sc DOUBLE, wc DOUBLE)"
    )
    if judge is not None and paired:
        # Each user counts once: their mean over the pairs that count (`ev_chosen`), with a weight of 1.
        for name, later in (("win_rate", "NOT c.later"), ("win_rate_later_turns", "c.later")):
            connection.execute(
                f"INSERT INTO {table} SELECT '{name}', {group}, v.u, avg(x), 1, 0.5, 1 "
                f"FROM ev_verdicts v JOIN ev_chosen c USING (id) {join} "
                f"WHERE judge = ? AND fingerprint = ? AND complete AND {later} GROUP BY ALL",
                [judge.name, judge.fingerprint],
            )
    taken: set[str] = set()
    for seen in [*([judge] if judge else []), *pointwise]:
        dimensions = [
            row["dimension"]
            for row in rows(
                connection,
                "SELECT DISTINCT dimension FROM ev_scores WHERE judge = ? AND fingerprint = ? ORDER BY dimension",
                [seen.name, seen.fingerprint],
            )
            if row["dimension"] not in taken
        ]
        taken.update(dimensions)
        # A pair counts where both sides have a score; a served answer of a split has only its own.
        both = "control IS NOT NULL AND treatment IS NOT NULL" if paired else "true"
        if dimensions:
            connection.execute(
                f"INSERT INTO {table} SELECT dimension || '_score', {group}, v.u, coalesce(sum(treatment), 0), "
                f"count(treatment), coalesce(sum(control), 0), count(control) FROM ev_scores v {join} "
                f"WHERE judge = ? AND fingerprint = ? AND list_contains(?::VARCHAR[], dimension) AND {both} GROUP BY ALL",
                [seen.name, seen.fingerprint, dimensions],
            )
        if seen is judge and dimensions:
            connection.execute(
                f"INSERT INTO {table} SELECT 'judge_score', {group}, v.u, coalesce(sum(treatment), 0), count(treatment), "
                "coalesce(sum(control), 0), count(control) FROM (SELECT id, u, avg(treatment) AS treatment, avg(control) "
                f"AS control FROM ev_scores WHERE judge = ? AND fingerprint = ? AND {both} GROUP BY id, u) v {join} GROUP BY ALL",
                [seen.name, seen.fingerprint],
            )
    if scalar(connection, "SELECT count(*) FROM feedback"):
        _sum_ratings(connection, table, group, join)
    connection.execute(f"DELETE FROM {table} WHERE wt = 0 AND wc = 0")
    return [row["metric"] for row in rows(connection, f"SELECT DISTINCT metric FROM {table} ORDER BY metric")]


def sum_wins(
    connection: Connection, judge: str, fingerprint: str, *, group: str, join: str = "", table: str = "ev_wins"
) -> dict[str, Aggregates]:
    """The win rate by `group` (SQL over `ev_verdicts` v and what `join` adds), every user counted once; `table` keeps the users'
    means as metric q, with their pairs as its requests."""
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE {table} AS SELECT {group} AS grp, v.u, avg(x) AS q_st, 1::DOUBLE AS q_wt, "
        "0.5::DOUBLE AS q_sc, 1::DOUBLE AS q_wc, count(*)::DOUBLE AS q_nt, count(*)::DOUBLE AS q_nc "
        f"FROM ev_verdicts v {join} "
        f"WHERE judge = ? AND fingerprint = ? AND complete AND {group} IS NOT NULL GROUP BY ALL",
        [judge, fingerprint],
    )
    return UserSums(connection, table).aggregate("q", counted=True)


def _sum_ratings(connection: Connection, table: str, group: str, join: str) -> None:
    """The end users' ratings, the last one of each answer."""
    connection.execute(_SQL["ratings"].format(table=table, group=group, join=join))


# One judge's verdicts as arrays, and the win rate they make. Only judged pairs come here, never the log's rows.


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
    look_plan: LookPlan,
    alpha: float,
    *,
    sigma2: float = betting.SIGMA2_BOTH_ORDERS,
) -> Estimate:
    """The win rate of pairs: the mean over users of their mean preference, by the experiment's plan of looks.

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
        multiplier=look_plan.multiplier(METRIC),
        alpha=alpha,
        bets=look_plan.bets(METRIC, alpha, sigma2=sigma2),
        n=len(x),
    )


def read_verdicts(connection: Connection, judge: JudgeSummary, *, deciding: bool) -> Verdicts:
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


# Which judged pairs count in the win rate: at most k a user, of the turns that are the goal, chosen once.
#
# A user's value is the mean over at most k pairs. They are chosen before their verdicts count: those in the record
# first, then asked pairs by arrival (time of the served answer, then request id). A pair chosen once stays chosen: an
# older pair that is loaded later displaces none, and a chosen pair without a verdict is missing. Pairs of later turns
# of shadowed conversations are chosen alike, apart: on them the treatment answers users who replied to control.


@dataclass(frozen=True, kw_only=True, slots=True)
class Chosen:
    """The pairs that count.

    Attributes:
        turns: "first" or "all", in force at this look.
        by_data: all turns are the goal because too few conversations show a first turn.
        request_ids: chosen pairs of the deciding judge, in the order they were chosen; empty where all count (k = 0).
        n_beyond: judged pairs beyond k, shown and not used.
        first_share: share of the conversations with a first turn; None where there are none.
        later_share: share of the pairs that are later turns.
        fixed_turns: what the record keeps from this look on; None while there are too few conversations.
        fixed_head: constant heads by system text, likewise.
    """

    turns: str
    by_data: bool = False
    request_ids: list[str] = field(default_factory=list)
    n_beyond: int = 0
    first_share: float | None = None
    later_share: float = 0.0
    n_conversations: int = 0
    fixed_turns: str | None = None
    fixed_head: dict[str, int] = field(default_factory=dict)


def choose_pairs(
    connection: Connection,
    judge: JudgeSummary | None,
    settings: Settings,
    record: ExperimentRecord | None,
    *,
    experiment: str,
) -> Chosen:
    """Make `ev_chosen` (id, u, later) for the judge that decides, and `ev_later` (id) for all requests.

    Args:
        judge: None where no pair was judged yet; the turns are determined anyway.
        record: what earlier looks chose and fixed.
    """
    before = record or ExperimentRecord(
        experiment=experiment, created_at="", n_star={}, confidence_level=0.95, rules=""
    )
    found = mark_first_turns(
        connection,
        experiment=experiment,
        head=before.head,
        already_read="SELECT id, conv, c_at_us AS at_us, turn, step, c_code <= 6 AND t_code BETWEEN 1 AND 6 AS compared "
        "FROM ev_requests WHERE c_code > 0",
    )
    turns = goal_turns(settings.turns, before.turns, found)
    enough = found.n_conversations >= LEAST_TO_TELL
    request_ids: list[str] = []
    n_beyond = 0
    if judge is None:
        connection.execute("CREATE OR REPLACE TEMP TABLE ev_chosen (id UBIGINT, u UBIGINT, later BOOLEAN)")
    else:
        recorded = before.chosen.get(judge.fingerprint, [])
        request_ids, n_beyond = _choose(connection, judge, recorded, k=settings.pairs_per_unit, turns=turns)
    return Chosen(
        turns=turns,
        by_data=turns == "all" and settings.turns == "first",
        request_ids=request_ids if settings.pairs_per_unit else [],
        n_beyond=n_beyond,
        first_share=found.n_with_first / found.n_conversations if found.n_conversations else None,
        later_share=found.later_share,
        n_conversations=found.n_conversations,
        fixed_turns=turns if enough else None,
        fixed_head=dict(found.head) if enough else {},
    )


def _choose(
    connection: Connection, judge: JudgeSummary, before: list[str], *, k: int, turns: str
) -> tuple[list[str], int]:
    connection.execute("CREATE OR REPLACE TEMP TABLE ev_recorded (request_id VARCHAR, position BIGINT)")
    if before:
        connection.execute(
            "INSERT INTO ev_recorded SELECT unnest(?::VARCHAR[]), unnest(?::BIGINT[])",
            [before, list(range(len(before)))],
        )
    connection.execute(
        _SQL["places"], {"all_turns": turns == "all", "judge": judge.name, "fingerprint": judge.fingerprint}
    )
    limit = f"place <= {k}" if k else "true"
    connection.execute(f"CREATE OR REPLACE TEMP TABLE ev_chosen AS SELECT id, u, later FROM ev_places WHERE {limit}")
    found = rows(
        connection,
        f"SELECT request_id FROM ev_places WHERE {limit} ORDER BY position NULLS LAST, at_us, request_id",
    )
    beyond = rows(connection, f"SELECT count(*) AS n FROM ev_places WHERE complete AND NOT ({limit})")[0]["n"]
    return [row["request_id"] for row in found], int(beyond)
