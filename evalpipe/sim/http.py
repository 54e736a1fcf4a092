"""A small HTTP/1.1 server on asyncio and llhttp: enough for a simulated provider, and nothing malformed harms it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import cast

import httptools

MAX_BODY_BYTES = 300 * 1024 * 1024
"""Batches may have 256 MB."""
MAX_HEAD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """`target`: path and query; header names in lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]


Handler = Callable[[HttpRequest, "Responder"], Awaitable[None]]


class Responder:
    """Writes one answer. `abort` breaks the connection off, as a dying server does."""

    def __init__(self, connection: _HttpConnection, *, keep_alive: bool) -> None:
        self._connection = connection
        self.keep_alive = keep_alive
        self.head_sent = False
        self.finished = False
        self._chunked = False

    def head(self, status: int, headers: Iterable[tuple[str, str]], *, length: int | None) -> None:
        """Send the head; `length` None = chunked."""
        self.head_sent = True
        self._chunked = length is None
        framing = ("transfer-encoding", "chunked") if length is None else ("content-length", str(length))
        connection = [] if self.keep_alive else [("connection", "close")]
        phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Overloaded"
        lines = [
            f"HTTP/1.1 {status} {phrase}",
            *(f"{name}: {value}" for name, value in [*headers, framing, *connection]),
        ]
        self._connection.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace"))

    async def write(self, data: bytes) -> None:
        if data:
            self._connection.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
            await self._connection.drained()

    def end(self) -> None:
        if self._chunked:
            self._connection.write(b"0\r\n\r\n")
        self.finished = True

    async def whole(self, status: int, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        self.head(status, headers, length=len(body))
        await self.write(body)
        self.end()

    def abort(self) -> None:
        self.keep_alive = False
        self._connection.close()


class _HttpConnection(asyncio.Protocol):
    """One client: requests are answered one after another, in order."""

    def __init__(self, handler: Handler, connections: set[_HttpConnection]) -> None:
        self._handler = handler
        self._connections = connections
        self._parser = httptools.HttpRequestParser(self)
        self._queue: list[tuple[HttpRequest, bool]] = []
        self._task: asyncio.Task[None] | None = None
        self._writable = asyncio.Event()
        self._writable.set()
        self._reset()

    def _reset(self) -> None:
        self._target = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._size = 0
        self._head_size = 0

    # Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own class is no subclass of it
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._writable.set()
        if self._task is not None:
            self._task.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def drained(self) -> None:
        await self._writable.wait()

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._refuse(400, "no upgrades here")
        except httptools.HttpParserError:
            self._refuse(400, "malformed HTTP")
        if self._head_size > MAX_HEAD_BYTES:
            self._refuse(431, "request header fields too large")

    def eof_received(self) -> bool:
        return False

    # llhttp's callbacks

    def on_message_begin(self) -> None:
        self._reset()

    def on_url(self, url: bytes) -> None:
        self._target += url
        self._head_size += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_size += len(name) + len(value)
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        if self._headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > MAX_BODY_BYTES:
            raise ValueError("body too large")
        self._body.append(body)

    def on_message_complete(self) -> None:
        method, target = self._parser.get_method().decode(), self._target.decode("latin-1")
        request = HttpRequest(method, target, self._headers, b"".join(self._body))
        self._queue.append((request, self._parser.should_keep_alive()))
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._serve())

    async def _serve(self) -> None:
        while self._queue and not self._transport.is_closing():
            request, keep_alive = self._queue.pop(0)
            responder = Responder(self, keep_alive=keep_alive)
            try:
                await self._handler(request, responder)
            except Exception:
                # A bug: the client must not wait for ever, and the traceback must be printed.
                self._transport.close()
                raise
            if not responder.keep_alive or not responder.finished:
                self._transport.close()
                return
        self._task = None

    def _refuse(self, status: int, message: str) -> None:
        if self._transport.is_closing():
            return
        body = message.encode()
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._transport.write(head.encode() + body)
        self._transport.close()


class HttpServer:
    """Serves `handler` on host:port until closed."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._connections: set[_HttpConnection] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; the port that was given where 0 was asked for. Raises OSError."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _HttpConnection(self._handler, self._connections), host, port, backlog=1024
        )
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.close()
        await asyncio.sleep(0)
