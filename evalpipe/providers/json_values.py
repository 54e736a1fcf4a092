"""Untrusted JSON read without surprises: lone surrogates replaced, no NaN or Infinity, typed access to its values."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from evalpipe.text import joined, well_formed


class MalformedJSONError(ValueError):
    """The bytes are not JSON, or nested deeper than anything sensible."""


def parse(data: bytes | str) -> Any:
    """The JSON value of `data`. Bytes that are not UTF-8 become U+FFFD, lone surrogates too; a number too large for a
    float is None. Raises MalformedJSONError."""
    try:
        return _fast_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass  # lone surrogates, bytes that are not UTF-8, numbers out of range, and what is no JSON at all: distinguished below
    text = data if isinstance(data, str) else str(data, "utf-8", "replace")
    try:
        value = _decoder.decode(text)
        # Only an escape can bring a lone surrogate in: decoding has replaced the raw ones.
        return _cleaned(value) if "\\ud" in text or "\\uD" in text else value
    except RecursionError:
        raise MalformedJSONError("nested too deeply") from None
    except ValueError as error:
        raise MalformedJSONError(str(error)) from None


def parse_answer(data: bytes | str) -> tuple[Any, bool]:
    """The JSON value of an answer, read as leniently as the vendors' Python SDKs read it (`json.loads`).

    Args:
        data: the body, or the data of one event.

    Returns:
        (value, exact). A byte order mark, UTF-16 and UTF-32 are accepted; NaN, Infinity and numbers beyond a float are
        None. Lone surrogates stay as they are: their other half may come with the next event (`joined`, `cleaned`).
        `exact`: `data` is UTF-8 JSON by RFC 8259, so it can be stored as it is.

    Raises:
        MalformedJSONError: not JSON even so, or nested too deeply.
    """
    try:
        return _fast_decoder.decode(data), True
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        pass  # lenient JSON and what is no JSON are distinguished below
    if isinstance(data, str):
        text = data.removeprefix("\ufeff")
    else:
        encoding = json.detect_encoding(data)
        text = str(data, "utf-8-sig" if encoding == "utf-8" else encoding, "replace")
    try:
        return _lenient_decoder.decode(text), False
    except RecursionError:
        raise MalformedJSONError("nested too deeply") from None
    except ValueError as error:
        raise MalformedJSONError(str(error)) from None


def parse_exact(data: bytes | str) -> Any:
    """The JSON value of RFC 8259 JSON in UTF-8, which every reader here reads alike. Raises MalformedJSONError."""
    try:
        return _fast_decoder.decode(data)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise MalformedJSONError(str(error)) from None


def parse_document(data: bytes) -> Any:
    """The JSON value of a logged document, `json.loads` where msgspec refuses it: NaN and lone surrogates stay as they are.
    Raises ValueError with the reason."""
    try:
        return msgspec.json.decode(data)
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(data)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise ValueError("nested too deep") from None


def cleaned(value: Any) -> Any:
    """A parsed value whose strings hold no lone surrogates."""
    return _cleaned(value)


def dump(value: Any) -> str:
    """`value` as compact JSON text, non-ASCII as it is."""
    return _encoder.encode(value)


def dump_bytes(value: Any) -> bytes:
    """What was parsed, as compact JSON. A whole number beyond 64 bits keeps its digits."""
    try:
        return _fast_encoder.encode(value)
    except (OverflowError, UnicodeEncodeError, TypeError, msgspec.MsgspecError):
        return _encoder.encode(value).encode()


def as_dict(value: Any) -> dict[str, Any]:
    """`value` where it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def as_text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def as_scalar(value: Any) -> Any:
    """`value`, or as text where it is a list or an object: what a set may be asked for."""
    return str(value) if isinstance(value, list | dict) else value


def as_count(value: Any) -> int | None:
    """`value` where it is a count: a whole number, not negative, that fits 64 bits."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        return None
    return value


def parsed_or_raw(text: str) -> Any:
    """Tool arguments: the JSON they hold, or the raw text where they do not parse. No arguments at all are {}."""
    if not text.strip():
        return {}
    try:
        return parse(text)
    except MalformedJSONError:
        return well_formed(text)


def _reject(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _absent(constant: str) -> Any:
    return None


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return joined(value)
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    if isinstance(value, dict):
        return {well_formed(key): _cleaned(item) for key, item in value.items()}
    return value


_fast_decoder = msgspec.json.Decoder()
"""Four times as fast as the standard library's, and stricter: what it refuses is read again"""
_fast_encoder = msgspec.json.Encoder()

# Made once: json.loads and json.dumps build new ones at every call with options.
_decoder = json.JSONDecoder(parse_constant=_reject, parse_float=_finite)
_lenient_decoder = json.JSONDecoder(parse_constant=_absent, parse_float=_finite)
_encoder = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)


# Members of a JSON object, found in its text: to take one out and leave every other byte as it came.


_SPACE = re.compile(rb"[ \t\r\n]*")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NESTED = re.compile(rb'"(?:[^"\\]|\\.)*"|[{}\[\]]', re.DOTALL)
_SCALAR = re.compile(rb"[^,\]}\s]+")


class Member(NamedTuple):
    """The span of a member of an object: from the quote of its name to the end of its value."""

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
