"""Content of any dialect as plain text for people and judges, and the request view built from it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from evalpipe.providers.base import RequestView
from evalpipe.providers.jsontext import as_dict, as_text, dump
from evalpipe.providers.turns import Position

MARKS = {
    "image_url": "[image]",
    "input_image": "[image]",
    "image": "[image]",
    "file": "[file]",
    "input_file": "[file]",
    "document": "[file]",
    "input_audio": "[audio]",
}
_TAG: Final = re.compile(r"<([A-Za-z][^<>/]{0,100})>")
_HIDDEN = frozenset({"thinking", "redacted_thinking", "reasoning"})


def content_text(content: Any) -> str:
    """A message's content (a string, or a list of parts or blocks) as text: images and files as marks, thinking left out."""
    if isinstance(content, str):
        return content
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        return ""
    return "\n".join(text for text in map(_part_text, content) if text)


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    part = as_dict(part)
    kind = as_text(part.get("type")) or ""
    for key in ("text", "refusal"):
        text = as_text(part.get(key))
        if text is not None:
            return text
    if kind in MARKS:
        return MARKS[kind]
    if kind == "tool_use":
        return f"[tool call {part.get('name')}: {dump(part.get('input'))}]"
    if kind == "tool_result":
        return content_text(part.get("content"))
    return f"[{kind}]" if kind and kind not in _HIDDEN else ""


def opening_of(messages: Iterable[Mapping[str, Any]]) -> Any:
    """The content of the user message by which a conversation is known: the first one that is more than a frame.

    Coding agents begin every session with messages of their own, each a block in tags (`<environment_context>`) or a file of
    instructions, and the user's words come after them: by the first message all their sessions were one conversation. A frame
    that no word of the user follows before an answer is all there is, and counts.
    """
    first: Any = None
    for message in messages:
        role = message.get("role")
        if role == "assistant":
            break
        content = message.get("content")
        if role != "user" or content is None:
            continue
        if first is None:
            first = content
        if not _is_frame(content_text(content)):
            return content
    return first


def _is_frame(text: str) -> bool:
    """Whether a message is nothing but blocks in tags, or a file of instructions that an agent hands over."""
    text = text.strip()
    if text.startswith("# AGENTS.md instructions"):
        return True
    at = 0
    while at < len(text):
        opened = _TAG.match(text, at)
        if opened is None:
            return False
        end = -1
        for name in (opened[1], opened[1].split()[0]):
            closing = f"</{name}>"
            end = text.find(closing, opened.end())
            if end >= 0:
                at = end + len(closing)
                break
        if end < 0:
            return False
        while at < len(text) and text[at].isspace():
            at += 1
    return bool(text)


def make_view(
    *,
    model: str | None,
    streamed: bool,
    messages: list[dict[str, str]],
    first_user: Any,
    has_tools: bool,
    usage_requested: bool,
    position: Position,
    usage_left_open: bool = False,
) -> RequestView:
    """The view with the system text first, whatever place the dialect gave it."""
    system = [message for message in messages if message["role"] == "system"]
    rest = [message for message in messages if message["role"] != "system"]
    return RequestView(
        model=model,
        streamed=streamed,
        messages=[*system, *rest],
        system_text="\n\n".join(message["content"] for message in system),
        first_user_message=first_user,
        has_tools=has_tools,
        usage_requested=usage_requested,
        usage_left_open=usage_left_open,
        turn=position.turn,
        step=position.step,
    )
