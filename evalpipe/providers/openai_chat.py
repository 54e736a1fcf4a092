"""OpenAI chat completions (`POST /v1/chat/completions`): requests and answers, plain and streamed."""

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
from evalpipe.providers.turns import position_of
from evalpipe.providers.usage import chat_usage, counts_something, usage_in

_OUTCOMES = {"length": Outcome.TRUNCATED, "content_filter": Outcome.REFUSED}


class OpenAIChat:
    """The dialect of chat completions."""

    def read_request(self, body: dict[str, Any]) -> RequestView:
        messages = []
        for message in map(as_dict, as_list(body.get("messages"))):
            role = as_text(message.get("role")) or "user"
            role = {"developer": "system", "function": "tool"}.get(role, role)
            text = content_text(message.get("content"))
            calls = [_request_call(as_dict(call)) for call in as_list(message.get("tool_calls"))]
            messages.append({"role": role, "content": "\n".join(part for part in [text, *calls] if part)})
        streamed = body.get("stream") is True
        options = as_dict(body.get("stream_options"))
        return make_view(
            model=as_text(body.get("model")),
            streamed=streamed,
            messages=messages,
            first_user=next(
                (m.get("content") for m in map(as_dict, as_list(body.get("messages"))) if m.get("role") == "user"), None
            ),
            has_tools=bool(body.get("tools") or body.get("functions")),
            usage_requested=not streamed or options.get("include_usage") is True,
            usage_left_open=streamed and "stream_options" not in body,
            position=position_of(as_list(body.get("messages"))),
        )

    def read_message(self, message: dict[str, Any]) -> Answer:
        choices = [as_dict(choice) for choice in as_list(message.get("choices"))]
        if not choices:
            return Answer(outcome=Outcome.UNREADABLE, error_type="malformed", error_message="no choices in the answer")
        first = min(choices, key=lambda choice: as_count(choice.get("index")) or 0)
        said = as_dict(first.get("message"))
        refusal = as_text(said.get("refusal"))
        tool_calls = [_answer_call(as_dict(call)) for call in as_list(said.get("tool_calls"))]
        if isinstance(said.get("function_call"), dict):
            tool_calls.append(_answer_call({"function": said["function_call"]}))
        text = content_text(said["content"]) if said.get("content") is not None else None
        if not text and refusal is not None:
            text = refusal
        if text is None and not tool_calls:
            text = ""
        finish = as_text(first.get("finish_reason"))
        outcome = Outcome.REFUSED if refusal else _OUTCOMES.get(finish or "", Outcome.OK)
        return Answer(
            outcome=outcome,
            text=text,
            tool_calls=tool_calls,
            finish_reason=finish,
            model=as_text(message.get("model")),
            usage=chat_usage(message, has_content=bool(text or tool_calls)),
        )

    def assemble(self, events: list[SseEvent]) -> Assembled:
        result = Assembled()
        head: dict[str, Any] = {}
        choices: dict[int, _Choice] = {}
        for event in events:
            if event.data.strip() == "[DONE]":
                result.finished = bool(choices)
                continue
            try:
                chunk = as_dict(parse(event.data))
            except MalformedJSONError:
                result.malformed = True
                continue
            if chunk.get("error"):
                error = chunk["error"]
                result.error = error if isinstance(error, dict) else {"message": as_text(error)}
                continue
            for key in ("id", "created", "model", "system_fingerprint", "service_tier"):
                if chunk.get(key) is not None:
                    head[key] = chunk[key]
            usage = usage_in(chunk)
            if usage is not None and ("usage" not in head or counts_something(usage)):
                head["usage"] = usage
            for part in map(as_dict, as_list(chunk.get("choices"))):
                choice = choices.setdefault(as_count(part.get("index")) or 0, _Choice())
                if choice.add(part) and result.content_offset is None:
                    result.content_offset = event.end_offset
        if choices:
            result.finish_seen = all(choice.finish_reason is not None for choice in choices.values())
            result.message = {
                **{key: value for key, value in head.items() if key != "usage"},
                "object": "chat.completion",
                "choices": [choice.assembled(index) for index, choice in sorted(choices.items())],
                **({"usage": head["usage"]} if "usage" in head else {}),
            }
        return result


class _Choice:
    """One choice of a stream, growing."""

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self._texts: dict[str, list[str]] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._function: dict[str, list[str]] = {}

    def add(self, part: dict[str, Any]) -> bool:
        """Take one chunk's part of the choice; whether it carried content."""
        delta = as_dict(part.get("delta"))
        finish = as_text(part.get("finish_reason"))
        if finish is not None:
            self.finish_reason = finish
        content = False
        for key in ("content", "refusal", "reasoning_content", "reasoning"):
            text = as_text(delta.get(key))
            if text is not None:
                self._texts.setdefault(key, []).append(text)
                content = content or bool(text)
        for position, call in enumerate(map(as_dict, as_list(delta.get("tool_calls")))):
            index = as_count(call.get("index"))
            self._add_call(position if index is None else index, call)
            content = True
        if isinstance(delta.get("function_call"), dict):
            for key in ("name", "arguments"):
                self._function.setdefault(key, []).append(as_text(delta["function_call"].get(key)) or "")
            content = True
        return content

    def _add_call(self, index: int, call: dict[str, Any]) -> None:
        known = self._calls.setdefault(index, {"id": None, "type": "function", "name": [], "arguments": []})
        known["id"] = as_text(call.get("id")) or known["id"]
        known["type"] = as_text(call.get("type")) or known["type"]
        function = as_dict(call.get("function") or call.get("custom"))
        known["name"].append(as_text(function.get("name")) or "")
        known["arguments"].append(as_text(function.get("arguments")) or as_text(function.get("input")) or "")

    def assembled(self, index: int) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": None}
        message.update({key: "".join(parts) for key, parts in self._texts.items()})
        if self._calls:
            message["tool_calls"] = [_assembled_call(call) for _, call in sorted(self._calls.items())]
        if self._function:
            message["function_call"] = {key: "".join(parts) for key, parts in self._function.items()}
        return {"index": index, "message": message, "finish_reason": self.finish_reason}


def _assembled_call(call: dict[str, Any]) -> dict[str, Any]:
    name, arguments = "".join(call["name"]), "".join(call["arguments"])
    if call["type"] == "custom":
        return {"id": call["id"], "type": "custom", "custom": {"name": name, "input": arguments}}
    return {"id": call["id"], "type": call["type"], "function": {"name": name, "arguments": arguments}}


def _answer_call(call: dict[str, Any]) -> dict[str, Any]:
    custom = as_dict(call.get("custom"))
    if custom:
        return {"id": as_text(call.get("id")), "name": as_text(custom.get("name")), "arguments": custom.get("input")}
    function = as_dict(call.get("function"))
    return {
        "id": as_text(call.get("id")),
        "name": as_text(function.get("name")),
        "arguments": parsed_or_raw(as_text(function.get("arguments")) or ""),
    }


def _request_call(call: dict[str, Any]) -> str:
    function = as_dict(call.get("function") or call.get("custom"))
    return f"[tool call {function.get('name')}: {function.get('arguments') or function.get('input') or ''}]"
