"""The append-only record format of the spool: one JSON object a line; bytes ⇄ records, no I/O.

A request record is written when a request arrives, a response record when an arm's answer ends, a shadow record when the
outcome of a shadow request is known, a feedback record when a user rates a response. Each is one line and one write, so a
reader sees whole records or, after a power loss, one broken last line.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Literal

import msgspec

FORMAT_VERSION = 1

Ended = Literal["complete", "closed_by_upstream", "cut", "client_closed", "timeout", "connect_error", "protocol_error"]
"""How an answer ended: complete (length or final chunk seen) · closed_by_upstream (an answer whose end is the close) · cut
(upstream broke off) · client_closed · timeout · connect_error (no answer at all) · protocol_error (not HTTP)."""


class Body(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Bytes as received: `text` where they are UTF-8, else `base64`. Both absent: empty. `n_dropped_bytes` > 0: cut off
    at the logging limit."""

    text: str | None = None
    base64: str | None = None
    n_dropped_bytes: int = 0

    @classmethod
    def of(cls, data: bytes, *, n_dropped_bytes: int = 0) -> Body:
        try:
            return cls(text=str(data, "utf-8"), n_dropped_bytes=n_dropped_bytes)
        except UnicodeDecodeError:
            return cls(base64=base64.b64encode(data).decode("ascii"), n_dropped_bytes=n_dropped_bytes)

    @property
    def data(self) -> bytes:
        if self.base64 is not None:
            return base64.b64decode(self.base64)
        return (self.text or "").encode()

    @property
    def content(self) -> bytes | str:
        """As text where it is UTF-8: nothing has to be made of it."""
        return self.data if self.base64 is not None else self.text or ""


class RequestRecord(
    msgspec.Struct, frozen=True, tag="request", tag_field="record", omit_defaults=True, kw_only=True, gc=False
):
    """A collected request as it arrived. Credentials and cookies never get here: `headers` holds an allow-list."""

    request_id: str
    experiment: str
    mode: str
    arm: str
    """the arm that serves the user"""
    received_at: float
    """seconds since the epoch, UTC"""
    unit_id: str | None = None
    """hashed where `hash_units` is on"""
    unit_source: str | None = None
    """where the unit id came from, e.g. "header:x-user-id"; "conversation" where there was none"""
    conversation_id: str | None = None
    endpoint: str = ""
    """"chat.completions" | "responses" | "messages" """
    method: str = "POST"
    target: str = ""
    """path and query as the client sent them"""
    headers: Mapping[str, str] = {}
    body: Body = Body()
    eligible: bool = False
    """whether a shadow request is due at all (shadow mode, or a shadowed share of the canary)"""
    percentage: float | None = None
    """share of treatment in force (ab, canary)"""
    stage: int | None = None
    """number of the history entry that began the canary's stage in force"""
    forced: bool = False
    """the arm was forced by a tester's header: excluded from the statistics"""
    config_fingerprint: str | None = None
    """fingerprints of the arms' configurations, "CONTROL-TREATMENT"; older records: one of both together, without a dash"""
    injects_usage: bool = False
    """`stream_usage = "inject"` is in force: a chat stream without a usage option is asked for it"""
    version: int = FORMAT_VERSION


class ResponseRecord(
    msgspec.Struct, frozen=True, tag="response", tag_field="record", omit_defaults=True, kw_only=True, gc=False
):
    """One arm's answer, whole or as far as it came."""

    request_id: str
    experiment: str
    arm: str
    role: str
    """"served" | "shadow" """
    provider: str
    endpoint: str
    """the endpoint of the dialect `body` is in (the treatment's may differ from the client's)"""
    started_at: float
    """seconds since the epoch: when the request was sent to this arm"""
    ended: str
    """one of `Ended`"""
    latency_ms: float
    first_byte_ms: float | None = None
    marks: list[tuple[int, float]] = []
    """(body bytes received so far, ms since started_at) for the first chunks of a stream: time to first token"""
    status: int | None = None
    headers: Mapping[str, str] = {}
    body: Body = Body()
    sent: Body | None = None
    """the request body this arm got, where it differs from the client's (shadow requests)"""
    error_type: str | None = None
    error_message: str | None = None
    timeout_ms: float | None = None
    """the limit that was hit, where `ended` is "timeout" """
    infrastructure_usd: float = 0.0
    version: int = FORMAT_VERSION


class ShadowRecord(
    msgspec.Struct, frozen=True, tag="shadow", tag_field="record", omit_defaults=True, kw_only=True, gc=False
):
    """The status of a request's shadow request; written before it is sent, so that none is sent twice."""

    request_id: str
    experiment: str
    status: str
    """one of `models.ShadowStatus`"""
    at: float
    reason: str | None = None
    version: int = FORMAT_VERSION


class FeedbackRecord(
    msgspec.Struct, frozen=True, tag="feedback", tag_field="record", omit_defaults=True, kw_only=True, gc=False
):
    request_id: str
    experiment: str
    arm: str | None
    rating: float
    at: float
    comment: str | None = None
    version: int = FORMAT_VERSION


Record = RequestRecord | ResponseRecord | ShadowRecord | FeedbackRecord

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


def render_record(record: Record) -> bytes:
    """One line, newline included."""
    return _encoder.encode(record) + b"\n"


def read_record(line: bytes) -> Record:
    """The record of one line. Raises ValueError (msgspec's errors are its subclasses) for a broken line."""
    record: Record = _decoder.decode(line)
    return record
