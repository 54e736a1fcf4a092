"""Responses of the collector itself: its own routes, refusals, and failures in the shape the client's SDK expects."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any


def render_answer(
    status: int,
    body: bytes,
    *,
    content_type: str = "application/json",
    keep: bool = True,
    http10: bool = False,
    head_only: bool = False,
    headers: dict[str, str] | None = None,
) -> bytes:
    """A whole answer with a length."""
    lines = [f"HTTP/1.1 {status} {_phrase(status)}", f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if not keep:
        lines.append("Connection: close")
    elif http10:
        lines.append("Connection: keep-alive")
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    return head if head_only else head + body


def render_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=True, allow_nan=False).encode() + b"\n"


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    504: "timeout_error",
}
_OPENAI_TYPES = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error", 504: "timeout"}


def render_provider_error(anthropic: bool, status: int, message: str, request_id: str | None) -> bytes:
    """An error body as the provider itself would shape it, so that SDKs raise their own exceptions."""
    if anthropic:
        error = {"type": _ANTHROPIC_TYPES.get(status, "api_error"), "message": message}
        return render_json({"type": "error", "error": error, "request_id": request_id})
    kind = _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return render_json({"error": {"message": message, "type": kind, "param": None, "code": None}})
