"""Requests through memory: with redaction on, what is sent to the treatment never lies on the disk.

The worker hands each request over on a Unix socket, as the record it would have written. What cannot be handed over, or
was lost with a killed process, is counted as not shadowable or shed: the request's redacted record shows that it was due.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import Protocol, cast

from evalpipe.spool.checkpoint import RecordPosition
from evalpipe.spool.format import RequestRecord, read_record

_RECONNECT_S = 0.05
_FIRST_CONNECTION_S = 5.0
"""a worker that starts waits so long for its treatment process; its clients wait in the listening socket"""
_DRAIN_S = 10.0
_LOST_AFTER_S = 10.0
"""a recorded request whose original has not come by then never will"""


class UnredactedSender(asyncio.Protocol):
    """The worker's end: connected to the treatment process whenever there is one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, path: str, max_bytes: int) -> None:
        self._loop, self._path, self._max_bytes = loop, path, max_bytes
        self._transport: asyncio.Transport | None = None
        self._task: asyncio.Task[None] | None = None
        self._connected = asyncio.Event()

    async def start(self) -> None:
        """Connect, now and whenever the connection is lost. Returns when the first one is made, or did not come in time:
        users are served all the same."""
        self._task = self._loop.create_task(self._connect())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_CONNECTION_S):
                await self._connected.wait()

    async def _connect(self) -> None:
        while True:
            if self._transport is None:
                try:
                    await self._loop.create_unix_connection(lambda: self, self._path)
                except OSError:  # no treatment process at the moment: requests are counted as not handed over
                    self._transport = None
            await asyncio.sleep(_RECONNECT_S)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connected.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None

    def send(self, line: bytes) -> tuple[str, str] | None:
        """None where it was handed over, else the shadow status and reason."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return "not_shadowable", "copy_lost"
        if transport.get_write_buffer_size() + len(line) > self._max_bytes:
            return "shed", "queue_full"
        transport.write(line)
        return None

    async def drain(self) -> None:
        """At the end: what was handed over shall arrive."""
        deadline = self._loop.time() + _DRAIN_S
        while self._transport is not None and self._transport.get_write_buffer_size() and self._loop.time() < deadline:  # noqa: ASYNC110 - once per life
            await asyncio.sleep(0.01)
        if self._task is not None:
            self._task.cancel()
        if self._transport is not None:
            self._transport.close()


class ShadowTarget(Protocol):
    """What takes the originals: the queue of shadow requests."""

    def take(self, record: RequestRecord, place: RecordPosition | None) -> None: ...

    def located(self, request_id: str, place: RecordPosition) -> None: ...

    def lost(self, request_id: str, reason: str) -> None: ...


class UnredactedReceiver:
    """The treatment process's end: matches originals with the redacted records found in the spool."""

    def __init__(self, mirror: ShadowTarget) -> None:
        self._mirror = mirror
        self._server: asyncio.AbstractServer | None = None
        self._awaited: dict[str, tuple[RecordPosition, float]] = {}
        """recorded, original not here yet"""
        self._early: set[str] = set()
        """original here, record not read yet"""
        self.n_open = 0

    async def listen(self, path: str) -> None:
        loop = asyncio.get_running_loop()
        if os.path.exists(path):  # noqa: PTH110 - a socket left by a killed predecessor
            os.unlink(path)  # noqa: PTH108
        self._server = await loop.create_unix_server(lambda: _Receiver(self), path)
        os.chmod(path, 0o600)  # noqa: PTH101

    def came(self, line: bytes) -> None:
        """An original."""
        record = read_record(line)
        assert isinstance(record, RequestRecord)
        awaited = self._awaited.pop(record.request_id, None)
        if awaited is None:
            self._early.add(record.request_id)
        self._mirror.take(record, None if awaited is None else awaited[0])

    def recorded(self, record: RequestRecord, place: RecordPosition) -> None:
        """A redacted record."""
        if record.request_id in self._early:
            self._early.discard(record.request_id)
            self._mirror.located(record.request_id, place)
        else:
            self._awaited[record.request_id] = (place, time.monotonic())

    def decided(self, request_id: str) -> None:
        self._awaited.pop(request_id, None)

    def give_up_all(self) -> None:
        """What is recorded now and has no decision went to a process that is gone."""
        for request_id in list(self._awaited):
            del self._awaited[request_id]
            self._mirror.lost(request_id, "copy_lost")

    def tick(self) -> None:
        limit = time.monotonic() - _LOST_AFTER_S
        for request_id, (_, since) in list(self._awaited.items()):
            if since > limit:
                break
            del self._awaited[request_id]
            self._mirror.lost(request_id, "copy_lost")

    async def drain(self) -> None:
        """The workers have ended: what they handed over is in the sockets; what is not there is lost."""
        deadline = time.monotonic() + _DRAIN_S
        while self.n_open and time.monotonic() < deadline:  # noqa: ASYNC110 - once per life
            await asyncio.sleep(0.01)
        self.give_up_all()

    def waiting(self) -> list[RecordPosition]:
        return [place for place, _ in self._awaited.values()]

    def close(self) -> None:
        if self._server is not None:
            self._server.close()


class _Receiver(asyncio.Protocol):
    def __init__(self, originals: UnredactedReceiver) -> None:
        self._originals = originals
        self._partial = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._originals.n_open += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self._originals.n_open -= 1

    def data_received(self, data: bytes) -> None:
        if b"\n" not in data:
            self._partial += data
            return
        *lines, rest = (bytes(self._partial) + data).split(b"\n")
        self._partial = bytearray(rest)
        for line in lines:
            self._originals.came(line)
