"""One request on its way: client → arm → client. Bytes pass as received; a copy of them is written to the spool."""

from __future__ import annotations

import traceback
from time import perf_counter
from typing import TYPE_CHECKING

from evalpipe.collector.answers import render_answer, render_provider_error
from evalpipe.collector.framing import BodyReader
from evalpipe.collector.heads import EVENTS, LENGTH, AnswerHead
from evalpipe.collector.kept import KeptAnswer
from evalpipe.collector.outbound import Outbound
from evalpipe.collector.passing import pass_answer_head
from evalpipe.collector.stream_usage import MAX_REFUSAL_BYTES, REFUSALS, UsageStripper
from evalpipe.collector.translate import request_id_line
from evalpipe.providers.encoding import EncodingError

if TYPE_CHECKING:
    from evalpipe.collector.server import Client, Request
    from evalpipe.collector.worker import Worker


class _Held:
    """An answer that may refuse what evalpipe had added to the request: nothing of it goes to the client until that is
    known."""

    __slots__ = ("answer", "at", "n_bytes", "pieces", "reader")

    def __init__(self, answer: AnswerHead, reader: BodyReader, at: float) -> None:
        self.answer, self.reader, self.at = answer, reader, at
        self.pieces: list[tuple[bytes, bytes, float]] = []
        self.n_bytes = 0


class Flight(Outbound):
    """Collected requests (`endpoint` set) leave a request record and a response record."""

    answer_started = False
    status = 0
    """what the client saw"""
    timeout_ms: float | None = None
    _kept_answer: KeptAnswer | None = None
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

    def __init__(self, worker: Worker, client: Client, request: Request) -> None:
        super().__init__(worker, client, request)
        worker.flights.add(self)

    # --- the answer

    def interim(self, head: bytes) -> None:
        if not self.request.facts.http10:
            self.client.transport.write(head)

    def head(self, answer: AnswerHead, reader: BodyReader, at: float, *, last: bool, followed: bool) -> None:
        if self._unasked is not None:
            if answer.status in REFUSALS and not last:
                self._last_byte = at
                self._held = _Held(answer, reader, at)
                return
            self._unasked = None
        elif self._is_asked_again:
            self.worker.asking[self.arm.arm].answered_without(answer.status)
        self._take_head(answer, reader, at, last=last, followed=followed)

    def _take_head(self, answer: AnswerHead, reader: BodyReader, at: float, *, last: bool, followed: bool) -> None:
        self._first_byte = self._last_byte = at
        self.answer_started = True
        self.status = answer.status
        request = self.request
        worker = self.worker
        self._is_stream = answer.roles & EVENTS != 0
        if self.endpoint is not None:
            self._kept_answer = KeptAnswer(answer, worker.max_logged_bytes)
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
        head = pass_answer_head(
            answer, chunked=reader.chunked and not self._dechunk, any_length=any_length, decoded=is_decoded
        )
        self._head_bytes = head + b"\r\n".join(lines)
        if last:
            self._finish(self._head_bytes)
        elif not followed:
            self.client.transport.write(self._head_bytes)
            self._head_bytes = b""

    def _stripper_of(self, answer: AnswerHead) -> UsageStripper | None:
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
        if last or held.n_bytes > MAX_REFUSAL_BYTES:
            self._let_go(held, is_whole=last, last=last)

    def _let_go(self, held: _Held, *, is_whole: bool, last: bool) -> None:
        """The request goes out again, where all of the answer is in and refuses what evalpipe had added; else the client gets
        the answer as it came."""
        self._held = None
        unasked, self._unasked = self._unasked, None
        if is_whole and unasked is not None:
            kept = KeptAnswer(held.answer, MAX_REFUSAL_BYTES)
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
        self.worker.turn.answer(self)

    def _send_last_soon(self) -> None:
        self.worker.turn.send(self)

    def answer_last(self, now: float) -> None:
        """The last piece goes to the client, if it is still there; `now` is a perf_counter's."""
        client = self.client
        if client.flight is self:
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
            self.client.abort()  # only a reset can say that an answer ended by closing is not whole
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
        """Something of ours failed while its bytes were written: it is shown, and nobody waits for what cannot come."""
        traceback.print_exc()
        self.worker.flights.discard(self)
        self.client.abort()

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
            if ended != "complete":  # what the client is told next is told at once
                self.worker.turn.end()
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
        self.worker.flights.discard(self)
        if self.client.flight is self:
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
