"""The way out of one request: which arm serves it, its bytes to that arm as they come, its record when they are all in."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from dataclasses import replace
from time import perf_counter, time
from typing import TYPE_CHECKING, Final

import msgspec

from evalpipe.collector.arms import Assignment, RequestHead
from evalpipe.collector.heads import CHUNKED, HeadError
from evalpipe.collector.kept import KeptBody
from evalpipe.collector.passing import render_passed_head
from evalpipe.collector.settings import ArmSettings
from evalpipe.collector.stream_usage import UsageStripper, ask_for_usage, without_stream_options
from evalpipe.collector.translate import TranslatedAnswer, render_outgoing_head, say_to_treatment
from evalpipe.collector.upstream import AnswerSink, Pool, Upstream
from evalpipe.providers.base import NotShadowableError, OutgoingRequest
from evalpipe.providers.encoding import EncodingError, decode_request
from evalpipe.providers.registry import speaks
from evalpipe.providers.translate.drop import names_field

if TYPE_CHECKING:
    from evalpipe.collector.server import Client, Request
    from evalpipe.collector.worker import Worker

_MAX_UNSENT: Final = 256 << 10
"""request bytes held while the arm's connection is made; then the client is no longer read"""


class Outbound(AnswerSink):
    """The half of a flight that deals with the request."""

    sent_body: bytes | None = None
    """what the arm got, where it differs from what the client sent"""
    assignment: Assignment | None = None
    _sent = 0.0
    _overhead = 0.0
    _ended = False
    _upstream: Upstream | None = None
    _connecting: asyncio.Task[None] | None = None
    _last_request_bytes = b""
    _unsent: list[bytes] | None = None
    _resend: bytes | None = None
    """what went out over a kept connection, until the server shows that it took it"""
    _request_done = False
    _n_request_bytes = 0
    _outgoing: OutgoingRequest | None = None
    _translated: TranslatedAnswer | None = None
    _stripper: UsageStripper | None = None
    _unasked: bytes | None = None
    """the body without the `stream_options` that evalpipe added, until the server has taken them"""
    _is_asked_again = False

    def __init__(self, worker: Worker, client: Client, request: Request) -> None:
        self.worker, self.client, self.request = worker, client, request
        facts = request.facts
        self.endpoint = facts.endpoint
        self.head_request = facts.method == b"HEAD"
        self.started_at = time()
        """seconds since the epoch: when the request was sent to the arm; until then, when it came"""
        self.arrived = perf_counter()
        self.request_id = worker.new_request_id(self.started_at)
        self.arm: ArmSettings = worker.control
        self.pool: Pool = worker.control_pool
        self.kept_request = KeptBody(worker.max_logged_bytes)

    @abstractmethod
    def _end_without_answer(self, status: int, ended: str, message: str) -> None:
        """The arm gives no answer: the client gets one of ours."""

    def start(self, *, body_follows: bool) -> None:
        """The head is in, the body comes. `body_follows`: some of it is handed over right after this call."""
        if self._waits_for_body:
            if self.request.facts.expects:
                self.client.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        elif self._choose(None):
            self._send(self._render_head(b""), flush=not body_follows)

    def whole(self, body: bytes) -> None:
        """All of the request is in."""
        self._request_done = True
        self._n_request_bytes = len(body)
        if self.endpoint is not None and body:
            self.kept_request.add(body)
        if self._waits_for_body:
            self._send_whole()
        elif self._choose(None):
            self._send(self._render_head(body), flush=True)
            self._is_sent(self.arrived)

    @property
    def _waits_for_body(self) -> bool:
        return self.worker.needs_body and self.endpoint is not None

    def request_body(self, payload: bytes, n_framed: int, done: bool) -> None:
        """Pieces of the request's body as they come; `n_framed` counts chunk framing and trailers too."""
        self._n_request_bytes += n_framed
        if self._n_request_bytes > self.worker.max_body_bytes:
            raise HeadError(413, "the request body is too large")
        if self.endpoint is not None:
            self.kept_request.add(payload)
        self._request_done = done
        if self._waits_for_body:
            if done:
                self._send_whole()
            return
        if self.request.length == CHUNKED:
            framed = b"%x\r\n%b\r\n" % (len(payload), payload) if payload else b""
            self._send(framed + b"0\r\n\r\n" if done else framed, flush=True)
        else:
            self._send(payload, flush=True)
        if done:
            self._request_ended()

    def _choose(self, body: bytes | None) -> bool:
        """Which arm serves. False: the request is refused, and answered."""
        facts = self.request.facts
        if self.endpoint is None:
            # A response that is read, polled, cancelled or deleted by its id: only the arm that made it has it.
            if self.worker.assigner.maker_of(facts.target) == "treatment":
                self.arm, self.pool = self.worker.arms["treatment"], self.worker.pools["treatment"]
            return True
        assignment = facts.assignment
        if assignment is None:
            try:
                assignment = self._assign(self.endpoint, body)
            except HeadError as error:
                self.worker.metrics.refused(error.status)
                self._end_without_answer(error.status, "refused", str(error))
                return False
        self.assignment = assignment
        if assignment.arm == "control":
            self.request_id = self.worker.ids.seal(self.request_id, "c")
        else:
            self.request_id = self.worker.ids.seal(self.request_id, "t")
            self.arm, self.pool = self.worker.arms[assignment.arm], self.worker.pools[assignment.arm]
        return True

    def _assign(self, endpoint: str, body: bytes | None) -> Assignment:
        facts = self.request.facts
        head = RequestHead(request_id=self.request_id, endpoint=endpoint, target=facts.target, lines=facts.lines)
        self._request_head = head
        assignment = self.worker.assigner.assign(head, body)
        if assignment.conversation_id is not None and self.worker.assigner.needs_body:
            is_named = assignment.unit_source != "conversation"
            self.worker.traffic.unit(assignment.unit_id, assignment.conversation_id, is_named=is_named)
        if not self.worker.assigner.needs_body:
            facts.assignment = assignment
        elif assignment.arm == "treatment":
            assignment = self._to_treatment(head, assignment, body or b"")
        elif assignment.percentage and not assignment.forced and self._may_be_unsayable(endpoint):
            assignment = self._as_treatment_would(head, assignment, body or b"")
        return assignment

    def _to_treatment(self, head: RequestHead, assignment: Assignment, body: bytes) -> Assignment:
        """Say the request to the treatment arm. Where that cannot be done control serves, outside the statistics."""
        treatment = self.worker.arms["treatment"]
        try:
            asks = self.worker.asking["treatment"].is_taken
            self._outgoing = say_to_treatment(treatment, head, body, ask_usage=asks)
        except NotShadowableError as error:
            if assignment.forced:
                raise HeadError(400, f"this request cannot be said to the treatment arm: {error}") from None
            self.worker.assigner.keep_on_control(assignment)
            return msgspec.structs.replace(assignment, arm="control", forced=True, reason=error.stored)
        return assignment

    def _may_be_unsayable(self, endpoint: str) -> bool:
        return endpoint == "messages" or not speaks(self.worker.arms["treatment"].provider, endpoint)

    def _as_treatment_would(self, head: RequestHead, assignment: Assignment, body: bytes) -> Assignment:
        """Of a request that control serves by the draw: one that the treatment could not have been asked is left out of the
        statistics here as it is there, or the arms would be compared on different requests."""
        try:
            say_to_treatment(self.worker.arms["treatment"], head, body)
        except NotShadowableError as error:
            self.worker.assigner.keep_on_control(assignment)
            return msgspec.structs.replace(assignment, forced=True, eligible=False, reason=error.stored)
        return assignment

    def _send_whole(self) -> None:
        """The body was needed to choose the arm, or is written for it: it goes out whole, with a length."""
        if self.kept_request.n_dropped:
            raise HeadError(413, "the request body is too large")
        body = self.readable_request
        if not self._choose(body):
            return
        if self._outgoing is not None:
            self._send_to_treatment(self._outgoing, body)
            return
        assert self.endpoint is not None
        written = self.worker.rewrite(self.endpoint, self.arm, body)
        asked = self._with_usage_asked(self.endpoint, written)
        if asked is not None:
            self._unasked, written, self._stripper = written, asked, UsageStripper()
        is_written = written != body
        if is_written:
            self.sent_body = written
        else:
            written = self.kept_request.data  # in the client's own encoding
        self._send(self._render_written_head(len(written), decoded=is_written) + written, flush=True)
        self._request_ended()

    def _send_to_treatment(self, outgoing: OutgoingRequest, body: bytes) -> None:
        key_line = self.arm.key_line
        # As in control's streams: an arm whose tokens are unknown cannot be compared with one whose tokens are known.
        if outgoing.endpoint == self.endpoint:
            asked = self._with_usage_asked(outgoing.endpoint, outgoing.body)
            if asked is not None:
                self._unasked = outgoing.body
                outgoing, self._stripper = replace(outgoing, body=asked), UsageStripper()
        elif outgoing.asks_usage:
            self._unasked = without_stream_options(outgoing.body)
        if outgoing.body != body:
            self.sent_body = outgoing.body
        if outgoing.endpoint != self.endpoint:
            self._translated = TranslatedAnswer(
                outgoing,
                self._request_head,
                body,
                request_id=self.request_id,
                http10=self.request.facts.http10,
                head_lines=self.worker.own_lines(self),
            )
        identity = self._stripper is not None
        head = render_outgoing_head(outgoing, self._request_head, self.pool.origin, key_line, identity=identity)
        self._send(head + outgoing.body, flush=True)
        self._request_ended()

    def _with_usage_asked(self, endpoint: str, body: bytes) -> bytes | None:
        """The body of a chat stream with its usage asked for; None where nothing is to be added."""
        arm = self.arm
        if not self.worker.settings.inject_stream_usage or endpoint != "chat.completions":
            return None
        if not self.worker.asking[arm.arm].is_taken or names_field(arm.drop, "stream_options"):
            return None
        return ask_for_usage(body)

    def _ask_again(self, body: bytes) -> None:
        """The server refused what evalpipe had added to the request: it goes out once more, as it is without. The time counts
        from the first attempt: the user has waited since then."""
        self._unasked, self._stripper, self._is_asked_again = None, None, True
        self.sent_body = None if body == self.kept_request.data else body
        if self._outgoing is None:
            data = self._render_written_head(len(body), decoded=body != self.kept_request.data) + body
        else:
            outgoing = replace(self._outgoing, body=body)
            data = render_outgoing_head(outgoing, self._request_head, self.pool.origin, self.arm.key_line) + body
        upstream = self.pool.get(perf_counter())
        if upstream is None:
            self._upstream, self._resend, self._unsent = None, None, [data]
            self._connecting = self.worker.loop.create_task(self._connect())
            return
        upstream.begin(self)
        upstream.request_sent = True
        self._upstream, self._resend = upstream, data
        upstream.transport.write(data)

    def _render_head(self, body: bytes) -> bytes:
        """The head of a request that is not written for the arm, and what there is of its body."""
        request = self.request
        facts = request.facts
        if self.pool is self.worker.control_pool:
            return b"".join([facts.before, request.length_line, facts.after, body])
        head = render_passed_head(
            facts.method,
            facts.target,
            facts.lines,
            self.pool.origin,
            self.arm.key_line,
            chunked=request.length == CHUNKED,
        )
        return head + body

    @property
    def readable_request(self) -> bytes:
        """The request's body without its content encoding; as it came where that cannot be undone."""
        body = self.kept_request.data
        encoding: str = self.request.facts.encoding
        if not encoding:
            return body
        try:
            return decode_request(encoding, body, limit=self.worker.max_logged_bytes)
        except EncodingError:  # nobody is named in it and nothing can be written into it: control gets it as it came
            return body

    def _render_written_head(self, length: int, *, decoded: bool) -> bytes:
        facts = self.request.facts
        return render_passed_head(
            facts.method,
            facts.target,
            facts.lines,
            self.pool.origin,
            self.arm.key_line,
            chunked=False,
            whole_length=length,
            identity=self._stripper is not None,
            decoded=decoded,
        )

    def _send(self, data: bytes, *, flush: bool) -> None:
        upstream = self._upstream
        if upstream is None and self._connecting is None and not self._ended:
            upstream = self.pool.get(self.arrived)
            if upstream is None:
                self._connecting = self.worker.loop.create_task(self._connect())
            else:
                upstream.begin(self)
                self._upstream = upstream
                self._resend = b""
        if self._resend is not None:
            if self._n_request_bytes > _MAX_UNSENT:
                self._resend = None
            else:
                self._resend = self._resend + data if self._resend else data
        unsent = self._unsent
        if unsent is not None:
            unsent.append(data)
        elif upstream is None or not flush:
            self._unsent = unsent = [data]
        if not flush:
            return
        if upstream is None:
            if unsent is not None and sum(map(len, unsent)) > _MAX_UNSENT:
                self.client.pause_upload()
            return
        if unsent is not None:
            self._unsent = None
            data = b"".join(unsent)
        if self._request_done:
            self._last_request_bytes = data
            self._send_last_soon()
        else:
            upstream.transport.write(data)

    @abstractmethod
    def _send_last_soon(self) -> None:
        """Have `send_last` called at the end of this turn."""

    def send_last(self, now: float) -> None:
        """The last piece goes out, unless the connection it was for is gone; `now` is a perf_counter's."""
        if self._upstream is None or self._ended:
            return
        self._sent = now
        self._overhead = now - self.arrived if self.request.length < _MAX_UNSENT else 0.0
        self._upstream.transport.write(self._last_request_bytes)

    async def _connect(self) -> None:
        pool = self.pool
        authority = pool.origin.authority
        timeout_s = self.worker.settings.connect_timeout_s
        try:
            upstream = await pool.connect()
        except TimeoutError:
            self._end_without_answer(504, "timeout", f"no connection to {authority} within {timeout_s:g} s")
            return
        except OSError as error:
            self.worker.descriptors.failed(error)
            self._end_without_answer(502, "connect_error", f"no connection to {authority}: {error}")
            return
        if self._ended:
            pool.put(upstream, perf_counter())
            return
        upstream.begin(self)
        self._upstream = upstream
        upstream.request_sent = self._request_done
        unsent, self._unsent = self._unsent, None
        self.client.resume_upload()
        if unsent is not None:
            upstream.transport.write(b"".join(unsent))

    def send_again(self) -> bool:
        """A server may close a kept connection at any moment, also while a request is on its way to it (RFC 9112 9.3.1):
        a client of its own would have opened a new one, so this request gets one too, once."""
        self._upstream = None
        if self._ended or self._resend is None:
            return self._ended
        self._unsent, self._resend = [self._resend], None
        self._connecting = self.worker.loop.create_task(self._connect())
        return True

    def _request_ended(self) -> None:
        """All of a request that came in pieces is in and on its way."""
        self.started_at = time()
        self._is_sent(perf_counter())

    def _is_sent(self, at: float) -> None:
        """While the arm works, the record is written. `at`: a perf_counter's, until the last piece goes out."""
        self._sent = at
        if self._upstream is not None:
            self._upstream.request_sent = True
        if self.assignment is not None:
            self.worker.recorder.request(self)
            if self.assignment.percentage is not None:
                agent = next((line.value for line in self.request.facts.lines if line.name == b"user-agent"), b"")
                self.worker.traffic.copy(str(agent, "latin-1"), self.assignment.reason)
            if self.assignment.reason is not None:
                self.worker.recorder.shadow(self.request_id, "not_shadowable", self.assignment.reason)

    @property
    def answer_endpoint(self) -> str | None:
        """The endpoint of the dialect the arm answers in."""
        return self.endpoint if self._outgoing is None else self._outgoing.endpoint

    def pause_sending(self) -> None:
        self.client.pause_upload()

    def resume_sending(self) -> None:
        self.client.resume_upload()
