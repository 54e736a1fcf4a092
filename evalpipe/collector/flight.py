"""One request on its way: client → arm → client. Bytes pass as received; a copy of them is written to the spool."""

from __future__ import annotations

import asyncio
from time import perf_counter, time
from typing import TYPE_CHECKING

import msgspec

from evalpipe.collector.answers import render_answer, render_provider_error
from evalpipe.collector.arms import Assignment, RequestHead
from evalpipe.collector.framing import BodyReader
from evalpipe.collector.heads import (
    CHUNKED,
    HeadError,
    Line,
)
from evalpipe.collector.kept import KeptAnswer, KeptBody
from evalpipe.collector.passing import pass_answer_lines, render_passed_head
from evalpipe.collector.translate import TranslatedAnswer, render_outgoing_head, say_to_treatment
from evalpipe.collector.upstream import Upstream
from evalpipe.providers.base import NotShadowableError, OutgoingRequest

if TYPE_CHECKING:
    from evalpipe.collector.server import Client, Request
    from evalpipe.collector.worker import Worker

_MAX_UNSENT = 256 << 10
"""request bytes held while the arm's connection is made; then the client is no longer read"""


class Flight:
    """An `AnswerSink`. Collected requests (`endpoint` set) leave a request record and a response record."""

    def __init__(self, worker: Worker, client: Client, request: Request) -> None:
        self.worker, self.client, self.request = worker, client, request
        self.head_request = request.method == b"HEAD"
        self.endpoint = worker.endpoint(request.method, request.target)
        self.request_id = worker.new_request_id()
        self.assignment: Assignment | None = None
        self._upstream: Upstream | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._unsent: list[bytes] = []
        self._request_done = False
        self._sent_body: bytes | None = None
        self._outgoing: OutgoingRequest | None = None
        self._translated: TranslatedAnswer | None = None
        self._kept_request = KeptBody(worker.settings.max_logged_bytes)
        self._kept_answer: KeptAnswer | None = None
        self._n_request_bytes = 0
        self._answer_started = False
        self._ended = False
        self._dechunk = False
        self._until_close = False
        self._dripping = False
        self._head_bytes = b""
        self._status = 0
        self.started_at = 0.0
        self.arrived = perf_counter()
        self._sent = self._first_byte = self._last_byte = 0.0
        self._overhead = 0.0

    # --- request

    def start(self, *, body_follows: bool) -> None:
        """The head is in. `body_follows`: bytes of the body are handed over right after this call."""
        self.worker.flights.add(self)
        self._waits_for_body = self.endpoint is not None and self.worker.needs_body
        if self._waits_for_body and not self.request.reader.done:
            if self.request.expects:
                self.client.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        if self.request.reader.done:
            self._request_done = True
            if self._waits_for_body:
                self._send_whole()
            elif self._choose(b""):
                self._send(self._render_head(), flush=True)
                self._request_ended()
            return
        if self._choose(None):
            self._send(self._render_head(), flush=not body_follows)

    def request_body(self, payload: list[bytes], n_framed: int, done: bool) -> None:
        """Pieces of the request's body as they come; `n_framed` counts chunk framing and trailers too."""
        self._n_request_bytes += n_framed
        if self._n_request_bytes > self.worker.settings.max_body_bytes:
            raise HeadError(413, "the request body is too large")
        if self.endpoint is not None:
            self._kept_request.add(payload)
        self._request_done = done
        if self._waits_for_body:
            if done:
                self._send_whole()
            return
        if self.request.length == CHUNKED:
            framed = b"".join([b"%x\r\n%b\r\n" % (len(piece), piece) for piece in payload])
            self._send(framed + b"0\r\n\r\n" if done else framed, flush=True)
        else:
            self._send(payload[0] if len(payload) == 1 else b"".join(payload), flush=True)
        if done:
            self._request_ended()

    def _choose(self, body: bytes | None) -> bool:
        """Which arm serves. False: the request is refused, and answered."""
        self.arm = self.worker.settings.control
        if self.endpoint is None:
            return True
        head = RequestHead(
            request_id=self.request_id,
            endpoint=self.endpoint,
            target=self.request.target,
            lines=self.request.head.lines,
        )
        try:
            assignment = self.worker.assigner.assign(head, body)
            if assignment.arm == "treatment":
                assignment = self._to_treatment(head, assignment, body or b"")
        except HeadError as error:
            self.worker.metrics.refused(error.status)
            self._end_without_answer(error.status, "refused", str(error))
            return False
        self.assignment = assignment
        self.arm = self.worker.settings.arm(assignment.arm)
        self.request_id += "c" if assignment.arm == "control" else "t"
        self._request_head = head
        return True

    def _to_treatment(self, head: RequestHead, assignment: Assignment, body: bytes) -> Assignment:
        """Say the request to the treatment arm. Where that cannot be done control serves, outside the statistics."""
        treatment = self.worker.settings.arm("treatment")
        try:
            self._outgoing = say_to_treatment(treatment, head, body)
        except NotShadowableError as error:
            if assignment.forced:
                raise HeadError(400, f"this request cannot be said to the treatment arm: {error}") from None
            return msgspec.structs.replace(assignment, arm="control", forced=True)
        return assignment

    def _send_whole(self) -> None:
        """The body was needed to choose the arm, or is written for it: it goes out whole, with a length."""
        body = self._kept_request.data
        if self._kept_request.n_dropped:
            raise HeadError(413, "the request body is too large")
        if not self._choose(body):
            return
        if self._outgoing is not None:
            self._send_to_treatment(self._outgoing, body)
            return
        rewritten = self.worker.rewrite(self._request_head, self.arm, body)
        if rewritten is not None:
            body = self._sent_body = rewritten
        self._send(self._render_head(len(body)), flush=False)
        self._send(body, flush=True)
        self._request_ended()

    def _send_to_treatment(self, outgoing: OutgoingRequest, body: bytes) -> None:
        key_line = b"" if self.arm.api_key is None else self.worker.key_line(self.arm)
        if outgoing.body != body:
            self._sent_body = outgoing.body
        if outgoing.endpoint != self.endpoint:
            self._translated = TranslatedAnswer(
                outgoing,
                self._request_head,
                body,
                http10=self.request.http10,
                head_lines=self.worker.own_lines(self),
            )
        self._send(
            render_outgoing_head(outgoing, self._request_head, self.worker.origin(self.arm), key_line), flush=False
        )
        self._send(outgoing.body, flush=True)
        self._request_ended()

    def _render_head(self, whole_length: int | None = None) -> bytes:
        key_line = b"" if self.arm.api_key is None else self.worker.key_line(self.arm)
        return render_passed_head(
            self.request,
            self.worker.origin(self.arm),
            key_line,
            whole_length=whole_length,
            identity=self.worker.settings.inject_stream_usage,
        )

    def _send(self, data: bytes, *, flush: bool) -> None:
        upstream = self._upstream
        if upstream is None and self._connecting is None and not self._ended:
            upstream = self.worker.pool.get(self.worker.origin(self.arm))
            if upstream is None:
                self._connecting = self.worker.loop.create_task(self._connect())
            else:
                upstream.begin(self)
                self._upstream = upstream
        self._unsent.append(data)
        if not flush:
            return
        if upstream is not None:
            unsent, self._unsent = self._unsent, []
            upstream.transport.write(unsent[0] if len(unsent) == 1 else b"".join(unsent))
        elif sum(map(len, self._unsent)) > _MAX_UNSENT:
            self.client.pause_upload()

    async def _connect(self) -> None:
        origin = self.worker.origin(self.arm)
        timeout_s = self.worker.settings.connect_timeout_s
        try:
            upstream = await self.worker.pool.connect(origin)
        except TimeoutError:
            self._end_without_answer(504, "timeout", f"no connection to {origin.authority} within {timeout_s:g} s")
            return
        except OSError as error:
            self._end_without_answer(502, "connect_error", f"no connection to {origin.authority}: {error}")
            return
        if self._ended:
            self.worker.pool.put(upstream)
            return
        upstream.begin(self)
        self._upstream = upstream
        upstream.request_sent = self._request_done
        unsent, self._unsent = self._unsent, []
        self.client.resume_upload()
        upstream.transport.write(b"".join(unsent))

    def _request_ended(self) -> None:
        """All of the request is in and on its way: now, while the arm works, its record is written."""
        now = perf_counter()
        self._sent = now
        self.started_at = time()
        if self._upstream is not None:
            self._upstream.request_sent = True
        if self.assignment is not None:
            self.worker.recorder.request(self)
        self._overhead = perf_counter() - self.arrived if self.request.length < _MAX_UNSENT else 0.0

    # --- answer

    def interim(self, head: bytes) -> None:
        if not self.request.http10:
            self.client.transport.write(head)

    def head(
        self, status: int, status_line: bytes, lines: list[Line], reader: BodyReader, *, last: bool, followed: bool
    ) -> None:
        self._first_byte = self._last_byte = perf_counter()
        self._answer_started = True
        self._status = status
        request = self.request
        if self._translated is not None:
            self._kept_answer = KeptAnswer(status, lines, self.worker.settings.max_logged_bytes)
            request.keep = request.keep and not self.worker.stopping
            self._write_translated(self._translated.head(status, lines, keep=request.keep), last=last)
            return
        self._until_close = reader.until_close
        self._dechunk = reader.chunked and request.http10
        head, has_length = pass_answer_lines(status_line, lines, chunked=reader.chunked and not self._dechunk)
        keep = request.keep and not self._until_close and not self._dechunk and not self.worker.stopping
        request.keep = keep
        if not keep:
            head.append(b"Connection: close")
        elif request.http10 and (has_length or last):
            head.append(b"Connection: keep-alive")
        head += self.worker.own_lines(self)
        head.append(b"\r\n")
        self._head_bytes = b"\r\n".join(head)
        if self.endpoint is not None:
            self._kept_answer = KeptAnswer(status, lines, self.worker.settings.max_logged_bytes)
        if last:
            self._end("complete")
            self.client.transport.write(self._head_bytes)
            self._leave()
        elif not followed:
            self.client.transport.write(self._head_bytes)
            self._head_bytes = b""

    def body(self, framed: bytes, payload: list[bytes], *, last: bool) -> None:
        now = self._last_byte = perf_counter()
        if self._kept_answer is not None:
            self._kept_answer.add(payload, (now - self._sent) * 1000)
        if self._translated is not None:
            self._write_translated(self._translated.feed(b"".join(payload)), last=last)
            return
        data = b"".join(payload) if self._dechunk else framed
        if self._head_bytes:
            data = self._head_bytes + data
            self._head_bytes = b""
        if last:  # the record first: who has seen the last byte finds the exchange in the spool
            self._end("complete")
            self.client.transport.write(data)
            self.worker.metrics.overhead(self._overhead + perf_counter() - now)
            self._leave()
        elif data:
            self.client.transport.write(data)

    def _write_translated(self, data: bytes, *, last: bool) -> None:
        assert self._translated is not None
        if last:
            data += self._translated.finish(keep=self.request.keep)
            self.request.keep = self.request.keep and not (self.request.http10 and self._translated.streamed)
            self._end("complete")
        if data:
            self.client.transport.write(data)
        if last:
            self._leave(keep=self.request.keep)

    def lost(self, ended: str, message: str) -> None:
        self._upstream = None
        if self._ended:
            return
        translated = self._translated
        if translated is not None and ended == "closed_by_upstream":
            self._write_translated(b"", last=True)
            return
        if not self._answer_started or (translated is not None and not translated.head_sent):
            self._end_without_answer(502, ended, message)
            return
        self._end(ended, message=message)
        if translated is not None:
            self.client.transport.write(translated.broken(message))
        request = self.request
        request.keep = False
        if ended != "closed_by_upstream" and (self._until_close or self._dechunk):
            self.client.abort()  # only a reset can say that an answer ended by closing is not whole
        self._leave(keep=False)

    def _end_without_answer(self, status: int, ended: str, message: str) -> None:
        """The arm gave no answer: the client gets one in its provider's shape."""
        if self._ended:
            return
        if ended == "timeout":
            status = 504
        if not self._answer_started:
            self._status = status
        self._connecting = None
        anthropic = self.endpoint == "messages" or (self.endpoint is None and self.arm.provider == "anthropic")
        answer = render_provider_error(anthropic, status, f"evalpipe: {message}", self.request_id)
        if not self._request_done:
            self.request.keep = False
        headers = dict(line.decode("latin-1").split(": ", 1) for line in self.worker.own_lines(self))
        self._end(ended, message=message)
        self.client.transport.write(
            render_answer(
                status,
                answer,
                keep=self.request.keep,
                http10=self.request.http10,
                head_only=self.head_request,
                headers=headers,
            )
        )
        self._leave(keep=self.request.keep)

    def client_gone(self) -> None:
        """The client left: the arm is told by closing, and what came so far is recorded."""
        if self._ended:
            return
        self._end("client_closed")
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abandon()
        self.worker.flights.discard(self)

    def _end(self, ended: str, *, message: str | None = None) -> None:
        self._ended = True
        if self._upstream is not None and ended == "complete":
            self._upstream = None  # back in its pool: what the client does now is no concern of it
        if self._sent == 0.0:  # an answer before the end of the request
            self._sent, self.started_at = self.arrived, time()
            if self.assignment is not None and ended != "client_closed":
                self.worker.recorder.request(self, whole=False)
                self._request_done = True
        if self.assignment is not None and self._request_done:
            self.worker.recorder.response(self, ended, message, self._kept_answer)
        elif self.endpoint is None:
            self.worker.metrics.passed_through()

    def _leave(self, *, keep: bool = True) -> None:
        self._upstream = None
        self.worker.flights.discard(self)
        if self.client.flight is self:
            self.client.finished(self, keep=keep)

    # --- flow and time

    def pause_sending(self) -> None:
        self.client.pause_upload()

    def resume_sending(self) -> None:
        self.client.resume_upload()

    def pause_answer(self) -> None:
        if self._upstream is not None:
            self._upstream.transport.pause_reading()

    def resume_answer(self) -> None:
        if self._upstream is not None:
            self._last_byte = perf_counter()
            self._upstream.transport.resume_reading()

    def check(self, now: float) -> None:
        """Called a few times a second with perf_counter: the limits of `[collector]`."""
        settings = self.worker.settings
        if self._sent == 0.0 or self._ended:
            return
        limit_s = 0.0
        if now - self._sent > settings.timeout_s:
            limit_s = settings.timeout_s
        elif self._answer_started and not self.client.write_paused and now - self._last_byte > settings.idle_timeout_s:
            limit_s = settings.idle_timeout_s
        if not limit_s:
            return
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abandon()
        self.timeout_ms = limit_s * 1000
        self.lost("timeout", f"no whole answer within {limit_s:g} s")

    timeout_ms: float | None = None

    @property
    def latency_ms(self) -> float:
        return (perf_counter() - self._sent) * 1000

    @property
    def first_byte_ms(self) -> float | None:
        return (self._first_byte - self._sent) * 1000 if self._answer_started else None

    @property
    def answer_started(self) -> bool:
        return self._answer_started

    @property
    def status(self) -> int:
        return self._status

    @property
    def kept_request(self) -> KeptBody:
        return self._kept_request

    @property
    def sent_body(self) -> bytes | None:
        return self._sent_body

    @property
    def answer_endpoint(self) -> str | None:
        """The endpoint of the dialect the arm answers in."""
        return self.endpoint if self._outgoing is None else self._outgoing.endpoint
