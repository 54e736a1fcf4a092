"""Builders of spool records with defaults, for tests that state only what matters to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evalpipe.spool.format import Body, Record, RequestRecord, ResponseRecord, ShadowRecord, render_record

T0 = 1_780_000_000.0
"""2026-05-28T20:26:40Z"""


def request(
    request_id: str, *, at: float = T0, eligible: bool = True, body: Any = None, **fields: Any
) -> RequestRecord:
    document = {"model": "gpt-4o", "messages": [{"role": "user", "content": f"Question of {request_id}"}]}
    raw = body if isinstance(body, bytes) else json.dumps(document if body is None else body).encode()
    defaults: dict[str, Any] = {"experiment": "exp", "mode": "shadow", "arm": "control", "endpoint": "chat.completions"}
    return RequestRecord(
        request_id=request_id,
        received_at=at,
        eligible=eligible,
        body=Body.of(raw),
        **{**defaults, **fields},
    )


def served(
    request_id: str, *, at: float = T0, text: str = "An answer", body: bytes | None = None, **fields: Any
) -> ResponseRecord:
    document = {
        "id": "c1",
        "object": "chat.completion",
        "model": "gpt-4o-2024-08-06",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
    }
    return _response(request_id, at, document if body is None else body, fields, arm="control", role="served")


def copy(
    request_id: str, *, at: float = T0, text: str = "A copy's answer", body: bytes | None = None, **fields: Any
) -> ResponseRecord:
    document = {
        "id": "m1",
        "type": "message",
        "role": "assistant",
        "model": "claude-haiku-4-5",
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 900, "output_tokens": 120},
    }
    fields = {"provider": "anthropic", "endpoint": "messages", **fields}
    return _response(request_id, at, document if body is None else body, fields, arm="treatment", role="shadow")


def shadow(request_id: str, status: str = "sampled", *, at: float = T0, **fields: Any) -> ShadowRecord:
    return ShadowRecord(request_id=request_id, status=status, at=at, **{"experiment": "exp", **fields})


def write_segment(spool: Path, name: str, records: list[Record | bytes]) -> Path:
    """A segment `NAME` (WRITER.NNNNNN) of records, or of raw lines, in the spool folder."""
    spool.mkdir(parents=True, exist_ok=True)
    path = spool / f"{name}.jsonl"
    path.write_bytes(b"".join(item if isinstance(item, bytes) else render_record(item) for item in records))
    return path


def _response(
    request_id: str, at: float, body: bytes | dict[str, Any], fields: dict[str, Any], **defaults: Any
) -> ResponseRecord:
    base: dict[str, Any] = {
        "experiment": "exp",
        "provider": "openai",
        "endpoint": "chat.completions",
        "ended": "complete",
        "latency_ms": 800.0,
        "status": 200,
        "headers": {"content-type": "application/json"},
        **defaults,
    }
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ResponseRecord(request_id=request_id, started_at=at, body=Body.of(raw), **{**base, **fields})
