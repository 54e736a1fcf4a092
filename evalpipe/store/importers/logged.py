"""What the logs of other tools have in common: one request and one answer, told in their own words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from evalpipe.core.traffic import Arm, Exchange, Outcome, Role
from evalpipe.store.importers.base import conversation_of, json_text, position_in_log, prompt_text

_REFUSED = frozenset({"content_filter", "refusal", "safety"})
_TRUNCATED = frozenset({"length", "max_tokens", "model_length", "model_context_window_exceeded"})


def logged_exchange(
    request_id: str,
    started_at: datetime,
    *,
    messages: Sequence[Mapping[str, Any]],
    text: str | None,
    error: str | None = None,
    finish_reason: str | None = None,
    tool_calls: Any = None,
    request: Any = None,
    response: Any = None,
    meta: Any = None,
    **columns: Any,
) -> Exchange:
    """A log's entry as control's exchange (`load --arm` makes it treatment's). `request` defaults to the messages in the
    shape of a chat completion, so that whoever reads requests can read it; other `columns` are the exchange's own."""
    outcome = Outcome.OK
    if error is not None:
        outcome = Outcome.HTTP_ERROR
    elif finish_reason in _REFUSED:
        outcome = Outcome.REFUSED
    elif finish_reason in _TRUNCATED:
        outcome = Outcome.TRUNCATED
    columns.setdefault("unit_id", None)
    columns["turn"], columns["step"] = position_in_log(messages, is_named=bool(columns.get("conversation_id")))
    if columns.get("conversation_id") is None:
        columns["conversation_id"] = conversation_of(messages)
    return Exchange(
        request_id=request_id,
        arm=Arm.CONTROL,
        role=Role.IMPORTED,
        started_at=started_at,
        endpoint="chat.completions",
        request=json_text({"messages": list(messages)} if request is None else request),
        response=json_text(response),
        meta=json_text(meta),
        text=text,
        tool_calls=json_text(tool_calls or None),
        finish_reason=finish_reason,
        outcome=outcome,
        error_message=error,
        prompt=prompt_text(messages) if messages else None,
        **columns,
    )


def milliseconds(start: datetime | None, end: datetime | None) -> float | None:
    """From start to end; None where one is not told or they contradict each other."""
    if start is None or end is None or end < start:
        return None
    return (end - start).total_seconds() * 1000


def as_mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def as_messages(value: Any) -> list[Mapping[str, Any]]:
    """Messages in a log's field: a list of them, an object that holds one, or the bare text of the user's message."""
    if isinstance(value, Mapping):
        value = value.get("messages", [])
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    return [message for message in value if isinstance(message, Mapping)] if isinstance(value, list) else []
