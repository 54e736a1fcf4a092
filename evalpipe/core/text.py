"""Untrusted text made safe to store and to show, without changing what it says."""

from __future__ import annotations

import re

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
# C0 and C1 controls but tab and newline, DEL, and the bidi controls that can reorder a line shown to a person.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def well_formed(text: str) -> str:
    """`text` with every lone surrogate replaced by U+FFFD, so that it can be encoded as UTF-8 (Unicode 3.9, U+FFFD)."""
    return _LONE_SURROGATE.sub("\ufffd", text) if _LONE_SURROGATE.search(text) else text


def joined(text: str) -> str:
    """`text` with surrogate halves that stand side by side made one character, and lone ones replaced by U+FFFD."""
    if text.isascii() or _LONE_SURROGATE.search(text) is None:
        return text
    return well_formed(_PAIR.sub(_paired, text))


def _paired(pair: re.Match[str]) -> str:
    text = pair[0]
    return chr(0x10000 + ((ord(text[0]) - 0xD800) << 10) + (ord(text[1]) - 0xDC00))


def printable(text: str) -> str:
    """`text` for a terminal or a log line: controls, ANSI escapes and bidi overrides become visible U+FFFD."""
    return _CONTROL.sub("\ufffd", well_formed(text))


def cut_middle(text: str, limit: int) -> tuple[str, int]:
    """`text` cut in the middle to at most `limit` characters plus a visible mark; also how many characters were cut.

    Beginning and end are kept: instructions stand at the start and conclusions at the end.
    """
    if len(text) <= limit:
        return text, 0
    head = (limit + 1) // 2
    tail = limit - head
    n_cut = len(text) - limit
    return f"{text[:head]}\n[… {n_cut:,} characters cut …]\n{text[len(text) - tail :]}", n_cut


def mistake_in_words(message: str) -> str:
    """What is allowed, from pydantic's message on one value.

    >>> mistake_in_words("Input should be a valid integer, unable to parse string as an integer")
    'must be a valid integer'
    """
    message = message.removeprefix("Value error, ").replace("Input should be", "must be")
    return message.partition(", unable to parse")[0]


def place_in_toml(text: str, problem: str) -> str:
    """The parser's words, with the key of the line they are about; never its value, which may be a secret."""
    found = re.search(r" \(at line (\d+), column \d+\)$", problem)
    lines = text.splitlines()
    if found is None or int(found[1]) > len(lines):
        return problem
    key, mark, value = lines[int(found[1]) - 1].partition("=")
    words, key = problem[: found.start()], key.strip()
    if not mark or not re.fullmatch(r"[A-Za-z0-9_.-]+", key):
        return problem
    hint = f'; a text needs quotes: {key} = "…"' if re.match(r"\s*[A-Za-z]", value) else ""
    return f"line {found[1]}, {key}: {words}{hint}"
