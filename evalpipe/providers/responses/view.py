"""Requests to Responses."""

from __future__ import annotations

from typing import Any

from evalpipe.providers.base import RequestView
from evalpipe.providers.jsontext import as_dict, as_list, as_text
from evalpipe.providers.plain_text import content_text, make_view, opening_of
from evalpipe.providers.turns import position_of


def read_request(body: dict[str, Any]) -> RequestView:
    """What evalpipe needs to know of a request."""
    messages: list[dict[str, str]] = []
    instructions = as_text(body.get("instructions"))
    if instructions:
        messages.append({"role": "system", "content": instructions})
    given = body.get("input")
    items = [{"role": "user", "content": given}] if isinstance(given, str) else as_list(given)
    for item in map(as_dict, items):
        role = as_text(item.get("role"))
        message = _item_message(item, role)
        if message is not None:
            messages.append(message)
    return make_view(
        model=as_text(body.get("model")),
        streamed=body.get("stream") is True,
        messages=messages,
        first_user=opening_of(map(as_dict, items)),
        has_tools=bool(body.get("tools")),
        usage_requested=True,
        position=position_of(
            items,
            continues=bool(body.get("previous_response_id")),
            is_stored=bool(body.get("conversation")),
        ),
    )


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
