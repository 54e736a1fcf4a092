"""How an answer is read in any dialect: decode, assemble, classify. The dialects give the two steps that differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from evalpipe.core.spool import Ended
from evalpipe.core.text import well_formed
from evalpipe.core.traffic import Outcome
from evalpipe.providers.base import Answer
from evalpipe.providers.encoding import Decoded, EncodingError, decode, header
from evalpipe.providers.jsontext import MalformedJSONError, as_dict, as_text, dump, parse
from evalpipe.providers.sse import SseEvent, parse_events

MAX_ERROR_CHARACTERS = 2000
"""Error messages are kept to this length: some gateways answer with whole web pages."""


@dataclass(kw_only=True, slots=True)
class Assembled:
    """A stream put together: the message the provider would have sent unstreamed, whether its end was seen, where its
    first content ended (decoded bytes), and the error the stream carried."""

    message: dict[str, Any] | None = None
    finished: bool = False
    """the stream said it was over: nothing that belongs to the answer is missing"""
    finish_seen: bool = False
    """a reason to stop was given, though the end of the stream was not"""
    content_offset: int | None = None
    error: dict[str, Any] | None = None
    malformed: bool = field(default=False)


class Dialect(Protocol):
    """What differs between wire formats when an answer is read."""

    def assemble(self, events: list[SseEvent]) -> Assembled: ...

    def read_message(self, message: dict[str, Any]) -> Answer:
        """The answer in an unstreamed message; outcome `unreadable` where it is not one."""
        ...


def read_answer(
    dialect: Dialect, status: int | None, headers: Mapping[str, str], body: bytes, *, ended: Ended
) -> Answer:
    """The answer in `body` (as received, content encoding and all), or what is known of its failure. Never raises."""
    answer = _read(dialect, status, headers, body, ended=ended)
    if ended == "timeout" and not _whole(answer, ended):
        return replace(answer, outcome=Outcome.TIMEOUT, error_type=answer.error_type or "timeout")
    if ended == "client_closed" and not _whole(answer, ended):
        return replace(answer, outcome=Outcome.CLIENT_CLOSED, error_type=None, error_message=None)
    return answer


def _whole(answer: Answer, ended: Ended) -> bool:
    # SDKs close the connection at the stream's last event: such an answer is whole, however the connection ended.
    return answer.streamed and answer.outcome in {Outcome.OK, Outcome.REFUSED, Outcome.TRUNCATED}


def _read(dialect: Dialect, status: int | None, headers: Mapping[str, str], body: bytes, *, ended: Ended) -> Answer:
    if status is None:
        outcome = Outcome.HTTP_ERROR if ended == "connect_error" else Outcome.UNREADABLE
        return Answer(outcome=outcome, error_type=ended)
    try:
        decoded = decode(headers, body)
    except EncodingError as error:
        outcome = Outcome.UNREADABLE if 200 <= status < 300 else Outcome.HTTP_ERROR
        return Answer(outcome=outcome, error_type="encoding", error_message=str(error))
    if not 200 <= status < 300:
        return _http_error(status, decoded.data)
    if is_stream(headers, decoded.data):
        return _read_stream(dialect, decoded, ended=ended)
    return _read_plain(dialect, decoded.data, ended=ended)


def is_stream(headers: Mapping[str, str], body: bytes) -> bool:
    content_type = header(headers, "content-type").lower()
    if "json" in content_type:
        return False
    return "text/event-stream" in content_type or body.lstrip()[:6].startswith((b"data:", b"event:"))


def _read_plain(dialect: Dialect, data: bytes, *, ended: Ended) -> Answer:
    try:
        message = parse(data)
    except MalformedJSONError as error:
        if ended in {"cut", "protocol_error", "client_closed", "timeout"}:
            return Answer(outcome=Outcome.UNREADABLE, error_type="cut", error_message="the answer broke off")
        return Answer(outcome=Outcome.UNREADABLE, error_type="malformed", error_message=_short(str(error)))
    if not isinstance(message, dict):
        return Answer(outcome=Outcome.UNREADABLE, error_type="malformed", error_message="not a JSON object")
    text = str(data, "utf-8", "replace")
    assembled = _dumped(message) if "\\ud" in text or "\\uD" in text else text
    error_body = _error_of(message)
    if error_body is not None:
        return _provider_error(error_body, assembled=assembled)
    return replace(dialect.read_message(message), assembled=assembled)


def _read_stream(dialect: Dialect, decoded: Decoded, *, ended: Ended) -> Answer:
    stream = dialect.assemble(parse_events(decoded.data))
    offset = None if stream.content_offset is None else decoded.encoded_offset(stream.content_offset)
    answer = Answer(outcome=Outcome.UNREADABLE)
    if stream.message is not None:
        answer = replace(dialect.read_message(stream.message), assembled=_dumped(stream.message))
    answer = replace(answer, streamed=True, content_offset=offset)
    if stream.error is not None:
        failure = _provider_error(stream.error)
        return replace(
            answer, outcome=failure.outcome, error_type=failure.error_type, error_message=failure.error_message
        )
    whole = stream.finished or (stream.finish_seen and ended in {"complete", "closed_by_upstream"})
    if whole and not (stream.malformed and answer.outcome is Outcome.OK):
        return answer
    if stream.malformed and ended in {"complete", "closed_by_upstream"}:
        kind, message = "malformed", "an event of the stream is not JSON"
    else:
        kind, message = "cut", "the stream broke off before its end"
    return replace(answer, outcome=Outcome.UNREADABLE, error_type=kind, error_message=message)


def _http_error(status: int, data: bytes) -> Answer:
    try:
        body = as_dict(parse(data))
    except MalformedJSONError:
        body = {}
    error = _error_of(body)
    if error is None:
        text = _short(well_formed(str(data, "utf-8", "replace")))
        return Answer(outcome=Outcome.HTTP_ERROR, error_type=f"http_{status}", error_message=text or None)
    answer = _provider_error(error, assembled=_dumped(body))
    return replace(answer, error_type=answer.error_type or f"http_{status}")


def _provider_error(error: dict[str, Any], *, assembled: str | None = None) -> Answer:
    """Both vendors' error objects: {"type", "message", "code"?}."""
    kind = as_text(error.get("code")) or as_text(error.get("type"))
    message = as_text(error.get("message"))
    return Answer(
        outcome=Outcome.HTTP_ERROR,
        error_type=None if kind is None else kind[:100],
        error_message=None if message is None else _short(message),
        assembled=assembled,
    )


def _error_of(message: dict[str, Any]) -> dict[str, Any] | None:
    error = message.get("error")
    if isinstance(error, dict) and error:
        return error
    return {"message": error} if isinstance(error, str) and error else None


def _dumped(message: dict[str, Any]) -> str | None:
    try:
        return dump(message)
    except RecursionError:
        return None


def _short(text: str) -> str:
    return text if len(text) <= MAX_ERROR_CHARACTERS else text[:MAX_ERROR_CHARACTERS] + "…"
