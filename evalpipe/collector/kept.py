"""What is kept of a message for the spool: its bytes up to a limit, and when they came."""

from __future__ import annotations

from typing import Final

from evalpipe.collector.heads import EVENTS, LOGGED_ANSWER, AnswerHead, logged
from evalpipe.core.spool import Body

MAX_MARKS: Final = 64


class KeptBody:
    """Body bytes up to `limit`; what is over it is counted."""

    __slots__ = ("_first", "_left", "_more", "n_dropped")

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._first = b""
        self._more: list[bytes] | None = None
        self.n_dropped = 0

    def add(self, piece: bytes) -> None:
        n = len(piece)
        left = self._left
        if n > left:
            self.n_dropped += n - left
            piece, n = piece[:left], left
        self._left = left - n
        if not self._first:
            self._first = piece
        elif self._more is None:
            self._more = [piece]
        else:
            self._more.append(piece)

    @property
    def data(self) -> bytes:
        if self._more is not None:
            self._first, self._more = b"".join([self._first, *self._more]), None
        return self._first

    @property
    def body(self) -> Body:
        data = self.data
        return Body.of(data, n_dropped_bytes=self.n_dropped) if data or self.n_dropped else _EMPTY


_EMPTY: Final = Body()
_NO_MARKS: Final[list[tuple[int, float]]] = []


class KeptAnswer:
    """An answer's status, allowed headers, body, and arrival marks of the first pieces of a stream."""

    __slots__ = ("_json", "head", "kept", "marks", "n_bytes", "streamed")

    def __init__(self, head: AnswerHead, limit: int) -> None:
        self.head = head
        self._json: bytes | None = None
        self.streamed = (head.roles & EVENTS) != 0
        self.kept = KeptBody(limit)
        self.marks: list[tuple[int, float]] = [] if self.streamed else _NO_MARKS
        self.n_bytes = 0

    def add(self, payload: bytes, at_ms: float) -> None:
        self.kept.add(payload)
        if self.streamed and len(self.marks) < MAX_MARKS:
            self.n_bytes += len(payload)
            self.marks.append((self.n_bytes, round(at_ms, 3)))

    @property
    def headers(self) -> dict[str, str]:
        """The headers that may be written to the spool."""
        return logged(self.head.lines, LOGGED_ANSWER) if self.head.roles & LOGGED_ANSWER else {}

    @property
    def headers_json(self) -> bytes:
        """The same, as JSON."""
        rendered = self._json
        if rendered is None:
            members = [line.member for line in self.head.lines if line.role & LOGGED_ANSWER]
            rendered = self._json = b"{" + b",".join(members) + b"}"
        return rendered

    @property
    def first_token_ms(self) -> float | None:
        """When the first piece of a stream came, after the request was sent; None where nothing was streamed."""
        return self.marks[0][1] if self.marks else None


def http_outcome(ended: str, status: int | None) -> str:
    """The outcome as far as HTTP alone tells; refusals and the like are read from the bodies when the log is loaded."""
    if ended == "complete" or ended == "closed_by_upstream":
        return "ok" if status is not None and status < 400 else "http_error"
    if ended == "timeout" or ended == "client_closed":
        return ended
    return "unreadable" if ended == "cut" and status is not None and status < 400 else "http_error"
