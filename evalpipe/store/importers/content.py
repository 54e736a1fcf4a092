"""The content of one message, in any dialect: its text without reasoning, its tool calls, and marks for what is no text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from evalpipe.providers.text_pieces import ReasoningFilter, without_reasoning
from evalpipe.store.importers.paths import opened

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
