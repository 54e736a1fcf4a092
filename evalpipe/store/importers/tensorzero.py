"""TensorZero: chat datapoints, an input and the output that was given (or written by hand)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from evalpipe.providers.conversation import role_of
from evalpipe.store.documents import parse
from evalpipe.store.importers.base import (
    BrokenLineError,
    Fields,
    Imported,
    Importer,
    content_text,
    logged_exchange,
    unknown_time,
)


def matches(document: Any) -> bool:
    return isinstance(document, Mapping) and {"function_name", "input", "output", "episode_id"} <= document.keys()


def read(document: Any, line: int) -> Imported:
    """One datapoint. One without an output holds no answer and gives no row."""
    fields = Fields(document)
    output = _json(document["output"], "output")
    if output is None:
        return Imported()
    asked = _json(document["input"], "input")
    if not isinstance(asked, Mapping):
        raise BrokenLineError("input is not an object")
    parts = output if isinstance(output, list) else [output]
    calls = [part for part in parts if isinstance(part, Mapping) and part.get("type") == "tool_call"]
    exchange = logged_exchange(
        fields.text("id", required=True) or "",
        fields.time("updated_at") or unknown_time(line),
        messages=_messages(asked),
        text=content_text([part for part in parts if part not in calls]),
        tool_calls=calls,
        request=asked,
        response=output,
        meta={name: document.get(name) for name in ("dataset_name", "function_name", "tags", "auxiliary")},
        unit_id=fields.text("episode_id"),
    )
    return Imported(exchanges=[exchange])


def _messages(asked: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    messages: list[Mapping[str, Any]] = []
    if asked.get("system") is not None:
        messages.append({"role": "system", "content": _said(asked["system"])})
    for message in asked.get("messages") or []:
        if isinstance(message, Mapping):
            messages.append({"role": role_of(message), "content": _said(message.get("content"))})
    return messages


def _said(content: Any) -> str:
    """Text; a template's name and arguments, which are all that is stored of it."""
    parts = content if isinstance(content, list) else [content]
    texts = []
    for part in parts:
        if isinstance(part, Mapping) and part.get("type") == "template":
            texts.append(f"{part.get('name')}({json.dumps(part.get('arguments'), ensure_ascii=True)})")
        else:
            texts.append(content_text(part))
    return "\n".join(texts)


def _json(value: Any, name: str) -> Any:
    """Exports of the database hold JSON as text."""
    if not isinstance(value, str):
        return value
    try:
        return parse(value.encode("utf-8", "surrogatepass"))
    except ValueError as error:
        raise BrokenLineError(f"{name} is not JSON: {error}") from None


IMPORTER = Importer(name="tensorzero", help="TensorZero chat datapoints, one a line", matches=matches, read=read)
