"""What is redacted: where in a text an e-mail address, phone or card number, key, or a pattern of one's own stands.

Each finder gives (start, end) spans. All are linear in the text's length: texts are untrusted and may be megabytes of one
letter.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from evalpipe.core.secrets import KEY_SHAPES

Span = tuple[int, int]
Finder = Callable[[str], Iterator[Span]]

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
    (phonenumbers knows the numbering plans)."""
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


NAMED: Mapping[str, Finder] = {
    "api_key": find_api_keys,
    "email": find_emails,
    "card": find_cards,
    "phone": find_phones,
}
"""name in `redact` → finder; the order decides where two find the same text"""


def finders(names: tuple[str, ...]) -> list[tuple[str, Finder]]:
    """(label, finder) for the configured names; `regex:PATTERN` is a pattern of one's own."""
    found = [(f"[{name}]", finder) for name, finder in NAMED.items() if name in names]
    for name in names:
        if name.startswith("regex:"):
            found.append(("[redacted]", _by_pattern(re.compile(name.removeprefix("regex:")))))
    return found


def _by_pattern(pattern: re.Pattern[str]) -> Finder:
    def find(text: str) -> Iterator[Span]:
        return (match.span() for match in pattern.finditer(text) if match.end() > match.start())

    return find
