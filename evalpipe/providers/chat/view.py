"""Requests to chat completions."""

from __future__ import annotations

from typing import Any

from evalpipe.providers.base import RequestView
from evalpipe.providers.jsontext import as_dict, as_list, as_text
from evalpipe.providers.plain_text import content_text, make_view, opening_of
from evalpipe.providers.turns import position_of


def read_request(body: dict[str, Any]) -> RequestView:
    """What evalpipe needs to know of a request."""
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
        first_user=opening_of(map(as_dict, as_list(body.get("messages")))),
        has_tools=bool(body.get("tools") or body.get("functions")),
        usage_requested=not streamed or options.get("include_usage") is True,
        usage_left_open=streamed and "stream_options" not in body,
        position=position_of(as_list(body.get("messages"))),
    )


def _request_call(call: dict[str, Any]) -> str:
    function = as_dict(call.get("function") or call.get("custom"))
    return f"[tool call {function.get('name')}: {function.get('arguments') or function.get('input') or ''}]"
