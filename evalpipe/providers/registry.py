"""The list of wire formats and providers, and how a response is read in any of them."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from msgspec.structs import replace

from evalpipe.models import ANSWERED, Outcome
from evalpipe.providers import chat, messages, responses
from evalpipe.providers.base import Answer, RequestView
from evalpipe.providers.chat import ChatReader
from evalpipe.providers.decoding import PIECE_BYTES, EncodingError, StreamDecoder, header
from evalpipe.providers.json_values import MalformedJSONError, cleaned, dump, parse, parse_answer
from evalpipe.providers.messages import MessagesReader
from evalpipe.providers.ordinary import read_ordinary, read_ordinary_stream
from evalpipe.providers.outcomes import Failure, ending, failure_in, short
from evalpipe.providers.response_builder import NOT_TEXT, AnswerBuilder, Piece
from evalpipe.providers.responses import ResponsesReader
from evalpipe.providers.sse import SseEvent, SseParser
from evalpipe.providers.usage import with_reported_header
from evalpipe.spool.format import Ended
from evalpipe.text import well_formed


def read_request(endpoint: str, body: bytes | str) -> RequestView:
    """The fields of a request that evalpipe uses. A body that is no JSON object gives an empty view: never raises."""
    try:
        return view_of(endpoint, parse(body))
    except MalformedJSONError:
        return view_of("", None)


def view_of(endpoint: str, document: Any) -> RequestView:
    """The same of a body that is parsed already."""
    try:
        return DIALECTS[endpoint].read_request(document if isinstance(document, dict) else {})
    except (RecursionError, KeyError):
        return RequestView(
            model=None,
            streamed=False,
            messages=[],
            system_text="",
            first_user_message=None,
            has_tools=False,
            usage_requested=True,
        )


# How an answer is read in any dialect, piece by piece as it arrives: decode, distinguish streams from plain responses, classify.
#
# One reader serves the store and the translation: what a client receives and what is recorded come from the same pieces
# and the same verdict.


class DialectReader(Protocol):
    """One answer of a wire format, being read. See `chat.read.ChatReader`."""

    is_begun: bool
    is_finished: bool
    has_reason: bool
    is_malformed: bool
    failure: Failure | None

    @property
    def builder(self) -> AnswerBuilder: ...

    def take_message(self, message: dict[str, Any]) -> bool:
        """A plain answer; False where it is none."""
        ...

    def take_event(self, name: str, data: str, value: Any) -> bool:
        """One event: its name, its data and the JSON in it (None where it holds none); whether it carried content."""
        ...

    def finish(self) -> AnswerBuilder:
        """The answer, when all of it is in."""
        ...

    def message(self) -> dict[str, Any] | None:
        """The answer as it would have come unstreamed; None where nothing of it came."""
        ...


@dataclass(frozen=True, slots=True)
class Dialect:
    """A wire format: how its requests are read, and a reader for each of its answers."""

    read_request: Callable[[dict[str, Any]], RequestView]
    reader: Callable[[], DialectReader]


DIALECTS: Mapping[str, Dialect] = {
    "chat.completions": Dialect(chat.read_request, ChatReader),
    "responses": Dialect(responses.read_request, ResponsesReader),
    "messages": Dialect(messages.read_request, MessagesReader),
}
"""endpoint name → wire format"""

PROVIDERS: Mapping[str, tuple[str, ...]] = {
    "openai": ("chat.completions", "responses"),
    "anthropic": ("messages",),
    "litellm": ("chat.completions",),
}
"""provider → the endpoints it is asked at; the first one takes what has to be translated"""


def serves(provider: str, endpoint: str) -> bool:
    """Whether requests of that endpoint reach the provider without translation. Raises KeyError for an unknown provider."""
    return endpoint in PROVIDERS[provider]


def answer_reader(endpoint: str, status: int | None, headers: Mapping[str, str]) -> AnswerReader:
    """A reader for a response in the dialect of `endpoint`, to be fed as the body arrives. Raises KeyError for an unknown
    endpoint. `headers` need only hold content-type and content-encoding."""
    return AnswerReader(DIALECTS[endpoint].reader(), status, headers)


def read_answer(
    endpoint: str, status: int | None, headers: Mapping[str, str], body: bytes | str, *, ended: Ended = "complete"
) -> Answer:
    """The answer in a whole body.

    Args:
        endpoint: the arm's dialect: a key of `DIALECTS`.
        status: None where no answer came.
        headers: content-type, content-encoding and a gateway's own figure of the cost (`usage.COST_HEADER`) are looked at.
        body: as received, content encoding and all; as text where it is UTF-8, which is faster.
        ended: how the answer ended. A timeout or a client that left is the outcome, unless the stream's own last event had
            come.

    Returns:
        The answer, or what is known of its failure. Never raises on what was received.
    """
    if endpoint not in DIALECTS:
        return Answer(outcome=Outcome.UNREADABLE, error_type="unknown_endpoint", error_message=endpoint[:100])
    answer = None
    is_whole_success = status is not None and 200 <= status < 300 and ended in {"complete", "closed_by_upstream"}
    if isinstance(body, str) and is_whole_success and not header(headers, "content-encoding"):
        answer = read_ordinary(endpoint, body) if body.startswith("{") else read_ordinary_stream(endpoint, body)
    if answer is None:
        reader = answer_reader(endpoint, status, headers)
        reader.feed(body.encode() if isinstance(body, str) else body)
        answer = reader.finish(ended)
    usage = with_reported_header(answer.usage, headers, answer.model, streamed=answer.streamed)
    return answer if usage is answer.usage else replace(answer, usage=usage)


_FIELDS: Final = (b"data", b"event", b"id", b"retry")
"""names of the fields of an event stream; a comment begins with a colon"""
_SPACE: Final = b" \t\r\n"
_BOM: Final = b"\xef\xbb\xbf"


class AnswerReader:
    """Reads one answer as its bytes come, in pieces of any length.

    Call `feed` with each piece of the body, as received, then `finish`. `pieces` grows with the answer's content; `is_over` is
    True once nothing that follows can change the response: a stream's own end, or an error in it. Never raises.
    """

    def __init__(self, reader: DialectReader, status: int | None, headers: Mapping[str, str]) -> None:
        self._reader = reader
        self._status = status
        self._headers = headers
        self._decoder: StreamDecoder | None = None
        self._encoding_error: str | None = None
        try:
            self._decoder = StreamDecoder(headers)
        except EncodingError as error:
            self._encoding_error = str(error)
        self._n_bytes = 0
        self._body: list[bytes] = []
        self._is_stream: bool | None = None
        self._parser: SseParser | None = None
        self._content_offset: int | None = None
        self._has_surrogates = False
        self._is_too_deep = False
        self._answer: Answer | None = None

    @property
    def pieces(self) -> list[Piece]:
        """The response as far as it has arrived."""
        return self._reader.builder.pieces

    @property
    def is_begun(self) -> bool:
        """Whether a stream has begun to answer."""
        return self._reader.is_begun

    @property
    def is_over(self) -> bool:
        reader = self._reader
        return self._is_stream is True and (reader.is_finished or reader.failure is not None)

    @property
    def n_bytes(self) -> int:
        """Bytes of the body so far."""
        return self._n_bytes

    def feed(self, data: bytes) -> None:
        decoder = self._decoder
        if decoder is None or self._encoding_error is not None:
            self._n_bytes += len(data)
            return
        if decoder.is_identity:
            self._n_bytes += len(data)
            self._take(data)
            return
        start = 0
        while start < len(data):
            # Decoded in pieces that end at the same places however the body came: so does what is known of its times.
            end = min(start + PIECE_BYTES - self._n_bytes % PIECE_BYTES, len(data))
            try:
                decoded = decoder.feed(data[start:end])
            except EncodingError as error:
                self._encoding_error = str(error)
                self._n_bytes += len(data) - start
                return
            self._n_bytes += end - start
            self._take(decoded)
            start = end

    def finish(self, ended: Ended = "complete") -> Answer:
        """The answer, or what is known of its failure; `ended`: how it ended."""
        if self._answer is None:
            try:
                self._answer = self._finished(ended)
            except RecursionError:
                self._answer = Answer(
                    outcome=Outcome.UNREADABLE, error_type="malformed", error_message="nested too deeply"
                )
        return self._answer

    def _take(self, data: bytes) -> None:
        if self._is_stream is None:
            self._body.append(data)
            whole = b"".join(self._body)
            self._body = [whole]
            self._is_stream = _is_stream(self._status, self._headers, whole)
            if self._is_stream is not True:
                return
            data, self._body = whole, []
        if self._is_stream:
            if self._parser is None:
                self._parser = SseParser()
            for event in self._parser.feed(data):
                self._take_event(event)
        else:
            self._body.append(data)

    def _take_event(self, event: SseEvent) -> None:
        try:
            value, is_exact = parse_answer(event.data)
        except MalformedJSONError:
            value, is_exact = None, True
        self._has_surrogates |= not is_exact
        try:
            content = self._reader.take_event(event.event, event.data, value)
        except RecursionError:
            self._is_too_deep, content = True, False
        if content and self._content_offset is None:
            self._content_offset = event.end_offset
            if self._decoder is not None and not self._decoder.is_identity:
                self._content_offset = -(-self._n_bytes // PIECE_BYTES) * PIECE_BYTES

    def _finished(self, ended: Ended) -> Answer:
        answer = self._read(ended)
        # SDKs close the connection at a stream's last event or at its error: either is known, however the connection ended.
        if answer.streamed and (answer.outcome in ANSWERED or answer.outcome is Outcome.HTTP_ERROR):
            return answer
        if ended == "timeout":
            return replace(answer, outcome=Outcome.TIMEOUT, error_type=answer.error_type or "timeout")
        if ended == "client_closed":
            return replace(answer, outcome=Outcome.CLIENT_CLOSED, error_type=None, error_message=None)
        return answer

    def _read(self, ended: Ended) -> Answer:
        status = self._status
        if status is None:
            outcome = Outcome.HTTP_ERROR if ended == "connect_error" else Outcome.UNREADABLE
            return Answer(outcome=outcome, error_type=ended)
        if self._encoding_error is not None and not self.is_over:
            outcome = Outcome.UNREADABLE if 200 <= status < 300 else Outcome.HTTP_ERROR
            return Answer(outcome=outcome, error_type="encoding", error_message=self._encoding_error)
        if not 200 <= status < 300:
            return self._http_error(status, b"".join(self._body))
        if self._is_stream or (self._is_stream is None and _is_called_stream(self._headers)):
            return self._read_stream(ended)
        return self._read_plain(b"".join(self._body), ended)

    def _http_error(self, status: int, data: bytes) -> Answer:
        try:
            body, is_exact = parse_answer(data)
            body = body if is_exact else cleaned(body)
        except MalformedJSONError:
            body = None
        failure = failure_in(body, failed=True) if body is not None else None
        if failure is None:
            text = short(well_formed(str(data, "utf-8", "replace")))
            return Answer(outcome=Outcome.HTTP_ERROR, error_type=f"http_{status}", error_message=text or None)
        return Answer(
            outcome=Outcome.REFUSED if failure.refused else Outcome.HTTP_ERROR,
            error_type=failure.kind or f"http_{status}",
            error_message=failure.message,
            assembled=_dumped(body),
        )

    def _read_plain(self, data: bytes, ended: Ended) -> Answer:
        # A length that promised more, or a chunk that never came: the client's SDK raises, whatever there was of it.
        if ended in {"cut", "protocol_error"}:
            return Answer(outcome=Outcome.UNREADABLE, error_type="cut", error_message="the answer broke off")
        try:
            value, is_exact = parse_answer(data)
        except MalformedJSONError as error:
            if ended in {"client_closed", "timeout"}:
                return Answer(outcome=Outcome.UNREADABLE, error_type="cut", error_message="the answer broke off")
            return Answer(outcome=Outcome.UNREADABLE, error_type="malformed", error_message=short(str(error)))
        if not is_exact:
            value = cleaned(value)
        assembled = str(data, "utf-8", "replace") if is_exact else _dumped(value)
        failure = failure_in(value)
        if failure is not None:
            return _failed(Answer(outcome=Outcome.HTTP_ERROR, assembled=assembled), failure)
        if not isinstance(value, dict):
            return Answer(outcome=Outcome.UNREADABLE, error_type="malformed", error_message="not a JSON object")
        is_answer = self._reader.take_message(value)
        builder = self._reader.finish()
        if not is_answer:
            # What is no answer and has a message of its own ({"code": 1302, "msg": "…"}) is an error.
            failure = failure_in(value, failed=True)
            if failure is not None:
                return _failed(Answer(outcome=Outcome.HTTP_ERROR, assembled=assembled), failure)
            message = "the answer holds neither choices, content nor output"
            return Answer(
                outcome=Outcome.UNREADABLE, error_type="malformed", error_message=message, assembled=assembled
            )
        return answer_of(builder, assembled=assembled)

    def _read_stream(self, ended: Ended) -> Answer:
        reader = self._reader
        builder = reader.finish()
        message = reader.message()
        answer = Answer(outcome=Outcome.UNREADABLE)
        if message is not None:
            if self._has_surrogates:
                message = cleaned(message)
            answer = replace(answer_of(builder), assembled=_dumped(message))
        offset = self._content_offset
        answer = replace(answer, streamed=True, content_offset=None if offset is None else min(offset, self._n_bytes))
        if builder.failure is not None:
            return _failed(answer, builder.failure)
        is_complete = ended in {"complete", "closed_by_upstream"}
        is_malformed = reader.is_malformed or self._is_too_deep
        is_whole = message is not None and (reader.is_finished or (reader.has_reason and is_complete))
        if is_whole and not (is_malformed and answer.outcome is Outcome.OK):
            return answer
        if is_malformed and is_complete:
            kind, text = "malformed", "an event of the stream is not JSON"
        else:
            kind, text = "cut", "the stream broke off before its end"
        return replace(answer, outcome=Outcome.UNREADABLE, error_type=kind, error_message=text)


def answer_of(builder: AnswerBuilder, *, assembled: str | None = None) -> Answer:
    """The complete response: text, calls, and how it ended. `assembled`: see `Answer`."""
    calls = builder.tool_calls()
    text = builder.text()
    end = ending(builder.finish_reason, has_calls=bool(calls))
    outcome, error_type, error_message = end
    if builder.is_incomplete and outcome is Outcome.OK:
        outcome = Outcome.TRUNCATED
    if builder.refusal() and outcome in ANSWERED:
        outcome = Outcome.REFUSED
    if error_type is None and builder.marks:
        error_type = NOT_TEXT
        error_message = f"the answer holds {' and '.join(builder.marks)}: only its text can be judged"
    elif error_type is None and builder.other_content is not None:
        error_type, error_message = NOT_TEXT, f"the answer holds no message, only {builder.other_content}"
    answer = Answer(
        outcome=outcome,
        text=text,
        tool_calls=calls,
        finish_reason=builder.finish_reason,
        model=None if builder.model is None else well_formed(builder.model),
        usage=builder.usage,
        assembled=assembled,
        error_type=error_type,
        error_message=error_message,
        late_reasoning=builder.late_reasoning,
    )
    return answer if builder.failure is None else _failed(answer, builder.failure)


def _failed(answer: Answer, failure: Failure) -> Answer:
    return replace(
        answer,
        outcome=Outcome.REFUSED if failure.refused else Outcome.HTTP_ERROR,
        error_type=failure.kind or answer.error_type or "error",
        error_message=failure.message or answer.error_message,
        error_status=failure.status,
    )


def _is_stream(status: int | None, headers: Mapping[str, str], body: bytes) -> bool | None:
    """Whether the body is an event stream, by its first bytes: servers send one under any type, and an error as JSON under
    the type of streams. None while that is open; then it counts as plain."""
    if status is None or not 200 <= status < 300:
        return False
    start = body.lstrip(_SPACE).removeprefix(_BOM).lstrip(_SPACE)
    if not start:
        return None
    if start.startswith(b":"):
        return True
    if start[:1] in b"{[":
        return False
    line = start[:6]
    for name in _FIELDS:
        if line.startswith(name):
            rest = start[len(name) : len(name) + 1]
            if rest in (b":", b"\r", b"\n"):
                return True
            if not rest:
                return None
        elif name.startswith(line):
            return None
    if _BOM.startswith(start):
        return None
    return _is_called_stream(headers)


def _is_called_stream(headers: Mapping[str, str]) -> bool:
    return "text/event-stream" in header(headers, "content-type").lower()


def _dumped(message: Any) -> str | None:
    try:
        return dump(message)
    except (RecursionError, ValueError):
        return None
