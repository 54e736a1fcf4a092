"""What was asked, in any dialect, as messages with roles and plain text; the content of one message."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from evalpipe.providers.conversation import role_of
from evalpipe.providers.response_builder import ReasoningFilter, without_reasoning
from evalpipe.store.importers.base import content_text
from evalpipe.store.importers.values import opened

Message = dict[str, Any]

_ROLES = {
    "human": "user", "humanmessage": "user", "humanmessagechunk": "user", "prompter": "user", "question": "user",
    "ai": "assistant", "aimessage": "assistant", "aimessagechunk": "assistant", "model": "assistant", "gpt": "assistant",
    "bot": "assistant", "chatbot": "assistant", "answer": "assistant", "bing": "assistant", "chatgpt": "assistant",
    "systemmessage": "system", "developer": "system", "systemmessagechunk": "system",
    "function": "tool", "toolmessage": "tool", "functionmessage": "tool", "tool_result": "tool", "observation": "tool",
    "ipython": "tool",
}  # fmt: skip
"""other names of the four roles: LangChain, Gemini, Cohere, ShareGPT and its relatives"""
_LISTS = (
    "messages",
    "input",
    "contents",
    "conversation",
    "conversations",
    "chat_history",
    "history",
    "prompts",
    "prompt",
)
_TEXTS = (
    "prompt", "input", "question", "query", "text", "content", "user_input", "instruction", "message", "inputText",
    "input_text", "user_prompt", "userMessage", "value",
)  # fmt: skip


def read_messages(value: Any) -> list[Message]:
    """The messages of a request's body, of a list of messages or parts, or of a bare text (the user's); [] where nothing is
    there. JSON kept as text, and lists as Python prints them, are opened where they hold messages."""
    value = opened(value) if isinstance(value, str) and looks_asked(opened(value)) else value
    if value is None:
        return []
    if isinstance(value, str):
        return [{"role": "user", "content": value}] if value.strip() else []
    if isinstance(value, Mapping):
        return _of_object(value)
    if isinstance(value, list | tuple):
        return _of_list(value)
    return [{"role": "user", "content": str(value)}]


def looks_asked(value: Any) -> bool:
    """Whether an opened text holds messages or a request, and is no text that only happens to be JSON."""
    if isinstance(value, Mapping):
        return (
            is_message(value)
            or any(isinstance(value.get(key), list | tuple) for key in _LISTS)
            or set(value)
            <= {
                *_TEXTS,
                "model",
                "system",
                "stream",
            }
        )
    if isinstance(value, list | tuple):
        return bool(value) and all(
            (isinstance(item, Mapping) and (is_message(item) or _is_part(item)))
            or (isinstance(item, list) and bool(item) and all(isinstance(one, Mapping) for one in item))
            for item in value
        )
    return False


def is_message(value: Any) -> bool:
    """Whether this is one message, in any framework's shape."""
    if not isinstance(value, Mapping):
        return False
    if "role" in value or "lc" in value or ("from" in value and "value" in value):
        return True
    kind = value.get("type")
    return isinstance(kind, str) and (
        (kind.lower() in _ROLES and ("content" in value or "data" in value))
        or kind in {"message", "system", "user", "assistant"}
    )


def _is_part(value: Mapping[str, Any]) -> bool:
    return "type" in value or "parts" in value or "text" in value


def role_in(message: Mapping[str, Any]) -> str:
    """ "system", "user", "assistant" or "tool"."""
    named = message.get("role") or message.get("from")
    if not isinstance(named, str):
        path = message.get("id")  # LangChain: the path of the class
        kind = path[-1] if isinstance(path, list) and path else message.get("type")
        named = kind if isinstance(kind, str) and kind != "constructor" else ""
    word = named.lower()
    if word in {"system", "user", "assistant", "tool"}:
        return "tool" if word == "user" and role_of(message) == "tool" else word
    return _ROLES.get(word, "user" if word in {"", "message"} else word)


def body_of(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message itself: LangChain wraps it in `kwargs` or `data`, OpenInference in `message`."""
    for key in ("kwargs", "data", "message"):
        inner = opened(message.get(key))
        if isinstance(inner, Mapping) and ("content" in inner or "role" in inner or "tool_calls" in inner):
            return inner
    return message


def message_content(message: Mapping[str, Any]) -> Any:
    """What a message holds: its content, parts or text, opened where it is a list kept as text."""
    body = body_of(message)
    for key in ("content", "parts", "contents", "value", "text", "message"):
        if body.get(key) is not None:
            value = body[key]
            inner = opened(value)
            return (
                inner
                if isinstance(inner, list) and all(isinstance(part, Mapping) for part in inner) and inner
                else value
            )
    return body.get("content")


def _message(value: Mapping[str, Any]) -> Message:
    body = body_of(value)
    role = role_in(value) if body is value or "role" not in body else role_in(body)
    content = message_content(value)
    parts = content if isinstance(content, list) else [content]
    kept = [part for part in parts if not (isinstance(part, Mapping) and is_reasoning(part))]
    message: Message = {"role": role, "content": content_text(kept if isinstance(content, list) else content)}
    calls = tool_calls_of(body)
    if calls:
        message["tool_calls"] = calls
    return message


def _of_list(values: Iterable[Any]) -> list[Message]:
    found: list[Message] = []
    parts: list[Any] = []
    for value in values:
        value = opened(value) if isinstance(value, str) and is_message(opened(value)) else value
        if isinstance(
            value, list | tuple
        ):  # LangChain: one list of messages for each of several prompts; the first is this call's
            if (
                len(value) == 2
                and all(isinstance(item, str) for item in value)
                and value[0].lower() in {*_ROLES, "user", "system", "assistant"}
            ):
                found.append({"role": role_in({"role": value[0]}), "content": value[1]})
                continue
            return found or _of_list(value)
        if isinstance(value, Mapping) and (is_message(value) or "parts" in value or "message" in value):
            kind = value.get("type")
            if kind in {"reasoning", "item_reference"}:
                continue
            found.append(_message(value))
        elif isinstance(value, Mapping) and value.get("type") in {"function_call", "custom_tool_call"}:
            found.append({"role": "assistant", "content": "", "tool_calls": tool_calls_of(value)})
        elif isinstance(value, Mapping) and value.get("type") in {"function_call_output", "custom_tool_call_output"}:
            found.append({"role": "tool", "content": content_text(value.get("output"))})
        elif value is not None:
            parts.append(value)
    if parts and not found:
        return [{"role": "user", "content": content_text(parts)}]
    return found


def _of_object(value: Mapping[str, Any]) -> list[Message]:
    """A request's body: messages, input, contents or prompt, with the system text beside them."""
    if is_message(value) and "messages" not in value:
        return [_message(value)]
    system = next(
        (value[key] for key in ("system", "instructions", "systemInstruction", "system_instruction", "preamble", "system_prompt")
         if value.get(key)),
        None,
    )  # fmt: skip
    head = [{"role": "system", "content": content_text(opened(system))}] if system is not None else []
    for key in _LISTS:
        inner = opened(value.get(key))
        if isinstance(inner, list | tuple) and inner:
            if all(
                isinstance(item, str) for item in inner
            ):  # several prompts in one request: the first is answered first
                return [*head, {"role": "user", "content": str(inner[0])}]
            found = _of_list(inner)
            last = value.get("message") if key in {"chat_history", "history"} else None
            tail = [{"role": "user", "content": last}] if isinstance(last, str) else []
            return [*(head if not any(one["role"] == "system" for one in found[:1]) else []), *found, *tail]
        if isinstance(inner, Mapping) and inner:
            return [*head, *_of_object(inner)]
    for key in _TEXTS:
        text = value.get(key)
        if isinstance(text, str) and text.strip():
            return [*head, {"role": "user", "content": text}]
    for key in ("body", "request", "kwargs", "inputs", "args", "params", "json"):
        inner = opened(value.get(key))
        if isinstance(inner, Mapping | list) and inner:
            found = read_messages(inner)
            if found:
                return [*head, *found]
    texts = [one for one in value.values() if isinstance(one, str) and one.strip()]
    return [*head, {"role": "user", "content": texts[0]}] if len(texts) == 1 else head


def split_answer(messages: list[Message]) -> tuple[list[Message], Message | None]:
    """(what was asked, the last answer) of a whole logged conversation; no answer where it ends with a question."""
    if not messages or messages[-1]["role"] != "assistant":
        return messages, None
    return messages[:-1], messages[-1]


def answer_in(message: Mapping[str, Any]) -> tuple[str | None, list[dict[str, Any]]]:
    """The text and the tool calls of a raw assistant message."""
    content = read_content(message_content(message))
    return content.text if content.text is not None else content.refusal, [
        *tool_calls_of(body_of(message)),
        *content.tool_calls,
    ]


# The content of one message, in any dialect: its text without reasoning, its tool calls, and marks for what is no text.


REASONING = frozenset({"reasoning", "thinking", "redacted_thinking", "thought", "reasoning_content", "analysis"})
"""types of parts that hold what the model thought, which users do not see"""
_CALLS = frozenset(
    {
        "tool_call",
        "tool_use",
        "tool-call",
        "function_call",
        "function",
        "server_tool_use",
        "custom_tool_call",
        "toolUse",
    }
)
_RESULTS = frozenset({"tool_call_response", "tool_result", "tool-result", "function_call_output"})


class Content(NamedTuple):
    """`text` is None where the content holds no part of text at all."""

    text: str | None
    tool_calls: list[dict[str, Any]]
    n_other: int = 0
    """parts that are neither text, tool call nor reasoning: images, audio, files"""
    refusal: str | None = None


def shown(text: str) -> str:
    """The text without the reasoning that a server left at its beginning (`<think>…</think>`)."""
    if (
        "think" not in text[:40].lower()
        and "</think>" not in text
        and "<thought>" not in text[:20]
        and "<|" not in text[:4]
    ):
        return text
    reader = ReasoningFilter()
    begun, rest = reader.add(text), reader.close()
    return without_reasoning(begun.text + rest.text)


def read_content(content: Any) -> Content:
    """A message's content: text, or parts of OpenAI, Anthropic, Gemini, Bedrock, OpenTelemetry, the Vercel AI SDK and others."""
    if content is None:
        return Content(None, [])
    if isinstance(content, str):
        return Content(shown(content), [])
    if isinstance(content, bool | int | float):
        return Content(json.dumps(content), [])
    parts: Sequence[Any] = content if isinstance(content, list | tuple) else [content]
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    n_other = 0
    refusal = None
    joint = ""
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
            joint = "\n"
            continue
        if not isinstance(part, Mapping):
            n_other += part is not None
            continue
        if is_reasoning(part):
            continue
        found = tool_calls_of(part)
        if found:
            calls += found
            continue
        text = part_text(part)
        if text is not None:
            texts.append(text)
            if "text" not in part:
                joint = "\n"  # OpenTelemetry's parts are texts of their own; vendors' blocks are one text in pieces
        elif isinstance(part.get("refusal"), str):
            refusal = part["refusal"]
        else:
            n_other += 1
    return Content(shown(joint.join(texts)) if texts else None, calls, n_other, refusal)


def is_reasoning(part: Mapping[str, Any]) -> bool:
    return part.get("type") in REASONING or part.get("thought") is True or "reasoningContent" in part


def part_text(part: Mapping[str, Any]) -> str | None:
    """The text of a part; None where it holds none."""
    if part.get("type") in _RESULTS:
        return None
    for key in ("text", "content", "value", "output_text", "input_text"):
        value = part.get(key)
        if isinstance(value, str):
            return value
        if isinstance(value, Mapping) and isinstance(value.get("value"), str):  # the Assistants API
            return str(value["value"])
    return None


def tool_calls_of(holder: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tool calls of a message, or the one that a part is: [{"id", "name", "arguments"}]."""
    calls: list[dict[str, Any]] = []
    for key in ("tool_calls", "toolCalls"):
        entries = opened(holder.get(key))
        for entry in entries if isinstance(entries, list | tuple) else []:
            entry = opened(entry)
            if isinstance(entry, Mapping):
                inner = entry.get("tool_call")  # OpenInference
                calls.append(_call(inner if isinstance(inner, Mapping) else entry))
    function = opened(holder.get("function_call") or holder.get("functionCall") or holder.get("toolUse"))
    if isinstance(function, Mapping) and function:
        calls.append(_call(function))
    if (
        not calls
        and holder.get("type") in _CALLS
        and ("name" in holder or "function" in holder or "toolName" in holder)
    ):
        calls.append(_call(holder))
    return calls


def _call(entry: Mapping[str, Any]) -> dict[str, Any]:
    function = opened(entry.get("function"))
    inner: Mapping[str, Any] = function if isinstance(function, Mapping) else entry
    spelled = {"name": inner.get("name") or entry.get("toolName") or (function if isinstance(function, str) else None)}
    arguments = next(
        (inner[key] for key in ("arguments", "input", "args", "parameters") if inner.get(key) is not None), None
    )
    given = entry.get("id") or entry.get("call_id") or entry.get("toolCallId") or entry.get("toolUseId")
    return {"id": given, **spelled, "arguments": opened(arguments)}


# Facts to check answers against, in any shape, as plain text.


def fact_text(value: Any) -> str:
    """A context or a reference answer in any shape as text: texts as they are, lists of documents one after the other, other
    values as JSON; "" for nothing."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "\n\n".join(filter(None, map(fact_text, value)))
    if isinstance(value, Mapping):
        return document_text(value) or json.dumps(value, ensure_ascii=False, default=str)
    return json.dumps(value, ensure_ascii=False, default=str)


def document_text(value: Mapping[str, Any]) -> str:
    """A document's title and text, in the shapes of the vendors and of retrieval libraries; "" where it holds none (a PDF)."""
    inner = value.get("data") if isinstance(value.get("data"), Mapping) else value
    assert isinstance(inner, Mapping)
    title = inner.get("title") or value.get("filename")
    source = value.get("source")
    body = ""
    if isinstance(source, Mapping):  # Anthropic: {"type": "text", "data": …} or {"type": "content", "content": […]}
        data = source.get("data") if source.get("type") == "text" else None
        body = data if isinstance(data, str) else content_text(source.get("content"))
    for key in ("text", "content", "page_content", "snippet", "body"):
        if not body:
            found = inner.get(key)
            body = found if isinstance(found, str) else content_text(found)
    return f"{title}\n{body}" if isinstance(title, str) and title and body else body
