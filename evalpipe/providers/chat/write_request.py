"""Conversation → OpenAI chat completions request."""

from __future__ import annotations

import re
from typing import Any

from evalpipe.providers.base import NotShadowableError
from evalpipe.providers.conversation import (
    Conversation,
    Document,
    Image,
    Part,
    Text,
    ToolCall,
    ToolResult,
    Turn,
    image_url,
)
from evalpipe.providers.jsontext import dump
from evalpipe.providers.models import family, takes_max_completion_tokens, takes_sampling
from evalpipe.providers.schema import is_strict

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
MAX_STOP_SEQUENCES = 4
"""As many as chat completions takes (API reference, `stop`)."""


def render_chat(conversation: Conversation, model: str) -> dict[str, Any]:
    """The request body for `model`. Raises NotShadowableError where chat completions cannot say it."""
    if not conversation.turns:
        raise NotShadowableError("no_messages")
    if conversation.turns[-1].role == "assistant":
        raise NotShadowableError("assistant_prefill")
    messages: list[dict[str, Any]] = []
    if conversation.system.strip():
        messages.append({"role": "system", "content": conversation.system})
    for turn in conversation.turns:
        messages.extend(_render_assistant(turn) if turn.role == "assistant" else _render_user(turn))
    body: dict[str, Any] = {"model": model, "messages": messages}
    if conversation.max_tokens is not None:
        # Elsewhere than at OpenAI the older name is the one every server knows.
        body["max_completion_tokens" if family(model) == "gpt" else "max_tokens"] = conversation.max_tokens
    _render_tools(body, conversation)
    if len(conversation.stop) > MAX_STOP_SEQUENCES:
        raise NotShadowableError("too_many_stop_sequences")
    if conversation.stop:
        if takes_max_completion_tokens(model):  # OpenAI's reasoning models answer 400 to it
            raise NotShadowableError("stop_sequences_not_taken")
        body["stop"] = conversation.stop
    if conversation.output_schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {
                "name": conversation.output_schema_name or "answer",
                "schema": conversation.output_schema,
                "strict": is_strict(conversation.output_schema),
            },
        }
    if takes_sampling(model):
        for key in ("temperature", "top_p"):
            value = getattr(conversation, key)
            if value is not None:
                body[key] = value
    if conversation.streamed:
        body["stream"] = True
    return body


def _render_user(turn: Turn) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for part in turn.parts:
        if isinstance(part, ToolResult):
            if part.images:
                raise NotShadowableError("image_in_tool_result")
            messages.append({"role": "tool", "tool_call_id": part.id, "content": _result_text(part)})
    rest = [part for part in turn.parts if not isinstance(part, ToolResult)]
    if len(rest) == 1 and isinstance(rest[0], Text):
        messages.append({"role": "user", "content": rest[0].text})
    elif rest:
        messages.append({"role": "user", "content": [_render_part(part) for part in rest]})
    elif not messages:
        messages.append({"role": "user", "content": ""})
    return messages


def _result_text(result: ToolResult) -> str:
    """Chat completions has no mark for a tool that failed: the text itself says so."""
    if not result.is_error or result.text.lstrip().lower().startswith(("error", "<error", '{"error"')):
        return result.text
    return f"Error: {result.text}" if result.text else "Error"


def _render_part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Image):
        return {"type": "image_url", "image_url": {"url": image_url(part)}}
    if isinstance(part, Document):
        name = part.name or "document.pdf"
        return {"type": "file", "file": {"filename": name, "file_data": f"data:application/pdf;base64,{part.data}"}}
    raise NotShadowableError("unknown_content", "in a user turn")


def _render_assistant(turn: Turn) -> list[dict[str, Any]]:
    text = "".join(part.text for part in turn.parts if isinstance(part, Text))
    calls = [part for part in turn.parts if isinstance(part, ToolCall)]
    if any(not isinstance(part, Text | ToolCall) for part in turn.parts):
        raise NotShadowableError("unknown_content", "in an assistant turn")
    message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else "")}
    if calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": _name(call.name), "arguments": dump(call.arguments)},
            }
            for call in calls
        ]
    return [message]


def _render_tools(body: dict[str, Any], conversation: Conversation) -> None:
    if not conversation.tools:
        return
    body["tools"] = [
        {
            "type": "function",
            "function": {
                "name": _name(tool.name),
                **({"description": tool.description} if tool.description else {}),
                "parameters": tool.schema,
                **({"strict": True} if tool.strict and is_strict(tool.schema) else {}),
            },
        }
        for tool in conversation.tools
    ]
    choice = conversation.tool_choice
    if choice is not None:
        body["tool_choice"] = (
            {"type": "function", "function": {"name": choice.name}} if choice.kind == "named" else choice.kind
        )
    if conversation.parallel is False:
        body["parallel_tool_calls"] = False


def _name(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise NotShadowableError("tool_name", name[:60])
    return name
