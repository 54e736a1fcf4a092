"""Response headers and error bodies as the two vendors send them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from evalpipe.providers.jsontext import dump
from evalpipe.providers.reply import error_body
from evalpipe.sim.limits import Meter

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
    # Both vendors tell one limit as "tokens": the one that is nearer to its end.
    of_tokens = [meter for name, meter in meters.items() if name != "requests"]
    tokens = min(of_tokens, key=lambda meter: meter.remaining / meter.limit, default=None)
    if endpoint == "messages":
        now = datetime.now(UTC)
        headers: Headers = []
        told = {**meters, "tokens": tokens} if tokens is not None else meters
        for name, meter in told.items():
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
