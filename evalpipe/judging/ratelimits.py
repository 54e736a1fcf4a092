"""Rate-limit headers of both vendors → what the limiter understands, and how long a 429 wants us to wait. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from evalpipe.judging.limiter import Reported

DEFAULT_PAUSE_S = 5.0
"""A 429 that names no reset."""
LONGEST_PAUSE_S = 600.0

_ANTHROPIC = "anthropic-ratelimit-"
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def read_limits(headers: Mapping[str, str]) -> dict[str, Reported]:
    """The limits an answer reports, by kind; header names in lower case. OpenAI's one token limit counts input and
    output together: it is taken as the input limit, which it mostly is for a judge."""
    found: dict[str, Reported] = {}
    for kind, name in (("requests", "requests"), ("input_tokens", "input-tokens"), ("output_tokens", "output-tokens")):
        limit, left = (_number(headers.get(f"{_ANTHROPIC}{name}-{what}")) for what in ("limit", "remaining"))
        if limit is not None or left is not None:
            found[kind] = Reported(limit=limit, remaining=left)
    for kind, name in (("requests", "requests"), ("input_tokens", "tokens")):
        limit, left = (_number(headers.get(f"x-ratelimit-{what}-{name}")) for what in ("limit", "remaining"))
        if kind not in found and (limit is not None or left is not None):
            found[kind] = Reported(limit=limit, remaining=left)
    return found


def read_retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds until the server wants to be asked again: `retry-after-ms`, `retry-after` (seconds or an HTTP date), else
    the latest reset of a limit of which nothing is left. None: not told."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return _bounded(milliseconds / 1000)
    text = headers.get("retry-after")
    if text:
        seconds = _number(text)
        if seconds is not None:
            return _bounded(seconds)
        try:
            when = parsedate_to_datetime(text)
        except ValueError:
            when = None
        if when is not None:
            return _bounded((when.replace(tzinfo=when.tzinfo or UTC) - now).total_seconds())
    waits = [wait for wait in (_reset(headers, name, now) for name in headers if _is_spent(headers, name)) if wait]
    return _bounded(max(waits)) if waits else None


def _is_spent(headers: Mapping[str, str], name: str) -> bool:
    if "ratelimit" not in name or "remaining" not in name:
        return False
    left = _number(headers[name])
    return left is not None and left <= 0


def _reset(headers: Mapping[str, str], remaining_name: str, now: datetime) -> float | None:
    text = headers.get(remaining_name.replace("remaining", "reset"))
    if not text:
        return None
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return sum(float(number) * _SECONDS[unit] for number, unit in parts)
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        return None
    return (when.replace(tzinfo=when.tzinfo or UTC) - now).total_seconds()


def _number(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that `retry-after` names, however many; None: not named in seconds."""
    return _number(headers.get("retry-after"))


def _bounded(seconds: float) -> float:
    return min(max(seconds, 0.0), LONGEST_PAUSE_S)
