"""An arm's response in the client's own dialect: whole, streamed as it comes, and errors.

The arm's answer is read by the reader that makes the stored record: the client receives what is recorded. The
reasoning of a stream that has a closing tag and no opening one (`response_builder.without_reasoning`) has passed by the time the
tag shows what it was: the record of such an answer keeps it in its text, too (`Answer.late_reasoning`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from evalpipe.models import ANSWERED, Outcome
from evalpipe.providers.base import NO_USAGE, Answer, Reply, ReplyCall, ReplyWriter, Stop, error_body
from evalpipe.providers.chat import ChatWriter, plain_chat
from evalpipe.providers.json_values import MalformedJSONError, as_dict, dump, parse
from evalpipe.providers.messages import MessagesWriter, plain_messages
from evalpipe.providers.outcomes import KINDS
from evalpipe.providers.registry import answer_reader
from evalpipe.providers.response_builder import Piece
from evalpipe.providers.responses import ResponsesWriter, plain_responses

JSON = "application/json"
NO_ARGUMENTS: Final = "{}"
"""a call without arguments, where a server sends none: clients parse it as JSON"""
ID_PREFIXES: Mapping[str, str] = {"chat.completions": "chatcmpl-", "responses": "resp_", "messages": "msg_"}
"""of an answer's id, by the client's endpoint: frameworks decide by it what an id can be used for"""
_ANTHROPIC_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class AnswerTranslator:
    """Translates one response in the dialect of `arm_endpoint` for a client that sent its request to `client_endpoint` with
    `request_body`.

    Call `head` once, `feed` with every piece of the body as it comes, then `finish` when the body has ended well, or `broken`
    when it has not. `answer_id` (behind the prefix by which the dialect's clients recognise a response's id) and `created`
    (seconds since the epoch) are in the client's response. Never raises on what the arm sent.
    """

    def __init__(
        self, arm_endpoint: str, client_endpoint: str, *, request_body: bytes, answer_id: str, created: int
    ) -> None:
        self._arm_endpoint = arm_endpoint
        self._client_endpoint = client_endpoint
        try:
            self._request = as_dict(parse(request_body))
        except MalformedJSONError:
            self._request = {}
        self._model = str(
            self._request.get("model") or ""
        )  # the one the client asked for: the arms are not visible to it
        self._keeps_tags = b"<think>" in request_body or b"\\u003cthink" in request_body
        self._token = answer_id
        self._answer_id = ID_PREFIXES[client_endpoint] + answer_id
        self._created = created
        self._status = 200
        self.status = 200
        """of the client's answer; after `finish` of an unstreamed answer that could not be read it is 502"""
        self._reader = answer_reader(arm_endpoint, 200, {})
        self._stream: _PieceWriter | None = None
        self._n_taken = 0
        self._is_ended = False

    def head(self, status: int, headers: Mapping[str, str]) -> tuple[int, str, bool]:
        """(status, content type, streamed) of the client's answer."""
        self._status = status
        self._reader = answer_reader(self._arm_endpoint, status, headers)
        self.status = self._client_status(status)
        if not 200 <= status < 300 or self._request.get("stream") is not True:
            return self.status, JSON, False
        writer = self._writer()
        self._stream = _PieceWriter(writer, keeps_tags=self._keeps_tags)
        return status, writer.content_type, True

    def feed(self, data: bytes) -> bytes:
        """The client's bytes for a piece of the arm's body; an unstreamed answer comes at the end."""
        if self._is_ended:
            return b""
        self._reader.feed(data)
        if self._stream is None:
            return b""
        written = self._new_pieces(self._stream)
        return written + self.finish() if self._reader.is_over else written

    def finish(self) -> bytes:
        """The rest of the client's answer; a stream that lacked its end ends in an error event."""
        if self._is_ended:
            return b""
        self._is_ended = True
        answer = self._reader.finish()
        is_answer = answer.outcome in ANSWERED and 200 <= self._status < 300
        if self._stream is None:
            return self._whole(answer) if is_answer else self._error(answer)
        written = self._new_pieces(self._stream, is_begun=is_answer)
        if is_answer:
            return written + self._stream.end(answer, stop_of(answer))
        message = answer.error_message or "the provider's answer could not be read"
        return written + self._stream.writer.error(self._event_kind(answer), message)

    def broken(self, message: str) -> bytes:
        """The error event of a broken stream; nothing where the response was complete already."""
        if self._is_ended:
            return b""
        self._is_ended = True
        return self._writer().error(self._kind(502, None), message)

    def _new_pieces(self, stream: _PieceWriter, *, is_begun: bool = False) -> bytes:
        pieces = self._reader.pieces
        new, self._n_taken = pieces[self._n_taken :], len(pieces)
        written = stream.begin() if new or is_begun or self._reader.is_begun else b""
        return written + b"".join(map(stream.take, new)) if new else written

    def _whole(self, answer: Answer) -> bytes:
        reply = self._reply(answer)
        if self._client_endpoint == "messages":
            document = plain_messages(reply)
        elif self._client_endpoint == "responses":
            document = plain_responses(reply, self._request)
        else:
            document = plain_chat(reply)
        return dump(document).encode("utf-8", "replace")

    def _reply(self, answer: Answer) -> Reply:
        kinds = {"text"} | ({"thought"} if self._keeps_tags else set())
        pieces = self._reader.pieces
        text = "".join(piece.text for piece in pieces if piece.kind in kinds)
        text = text if self._keeps_tags else text.removeprefix(answer.late_reasoning)
        refusal = "".join(piece.text for piece in pieces if piece.kind == "refusal")
        ids = _CallIds()
        calls = [_call(piece, pieces, ids) for piece in pieces if piece.kind == "call"]
        return Reply(
            id=self._answer_id,
            model=self._model,
            created=self._created,
            text=text if text or not (calls or refusal) else None,
            refusal=refusal or None,
            calls=calls,
            stop=stop_of(answer),
            usage=answer.usage,
        )

    def _error(self, answer: Answer) -> bytes:
        status = self._status if self._status >= 300 else _status_within(answer)
        kind = self._kind(status if status >= 400 else 502, answer.error_type)
        self.status = self._client_status(status)
        message = answer.error_message or "the provider's answer could not be read"
        code = answer.error_type if self._client_endpoint != "messages" else None
        body = error_body(self._client_endpoint, kind, message, code=code, request_id=f"req_{self._token}")
        return dump(body).encode("utf-8", "replace")

    def _writer(self) -> ReplyWriter:
        model = self._model
        if self._client_endpoint == "messages":
            return MessagesWriter(answer_id=self._answer_id, model=model)
        if self._client_endpoint == "responses":
            return ResponsesWriter(answer_id=self._answer_id, model=model, created=self._created, request=self._request)
        include = as_dict(self._request.get("stream_options")).get("include_usage") is True
        return ChatWriter(answer_id=self._answer_id, model=model, created=self._created, include_usage=include)

    def _client_status(self, status: int) -> int:
        """Only Anthropic uses 529; elsewhere an overloaded server answers 503."""
        if self._client_endpoint == "messages":
            return 529 if status == 503 else status
        return 503 if status == 529 else status

    def _kind(self, status: int, known: str | None) -> str:
        if self._client_endpoint == "messages":
            return _ANTHROPIC_KINDS.get(
                self._client_status(status), "api_error" if status >= 500 else "invalid_request_error"
            )
        if status == 429:
            return "insufficient_quota" if known == "insufficient_quota" else "rate_limit_error"
        return "server_error" if status >= 500 else "invalid_request_error"

    def _event_kind(self, answer: Answer) -> str:
        """The kind of an error within a stream: the arm's own word where the client's dialect has it."""
        known = answer.error_type
        if self._client_endpoint == "messages":
            if known is not None and known in _ANTHROPIC_KINDS.values():
                return known
            return _ANTHROPIC_KINDS.get(self._client_status(_status_within(answer)), "api_error")
        return known or "server_error"


class _PieceWriter:
    """Pieces of a response, written in another dialect as they arrive.

    Deltas of parallel calls may come interleaved, and one dialect sends one call after another: the first one is passed on as
    it comes, the others (and text and refusals after it) when it is over.
    """

    def __init__(self, writer: ReplyWriter, *, keeps_tags: bool) -> None:
        self.writer = writer
        self._keeps_tags = keeps_tags
        self._is_begun = False
        self._live: int | None = None
        self._live_is_empty = True
        self._held: dict[int, _HeldCall] = {}
        self._ids = _CallIds()
        self._late: list[Piece] = []
        """text and refusal that arrived while a call was being written: a dialect with blocks would end the call's"""

    def begin(self) -> bytes:
        if self._is_begun:
            return b""
        self._is_begun = True
        return self.writer.start(NO_USAGE)

    def take(self, piece: Piece) -> bytes:
        kind = piece.kind
        if kind == "text" or kind == "refusal" or (kind == "thought" and self._keeps_tags):
            if self._live is None:
                return self._text(piece)
            self._late.append(piece)
        elif kind == "call":
            if self._live is None:
                return self._start(piece)
            self._held[piece.call] = _HeldCall(piece)
        elif kind == "arguments":
            if piece.call == self._live:
                return self._arguments(piece.text)
            self._held[piece.call].arguments.append(piece.text)
        elif kind == "call_end":
            if piece.call == self._live:
                return self._end_live()
            self._held[piece.call].is_ended = True
        return b""

    def end(self, answer: Answer, stop: Stop) -> bytes:
        return self.writer.finish(stop, answer.usage)

    def _start(self, piece: Piece) -> bytes:
        self._live, self._live_is_empty = piece.call, True
        return self.writer.call_start(self._ids.of(piece), piece.name or "")

    def _text(self, piece: Piece) -> bytes:
        return self.writer.refusal(piece.text) if piece.kind == "refusal" else self.writer.text(piece.text)

    def _arguments(self, text: str) -> bytes:
        self._live_is_empty = False
        return self.writer.call_arguments(text)

    def _end_live(self) -> bytes:
        out = self._arguments(NO_ARGUMENTS) if self._live_is_empty else b""
        self._live = None
        out += b"".join(map(self._text, self._late))
        self._late = []
        while self._held and self._live is None:
            held = self._held.pop(min(self._held))
            out += self._start(held.piece)
            if held.arguments:
                out += self._arguments("".join(held.arguments))
            if held.is_ended:
                out += self._arguments(NO_ARGUMENTS) if self._live_is_empty else b""
                self._live = None
        return out


class _HeldCall:
    """A tool call that waits for its turn in the stream."""

    __slots__ = ("arguments", "is_ended", "piece")

    def __init__(self, piece: Piece) -> None:
        self.piece = piece
        self.arguments: list[str] = []
        self.is_ended = False


def stop_of(answer: Answer) -> Stop:
    """Why a response ended, from its record. OpenAI reports "stop" for a refusal in words, and for a call the client
    forced: elsewhere both have names of their own, by which clients decide what to do next."""
    if answer.outcome is Outcome.REFUSED:
        return "refusal"
    if answer.outcome is Outcome.TRUNCATED:
        return "max_tokens"
    if answer.tool_calls and KINDS.get((answer.finish_reason or "").lower(), "end") in {"end", "calls"}:
        return "tool_use"
    return "stop_sequence" if answer.finish_reason == "stop_sequence" else "end"


_STATUSES: Final = {
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "invalid_argument": 400,
    "authentication_error": 401,
    "invalid_api_key": 401,
    "unauthenticated": 401,
    "billing_error": 402,
    "permission_error": 403,
    "permission_denied": 403,
    "not_found_error": 404,
    "model_not_found": 404,
    "not_found": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "insufficient_quota": 429,
    "resource_exhausted": 429,
    "too_many_requests": 429,
    "unavailable": 503,
    "overloaded_error": 529,
    "timeout_error": 504,
    "deadline_exceeded": 504,
}
"""kinds of errors, OpenAI's, Anthropic's and Google's, in lower case → the status they come with"""


def _status_within(answer: Answer) -> int:
    """The status of an error that came within a 200; 502 where it names none: clients wait and try again by it."""
    return answer.error_status or _STATUSES.get((answer.error_type or "").lower(), 502)


class _CallIds:
    """The ids of a response's calls for its client, which answers each call by its id: no two are equal."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, begin: Piece) -> str:
        call_id = begin.id or f"call_{begin.call}"
        if call_id in self._taken:
            call_id = f"{call_id}_{begin.call}"
        self._taken.add(call_id)
        return call_id


def _call(begin: Piece, pieces: list[Piece], ids: _CallIds) -> ReplyCall:
    """A whole call of a plain answer."""
    arguments = "".join(piece.text for piece in pieces if piece.kind == "arguments" and piece.call == begin.call)
    return ReplyCall(id=ids.of(begin), name=begin.name or "", arguments=arguments or NO_ARGUMENTS)
