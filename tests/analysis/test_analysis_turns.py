"""First turns: which requests put the same question to both arms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import duckdb
import pytest

from evalpipe.analysis.turns import SHARED, FirstTurns, goal_turns, mark_first_turns

START = datetime(2026, 6, 1, tzinfo=UTC)


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(":memory:") as found:
        found.execute("SET TimeZone = 'UTC'")
        found.execute(
            "CREATE TABLE exchanges (experiment VARCHAR, request_id VARCHAR, arm VARCHAR, role VARCHAR, unit_id VARCHAR, "
            "conversation_id VARCHAR, started_at TIMESTAMPTZ, endpoint VARCHAR, request VARCHAR, prompt VARCHAR, "
            "turn INTEGER, step INTEGER)"
        )
        yield found


def add(
    connection: duckdb.DuckDBPyConnection,
    request_id: str,
    *,
    turn: int | None = 1,
    step: int | None = 0,
    conversation: str | None = None,
    unit: str | None = "u",
    at: float = 0,
    system: str = "Be brief.",
    request: dict[str, Any] | None = None,
    endpoint: str = "chat.completions",
    prompt: str | None = None,
) -> None:
    """A request with its copy."""
    body = request or {"messages": [{"role": "system", "content": system}]}
    for arm, role in (("control", "served"), ("treatment", "shadow")):
        connection.execute(
            "INSERT INTO exchanges VALUES ('e', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                request_id,
                arm,
                role,
                unit,
                conversation or request_id,
                START + timedelta(seconds=at),
                endpoint,
                json.dumps(body),
                prompt if prompt is not None else request_id,
                turn,
                step,
            ],
        )


def later(connection: duckdb.DuckDBPyConnection) -> set[str]:
    found = connection.execute(
        "SELECT DISTINCT request_id FROM exchanges WHERE hash(request_id) IN (SELECT id FROM ev_later)"
    )
    return {row[0] for row in found.fetchall()}


def test_the_second_user_message_and_tool_steps_are_later(connection: duckdb.DuckDBPyConnection) -> None:
    add(connection, "a1", conversation="a")
    add(connection, "a1t", conversation="a", step=1, at=1)
    add(connection, "a2", conversation="a", turn=2, at=2)
    add(connection, "b1", conversation="b")
    add(connection, "c3", conversation="c", turn=3)
    for index in range(40):
        add(connection, f"single{index}", unit=f"v{index}")
    found = mark_first_turns(connection, experiment="e")
    assert later(connection) == {"a1t", "a2", "c3"}
    assert (found.n_conversations, found.n_with_first) == (43, 42)


def test_few_shot_examples_are_a_head_and_no_turns(connection: duckdb.DuckDBPyConnection) -> None:
    # Thirty conversations of one prompt begin with three user messages (two of them examples), one of another with one.
    for index in range(30):
        add(connection, f"shot{index}", turn=3, unit=f"u{index}", system="With examples.")
        add(
            connection,
            f"shot{index}-2",
            turn=4,
            unit=f"u{index}",
            conversation=f"shot{index}",
            system="With examples.",
            at=1,
        )
        add(connection, f"plain{index}", turn=1, unit=f"u{index}", system="Plain.")
        add(
            connection, f"plain{index}-2", turn=3, unit=f"u{index}", conversation=f"plain{index}", system="Plain.", at=2
        )
    found = mark_first_turns(connection, experiment="e")
    assert later(connection) == {f"{kind}{index}-2" for kind in ("shot", "plain") for index in range(30)}
    assert sorted(found.head.values()) == [1, 3]
    assert (found.n_conversations, found.n_with_first) == (60, 60)
    # What was fixed at a look stays, whatever the log holds later.
    fixed = {key: 4 if head == 3 else head for key, head in found.head.items()}
    assert mark_first_turns(connection, experiment="e", head=fixed).head == fixed
    assert "shot0" in later(connection)
    assert "shot0-2" not in later(connection)


def test_system_texts_that_hold_a_name_share_one_head(connection: duckdb.DuckDBPyConnection) -> None:
    for index in range(40):
        add(connection, f"r{index}", turn=2, unit=f"u{index}", system=f"You talk to customer {index}.")
    found = mark_first_turns(connection, experiment="e")
    assert (dict(found.head), later(connection)) == ({SHARED: 2}, set())


def test_a_share_below_five_percent_is_no_head(connection: duckdb.DuckDBPyConnection) -> None:
    # 96 conversations whose first requests were not logged begin with their second turn, 4 with their first: 4 % is too few.
    for index in range(100):
        add(connection, f"r{index}", turn=1 if index < 4 else 2, unit=f"u{index}")
    assert set(mark_first_turns(connection, experiment="e").head.values()) == {2}
    add(connection, "r100", turn=1, unit="u100")
    add(connection, "r101", turn=1, unit="u101")
    assert set(mark_first_turns(connection, experiment="e").head.values()) == {1}  # 6 of 102
    assert len(later(connection)) == 96


def test_conversations_that_the_provider_keeps_are_read_from_the_order(connection: duckdb.DuckDBPyConnection) -> None:
    def responses(name: str, at: float, **request: Any) -> None:
        add(connection, name, turn=None, step=None, at=at, endpoint="responses", request={"input": name, **request})

    responses("one", 0)
    responses("two", 1, previous_response_id="resp_1")
    responses("mine-2", 5, conversation="conv_1")
    responses("mine-1", 4, conversation={"id": "conv_1"})
    assert mark_first_turns(connection, experiment="e").n_with_first == 2
    assert later(connection) == {"two", "mine-2"}
    # A hundred more that continue a response, each counted as a second turn: no head, and one conversation of this user.
    for index in range(100):
        responses(f"more{index}", 10 + index, previous_response_id=f"resp_{index}")
    connection.execute("UPDATE exchanges SET turn = 2, step = 0 WHERE request_id LIKE 'more%'")
    found = mark_first_turns(connection, experiment="e")
    assert (set(found.head.values()), found.n_conversations, found.n_with_first) == (set(), 3, 2)
    assert len(later(connection)) == 102


def test_a_named_conversation_of_single_messages_goes_by_the_order_and_repeats_are_no_turns(
    connection: duckdb.DuckDBPyConnection,
) -> None:
    add(connection, "n1", conversation="n", at=0, prompt="first question", turn=None)
    add(connection, "n2", conversation="n", at=1, prompt="and then?", turn=None)
    add(connection, "again1", conversation="hello", at=0, prompt="hello", turn=None)
    add(connection, "again2", conversation="hello", at=1, prompt="hello", turn=None)
    add(connection, "other", conversation="n", unit="v", at=2, prompt="another user's question", turn=None)
    mark_first_turns(connection, experiment="e")
    assert later(connection) == {"n2"}


def test_a_log_without_turns_or_requests_has_first_turns_only(connection: duckdb.DuckDBPyConnection) -> None:
    add(connection, "a", turn=None, step=None)
    connection.execute("UPDATE exchanges SET request = NULL, conversation_id = NULL")
    assert mark_first_turns(connection, experiment="e") == FirstTurns(n_conversations=1, n_with_first=1)
    connection.execute("UPDATE exchanges SET request = 'no JSON', turn = 2, endpoint = 'responses'")
    mark_first_turns(connection, experiment="e")


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str = "answer") -> dict[str, Any]:
    return {"role": "assistant", "content": text}


TOOL_RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "4"}]}
OLD_REQUESTS: dict[str, tuple[dict[str, Any], bool]] = {
    "single": ({"messages": [{"role": "system", "content": "s"}, user("hi")]}, True),
    "single of a named user": ({"user": "u1", "messages": [user('they said {"role": "user"} and "assistant"')]}, True),
    "a string": ({"input": 'about "user" and "user"'}, True),
    "second turn": ({"messages": [user("a"), assistant(), user("b")]}, False),
    "two messages at once": ({"messages": [user("a"), user("b")]}, False),
    "tool loop, chat": ({"messages": [user("a"), assistant(), {"role": "tool", "content": "4"}]}, False),
    "tool loop, Messages": ({"messages": [user("a"), assistant(), TOOL_RESULT]}, False),
    "text beside the result": (
        {
            "messages": [
                user("a"),
                assistant(),
                {"role": "user", "content": [TOOL_RESULT["content"][0], {"type": "text"}]},
            ]
        },
        False,
    ),
    "an assistant's greeting first": ({"messages": [assistant("Hello!"), user("a")]}, True),
    "tool loop, Responses": (
        {"input": [user("a"), {"type": "function_call", "name": "f"}, {"type": "function_call_output", "output": "4"}]},
        False,
    ),
    "items without a role": ({"input": [{"type": "message", "content": "a"}, assistant(), {"content": "b"}]}, False),
    "other names of the roles": (
        {"messages": [{"role": "human", "content": "a"}, {"role": "ai"}, {"role": "human"}]},
        False,
    ),
    "empty": ({}, True),
}


@pytest.mark.parametrize("name", OLD_REQUESTS)
def test_files_older_than_the_columns_are_counted_by_their_messages(
    connection: duckdb.DuckDBPyConnection, name: str
) -> None:
    request, is_first = OLD_REQUESTS[name]
    for index in range(30):
        add(connection, f"plain{index}", turn=None, step=None, unit=f"v{index}", request={"messages": [user("hi")]})
    add(connection, "old", turn=None, step=None, request=request)
    mark_first_turns(connection, experiment="e")
    assert later(connection) == (set() if is_first else {"old"})


def test_old_conversations_with_examples_have_a_head_too(connection: duckdb.DuckDBPyConnection) -> None:
    shots = [{"role": "system", "content": "With examples."}, user("1+1"), assistant("2"), user("2+2"), assistant("4")]
    for index in range(25):
        unit, conversation = f"u{index}", f"c{index}"
        first = {"messages": [*shots, user(f"{index}+1")]}
        again = {"messages": [*shots, user(f"{index}+1"), assistant(), user("and 2 more")]}
        add(connection, f"a{index}", turn=None, step=None, unit=unit, conversation=conversation, request=first)
        add(connection, f"b{index}", turn=None, step=None, unit=unit, conversation=conversation, request=again, at=1)
    found = mark_first_turns(connection, experiment="e")
    assert (list(found.head.values()), found.n_conversations, found.n_with_first) == ([3], 25, 25)
    assert later(connection) == {f"b{index}" for index in range(25)}


def test_the_heads_of_a_long_log_are_read_from_parts_of_it(
    connection: duckdb.DuckDBPyConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evalpipe.analysis.turns.MAX_SAMPLED", 90)
    for index in range(300):  # the prompt gets its examples in the middle of the log
        system, turn = ("With examples.", 3) if index >= 150 else ("Plain.", 1)
        add(connection, f"r{index}", turn=turn, unit=f"u{index}", system=system, at=60.0 * index)
    found = mark_first_turns(connection, experiment="e")
    assert sorted(found.head.values()) == [1, 3]
    assert later(connection) == set()


@pytest.mark.parametrize(
    ("configured", "fixed", "n", "with_first", "expected"),
    [
        ("first", None, 200, 10, "first"),
        ("first", None, 200, 9, "all"),
        ("first", None, 199, 0, "first"),
        ("first", "first", 1000, 0, "first"),
        ("first", "all", 1000, 1000, "all"),
        ("all", None, 1000, 1000, "all"),
    ],
)
def test_which_turns_are_the_goal(configured: str, fixed: str | None, n: int, with_first: int, expected: str) -> None:
    found = FirstTurns(n_conversations=n, n_with_first=with_first)
    assert goal_turns(configured, fixed, found) == expected
