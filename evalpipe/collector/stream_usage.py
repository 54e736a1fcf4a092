"""`stream_usage = "inject"`: ask a chat stream for its usage on our account, and take both traces of that out again.

OpenAI's `include_usage` adds a last chunk with `choices: []` and a `"usage": null` in all others (wire.md). The client asked
for neither and gets neither; every other byte of the stream passes as received.
"""

from __future__ import annotations

import re

import msgspec

_NULL_USAGE = re.compile(rb'\s*,\s*"usage"\s*:\s*null(?=\s*[,}])|(?<=\{)\s*"usage"\s*:\s*null\s*,')
_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")


def ask_for_usage(body: bytes) -> bytes | None:
    """The request with usage asked for, or None where it is no stream or asks for (or against) it itself."""
    try:
        request = msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError):
        return None
    if not isinstance(request, dict) or request.get("stream") is not True or "stream_options" in request:
        return None
    opened, brace, rest = body.rpartition(b"}")  # the client's own bytes stay as they are
    return opened + b',"stream_options":{"include_usage":true}' + brace + rest


class UsageStripper:
    """Takes the usage out of the payload of a stream, event by event; only an event that is not whole yet is held back."""

    def __init__(self) -> None:
        self._partial = b""

    def feed(self, data: bytes) -> bytes:
        data = self._partial + data
        kept, start = [], 0
        for match in _END.finditer(data):
            kept.append(_stripped(data[start : match.end()]))
            start = match.end()
        self._partial = data[start:]
        return b"".join(kept)

    def finish(self) -> bytes:
        """What is left when the stream ends within an event."""
        rest, self._partial = self._partial, b""
        return rest


def _stripped(event: bytes) -> bytes:
    if b'"usage"' not in event:
        return event
    data = b"\n".join(line[5:] for line in event.splitlines() if line.startswith(b"data:"))
    try:
        chunk = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError):
        return event
    if not isinstance(chunk, dict) or "usage" not in chunk:
        return event
    if chunk["usage"] is None:
        return _NULL_USAGE.sub(b"", event, count=1)
    return b"" if chunk.get("choices") == [] else event
