"""Rate limits: three token buckets, the limits that providers report in headers, and how long to wait. Pure.

A call reserves what it is expected to use before it is sent and settles what it used afterwards, so the rate that is kept
is that of true usage, whatever the estimates. The provider's headers correct the limits (never above the configured ones)
and what is left of them (others may use the same key).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

BURST_S = 1.0
"""A bucket holds one second of its rate. Providers' own buckets hold more; the smaller one here is what keeps a full start
or a wrong estimate from ever reaching theirs."""

KINDS = ("requests", "input_tokens", "output_tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenReservation:
    """What one call uses of each limit."""

    requests: float = 1.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0

    def of(self, kind: str) -> float:
        return float(getattr(self, kind))


@dataclass(frozen=True, kw_only=True, slots=True)
class Reported:
    """One limit as a response's headers report it: per minute, and what is left now; None = not reported."""

    limit: float | None = None
    remaining: float | None = None


@dataclass(slots=True)
class _Bucket:
    configured: float
    per_minute: float
    level: float
    at: float
    in_flight: float = 0.0

    @property
    def capacity(self) -> float:
        return self.per_minute / 60.0 * BURST_S

    def refill(self, now: float) -> None:
        if now > self.at:
            self.level = min(self.capacity, self.level + (now - self.at) * self.per_minute / 60.0)
            self.at = now

    def wait_s(self, need: float) -> float:
        """Until the level holds `need`; a need above the capacity waits for a full bucket and leaves a debt."""
        missing = min(need, self.capacity) - self.level
        return max(missing, 0.0) / (self.per_minute / 60.0)


@dataclass(slots=True)
class Limiter:
    """`reserve`, then `settle`; both in the same unit of time as `now` (monotonic seconds)."""

    requests_per_minute: float
    input_tokens_per_minute: float
    output_tokens_per_minute: float
    now: float = 0.0
    paused_until: float = field(default=float("-inf"), init=False)
    _buckets: dict[str, _Bucket] = field(init=False)
    _used: deque[tuple[float, TokenReservation]] = field(init=False)

    def __post_init__(self) -> None:
        self._buckets = {}
        for kind in KINDS:
            rate = float(getattr(self, f"{kind}_per_minute"))
            if not rate > 0:
                raise ValueError(f"{kind}_per_minute must be positive, got {rate}")
            bucket = _Bucket(configured=rate, per_minute=rate, level=0.0, at=self.now)
            bucket.level = bucket.capacity
            self._buckets[kind] = bucket
        self._used = deque()

    def reserve(self, now: float, need: TokenReservation) -> float:
        """0.0: reserved, go. Else: seconds to wait before asking again (nothing is reserved)."""
        wait = max(self.paused_until - now, 0.0)
        for kind, bucket in self._buckets.items():
            bucket.refill(now)
            wait = max(wait, bucket.wait_s(need.of(kind)))
        if wait > 0:
            return wait
        for kind, bucket in self._buckets.items():
            bucket.level -= need.of(kind)
            bucket.in_flight += need.of(kind)
        return 0.0

    def settle(self, now: float, reserved: TokenReservation, used: TokenReservation) -> None:
        """Replace what was reserved by what was used. A call that never counted settles with zeros."""
        for kind, bucket in self._buckets.items():
            bucket.refill(now)
            bucket.level = min(bucket.capacity, bucket.level + reserved.of(kind) - used.of(kind))
            bucket.in_flight = max(0.0, bucket.in_flight - reserved.of(kind))
        self._used.append((now, used))

    def observe(self, now: float, reported: Mapping[str, Reported]) -> None:
        """Follow an answer's headers."""
        for kind, report in reported.items():
            bucket = self._buckets[kind]
            bucket.refill(now)
            if report.limit is not None and report.limit > 0:
                bucket.per_minute = min(bucket.configured, report.limit)
                bucket.level = min(bucket.level, bucket.capacity)
            if report.remaining is not None:
                # Output is counted by the provider as it is generated, so what is in flight is yet to be taken from it.
                pending = bucket.in_flight if kind == "output_tokens" else 0.0
                bucket.level = min(bucket.level, max(report.remaining - pending, -bucket.capacity))

    def pause(self, now: float, seconds: float) -> None:
        """Send nothing for a while: a 429 named its reset."""
        self.paused_until = max(self.paused_until, now + max(seconds, 0.0))

    def is_paused(self, now: float) -> bool:
        """Whether a 429 is being waited out."""
        return self.paused_until > now

    def limits(self) -> dict[str, float]:
        """The limits in force, per minute."""
        return {kind: bucket.per_minute for kind, bucket in self._buckets.items()}

    def share_in_use(self, now: float, *, window_s: float = 30.0) -> tuple[str, float]:
        """The limit used most over the last `window_s` seconds, and the share of it that was used."""
        while self._used and self._used[0][0] < now - window_s:
            self._used.popleft()
        span = min(window_s, max(now - self.now, 1.0))
        shares = {
            kind: sum(need.of(kind) for _, need in self._used) / (bucket.per_minute / 60.0 * span)
            for kind, bucket in self._buckets.items()
        }
        kind = max(shares, key=lambda name: shares[name])
        return kind, shares[kind]


# Rate-limit headers of both vendors → the limiter's terms, and the wait that a 429 asks for. Pure.


DEFAULT_PAUSE_S = 5.0
"""A 429 that names no reset."""
LONGEST_PAUSE_S = 600.0

_ANTHROPIC = "anthropic-ratelimit-"
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def read_limits(headers: Mapping[str, str]) -> dict[str, Reported]:
    """The limits an answer reports, by kind; header names in lower case. OpenAI's one token limit counts input and
    output together: it is taken as the input limit, which it mostly is for a judge."""
    given = dict(headers.items())  # an SDK's headers are searched from the first to the last for each name
    found: dict[str, Reported] = {}
    for kind, name in (("requests", "requests"), ("input_tokens", "input-tokens"), ("output_tokens", "output-tokens")):
        limit, left = (_number(given.get(f"{_ANTHROPIC}{name}-{what}")) for what in ("limit", "remaining"))
        if limit is not None or left is not None:
            found[kind] = Reported(limit=limit, remaining=left)
    for kind, name in (("requests", "requests"), ("input_tokens", "tokens")):
        limit, left = (_number(given.get(f"x-ratelimit-{what}-{name}")) for what in ("limit", "remaining"))
        if kind not in found and (limit is not None or left is not None):
            found[kind] = Reported(limit=limit, remaining=left)
    return found


def read_retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds until the server accepts calls again: `retry-after-ms`, `retry-after` (seconds or an HTTP date), else
    the latest reset of a limit of which nothing is left. None: not reported."""
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


# Yielding to the users: no shadow requests while the provider reports that little of a shared limit is left.


LOW_SHARE = 0.1
"""below this share of a limit shadow requests wait"""
_MAX_PAUSE_S = 60.0
_RESET_DURATION = re.compile(r"([0-9]*\.?[0-9]+)(ms|s|m|h|d)")


def retry_delay_s(status: int | None, headers: Mapping[str, str], now: float) -> float:
    """How long to hold shadow requests back after a response with these headers, in seconds; `now` is seconds since the epoch."""
    pause = 0.0
    if status == 429:
        pause = _seconds(headers.get("retry-after", "1"), now)
    for name, value in headers.items():
        remaining_of = _split(name)
        if remaining_of is None:
            continue
        limit = _header_number(headers.get(remaining_of[0]))
        remaining = _header_number(value)
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


def _header_number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def _seconds(text: str, now: float) -> float:
    """A number of seconds, a duration ("6m0s", OpenAI), or an instant (RFC 3339, Anthropic)."""
    plain = _header_number(text)
    if plain is not None:
        return max(0.0, plain)
    parts = _RESET_DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text:
        return float(sum(float(number) * _SECONDS[unit] for number, unit in parts))
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return 1.0
    return max(0.0, (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now)
