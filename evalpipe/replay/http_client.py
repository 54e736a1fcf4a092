"""A request sent as it is, body and all: the response byte by byte, with its times, and the outcome of the call."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from evalpipe.calls.client import (
    CONNECT_TIMEOUT_S,
    CallOutcome,
    ModelResponse,
    failed_reply,
    http_failure,
    is_local,
    read_reply,
)
from evalpipe.providers.decoding import EncodingError, decode

MAX_MARKS = 64
"""chunks of a stream whose times are kept: the first words are in them"""


@dataclass(kw_only=True, slots=True)
class HttpAnswer:
    """What came back. Times in ms since the request was sent; `marks`: (bytes so far, ms) of the first chunks; `ended` as in the
    collector's log; `error`: what ended it before its time."""

    started_at: float
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    latency_ms: float = 0.0
    first_byte_ms: float | None = None
    marks: list[tuple[int, float]] = field(default_factory=list)
    ended: str = "complete"
    timeout_ms: float | None = None
    error: Exception | None = None


class HttpSender:
    """Sends requests over kept connections, at most so many at once. Never raises for anything a provider may do."""

    def __init__(self, base_url: str, *, concurrency: int, timeout_s: float) -> None:
        import httpx2

        self._timeout_s = timeout_s
        self._client = httpx2.AsyncClient(
            limits=httpx2.Limits(max_connections=concurrency + 4, max_keepalive_connections=concurrency + 4),
            timeout=httpx2.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            trust_env=not is_local(base_url),
        )

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> HttpAnswer:
        """Send one request and read its answer to the end."""
        found = HttpAnswer(started_at=time.time())
        sent = time.perf_counter()
        parts: list[bytes] = []
        n_bytes = 0
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._client.stream(
                    "POST", url, headers={**headers, "accept-encoding": "identity"}, content=body
                ) as response,
            ):
                found.status = response.status_code
                found.headers = {name.lower(): value for name, value in response.headers.items()}
                found.first_byte_ms = (time.perf_counter() - sent) * 1000
                async for part in response.aiter_raw():
                    parts.append(part)
                    n_bytes += len(part)
                    if len(found.marks) < MAX_MARKS:
                        found.marks.append((n_bytes, (time.perf_counter() - sent) * 1000))
        except TimeoutError as error:
            found.ended, found.error, found.timeout_ms = "timeout", error, self._timeout_s * 1000
        except Exception as error:  # noqa: BLE001  what the library raises becomes a response, or is raised again
            failed_reply(error, None)  # raises unknown exceptions again
            found.ended, found.error = _ended(error), error
            if found.ended == "timeout":
                found.timeout_ms = self._timeout_s * 1000
        found.latency_ms = (time.perf_counter() - sent) * 1000
        found.body = b"".join(parts)
        return found

    async def close(self) -> None:
        await self._client.aclose()


def _ended(error: Exception) -> str:
    reply = failed_reply(error, None)
    if reply.outcome is CallOutcome.NO_CONNECTION:
        return "connect_error"
    return "timeout" if reply.kind == "timeout" else "cut"


def response_of(endpoint: str, found: HttpAnswer) -> ModelResponse:
    """The outcome of a call, by its response."""
    if found.error is not None:
        if isinstance(found.error, TimeoutError):
            return ModelResponse(
                outcome=CallOutcome.BROKEN,
                kind="timeout",
                message="no whole answer in time",
                latency_ms=found.latency_ms,
            )
        return failed_reply(found.error, found.latency_ms)
    try:
        body = decode(found.headers, found.body).data
    except EncodingError:
        body = found.body
    status = found.status or 0
    if not 200 <= status < 300:
        try:
            document = json.loads(body)
        except ValueError:
            document = None
        words = str(body[:500], "utf-8", "replace")
        return http_failure(status, found.headers, document, words, found.latency_ms)
    content_type = found.headers.get("content-type", "application/json")
    return read_reply(endpoint, status, found.headers, body, latency_ms=found.latency_ms, content_type=content_type)
