"""Answers in the shape of Anthropic Messages, whole or as a stream of events."""

from __future__ import annotations

from typing import Any

from evalpipe.providers.base import Usage
from evalpipe.providers.jsontext import dump, parsed_or_raw
from evalpipe.providers.reply import Reply, Stop, error_body
from evalpipe.providers.sse import render_event

_STOP: dict[Stop, str] = {
    "end": "end_turn",
    "stop_sequence": "stop_sequence",
    "max_tokens": "max_tokens",
    "tool_use": "tool_use",
    "refusal": "refusal",
}


def plain_messages(reply: Reply) -> dict[str, Any]:
    """The unstreamed body."""
    text = (reply.text or "") + (reply.refusal or "")
    content: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    content += [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": _input(call.arguments)} for call in reply.calls
    ]
    return {
        "id": reply.id,
        "type": "message",
        "role": "assistant",
        "model": reply.model,
        "content": content,
        "stop_reason": _STOP[reply.stop],
        "stop_sequence": reply.stop_sequence,
        "usage": messages_usage(reply.usage),
    }


def messages_usage(usage: Usage) -> dict[str, Any]:
    cached, written = usage.cached_input_tokens or 0, usage.cache_write_tokens or 0
    one_hour = usage.cache_write_1h_tokens or 0
    return {
        "input_tokens": max((usage.input_tokens or 0) - cached - written, 0),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": cached,
        "cache_creation": {
            "ephemeral_5m_input_tokens": max(written - one_hour, 0),
            "ephemeral_1h_input_tokens": one_hour,
        },
        "output_tokens": usage.output_tokens or 0,
        "service_tier": "standard",
    }


class MessagesWriter:
    """Events of one streamed answer."""

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, *, answer_id: str, model: str) -> None:
        self._id = answer_id
        self._model = model
        self._index = -1
        self._open: str | None = None

    def start(self, usage: Usage) -> bytes:
        message: dict[str, Any] = {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {**messages_usage(usage), "output_tokens": 1},
        }
        return _event({"type": "message_start", "message": message})

    def text(self, delta: str) -> bytes:
        opened = b"" if self._open == "text" else self._begin("text", {"type": "text", "text": ""})
        return opened + self._delta({"type": "text_delta", "text": delta})

    def refusal(self, delta: str) -> bytes:
        return self.text(delta)

    def call_start(self, call_id: str, name: str) -> bytes:
        return self._begin("tool_use", {"type": "tool_use", "id": call_id, "name": name, "input": {}})

    def call_arguments(self, delta: str) -> bytes:
        return self._delta({"type": "input_json_delta", "partial_json": delta})

    def finish(self, stop: Stop, usage: Usage, stop_sequence: str | None = None) -> bytes:
        told = messages_usage(usage)
        # The cache-write split and the service tier stand in the start event only.
        final = {key: value for key, value in told.items() if key not in {"cache_creation", "service_tier"}}
        delta = {"stop_reason": _STOP[stop], "stop_sequence": stop_sequence}
        return (
            self._close()
            + _event({"type": "message_delta", "delta": delta, "usage": final})
            + _event({"type": "message_stop"})
        )

    def error(self, kind: str, message: str) -> bytes:
        return _event(error_body("messages", kind, message))

    def ping(self) -> bytes:
        return _event({"type": "ping"})

    def _begin(self, kind: str, block: dict[str, Any]) -> bytes:
        closed = self._close()
        self._index += 1
        self._open = kind
        return closed + _event({"type": "content_block_start", "index": self._index, "content_block": block})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        self._open = None
        return _event({"type": "content_block_stop", "index": self._index})


def _event(data: dict[str, Any]) -> bytes:
    return render_event(dump(data), data["type"])


def _input(arguments: str) -> Any:
    parsed = parsed_or_raw(arguments)
    return parsed if isinstance(parsed, dict) else {}
