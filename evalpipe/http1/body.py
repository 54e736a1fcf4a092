"""Where a message body ends. Bytes are passed as they come; llhttp reads the chunk framing, nothing is rewritten here."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import httptools

from evalpipe.http1.headers import CHUNKED, UNTIL_CLOSE, HttpError

_CHUNKED_REQUEST = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
"""Framing is the same both ways, and for a request llhttp has no body that ends with the connection."""


class BodyReader:
    """Splits what arrives into the body's own bytes and what follows it.

    `take(data)` → (framed, payload, rest): the bytes of this body with their chunk framing, the payload in them, and the
    bytes after the body's end (b"" while it goes on). `done` once the end was seen.
    """

    __slots__ = ("_chunks", "_left", "done", "until_close")

    def __init__(self, length: int) -> None:
        self.begin(length)

    def begin(self, length: int) -> None:
        """Another body, behind the last one."""
        self.until_close = length == UNTIL_CLOSE
        self._chunks: _Chunks | None = _Chunks() if length == CHUNKED else None
        self._left = length
        self.done = length == 0

    @property
    def chunked(self) -> bool:
        return self._chunks is not None

    def take(self, data: bytes) -> tuple[bytes, bytes, bytes]:
        if self._chunks is not None:
            return self._take_chunked(self._chunks, data)
        if self.until_close:
            return data, data, b""
        n = len(data)
        left = self._left
        if n < left:
            self._left = left - n
            return data, data, b""
        self._left, self.done = 0, True
        if n == left:
            return data, data, b""
        framed = data[:left]
        return framed, framed, data[left:]

    def _take_chunked(self, chunks: _Chunks, data: bytes) -> tuple[bytes, bytes, bytes]:
        start = 0
        for end in _possible_ends(data):
            chunks.feed(data[start:end] if start or end < len(data) else data)
            start = end
            if chunks.done:
                break
        self.done = chunks.done
        pieces, chunks.pieces = chunks.pieces, []
        payload = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return (data, payload, b"") if start == len(data) else (data[:start], payload, data[start:])


def _possible_ends(data: bytes) -> list[int]:
    """Offsets after which a chunked body may end (its last bytes are CRLF CRLF, maybe begun in the piece before), so that
    the parser is never fed past the end; the end of `data` is the last of them."""
    ends = [at + 1 for at in range(3) if data[at : at + 1] == b"\n"] if b"\n" in data[:3] else []
    found = data.find(b"\r\n\r\n")
    while found >= 0:
        ends.append(found + 4)
        found = data.find(b"\r\n\r\n", found + 2)
    if not ends or ends[-1] != len(data):
        ends.append(len(data))
    return ends


class _Chunks:
    """llhttp on a chunked body."""

    __slots__ = ("_parser", "done", "pieces")

    def __init__(self) -> None:
        self.done = False
        self.pieces: list[bytes] = []
        self._parser = httptools.HttpRequestParser(self)
        self._parser.feed_data(_CHUNKED_REQUEST)

    def feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            raise HttpError(400, f"malformed chunked body: {error}") from None

    def on_body(self, data: bytes) -> None:
        self.pieces.append(data)

    def on_message_complete(self) -> None:
        self.done = True
