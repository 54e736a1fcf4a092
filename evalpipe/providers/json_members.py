"""Members of a JSON object, found in its text: to take one out and leave every other byte as it came."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_SPACE = re.compile(rb"[ \t\r\n]*")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NESTED = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]]', re.DOTALL)
_SCALAR = re.compile(rb"[^,\]}\s]+")


class Member(NamedTuple):
    """Where a member of an object stands: from the quote of its name to the end of its value."""

    name: bytes
    """as written, without the quotes"""
    start: int
    value: int
    end: int


def without_members(text: bytes, paths: Sequence[Sequence[bytes]]) -> bytes:
    """`text`, a valid JSON document, without the members that `paths` lead to; on its way a list means each of its items. A
    member goes with one comma and the blanks behind it, as if it had never been written."""
    spans: list[tuple[int, int]] = []
    for path in paths:
        spans += _spans(text, _blanks(text, 0), path)
    pieces, at = [], 0
    for start, end in sorted(spans):
        if end > at:
            pieces.append(text[at : max(start, at)])
            at = end
    return b"".join([*pieces, text[at:]]) if pieces else text


def _spans(text: bytes, at: int, path: Sequence[bytes]) -> Iterator[tuple[int, int]]:
    kind = text[at : at + 1]
    if kind == b"[":
        for start, _ in _items(text, at):
            yield from _spans(text, start, path)
    elif kind == b"{":
        members = list(_members(text, at))
        for number, member in enumerate(members):
            if member.name != path[0]:
                continue
            if len(path) > 1:
                yield from _spans(text, member.value, path[1:])
            elif number + 1 < len(members) and not any(m.name != path[0] for m in members[:number]):
                yield member.start, members[number + 1].start
            elif number:
                yield members[number - 1].end, member.end
            else:
                yield member.start, member.end


def _members(text: bytes, at: int) -> Iterator[Member]:
    at = _blanks(text, at + 1)
    while (name := _STRING.match(text, at)) is not None:
        value = _blanks(text, _blanks(text, name.end()) + 1)  # behind the colon
        end = _end_of(text, value)
        yield Member(name[0][1:-1], at, value, end)
        at = _blanks(text, end)
        if text[at : at + 1] != b",":
            return
        at = _blanks(text, at + 1)


def _items(text: bytes, at: int) -> Iterator[tuple[int, int]]:
    at = _blanks(text, at + 1)
    while at < len(text) and text[at : at + 1] != b"]":
        end = _end_of(text, at)
        yield at, end
        at = _blanks(text, end)
        if text[at : at + 1] != b",":
            return
        at = _blanks(text, at + 1)


def _end_of(text: bytes, at: int) -> int:
    """The end of the value that begins at `at`."""
    kind = text[at : at + 1]
    if kind == b'"':
        string = _STRING.match(text, at)
        return len(text) if string is None else string.end()
    if kind not in (b"{", b"["):
        scalar = _SCALAR.match(text, at)
        return len(text) if scalar is None else scalar.end()
    depth = 0
    for token in _NESTED.finditer(text, at):
        mark = token[0]
        if mark in (b"{", b"["):
            depth += 1
        elif mark in (b"}", b"]"):
            depth -= 1
            if depth == 0:
                return token.end()
    return len(text)


def _blanks(text: bytes, at: int) -> int:
    blanks = _SPACE.match(text, at)
    return at if blanks is None else blanks.end()
