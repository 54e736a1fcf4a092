"""Redaction before the disk: in plain text, in JSON strings, and across the pieces of a stream; the patterns it looks for.

A stream cuts an address anywhere ("jo", "hn@example.com"); the pieces that make up one text are put together, what is found
in it is taken out of the pieces, and the events that changed are written anew. Everything else stays as received.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from evalpipe.credentials import KEY_SHAPES, MASK, Finder, known_secrets, mask
from evalpipe.providers.decoding import EncodingError, decode
from evalpipe.spool.format import Body

_EVENT_END = re.compile(r"(\r\n\r\n|\n\n|\r\r)")
_ESCAPED_ASCII = re.compile(r"\\u00([2-7][0-9a-fA-F])")
_BASE64 = re.compile(r"(?:data:[\w.+/-]{1,100};base64,)?[A-Za-z0-9+/_=-]{512,}\Z")
_INDEX_KEYS = ("index", "output_index", "content_index", "summary_index", "item_id")
_MAX_DEPTH = 200

Piece = tuple[dict[str, Any] | list[Any], str | int]
"""where a string is: the object or list that holds it, and its key"""


class Redactor:
    """What is written without what `names` describe, and without the `keys` in any of their forms.

    Args:
        names: of `[collector] redact`.
        keys: secrets that are known by their exact values.
    """

    def __init__(self, names: tuple[str, ...], keys: Iterable[str] = ()) -> None:
        self._finders = finders(names)
        self._keys = known_secrets(keys)
        if self._keys:
            self._finders.insert(0, (MASK, Finder(self._keys)))

    def text(self, text: str) -> str:
        """`text` with what is found replaced by its label, e.g. "[email]"."""
        spans = self._spans(text)
        return _cut(text, 0, spans) if spans else text

    def headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Headers for a record whose body is written decoded."""
        return {name: self.text(value) for name, value in headers.items() if name != "content-encoding"}

    def body(self, body: Body, encoding: str | None) -> Body:
        """The body decoded and redacted. What cannot be read is not written: only how long it was."""
        data = body.data
        if not data:
            return body
        if encoding and encoding.strip().lower() != "identity":
            try:
                data = decode({"content-encoding": encoding}, data).data
            except EncodingError:
                return Body(n_dropped_bytes=len(data) + body.n_dropped_bytes)
        try:
            text = str(data, "utf-8")
        except UnicodeDecodeError:
            # A body cut within a character is still text; anything else is not, and what it holds is unknown.
            text = str(data, "utf-8", "replace")
            if text.count("\ufffd") > 3:
                return Body(n_dropped_bytes=len(data) + body.n_dropped_bytes)
        return Body(text=self._document(text), n_dropped_bytes=body.n_dropped_bytes)

    def _document(self, text: str) -> str:
        start = text[:64].lstrip("\ufeff \t\r\n")
        if start.startswith(("data:", "event:", "id:", "retry:", ":")):
            return self._stream(text)
        value = _parse(text)
        if value is None:
            return self._raw(text)
        changed, value = self._value(value)
        return json.dumps(value) if changed else text

    def _raw(self, text: str) -> str:
        """Text that is no (whole) JSON: escapes could hide what is looked for."""
        return self.text(_ESCAPED_ASCII.sub(_unescape, text) if "\\u00" in text else text)

    # --- JSON

    def _value(self, value: Any, depth: int = 0) -> tuple[bool, Any]:
        """(whether it changed, the value with every string and long number in it redacted)."""
        if isinstance(value, str):
            if len(value) > 512 and _BASE64.match(value):
                masked = mask(value, self._keys) if self._keys else value
                return masked != value, masked
            redacted = self._string(value)
            return redacted != value, redacted
        if isinstance(value, bool) or value is None:
            return False, value
        if isinstance(value, int | float):
            shown = str(value)
            redacted = self.text(shown) if len(shown) >= 7 and isinstance(value, int) else shown
            return (True, redacted) if redacted != shown else (False, value)
        if depth > _MAX_DEPTH:
            return True, "[too deep]"
        if isinstance(value, list):
            items = [self._value(item, depth + 1) for item in value]
            changed = any(item_changed for item_changed, _ in items)
            return changed, [item for _, item in items] if changed else value
        pairs = [(key, self.text(key), *self._value(item, depth + 1)) for key, item in value.items()]
        changed = any(key != new_key or item_changed for key, new_key, item_changed, _ in pairs)
        return changed, {new_key: item for _, new_key, _, item in pairs} if changed else value

    def _string(self, text: str) -> str:
        """A JSON string; one that holds JSON itself (tool arguments) is looked into."""
        if text[:1] in {"{", "["} and "\\" in text:
            value = _parse(text)
            if value is not None:
                changed, value = self._value(value)
                return json.dumps(value) if changed else text
        return self.text(text)

    # --- streams

    def _stream(self, text: str) -> str:
        parts = _EVENT_END.split(text)
        events = [_Event(part) for part in parts[::2]]
        pieces: dict[tuple[Any, ...], list[tuple[_Event, Piece]]] = {}
        for event in events:
            if event.value is None:
                continue
            for key, piece in _pieces(event.value, (), in_delta=False):
                pieces.setdefault(key, []).append((event, piece))
        for found in pieces.values():
            self._redact_pieces(found)
        for event in events:
            self._redact_rest(event)
        rendered = [event.render() for event in events]
        return "".join(text for pair in zip(rendered, [*parts[1::2], ""], strict=True) for text in pair)

    def _redact_pieces(self, found: list[tuple[_Event, Piece]]) -> None:
        texts = [holder[key] for _, (holder, key) in found]  # type: ignore[index]
        whole = "".join(texts)
        redacted = self._string(whole)
        if redacted == whole:
            return
        spans = self._spans(whole)
        if redacted != _cut(whole, 0, spans):  # found only behind escapes: all of it is in the first piece
            spans = [(0, len(whole), redacted)]
        offset = 0
        for (event, (holder, key)), text in zip(found, texts, strict=True):
            new = _cut(text, offset, spans)
            offset += len(text)
            if new != text:
                holder[key] = new  # type: ignore[index]
                event.changed = True

    def _redact_rest(self, event: _Event) -> None:
        if event.value is None:
            event.raw = self._raw(event.raw)
            return
        changed, event.value = self._value(event.value)
        event.changed = event.changed or changed

    def _spans(self, text: str) -> list[tuple[int, int, str]]:
        """What is found, in order, without overlaps: (start, end, label)."""
        taken: list[tuple[int, int, str]] = []
        for label, find in self._finders:
            taken += [(start, end, label) for start, end in find(text)]
        taken.sort(key=lambda span: (span[0], -span[1]))
        spans: list[tuple[int, int, str]] = []
        for start, end, label in taken:
            if spans and start < spans[-1][1]:
                if end > spans[-1][1]:  # overlapping finds are one
                    spans[-1] = (spans[-1][0], end, spans[-1][2])
            else:
                spans.append((start, end, label))
        return spans


class _Event:
    """One server-sent event: its text, and the JSON value of its data where it holds one."""

    def __init__(self, raw: str) -> None:
        self.raw = raw
        self.changed = False
        lines = raw.splitlines() if raw else []
        data = [line[5:].removeprefix(" ") for line in lines if line.startswith("data:")]
        self._others = [line for line in lines if not line.startswith("data:")]
        value = _parse("\n".join(data)) if data else None
        self.value = value if isinstance(value, dict | list) else None

    def render(self) -> str:
        if not self.changed or self.value is None:
            return self.raw
        return "\n".join([*self._others, "data: " + json.dumps(self.value)])


def _pieces(value: Any, key: tuple[Any, ...], *, in_delta: bool) -> list[tuple[tuple[Any, ...], Piece]]:
    """Strings under a "delta", each with the key of the text it continues: its path and the indexes met on the way."""
    found: list[tuple[tuple[Any, ...], Piece]] = []
    if len(key) > _MAX_DEPTH:
        return found
    if isinstance(value, list):
        for number, item in enumerate(value):
            has_index = isinstance(item, dict) and "index" in item
            found += _pieces(item, key if has_index else (*key, number), in_delta=in_delta)
        return found
    if not isinstance(value, dict):
        return found
    key = (*key, *(value.get(name) for name in _INDEX_KEYS if isinstance(value.get(name), str | int)))
    for name, item in value.items():
        inside = in_delta or name == "delta"
        if isinstance(item, str):
            if inside and name not in {"type", "role", "id", "name", "finish_reason", "item_id"}:
                found.append(((*key, name), (value, name)))
        elif isinstance(item, dict | list):
            found += _pieces(item, (*key, name), in_delta=inside)
    return found


def _cut(text: str, offset: int, spans: list[tuple[int, int, str]]) -> str:
    """`text`, which begins at `offset` of the text the spans are of, without the spans; labels are put where they begin."""
    end, kept, at = offset + len(text), [], offset
    for start, stop, label in spans:
        if stop <= offset or start >= end:
            continue
        kept.append(text[max(at, offset) - offset : max(start, offset) - offset])
        if start >= offset:
            kept.append(label)
        at = stop
    kept.append(text[min(max(at, offset), end) - offset :])
    return "".join(kept)


def _parse(text: str) -> Any:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value


def _unescape(match: re.Match[str]) -> str:
    character = chr(int(match.group(1), 16))
    return match.group() if character in '"\\' else character


# What is redacted: where in a text an e-mail address, phone or card number, key, or a pattern of one's own is found.
#
# Each finder gives (start, end) spans. All are linear in the text's length: texts are untrusted and may be megabytes of
# one letter.


Span = tuple[int, int]
PatternFinder = Callable[[str], Iterator[Span]]

_AT_DOMAIN = re.compile(r"@\w[\w-]{0,62}(?:\.[\w-]{1,63}){1,10}")
_LOCAL_PART_END = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]{1,128}\Z")
_DIGIT_GROUPS = re.compile(r"[0-9]{3,}(?:[ .\u00a0-][0-9]{3,})*")
_NOT_DIGIT = re.compile(r"[^0-9]+")
_GROUP = re.compile(r"[0-9]+")
_PHONE_CANDIDATE = re.compile(r"(?<![\w.])(?:\+|\(|00)?\(?[0-9](?:[ ().\-/\u00a0]{0,3}[0-9]){6,16}(?![\w])")
_DATE = re.compile(r"(?:19|20)[0-9]{2}([-/.])[01][0-9]\1[0-3][0-9]")
_MAX_PARSED = 1000
_BEARER = re.compile(r"(?i:\bbearer)[ \t]+([A-Za-z0-9._~+/=-]{16,})")
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----(?:(?!-----END).){0,20000}(?:-----END[A-Z ]{0,40}-----)?", re.DOTALL
)


def find_emails(text: str) -> Iterator[Span]:
    """From every @ with a domain behind it, to the left as far as a local part goes."""
    for match in _AT_DOMAIN.finditer(text):
        at = match.start()
        local = _LOCAL_PART_END.search(text[max(0, at - 128) : at])
        if local is not None:
            yield at - (local.end() - local.start()), match.end()


def find_cards(text: str) -> Iterator[Span]:
    """13 to 19 digits, plain or in groups of at least three, that begin like a card and pass Luhn's check (ISO 7812)."""
    for run in _DIGIT_GROUPS.finditer(text):
        if run.end() - run.start() < 13:
            continue
        groups = [(run.start() + g.start(), run.start() + g.end()) for g in _GROUP.finditer(run.group())]
        first = 0
        while first < len(groups):
            found = _card_from(text, groups, first)
            if found is None:
                first += 1
            else:
                yield groups[first][0], groups[found][1]
                first = found + 1


def _card_from(text: str, groups: list[Span], first: int) -> int | None:
    """Index of the group that ends the longest card beginning with group `first`."""
    digits, found = "", None
    if text[groups[first][0]] not in "23456":
        return None
    for last in range(first, min(first + 6, len(groups))):
        start, end = groups[last]
        if len(digits) + end - start > 19:
            break
        digits += text[start:end]
        if len(digits) >= 13 and _luhn(digits):
            found = last
    return found


def _luhn(digits: str) -> bool:
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = ord(digit) - 48
        if place % 2:
            value = value * 2 - 9 if value > 4 else value * 2
        total += value
    return total % 10 == 0


def find_phones(text: str) -> Iterator[Span]:
    """International numbers, national ones written with separators and a leading 0 or brackets, and valid US numbers
    (phonenumbers has the numbering plans)."""
    candidates = list(_PHONE_CANDIDATE.finditer(text))
    if not candidates:
        return
    import phonenumbers  # its tables are megabytes: only where phones are redacted

    for number_of_candidate, match in enumerate(candidates):
        shown = match.group()
        if _DATE.match(shown):
            continue
        n_digits = len(_NOT_DIGIT.sub("", shown))
        separated = n_digits < len(shown.removeprefix("+"))
        if n_digits < 7:
            continue
        if separated and n_digits >= 9 and shown[0] in "0(+" and n_digits <= 15:
            yield match.span()
            continue
        if number_of_candidate >= _MAX_PARSED:  # a flood of digits: rather too much is taken out than time spent
            yield match.span()
            continue
        try:
            number = phonenumbers.parse(shown, "US")
        except phonenumbers.NumberParseException:
            continue
        if phonenumbers.is_valid_number(number):
            yield match.span()


def find_api_keys(text: str) -> Iterator[Span]:
    for match in KEY_SHAPES.finditer(text):
        yield match.span()
    for match in _BEARER.finditer(text):
        yield match.span(1)
    for match in _PRIVATE_KEY.finditer(text):
        yield match.span()


NAMED: Mapping[str, PatternFinder] = {
    "api_key": find_api_keys,
    "email": find_emails,
    "card": find_cards,
    "phone": find_phones,
}
"""name in `redact` → finder; the order decides where two find the same text"""


def finders(names: tuple[str, ...]) -> list[tuple[str, PatternFinder]]:
    """(label, finder) for the configured names; `regex:PATTERN` is a pattern of one's own."""
    found = [(f"[{name}]", finder) for name, finder in NAMED.items() if name in names]
    for name in names:
        if name.startswith("regex:"):
            found.append(("[redacted]", _by_pattern(re.compile(name.removeprefix("regex:")))))
    return found


def _by_pattern(pattern: re.Pattern[str]) -> PatternFinder:
    def find(text: str) -> Iterator[Span]:
        return (match.span() for match in pattern.finditer(text) if match.end() > match.start())

    return find
