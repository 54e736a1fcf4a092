"""Answers of Responses, plain or event by event. The last event repeats the whole answer."""

from __future__ import annotations

from typing import Any

from evalpipe.core.text import joined
from evalpipe.providers.building import AnswerBuilder, StreamState
from evalpipe.providers.failures import Failure, failure_in, of_error
from evalpipe.providers.jsontext import as_count, as_dict, as_list, as_text, dump
from evalpipe.providers.usage import responses_usage

_Parts = dict[tuple[int, str], list[str]]
"""(content index, key) → pieces"""

_DELTAS = {
    "response.output_text.delta": ("text", "message"),
    "response.refusal.delta": ("refusal", "message"),
    "response.function_call_arguments.delta": ("arguments", "function_call"),
    "response.custom_tool_call_input.delta": ("input", "custom_tool_call"),
}
_TERMINAL = frozenset({"response.completed", "response.failed", "response.incomplete", "response.cancelled"})
_CLIENT_CALLS = frozenset(
    {"local_shell_call", "shell_call", "computer_call", "apply_patch_call", "mcp_approval_request"}
)
"""calls of built-in tools that the client has to run or to allow: tool calls under the tool's own name"""
_FUNCTION_CALLS = frozenset({"function_call", "custom_tool_call"})
_ACTIONS = ("action", "operation", "arguments")
_PICTURES = frozenset({"image_generation_call"})


class ResponsesReader(StreamState):
    """Reads one answer: `take_message` for a plain one, else `take_event` for each event; then `close`."""

    def __init__(self) -> None:
        super().__init__()
        self.builder = AnswerBuilder()
        self.failure: Failure | None = None
        self._message: dict[str, Any] | None = None
        self._items: dict[int, dict[str, Any]] = {}
        self._parts: dict[int, _Parts] = {}
        self._others: list[str] = []
        """types of items that are neither said nor asked of the client: runs of a server's own tools"""
        self._is_closed = False

    def take_message(self, message: dict[str, Any]) -> bool:
        """A plain answer; False where it is none."""
        self._message = message
        return isinstance(message.get("output"), list)

    def take_event(self, name: str, data: str, value: Any) -> bool:
        """One event: its name, its data and the JSON in it (None where it holds none); whether it carried content."""
        if self.is_finished:  # clients stop reading at the last event
            return False
        kind = as_text(as_dict(value).get("type")) or name
        failure = failure_in(value, failed="error" in {kind, name}) if kind not in _TERMINAL else None
        if failure is not None or kind == "error":
            self.failure = self.failure or failure or Failure(None, data[:2000] if value is None else None)
            return False
        if not isinstance(value, dict):
            # Compatible servers end with chat's [DONE]; it says nothing here.
            self.is_malformed = self.is_malformed or not data.lstrip().startswith("[DONE]")
            return False
        return self._take(kind, value)

    def _take(self, kind: str, event: dict[str, Any]) -> bool:
        self.is_begun = True
        if kind in {"response.created", "response.in_progress", "response.queued"} or kind in _TERMINAL:
            self._message = dict(as_dict(event.get("response")))
            self.is_finished = kind in _TERMINAL
            return False
        index = as_count(event.get("output_index")) or 0
        if kind in {"response.output_item.added", "response.output_item.done"}:
            self._items[index] = dict(as_dict(event.get("item")))
            self._parts.pop(index, None)
            return kind.endswith("added") and self._items[index].get("type") in _CLIENT_CALLS | _FUNCTION_CALLS
        if not kind.endswith(".delta"):
            return False
        known = _DELTAS.get(kind)
        delta = as_text(event.get("delta")) or ""
        if known is not None:
            key, item_type = known
            self._items.setdefault(index, {"type": item_type})
            position = as_count(event.get("content_index")) or 0
            self._parts.setdefault(index, {}).setdefault((position, key), []).append(delta)
        return bool(delta)

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        if self._message is not None and not as_list(self._message.get("output")) and self._items:
            # A cut stream has no whole response: what the deltas brought is kept.
            self._message["output"] = [
                _closed(item, self._parts.get(index, {})) for index, item in sorted(self._items.items())
            ]
        for item in map(as_dict, as_list((self._message or {}).get("output"))):
            self._add_item(item)
        self.builder.close()

    def _add_item(self, item: dict[str, Any]) -> None:
        kind = as_text(item.get("type")) or ""
        builder = self.builder
        if kind == "message":
            for part in map(as_dict, as_list(item.get("content"))):
                builder.add_text(as_text(part.get("text")) or "" if part.get("type") == "output_text" else "")
                builder.add_refusal(as_text(part.get("refusal")) or "" if part.get("type") == "refusal" else "")
        elif kind in _FUNCTION_CALLS:
            call = builder.new_call()
            call.is_custom = kind == "custom_tool_call"
            builder.name_call(call, call_id=as_text(item.get("call_id")), name=as_text(item.get("name")))
            given = item.get("input") if call.is_custom else item.get("arguments")
            if given is not None:
                builder.add_arguments(call, given if isinstance(given, str) else dump(given))
        elif kind in _CLIENT_CALLS:
            call = builder.new_call()
            call_id = as_text(item.get("call_id")) or as_text(item.get("id"))
            builder.name_call(call, call_id=call_id, name=as_text(item.get("name")) or kind.removesuffix("_call"))
            action: Any = next((item[key] for key in _ACTIONS if item.get(key) is not None), {})
            builder.add_arguments(call, action if isinstance(action, str) else dump(action))
        elif kind in _PICTURES:
            builder.mark("image")
        elif kind != "reasoning":
            self._others.append(kind[:60])

    def finish(self) -> AnswerBuilder:
        """The answer, when all of it is in."""
        self.close()
        builder, message = self.builder, self._message or {}
        status = as_text(message.get("status"))
        reason = as_text(as_dict(message.get("incomplete_details")).get("reason"))
        error = as_dict(message.get("error"))
        builder.model = as_text(message.get("model"))
        builder.finish_reason = joined(reason or status or "") or None
        builder.usage = responses_usage(message, has_content=builder.has_content)
        builder.failure = self.failure
        builder.is_incomplete = status == "incomplete"
        if self._others and not builder.pieces:
            builder.other_content = ", ".join(self._others)
        if builder.failure is None and error:
            builder.failure = of_error(error)
        return builder

    def message(self) -> dict[str, Any] | None:
        """The answer as it would have come unstreamed; None where it never began."""
        return self._message


def _closed(item: dict[str, Any], parts: _Parts) -> dict[str, Any]:
    closed = dict(item)
    for (_, key), pieces in sorted(parts.items()):
        whole = joined("".join(pieces))
        if key in {"arguments", "input"}:
            closed[key] = whole
        else:
            kind = "output_text" if key == "text" else "refusal"
            closed["content"] = [*as_list(closed.get("content")), {"type": kind, key: whole}]
    return closed
