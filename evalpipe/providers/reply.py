"""An answer in no vendor's terms, and the writer every dialect gives for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from evalpipe.providers.base import Usage

NO_USAGE = Usage()

Stop = Literal["end", "max_tokens", "stop_sequence", "tool_use", "refusal"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplyCall:
    """A tool call; `arguments` is JSON text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A whole answer. `created`: seconds since the epoch. `refusal`: the words of a refusal where they stand apart."""

    id: str
    model: str
    created: int
    text: str | None = None
    calls: list[ReplyCall] = field(default_factory=list)
    stop: Stop = "end"
    stop_sequence: str | None = None
    usage: Usage = NO_USAGE
    refusal: str | None = None


class ReplyWriter(Protocol):
    """One answer, said in one dialect: whole with `plain`, or event by event. Each call gives the bytes to send."""

    content_type: str

    def start(self, usage: Usage) -> bytes: ...

    def text(self, delta: str) -> bytes: ...

    def refusal(self, delta: str) -> bytes: ...

    def call_start(self, call_id: str, name: str) -> bytes:
        """Begin the next tool call; what was open is closed."""
        ...

    def call_arguments(self, delta: str) -> bytes: ...

    def finish(self, stop: Stop, usage: Usage, stop_sequence: str | None = None) -> bytes:
        """Everything that ends the stream."""
        ...

    def error(self, kind: str, message: str) -> bytes:
        """An error after the headers have gone; nothing may follow."""
        ...


def stream_reply(writer: ReplyWriter, reply: Reply) -> bytes:
    """A whole answer as one stream."""
    parts = [writer.start(reply.usage)]
    if reply.text:
        parts.append(writer.text(reply.text))
    if reply.refusal:
        parts.append(writer.refusal(reply.refusal))
    for call in reply.calls:
        parts += [writer.call_start(call.id, call.name), writer.call_arguments(call.arguments)]
    parts.append(writer.finish(reply.stop, reply.usage, reply.stop_sequence))
    return b"".join(parts)


def error_body(
    endpoint: str, kind: str, message: str, *, code: str | None = None, request_id: str | None = None
) -> Any:
    """An error answer as the dialect of `endpoint` writes it."""
    if endpoint == "messages":
        return {"type": "error", "error": {"type": kind, "message": message}, "request_id": request_id}
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}
