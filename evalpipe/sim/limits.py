"""Provider limits: token buckets that refill all the time, and the headers that report them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from evalpipe.providers.base import error_body
from evalpipe.providers.json_values import dump
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
    """One limit as the headers report it. `reset_s`: seconds until it is whole again."""

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
        """Take one request and its input; or the exhausted limit, and the seconds until it allows them."""
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


# Response headers and error bodies as the two vendors send them.


MARK = ("x-simulated-by", "evalpipe-sim")
Headers = list[tuple[str, str]]

_ERRORS: Mapping[int, tuple[str, str, str]] = {
    # status: (Anthropic's type, OpenAI's type, message)
    400: ("invalid_request_error", "invalid_request_error", "The request is invalid."),
    404: ("not_found_error", "invalid_request_error", "Not found."),
    413: ("request_too_large", "invalid_request_error", "The request is too large."),
    429: ("rate_limit_error", "requests", "Rate limit reached. Please slow down."),
    500: ("api_error", "server_error", "The server had an error while processing your request."),
    529: ("overloaded_error", "server_error", "Overloaded"),
}


def common_headers(endpoint: str, request_id: str) -> Headers:
    return [("request-id" if endpoint == "messages" else "x-request-id", request_id), MARK]


def limit_headers(endpoint: str, meters: Mapping[str, Meter]) -> Headers:
    """The rate headers of the vendor that `endpoint` belongs to."""
    # Both vendors report one limit as "tokens": the one with the least left.
    of_tokens = [meter for name, meter in meters.items() if name != "requests"]
    tokens = min(of_tokens, key=lambda meter: meter.remaining / meter.limit, default=None)
    if endpoint == "messages":
        now = datetime.now(UTC)
        headers: Headers = []
        reported = {**meters, "tokens": tokens} if tokens is not None else meters
        for name, meter in reported.items():
            reset = (now + timedelta(seconds=meter.reset_s)).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            prefix = f"anthropic-ratelimit-{name}"
            headers += [
                (f"{prefix}-limit", str(meter.limit)),
                (f"{prefix}-remaining", str(meter.remaining)),
                (f"{prefix}-reset", reset),
            ]
        return headers
    headers = []
    for name, told_meter in (("requests", meters.get("requests")), ("tokens", tokens)):
        if told_meter is not None:
            headers += [
                (f"x-ratelimit-limit-{name}", str(told_meter.limit)),
                (f"x-ratelimit-remaining-{name}", str(told_meter.remaining)),
                (f"x-ratelimit-reset-{name}", go_duration(told_meter.reset_s)),
            ]
    return headers


def retry_headers(endpoint: str, seconds: float) -> Headers:
    headers = [("retry-after", str(max(math.ceil(seconds), 1)))]
    if endpoint != "messages":
        headers.append(("retry-after-ms", str(max(math.ceil(seconds * 1000), 1))))
    return headers


def error_answer(endpoint: str, status: int, request_id: str, message: str | None = None) -> bytes:
    """The JSON of an error, in the vendor's own shape."""
    theirs, openai, text = _ERRORS.get(status, ("api_error", "server_error", "Error"))
    kind = theirs if endpoint == "messages" else openai
    code = "rate_limit_exceeded" if status == 429 else None
    return dump(error_body(endpoint, kind, message or text, code=code, request_id=request_id)).encode()


def go_duration(seconds: float) -> str:
    """A duration as OpenAI writes it: "12ms", "1.5s", "6m0s"."""
    if seconds < 1:
        return f"{math.ceil(seconds * 1000)}ms"
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{math.ceil(rest)}s" if minutes else f"{rest:.3f}".rstrip("0").rstrip(".") + "s"
