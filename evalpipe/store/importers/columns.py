"""Columns of an exchange out of the values that a format's paths led to: times, failures, tokens, users, costs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evalpipe.core.traffic import Outcome
from evalpipe.providers.finish import KINDS, ending
from evalpipe.store.importers.paths import first, opened
from evalpipe.store.importers.said import Said, error_text
from evalpipe.store.importers.tokens import Tokens, read_tokens
from evalpipe.store.importers.values import count, instant, milliseconds_of, name, number, truth

UNITS = (
    "user_id", "userId", "user", "end_user", "end_user_id", "enduser.id", "user.id", "unit_id", "customer_id", "uid",
    "account_id",
    "metadata.user_id", "metadata.userId", "metadata.user", "metadata._user", "metadata.user_email", "metadata.customer_id",
    "extra.metadata.user_id", "properties.user_id", "attributes.user_id",
)  # fmt: skip
"""where a user is named in logs that have no rule of their own"""
SESSIONS = (
    "session_id", "sessionId", "session.id", "conversation_id", "conversationId", "thread_id", "threadId", "chat_id",
    "metadata.session_id", "metadata.sessionId", "metadata.conversation_id", "metadata.thread_id",
)  # fmt: skip
_BODY_UNITS = ("user", "metadata.user_id", "safety_identifier", "metadata.userId", "metadata.user")
NOBODY = frozenset({"default_user", "default_user_id", "anonymous", "none", "null", "unknown", "n/a"})
"""what tools write where no user was named"""
_FAILED = frozenset(
    {
        "error",
        "failed",
        "failure",
        "errored",
        "exception",
        "fail",
        "expired",
        "canceled",
        "cancelled",
        "status_code_error",
    }
)


def time_of(row: Mapping[str, Any], column: str, notes: list[str]) -> Any:
    value = row.get(column)
    if value is None or value == "":
        return None
    found = instant(value)
    if found is None:
        notes.append(f"{column} is no time, left empty (e.g. {str(value)[:40]!r})")
    return found


def failure_of(row: Mapping[str, Any], said: Said, status: int | None) -> tuple[str | None, str | None]:
    """(the error's words, its type), by whatever the log says of a failure; (None, None) of an answer."""
    error = opened(row.get("error"))
    kind = name(row.get("error_type"))
    if isinstance(error, Mapping) and kind is None:
        kind = name(error.get("type") or error.get("code"))
    state = row.get("state")
    word = (
        state.strip().lower().removeprefix("statuscode.").removeprefix("status_code_") if isinstance(state, str) else ""
    )
    succeeded = truth(row.get("succeeded"))
    failed = (
        word in _FAILED
        or succeeded is False
        or truth(row.get("failed")) is True
        or (status is not None and status >= 400)
    )
    if error not in (None, "", False, [], {}) or (kind and not word):
        shown = error_text(error) if error not in (None, "", False, [], {}) else str(kind)
        return shown, kind or said.error_type
    if failed:
        return said.error or (
            f"status {status}" if status is not None and status >= 400 else "failed"
        ), kind or said.error_type
    return said.error, said.error_type


def outcome_of(
    error: str | None, error_type: str | None, status: int | None, finish: str | None, said: Said, has_calls: bool
) -> tuple[Outcome, str | None, str | None]:
    """(outcome, error's type, error's words)."""
    if error is not None:
        late = status in {408, 504} or (error_type or "").lower().rsplit(".", 1)[-1] in {
            "timeout",
            "timeouterror",
            "readtimeout",
        }
        return (Outcome.TIMEOUT if late else Outcome.HTTP_ERROR), error_type, error
    if said.refusal:
        return Outcome.REFUSED, None, None
    if finish is None:
        return Outcome.OK, None, None
    word = finish.lower().replace("-", "_").rsplit(".", 1)[-1]
    word = {"tool_call": "tool_calls", "contentfilter": "content_filter", "maxtokens": "max_tokens"}.get(word, word)
    kind = KINDS.get(word)
    if kind is None or kind in {"end", "calls"} or (kind in {"failed", "unfinished"} and (said.text or has_calls)):
        return Outcome.OK, None, None
    found = ending(word, has_calls=has_calls)
    return found.outcome, found.error_type, found.error_message


def tokens_of(row: Mapping[str, Any], said: Said, *, apart: bool) -> Tokens:
    """Columns of their own first, then the usage object, then the answer's own counts."""
    usage = read_tokens(row.get("usage"), apart=apart)
    own = Tokens(
        *(
            count(row.get(column))
            for column in (
                "input_tokens",
                "cached_input_tokens",
                "cache_write_tokens",
                "output_tokens",
                "reasoning_tokens",
            )
        )
    )
    inner = said.tokens
    return Tokens(
        *(next((one for one in three if one is not None), None) for three in zip(own, usage, inner, strict=True))
    )


def user_of(call: Mapping[str, Any], row: Mapping[str, Any], *, guesses: bool) -> str | None:
    places = [row.get("unit")]
    if guesses:
        places.append(first(call, UNITS))
    body = opened(row.get("prompt"))
    if isinstance(body, Mapping):
        places.append(first(body, _BODY_UNITS))
    for place in places:
        found = name(opened(place))
        if found is not None and found.lower() not in NOBODY:
            return found
    return None


def span_of(row: Mapping[str, Any], which: str, start: Any, end: Any, notes: list[str]) -> float | None:
    """Milliseconds by a column of its own, else from start to end; None where neither is there or they contradict
    each other."""
    for column, unit in ((f"{which}_ms", 1.0), (f"{which}_s", 1000.0), (f"{which}_ns", 1e-6)):
        value = row.get(column)
        if value is None or value == "":
            continue
        found = milliseconds_of(value, unit_ms=unit)
        if found is None:
            notes.append(f"{column} is no duration, left empty (e.g. {str(value)[:40]!r})")
            continue
        return found
    if start is None or end is None or end < start:
        return None
    return float((end - start).total_seconds() * 1000)


def cost_of(row: Mapping[str, Any], said: Said, notes: list[str]) -> float | None:
    for column, share in (("cost", 1.0), ("cost_cents", 0.01)):
        value = row.get(column)
        if value is None or value == "":
            continue
        found = number(value)
        if found is None or found < 0:
            notes.append(f"cost is no amount, left empty (e.g. {str(value)[:40]!r})")
            continue
        return found * share
    return said.cost_usd
