"""Which judged pairs count in the win rate: at most k a user, of the turns that are the goal, chosen once.

A user's value is the mean over at most k pairs. They are chosen before their verdicts count: those in the record first, then
asked pairs by arrival (time of the served answer, then request id). A pair chosen once stays chosen: an older pair that is loaded
later displaces none, and a chosen pair without a verdict is missing. Pairs of later turns of shadowed conversations are chosen
alike, apart: on them the treatment answers users who replied to control.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from evalpipe.analysis.connection import Connection, rows
from evalpipe.analysis.record import ExperimentRecord
from evalpipe.analysis.settings import Settings
from evalpipe.analysis.turns import LEAST_TO_TELL, goal_turns, mark_first_turns
from evalpipe.analysis.verdicts import JudgeSeen


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
    judge: JudgeSeen | None,
    settings: Settings,
    record: ExperimentRecord | None,
    *,
    experiment: str,
) -> Chosen:
    """Make `ev_chosen` (id, u, later) for the judge that decides, and `ev_later` (id) for all requests.

    Args:
        judge: None where no pair was judged yet; the turns are determined all the same.
        record: what earlier looks chose and fixed.
    """
    before = record or ExperimentRecord(
        experiment=experiment, created_at="", n_star={}, confidence_level=0.95, rules=""
    )
    found = mark_first_turns(
        connection,
        experiment=experiment,
        head=before.head,
        already_read="SELECT id, conv, c_at_us AS at_us, turn, step FROM ev_requests WHERE c_code > 0",
    )
    turns = goal_turns(settings.turns, before.turns, found)
    enough = found.n_conversations >= LEAST_TO_TELL
    counted = rows(
        connection,
        "SELECT count(*) AS n, count(l.id) AS later FROM ev_ids i LEFT JOIN ev_later l USING (id) "
        "WHERE control_attempted AND treatment_attempted",
    )[0]
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
        later_share=counted["later"] / counted["n"] if counted["n"] else 0.0,
        n_conversations=found.n_conversations,
        fixed_turns=turns if enough else None,
        fixed_head=dict(found.head) if enough else {},
    )


def _choose(
    connection: Connection, judge: JudgeSeen, before: list[str], *, k: int, turns: str
) -> tuple[list[str], int]:
    connection.execute("CREATE OR REPLACE TEMP TABLE ev_recorded (request_id VARCHAR, position BIGINT)")
    if before:
        connection.execute(
            "INSERT INTO ev_recorded SELECT unnest(?::VARCHAR[]), unnest(?::BIGINT[])",
            [before, list(range(len(before)))],
        )
    connection.execute(
        """
        CREATE OR REPLACE TEMP TABLE ev_places AS
        SELECT v.id, v.u, v.request_id, (NOT ? AND l.id IS NOT NULL) AS later, v.complete, r.position, v.at_us,
          row_number() OVER (
            PARTITION BY v.u, (NOT ? AND l.id IS NOT NULL) ORDER BY r.position NULLS LAST, v.at_us, v.request_id
          ) AS place
        FROM ev_verdicts v LEFT JOIN ev_later l USING (id) LEFT JOIN ev_recorded r USING (request_id)
        WHERE v.judge = ? AND v.fingerprint = ?""",
        [turns == "all", turns == "all", judge.name, judge.fingerprint],
    )
    limit = f"place <= {k}" if k else "true"
    connection.execute(f"CREATE OR REPLACE TEMP TABLE ev_chosen AS SELECT id, u, later FROM ev_places WHERE {limit}")
    found = rows(
        connection,
        f"SELECT request_id FROM ev_places WHERE {limit} ORDER BY position NULLS LAST, at_us, request_id",
    )
    beyond = rows(connection, f"SELECT count(*) AS n FROM ev_places WHERE complete AND NOT ({limit})")[0]["n"]
    return [row["request_id"] for row in found], int(beyond)
