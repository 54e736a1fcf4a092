"""Three token buckets: requests, input tokens, output tokens. Pure: it is told the time and answers how long to wait.

A call reserves what it is expected to use before it is sent and settles what it used afterwards, so the rate that is kept
is that of true usage, whatever the estimates. The provider's headers correct the limits (never above the configured ones)
and what is left of them (others may use the same key).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

BURST_S = 1.0
"""A bucket holds one second of its rate. Providers' own buckets hold more; the smaller one here is what keeps a full start
or a wrong estimate from ever reaching theirs."""

KINDS = ("requests", "input_tokens", "output_tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class Need:
    """What one call uses of each limit."""

    requests: float = 1.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0

    def of(self, kind: str) -> float:
        return float(getattr(self, kind))


@dataclass(frozen=True, kw_only=True, slots=True)
class Reported:
    """What an answer's headers said of one limit: per minute, and what is left now; None = not told."""

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
    _used: deque[tuple[float, Need]] = field(init=False)

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

    def reserve(self, now: float, need: Need) -> float:
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

    def settle(self, now: float, reserved: Need, used: Need) -> None:
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
