"""Paths into documents of other tools: `a.b[0].c`, through flat dotted keys, other spellings and JSON kept as text."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

from evalpipe.store.documents import parse

_STEP = re.compile(r"([^.\[\]]+)|\[(-?\d+)\]")
_PYTHON = re.compile(r"\s*[\[{(]\s*(?:[{\[('\"]|\]|\})")
MAX_PYTHON_CHARS = 1_000_000


@lru_cache(maxsize=4096)
def normal(key: str) -> str:
    """The key without case, blanks and punctuation but for dots: startTime, start_time and "Start Time" are one."""
    return re.sub(r"[\s_\-$@]", "", key).lower()


@lru_cache(maxsize=4096)
def steps(path: str) -> tuple[str | int, ...]:
    """The path as keys and places: "a.b[0]" is ("a", "b", 0)."""
    path = path.removeprefix("$.").removeprefix("$")
    return tuple(int(place) if place else key for key, place in _STEP.findall(path))


def find(document: Any, path: str) -> Any:
    """The value at the path; None where there is none. A key may hold dots itself (`gen_ai.request.model`), be spelled in
    another case (`startTime` for `start_time`), or hold its object as JSON text."""
    if isinstance(document, Mapping) and path in document:
        return document[path]
    return _walk(document, steps(path))


def first(document: Any, paths: Iterable[str]) -> Any:
    """The first value at one of the paths that is neither null nor an empty text."""
    for path in paths:
        value = find(document, path)
        if value is not None and value != "":
            return value
    return None


def has(document: Any, path: str) -> bool:
    """Whether the path leads to a value, or to a null that is written down."""
    if find(document, path) is not None:
        return True
    if not isinstance(document, Mapping):
        return False
    if path in document:
        return True
    *parents, last = steps(path)
    holder = _walk(document, tuple(parents)) if parents else document
    return isinstance(holder, Mapping) and isinstance(last, str) and _key_of(holder, last) is not None


def opened(value: Any) -> Any:
    """The object or list that a text holds as JSON, or as Python prints it; any other value as it is."""
    if not isinstance(value, str):
        return value
    start = value.lstrip()[:1]
    if start not in {"{", "["}:
        return value
    try:
        return parse(value.encode("utf-8", "surrogatepass"))
    except ValueError:
        return _printed(value)


def _printed(value: str) -> Any:
    """A list or object as Python prints it, without ever running anything."""
    if len(value) > MAX_PYTHON_CHARS or not _PYTHON.match(value):
        return value
    try:
        found = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return value
    return found if isinstance(found, dict | list) else value


def _walk(value: Any, path: tuple[str | int, ...]) -> Any:
    if not path:
        return value
    value = opened(value)
    step = path[0]
    if isinstance(step, int):
        if isinstance(value, list | tuple) and -len(value) <= step < len(value):
            return _walk(value[step], path[1:])
        return None
    if not isinstance(value, Mapping):
        return None
    for length in range(len(path), 0, -1):  # the longest key first: flat names hold dots
        names = path[:length]
        if not all(isinstance(name, str) for name in names):
            continue
        key = _key_of(value, ".".join(map(str, names)))
        if key is not None:
            found = _walk(value[key], path[length:])
            if found is not None:
                return found
    return None


def _key_of(value: Mapping[str, Any], name: str) -> str | None:
    if name in value:
        return name
    wanted = normal(name)
    return next((key for key in value if isinstance(key, str) and len(key) < 100 and normal(key) == wanted), None)
