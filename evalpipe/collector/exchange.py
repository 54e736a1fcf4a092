"""One proxied exchange: the request to the arm it is assigned to, the response back to the client, bytes as received."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import asyncio
import traceback
from abc import abstractmethod
from time import perf_counter, time
from typing import TYPE_CHECKING, Final

import msgspec

from evalpipe.collector.assignment import Assignment, RequestHead
from evalpipe.collector.exchange_base import BodyBuffer, ExchangeState, ResponseCapture
from evalpipe.collector.forward_headers import render_request_head, render_response_head
from evalpipe.collector.local_responses import render_answer, render_provider_error
from evalpipe.collector.transform import (
    MAX_REFUSAL_BYTES,
    REFUSALS,
    ResponseTranslation,
    UsageStripper,
    ask_for_usage,
    render_outgoing_head,
    request_id_line,
    translate_request,
    without_stream_options,
)
from evalpipe.collector.upstream import Pool, UpstreamConnection
from evalpipe.http1.body import BodyReader
from evalpipe.http1.headers import CHUNKED, EVENTS, LENGTH, HttpError, ResponseHeaders
from evalpipe.providers.base import NotShadowableError, OutgoingRequest
from evalpipe.providers.decoding import EncodingError, decode_request
from evalpipe.providers.registry import serves
from evalpipe.providers.request_fields import names_field

if TYPE_CHECKING:
    from evalpipe.collector.exchange_base import ClientLink, Request
    from evalpipe.collector.worker import Worker


_MAX_UNSENT: Final = 256 << 10
"""request bytes held while the arm's connection is made; then the client is no longer read"""


class OutgoingExchange(ExchangeState):
    """The half of an exchange that deals with the request."""

    _sent = 0.0
    _overhead = 0.0
    _ended = False
    _upstream: UpstreamConnection | None = None
    _connecting: asyncio.Task[None] | None = None
    _last_request_bytes = b""
    _unsent: list[bytes] | None = None
    _resend: bytes | None = None
    """what went out over a kept connection, until the server shows that it took it"""
    _request_done = False
    _n_request_bytes = 0
    _outgoing: OutgoingRequest | None = None
    _translated: ResponseTranslation | None = None
    _stripper: UsageStripper | None = None
    _unasked: bytes | None = None
    """the body without the `stream_options` that evalpipe added, until the server has taken them"""
    _is_asked_again = False

    def __init__(self, worker: Worker, client: ClientLink, request: Request) -> None:
        self.worker, self.client, self.request = worker, client, request
        facts = request.facts
        self.endpoint = facts.endpoint
        self.head_request = facts.method == b"HEAD"
        self.started_at = time()
        self.arrived = perf_counter()
        self.request_id = worker.ids.base(self.started_at)
        self.arm = worker.control
        self.pool: Pool = worker.control_pool
        self.kept_request = BodyBuffer(worker.max_logged_bytes)

    @abstractmethod
    def _end_without_answer(self, status: int, ended: str, message: str) -> None:
        """The arm gives no answer: the client gets one of the collector's own."""

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
            raise HttpError(413, "the request body is too large")
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
            except HttpError as error:
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
        """Translate the request for the treatment arm. Where that cannot be done, control serves it, outside the statistics."""
        treatment = self.worker.arms["treatment"]
        try:
            asks = self.worker.asking["treatment"].is_taken
            self._outgoing = translate_request(treatment, head, body, ask_usage=asks)
        except NotShadowableError as error:
            if assignment.forced:
                raise HttpError(400, f"this request cannot be translated for the treatment arm: {error}") from None
            self.worker.assigner.keep_on_control(assignment)
            return msgspec.structs.replace(assignment, arm="control", forced=True, reason=error.stored)
        return assignment

    def _may_be_unsayable(self, endpoint: str) -> bool:
        return endpoint == "messages" or not serves(self.worker.arms["treatment"].provider, endpoint)

    def _as_treatment_would(self, head: RequestHead, assignment: Assignment, body: bytes) -> Assignment:
        """Of a request that control serves by the draw: one that the treatment could not have been asked is left out of the
        statistics here as it is there, or the arms would be compared on different requests."""
        try:
            translate_request(self.worker.arms["treatment"], head, body)
        except NotShadowableError as error:
            self.worker.assigner.keep_on_control(assignment)
            return msgspec.structs.replace(assignment, forced=True, eligible=False, reason=error.stored)
        return assignment

    def _send_whole(self) -> None:
        """The body was needed to choose the arm, or is written for it: it goes out whole, with a length."""
        if self.kept_request.n_dropped:
            raise HttpError(413, "the request body is too large")
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
                outgoing, self._stripper = msgspec.structs.replace(outgoing, body=asked), UsageStripper()
        elif outgoing.asks_usage:
            self._unasked = without_stream_options(outgoing.body)
        if outgoing.body != body:
            self.sent_body = outgoing.body
        if outgoing.endpoint != self.endpoint:
            self._translated = ResponseTranslation(
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
            outgoing = msgspec.structs.replace(self._outgoing, body=body)
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
        head = render_request_head(
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
        return render_request_head(
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


# One request on its way: client → arm → client. Bytes pass as received; a copy of them is written to the spool.


class _Held:
    """An answer that may refuse what evalpipe had added to the request: nothing of it goes to the client until that is
    known."""

    __slots__ = ("answer", "at", "n_bytes", "pieces", "reader")

    def __init__(self, answer: ResponseHeaders, reader: BodyReader, at: float) -> None:
        self.answer, self.reader, self.at = answer, reader, at
        self.pieces: list[tuple[bytes, bytes, float]] = []
        self.n_bytes = 0


class ProxiedExchange(OutgoingExchange):
    """Collected requests (`endpoint` set) leave a request record and a response record."""

    answer_started = False
    _kept_answer: ResponseCapture | None = None
    _held: _Held | None = None
    _notes_ids = False
    _reframe = False
    _dechunk = False
    _until_close = False
    _is_stream = False
    _head_bytes = b""
    _last_bytes = b""
    _first_byte = 0.0
    _last_byte = 0.0
    _over_at = 0.0

    def __init__(self, worker: Worker, client: ClientLink, request: Request) -> None:
        super().__init__(worker, client, request)
        worker.exchanges.add(self)

    # --- the answer

    def interim(self, head: bytes) -> None:
        if not self.request.facts.http10:
            self.client.transport.write(head)

    def head(self, answer: ResponseHeaders, reader: BodyReader, at: float, *, last: bool, followed: bool) -> None:
        if self._unasked is not None:
            if answer.status in REFUSALS and not last:
                self._last_byte = at
                self._held = _Held(answer, reader, at)
                return
            self._unasked = None
        elif self._is_asked_again:
            self.worker.asking[self.arm.arm].answered_without(answer.status)
        self._take_head(answer, reader, at, last=last, followed=followed)

    def _take_head(self, answer: ResponseHeaders, reader: BodyReader, at: float, *, last: bool, followed: bool) -> None:
        self._first_byte = self._last_byte = at
        self.answer_started = True
        self.status = answer.status
        request = self.request
        worker = self.worker
        self._is_stream = answer.roles & EVENTS != 0
        if self.endpoint is not None:
            self._kept_answer = ResponseCapture(answer, worker.max_logged_bytes)
            self._notes_ids = self.assignment is not None and self.assignment.gives_out
        if self._translated is not None:
            request.keep = request.keep and not worker.stopping
            head = self._translated.head(answer.status, answer.lines, keep=request.keep)
            self._write_translated(head, last=last)
            return
        self._until_close = reader.until_close
        http10 = request.facts.http10
        self._dechunk = reader.chunked and http10
        lines = worker.own_lines(self)
        is_decoded = any_length = False
        if self._stripper is not None:
            self._stripper = self._stripper_of(answer)
        if self._stripper is not None:
            is_decoded = not self._stripper.is_identity
            any_length = not reader.chunked
            self._reframe = not http10 and not self._until_close
            if self._reframe and any_length:
                lines.append(b"Transfer-Encoding: chunked")
            self._until_close = self._until_close or (http10 and any_length)
        request.keep = request.keep and not self._until_close and not self._dechunk and not worker.stopping
        if not request.keep:
            lines.append(b"Connection: close")
        elif http10 and ((answer.roles & LENGTH and not any_length) or last):
            lines.append(b"Connection: keep-alive")
        lines.append(b"\r\n")
        head = render_response_head(
            answer, chunked=reader.chunked and not self._dechunk, any_length=any_length, decoded=is_decoded
        )
        self._head_bytes = head + b"\r\n".join(lines)
        if last:
            self._finish(self._head_bytes)
        elif not followed:
            self.client.transport.write(self._head_bytes)
            self._head_bytes = b""

    def _stripper_of(self, answer: ResponseHeaders) -> UsageStripper | None:
        """What takes the usage out of this answer on its way; None where it is no stream."""
        if not answer.roles & EVENTS:
            return None
        coding = b",".join([line.value for line in answer.lines if line.name == b"content-encoding"])
        try:
            return UsageStripper({"content-encoding": str(coding, "latin-1")})
        except EncodingError:  # no client could read it either: it passes as it is
            return None

    def body(self, framed: bytes, payload: bytes, at: float, *, last: bool) -> None:
        held = self._held
        if held is None:
            self._take_body(framed, payload, at, last=last)
            return
        self._last_byte = at
        held.pieces.append((framed, payload, at))
        held.n_bytes += len(payload)
        is_longer = held.n_bytes > MAX_REFUSAL_BYTES
        if last or is_longer:
            self._let_go(held, is_whole=last and not is_longer, last=last)

    def _let_go(self, held: _Held, *, is_whole: bool, last: bool) -> None:
        """The request goes out again, where all of the answer is in and refuses what evalpipe had added; else the client gets
        the answer as it came."""
        self._held = None
        unasked, self._unasked = self._unasked, None
        if is_whole and unasked is not None:
            kept = ResponseCapture(held.answer, MAX_REFUSAL_BYTES)
            body = b"".join([payload for _, payload, _ in held.pieces])
            if self.worker.asking[self.arm.arm].refuses(held.answer.status, kept.headers, body):
                self._ask_again(unasked)
                return
        self._take_head(held.answer, held.reader, held.at, last=False, followed=bool(held.pieces))
        n_left = len(held.pieces)
        for framed, payload, at in held.pieces:
            n_left -= 1
            self._take_body(framed, payload, at, last=last and not n_left)

    def _take_body(self, framed: bytes, payload: bytes, at: float, *, last: bool) -> None:
        self._last_byte = at
        if self._kept_answer is not None:
            self._kept_answer.add(payload, (at - self._sent) * 1000)
            if (
                self._notes_ids and not last and b'"id"' in payload
            ):  # the rest of a stream may come later than its reader acts
                self._note_ids(payload)
        if self._translated is not None:
            self._write_translated(self._translated.feed(payload), last=last)
            return
        if self._stripper is not None:
            try:
                data = self._stripper.feed(payload)
            except EncodingError as error:
                self._break_off(f"the stream is not in the coding its head names: {error}")
                return
            if last:
                data += self._stripper.finish()
            if self._reframe:
                data = (b"%x\r\n%b\r\n" % (len(data), data) if data else b"") + (b"0\r\n\r\n" if last else b"")
        else:
            data = payload if self._dechunk else framed
        if self._head_bytes:
            data = self._head_bytes + data
            self._head_bytes = b""
        if last:
            self._finish(data)
        elif data:
            self.client.transport.write(data)

    def _break_off(self, message: str) -> None:
        """The rest of the answer cannot be passed on: the client sees that it is not whole."""
        if self._upstream is not None:
            self._upstream.abandon()
        self.lost("protocol_error", message)

    def _write_translated(self, data: bytes, *, last: bool) -> None:
        assert self._translated is not None
        if last:
            data += self._translated.finish(keep=self.request.keep)
            self.request.keep = self.request.keep and not (self.request.facts.http10 and self._translated.streamed)
            self._finish(data)
        elif data:
            self.client.transport.write(data)

    def _finish(self, data: bytes) -> None:
        """The answer is whole: its record, and then `data`, its last piece."""
        self._last_bytes = data
        self._end("complete")
        self.worker.write_batch.answer(self)

    def _send_last_soon(self) -> None:
        self.worker.write_batch.send(self)

    def answer_last(self, now: float) -> None:
        """The last piece goes to the client, if it is still there; `now` is a perf_counter's."""
        client = self.client
        if client.serves(self):
            client.transport.write(self._last_bytes)
            self.worker.metrics.overhead(self._overhead + now - self._last_byte)
        self._leave(keep=self.request.keep)

    def lost(self, ended: str, message: str) -> None:
        self._upstream = None
        if self._ended:
            return
        held = self._held
        if held is not None:
            self._let_go(held, is_whole=ended == "closed_by_upstream", last=False)
            if self._is_asked_again:
                return
        translated = self._translated
        if translated is not None and ended == "closed_by_upstream":
            self._write_translated(b"", last=True)
            return
        if not self.answer_started or (translated is not None and not translated.head_sent):
            self._end_without_answer(502, ended, message)
            return
        self._end(ended, message=message)
        if translated is not None:
            self.client.transport.write(translated.broken(message))
        elif self._stripper is not None and (rest := self._stripper.finish()):
            self.client.transport.write(b"%x\r\n%b\r\n" % (len(rest), rest) if self._reframe else rest)
        request = self.request
        request.keep = False
        if ended != "closed_by_upstream" and (self._until_close or self._dechunk):
            self.client.abort()  # only a reset shows that an answer that ends by closing is not whole
        self._leave(keep=False)

    def _end_without_answer(self, status: int, ended: str, message: str) -> None:
        """The arm gave no answer: the client gets one in its provider's shape."""
        if self._ended:
            return
        if ended == "timeout":
            status = 504
        if not self.answer_started:
            self.status = status
        self._connecting = None
        anthropic = self.endpoint == "messages" or (self.endpoint is None and self.arm.provider == "anthropic")
        answer = render_provider_error(anthropic, status, f"evalpipe: {message}", f"req_{self.request_id}")
        if not self._request_done:
            self.request.keep = False
        lines = self.worker.own_lines(self)
        if self.endpoint is not None:
            lines.append(request_id_line(anthropic, self.request_id))
        headers = dict(line.decode("latin-1").split(": ", 1) for line in lines)
        self._end(ended, message=message)
        self.client.transport.write(
            render_answer(
                status,
                answer,
                keep=self.request.keep,
                http10=self.request.facts.http10,
                head_only=self.head_request,
                headers=headers,
            )
        )
        self._leave(keep=self.request.keep)

    def fault(self) -> None:
        """An internal error while its bytes were written: log it, and close both connections."""
        traceback.print_exc()
        self.worker.exchanges.discard(self)
        self.client.abort()

    def client_gone(self) -> None:
        """The client left: close the arm's connection and record what came so far."""
        if self._ended:
            return
        self._end("client_closed")
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abandon()
        self.worker.exchanges.discard(self)

    def _end(self, ended: str, *, message: str | None = None) -> None:
        self._ended = True
        self._over_at = self._last_byte if ended == "complete" else perf_counter()
        if self._upstream is not None and ended == "complete":
            self._upstream = None  # back in its pool: what the client does now is no concern of it
        if self._sent == 0.0:  # an answer before the end of the request
            self._sent = self.arrived
            if self.assignment is not None and ended != "client_closed":
                self.worker.recorder.request(self, whole=False)
                self._request_done = True
        if self.assignment is not None and self._request_done:
            if self._kept_answer is not None and self.assignment.gives_out:
                self._note_ids(self._kept_answer.kept.data)
            self.worker.recorder.response(self, ended, message, self._kept_answer)
            if ended != "complete":  # what goes to the client next is flushed at once
                self.worker.write_batch.end()
        elif self.endpoint is None:
            self.worker.metrics.passed_through()
            facts = self.request.facts
            if facts.looks_like_model_call or (self._is_stream and facts.method == b"POST"):
                self.worker.metrics.uncollected()
                self.worker.uncollected.saw(facts.method, facts.target)

    def _note_ids(self, data: bytes) -> None:
        """Before the client has all of the answer: a later request may name ids of it, and this arm alone can go on."""
        self._notes_ids = False
        assignment, kept = self.assignment, self._kept_answer
        if assignment is None or kept is None or self._translated is not None or not 200 <= self.status < 300:
            return
        self.worker.assigner.answered(assignment, kept.headers, data)

    def _leave(self, *, keep: bool = True) -> None:
        self._upstream = None
        self.worker.exchanges.discard(self)
        if self.client.serves(self):
            self.client.finished(self, keep=keep)

    # --- flow and time

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
        elif (
            (self.answer_started or self._held is not None)
            and not self.client.write_paused
            and now - self._last_byte > settings.idle_timeout_s
        ):
            limit_s = settings.idle_timeout_s
        if not limit_s:
            return
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abandon()
        self.timeout_ms = limit_s * 1000
        self.lost("timeout", f"no whole answer within {limit_s:g} s")

    @property
    def latency_ms(self) -> float:
        """From the request sent to the answer's end."""
        return (self._over_at - self._sent) * 1000

    @property
    def first_byte_ms(self) -> float | None:
        return (self._first_byte - self._sent) * 1000 if self.answer_started else None
