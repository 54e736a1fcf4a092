"""Conversation → Anthropic Messages request."""

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
    ToolChoice,
    ToolResult,
    Turn,
)
from evalpipe.providers.models import is_newer_claude, takes_sampling
from evalpipe.providers.schema import for_anthropic, is_strict_for_anthropic

DEFAULT_MAX_TOKENS = 8192
"""Messages needs a limit where chat completions has none; Claude 3 models take no more than half of this."""

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,128}")
_NOT_IN_ID = re.compile(r"[^a-zA-Z0-9_-]")
_CHOICES = {"auto": "auto", "none": "none", "required": "any", "named": "tool"}


def render_messages(conversation: Conversation, model: str) -> dict[str, Any]:
    """The request body for `model`. Raises NotShadowableError where Messages cannot say it."""
    turns = conversation.turns
    if not turns or turns[0].role != "user":
        raise NotShadowableError("starts_with_assistant" if turns else "no_messages")
    if turns[-1].role == "assistant":
        raise NotShadowableError("assistant_prefill")
    if not conversation.tools and any(isinstance(p, ToolCall | ToolResult) for turn in turns for p in turn.parts):
        raise NotShadowableError("tools_missing")
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": conversation.max_tokens or _default_max_tokens(model),
        "messages": [_render_turn(turn) for turn in turns],
    }
    if conversation.system.strip():  # a blank system prompt says nothing, and Anthropic answers 400 to it
        body["system"] = conversation.system
    _render_tools(body, conversation)
    if conversation.stop:
        if not all(word.strip() for word in conversation.stop):
            raise NotShadowableError("blank_stop_sequence")
        body["stop_sequences"] = conversation.stop
    if conversation.output_schema is not None:
        body["output_config"] = {"format": {"type": "json_schema", "schema": for_anthropic(conversation.output_schema)}}
    if takes_sampling(model):
        # Chat's temperature goes to 2, and Claude takes one of the two only.
        if conversation.temperature is not None and 0 <= conversation.temperature <= 1:
            body["temperature"] = conversation.temperature
        elif conversation.top_p is not None and conversation.temperature is None:
            body["top_p"] = conversation.top_p
    if conversation.streamed:
        body["stream"] = True
    return body


def _default_max_tokens(model: str) -> int:
    return DEFAULT_MAX_TOKENS // 2 if "claude-3" in model and not is_newer_claude(model) else DEFAULT_MAX_TOKENS


def _render_turn(turn: Turn) -> dict[str, Any]:
    if not turn.parts:
        raise NotShadowableError("empty_message")
    if len(turn.parts) == 1 and isinstance(turn.parts[0], Text):
        if not turn.parts[0].text.strip():
            raise NotShadowableError("empty_message")
        return {"role": turn.role, "content": turn.parts[0].text}
    # Results answer the calls of the turn before, so they must come first.
    parts = sorted(turn.parts, key=lambda part: not isinstance(part, ToolResult))
    blocks = [_render_part(part) for part in parts if not (isinstance(part, Text) and not part.text.strip())]
    if not blocks:
        raise NotShadowableError("empty_message")
    return {"role": turn.role, "content": blocks}


def _render_part(part: Part) -> dict[str, Any]:
    if isinstance(part, Text):
        return {"type": "text", "text": part.text}
    if isinstance(part, Image):
        return _render_image(part)
    if isinstance(part, Document):
        source = {"type": "base64", "media_type": "application/pdf", "data": part.data}
        return {"type": "document", "source": source, **({"title": part.name} if part.name else {})}
    if isinstance(part, ToolCall):
        return {"type": "tool_use", "id": _safe_id(part.id), "name": _name(part.name), "input": part.arguments}
    content: Any = part.text
    if part.images:
        texts = [{"type": "text", "text": part.text}] if part.text else []
        content = [*texts, *map(_render_image, part.images)]
    result = {"type": "tool_result", "tool_use_id": _safe_id(part.id), "content": content}
    return {**result, "is_error": True} if part.is_error else result


def _render_image(image: Image) -> dict[str, Any]:
    if image.detail == "low":  # 85 tokens at OpenAI: sent whole, the image would cost many times as much
        raise NotShadowableError("image_detail", image.detail)
    if image.url is not None:
        return {"type": "image", "source": {"type": "url", "url": image.url}}
    return {"type": "image", "source": {"type": "base64", "media_type": image.media_type, "data": image.data}}


def _render_tools(body: dict[str, Any], conversation: Conversation) -> None:
    if not conversation.tools:
        return
    body["tools"] = [
        {
            "name": _name(tool.name),
            **({"description": tool.description} if tool.description else {}),
            "input_schema": {"type": "object", **tool.schema} if tool.schema else {"type": "object", "properties": {}},
            **({"strict": True} if tool.strict and is_strict_for_anthropic(tool.schema) else {}),
        }
        for tool in conversation.tools
    ]
    choice = conversation.tool_choice or (ToolChoice(kind="auto") if conversation.parallel is False else None)
    if choice is None:
        return
    body["tool_choice"] = {"type": _CHOICES[choice.kind], **({"name": choice.name} if choice.name else {})}
    if conversation.parallel is False and choice.kind != "none":
        body["tool_choice"]["disable_parallel_tool_use"] = True


def _name(name: str) -> str:
    if _NAME.fullmatch(name) is None:
        raise NotShadowableError("tool_name", name[:60])
    return name


def _safe_id(call_id: str) -> str:
    # The same change for a call and its result keeps them together.
    return _NOT_IN_ID.sub("_", call_id) or "_"
