"""One client connection: finds requests in what arrives, gives each to an exchange, one at a time, in order."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, cast

from evalpipe.collector.descriptors import REFUSAL
from evalpipe.collector.exchange import ProxiedExchange
from evalpipe.collector.exchange_base import ClientLink, ExchangeState, Request
from evalpipe.collector.local_responses import render_answer, render_provider_error
from evalpipe.http1.body import BodyReader
from evalpipe.http1.headers import HttpError

if TYPE_CHECKING:
    from evalpipe.collector.worker import Worker


_MAX_WAITING_BYTES: Final = 256 << 10
"""pipelined bytes held while an answer is under way; then the client is no longer read"""
_MAX_OWN_BODY: Final = 64 << 10
_LINGER_S: Final = 2.0


class ClientConnection(ClientLink):
    """An `asyncio.Protocol` in all but name (a compiled class has no interpreted base)."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self.transport = cast(asyncio.Transport, None)
        self.exchange: ProxiedExchange | None = None
        self._request: Request | None = None
        self._own_body: list[bytes] | None = None
        self._buffer = b""
        self._searched = 0
        self._head_since: float | None = None
        self._linger_until: float | None = None
        self._paused_reading = False
        self._upload_paused = False
        self._closing = False
        self.write_paused = False
        self.waits_since = worker.now

    # --- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._worker.clients.add(self)
        fd: int = transport.get_extra_info("socket").fileno()
        if fd > self._worker.descriptors.highest:
            self._worker.descriptors.refused()
            self._refuse(503, REFUSAL)

    def connection_lost(self, exc: Exception | None) -> None:
        self._worker.clients.discard(self)
        self._closing = True
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self.write_paused = True
        self.waits_since = self._worker.now
        if self.exchange is not None:
            self.exchange.pause_answer()

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.exchange is not None:
            self.exchange.resume_answer()

    # --- bytes in

    def data_received(self, data: bytes) -> None:
        self.waits_since = self._worker.now
        if self._closing:
            return
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        try:
            self._process(data)
        except HttpError as error:
            self._refuse(error.status, str(error))

    def _process(self, data: bytes) -> None:
        while data and not self._closing:
            request = self._request
            if request is not None and request.reader is not None:
                framed, payload, data = request.reader.take(data)
                self._body(request, request.reader, payload, len(framed))
                continue
            if self.exchange is not None:  # pipelined: waits until the answer before it is out
                self._buffer = data
                if len(data) > _MAX_WAITING_BYTES and not self._paused_reading:
                    self._paused_reading = True
                    self.transport.pause_reading()
                return
            if data.startswith(b"\r\n"):  # RFC 9112 2.2: empty lines before a request line are ignored
                data = data[2:]
                continue
            end = data.find(b"\r\n\r\n", max(0, self._searched - 3)) + 4
            if end < 4:
                if len(data) > self._worker.max_head_bytes:
                    raise HttpError(431, "the request head is too large")
                self._buffer, self._searched = data, len(data)
                if self._head_since is None:
                    self._head_since = self._worker.now
                return
            self._searched, self._head_since = 0, None
            head = data if end == len(data) else data[:end]
            data = data[end:]
            data = self._head(head, data)

    def _head(self, head: bytes, following: bytes) -> bytes:
        """Takes up the request; returns what follows it, or its body's first bytes where that is not whole yet."""
        worker = self._worker
        if len(head) > worker.max_head_bytes:
            raise HttpError(431, "the request head is too large")
        facts, length, length_line = worker.heads.read(head)
        if length > worker.max_body_bytes:
            raise HttpError(413, "the request body is too large")
        if not facts.is_admitted:
            refusal = worker.guard.refusal(facts.target, facts.lines, facts.authority)
            if refusal is not None:
                raise HttpError(refusal[0], refusal[1])
            facts.is_admitted = True
        if facts.is_websocket:
            worker.uncollected.refused_websocket(facts.target)
            raise HttpError(
                426, "evalpipe carries no WebSockets: use the same API over HTTP, or connect to the provider"
            )
        request = Request(facts, length, length_line, keep=facts.keep and not worker.stopping)
        is_own = facts.is_own
        if is_own and length > _MAX_OWN_BODY:
            raise HttpError(413, "the request body is too large")
        if 0 <= length <= len(following):
            body, rest = (following, b"") if length == len(following) else (following[:length], following[length:])
            if is_own:
                self._answer_own(request, body)
            else:
                self.exchange = ProxiedExchange(worker, self, request)
                self.exchange.whole(body)
            return rest
        request.reader = BodyReader(length)
        self._request = request
        if is_own:
            self._own_body = []
            if facts.expects:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        else:
            self.exchange = ProxiedExchange(worker, self, request)
            self.exchange.start(body_follows=bool(following))
        return following

    def _body(self, request: Request, reader: BodyReader, payload: bytes, n_framed: int) -> None:
        done = reader.done
        if done:
            self._request = None
        if self._own_body is not None:
            self._own_body.append(payload)
            if sum(map(len, self._own_body)) > _MAX_OWN_BODY:
                raise HttpError(413, "the request body is too large")
            if done:
                body, self._own_body = b"".join(self._own_body), None
                self._answer_own(request, body)
        elif self.exchange is not None:
            self.exchange.request_body(payload, n_framed, done)
        elif done:  # the answer was out before the request was in: what was left of it is read and dropped
            self._next(request)

    # --- what is written

    def _answer_own(self, request: Request, body: bytes) -> None:
        facts = request.facts
        status, answer, content_type = self._worker.routes.answer(facts.method, facts.target, facts.lines, body)
        self.transport.write(
            render_answer(
                status,
                answer,
                content_type=content_type,
                keep=request.keep,
                http10=facts.http10,
                head_only=facts.method == b"HEAD",
            )
        )
        self._next(request)

    def serves(self, exchange: ExchangeState) -> bool:
        return self.exchange is exchange

    def finished(self, exchange: ExchangeState, *, keep: bool) -> None:
        """The exchange's response is out. `keep` False: its end is the connection's end."""
        self.exchange = None
        request = exchange.request
        request.keep = request.keep and keep
        if self._request is None:
            self._next(request)
        elif request.facts.expects:  # without its 100 the client may never send the body: what comes next is undefined
            self.linger()
        else:
            self.resume_upload()

    def pause_upload(self) -> None:
        """The arm takes the request more slowly than the client sends it."""
        if self._request is not None and not self._upload_paused:
            self._upload_paused = True
            self.transport.pause_reading()

    def resume_upload(self) -> None:
        if self._upload_paused:
            self._upload_paused = False
            self.waits_since = self._worker.now
            self.transport.resume_reading()

    def _next(self, request: Request) -> None:
        self._request = None
        self.waits_since = self._worker.now
        if not request.keep or self._worker.stopping:
            self.close()
            return
        if self._paused_reading:
            self._paused_reading = False
            self.transport.resume_reading()
        if self._buffer:
            self._worker.loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self._buffer and self.exchange is None:
            self.data_received(b"")

    def _refuse(self, status: int, message: str) -> None:
        """What was sent is not a request that can be passed on; where it ends is not known, so the connection ends."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.client_gone()
            if exchange.answer_started:  # no second answer may be mixed into the first
                self.abort()
                return
        self._worker.metrics.refused(status)
        body = render_provider_error(False, status, message, None)
        # RFC 9110 15.5.22 and 7.8 ask for both
        headers = {"Upgrade": "HTTP/1.1", "Connection": "Upgrade"} if status == 426 else None
        self.transport.write(render_answer(status, body, keep=False, headers=headers))
        self.linger()

    def linger(self) -> None:
        """End the connection with bytes of the client still to come: they are read and dropped for a moment, since closing
        on them would reset the connection and take the answer with it."""
        self._closing = True
        self._buffer = b""
        self._linger_until = self._worker.now + _LINGER_S
        self.transport.write_eof()

    def close(self) -> None:
        self._closing = True
        self._buffer = b""
        self.transport.close()

    def abort(self) -> None:
        self._closing = True
        self.transport.abort()

    # --- time

    def check(self, now: float) -> None:
        """Called a few times a second: ends connections on which nothing moves."""
        settings = self._worker.settings
        waited = now - self.waits_since
        if self._linger_until is not None:
            if now > self._linger_until:
                self.transport.abort()
        elif self.write_paused:
            if waited > settings.body_timeout_s:
                self.abort()
        elif self._request is not None:
            if waited > settings.body_timeout_s and not self._upload_paused:
                self.abort()
        elif self.exchange is None:
            if self._head_since is not None:
                if now - self._head_since > settings.head_timeout_s:
                    self._refuse(408, "the request head did not arrive in time")
            elif waited > settings.keep_alive_s or self._worker.stopping:
                self.close()
