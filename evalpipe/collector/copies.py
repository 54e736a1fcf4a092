"""One treatment copy on its way: sent over the same connections as served traffic, its answer kept and timed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter, time

from evalpipe.collector.framing import BodyReader
from evalpipe.collector.heads import AnswerHead
from evalpipe.collector.kept import KeptAnswer
from evalpipe.collector.settings import Origin
from evalpipe.collector.upstream import AnswerSink, Pool, Upstream
from evalpipe.core.spool import RequestRecord
from evalpipe.core.treatment_state import Place
from evalpipe.providers.base import OutgoingRequest


def render_copy_head(outgoing: OutgoingRequest, origin: Origin, key_line: bytes) -> bytes:
    """The head of a copy as far as its length."""
    head = [
        b"POST %b HTTP/1.1" % origin.endpoint_target(outgoing.endpoint),
        b"Host: " + origin.authority.encode("ascii"),
        *(f"{name}: {value}".encode("latin-1") for name, value in outgoing.headers.items()),
    ]
    if key_line:
        head.append(key_line)
    return b"\r\n".join(head) + b"\r\nContent-Length: "


class Copy(AnswerSink):
    """`on_end` is called once, when the answer ended in whatever way. `place`: where its request is recorded, once known."""

    def __init__(
        self,
        record: RequestRecord,
        place: Place | None,
        outgoing: OutgoingRequest,
        *,
        max_bytes: int,
        on_end: Callable[[Copy], None],
    ) -> None:
        self.request_id: str = record.request_id
        self.received_at: float = record.received_at
        self.unit_id: str | None = record.unit_id
        self.place, self.outgoing = place, outgoing
        self.request_body: bytes = outgoing.body
        self._max_bytes, self._on_end = max_bytes, on_end
        self._upstream: Upstream | None = None
        self._sent = self._last_byte = 0.0
        self._over = False
        self.started_at = 0.0
        self.first_byte_ms: float | None = None
        self.latency_ms = 0.0
        self.answer: KeptAnswer | None = None
        self.ended = ""
        self.message = ""
        self.timeout_ms: float | None = None
        self.reserved_usd = 0.0
        self.is_changed = False
        """it was refused once and sent again without what had been added to it"""

    def start(self, loop: asyncio.AbstractEventLoop, pool: Pool, head: bytes) -> None:
        """`head`: from `render_copy_head`."""
        self._loop, self._pool = loop, pool
        self._data = b"".join([head, b"%d\r\n\r\n" % len(self.request_body), self.request_body])
        self._sent, self.started_at = perf_counter(), time()
        upstream = pool.get(self._sent)
        if upstream is None:
            self._connect_anew()
        else:
            self._begin(upstream)

    def change(self, body: bytes) -> None:
        """What is sent at the next `start`, after an answer that refused what evalpipe had added."""
        self.is_changed = True
        self.outgoing = replace(self.outgoing, body=body, asks_usage=False)
        self.request_body, self.answer, self.first_byte_ms = body, None, None
        self.ended, self.message, self._over = "", "", False

    def _connect_anew(self) -> None:
        self._connecting = self._loop.create_task(self._connect(self._pool))

    async def _connect(self, pool: Pool) -> None:
        try:
            upstream = await pool.connect()
        except TimeoutError:
            self.lost("timeout", f"no connection to {pool.origin.authority} in time")
        except OSError as error:
            self.lost("connect_error", f"no connection to {pool.origin.authority}: {error}")
        else:
            if self._over:
                pool.put(upstream, perf_counter())
            else:
                self._begin(upstream)

    def _begin(self, upstream: Upstream) -> None:
        self._upstream = upstream
        upstream.begin(self)
        upstream.request_sent = True
        upstream.transport.write(self._data)

    def check(self, now: float, timeout_s: float) -> None:
        """Called a few times a second with perf_counter."""
        if not self._over and now - self._sent > timeout_s:
            upstream, self._upstream = self._upstream, None
            if upstream is not None:
                upstream.abandon()
            self.timeout_ms = timeout_s * 1000
            self.lost("timeout", f"no whole answer within {timeout_s:g} s")

    def interim(self, head: bytes) -> None:
        """Of no interest here."""

    def head(self, answer: AnswerHead, reader: BodyReader, at: float, *, last: bool, followed: bool) -> None:
        self.first_byte_ms = (at - self._sent) * 1000
        self.answer = KeptAnswer(answer, self._max_bytes)
        if last:
            self._end("complete")

    def body(self, framed: bytes, payload: bytes, at: float, *, last: bool) -> None:
        assert self.answer is not None
        self.answer.add(payload, (at - self._sent) * 1000)
        if last:
            self._end("complete")

    def send_again(self) -> bool:
        self._upstream = None
        if not self._over:
            self._connect_anew()
        return True

    def lost(self, ended: str, message: str) -> None:
        self.message = message
        self._end(ended)

    def _end(self, ended: str) -> None:
        if self._over:
            return
        self._over = True
        self._upstream = None
        self.ended = ended
        self.latency_ms = (perf_counter() - self._sent) * 1000
        self._on_end(self)

    def pause_sending(self) -> None:
        """The whole copy is in memory anyway."""

    def resume_sending(self) -> None:
        """See `pause_sending`."""
