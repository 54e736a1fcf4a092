"""Connections to the arms' servers: kept alive, one exchange at a time on each, the answer's bytes handed on as they come."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import asyncio
import select
import ssl
import traceback
from abc import ABC, abstractmethod
from time import perf_counter
from typing import Final, cast

from evalpipe.collector.settings import Origin
from evalpipe.http1.body import BodyReader
from evalpipe.http1.headers import (
    CONNECTION,
    HttpError,
    ResponseHeaders,
    end_of_bare_head,
    keeps_alive,
    read_response_headers,
    response_length,
    with_crlf,
)

MAX_HEAD_BYTES: Final = 256 << 10
_CHECK_AFTER_S: Final = 0.5
"""a connection idle for longer is asked whether the server has closed it before it is used again"""


class ResponseHandler(ABC):
    """Who receives an answer. `interim` and `head` come before `body`; exactly one of `lost` or a `body` with done."""

    head_request: bool = False

    @abstractmethod
    def interim(self, head: bytes) -> None:
        """An informational answer before the answer."""

    @abstractmethod
    def head(self, answer: ResponseHeaders, reader: BodyReader, at: float, *, last: bool, followed: bool) -> None:
        """`at`: when it came, a perf_counter's seconds. `last`: the answer has no body, this is all of it. `followed`: `body`
        is called at once with what came along."""

    @abstractmethod
    def body(self, framed: bytes, payload: bytes, at: float, *, last: bool) -> None:
        """A piece of the answer's body: with its chunk framing, and without it."""

    @abstractmethod
    def lost(self, ended: str, message: str) -> None:
        """There is no more of it."""

    @abstractmethod
    def send_again(self) -> bool:
        """The server closed a connection it had kept open before it took this request: no byte of an answer came.
        Whether the request is on its way again, over a new connection."""

    @abstractmethod
    def pause_sending(self) -> None:
        """The server takes the request more slowly than it is sent."""

    @abstractmethod
    def resume_sending(self) -> None:
        """See `pause_sending`."""


class UpstreamConnection:
    """One connection, an `asyncio.Protocol` in all but name (a compiled class has no interpreted base). `begin` binds it to
    a sink; when the answer has ended it goes back to its pool, or closes."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.transport: asyncio.Transport = cast(asyncio.Transport, None)
        self.closed = False
        self.idle_since = 0.0
        self.n_answers = 0
        self._sink: ResponseHandler | None = None
        self._buffer = b""
        self._reader = BodyReader(0)
        self._in_body = False
        self._keep = True
        self.request_sent = False
        """set by the sink when all of the request was written; before, an answer ends the connection"""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def begin(self, sink: ResponseHandler) -> None:
        self._sink, self._in_body, self._buffer, self._keep = sink, False, b"", True
        self.request_sent = False

    def abandon(self) -> None:
        """The answer is no longer needed: close the connection."""
        self._sink = None
        self.transport.abort()

    def is_stale(self) -> bool:
        """Whether the server has sent or closed something while the connection was idle."""
        fd = self.transport.get_extra_info("socket").fileno()
        if fd < 0:
            return True
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        return bool(poller.poll(0))

    def data_received(self, data: bytes) -> None:
        sink = self._sink
        if sink is None:  # a server that talks without being asked
            self.transport.abort()
            return
        try:
            self._receive(sink, data)
        except HttpError as error:
            self._fail("protocol_error", str(error))
        except Exception as error:  # noqa: BLE001 – an internal error: logged, and the exchange is ended
            traceback.print_exc()
            self._sink = None
            self.transport.abort()
            sink.lost("protocol_error", f"the answer could not be handled: {type(error).__name__}")

    def _receive(self, sink: ResponseHandler, data: bytes) -> None:
        reader = self._reader
        at = perf_counter()
        if self._in_body:
            framed, payload, rest = reader.take(data)
            self._hand_on(sink, reader, framed, payload, rest, at)
            return
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        while True:
            end = data.find(b"\r\n\r\n") + 4
            if end < 4:
                end = end_of_bare_head(data)
                if not end:
                    if len(data) > MAX_HEAD_BYTES:
                        raise HttpError(502, "the head of the answer is too large")
                    self._buffer = data
                    return
            head = data if end == len(data) else data[:end]
            try:
                answer = read_response_headers(head)
            except HttpError:
                end = end_of_bare_head(data)
                head = with_crlf(data[:end])
                answer = read_response_headers(head)
                answer.is_repaired = True
            data = data[end:]
            if answer.is_repaired:
                self._keep = False
            if answer.status >= 200:
                break
            sink.interim(head)
            if not data:
                return
        reader.begin(response_length(answer, head_request=sink.head_request))
        self._in_body = True
        http10 = head.startswith(b"HTTP/1.0")
        if (http10 or answer.roles & CONNECTION) and self._keep:
            self._keep = keeps_alive(answer.lines, http10=http10)
        if not data:
            last = reader.done
            if last:
                self._release(at)
            sink.head(answer, reader, at, last=last, followed=False)
            return
        if reader.done:  # an answer without a body, and bytes behind it: not ours to pass on
            self._keep = False
            self._release(at)
            sink.head(answer, reader, at, last=True, followed=False)
            return
        sink.head(answer, reader, at, last=False, followed=True)
        framed, payload, rest = reader.take(data)
        self._hand_on(sink, reader, framed, payload, rest, at)

    def _hand_on(
        self, sink: ResponseHandler, reader: BodyReader, framed: bytes, payload: bytes, rest: bytes, at: float
    ) -> None:
        if reader.done:
            if rest:
                self._keep = False
            self._release(at)
        sink.body(framed, payload, at, last=reader.done)

    def _release(self, at: float) -> None:
        self._sink = None
        self._in_body = False
        self.n_answers += 1
        if self._keep and self.request_sent and not self.closed:
            self._pool.put(self, at)
        else:
            self.transport.close()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._pool.forget(self)
        sink, self._sink = self._sink, None
        if sink is None:
            return
        reader = self._reader
        if self._in_body and reader.until_close and exc is None:
            reader.done = True
            sink.lost("closed_by_upstream", "")
        elif not self._in_body and self.n_answers and not self._buffer and sink.send_again():
            return
        elif not self._in_body:
            sink.lost("cut", f"the server closed the connection without an answer{_reason(exc)}")
        else:
            sink.lost("cut", f"the server broke off its answer{_reason(exc)}")

    def _fail(self, ended: str, message: str) -> None:
        sink, self._sink = self._sink, None
        self.transport.abort()
        if sink is not None:
            sink.lost(ended, message)

    def pause_writing(self) -> None:
        if self._sink is not None:
            self._sink.pause_sending()

    def resume_writing(self) -> None:
        if self._sink is not None:
            self._sink.resume_sending()


def _reason(error: Exception | None) -> str:
    return f": {error}" if error is not None and str(error) else ""


class Pool:
    """Connections to one origin. Of the idle ones the last used is taken first; the others run into their age and are closed."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        origin: Origin,
        *,
        keep_alive_s: float,
        connect_timeout_s: float,
        ca_file: str | None = None,
    ) -> None:
        self._loop, self.origin = loop, origin
        self._keep_alive_s, self._connect_timeout_s = keep_alive_s, connect_timeout_s
        self._idle: list[UpstreamConnection] = []
        self._ca_file = ca_file
        self._tls: ssl.SSLContext | None = None

    def get(self, now: float) -> UpstreamConnection | None:
        """An idle connection the server still holds open, or None. `now`: a perf_counter's seconds."""
        idle = self._idle
        while idle:
            upstream = idle.pop()
            age = now - upstream.idle_since
            if upstream.closed or upstream.transport.is_closing():
                continue
            if age > self._keep_alive_s or (age > _CHECK_AFTER_S and upstream.is_stale()):
                upstream.transport.close()
                continue
            return upstream
        return None

    async def connect(self) -> UpstreamConnection:
        """A new connection. Raises TimeoutError or OSError (ssl.SSLError is one)."""
        origin = self.origin
        async with asyncio.timeout(self._connect_timeout_s):
            _, protocol = await self._loop.create_connection(
                self._new,
                origin.host,
                origin.port,
                ssl=self._context() if origin.tls else None,
                server_hostname=origin.host if origin.tls else None,
            )
        return cast(UpstreamConnection, protocol)

    def _new(self) -> asyncio.Protocol:
        return cast(asyncio.Protocol, UpstreamConnection(self))

    def put(self, upstream: UpstreamConnection, now: float) -> None:
        upstream.idle_since = now
        self._idle.append(upstream)

    def forget(self, upstream: UpstreamConnection) -> None:
        if upstream in self._idle:
            self._idle.remove(upstream)

    def tick(self) -> None:
        """To be called about once a second: closes what was idle too long."""
        limit = perf_counter() - self._keep_alive_s
        while self._idle and self._idle[0].idle_since < limit:
            self._idle.pop(0).transport.close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().transport.close()

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            if self._ca_file:
                self._tls.load_verify_locations(self._ca_file)
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls
