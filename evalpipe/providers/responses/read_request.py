"""OpenAI Responses requests → Conversation."""

from __future__ import annotations

from typing import Any

from evalpipe.providers.base import NotShadowableError
from evalpipe.providers.chat.read_request import make_call, read_format, read_parts, read_tool, read_tool_choice
from evalpipe.providers.conversation import Conversation, Part, Text, ToolResult, known_keys
from evalpipe.providers.jsontext import as_dict, as_list, as_text

_CARRIED = frozenset(
    {
        "input",
        "instructions",
        "model",
        "tools",
        "tool_choice",
        "parallel_tool_calls",
        "max_output_tokens",
        "temperature",
    }
    | {"top_p", "text", "stream"}
)
_DROPPED = frozenset(
    {"store", "include", "metadata", "user", "safety_identifier", "service_tier", "prompt_cache_key", "reasoning"}
    | {
        "prompt_cache_retention",
        "prompt_cache_options",
        "truncation",
        "stream_options",
        "top_logprobs",
        "max_tool_calls",
    }
    | {"moderation"}
)


def check_state(body: dict[str, Any]) -> None:
    """Raise NotShadowableError for a request that only its own provider's state can answer."""
    for key in ("previous_response_id", "conversation"):
        if body.get(key):
            raise NotShadowableError("needs_server_state", key)
    if body.get("prompt"):
        raise NotShadowableError("stored_prompt")
    if body.get("background"):
        raise NotShadowableError("background")
    for item in map(as_dict, as_list(body.get("input"))):
        if item.get("type") == "item_reference":
            raise NotShadowableError("needs_server_state", "item_reference")


def read_responses(body: dict[str, Any]) -> Conversation:
    """The conversation of a Responses request. Raises NotShadowableError with the first reason against it."""
    check_state(body)
    known_keys(body, _CARRIED, _DROPPED | {"background", "previous_response_id", "conversation", "prompt"})
    conversation = Conversation(
        tools=[read_tool(as_dict(tool)) for tool in as_list(body.get("tools"))],
        tool_choice=read_tool_choice(body.get("tool_choice")),
        parallel=body.get("parallel_tool_calls"),
        max_tokens=body.get("max_output_tokens"),
        temperature=body.get("temperature"),
        top_p=body.get("top_p"),
        streamed=body.get("stream") is True,
    )
    read_format(conversation, as_dict(body.get("text")).get("format"))
    system = [body["instructions"]] if as_text(body.get("instructions")) else []
    given = body.get("input")
    if isinstance(given, str):
        conversation.add("user", [Text(given)] if given else [])
    for item in map(as_dict, as_list(given)):
        _read_item(conversation, system, item)
    conversation.system = "\n\n".join(system)
    return conversation


def _read_item(conversation: Conversation, system: list[str], item: dict[str, Any]) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        role = item.get("role")
        parts = read_parts(item.get("content"))
        if role in {"system", "developer"}:
            if conversation.turns:
                raise NotShadowableError("system_message_mid_conversation")
            system.append("\n".join(part.text for part in parts if isinstance(part, Text)))
        elif role == "user" or role == "assistant":
            conversation.add(role, parts)
        else:
            raise NotShadowableError("unknown_role", str(role)[:60])
    elif kind == "function_call":
        conversation.add("assistant", [make_call(item.get("call_id"), item.get("name"), item.get("arguments"))])
    elif kind == "function_call_output":
        conversation.add("user", [_read_output(item)])
    elif kind != "reasoning":  # reasoning of earlier turns belongs to one vendor
        raise NotShadowableError("server_tools" if str(kind).endswith("_call") else "unknown_content", str(kind)[:60])


def _read_output(item: dict[str, Any]) -> Part:
    call_id = as_text(item.get("call_id"))
    if call_id is None:
        raise NotShadowableError("tool_result_without_call")
    parts = read_parts(item.get("output"))
    if not all(isinstance(part, Text) for part in parts):
        raise NotShadowableError("unknown_content", "in a tool result")
    return ToolResult(id=call_id, text="\n".join(part.text for part in parts if isinstance(part, Text)))
