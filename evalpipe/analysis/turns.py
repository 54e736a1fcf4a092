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

from evalpipe.analysis.sql import Connection, rows, scalar

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

# Only the first system message counts: what comes later belongs to the conversation.
_SYSTEM_TEXT = """md5(concat_ws(' ', json ->> '$.system', json ->> '$.instructions',
    CASE WHEN json ->> '$.messages[0].role' IN ('system', 'developer') THEN json ->> '$.messages[0].content' END,
    CASE WHEN json ->> '$.input[0].role' IN ('system', 'developer') THEN json ->> '$.input[0].content' END))"""

# Of an item of the conversation, by its role or (Responses) its type; a Messages-API user message of tool results is the tool's.
_ROLE = """CASE
    WHEN item ->> '$.role' IN ('assistant', 'ai', 'model') THEN 'assistant'
    WHEN item ->> '$.role' IN ('user', 'human') THEN CASE
      WHEN json_type(item, '$.content') = 'ARRAY' AND json_array_length(item, '$.content') > 0
        AND len(list_filter(item ->> '$.content[*].type', lambda type: type = 'tool_result'))
          = json_array_length(item, '$.content')
      THEN 'tool' ELSE 'user' END
    WHEN item ->> '$.role' IS NOT NULL THEN 'other'
    WHEN coalesce(item ->> '$.type', 'message') = 'message' THEN 'user'
    WHEN ends_with(item ->> '$.type', '_call') THEN 'assistant'
    ELSE 'other' END"""


@dataclass(frozen=True, kw_only=True, slots=True)
class FirstTurns:
    """What `mark_first_turns` found.

    Attributes:
        head: user messages a conversation begins with, by the hash of its system text (`SHARED`: all that are rare); empty where
            every conversation begins with one.
        n_conversations: conversations in the log.
        n_with_first: those with a first turn among their requests.
    """

    head: Mapping[str, int] = field(default_factory=dict)
    n_conversations: int = 0
    n_with_first: int = 0


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
        already_read: a query of the served requests' id, conv, at_us, turn and step, where they are at hand.

    Returns:
        The heads, and how many conversations show a first turn.
    """
    served = f"FROM {source} WHERE experiment = ? AND role <> 'replay' AND (arm = 'control' OR role = 'served')"
    fresh = (
        "SELECT hash(request_id) AS id, hash(coalesce(unit_id, ''), coalesce(conversation_id, request_id)) AS conv, "
        f"epoch_us(started_at) AS at_us, turn, step {served}"
    )
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE ev_turns AS SELECT id, conv, at_us, turn, "
        "CASE WHEN turn IS NULL THEN step ELSE coalesce(step, 0) END AS step, false AS continues "
        f"FROM ({already_read or fresh})",
        None if already_read else [experiment],
    )
    _count_messages(connection, experiment, served)
    _read_kept_conversations(connection, experiment, served)
    heads = dict(head or {})
    counted = _conversations(connection, "turn > 1 OR step > 0 OR continues")
    if (counted["begin"] or 1) > 1:
        heads = {**_heads(connection, experiment, served), **heads}
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE ev_later AS SELECT id FROM ev_turns WHERE step > 0 OR turn > 1 OR continues"
    )
    corrected = max(heads.values(), default=1) > 1
    if corrected:
        _take_back_heads(connection, experiment, heads, served)
    if _add_continued(connection, experiment, served) or corrected:
        counted = _conversations(connection, "id IN (FROM ev_later)")
    connection.execute("DROP TABLE ev_turns")
    return FirstTurns(head=heads, n_conversations=counted["n"], n_with_first=counted["with_first"])


def _conversations(connection: Connection, later: str) -> dict[str, Any]:
    """Conversations (n), those with a request that is not `later` (with_first), and the latest turn one begins with (begin)."""
    return rows(
        connection,
        f"""
        SELECT count(*) AS n, count(*) FILTER (has_first) AS with_first, max(turn) AS begin FROM (
          SELECT NOT bool_and(coalesce({later}, false)) AS has_first,
            min(CASE WHEN step = 0 AND NOT continues THEN coalesce(turn, 1) END) AS turn
          FROM ev_turns GROUP BY conv
        )""",
    )[0]


def _count_messages(connection: Connection, experiment: str, served: str) -> None:
    """Turn and step of rows of files older than these columns, by the messages of the request.

    As `conversation.position_of` counts them. A request of one user message stays without a turn: it may be any turn of a
    conversation that its client names, so the order of the requests decides.
    """
    if not scalar(connection, "SELECT count(*) FROM ev_turns WHERE step IS NULL"):
        return
    # Most have one message: without the assistant's words and a second "user" there is nothing to count.
    worth = """contains(request, '"assistant"')
      OR regexp_matches(request, '(?s)"user".*"user"|_call"|"role"\\s*:\\s*"(ai|human|model)"')"""
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE ev_counted AS
        WITH talk AS (
          SELECT hash(request_id) AS id, json_extract(request, ['$.messages', '$.input']) AS items
          {served} AND turn IS NULL AND step IS NULL AND ({worth}) AND json_valid(request)
        ), listed AS (
          SELECT id, list_transform(
            CASE WHEN json_type(items[1]) = 'ARRAY' THEN items[1]::JSON[] WHEN json_type(items[2]) = 'ARRAY' THEN items[2]::JSON[]
              ELSE [] END, lambda item: {_ROLE}) AS roles FROM talk
        ), placed AS (
          SELECT id, roles, len(roles) - list_position(list_reverse(roles), 'user') + 1 AS last_user FROM listed
        )
        SELECT id, len(list_filter(roles, lambda role: role = 'user')) AS turn,
          len(list_filter(roles[coalesce(last_user, 0) + 1:], lambda role: role = 'assistant')) AS step
        FROM placed""",
        [experiment],
    )
    connection.execute(
        "UPDATE ev_turns SET turn = CASE WHEN counted.turn > 1 THEN counted.turn END, step = counted.step "
        "FROM ev_counted AS counted WHERE counted.id = ev_turns.id"
    )
    connection.execute("UPDATE ev_turns SET step = 0 WHERE step IS NULL")
    connection.execute("DROP TABLE ev_counted")


def _read_kept_conversations(connection: Connection, experiment: str, served: str) -> None:
    """A Responses request may name what it continues: a conversation object that later requests share, or a response. What a
    user continues in the latter way counts as one conversation: its beginnings are requests of their own."""
    connection.execute(
        f"""
        UPDATE ev_turns SET continues = kept.continues, conv = coalesce(kept.conv, ev_turns.conv)
        FROM (
          SELECT id, continues, CASE WHEN name IS NOT NULL THEN hash(name) WHEN continues THEN hash(unit, 'continued') END AS conv
          FROM (
            SELECT id, coalesce(unit_id, '') AS unit, (json ->> '$.previous_response_id') IS NOT NULL AS continues,
              coalesce(json ->> '$.conversation.id', json ->> '$.conversation') AS name
            FROM (
              SELECT hash(request_id) AS id, unit_id, CASE WHEN json_valid(request) THEN request::JSON END AS json
              {served} AND endpoint = 'responses' AND coalesce(turn, 2) > 1
                AND (contains(request, 'previous_response_id') OR contains(request, '"conversation"'))
            )
          )
        ) AS kept WHERE kept.id = ev_turns.id""",
        [experiment],
    )


def _heads(connection: Connection, experiment: str, served: str) -> dict[str, int]:
    """The constant head of every system text, from the conversations' first requests.

    Of a long log the first, the middle and the last conversations are read, so that little of its texts is.
    """
    connection.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE ev_begun AS
        SELECT *, CASE WHEN k <= {MAX_SAMPLED} // 3 OR n <= {MAX_SAMPLED} THEN 1 WHEN k > n - {MAX_SAMPLED} // 3 THEN 3 ELSE 2 END
          AS part
        FROM (
          SELECT *, row_number() OVER (ORDER BY at_us, id) AS k, count(*) OVER () AS n FROM (
            SELECT min(coalesce(turn, 1)) AS turn, arg_min(id, at_us) AS id, min(at_us) AS at_us FROM ev_turns
            WHERE step = 0 AND NOT continues GROUP BY conv
          )
        ) WHERE n <= {MAX_SAMPLED} OR k <= {MAX_SAMPLED} // 3 OR k > n - {MAX_SAMPLED} // 3
          OR k BETWEEN (n - {MAX_SAMPLED} // 3) // 2 AND (n + {MAX_SAMPLED} // 3) // 2"""
    )
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
            [experiment],
        )
    begins = rows(
        connection,
        f"""
        WITH counted AS (
          SELECT CASE WHEN count(*) OVER (PARTITION BY system) < {LEAST_CONVERSATIONS} THEN '{SHARED}' ELSE system END
            AS system, turn
          FROM ev_begun JOIN ev_systems USING (id)
        ), shares AS (
          SELECT system, turn, count(*) / sum(count(*)) OVER (PARTITION BY system) AS share FROM counted GROUP BY system, turn
        )
        SELECT system, min(turn) AS head FROM shares WHERE share >= {LEAST_SHARE_OF_HEAD} GROUP BY system ORDER BY system""",
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
        f"""
        DELETE FROM ev_later WHERE id IN (
          SELECT turns.id FROM ev_turns AS turns JOIN (SELECT id, {_SYSTEM_TEXT} AS system FROM ({_read(served)})) AS texts
            ON turns.id = texts.id AND turns.step = 0 AND turns.turn > 1 AND NOT turns.continues
          LEFT JOIN ev_heads AS own ON own.system = texts.system
          WHERE turns.turn = coalesce(own.head, (SELECT head FROM ev_heads WHERE system = '{SHARED}'))
        )""",
        [experiment],
    )
    connection.execute("DROP TABLE ev_heads")


def _add_continued(connection: Connection, experiment: str, served: str) -> bool:
    """What has one user message and no known turn (its client names the conversation, or the provider keeps it), but comes
    after another question of its conversation. Returns whether there can be any."""
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE ev_alike AS SELECT id, conv, at_us FROM ev_turns "
        "WHERE step = 0 AND turn IS NULL QUALIFY count(*) OVER (PARTITION BY conv) > 1"
    )
    some = bool(scalar(connection, "SELECT count(*) FROM ev_alike"))
    if some:
        connection.execute(
            f"""
            INSERT INTO ev_later
            SELECT id FROM (
              SELECT alike.id, prompt, first_value(prompt) OVER (PARTITION BY conv ORDER BY at_us, alike.id) AS first_prompt
              FROM ev_alike AS alike JOIN (SELECT hash(request_id) AS id, hash(prompt) AS prompt {served}) AS texts USING (id)
            ) WHERE prompt <> first_prompt AND id NOT IN (SELECT id FROM ev_later)""",
            [experiment],
        )
    connection.execute("DROP TABLE ev_alike")
    return some


def _read(served: str) -> str:
    """The requests as JSON; what is none is null."""
    return f"SELECT hash(request_id) AS id, CASE WHEN json_valid(request) THEN request::JSON END AS json {served}"
