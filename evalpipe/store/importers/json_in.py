"""JSON in all its spellings, as documents: one a line, in a list, printed over several lines, one after another, cut off."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from evalpipe.store.documents import MAX_WHOLE_BYTES, parse

_LOOK_BYTES = 1 << 20
_LOOK_LINES = 40
_READ = 1 << 20
_FIRST_LIST = re.compile(r'"(?:[^"\\]|\\.){1,80}"\s*:\s*\[\s*\{')
_BETWEEN = re.compile(r"[\s,\x1e]*")
_DECODER = json.JSONDecoder()
CUT = "the file is cut at its end: its last entry is not whole"


@dataclass(slots=True)
class Document:
    """One document and where it stood: `number` is its line, row or place, from 1. `problem`: why there is no value."""

    number: int
    value: Any = None
    raw: bytes | None = None
    problem: str | None = None


class Text:
    """UTF-8 bytes to be read once, with a first look at them."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self.stream = stream
        self.head = _read_up_to(stream, _LOOK_BYTES)
        if self.head.startswith(b"\xef\xbb\xbf"):
            self.head = self.head[3:]

    def lines(self) -> Iterator[bytes]:
        """The lines without their ends; "\\r" alone ends them where the text has no other ends."""
        end = b"\n" if b"\n" in self.head or b"\r" not in self.head else b"\r"
        rest = b""
        piece = self.head
        while piece:
            *whole, rest = (rest + piece).split(end)
            yield from whole
            piece = self.stream.read(_READ)
        if rest:
            yield rest

    def whole(self) -> bytes | None:
        """All of it; None where that is more than fits in memory."""
        rest = _read_up_to(self.stream, MAX_WHOLE_BYTES)
        return None if len(rest) >= MAX_WHOLE_BYTES else self.head + rest

    def first_lines(self) -> list[bytes]:
        """The first filled lines that are whole in the first look."""
        end = b"\n" if b"\n" in self.head or b"\r" not in self.head else b"\r"
        found = self.head.split(end)
        if len(self.head) >= _LOOK_BYTES and len(found) > 1:
            found.pop()
        return [line.strip() for line in found if line.strip()][:_LOOK_LINES]


def _read_up_to(stream: io.BufferedReader, size: int) -> bytes:
    pieces, n = [], 0
    while n < size:
        piece = stream.read(min(_READ, size - n))
        if not piece:
            break
        pieces.append(piece)
        n += len(piece)
    return b"".join(pieces)


def looks_like_json(text: Text) -> bool:
    """Whether the text is JSON of some kind, whole or not."""
    lines = text.first_lines()
    if not lines:
        return False
    start = text.head.lstrip(b" \t\r\n\x1e")[:1]
    return start in {b"{", b"["} or _share_of_objects(lines) >= 0.5


def json_documents(text: Text, faults: list[str]) -> Iterator[Document]:
    """The documents of the text. What is cut is noted in `faults`, and what is whole before that is given."""
    lines = text.first_lines()
    if not lines:
        return
    if _is_object(lines[0]):
        yield from _line_by_line(text, faults)
        return
    data = text.whole()
    if data is None:
        yield from _line_by_line(Text(io.BufferedReader(io.BytesIO(text.head))), faults)
        faults.append(
            f"one JSON document above {MAX_WHOLE_BYTES >> 20} MB cannot be read: write one document a line (jq -c '.[]')"
        )
        return
    try:
        value = parse(data)
    except ValueError:
        pass
    else:
        yield from _items(value)
        return
    if _share_of_objects(lines) >= 0.5:
        yield from _line_by_line(Text(io.BufferedReader(io.BytesIO(data))), faults)
        return
    yield from _one_after_another(data.decode("utf-8", "replace"), faults)


def _items(value: Any) -> Iterator[Document]:
    if isinstance(value, list):
        for number, item in enumerate(value, 1):
            yield Document(number=number, value=item)
    else:
        yield Document(number=1, value=value)


def _share_of_objects(lines: list[bytes]) -> float:
    return sum(map(_is_object, lines)) / len(lines)


def _is_object(line: bytes) -> bool:
    if not line.startswith(b"{"):
        return False
    try:
        return isinstance(parse(line.rstrip(b", \t\r")), dict)
    except ValueError:
        return False


def _line_by_line(text: Text, faults: list[str]) -> Iterator[Document]:
    decode = msgspec.json.decode
    last_is_whole = True
    is_list = text.head.lstrip()[:1] == b"["
    number = 0
    problem: Document | None = None
    for number, line in enumerate(text.lines(), 1):
        if problem is not None:
            yield problem
            problem = None
        try:
            yield Document(number, decode(line), line)
            continue
        except (ValueError, RecursionError):
            stripped = line.strip(b" \t\r\n\x1e\xef\xbb\xbf")
        if not stripped or (stripped in {b"[", b"]", b","} and (is_list or stripped != b"[")):
            continue
        try:
            yield Document(number, parse(stripped.rstrip(b",")), line)
        except ValueError as error:
            problem = Document(number, None, line, f"not JSON: {error}")
    if problem is not None:
        assert problem.raw is not None
        last_is_whole = not problem.raw.lstrip().startswith(b"{") or problem.raw.rstrip().endswith(b"}")
        if not last_is_whole:
            problem.problem = "cut off: the file ends in the middle of this line"
            faults.append(CUT)
        yield problem


def _one_after_another(text: str, faults: list[str]) -> Iterator[Document]:
    """Values one after another, or a list that is cut, or an object whose list is cut."""
    place = _BETWEEN.match(text).end()  # type: ignore[union-attr]
    number = 0
    if text[place : place + 1] == "[":
        place += 1
    elif text[place : place + 1] == "{" and not _starts_value(text, place):
        inner = _FIRST_LIST.search(text, place)
        if inner is None:
            yield Document(1, None, text[:2000].encode(), _why(text, place))
            return
        place = inner.end() - 1
    while True:
        place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]
        if place >= len(text):
            return
        number += 1
        if text[place] in "]}":
            rest = text[place + 1 :].strip("]}, \r\n\t")
            if not rest:
                return
            place += 1
            number -= 1
            continue
        try:
            value, end = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            following = _next_object(text, place)
            piece = text[place : following if following > 0 else len(text)]
            if following < 0:
                faults.append(CUT)
                yield Document(
                    number,
                    None,
                    piece[:100_000].encode("utf-8", "replace"),
                    "cut off: the file ends in the middle of this entry",
                )
                return
            yield Document(number, None, piece.encode("utf-8", "replace"), f"not JSON: {error}")
            place = following
            continue
        if isinstance(value, list) and number == 1 and text[:1] != "[":
            yield from _items(value)
        else:
            yield Document(number, value)
        place = end


def _starts_value(text: str, place: int) -> bool:
    try:
        _DECODER.raw_decode(text, place)
    except (ValueError, RecursionError):
        return False
    return True


def _why(text: str, place: int) -> str:
    try:
        _DECODER.raw_decode(text, place)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return "not JSON"


def _next_object(text: str, place: int) -> int:
    """Where the next value of its own begins after a broken one: an object at the beginning of a line."""
    found = re.compile(r"\n\s{0,8}\{").search(text, place + 1)
    while found is not None:
        start = found.end() - 1
        if _starts_value(text, start):
            return start
        found = re.compile(r"\n\s{0,8}\{").search(text, start + 1)
    return -1
