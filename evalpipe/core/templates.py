"""Spool records of one kind that differ in little: the rest is rendered once. Bytes only, no I/O.

Encoding a whole record anew for each of a million requests of one client is most of what its log costs.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Final

import msgspec

from evalpipe.core.spool import Body, Record, RequestRecord, ResponseRecord

_encoder: Final = msgspec.json.Encoder()


def render_body(data: bytes, n_dropped_bytes: int) -> bytes:
    """What a record's `body` is in JSON: see `Body`."""
    if n_dropped_bytes:
        return _encoder.encode(Body.of(data, n_dropped_bytes=n_dropped_bytes))
    if not data:
        return b"{}"
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return _encoder.encode(Body.of(data))
    return b"".join([b'{"text":', _encoder.encode(text), b"}"])


def _rest(record: Record, own: Set[str]) -> bytes:
    """The members of `record` but for `own`, as the end of its line."""
    fields = {name: value for name, value in msgspec.to_builtins(record).items() if name not in own}
    return b"," + _encoder.encode(fields)[1:] + b"\n"


class RequestTemplate:
    """A request record all but its id, instant and body."""

    __slots__ = ("_rest",)

    def __init__(self, record: RequestRecord) -> None:
        self._rest = _rest(record, {"record", "request_id", "received_at", "body"})

    def render(self, request_id: str, received_at: float, body: bytes) -> bytes:
        """What `render_record` gives for the whole record, in another order of members. `body`: from `render_body`."""
        return b"".join(
            [
                b'{"record":"request","request_id":"',
                request_id.encode("ascii"),
                b'","received_at":',
                _encoder.encode(received_at),
                b',"body":',
                body,
                self._rest,
            ]
        )


class ResponseTemplate:
    """A response record all but what differs between whole answers of one arm to one endpoint."""

    __slots__ = ("_rest",)

    def __init__(self, record: ResponseRecord) -> None:
        own = {
            "record",
            "request_id",
            "started_at",
            "latency_ms",
            "first_byte_ms",
            "marks",
            "status",
            "headers",
            "body",
            "sent",
        }
        self._rest = _rest(record, own)

    def render(
        self,
        request_id: str,
        started_at: float,
        latency_ms: float,
        first_byte_ms: float | None,
        marks: list[tuple[int, float]],
        status: int,
        headers: bytes,
        body: bytes,
        sent: bytes,
    ) -> bytes:
        """What `render_record` gives for the whole record, in another order of members.

        `headers`: JSON; `body` and `sent`: from `render_body`, `sent` b"" where the arm got the client's own bytes.
        """
        encode = _encoder.encode
        return b"".join(
            [
                b'{"record":"response","request_id":"',
                request_id.encode("ascii"),
                b'","started_at":',
                encode(started_at),
                b',"latency_ms":',
                encode(latency_ms),
                b',"first_byte_ms":',
                encode(first_byte_ms),
                b',"marks":' + encode(marks) if marks else b"",
                b',"status":',
                encode(status),
                b',"headers":',
                headers,
                b',"body":',
                body,
                b',"sent":' + sent if sent else b"",
                self._rest,
            ]
        )
