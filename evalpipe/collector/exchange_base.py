"""What an exchange and its client's connection show to each other, to the recorder and to the worker."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from time import perf_counter
from typing import TYPE_CHECKING, Final

from evalpipe.collector.assignment import Assignment
from evalpipe.collector.settings import ArmSettings
from evalpipe.collector.upstream import ResponseHandler
from evalpipe.http1.body import BodyReader
from evalpipe.http1.headers import EVENTS, LOGGED_ANSWER, ResponseHeaders, logged
from evalpipe.spool.format import Body
from evalpipe.spool.writer import SpoolWriter

if TYPE_CHECKING:
    from evalpipe.collector.forward_headers import ParsedHeaders


class ClientLink(ABC):
    """The connection of a client, as its exchanges and the worker use it."""

    transport: asyncio.Transport
    write_paused: bool = False

    @abstractmethod
    def serves(self, exchange: ExchangeState) -> bool:
        """Whether this exchange is the one under way."""

    @abstractmethod
    def finished(self, exchange: ExchangeState, *, keep: bool) -> None:
        """The exchange's response is out. `keep` False: its end is the connection's end."""

    @abstractmethod
    def pause_upload(self) -> None: ...

    @abstractmethod
    def resume_upload(self) -> None: ...

    @abstractmethod
    def check(self, now: float) -> None:
        """Called a few times a second with the loop's time."""

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def abort(self) -> None: ...


# What is kept of a message for the spool: its bytes up to a limit, and when they came.


class BodyBuffer:
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
        return Body.of(data, n_dropped_bytes=self.n_dropped) if data or self.n_dropped else _EMPTY_BODY


class Request:
    """One request of a client."""

    __slots__ = ("facts", "keep", "length", "length_line", "reader")

    def __init__(self, facts: ParsedHeaders, length: int, length_line: bytes, *, keep: bool) -> None:
        self.facts, self.length, self.length_line, self.keep = facts, length, length_line, keep
        self.reader: BodyReader | None = None
        """set where the body comes in pieces"""


class ExchangeState(ResponseHandler):
    """What is known of one exchange, for its records."""

    request: Request
    endpoint: str | None
    started_at: float
    """seconds since the epoch: when the request was sent to the arm; until then, when it came"""
    request_id: str
    arm: ArmSettings
    kept_request: BodyBuffer
    assignment: Assignment | None = None
    sent_body: bytes | None = None
    """what the arm got, where it differs from what the client sent"""
    status: int = 0
    """what the client saw"""
    timeout_ms: float | None = None

    @property
    @abstractmethod
    def latency_ms(self) -> float:
        """From the request sent to the response's end."""

    @property
    @abstractmethod
    def first_byte_ms(self) -> float | None: ...

    @property
    @abstractmethod
    def answer_endpoint(self) -> str | None:
        """The endpoint of the dialect the arm answers in."""

    @property
    @abstractmethod
    def readable_request(self) -> bytes:
        """The request's body without its content encoding; as it came where that cannot be undone."""

    @abstractmethod
    def send_last(self, now: float) -> None:
        """Send the last piece of the request; `now` is a perf_counter's."""

    @abstractmethod
    def answer_last(self, now: float) -> None:
        """Send the last piece of the response to the client; `now` is a perf_counter's."""

    @abstractmethod
    def fault(self) -> None:
        """An error of the collector itself while bytes of this exchange were written."""

    @abstractmethod
    def check(self, now: float) -> None:
        """Called a few times a second with perf_counter: the limits of `[collector]`."""


# What one turn of the event loop has to write, written together at its end.
#
# Under load a turn brings many requests and answers. One append for all their records, and their bytes sent one after
# the other, cost a fraction of the system calls and of the wake-ups of waiting peers; an exchange alone waits for
# nothing, as the turn ends at once. Only last pieces wait here: what goes on streaming passes as it comes.


class WriteBatch:
    def __init__(self, loop: asyncio.AbstractEventLoop, writer: SpoolWriter) -> None:
        self._loop, self._writer = loop, writer
        self._requests: list[ExchangeState] = []
        self._lines: list[bytes] = []
        self._n_records = 0
        self._answers: list[ExchangeState] = []
        self._is_due = False

    def send(self, exchange: ExchangeState) -> None:
        """The last piece of a request has its connection."""
        self._requests.append(exchange)
        self._end_soon()

    def lines(self) -> list[bytes]:
        """What will be appended to the spool, in pieces. A caller appends one whole record to its end, at once."""
        self._n_records += 1
        self._end_soon()
        return self._lines

    def record(self, line: bytes) -> None:
        self.lines().append(line)

    def answer(self, exchange: ExchangeState) -> None:
        """The last piece of an answer is there. Its record must have been handed over before."""
        self._answers.append(exchange)
        self._end_soon()

    def _end_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self.end)

    def end(self) -> None:
        """Requests first, as users wait for what becomes of them; records before the ends of their answers: who has seen
        the last byte finds the exchange in the spool."""
        self._is_due = False
        if self._requests:
            requests, self._requests = self._requests, []
            for exchange in requests:
                try:
                    exchange.send_last(perf_counter())
                except Exception:  # noqa: BLE001 – an internal error: the other exchanges of the batch go on
                    exchange.fault()
        if self._lines:
            lines, self._lines = self._lines, []
            n_records, self._n_records = self._n_records, 0
            self._writer.append_all(lines, n_records)
        if self._answers:
            answers, self._answers = self._answers, []
            for exchange in answers:
                try:
                    exchange.answer_last(perf_counter())
                except Exception:  # noqa: BLE001 – see above
                    exchange.fault()


MAX_MARKS: Final = 64

_EMPTY_BODY: Final = Body()
_NO_MARKS: Final[list[tuple[int, float]]] = []


class ResponseCapture:
    """An answer's status, allowed headers, body, and arrival marks of the first pieces of a stream."""

    __slots__ = ("_json", "head", "kept", "marks", "n_bytes", "streamed")

    def __init__(self, head: ResponseHeaders, limit: int) -> None:
        self.head = head
        self._json: bytes | None = None
        self.streamed = (head.roles & EVENTS) != 0
        self.kept = BodyBuffer(limit)
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
    """The outcome as far as HTTP alone shows it; refusals and the like are read from the bodies when the log is loaded."""
    if ended == "complete" or ended == "closed_by_upstream":
        return "ok" if status is not None and status < 400 else "http_error"
    if ended == "timeout" or ended == "client_closed":
        return ended
    return "unreadable" if ended == "cut" and status is not None and status < 400 else "http_error"
