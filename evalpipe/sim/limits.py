"""Provider limits: token buckets that refill all the time, told the time by their caller."""

from __future__ import annotations

import math
from dataclasses import dataclass

from evalpipe.sim.settings import Limits

CAPACITY_MINUTES = 1 / 6
"""A bucket holds one sixth of its minute: bursts of ten seconds' worth pass."""


class Bucket:
    """`per_minute` tokens a minute; the level may go below 0 by what was spent after it was let through."""

    def __init__(self, per_minute: float, now: float) -> None:
        self.per_minute = per_minute
        self.capacity = per_minute * CAPACITY_MINUTES
        self._level = self.capacity
        self._at = now

    def level(self, now: float) -> float:
        self._level = min(self.capacity, self._level + max(now - self._at, 0) * self.per_minute / 60)
        self._at = max(now, self._at)
        return self._level

    def wait(self, amount: float, now: float) -> float:
        """Seconds until `amount` is there; more than the bucket holds is let through when it is full."""
        missing = min(amount, self.capacity) - self.level(now)
        return 0.0 if missing <= 1e-9 else missing * 60 / self.per_minute

    def spend(self, amount: float, now: float) -> None:
        self._level = self.level(now) - amount

    def seconds_to_full(self, now: float) -> float:
        return (self.capacity - self.level(now)) * 60 / self.per_minute


@dataclass(frozen=True, kw_only=True, slots=True)
class Meter:
    """One limit as its headers tell it. `reset_s`: seconds until it is whole again."""

    limit: int
    remaining: int
    reset_s: float


class Limiter:
    """The three limits of one model."""

    def __init__(self, limits: Limits, now: float) -> None:
        self._buckets = {
            name: Bucket(rate, now)
            for name, rate in (
                ("requests", limits.requests),
                ("input-tokens", limits.input_tokens),
                ("output-tokens", limits.output_tokens),
            )
            if rate is not None
        }

    def admit(self, input_tokens: int, now: float) -> tuple[str, float] | None:
        """Take one request and its input; or the limit in the way, and the seconds until it is not."""
        # Output is counted as it is generated, so a request only needs that some is left.
        needs = {"requests": 1.0, "input-tokens": float(input_tokens), "output-tokens": 1.0}
        waits = {name: bucket.wait(needs[name], now) for name, bucket in self._buckets.items()}
        worst = max(waits, key=lambda name: waits[name], default=None)
        if worst is not None and waits[worst] > 0:
            return worst, waits[worst]
        for name, bucket in self._buckets.items():
            if name != "output-tokens":
                bucket.spend(needs[name], now)
        return None

    def generated(self, tokens: float, now: float) -> None:
        bucket = self._buckets.get("output-tokens")
        if bucket is not None:
            bucket.spend(tokens, now)

    def meters(self, now: float) -> dict[str, Meter]:
        return {
            name: Meter(
                limit=math.floor(bucket.per_minute),
                remaining=max(math.floor(bucket.level(now)), 0),
                reset_s=bucket.seconds_to_full(now),
            )
            for name, bucket in self._buckets.items()
        }
