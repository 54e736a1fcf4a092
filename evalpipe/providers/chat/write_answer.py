"""Answers in the shape of chat completions, whole or as a stream of chunks."""

from __future__ import annotations

from typing import Any

from evalpipe.providers.base import Usage
from evalpipe.providers.jsontext import dump
from evalpipe.providers.reply import Reply, Stop, error_body
from evalpipe.providers.sse import render_event

_FINISH: dict[Stop, str] = {
    "end": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


def plain_chat(reply: Reply) -> dict[str, Any]:
    """The unstreamed body."""
    message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": reply.refusal, "annotations": []}
    if reply.calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in reply.calls
        ]
    finish = "stop" if reply.refusal is not None and reply.stop == "refusal" else _FINISH[reply.stop]
    usage = chat_usage(reply.usage)
    return {
        "id": reply.id,
        "object": "chat.completion",
        "created": reply.created,
        "model": reply.model,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
        **({"usage": usage} if usage is not None else {}),
        "service_tier": "default",
        "system_fingerprint": None,
    }


def chat_usage(usage: Usage) -> dict[str, Any] | None:
    """None where the tokens are not known: the dialect can leave them out, and 0 would be a count."""
    prompt, completion = usage.input_tokens, usage.output_tokens
    if prompt is None or completion is None:
        return None
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": usage.cached_input_tokens or 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens or 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


class ChatWriter:
    """Chunks of one streamed answer. `include_usage`: the client asked for the usage chunk."""

    content_type = "text/event-stream; charset=utf-8"

    def __init__(self, *, answer_id: str, model: str, created: int, include_usage: bool) -> None:
        self._head = {"id": answer_id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._include_usage = include_usage
        self._n_calls = 0
        self._refused = False

    def start(self, usage: Usage) -> bytes:
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def text(self, delta: str) -> bytes:
        return self._chunk({"content": delta})

    def refusal(self, delta: str) -> bytes:
        self._refused = True
        return self._chunk({"refusal": delta})

    def call_start(self, call_id: str, name: str) -> bytes:
        function = {"name": name, "arguments": ""}
        call = {"index": self._n_calls, "id": call_id, "type": "function", "function": function}
        self._n_calls += 1
        return self._chunk({"tool_calls": [call]})

    def call_arguments(self, delta: str) -> bytes:
        if not delta:
            return b""
        return self._chunk({"tool_calls": [{"index": self._n_calls - 1, "function": {"arguments": delta}}]})

    def finish(self, stop: Stop, usage: Usage, stop_sequence: str | None = None) -> bytes:
        finish = "stop" if self._refused and stop == "refusal" else _FINISH[stop]
        end = self._chunk({}, finish)
        told = chat_usage(usage) if self._include_usage else None
        if told is not None:
            end += render_event(dump({**self._head, **_COMMON, "choices": [], "usage": told}))
        return end + render_event("[DONE]")

    def error(self, kind: str, message: str) -> bytes:
        return render_event(dump(error_body("chat.completions", kind, message)))

    def _chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        chunk = {**self._head, **_COMMON, "choices": [choice]}
        if self._include_usage:
            chunk["usage"] = None
        return render_event(dump(chunk))


_COMMON = {"service_tier": "default", "system_fingerprint": None}
