"""Chat completions requests → Conversation."""

from __future__ import annotations

from typing import Any

from evalpipe.providers.base import NotShadowableError
from evalpipe.providers.conversation import (
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
    read_image_url,
    read_pdf,
)
from evalpipe.providers.jsontext import as_dict, as_list, as_text, parsed_or_raw

_CARRIED = frozenset(
    {"messages", "model", "tools", "tool_choice", "parallel_tool_calls", "max_tokens", "max_completion_tokens", "stop"}
    | {"temperature", "top_p", "response_format", "stream", "stream_options", "n"}
)
# Not said to the other vendor: how to sample, what to bill and to whom, what to store. None changes what was asked.
_DROPPED = frozenset(
    {
        "frequency_penalty",
        "presence_penalty",
        "seed",
        "top_k",
        "min_p",
        "repetition_penalty",
        "user",
        "metadata",
        "store",
    }
    | {"service_tier", "prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "safety_identifier"}
    | {"prediction", "reasoning_effort", "verbosity", "modalities", "logprobs", "top_logprobs", "moderation"}
)


def read_chat(body: dict[str, Any]) -> Conversation:
    """The conversation of a chat completions request. Raises NotShadowableError with the first reason against it."""
    _check(body)
    conversation = Conversation(
        tools=[read_tool(as_dict(tool)) for tool in as_list(body.get("tools"))],
        tool_choice=read_tool_choice(body.get("tool_choice")),
        parallel=body.get("parallel_tool_calls"),
        max_tokens=body.get("max_completion_tokens") or body.get("max_tokens"),
        stop=read_stop(body.get("stop")),
        temperature=body.get("temperature"),
        top_p=body.get("top_p"),
        streamed=body.get("stream") is True,
    )
    read_format(conversation, body.get("response_format"))
    system: list[str] = []
    for message in map(as_dict, as_list(body.get("messages"))):
        _read_message(conversation, system, message)
    conversation.system = "\n\n".join(system)
    return conversation


def _check(body: dict[str, Any]) -> None:
    if body.get("functions") or body.get("function_call"):
        raise NotShadowableError("legacy_functions")
    if body.get("web_search_options") is not None:
        raise NotShadowableError("server_tools", "web_search_options")
    if body.get("audio") is not None or "audio" in as_list(body.get("modalities")):
        raise NotShadowableError("audio")
    if body.get("logit_bias"):
        raise NotShadowableError("logit_bias")
    if body.get("n") not in {None, 1}:
        raise NotShadowableError("several_choices")
    known_keys(body, _CARRIED, _DROPPED | {"functions", "function_call", "audio", "logit_bias"})


def _read_message(conversation: Conversation, system: list[str], message: dict[str, Any]) -> None:
    role, content = message.get("role"), message.get("content")
    if role in {"system", "developer"}:
        if conversation.turns:
            raise NotShadowableError("system_message_mid_conversation")
        system.append(_text_only(content))
    elif role == "user":
        conversation.add("user", read_parts(content))
    elif role == "assistant":
        if message.get("function_call") or message.get("audio"):
            raise NotShadowableError("legacy_functions" if message.get("function_call") else "audio")
        parts: list[Part] = read_parts(content)
        if as_text(message.get("refusal")):
            parts.append(Text(message["refusal"]))
        parts += [_read_call(as_dict(call)) for call in as_list(message.get("tool_calls"))]
        conversation.add("assistant", parts)
    elif role == "tool":
        call_id = as_text(message.get("tool_call_id"))
        if call_id is None:
            raise NotShadowableError("tool_result_without_call")
        conversation.add("user", [ToolResult(id=call_id, text=_text_only(content))])
    else:
        raise NotShadowableError("unknown_role", str(role)[:60])


def read_parts(content: Any) -> list[Part]:
    """Parts of a message's content, chat's or Responses' (`input_text`, `input_image`, …); empty text is left out."""
    if content is None:
        return []
    if isinstance(content, str):
        return [Text(content)] if content else []
    if not isinstance(content, list):
        raise NotShadowableError("content_unreadable")
    parts = [_read_part(as_dict(part)) for part in content]
    return [part for part in parts if not (isinstance(part, Text) and not part.text)]


def _read_part(part: dict[str, Any]) -> Text | Image | Document:
    kind = part.get("type")
    if kind in {"text", "input_text", "output_text"}:
        return Text(as_text(part.get("text")) or "")
    if kind == "refusal":
        return Text(as_text(part.get("refusal")) or "")
    if kind == "image_url":
        image = as_dict(part.get("image_url"))
        return read_image_url(image.get("url"), image.get("detail"))
    if kind == "input_image":
        if part.get("file_id"):
            raise NotShadowableError("provider_file")
        return read_image_url(part.get("image_url"), part.get("detail"))
    if kind in {"file", "input_file"}:
        file = as_dict(part.get("file")) if kind == "file" else part
        return read_pdf(file.get("file_data"), file.get("filename"))
    if kind == "input_audio":
        raise NotShadowableError("audio")
    raise NotShadowableError("unknown_content", str(kind)[:60])


def _text_only(content: Any) -> str:
    parts = read_parts(content)
    if not all(isinstance(part, Text) for part in parts):
        raise NotShadowableError("content_unreadable")
    return "\n".join(part.text for part in parts if isinstance(part, Text))


def _read_call(call: dict[str, Any]) -> ToolCall:
    if call.get("type") not in {None, "function"}:
        raise NotShadowableError("custom_tools")
    function = as_dict(call.get("function"))
    return make_call(call.get("id"), function.get("name"), function.get("arguments"))


def make_call(call_id: Any, name: Any, arguments: Any) -> ToolCall:
    """A call from its JSON arguments. Raises NotShadowableError where they are no object: Anthropic takes nothing else."""
    parsed = parsed_or_raw(arguments if isinstance(arguments, str) else "")
    if not isinstance(parsed, dict):
        raise NotShadowableError("tool_arguments_not_json")
    if not isinstance(call_id, str) or not isinstance(name, str):
        raise NotShadowableError("tool_call_unreadable")
    return ToolCall(id=call_id, name=name, arguments=parsed)


def read_tool(tool: dict[str, Any]) -> Tool:
    """A function tool, chat's (nested) or Responses' (flat)."""
    if tool.get("type") != "function":
        raise NotShadowableError(
            "custom_tools" if tool.get("type") == "custom" else "server_tools", str(tool.get("type"))[:60]
        )
    function = as_dict(tool.get("function")) or tool
    name = as_text(function.get("name"))
    if name is None:
        raise NotShadowableError("tool_unreadable")
    return Tool(
        name=name,
        description=as_text(function.get("description")),
        schema=as_dict(function.get("parameters")),
        strict=function.get("strict") is True,
    )


def read_tool_choice(choice: Any) -> ToolChoice | None:
    """OpenAI's tool_choice, chat's or Responses'."""
    if choice is None:
        return None
    if choice in ("auto", "none", "required"):
        return ToolChoice(kind=choice)
    named = as_dict(choice)
    name = as_text(as_dict(named.get("function")).get("name")) or as_text(named.get("name"))
    if named.get("type") == "function" and name is not None:
        return ToolChoice(kind="named", name=name)
    raise NotShadowableError("tool_choice", str(named.get("type", choice))[:60])


def read_stop(stop: Any) -> list[str]:
    if stop is None:
        return []
    return [stop] if isinstance(stop, str) else [word for word in as_list(stop) if isinstance(word, str)]


def read_format(conversation: Conversation, response_format: Any) -> None:
    """OpenAI's response format, chat's (`json_schema` nested) or Responses' (flat)."""
    wanted = as_dict(response_format)
    kind = wanted.get("type")
    if kind in {None, "text"}:
        return
    if kind != "json_schema":
        # Only a schema can be enforced on the other side; "answer in JSON" cannot.
        raise NotShadowableError("json_mode_without_schema", str(kind)[:60])
    inner = as_dict(wanted.get("json_schema")) or wanted
    conversation.output_schema = as_dict(inner.get("schema"))
    conversation.output_schema_name = as_text(inner.get("name"))
