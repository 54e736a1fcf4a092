"""What is kept of a message for the spool: its bytes up to a limit, and when they came."""

from __future__ import annotations

from evalpipe.collector.heads import LOGGED_ANSWER, AnswerHead, logged
from evalpipe.core.spool import Body

MAX_MARKS = 64


class KeptBody:
    """Body bytes up to `limit`; what is over it is counted."""

    __slots__ = ("_left", "_pieces", "n_dropped")

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._pieces: list[bytes] = []
        self.n_dropped = 0

    def add(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            n = len(piece)
            if n <= self._left:
                self._pieces.append(piece)
                self._left -= n
            else:
                self._pieces.append(piece[: self._left])
                self.n_dropped += n - self._left
                self._left = 0

    @property
    def data(self) -> bytes:
        if len(self._pieces) == 1:
            return self._pieces[0]
        data = b"".join(self._pieces)
        self._pieces = [data]
        return data

    @property
    def body(self) -> Body:
        data = self.data
        return Body.of(data, n_dropped_bytes=self.n_dropped) if data or self.n_dropped else _EMPTY


_EMPTY = Body()


class KeptAnswer:
    """An answer's status, allowed headers, body, and arrival marks of the first pieces of a stream."""

    __slots__ = ("headers", "kept", "marks", "n_bytes", "status", "streamed")

    def __init__(self, head: AnswerHead, limit: int) -> None:
        self.status = head.status
        self.headers = logged(head.lines, LOGGED_ANSWER) if head.roles & LOGGED_ANSWER else {}
        self.streamed = self.headers.get("content-type", "").startswith("text/event-stream")
        self.kept = KeptBody(limit)
        self.marks: list[tuple[int, float]] = []
        self.n_bytes = 0

    def add(self, payload: list[bytes], at_ms: float) -> None:
        self.kept.add(payload)
        if self.streamed and len(self.marks) < MAX_MARKS:
            self.n_bytes += sum(map(len, payload))
            self.marks.append((self.n_bytes, round(at_ms, 3)))


def http_outcome(ended: str, status: int | None) -> str:
    """The outcome as far as HTTP alone tells; refusals and the like are read from the bodies when the log is loaded."""
    if ended in {"complete", "closed_by_upstream"}:
        return "ok" if status is not None and status < 400 else "http_error"
    if ended in {"timeout", "client_closed"}:
        return ended
    return "unreadable" if ended == "cut" and status is not None and status < 400 else "http_error"
