"""Anthropic Messages (`POST /v1/messages`): requests and answers, plain and streamed."""

from __future__ import annotations

from typing import Any

from evalpipe.core.traffic import Outcome
from evalpipe.providers.base import Answer, RequestView
from evalpipe.providers.jsontext import (
    MalformedJSONError,
    as_count,
    as_dict,
    as_list,
    as_text,
    parse,
    parsed_or_raw,
)
from evalpipe.providers.plain_text import content_text, make_view
from evalpipe.providers.reading import Assembled
from evalpipe.providers.sse import SseEvent
from evalpipe.providers.turns import position_of, role_of
from evalpipe.providers.usage import messages_usage

_OUTCOMES = {
    "max_tokens": Outcome.TRUNCATED,
    "model_context_window_exceeded": Outcome.TRUNCATED,
    "refusal": Outcome.REFUSED,
}
_DELTA_TEXT = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}


class AnthropicMessages:
    """The dialect of Messages."""

    def read_request(self, body: dict[str, Any]) -> RequestView:
        messages = []
        system = content_text(body.get("system"))
        if system:
            messages.append({"role": "system", "content": system})
        first_user: Any = None
        for message in map(as_dict, as_list(body.get("messages"))):
            role = as_text(message.get("role")) or "user"
            content = message.get("content")
            if role == "user" and first_user is None:
                first_user = content
            shown_role = "tool" if role_of(message) == "tool" else role
            messages.append({"role": shown_role, "content": content_text(content)})
        thread = body.get("thread")  # kept by the provider: a request that continues it holds its newest messages only
        return make_view(
            model=as_text(body.get("model")),
            streamed=body.get("stream") is True,
            messages=messages,
            first_user=first_user,
            has_tools=bool(body.get("tools")),
            usage_requested=True,
            position=position_of(
                as_list(body.get("messages")),
                continues=bool(as_dict(thread).get("previous_message_id")),
                is_stored=bool(thread),
            ),
        )

    def read_message(self, message: dict[str, Any]) -> Answer:
        content = message.get("content")
        if not isinstance(content, list):
            return Answer(outcome=Outcome.UNREADABLE, error_type="malformed", error_message="no content in the answer")
        blocks = [as_dict(block) for block in content]
        texts = [as_text(block.get("text")) or "" for block in blocks if block.get("type") == "text"]
        tool_calls = [
            {"id": as_text(block.get("id")), "name": as_text(block.get("name")), "arguments": block.get("input")}
            for block in blocks
            if block.get("type") == "tool_use"
        ]
        stop = as_text(message.get("stop_reason"))
        text = "".join(texts) if texts or not tool_calls else None
        if not text and stop == "refusal":
            text = as_text(as_dict(message.get("stop_details")).get("explanation")) or text
        return Answer(
            outcome=_OUTCOMES.get(stop or "", Outcome.OK),
            text=text,
            tool_calls=tool_calls,
            finish_reason=stop,
            model=as_text(message.get("model")),
            usage=messages_usage(message, has_content=bool(text or tool_calls)),
        )

    def assemble(self, events: list[SseEvent]) -> Assembled:
        stream = _Stream()
        for event in events:
            try:
                data = as_dict(parse(event.data))
            except MalformedJSONError:
                stream.result.malformed = True
                continue
            stream.take(data, event.end_offset)
        return stream.finish()


class _Stream:
    """A stream of Messages events, growing into the message."""

    def __init__(self) -> None:
        self.result = Assembled()
        self._message: dict[str, Any] | None = None
        self._blocks: dict[int, dict[str, Any]] = {}
        self._parts: dict[tuple[int, str], list[str]] = {}

    def take(self, data: dict[str, Any], end_offset: int) -> None:
        kind = as_text(data.get("type"))
        index = as_count(data.get("index")) or 0
        content = False
        if kind == "message_start":
            self._message = dict(as_dict(data.get("message")))
        elif kind == "content_block_start":
            block = dict(as_dict(data.get("content_block")))
            self._blocks[index] = block
            content = block.get("type") in {"tool_use", "redacted_thinking"} or bool(block.get("text"))
        elif kind == "content_block_delta":
            content = self._delta(index, as_dict(data.get("delta")))
        elif kind == "message_delta" and self._message is not None:
            self._message.update({key: value for key, value in as_dict(data.get("delta")).items() if value is not None})
            # Cumulative: what is told overwrites, what is not told stays (the cache-write split is only in the start).
            told = {key: value for key, value in as_dict(data.get("usage")).items() if value is not None}
            self._message["usage"] = {**as_dict(self._message.get("usage")), **told}
            self.result.finish_seen = self._message.get("stop_reason") is not None
        elif kind == "message_stop":
            self.result.finished = self._message is not None
        elif kind == "error":
            self.result.error = as_dict(data.get("error")) or {"message": None}
        if content and self.result.content_offset is None:
            self.result.content_offset = end_offset

    def _delta(self, index: int, delta: dict[str, Any]) -> bool:
        kind = as_text(delta.get("type")) or ""
        if kind == "input_json_delta":
            part, key = as_text(delta.get("partial_json")) or "", "partial_json"
        elif kind in _DELTA_TEXT:
            key = _DELTA_TEXT[kind]
            part = as_text(delta.get(key)) or ""
        elif kind == "citations_delta":
            block = self._blocks.setdefault(index, {"type": "text", "text": ""})
            citations = block.get("citations")
            block["citations"] = [*as_list(citations), delta.get("citation")]
            return False
        else:
            return False
        if index not in self._blocks:
            self._blocks[index] = {"type": "tool_use" if key == "partial_json" else "text"}
        self._parts.setdefault((index, key), []).append(part)
        return bool(part) and key != "signature"

    def finish(self) -> Assembled:
        if self._message is None:
            return self.result
        for (index, key), parts in self._parts.items():
            block, joined = self._blocks[index], "".join(parts)
            if key == "partial_json":
                block["input"] = parsed_or_raw(joined)
            elif key == "signature":
                block[key] = joined
            else:
                block[key] = (as_text(block.get(key)) or "") + joined
        self._message["content"] = [block for _, block in sorted(self._blocks.items())]
        self.result.message = self._message
        return self.result
