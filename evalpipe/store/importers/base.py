"""What every importer gives: records out of one document of another tool's log; and the checks they share."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from evalpipe.identity import conversation_id
from evalpipe.models import Arm, Exchange, Feedback, Judgment, Label, Outcome, Role
from evalpipe.providers.conversation import Position, position_of
from evalpipe.store.importers.values import instant

UNKNOWN_TIME = datetime(1970, 1, 1, tzinfo=UTC)
"""`started_at` of rows whose log has no time, plus the line number in microseconds: file order is kept, every load of a
file gives the same rows, and no invented date can be taken for a real one."""


class BrokenLineError(ValueError):
    """This document does not match the format; `str()` is the reason that is stored with it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What one document held."""

    exchanges: Sequence[Exchange] = ()
    judgments: Sequence[Judgment] = ()
    labels: Sequence[Label] = ()
    feedback: Sequence[Feedback] = ()
    left_out: Sequence[str] = ()
    """what the document held besides and is no exchange, a word or two for each"""
    notes: Sequence[str] = ()
    """notes on the rows, a short line for each case"""
    variants: Sequence[str | None] = ()
    """for each exchange the log's own word for its arm, where it has one"""
    derived_ids: bool = False
    """the log gives no ids: they are made of what the rows hold, and equal rows need a number"""
    rejected: Sequence[str] = ()
    """parts of the document that could not be read, though the rest is here"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Importer:
    """A format: its name for `--format`, whether a document looks like it, and the reader (pure).

    `read(document, line)` gets the parsed JSON and its line number (from 1; the index in a file that is one document).
    It raises BrokenLineError where the document cannot be read.
    """

    name: str
    help: str
    matches: Callable[[Any], bool]
    read: Callable[[Any, int], Imported]
    tells_arms: bool = False
    """the documents name which response is control's and which treatment's"""
    companion: Callable[[Any], tuple[str, Any] | None] | None = None
    """(key, what is remembered) of a document that only adds to others: the requests of a batch, the users of traces"""
    joined: Callable[[Any, Mapping[str, Any]], Any] | None = None
    """a document with what its companions hold"""
    mapped: Any = None
    """the `mapping.Mapped` it was made of"""


@dataclass(slots=True)
class Fields:
    """Typed reading of a JSON object: a wrong type is a BrokenLineError that names the key."""

    document: Mapping[str, Any]
    where: str = ""
    _prefix: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self._prefix = f"{self.where}." if self.where else ""

    def text(self, key: str, *, required: bool = False) -> str | None:
        """A string; a number or boolean becomes its JSON text (as logs of test sets have it)."""
        value = self.document.get(key)
        if value is None:
            if required:
                raise BrokenLineError(f"{self._prefix}{key} is missing")
            return None
        if isinstance(value, str):
            return value
        if isinstance(value, bool | int | float):
            return json.dumps(value)
        raise BrokenLineError(f"{self._prefix}{key} is {_kind(value)}, not text")

    def number(self, key: str, *, low: float = -math.inf, high: float = math.inf) -> float | None:
        value: Any = self.document.get(key)
        if value is None or value == "":  # some logs leave a field they could not fill empty
            return None
        if isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise BrokenLineError(f"{self._prefix}{key} = {value[:40]!r} is not a number") from None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BrokenLineError(f"{self._prefix}{key} is {_kind(value)}, not a number")
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if not math.isfinite(number) or not low <= number <= high:
            raise BrokenLineError(f"{self._prefix}{key} = {value!r:.40} is out of range")
        return number

    def count(self, key: str) -> int | None:
        number = self.number(key, low=0, high=2**53)
        return None if number is None else int(number)

    def time(self, key: str) -> datetime | None:
        """An instant: ISO 8601, or seconds, milliseconds, microseconds or nanoseconds since 1970, as number or text; UTC where no
        zone is given. An empty text is no time at all."""
        value = self.document.get(key)
        if value is None or value == "":
            return None
        found = instant(value)
        if found is None:
            raise BrokenLineError(f"{self._prefix}{key} = {value!r:.40} is no time")
        return found


def unknown_time(line: int) -> datetime:
    return UNKNOWN_TIME + timedelta(microseconds=line)


def json_text(value: Any) -> str | None:
    """`value` as JSON text that can be stored and queried anywhere: lone surrogates stay escaped, NaN and Infinity, which
    are no JSON, become null. None stays None."""
    if value is None:
        return None
    try:
        return json.dumps(value, ensure_ascii=_holds_surrogate(value), allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def prompt_text(messages: Sequence[Mapping[str, Any]]) -> str:
    """The conversation as a person reads it: the one user message alone, else each message under its role."""
    texts = [(str(message.get("role", "user")), content_text(message.get("content"))) for message in messages]
    if len(texts) == 1 and texts[0][0] == "user":
        return texts[0][1]
    return "\n\n".join(f"[{role}]\n{text}" for role, text in texts)


def conversation_of(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The conversation's id by its system text and first user message; None without a user message."""
    system = "\n".join(content_text(message.get("content")) for message in messages if message.get("role") == "system")
    first = next((content_text(message.get("content")) for message in messages if message.get("role") == "user"), None)
    return None if first is None else conversation_id(system, first)


def position_in_log(messages: Sequence[Mapping[str, Any]], *, is_named: bool) -> Position:
    """Turn and step of a request with these messages. `is_named`: the log gives the conversation's id, so that one user
    message may be any turn of it."""
    return position_of(messages, is_stored=is_named and bool(messages))


def content_text(content: Any) -> str:
    """The plain text of a message's content, in any dialect: parts joined, what is no text as a mark."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(filter(None, (content_text(part) for part in content)))
    if isinstance(content, Mapping):
        for key in ("text", "content", "value"):
            if isinstance(content.get(key), str):
                return str(content[key])
        if "parts" in content:
            return content_text(content["parts"])
        return f"[{content.get('type', 'data')}]"
    return str(content)


def _holds_surrogate(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return "a number" if isinstance(value, int | float) else f"a {type(value).__name__}"


# What the logs of other tools have in common: one request and one response, under names of their own.


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
    shape of a chat completion, so that every reader of requests can read it; other `columns` are the exchange's own."""
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
    """From start to end; None where one is missing or they contradict each other."""
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
