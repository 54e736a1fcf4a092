"""Requests to Messages."""

from __future__ import annotations

from typing import Any

from evalpipe.providers.base import RequestView
from evalpipe.providers.jsontext import as_dict, as_list, as_text
from evalpipe.providers.plain_text import content_text, make_view, opening_of
from evalpipe.providers.turns import position_of, role_of


def read_request(body: dict[str, Any]) -> RequestView:
    """What evalpipe needs to know of a request."""
    messages = []
    system = content_text(body.get("system"))
    if system:
        messages.append({"role": "system", "content": system})
    for message in map(as_dict, as_list(body.get("messages"))):
        role = as_text(message.get("role")) or "user"
        content = message.get("content")
        shown_role = "tool" if role_of(message) == "tool" else role
        messages.append({"role": shown_role, "content": content_text(content)})
    thread = body.get("thread")  # kept by the provider: a request that continues it holds its newest messages only
    return make_view(
        model=as_text(body.get("model")),
        streamed=body.get("stream") is True,
        messages=messages,
        first_user=opening_of(map(as_dict, as_list(body.get("messages")))),
        has_tools=bool(body.get("tools")),
        usage_requested=True,
        position=position_of(
            as_list(body.get("messages")),
            continues=bool(as_dict(thread).get("previous_message_id")),
            is_stored=bool(thread),
        ),
    )
