"""Fields an arm's server does not know, taken out of what it is sent: the `drop` of an arm."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from evalpipe.providers.jsontext import MalformedJSONError, parse

LIMITS: tuple[str, str] = ("max_completion_tokens", "max_tokens")
"""Chat completions' two names of one limit, the newer first."""


def without_fields(endpoint: str, body: dict[str, Any], drop: Sequence[str]) -> dict[str, Any]:
    """`body` without the fields that `drop` names; `body` itself is not changed.

    Each name is a path of keys with dots between; on its way a list means each of its items, so `messages.reasoning_content`
    is that field of every message. Of chat completions' two names for the token limit one that is named here hands its value
    to the other: `["max_completion_tokens"]` sends the limit as `max_tokens`. Messages keeps its `max_tokens`, which it requires.
    """
    for path in drop:
        if (
            endpoint == "messages" and path == "max_tokens"
        ):  # Messages requires it: the name is meant for chat completions
            continue
        if endpoint == "chat.completions" and path in LIMITS and path in body:
            other = LIMITS[1 - LIMITS.index(path)]
            if body[path] is not None and body.get(other) is None and other not in drop:
                body = {**body, other: body[path]}
        body = _without(body, path.split("."))
    return body


def names_field(drop: Sequence[str], key: str) -> bool:
    """Whether `drop` takes `key`, or a field in it, out of a request."""
    return any(path == key or path.startswith(key + ".") for path in drop)


def _without(value: Any, keys: Sequence[str]) -> Any:
    """Copied only as far as something goes: a long history is not copied for one key beside it."""
    if isinstance(value, list):
        items = [_without(item, keys) for item in value]
        return value if all(new is old for new, old in zip(items, value, strict=True)) else items
    if not isinstance(value, dict) or keys[0] not in value:
        return value
    if len(keys) == 1:
        return {key: inner for key, inner in value.items() if key != keys[0]}
    inner = _without(value[keys[0]], keys[1:])
    return value if inner is value[keys[0]] else {**value, keys[0]: inner}


_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ORDINARY = frozenset(
    {
        "model",
        "messages",
        "input",
        "stream",
        "role",
        "content",
        "type",
        "text",
        "name",
        "id",
        "system",
        "function",
        "tools",
    }
    | {
        "user",
        "stop",
        "index",
        "value",
        "error",
        "format",
        "object",
        "parameters",
        "properties",
        "description",
        "items",
    }
    | {"required", "url", "data", "source", "store"}
)
"""keys that an error's words may hold without meaning a field"""


def field_named(words: str | None, body: bytes) -> str | None:
    """The path, as `drop` takes it, of the field of a refused request that the refusal's words name; None where they name
    none."""
    try:
        document = parse(body)
    except MalformedJSONError:
        return None
    named = set(_WORD.findall(words or "")) - _ORDINARY
    return _path_of(document, named, 0) if named else None


def _path_of(value: Any, named: set[str], depth: int) -> str | None:
    """The outermost key that is named."""
    if depth > _MAX_DEPTH:
        return None
    if isinstance(value, list):
        return next((path for item in value if (path := _path_of(item, named, depth + 1)) is not None), None)
    if not isinstance(value, dict):
        return None
    found = next((key for key in value if key in named), None)
    if found is not None:
        return str(found)
    for key, inner in value.items():
        path = _path_of(inner, named, depth + 1)
        if path is not None:
            return f"{key}.{path}"
    return None


_MAX_DEPTH = 12
"""levels that are searched: a request's own fields are not deeper"""
