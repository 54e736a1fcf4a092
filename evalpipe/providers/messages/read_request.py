"""Anthropic Messages requests → Conversation."""

from __future__ import annotations

from typing import Any

from evalpipe.providers.base import NotShadowableError
from evalpipe.providers.conversation import (
    IMAGE_TYPES,
    Conversation,
    Document,
    Image,
    Part,
    Text,
    Tool,
    ToolCall,
    ToolChoice,
    ToolResult,
    known_keys,
)
from evalpipe.providers.jsontext import as_dict, as_list, as_text

_CARRIED = frozenset(
    {
        "messages",
        "model",
        "system",
        "tools",
        "tool_choice",
        "max_tokens",
        "stop_sequences",
        "temperature",
        "top_p",
        "stream",
    }
    | {"output_config"}
)
_DROPPED = frozenset(
    {"top_k", "metadata", "service_tier", "inference_geo", "thinking", "cache_control", "speed", "diagnostics"}
)
_CHOICES = {"auto": "auto", "any": "required", "none": "none", "tool": "named"}


def read_messages(body: dict[str, Any]) -> Conversation:
    """The conversation of a Messages request. Raises NotShadowableError with the first reason against it."""
    if body.get("container") or body.get("mcp_servers"):
        raise NotShadowableError("server_tools", "container" if body.get("container") else "mcp_servers")
    if body.get("max_tokens") == 0:
        raise NotShadowableError("cache_prewarm")
    known_keys(body, _CARRIED, _DROPPED | {"container", "mcp_servers"})
    choice = as_dict(body.get("tool_choice"))
    conversation = Conversation(
        system=_text_only(body.get("system")),
        tools=[_read_tool(as_dict(tool)) for tool in as_list(body.get("tools"))],
        tool_choice=_read_choice(choice) if choice else None,
        parallel=False if choice.get("disable_parallel_tool_use") is True else None,
        max_tokens=body.get("max_tokens"),
        stop=[word for word in as_list(body.get("stop_sequences")) if isinstance(word, str)],
        temperature=body.get("temperature"),
        top_p=body.get("top_p"),
        streamed=body.get("stream") is True,
    )
    wanted = as_dict(as_dict(body.get("output_config")).get("format"))
    if wanted:
        conversation.output_schema = as_dict(wanted.get("schema"))
    for message in map(as_dict, as_list(body.get("messages"))):
        role = message.get("role")
        if role not in {"user", "assistant"}:
            raise NotShadowableError("unknown_role", str(role)[:60])
        conversation.add(role, _read_blocks(message.get("content")))
    return conversation


def _read_blocks(content: Any) -> list[Part]:
    if isinstance(content, str):
        return [Text(content)] if content else []
    parts: list[Part] = []
    for block in map(as_dict, as_list(content)):
        # Thinking of earlier turns is signed for one vendor, and left out of the context by it too.
        if block.get("type") not in {"thinking", "redacted_thinking"}:
            parts.append(_read_block(block))
    return [part for part in parts if not (isinstance(part, Text) and not part.text)]


def _read_block(block: dict[str, Any]) -> Part:
    kind = block.get("type")
    if kind == "text":
        return Text(as_text(block.get("text")) or "")
    if kind == "image":
        return _read_image(block)
    if kind == "document":
        return _read_document(block)
    if kind == "tool_use":
        call_id, name = as_text(block.get("id")), as_text(block.get("name"))
        if call_id is None or name is None:
            raise NotShadowableError("tool_call_unreadable")
        return ToolCall(id=call_id, name=name, arguments=as_dict(block.get("input")))
    if kind == "tool_result":
        return _read_result(block)
    if isinstance(kind, str) and (kind == "server_tool_use" or kind.endswith("_tool_result") or "mcp" in kind):
        raise NotShadowableError("server_tools", kind[:60])
    raise NotShadowableError("unknown_content", str(kind)[:60])


def _read_image(block: dict[str, Any]) -> Image:
    source = as_dict(block.get("source"))
    if source.get("type") == "url" and isinstance(source.get("url"), str):
        return Image(url=source["url"])
    if (
        source.get("type") == "base64"
        and source.get("media_type") in IMAGE_TYPES
        and isinstance(source.get("data"), str)
    ):
        return Image(media_type=source["media_type"], data=source["data"])
    raise NotShadowableError("provider_file" if source.get("type") == "file" else "image_unreadable")


def _read_document(block: dict[str, Any]) -> Document | Text:
    source = as_dict(block.get("source"))
    if as_dict(block.get("citations")).get("enabled"):
        raise NotShadowableError("citations")
    if (
        source.get("type") == "base64"
        and source.get("media_type") == "application/pdf"
        and isinstance(source.get("data"), str)
    ):
        return Document(data=source["data"], name=as_text(block.get("title")))
    if source.get("type") == "text" and isinstance(source.get("data"), str):
        return Text(source["data"])
    raise NotShadowableError("provider_file" if source.get("type") == "file" else "file_type")


def _read_result(block: dict[str, Any]) -> ToolResult:
    call_id = as_text(block.get("tool_use_id"))
    if call_id is None:
        raise NotShadowableError("tool_result_without_call")
    parts = _read_blocks(block.get("content"))
    texts = [part.text for part in parts if isinstance(part, Text)]
    images = tuple(part for part in parts if isinstance(part, Image))
    if len(texts) + len(images) != len(parts):
        raise NotShadowableError("unknown_content", "in a tool result")
    return ToolResult(id=call_id, text="\n".join(texts), images=images, is_error=block.get("is_error") is True)


def _read_tool(tool: dict[str, Any]) -> Tool:
    kind = tool.get("type")
    if kind not in {None, "custom"}:
        raise NotShadowableError("provider_tools", str(kind)[:60])
    name = as_text(tool.get("name"))
    if name is None:
        raise NotShadowableError("tool_unreadable")
    return Tool(name=name, description=as_text(tool.get("description")), schema=as_dict(tool.get("input_schema")))


def _read_choice(choice: dict[str, Any]) -> ToolChoice:
    kind: Any = _CHOICES.get(str(choice.get("type")))
    if kind is None:
        raise NotShadowableError("tool_choice", str(choice.get("type"))[:60])
    return ToolChoice(kind=kind, name=as_text(choice.get("name")) if kind == "named" else None)


def _text_only(content: Any) -> str:
    parts = _read_blocks(content)
    if not all(isinstance(part, Text) for part in parts):
        raise NotShadowableError("content_unreadable")
    return "\n\n".join(part.text for part in parts if isinstance(part, Text))
