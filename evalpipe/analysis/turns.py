"""Which requests are first turns of a conversation: the one definition for the analysis and for the plan of judging.

From the second user turn of a shadowed conversation on, the treatment answers a user who replied to *control's* words, and in a
tool loop control's tool calls. Only a first turn (user turn 1, step 0) puts the same question to both arms. What turn 1 is:

- Few-shot examples are no turns: a prompt that begins every conversation with the same number of user messages has a constant
  head. Per system text it is the smallest number that at least 5 % of its conversations begin with.
- Where the provider keeps the conversation (`previous_response_id`, a conversation object) or the application sends only the last
  message of a conversation it names, the number of user messages shows nothing (`turn` is null): the order of the requests does.
- Files older than the columns `turn` and `step` have nulls in both: the messages of the request are counted then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from evalpipe.analysis.sql import Connection, large_table, rows, scalar
from evalpipe.files import sql_statements

LEAST_SHARE_OF_HEAD = 0.05
"""share of a system text's conversations that begin with a number of user messages before it can be the constant head"""
LEAST_CONVERSATIONS = 20
"""system texts with fewer conversations (a prompt that holds the user's name) share one head"""
SHARED = ""
"""under this key"""
MAX_SAMPLED = 30_000
"""conversations whose system texts are read to find the heads"""
LEAST_WITH_FIRST, LEAST_TO_TELL = 0.05, 200
"""below this share of conversations with a first turn, of at least so many, all turns are the goal"""

_SQL = sql_statements("evalpipe.analysis", "turns.sql")

# Only the first system message counts: what comes later belongs to the conversation.
_SYSTEM_TEXT = """md5(concat_ws(' ', json ->> '$.system', json ->> '$.instructions',
    CASE WHEN json ->> '$.messages[0].role' IN ('system', 'developer') THEN json ->> '$.messages[0].content' END,
    CASE WHEN json ->> '$.input[0].role' IN ('system', 'developer') THEN json ->> '$.input[0].content' END))"""


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstTurns:
    """What `mark_first_turns` found.

    Attributes:
        head: user messages a conversation begins with, by the hash of its system text (`SHARED`: all that are rare); empty where
            every conversation begins with one.
        n_conversations: conversations in the log.
        n_with_first: those with a first turn among their requests.
        later_share: share of the compared requests that are no first turn, in [0, 1].
    """

    head: Mapping[str, int] = field(default_factory=dict)
    n_conversations: int = 0
    n_with_first: int = 0
    later_share: float = 0.0


def goal_turns(configured: str, fixed: str | None, found: FirstTurns) -> Literal["first", "all"]:
    """The turns the win rate is about.

    Args:
        configured: `[decision] turns`, "first" or "all".
        fixed: what a look has fixed, None before the first one.
        found: the log's first turns.

    Returns:
        "first", unless the user or the first look chose "all", or hardly any conversation of the log shows its first turn.
    """
    if "all" in (configured, fixed):
        return "all"
    few = found.n_with_first < LEAST_WITH_FIRST * found.n_conversations
    return "all" if fixed is None and few and found.n_conversations >= LEAST_TO_TELL else "first"


def mark_first_turns(
    connection: Connection,
    *,
    experiment: str,
    head: Mapping[str, int] | None = None,
    source: str = "exchanges",
    already_read: str | None = None,
) -> FirstTurns:
    """Make the temporary table `ev_later` (id): requests that are no first turn, by the 64-bit hash of their request_id.

    A request is a first turn where its step is 0, it has one user message (or as many as the constant head), and no earlier
    request of its conversation asked something else.

    Args:
        connection: with the view `source`.
        experiment: whose requests are marked.
        head: the constant heads that an earlier look fixed; they stay, and new system texts get one now.
        source: the view of the exchanges; where a selection is in force, one that it does not narrow.
        already_read: a query of the served requests' id, conv, at_us, turn and step, and whether both arms' answers are
            `compared`, where they have been read already.

    Returns:
        The heads, and how many conversations show a first turn.
    """
    served = (
        f"FROM {source} WHERE experiment = $experiment AND role <> 'replay' AND (arm = 'control' OR role = 'served')"
    )
    fresh = (
        "SELECT hash(request_id) AS id, hash(coalesce(unit_id, ''), coalesce(conversation_id, request_id)) AS conv, "
        f"epoch_us(started_at) AS at_us, turn, step, true AS compared {served}"
    )
    turns = (
        "SELECT id, conv, at_us, turn, CASE WHEN turn IS NULL THEN step ELSE coalesce(step, 0) END AS step, "
        f"false AS continues, compared FROM ({already_read or fresh})"
    )
    is_complete = already_read is not None and _are_complete(connection, experiment, turns, served)
    if is_complete:  # most logs: nothing is added to what has been read, and no copy of it is needed
        connection.execute(f"CREATE OR REPLACE TEMP VIEW ev_turns AS {turns}")
    else:
        connection.execute(
            f"CREATE OR REPLACE {large_table(connection)}ev_turns AS {turns}",
            None if already_read else {"experiment": experiment},
        )
        _count_messages(connection, experiment, served)
        _read_kept_conversations(connection, experiment, served)
    heads = dict(head or {})
    counted = _conversations(connection, "turn > 1 OR step > 0 OR continues")
    if (counted["begin"] or 1) > 1:
        heads = {**_heads(connection, experiment, served), **heads}
    connection.execute(
        f"CREATE OR REPLACE {large_table(connection)}ev_later AS SELECT id FROM ev_turns WHERE step > 0 OR turn > 1 OR continues"
    )
    corrected = max(heads.values(), default=1) > 1
    if corrected:
        _take_back_heads(connection, experiment, heads, served)
    if _add_continued(connection, experiment, served) or corrected:
        counted = _conversations(connection, "id IN (FROM ev_later)")
    connection.execute(f"DROP {'VIEW' if is_complete else 'TABLE'} ev_turns")
    return FirstTurns(
        head=heads,
        n_conversations=counted["n"],
        n_with_first=counted["with_first"],
        later_share=counted["n_later"] / counted["n_compared"] if counted["n_compared"] else 0.0,
    )


def _are_complete(connection: Connection, experiment: str, turns: str, served: str) -> bool:
    """Whether every row of `turns` has its step, and no request can continue a conversation that the provider keeps."""
    if scalar(connection, f"SELECT count(*) FROM ({turns}) WHERE step IS NULL"):
        return False
    kept = f"SELECT 1 {served} AND endpoint = 'responses' LIMIT 1"
    return not scalar(connection, f"SELECT count(*) FROM ({kept})", {"experiment": experiment})


def _conversations(connection: Connection, later: str) -> dict[str, Any]:
    """Conversations (n), those with a request that is not `later` (with_first), the latest turn one begins with (begin), and
    the compared requests (n_compared), those that are `later` among them (n_later)."""
    return rows(connection, _SQL["conversations"].format(later=later))[0]


def _count_messages(connection: Connection, experiment: str, served: str) -> None:
    """Turn and step of rows of files older than these columns, by the messages of the request.

    As `conversation.position_of` counts them. A request of one user message stays without a turn: it may be any turn of a
    conversation that its client names, so the order of the requests decides.
    """
    if not scalar(connection, "SELECT count(*) FROM ev_turns WHERE step IS NULL"):
        return
    connection.execute(_SQL["count_messages"].format(served=served), {"experiment": experiment})
    connection.execute(
        "UPDATE ev_turns SET turn = CASE WHEN counted.turn > 1 THEN counted.turn END, step = counted.step "
        "FROM ev_counted AS counted WHERE counted.id = ev_turns.id"
    )
    connection.execute("UPDATE ev_turns SET step = 0 WHERE step IS NULL")
    connection.execute("DROP TABLE ev_counted")


def _read_kept_conversations(connection: Connection, experiment: str, served: str) -> None:
    """A Responses request may name what it continues: a conversation object that later requests share, or a response. What a
    user continues in the latter way counts as one conversation: its beginnings are requests of their own."""
    connection.execute(_SQL["read_kept_conversations"].format(served=served), {"experiment": experiment})


def _heads(connection: Connection, experiment: str, served: str) -> dict[str, int]:
    """The constant head of every system text, from the conversations' first requests.

    Of a long log the first, the middle and the last conversations are read, so that little of its texts is.
    """
    connection.execute(_SQL["sample_conversations"], {"sampled": MAX_SAMPLED})
    connection.execute("CREATE OR REPLACE TEMP TABLE ev_systems (id UBIGINT, system VARCHAR)")
    for part in rows(
        connection, "SELECT min(at_us) AS low, max(at_us) AS high FROM ev_begun GROUP BY part ORDER BY part"
    ):
        # A plain condition on the column, so that files of other times are not opened.
        within = (
            f"AND started_at BETWEEN to_timestamp({part['low'] // 10**6}) AND to_timestamp({part['high'] // 10**6 + 1})"
        )
        connection.execute(
            f"INSERT INTO ev_systems SELECT id, {_SYSTEM_TEXT} FROM ({_read(f'{served} {within}')}) "
            "SEMI JOIN ev_begun USING (id)",
            {"experiment": experiment},
        )
    begins = rows(
        connection,
        _SQL["constant_heads"],
        {"least_conversations": LEAST_CONVERSATIONS, "shared": SHARED, "least_share": LEAST_SHARE_OF_HEAD},
    )
    connection.execute("DROP TABLE ev_begun")
    connection.execute("DROP TABLE ev_systems")
    return {row["system"]: row["head"] for row in begins}


def _take_back_heads(connection: Connection, experiment: str, heads: Mapping[str, int], served: str) -> None:
    """Requests with exactly the constant head are first turns, too."""
    connection.execute("CREATE OR REPLACE TEMP TABLE ev_heads (system VARCHAR, head INTEGER)")
    connection.execute(
        "INSERT INTO ev_heads SELECT unnest($1::VARCHAR[]), unnest($2::INTEGER[])",
        [list(heads), list(heads.values())],
    )
    connection.execute(
        _SQL["take_back_heads"].format(system_text=_SYSTEM_TEXT, read=_read(served)),
        {"experiment": experiment, "shared": SHARED},
    )
    connection.execute("DROP TABLE ev_heads")


def _add_continued(connection: Connection, experiment: str, served: str) -> bool:
    """What has one user message and no known turn (its client names the conversation, or the provider keeps it), but comes
    after another question of its conversation. Returns whether there can be any."""
    connection.execute(
        f"CREATE OR REPLACE {large_table(connection)}ev_alike AS SELECT id, conv, at_us FROM ev_turns "
        "WHERE step = 0 AND turn IS NULL QUALIFY count(*) OVER (PARTITION BY conv) > 1"
    )
    some = bool(scalar(connection, "SELECT count(*) FROM ev_alike"))
    if some:
        connection.execute(_SQL["add_continued"].format(served=served), {"experiment": experiment})
    connection.execute("DROP TABLE ev_alike")
    return some


def _read(served: str) -> str:
    """The requests as JSON; what is none is null."""
    return f"SELECT hash(request_id) AS id, CASE WHEN json_valid(request) THEN request::JSON END AS json {served}"
