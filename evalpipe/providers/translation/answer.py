"""An arm's answer in the client's own dialect: whole, streamed as it comes, and errors."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from evalpipe.core.traffic import Outcome
from evalpipe.providers.base import Answer
from evalpipe.providers.encoding import EncodingError, StreamDecoder, header
from evalpipe.providers.jsontext import MalformedJSONError, as_dict, dump, parse
from evalpipe.providers.registry import read_answer
from evalpipe.providers.sse import SseParser
from evalpipe.providers.translation.reply import Reply, ReplyCall, ReplyWriter, error_body, stream_reply
from evalpipe.providers.translation.sources import STOPS, ChatSource, MessagesSource, Source, stop_of
from evalpipe.providers.translation.write_chat import ChatWriter, plain_chat
from evalpipe.providers.translation.write_messages import MessagesWriter, plain_messages
from evalpipe.providers.translation.write_responses import ResponsesWriter, plain_responses

JSON = "application/json"
_SOURCES: Mapping[str, Callable[[ReplyWriter], Source]] = {"chat.completions": ChatSource, "messages": MessagesSource}
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
    """Translates one answer of an arm that speaks `arm_endpoint` (chat.completions | messages) for a client that asked at
    `client_endpoint` with `request_body`.

    Call `head` once, `feed` with every piece of the body as it comes (no content encoding but those of `encoding`), then
    `finish` when the body has ended well, or `broken` when it has not. `answer_id` and `created` (seconds since the epoch)
    stand in the client's answer. Never raises on what the arm sent.
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
        self._model = str(self._request.get("model") or "")  # the one the client asked for: it is not to see the arms
        self._answer_id = answer_id
        self._created = created
        self._status = 200
        self.status = 200
        """of the client's answer; after `finish` of an unstreamed answer that could not be read it is 502"""
        self._headers: Mapping[str, str] = {}
        self._body: list[bytes] = []
        self._stream: _Stream | None = None

    def head(self, status: int, headers: Mapping[str, str]) -> tuple[int, str, bool]:
        """(status, content type, streamed) of the client's answer."""
        self._status, self._headers = status, headers
        self.status = self._client_status(status)
        if not 200 <= status < 300 or self._request.get("stream") is not True:
            return self.status, JSON, False
        writer = self._writer()
        if "text/event-stream" in header(headers, "content-type").lower():
            with contextlib.suppress(EncodingError):  # then the whole body is read, and `finish` tells why it cannot be
                self._stream = _Stream(_SOURCES[self._arm_endpoint](writer), StreamDecoder(headers))
        return status, writer.content_type, True

    def feed(self, data: bytes) -> bytes:
        """The client's bytes for a piece of the arm's body; an unstreamed answer comes at the end."""
        if self._stream is not None:
            return self._stream.feed(data)
        self._body.append(data)
        return b""

    def finish(self) -> bytes:
        """The rest of the client's answer; a stream that lacked its end ends in an error event."""
        if self._stream is not None:
            end = self._stream.source.finish()
            return self.broken("the provider's stream ended before its end") if end is None else end
        answer = read_answer(self._arm_endpoint, self._status, self._headers, b"".join(self._body))
        if answer.outcome in {Outcome.OK, Outcome.REFUSED, Outcome.TRUNCATED}:
            return self._whole(answer)
        kind = self._kind(self._status if self._status >= 400 else 502, answer.error_type)
        message = answer.error_message or "the provider's answer could not be read"
        if self._request.get("stream") is True and self._status < 300:
            return self._writer().error(kind, message)
        self.status = self._client_status(self._status if self._status >= 300 else 502)
        code = answer.error_type if self._client_endpoint != "messages" else None
        return dump(error_body(self._client_endpoint, kind, message, code=code)).encode()

    def broken(self, message: str) -> bytes:
        """What tells a client of a stream that it broke; nothing where the answer was over already."""
        if self._stream is not None and self._stream.source.ended:
            return b""
        return self._writer().error(self._kind(502, None), message)

    def _whole(self, answer: Answer) -> bytes:
        reply = self._reply(answer)
        if self._request.get("stream") is True:
            return stream_reply(self._writer(), reply)
        if self._client_endpoint == "messages":
            document = plain_messages(reply)
        elif self._client_endpoint == "responses":
            document = plain_responses(reply, self._request)
        else:
            document = plain_chat(reply)
        return dump(document).encode("utf-8", "replace")

    def _reply(self, answer: Answer) -> Reply:
        refused = answer.outcome is Outcome.REFUSED
        # A refusal in words of its own is a refusal; one by a filter may leave half an answer, or nothing.
        words = (answer.text or None) if refused and answer.finish_reason in {"stop", "refusal"} else None
        return Reply(
            id=self._answer_id,
            model=self._model,
            created=self._created,
            text=None if words else answer.text,
            refusal=words,
            calls=[_call(number, call) for number, call in enumerate(answer.tool_calls)],
            stop=stop_of(STOPS.get(answer.finish_reason, "end"), refused=refused, has_calls=bool(answer.tool_calls)),
            usage=answer.usage,
        )

    def _writer(self) -> ReplyWriter:
        model = self._model
        if self._client_endpoint == "messages":
            return MessagesWriter(answer_id=self._answer_id, model=model)
        if self._client_endpoint == "responses":
            return ResponsesWriter(answer_id=self._answer_id, model=model, created=self._created, request=self._request)
        include = as_dict(self._request.get("stream_options")).get("include_usage") is True
        return ChatWriter(answer_id=self._answer_id, model=model, created=self._created, include_usage=include)

    def _client_status(self, status: int) -> int:
        """Only Anthropic knows 529; elsewhere an overloaded server says 503."""
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


class _Stream:
    """One stream: bytes in, the client's bytes out."""

    def __init__(self, source: Source, decoder: StreamDecoder) -> None:
        self.source = source
        self._decoder = decoder
        self._parser = SseParser()

    def feed(self, data: bytes) -> bytes:
        try:
            events = self._parser.feed(self._decoder.feed(data))
        except EncodingError:
            return b""  # no end will be seen: `finish` tells that it broke
        return b"".join(self.source.take(event, _object(event.data)) for event in events)


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = parse(text)
    except MalformedJSONError:
        return None
    return value if isinstance(value, dict) else None


def _call(number: int, call: dict[str, Any]) -> ReplyCall:
    arguments = call.get("arguments")
    return ReplyCall(
        id=call.get("id") or f"call_{number}",
        name=call.get("name") or "",
        arguments=arguments if isinstance(arguments, str) else dump(arguments if arguments is not None else {}),
    )
