"""Where in its conversation a request is: the user's messages so far, and the assistant's since the last of them.

One function for every dialect and every log, so that a turn means the same wherever a request comes from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from evalpipe.providers.jsontext import as_text

_ROLES = {
    "human": "user",
    "ai": "assistant",
    "model": "assistant",
    "developer": "system",
    "function": "tool",
}
"""other names of the four roles: OpenAI's newer and older ones, LangChain's and Gemini's"""


class Position(NamedTuple):
    """`turn`: number of the client's user messages, from 1; None where it is not known (the provider keeps the conversation).
    `step`: assistant messages or tool calls since the last user message, 0 for an answer to the user; None where the
    request has no messages."""

    turn: int | None
    step: int | None


UNKNOWN = Position(None, None)
"""Of a request that cannot be read, or holds no message."""


def position_of(items: Iterable[Any], *, continues: bool = False, is_stored: bool = False) -> Position:
    """The position of a request by its messages (chat completions, Messages) or input items (Responses).

    Args:
        items: in their order; what is no object is passed over.
        continues: the request names the answer it goes on from (`previous_response_id`): what came before is not in `items`.
        is_stored: the provider keeps the conversation, or its id was given: `items` may be its newest part only.

    Returns:
        Turn and step. A conversation without a user message of its own (a system text alone) is a first turn. A request
        that continues is at least in turn 2; one that only returns tool results adds the step it answers to. A stored
        conversation of which one user message is seen has no known turn: the order of its requests decides.
    """
    n_items = n_users = step = 0
    returns_results = False
    for item in items:
        if not isinstance(item, Mapping):
            continue
        n_items += 1
        role = role_of(item)
        if role == "user":
            n_users, step, returns_results = n_users + 1, 0, False
        elif role == "assistant":
            step += 1
        elif role == "tool":
            returns_results = True
    if not n_items and not (continues or is_stored):
        return UNKNOWN
    if (continues or is_stored) and not n_users and returns_results:
        step += 1  # the call these are the results of was in an answer that the provider keeps
    if continues:
        return Position(max(2, n_users + 1), step)
    return Position(None if is_stored and n_users <= 1 else max(1, n_users), step)


def role_of(item: Mapping[str, Any]) -> str:
    """ "user", "assistant", "system" or "tool"; "" for an item that is no part of the talk (reasoning, references).

    A Messages-API user message that holds nothing but tool results is the tool's.
    """
    role = as_text(item.get("role"))
    if role is None:
        kind = as_text(item.get("type")) or "message"
        if kind == "message":
            return "user"
        return "assistant" if kind.endswith("_call") else "tool" if kind.endswith("_output") else ""
    role = _ROLES.get(role, role)
    return "tool" if role == "user" and _holds_only_results(item.get("content")) else role


def _holds_only_results(content: Any) -> bool:
    return (
        isinstance(content, list)
        and bool(content)
        and all(isinstance(block, Mapping) and block.get("type") == "tool_result" for block in content)
    )
