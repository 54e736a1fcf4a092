"""Yielding to the users: no copies while the provider says that little of a shared limit is left."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime

LOW_SHARE = 0.1
"""below this share of a limit the copies wait"""
_MAX_PAUSE_S = 60.0
_DURATION = re.compile(r"([0-9]*\.?[0-9]+)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def pause_s(status: int | None, headers: Mapping[str, str], now: float) -> float:
    """How long to hold copies back after an answer with these headers, in seconds; `now` is seconds since the epoch."""
    pause = 0.0
    if status == 429:
        pause = _seconds(headers.get("retry-after", "1"), now)
    for name, value in headers.items():
        remaining_of = _split(name)
        if remaining_of is None:
            continue
        limit = _number(headers.get(remaining_of[0]))
        remaining = _number(value)
        if limit and remaining is not None and remaining < LOW_SHARE * limit:
            pause = max(pause, _seconds(headers.get(remaining_of[1], "1"), now))
    return min(pause, _MAX_PAUSE_S)


def _split(name: str) -> tuple[str, str] | None:
    """The names of the limit and the reset that belong to a "remaining" header."""
    if name.startswith("x-ratelimit-remaining-"):
        kind = name.removeprefix("x-ratelimit-remaining-")
        return f"x-ratelimit-limit-{kind}", f"x-ratelimit-reset-{kind}"
    if name.startswith("anthropic-ratelimit-") and name.endswith("-remaining"):
        stem = name.removesuffix("-remaining")
        return f"{stem}-limit", f"{stem}-reset"
    return None


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _seconds(text: str, now: float) -> float:
    """A number of seconds, a duration ("6m0s", OpenAI), or an instant (RFC 3339, Anthropic)."""
    plain = _number(text)
    if plain is not None:
        return max(0.0, plain)
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return float(sum(float(number) * _SECONDS[unit] for number, unit in parts))
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return 1.0
    return max(0.0, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now)
