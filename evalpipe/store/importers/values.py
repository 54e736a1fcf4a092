"""Single values of foreign logs: instants, numbers and names, however they are written. Nothing here raises."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from typing import Any

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
