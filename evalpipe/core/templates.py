"""Spool records of one kind that differ in little: the rest is rendered once. Bytes only, no I/O.

Encoding a whole record anew for each of a million requests of one client is most of what its log costs.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Final

import msgspec

from evalpipe.core.spool import Body, Record, RequestRecord, ResponseRecord

_encoder: Final = msgspec.json.Encoder()


def add_body(line: list[bytes], data: bytes, n_dropped_bytes: int) -> None:
    """What a record's body is in JSON, see `Body`, in pieces to the end of `line`."""
    if n_dropped_bytes or not data:
        line.append(_encoder.encode(Body.of(data, n_dropped_bytes=n_dropped_bytes) if n_dropped_bytes else Body()))
        return
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        line.append(_encoder.encode(Body.of(data)))
        return
    line.append(b'{"text":')
    line.append(_encoder.encode(text))
    line.append(b"}")


def _rest(record: Record, own: Set[str]) -> bytes:
    """The members of `record` but for `own`, as the end of its line."""
    fields = {name: value for name, value in msgspec.to_builtins(record).items() if name not in own}
    return b"," + _encoder.encode(fields)[1:] + b"\n"


class RequestTemplate:
    """A request record all but its id, instant and body."""

    __slots__ = ("_rest",)

    def __init__(self, record: RequestRecord) -> None:
        self._rest = _rest(record, {"record", "request_id", "received_at", "body"})

    def add(self, line: list[bytes], request_id: str, received_at: float, body: bytes, n_dropped_bytes: int) -> None:
        """What `render_record` gives for the whole record, in another order of members, in pieces to the end of `line`."""
        line.append(b'{"record":"request","request_id":"')
        line.append(request_id.encode("ascii"))
        line.append(b'","received_at":')
        line.append(_encoder.encode(received_at))
        line.append(b',"body":')
        add_body(line, body, n_dropped_bytes)
        line.append(self._rest)


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

    def add(
        self,
        line: list[bytes],
        request_id: str,
        started_at: float,
        latency_ms: float,
        first_byte_ms: float | None,
        marks: list[tuple[int, float]],
        status: int,
        headers: bytes,
        body: bytes,
        n_dropped_bytes: int,
        sent: bytes,
    ) -> None:
        """What `render_record` gives for the whole record, in another order of members, in pieces to the end of `line`.

        `headers`: JSON. `sent`: b"" where the arm got the client's own bytes.
        """
        line.append(b'{"record":"response","request_id":"')
        line.append(request_id.encode("ascii"))
        line.append(b'","started_at":')
        line.append(_encoder.encode(started_at))
        line.append(b',"latency_ms":')
        line.append(_encoder.encode(latency_ms))
        line.append(b',"first_byte_ms":')
        line.append(_encoder.encode(first_byte_ms))
        if marks:
            line.append(b',"marks":')
            line.append(_encoder.encode(marks))
        line.append(b',"status":')
        line.append(b"200" if status == 200 else b"%d" % status)
        line.append(b',"headers":')
        line.append(headers)
        line.append(b',"body":')
        add_body(line, body, n_dropped_bytes)
        if sent:
            line.append(b',"sent":')
            add_body(line, sent, 0)
        line.append(self._rest)
