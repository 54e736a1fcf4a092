"""Streams read event by event, as they come, and said again through a writer of another dialect."""

from __future__ import annotations

from typing import Any, Protocol

from evalpipe.providers.base import Usage
from evalpipe.providers.jsontext import as_count, as_dict, as_list, as_text, dump
from evalpipe.providers.sse import SseEvent
from evalpipe.providers.translation.reply import NO_USAGE, ReplyWriter, Stop
from evalpipe.providers.usage import read_chat_usage, read_messages_usage

STOPS: dict[str | None, Stop] = {
    # OpenAI
    "stop": "end",
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "function_call": "tool_use",
    "content_filter": "refusal",
    # Anthropic
    "end_turn": "end",
    "pause_turn": "end",
    "stop_sequence": "stop_sequence",
    "max_tokens": "max_tokens",
    "model_context_window_exceeded": "max_tokens",
    "tool_use": "tool_use",
    "refusal": "refusal",
}


NO_ARGUMENTS = "{}"
"""a call without arguments, where a server says nothing at all: clients parse it as JSON"""


def stop_of(told: Stop, *, refused: bool, has_calls: bool) -> Stop:
    """Why an answer ended. OpenAI says "stop" for a refusal in words, and for a call the client forced: elsewhere both have
    names of their own, by which clients decide what to do next."""
    if refused:
        return "refusal"
    return "tool_use" if has_calls and told == "end" else told


class Source(Protocol):
    """One stream being read. `ended`: the last bytes of the answer have been given."""

    ended: bool

    def take(self, event: SseEvent, data: dict[str, Any] | None) -> bytes:
        """What an event comes to for the client; `data` is its JSON object, None where it holds none."""
        ...

    def finish(self) -> bytes | None:
        """What ends the answer when the stream has ended; None where it broke off before its end."""
        ...


class ChatSource:
    """A stream of chat completion chunks (the first choice of each)."""

    def __init__(self, writer: ReplyWriter) -> None:
        self._writer = writer
        self.ended = False
        self._started = False
        self._stop: Stop | None = None
        self._refused = False
        self._usage = NO_USAGE
        # Deltas of parallel calls may come interleaved, and one dialect says one call after another: the first one is
        # passed on as it comes, the others (and text after it) when it is over.
        self._live: int | None = None
        self._live_is_empty = False
        self._held: dict[int, dict[str, str]] = {}
        self._late_text: list[str] = []

    def take(self, event: SseEvent, data: dict[str, Any] | None) -> bytes:
        if event.data.strip() == "[DONE]":
            return self.finish() or b""
        if data is None or self.ended:
            return b""
        if data.get("error"):
            self.ended = True
            error = as_dict(data["error"])
            return self._writer.error(
                as_text(error.get("type")) or "api_error", as_text(error.get("message")) or "error"
            )
        if data.get("usage") is not None:
            self._usage = read_chat_usage(data["usage"])
        out = b""
        if not self._started:
            self._started = True
            out = self._writer.start(NO_USAGE)
        for choice in map(as_dict, as_list(data.get("choices"))):
            if (as_count(choice.get("index")) or 0) == 0:
                out += self._delta(as_dict(choice.get("delta")))
                if choice.get("finish_reason") is not None:
                    self._stop = STOPS.get(as_text(choice["finish_reason"]), "end")
        return out

    def _delta(self, delta: dict[str, Any]) -> bytes:
        out = b""
        text = as_text(delta.get("content"))
        if text and self._live is None:
            out += self._writer.text(text)
        elif text:
            self._late_text.append(text)
        refusal = as_text(delta.get("refusal"))
        if refusal:
            self._refused = True
            out += self._writer.refusal(refusal)
        for position, call in enumerate(map(as_dict, as_list(delta.get("tool_calls")))):
            index = as_count(call.get("index"))
            out += self._call(position if index is None else index, call)
        return out

    def _call(self, index: int, call: dict[str, Any]) -> bytes:
        function = as_dict(call.get("function"))
        name, arguments = as_text(function.get("name")) or "", as_text(function.get("arguments")) or ""
        if self._live is None:
            self._live, self._live_is_empty = index, not arguments
            return self._writer.call_start(as_text(call.get("id")) or f"call_{index}", name) + self._said(arguments)
        if index == self._live:
            self._live_is_empty &= not arguments
            return self._said(arguments)
        held = self._held.setdefault(index, {"id": f"call_{index}", "name": "", "arguments": ""})
        held["id"] = as_text(call.get("id")) or held["id"]
        held["name"] += name
        held["arguments"] += arguments
        return b""

    def _said(self, arguments: str) -> bytes:
        return self._writer.call_arguments(arguments) if arguments else b""

    def finish(self) -> bytes | None:
        if self.ended:
            return b""
        if self._stop is None or not self._started:
            return None
        self.ended = True
        out = self._said(NO_ARGUMENTS) if self._live_is_empty else b""
        out += self._writer.text("".join(self._late_text)) if self._late_text else b""
        for _, held in sorted(self._held.items()):
            out += self._writer.call_start(held["id"], held["name"]) + self._said(held["arguments"] or NO_ARGUMENTS)
        stop = stop_of(self._stop, refused=self._refused, has_calls=self._live is not None)
        return out + self._writer.finish(stop, self._usage)


class MessagesSource:
    """A stream of Messages events; thinking is not passed on."""

    def __init__(self, writer: ReplyWriter) -> None:
        self._writer = writer
        self.ended = False
        self._stop: Stop | None = None
        self._stop_sequence: str | None = None
        self._usage: dict[str, Any] = {}
        self._input: dict[str, Any] | None = None
        """input of the open tool call, as told at its start: said where no delta follows"""

    def take(self, event: SseEvent, data: dict[str, Any] | None) -> bytes:
        if data is None or self.ended:
            return b""
        kind = data.get("type")
        if kind == "message_start":
            self._usage = as_dict(as_dict(data.get("message")).get("usage"))
            return self._writer.start(self._read_usage())
        if kind == "content_block_start":
            return self._begin(as_dict(data.get("content_block")))
        if kind == "content_block_delta":
            return self._delta(as_dict(data.get("delta")))
        if kind == "content_block_stop":
            return self._close_call()
        if kind == "message_delta":
            self._note_end(data)
        elif kind == "message_stop":
            return self.finish() or b""
        elif kind == "error":
            self.ended = True
            error = as_dict(data.get("error"))
            return self._writer.error(
                as_text(error.get("type")) or "api_error", as_text(error.get("message")) or "error"
            )
        return b""

    def _begin(self, block: dict[str, Any]) -> bytes:
        if block.get("type") == "tool_use":
            self._input = as_dict(block.get("input"))
            return self._writer.call_start(as_text(block.get("id")) or "call", as_text(block.get("name")) or "")
        text = as_text(block.get("text")) if block.get("type") == "text" else None
        return self._writer.text(text) if text else b""

    def _delta(self, delta: dict[str, Any]) -> bytes:
        if delta.get("type") == "text_delta":
            text = as_text(delta.get("text"))
            return self._writer.text(text) if text else b""
        if delta.get("type") == "input_json_delta" and as_text(delta.get("partial_json")):
            self._input = None
            return self._writer.call_arguments(delta["partial_json"])
        return b""

    def _close_call(self) -> bytes:
        given, self._input = self._input, None
        return b"" if given is None else self._writer.call_arguments(dump(given))

    def _note_end(self, data: dict[str, Any]) -> None:
        delta = as_dict(data.get("delta"))
        if delta.get("stop_reason") is not None:
            self._stop = STOPS.get(as_text(delta["stop_reason"]), "end")
            self._stop_sequence = as_text(delta.get("stop_sequence"))
        told = {key: value for key, value in as_dict(data.get("usage")).items() if value is not None}
        self._usage = {**self._usage, **told}

    def _read_usage(self) -> Usage:
        return read_messages_usage(self._usage)

    def finish(self) -> bytes | None:
        if self.ended:
            return b""
        if self._stop is None:
            return None
        self.ended = True
        return self._writer.finish(self._stop, self._read_usage(), self._stop_sequence)
