"""Single values of foreign logs: paths to them, instants, numbers, names, token counts. Nothing here raises."""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import Any, NamedTuple

from evalpipe.providers.json_values import parse_document

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EXCEL_EPOCH = datetime(1899, 12, 30, tzinfo=UTC)
_EXCEL_DAYS = (20_000, 80_000)
"""days from 1954 to 2119: as seconds since 1970 they would all be its first day"""
_NUMBER = re.compile(r"\s*[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?\s*")
_DURATION = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ns|us|µs|ms|s|sec|seconds?|m|min)?\s*", re.IGNORECASE)
_UNITS_MS = {"ns": 1e-6, "us": 1e-3, "µs": 1e-3, "ms": 1.0, "m": 60_000.0, "min": 60_000.0}
_FORMS = (
    "%Y-%m-%d %H:%M:%S.%f %Z",
    "%Y-%m-%d %H:%M:%S %Z",
    "%Y-%m-%d %H:%M:%S %z",
    "%Y-%m-%d %H:%M:%S.%f %z %Z",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d",
    "%d %b %Y %H:%M:%S",
    "%b %d, %Y %I:%M:%S %p",
    "%b %d, %Y, %I:%M:%S %p",
    "%b %d %Y %H:%M:%S",
    "%d/%b/%Y:%H:%M:%S %z",
    "%m/%d/%Y %I:%M:%S %p",
    "%m/%d/%Y, %I:%M:%S %p",
    "%m/%d/%Y %I:%M %p",
)
"""Forms of ISO 8601's relatives. A date such as 03/04/2026 without AM or PM may mean two days: it is no time."""


def instant(value: Any) -> datetime | None:
    """An instant (UTC) out of ISO 8601, seconds, milliseconds, microseconds or nanoseconds since 1970, as number or text; None
    where it is none."""
    if type(value) is int and _EXCEL_DAYS[1] <= value < 10**11:
        return _EPOCH + timedelta(seconds=value)
    try:
        return _instant(value)
    except (ValueError, OverflowError, TypeError, IndexError, OSError):
        return None


def _instant(value: Any) -> datetime | None:
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, datetime):
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
    if isinstance(value, date):
        return datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, Mapping):  # MongoDB, protobuf
        if "seconds" in value:
            return _instant(float(value["seconds"]) + float(value.get("nanos") or 0) / 1e9)
        return _instant(next((value[key] for key in ("$date", "$numberLong", "value") if key in value), None))
    if isinstance(value, Decimal):
        value = float(value)
    if isinstance(value, int | float):
        return _since_epoch(value)
    text = str(value).strip()
    if _NUMBER.fullmatch(text):
        return _since_epoch(int(text) if text.isdigit() else float(text))
    return _written(text)


def _since_epoch(value: float) -> datetime | None:
    if not math.isfinite(value) or value <= 0:
        return None
    if _EXCEL_DAYS[0] < value < _EXCEL_DAYS[1]:
        return _EXCEL_EPOCH + timedelta(days=value)
    if value < 1e11:
        return _EPOCH + timedelta(seconds=value)
    if value < 1e14:
        return _EPOCH + timedelta(milliseconds=value)
    return _EPOCH + timedelta(microseconds=value if value < 1e17 else value / 1000)


def _written(text: str) -> datetime | None:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None:
        # Go, Java and ClickHouse write up to nine digits of a second; Python's reader takes six
        short = re.sub(r"(\.\d{6})\d+", r"\1", text)
        short = re.sub(r"\s*(?:UTC|GMT)$", "+00:00", short)
        short = re.sub(r"\s+([+-]\d{2}:?\d{2})(?:\s+\w+)?$", r"\1", short)
        try:
            found = datetime.fromisoformat(short)
        except ValueError:
            found = _formed(text)
    if found is None:
        return None
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def _formed(text: str) -> datetime | None:
    for form in _FORMS:
        try:
            found = datetime.strptime(text, form)  # noqa: DTZ007 - the zone is added below
        except ValueError:
            continue
        return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
    if re.search(r"[A-Za-z]{3}", text):
        try:
            return parsedate_to_datetime(text)
        except (ValueError, TypeError):
            return None
    return None


def number(value: Any) -> float | None:
    """A finite number, or the number a text holds ("1,234.5", "$0.01"); None where it is none."""
    if value is None or isinstance(value, bool):
        return None
    if isinstance(value, str):
        text = value.strip().lstrip("$€£").replace(",", "").rstrip("%")
        if not _NUMBER.fullmatch(text):
            return None
        value = text
    elif not isinstance(value, int | float | Decimal):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def count(value: Any) -> int | None:
    """A whole number from 0 on that a column of counts can hold."""
    found = number(value)
    return None if found is None or not 0 <= found <= 2**53 else int(found)


def milliseconds_of(value: Any, *, unit_ms: float = 1.0) -> float | None:
    """A duration in milliseconds: a number in units of `unit_ms`, or a text with its unit ("0.9s", "850 ms")."""
    if isinstance(value, timedelta):
        return value.total_seconds() * 1000
    if isinstance(value, str):
        found = _DURATION.fullmatch(value)
        if found is None:
            return None
        unit = (found[2] or "").lower()
        return float(found[1]) * (_UNITS_MS.get(unit, 1000.0) if unit else unit_ms)
    plain = number(value)
    return None if plain is None or plain < 0 else plain * unit_ms


def name(value: Any) -> str | None:
    """A text, number or truth value as a name; the id of an object that has one; None for what is empty or no name."""
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int | float | Decimal) and not (isinstance(value, float) and not math.isfinite(value)):
        return str(int(value)) if float(value).is_integer() else str(value)
    if isinstance(value, Mapping):
        for key in ("user_id", "userId", "id", "uuid", "name", "email", "label"):
            found = value.get(key)
            if isinstance(found, str | int) and not isinstance(found, bool) and found != "":
                return str(found)
        return None
    return None if value is None or isinstance(value, list | tuple | dict) else str(value)


def truth(value: Any) -> bool | None:
    """True or false, as a word or a number, too."""
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return {
            "true": True,
            "t": True,
            "1": True,
            "yes": True,
            "false": False,
            "f": False,
            "0": False,
            "no": False,
        }.get(value.strip().lower())
    return bool(value) if isinstance(value, int) and value in (0, 1) else None


# Paths into documents of other tools: `a.b[0].c`, through flat dotted keys, other spellings and JSON kept as text.


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
        return parse_document(value.encode("utf-8", "surrogatepass"))
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


# Token counts under every name that vendors and tools give them.


class Tokens(NamedTuple):
    """Counts as the store has them: `input` is the whole input, `output` the whole output; None: not reported."""

    input: int | None = None
    cached: int | None = None
    cache_write: int | None = None
    output: int | None = None
    reasoning: int | None = None


NO_TOKENS = Tokens()
INPUT = (
    "prompt_tokens", "input_tokens", "inputTokens", "promptTokens", "input", "prompt", "promptTokenCount", "inputTokenCount",
    "prompt_token_count", "input_token_count", "prompt_token", "prompt_eval_count", "tokens_in", "billed_units.input_tokens",
    "tokens.input_tokens", "inputTextTokenCount", "num_input_tokens", "prompt_n", "n_input_tokens",
)  # fmt: skip
OUTPUT = (
    "completion_tokens", "output_tokens", "outputTokens", "completionTokens", "output", "completion", "candidatesTokenCount",
    "outputTokenCount", "completion_token_count", "output_token_count", "candidates_token_count", "completion_token",
    "eval_count", "tokens_out", "billed_units.output_tokens", "tokens.output_tokens", "num_output_tokens", "generated_tokens",
    "response_tokens", "predicted_n", "n_output_tokens",
)  # fmt: skip
CACHED = (
    "prompt_tokens_details.cached_tokens", "input_tokens_details.cached_tokens", "cache_read_input_tokens", "cached_tokens",
    "input_cached_tokens", "input_cache_read", "cachedContentTokenCount", "cachedInputTokens", "cacheReadInputTokens",
    "prompt_cache_hit_tokens", "input_tokens_cache_read", "input_token_details.cache_read", "cache_read_tokens",
    "cachedPromptTokens", "inputTokenDetails.cacheReadTokens", "cached_input_tokens", "prompt_details.cache_read",
    "prompt_cached_tokens", "cache_read_tokens", "numRequestsCached",
)  # fmt: skip
WRITTEN = (
    "cache_creation_input_tokens", "prompt_tokens_details.cache_creation_tokens", "prompt_tokens_details.cache_write_tokens",
    "input_cache_creation", "cacheWriteInputTokens", "input_tokens_cache_write", "input_token_details.cache_creation",
    "inputTokenDetails.cacheWriteTokens", "cache_write_tokens", "cache_creation_tokens", "prompt_cache_creation_tokens",
    "prompt_details.cache_write",
)  # fmt: skip
REASONING = (
    "completion_tokens_details.reasoning_tokens", "output_tokens_details.reasoning_tokens", "reasoning_tokens",
    "output_reasoning_tokens", "output_reasoning", "thoughtsTokenCount", "reasoningTokens", "output_token_details.reasoning",
    "outputTokenDetails.reasoningTokens", "completion_details.reasoning", "completion_reasoning_tokens",
    "output_tokens_details.thinking_tokens",
)  # fmt: skip


def read_tokens(usage: Any, *, apart: bool = False) -> Tokens:
    """The counts of a usage object.

    Args:
        usage: the object, or its JSON text; anything else counts nothing.
        apart: cached, written and reasoning tokens are not part of input and output (Langfuse's buckets).
    """
    usage = opened(usage)
    if not isinstance(usage, Mapping) or not usage:
        return Tokens()
    found = Tokens(*(_first(usage, names) for names in (INPUT, CACHED, WRITTEN, OUTPUT, REASONING)))
    if apart or _counts_apart(usage, found):
        return found._replace(
            input=_sum(found.input, found.cached, found.cache_write),
            output=_sum(found.output, found.reasoning) if apart else found.output,
        )
    if "thoughtsTokenCount" in usage:  # Gemini counts thoughts beside the candidates
        return found._replace(output=_sum(found.output, found.reasoning))
    return found


def _counts_apart(usage: Mapping[str, Any], found: Tokens) -> bool:
    """Whether cached and written tokens come on top of the input: where a total is given, by its sum; else by the names.
    Anthropic's `input_tokens` are those that no cache was asked about; so are Bedrock's."""
    if not (found.cached or found.cache_write) or found.input is None:
        return False
    total = _first(usage, ("total_tokens", "totalTokens", "total"))
    together = found.input + (found.output or 0)
    if total is not None and total in {together, together + (found.cached or 0) + (found.cache_write or 0)}:
        return total != together
    names = ("cache_read_input_tokens", "cache_creation_input_tokens", "cacheReadInputTokens", "cacheWriteInputTokens",
             "input_tokens_cache_read", "input_tokens_cache_write")  # fmt: skip
    return any(name in usage for name in names) and "prompt_tokens" not in usage


def _first(usage: Mapping[str, Any], names: tuple[str, ...]) -> int | None:
    for name in names:
        found = count(usage.get(name)) if "." not in name else count(find(usage, name))
        if found is not None:
            return found
    return None


def _sum(*counts: int | None) -> int | None:
    known = [one for one in counts if one is not None]
    return sum(known) if known else None
