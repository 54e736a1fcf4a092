"""Answers of Messages, plain or event by event."""

from __future__ import annotations

from typing import Any

from evalpipe.core.text import joined
from evalpipe.providers.building import AnswerBuilder, Call, StreamState
from evalpipe.providers.failures import Failure, failure_in
from evalpipe.providers.jsontext import as_count, as_dict, as_list, as_text, dump, parsed_or_raw
from evalpipe.providers.usage import messages_usage

_DELTA_TEXT = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}
_INPUT_COUNTS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")


class MessagesReader(StreamState):
    """Reads one answer: `take_message` for a plain one, else `take_event` for each event; then `close`."""

    def __init__(self) -> None:
        super().__init__()
        self.builder = AnswerBuilder()
        self.failure: Failure | None = None
        self._message: dict[str, Any] | None = None
        self._blocks: dict[int, _Block] = {}
        self._is_closed = False

    def take_message(self, message: dict[str, Any]) -> bool:
        """A plain answer; False where it is none."""
        content = message.get("content")
        if not isinstance(content, list):
            return False
        self._message = message
        for number, block in enumerate(content):
            self._blocks[number] = _Block(as_dict(block), self.builder)
            self._blocks[number].close()
        return True

    def take_event(self, name: str, data: str, value: Any) -> bool:
        """One event: its name, its data and the JSON in it (None where it holds none); whether it carried content."""
        if self.is_finished:  # clients stop reading at the last event
            return False
        kind = as_text(as_dict(value).get("type")) or name
        failure = failure_in(value, failed="error" in {kind, name})
        if failure is not None or kind == "error":
            self.failure = self.failure or failure or Failure(None, data[:2000] if value is None else None)
            return False
        if not isinstance(value, dict):
            # Relays end with chat's [DONE]; it says nothing here.
            self.is_malformed = self.is_malformed or not data.lstrip().startswith("[DONE]")
            return False
        return self._take(kind, value)

    def _take(self, kind: str, event: dict[str, Any]) -> bool:
        index = as_count(event.get("index")) or 0
        if kind == "message_start":
            self.is_begun = True
            self._message = dict(as_dict(event.get("message")))
            usage = dict(as_dict(self._message.get("usage")))
            usage.pop("output_tokens", None)  # of the first token: how many there are is told at the end
            self._message["usage"] = usage
        elif kind == "content_block_start":
            block = self._blocks[index] = _Block(dict(as_dict(event.get("content_block"))), self.builder)
            return block.has_content
        elif kind == "content_block_delta":
            return self._delta(index, as_dict(event.get("delta")))
        elif kind == "content_block_stop":
            if index in self._blocks:
                self._blocks[index].close()
        elif kind == "message_delta" and self._message is not None:
            self._note_end(self._message, event)
        elif kind == "message_stop":
            self.is_finished = self._message is not None
        return False

    def _delta(self, index: int, delta: dict[str, Any]) -> bool:
        kind = as_text(delta.get("type")) or ""
        block = self._blocks.get(index)
        if block is None:  # its start was not seen
            if kind not in {*_DELTA_TEXT, "input_json_delta", "citations_delta"}:
                return False
            made = {"input_json_delta": "tool_use", "thinking_delta": "thinking", "signature_delta": "thinking"}
            block = self._blocks[index] = _Block({"type": made.get(kind, "text")}, self.builder)
        return block.grow(kind, delta)

    def _note_end(self, message: dict[str, Any], event: dict[str, Any]) -> None:
        message.update({key: value for key, value in as_dict(event.get("delta")).items() if value is not None})
        # Cumulative: what is told overwrites, what is not told stays (the cache-write split is only in the start). Counts of
        # the input never fall: some servers write 0 where they have told it at the start.
        usage = as_dict(message.get("usage"))
        told = {key: value for key, value in as_dict(event.get("usage")).items() if value is not None}
        for key in _INPUT_COUNTS:
            if told.get(key) == 0 and as_count(usage.get(key)):
                del told[key]
        message["usage"] = {**usage, **told}
        self.has_reason = bool(as_text(message.get("stop_reason")))

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        for _, block in sorted(self._blocks.items()):
            block.close()
        if self._message is not None and as_text(self._message.get("stop_reason")) == "refusal":
            explanation = as_text(as_dict(self._message.get("stop_details")).get("explanation"))
            if explanation and not any(piece.kind == "text" for piece in self.builder.pieces):
                self.builder.add_refusal(explanation)
        self.builder.close()

    def finish(self) -> AnswerBuilder:
        """The answer, when all of it is in."""
        self.close()
        builder, message = self.builder, self._message or {}
        builder.model = as_text(message.get("model"))
        builder.finish_reason = joined(as_text(message.get("stop_reason")) or "") or None
        builder.usage = messages_usage(self.message() or {}, has_content=builder.has_content)
        builder.failure = self.failure
        return builder

    def message(self) -> dict[str, Any] | None:
        """The answer as it would have come unstreamed; None where it never began."""
        if self._message is None:
            return None
        return {**self._message, "content": [block.assembled() for _, block in sorted(self._blocks.items())]}


class _Block:
    """One content block, growing. Only `text` and `tool_use` are said to the client; the rest is kept in the record."""

    def __init__(self, block: dict[str, Any], builder: AnswerBuilder) -> None:
        self._block = block
        self._builder = builder
        self._parts: dict[str, list[str]] = {}
        self._call: Call | None = None
        self._is_closed = False
        kind = block.get("type")
        if kind == "tool_use":
            self._call = builder.new_call()
            builder.name_call(self._call, call_id=as_text(block.get("id")), name=as_text(block.get("name")))
        elif kind == "text":
            builder.add_text(as_text(block.get("text")) or "")
        elif kind == "image":
            builder.mark("image")
        self.has_content = kind in {"tool_use", "redacted_thinking", "image"} or bool(block.get("text"))

    def grow(self, kind: str, delta: dict[str, Any]) -> bool:
        """Take a delta; whether it carried content."""
        if self._is_closed:
            return False
        if kind == "citations_delta":
            self._block["citations"] = [*as_list(self._block.get("citations")), delta.get("citation")]
            return False
        if kind == "input_json_delta":
            text = as_text(delta.get("partial_json")) or ""
            self._parts.setdefault("partial_json", []).append(text)
            if self._call is not None:
                self._builder.add_arguments(self._call, text)
            return bool(text)
        key = _DELTA_TEXT.get(kind)
        if key is None:
            return False
        text = as_text(delta.get(key)) or ""
        self._parts.setdefault(key, []).append(text)
        if key == "text":
            self._builder.add_text(text)
        return bool(text) and key != "signature"

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._call is not None:
            given = self._block.get("input")
            if not "".join(self._parts.get("partial_json", [])) and given not in (None, "", {}):
                self._builder.add_arguments(self._call, dump(given))
            self._builder.end_call(self._call)

    def assembled(self) -> dict[str, Any]:
        block = dict(self._block)
        for key, parts in self._parts.items():
            text = joined("".join(parts))
            if key == "partial_json":
                if text:
                    block["input"] = parsed_or_raw(text)
            elif key == "signature":
                block[key] = text
            else:
                block[key] = joined((as_text(block.get(key)) or "") + text)
        return block
