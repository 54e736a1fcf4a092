"""Texts and numbers as people read them: untrusted text made safe to print, numbers with their units."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
# C0 and C1 controls but tab and newline, DEL, and the bidi controls that can reorder a line shown to a person.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

BLANK = r"[\s\p{Z}\p{C}]*"
"""what holds nothing to read: spaces, separators, control and format characters. RE2's syntax, as Arrow and DuckDB read it"""


def well_formed(text: str) -> str:
    """`text` with every lone surrogate replaced by U+FFFD, so that it can be encoded as UTF-8 (Unicode 3.9, U+FFFD)."""
    if text.isascii() or _LONE_SURROGATE.search(text) is None:
        return text
    return _LONE_SURROGATE.sub("\ufffd", text)


def joined(text: str) -> str:
    """`text` with adjacent surrogate halves made one character, and lone ones replaced by U+FFFD."""
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

    Beginning and end are kept: instructions are at the start and conclusions at the end.
    """
    if len(text) <= limit:
        return text, 0
    head = (limit + 1) // 2
    tail = limit - head
    n_cut = len(text) - limit
    return f"{text[:head]}\n[… {n_cut:,} characters cut …]\n{text[len(text) - tail :]}", n_cut


_KINDS = (
    ("integer", "a whole number"),
    ("number", "a number"),
    ("boolean", "true or false"),
    ("string", "a text in quotes"),
    ("list", "a list: [ … ]"),
    ("tuple", "a list: [ … ]"),
    ("dictionary", "a table"),
)
"""pydantic's names of what a value must be, and the words of a person who writes TOML or a command line"""


def mistake_in_words(message: str) -> str:
    """What is allowed, from pydantic's message on one value.

    >>> mistake_in_words("Input should be a valid integer, unable to parse string as an integer")
    'must be a whole number'
    """
    message = message.removeprefix("Value error, ").replace("Input should be", "must be").partition(", unable to ")[0]
    for kind, words in _KINDS:
        message = message.replace(f"must be a valid {kind}", f"must be {words}")
    return message


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


# Numbers → the text in reports and messages. Pure; every rule here is a row of a table test.
#
# One metric's cells share one `NumberFormat`, so that control, treatment, difference and interval have the same unit
# and as many decimals as the interval's width deserves: two significant digits of its half width, never more.


NBSP = "\u00a0"
MINUS = "\u2212"
MISSING = "–"
MAX_UNIT = 16
"""characters of a metric's own unit that follow a number"""


def format_number(value: float, decimals: int, *, signed: bool = False) -> str:
    """`value` with thousands separators, a true minus sign, never "-0"; `signed` puts a plus before what is above zero."""
    text = f"{abs(value):,.{decimals}f}"
    is_zero = not any(digit in "123456789" for digit in text)
    if is_zero:
        return text
    return f"{MINUS if value < 0 else '+' if signed else ''}{text}"


def decimals_for(half_width: float | None, largest: float, limit: int) -> int:
    """Decimals that show two significant digits of `half_width`; without one, three of the largest value. 0..`limit`."""
    if half_width is not None and half_width > 0:
        digits = 1 - math.floor(math.log10(half_width))
    elif largest > 0:
        digits = 2 - math.floor(math.log10(largest))
    else:
        digits = 0
    return max(0, min(limit, digits))


@dataclass(frozen=True, kw_only=True, slots=True)
class NumberFormat:
    """How the numbers of one metric are written: multiplied by `factor`, `decimals` places, between prefix and suffix."""

    factor: float = 1.0
    decimals: int = 2
    prefix: str = ""
    suffix: str = ""
    difference_suffix: str | None = None

    def value(self, value: float | None) -> str:
        return MISSING if value is None else self._put(value, self.suffix, signed=False)

    def difference(self, value: float | None) -> str:
        """A signed difference in the metric's unit ("points" for shares)."""
        suffix = self.suffix if self.difference_suffix is None else self.difference_suffix
        return MISSING if value is None else self._put(value, suffix, signed=True)

    def interval(self, low: float | None, high: float | None) -> str:
        """ "low to high", the unit once; MISSING for a bound that is not there."""
        suffix = self.suffix if self.difference_suffix is None else self.difference_suffix
        if low is None and high is None:
            return MISSING
        bounds = [MISSING if x is None else self._put(x, "", signed=True) for x in (low, high)]
        return f"{bounds[0]} to {bounds[1]}{suffix}"

    def value_interval(self, low: float | None, high: float | None) -> str:
        """The interval of a value (not of a difference): "low to high" with the value's own unit, unsigned."""
        if low is None or high is None:
            return MISSING
        return f"{self._put(low, '', signed=False)} to {self._put(high, self.suffix, signed=False)}"

    def _put(self, value: float, suffix: str, *, signed: bool) -> str:
        number = format_number(value * self.factor, self.decimals, signed=signed)
        sign, digits = (number[0], number[1:]) if number[0] in f"+{MINUS}" else ("", number)
        return f"{sign}{self.prefix}{digits}{suffix}"


_UNITS: dict[str, tuple[float, int, str, str, str | None]] = {
    # unit: factor, most decimals, prefix, suffix, suffix of a difference
    "ratio": (100.0, 3, "", f"{NBSP}%", f"{NBSP}points"),
    "usd": (1.0, 8, "$", "", None),
    "tokens": (1.0, 1, "", "", None),
    "tokens_per_second": (1.0, 2, "", f"{NBSP}tok/s", None),
    "score_10": (1.0, 2, "", "", None),
    "score_1": (1.0, 3, "", "", None),
}


def number_format(unit: str, *, largest: float = 0.0, half_width: float | None = None) -> NumberFormat:
    """The format for values of `unit` up to `largest` whose interval's half width is `half_width` (None: unknown).

    Latencies from ten seconds on are written in seconds. Unknown units follow the number as they are.
    """
    if unit == "ms":
        # Tenths of a millisecond are noise in latencies of hundreds of milliseconds.
        whole = 1 if largest < 100 else 0
        factor, limit, suffix = (0.001, 2, f"{NBSP}s") if largest >= 10_000 else (1.0, whole, f"{NBSP}ms")
        prefix, difference_suffix = "", None
    else:
        short = unit if len(unit) <= MAX_UNIT else f"{unit[: MAX_UNIT - 1]}…"
        default = (1.0, 4, "", f"{NBSP}{short}" if unit else "", None)
        factor, limit, prefix, suffix, difference_suffix = _UNITS.get(unit, default)
    decimals = decimals_for(None if half_width is None else half_width * factor, largest * factor, limit)
    return NumberFormat(
        factor=factor, decimals=decimals, prefix=prefix, suffix=suffix, difference_suffix=difference_suffix
    )


def percent_format(half_width: float | None = None, largest: float = 0.0) -> NumberFormat:
    """For relative differences and other shares that are written as percentages, differences included."""
    decimals = decimals_for(None if half_width is None else half_width * 100, largest * 100, 2)
    return NumberFormat(factor=100.0, decimals=decimals, suffix=f"{NBSP}%")


def format_percent(share: float | None, decimals: int = 0) -> str:
    """A share in 0..1 as a percentage; what is not quite none or all is never written as 0 or 100."""
    if share is None:
        return MISSING
    text = format_number(share * 100, decimals)
    if share > 0 and not any(digit in "123456789" for digit in text):
        return f"<{NBSP}{format_number(10**-decimals, decimals)}{NBSP}%"
    if share < 1 and text == format_number(100, decimals):
        return f">{NBSP}{format_number(100 - 10**-decimals, decimals)}{NBSP}%"
    return f"{text}{NBSP}%"


def format_count(count: float | None) -> str:
    return MISSING if count is None else format_number(count, 0)


def format_counted(count: float | None, noun: str) -> str:
    """A count with its noun in the right number: "1 pair", "2,400 pairs"."""
    return f"{format_count(count)} {noun}{'' if count == 1 else 's'}"


def sentence_case(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def full_sentence(text: str) -> str:
    """Capital first, full stop last; a number and its unit are never parted."""
    shown = together(sentence_case(text.strip()))
    return shown if not shown or shown[-1] in ".!?…" else f"{shown}."


def within_sentence(label: str) -> str:
    """A label as written within a sentence: "Error rate" → "error rate"; "GPU hours" and "p99" stay."""
    return label[:1].lower() + label[1:] if label[1:2].islower() else label


_PARTED = re.compile(r"(?<=\d) (?=(?:%|ms|s|points?)(?!\w))")


def together(text: str) -> str:
    """The text with an unbreakable space between each number and its unit."""
    return _PARTED.sub(NBSP, text)


def format_p(p_value: float | None) -> str:
    """A p-value as statisticians print it: three decimals below 0.1, "< 0.001" under that."""
    if p_value is None:
        return MISSING
    if p_value < 0.001:
        return f"<{NBSP}0.001"
    return f"{p_value:.3f}" if p_value < 0.1 else f"{p_value:.2f}"


def p_clause(p_value: float | None) -> str:
    """A p-value within a sentence: "p = 0.03", "p < 0.001"."""
    text = format_p(p_value)
    return f"p{NBSP}{text}" if text.startswith("<") else f"p{NBSP}={NBSP}{text}"


def format_usd(amount: float | None) -> str:
    """An amount of money: cents from a dollar on, two significant digits below."""
    if amount is None:
        return MISSING
    decimals = 2 if abs(amount) >= 1 or amount == 0 else min(8, max(2, 1 - math.floor(math.log10(abs(amount)))))
    number = format_number(abs(amount), decimals)
    return f"{MINUS if amount < 0 else ''}${number}"


def format_instant(instant: str | None) -> str:
    """An ISO 8601 instant as "23 Nov 2026, 13:33 UTC"; what is not an instant stays as it is."""
    if not instant:
        return MISSING
    at = _parsed(instant)
    if at is None:
        return instant
    if at.year == 1970:  # imports without a time are counted up from the epoch, to keep their order
        return "time not recorded"
    return f"{at.day} {_MONTHS[at.month - 1]} {at.year}, {at:%H:%M} UTC"


def _parsed(instant: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(instant)
    except ValueError:
        return None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def format_period(since: str, until: str) -> str:
    """Two ISO 8601 instants as a period: the day once where both are of one day, seconds where both are of one minute.

    >>> format_period("2026-11-28T04:30:02Z", "2026-11-28T04:30:41Z")
    '28 Nov 2026, 04:30:02 to 04:30:41 UTC'
    """
    start, end = _parsed(since), _parsed(until)
    if start is None or end is None or start.date() != end.date() or start.year == 1970:
        return f"{format_instant(since)} to {format_instant(until)}"
    same_minute = (start.hour, start.minute) == (end.hour, end.minute)
    clock = "%H:%M:%S" if same_minute and (start.second or end.second) else "%H:%M"
    return f"{format_day(since)}, {start.strftime(clock)} to {end.strftime(clock)} UTC"


def format_period_of_days(since: str, until: str) -> str:
    """Two ISO 8601 instants as days, what they share named once: "23 Nov 2026", "2 to 12 Mar 2026", "28 Feb to 2 Mar 2026"."""
    start, end = format_day(since), format_day(until)
    if start == end:
        return start
    if start[-8:] == end[-8:]:
        return f"{start[:-9]} to {end}"
    return f"{start.removesuffix(end[-5:])} to {end}"


def format_day(instant: str | None) -> str:
    """The day of an ISO 8601 instant: "23 Nov 2026"."""
    text = format_instant(instant)
    return text.split(",")[0]


# Not strftime("%b"): month names would follow the machine's locale and the report would differ between machines.
_INSTANT = r"\b\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)?(?!\w)"
_ISO = re.compile(rf"(?<!--since )(?<!--until )({_INSTANT})(?: to ({_INSTANT}))?")


def readable_instants(text: str) -> str:
    """A sentence with its ISO 8601 instants written as people write them; in a command (`--since …`) they stay as they are."""

    def readable(match: re.Match[str]) -> str:
        since, until = match.groups()
        return format_instant(since) if until is None else format_period(since, until)

    return _ISO.sub(readable, text)


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
