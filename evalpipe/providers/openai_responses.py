"""OpenAI Responses (`POST /v1/responses`): requests and answers, plain and streamed."""

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
from evalpipe.providers.usage import responses_usage

_Parts = dict[tuple[int, str], list[str]]
"""(content index, key) → pieces"""

_DELTAS = {
    "response.output_text.delta": ("text", "message"),
    "response.refusal.delta": ("refusal", "message"),
    "response.function_call_arguments.delta": ("arguments", "function_call"),
    "response.custom_tool_call_input.delta": ("input", "custom_tool_call"),
}
_TERMINAL = frozenset({"response.completed", "response.failed", "response.incomplete"})


class OpenAIResponses:
    """The dialect of Responses."""

    def read_request(self, body: dict[str, Any]) -> RequestView:
        messages: list[dict[str, str]] = []
        instructions = as_text(body.get("instructions"))
        if instructions:
            messages.append({"role": "system", "content": instructions})
        given = body.get("input")
        items = [{"role": "user", "content": given}] if isinstance(given, str) else as_list(given)
        first_user: Any = None
        for item in map(as_dict, items):
            role = as_text(item.get("role"))
            if role == "user" and first_user is None:
                first_user = item.get("content")
            message = _item_message(item, role)
            if message is not None:
                messages.append(message)
        return make_view(
            model=as_text(body.get("model")),
            streamed=body.get("stream") is True,
            messages=messages,
            first_user=first_user,
            has_tools=bool(body.get("tools")),
            usage_requested=True,
            position=position_of(
                items,
                continues=bool(body.get("previous_response_id")),
                is_stored=bool(body.get("conversation")),
            ),
        )

    def read_message(self, message: dict[str, Any]) -> Answer:
        output = message.get("output")
        status = as_text(message.get("status"))
        error = as_dict(message.get("error"))
        if not isinstance(output, list):
            return Answer(outcome=Outcome.UNREADABLE, error_type="malformed", error_message="no output in the answer")
        items = [as_dict(item) for item in output]
        parts = [
            as_dict(part) for item in items if item.get("type") == "message" for part in as_list(item.get("content"))
        ]
        refusals = [as_text(part.get("refusal")) or "" for part in parts if part.get("type") == "refusal"]
        texts = [as_text(part.get("text")) or "" for part in parts if part.get("type") == "output_text"]
        tool_calls = [_call(item) for item in items if item.get("type") in {"function_call", "custom_tool_call"}]
        reason = as_text(as_dict(message.get("incomplete_details")).get("reason"))
        text = "".join(texts) if texts else "".join(refusals) if refusals else None if tool_calls else ""
        return Answer(
            outcome=_outcome(status, reason, refused=bool(refusals)),
            text=text,
            tool_calls=tool_calls,
            finish_reason=reason or status,
            model=as_text(message.get("model")),
            usage=responses_usage(message, has_content=bool(text or tool_calls)),
            error_type=as_text(error.get("code")) or ("failed" if status == "failed" else None),
            error_message=as_text(error.get("message")),
        )

    def assemble(self, events: list[SseEvent]) -> Assembled:
        result = Assembled()
        items: dict[int, dict[str, Any]] = {}
        parts: dict[int, _Parts] = {}
        for event in events:
            try:
                data = as_dict(parse(event.data))
            except MalformedJSONError:
                # Compatible servers end with chat's [DONE]; it says nothing here.
                result.malformed = result.malformed or event.data.strip() != "[DONE]"
                continue
            kind = as_text(data.get("type")) or event.event
            if kind in {"response.created", "response.in_progress"} or kind in _TERMINAL:
                result.message = dict(as_dict(data.get("response")))
                result.finished = kind in _TERMINAL
            elif kind == "error":
                result.error = as_dict(data.get("error")) or data
            elif kind in {"response.output_item.added", "response.output_item.done"}:
                index = as_count(data.get("output_index")) or 0
                items[index] = dict(as_dict(data.get("item")))
                parts.pop(index, None)
            if result.content_offset is None and _has_content(kind, data):
                result.content_offset = event.end_offset
            if kind.endswith(".delta"):
                _grow(items, parts, kind, data)
        if result.message is not None and not as_list(result.message.get("output")):
            # A cut stream has no whole response: what the deltas brought is kept.
            result.message["output"] = [_closed(item, parts.get(index, {})) for index, item in sorted(items.items())]
        return result


def _item_message(item: dict[str, Any], role: str | None) -> dict[str, str] | None:
    kind = as_text(item.get("type"))
    if role is not None:
        return {"role": "system" if role == "developer" else role, "content": content_text(item.get("content"))}
    if kind in {"function_call", "custom_tool_call"}:
        arguments = item.get("arguments") or item.get("input") or ""
        return {"role": "assistant", "content": f"[tool call {item.get('name')}: {arguments}]"}
    if kind in {"function_call_output", "custom_tool_call_output"}:
        return {"role": "tool", "content": content_text(item.get("output"))}
    return None


def _outcome(status: str | None, reason: str | None, *, refused: bool) -> Outcome:
    if status in {"failed", "cancelled"}:
        return Outcome.HTTP_ERROR
    if refused or reason == "content_filter":
        return Outcome.REFUSED
    if status == "incomplete":
        return Outcome.TRUNCATED
    # A background response that is only queued holds no answer yet.
    return Outcome.UNREADABLE if status in {"queued", "in_progress"} else Outcome.OK


def _has_content(kind: str, data: dict[str, Any]) -> bool:
    if kind == "response.output_item.added":
        return as_dict(data.get("item")).get("type") in {"function_call", "custom_tool_call"}
    return kind.endswith(".delta") and bool(data.get("delta"))


def _grow(items: dict[int, dict[str, Any]], parts: dict[int, _Parts], kind: str, data: dict[str, Any]) -> None:
    """Take a delta into its item's parts, making the item where its beginning was not seen."""
    delta = as_text(data.get("delta")) or ""
    index = as_count(data.get("output_index")) or 0
    known = _DELTAS.get(kind)
    if known is None:
        return
    key, item_type = known
    items.setdefault(index, {"type": item_type})
    position = as_count(data.get("content_index")) or 0
    parts.setdefault(index, {}).setdefault((position, key), []).append(delta)


def _closed(item: dict[str, Any], parts: _Parts) -> dict[str, Any]:
    closed = dict(item)
    for (_, key), pieces in sorted(parts.items()):
        joined = "".join(pieces)
        if key in {"arguments", "input"}:
            closed[key] = joined
        else:
            kind = "output_text" if key == "text" else "refusal"
            closed["content"] = [*as_list(closed.get("content")), {"type": kind, key: joined}]
    return closed


def _call(item: dict[str, Any]) -> dict[str, Any]:
    arguments: Any = as_text(item.get("input"))
    if item.get("type") == "function_call":
        arguments = parsed_or_raw(as_text(item.get("arguments")) or "")
    return {"id": as_text(item.get("call_id")), "name": as_text(item.get("name")), "arguments": arguments}
