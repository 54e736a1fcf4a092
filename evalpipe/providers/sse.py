"""Server-sent events, parsed as they arrive and written (WHATWG HTML, 9.2.6 "Interpreting an event stream")."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import re

import msgspec

_LINE_END = re.compile(rb"\r\n|\n|\r")


class SseEvent(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """`event`: "message" where the stream named none. `end_offset`: bytes fed up to and including the blank line that
    dispatched it, without the LF of a CRLF: the CR alone ends a line, and may come alone."""

    event: str
    data: str
    end_offset: int


class SseParser:
    """Feed bytes as they arrive; get the events they complete.

    Lines end with LF, CR or CRLF, which may be split between two feeds, as may a UTF-8 character. Comments are skipped;
    `data` lines are joined with LF; an event that no blank line ended is never given.
    """

    def __init__(self) -> None:
        self._pieces: list[bytes] = []  # the unfinished line
        self._offset = 0
        self._after_cr = False
        self._first_line = True
        self._event = ""
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> list[SseEvent]:
        events: list[SseEvent] = []
        start = 0
        if self._after_cr and chunk:
            # The LF of a CRLF whose CR ended the last feed belongs to that line.
            start = int(chunk[0] == 0x0A)
            self._after_cr = False
        has_cr = b"\r" in chunk
        while True:
            if has_cr:
                found = _LINE_END.search(chunk, start)
                end, behind = (found.start(), found.end()) if found is not None else (-1, -1)
            else:  # nearly every stream
                end = chunk.find(b"\n", start)
                behind = end + 1
            if end < 0:
                break
            line = chunk[start:end]
            if self._pieces:
                line = b"".join([*self._pieces, line])
                self._pieces.clear()
            start = behind
            event = self._line(line, self._offset + end + 1)
            if event is not None:
                events.append(event)
        self._after_cr = chunk.endswith(b"\r") if chunk else self._after_cr
        if start < len(chunk):
            self._pieces.append(chunk[start:])
        self._offset += len(chunk)
        return events

    def _line(self, line: bytes, end_offset: int) -> SseEvent | None:
        if line.startswith(b"data: ") and not self._first_line:  # by far the most lines of any provider's stream
            self._data.append(str(line[6:], "utf-8", "replace"))
            return None
        if self._first_line:
            line = line.removeprefix(b"\xef\xbb\xbf")
            self._first_line = False
        if not line:
            event = None
            data = self._data
            if data:
                text = data[0] if len(data) == 1 else "\n".join(data)
                event = SseEvent(event=self._event or "message", data=text, end_offset=end_offset)
                self._data = []
            self._event = ""
            return event
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(str(value, "utf-8", "replace"))
        elif field == b"event":
            self._event = str(value, "utf-8", "replace")
        return None


def render_event(data: str, event: str | None = None) -> bytes:
    """One event as providers write it. `data` must hold no line break (compact JSON does not)."""
    name = f"event: {event}\n" if event is not None else ""
    return f"{name}data: {data}\n\n".encode("utf-8", "replace")
