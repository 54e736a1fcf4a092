"""Shadow requests: decides for every eligible request what becomes of its copy, sends it, keeps the response.

It runs in its own process and reads what the workers write, so nothing here can delay, change or fail a served answer.
Each decision is a record before it is acted on. The queue is bounded in number, bytes and age; what does not fit is shed,
visibly.
"""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Callable, Mapping
from time import perf_counter, time
from typing import TYPE_CHECKING

import msgspec

from evalpipe.calls.limiter import retry_delay_s
from evalpipe.collector.exchange_base import ResponseCapture, http_outcome
from evalpipe.collector.known_keys import KnownKeys, held_keys
from evalpipe.collector.metrics import Metrics
from evalpipe.collector.recorder import may_hold
from evalpipe.collector.redaction import Redactor
from evalpipe.collector.settings import CollectorSettings, Origin
from evalpipe.collector.setup_watch import SetupWatch
from evalpipe.collector.shadow_budget import BudgetWatch
from evalpipe.collector.traffic_watch import TrafficWatch
from evalpipe.collector.transform import UsageAsking, log, without_stream_options
from evalpipe.collector.upstream import Pool, ResponseHandler, UpstreamConnection
from evalpipe.collector.usage_metrics import Pricer
from evalpipe.http1.body import BodyReader
from evalpipe.http1.headers import QUOTA, ResponseHeaders
from evalpipe.identity import conversation_id, in_treatment
from evalpipe.providers.base import NotShadowableError, OutgoingRequest
from evalpipe.providers.decoding import EncodingError, TooLargeError, decode_request
from evalpipe.providers.registry import read_request
from evalpipe.providers.request_fields import names_field
from evalpipe.providers.translate import render_treatment_request
from evalpipe.spool.checkpoint import RecordPosition
from evalpipe.spool.format import Body, RequestRecord, ResponseRecord, ShadowRecord, render_record
from evalpipe.spool.writer import ResponseTemplate, SpoolWriter

if TYPE_CHECKING:
    from evalpipe.collector.portions import Portions

_SAMPLING_SALT = "evalpipe-shadow"
"""sampling is independent of the assignment's salt: a sampled conversation is no likelier in one arm"""
_MAX_TOKENS = re.compile(rb'"max_(?:completion_|output_)?tokens"\s*:\s*([0-9]{1,9})')


class ShadowQueue:
    """What is written is without the keys the collector holds, and without what `redact` names; what is sent is not changed."""

    def __init__(
        self,
        settings: CollectorSettings,
        loop: asyncio.AbstractEventLoop,
        writer: SpoolWriter,
        pool: Pool,
        metrics: Metrics,
        pricer: Pricer,
        *,
        spent_usd: float,
        portions: Portions | None = None,
    ) -> None:
        assert settings.treatment is not None
        self._settings, self._loop, self._writer, self._pool = settings, loop, writer, pool
        self._metrics, self._pricer = metrics, pricer
        self._redacts = bool(settings.redact)
        self._keys = KnownKeys(held_keys(settings), [])
        self._redactor = Redactor(settings.redact, self._keys.values)
        self._arm = settings.treatment
        self._drop = self._arm.drop
        self._asking = UsageAsking("treatment", refused=metrics.usage_refused, say=log)
        self._key_line = self._arm.key_line
        self._stores_by_default: bool = pool.origin.host.endswith("openai.com")
        """OpenAI keeps chat completions of newer accounts unless asked not to"""
        self.shares_quota = pool.origin == settings.control.origin
        self._queue: deque[ShadowRequest] = deque()
        self._queued: dict[str, ShadowRequest] = {}
        self._queued_bytes = 0
        self._in_flight: set[ShadowRequest] = set()
        self._answered: list[bytes] = []
        """records of answers, in pieces, to be written at the end of the turn"""
        self._n_answered = 0
        self._in_turn = False
        self._head, self._head_path = b"", ""
        self._head_headers: Mapping[str, str] | None = None
        self._templates: dict[str, ResponseTemplate] = {}
        self._exchanges = metrics.copies()
        self._setup = SetupWatch(settings)
        self._traffic = TrafficWatch(settings.unit_sources)
        self._concurrency: int = settings.shadow_concurrency
        self._max_queue: int = settings.shadow_queue
        self._max_queue_bytes: int = settings.shadow_queue_bytes
        self.sheds_overflow = False
        """whether a copy that does not fit in the queue is shed; else its caller stops when it is full, and
        what comes next waits where it is"""
        self._hold_until = 0.0
        self._reserved_usd = 0.0
        self.spent_usd = spent_usd
        self._portions = portions
        if portions is not None:
            portions.on_change = self._turn_soon
        limit = settings.shadow_budget_usd
        self._budget = None if limit is None else BudgetWatch(limit, portions, metrics)

    # --- what comes in

    def take(self, record: RequestRecord, place: RecordPosition | None) -> None:
        """An eligible request, as the client sent it."""
        body, unreadable = self._readable(record)
        if self._traffic.is_watching and self._settings.mode == "shadow":
            self._traffic.request(record.endpoint, body, record.unit_id, record.conversation_id)
        if not self._is_sampled(record, body):
            self._decide(record.request_id, "not_sampled", None)
            return
        if time() - record.received_at > self._settings.shadow_queue_age_s:
            self._shed(record.request_id, "too_old")
            return
        arm = self._arm
        if record.body.n_dropped_bytes:
            self._decide(record.request_id, "not_shadowable", "request_too_large")
            return
        if unreadable is not None:
            self._decide(record.request_id, "not_shadowable", unreadable)
            return
        try:
            outgoing = render_treatment_request(
                record.endpoint,
                body,
                provider=arm.provider,
                model=arm.model,
                params=arm.params,
                drop=self._drop,
                system_prompt=arm.system_prompt,
                headers=record.headers,
                stores_by_default=self._stores_by_default,
            )
        except NotShadowableError as error:
            self._decide(record.request_id, "not_shadowable", error.stored)
            self._traffic.copy(record.headers.get("user-agent"), error.stored)
            return
        self._traffic.copy(record.headers.get("user-agent"), None)
        copy = ShadowRequest(record, place, outgoing, max_bytes=self._settings.max_logged_bytes, on_end=self._ended)
        self._queue.append(copy)
        self._queued[copy.request_id] = copy
        self._queued_bytes += len(copy.request_body)
        self._turn_soon()
        if not self.sheds_overflow:
            return
        room = max(0, self._concurrency - len(self._in_flight))  # those leave the queue at the end of this turn
        while len(self._queue) > self._max_queue + room or self._queued_bytes > self._max_queue_bytes:
            self._shed(self._pop().request_id, "queue_full")

    def located(self, request_id: str, place: RecordPosition) -> None:
        """Where a request that came through memory is recorded."""
        copy = self._queued.get(request_id)
        if copy is not None:
            copy.place = place

    def lost(self, request_id: str, reason: str) -> None:
        """A request whose original is gone: it cannot be copied any more."""
        self._decide(request_id, "not_shadowable", reason)

    def saw(self, record: ResponseRecord) -> None:
        """A served answer's quota headers are heeded where the arms share a limit."""
        if record.headers:
            self._heed(record.status, record.headers)

    # --- deciding

    def _readable(self, record: RequestRecord) -> tuple[bytes, str | None]:
        """The body without its content encoding, and why there is none."""
        body: bytes = record.body.data
        encoding = record.headers.get("content-encoding")
        if not encoding or record.body.n_dropped_bytes:
            return body, None
        try:
            return decode_request(encoding, body, limit=self._settings.max_logged_bytes), None
        except TooLargeError:
            return body, "request_too_large"
        except EncodingError:
            return body, "unreadable_request"

    def _is_sampled(self, record: RequestRecord, body: bytes) -> bool:
        percent = self._settings.sample_percent
        if percent >= 100 or self._settings.mode != "shadow":
            return True
        conversation = record.conversation_id
        if conversation is None:
            view = read_request(record.endpoint, body)
            known = view.first_user_message is not None
            conversation = conversation_id(view.system_text, view.first_user_message) if known else record.request_id
        return in_treatment(_SAMPLING_SALT, conversation, percent)

    def _decide(self, request_id: str, status: str, reason: str | None) -> None:
        self._metrics.shadow(status)
        self._writer.append_line(self._render_decision(request_id, status, reason))

    def _render_decision(self, request_id: str, status: str, reason: str | None) -> bytes:
        experiment = self._settings.experiment
        return render_record(
            ShadowRecord(request_id=request_id, experiment=experiment, status=status, at=time(), reason=reason)
        )

    def _shed(self, request_id: str, reason: str) -> None:
        self._metrics.shed(reason)
        self._decide(request_id, "shed", reason)

    def _pop(self) -> ShadowRequest:
        copy = self._queue.popleft()
        del self._queued[copy.request_id]
        self._queued_bytes -= len(copy.request_body)
        return copy

    # --- sending

    def _turn_soon(self) -> None:
        """What comes in together is written together."""
        if not self._in_turn:
            self._in_turn = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        """Write the answers that came, and send what may be sent now, each copy's decision written before it."""
        self._in_turn = False
        self._write_answers()
        due: list[ShadowRequest] = []
        room = self._concurrency - len(self._in_flight)
        if self._queue and time() >= self._hold_until:
            while self._queue and len(due) < room:
                is_covered = self._reserve(self._queue[0])
                if is_covered is None:  # a portion of the budget is being leased: nothing overtakes this one
                    break
                copy = self._pop()
                if is_covered:
                    due.append(copy)
                else:
                    self._shed(copy.request_id, "budget")
        if due:
            self._send(due)

    def _write_answers(self) -> None:
        if self._answered:
            answered, self._answered = self._answered, []
            n_answered, self._n_answered = self._n_answered, 0
            self._writer.append_all(answered, n_answered)

    def _send(self, due: list[ShadowRequest]) -> None:
        self._metrics.shadow("sampled", len(due))
        decisions = [self._render_decision(copy.request_id, "sampled", None) for copy in due]
        for copy, is_written in zip(due, self._writer.append_lines(decisions), strict=True):
            if is_written:
                self._in_flight.add(copy)
                copy.start(self._loop, self._pool, self._head_of(copy.outgoing))
            else:
                self._reserved_usd -= copy.reserved_usd
                self._metrics.shed("unwritable")  # without its record a copy might be sent twice: it is not sent

    def _head_of(self, outgoing: OutgoingRequest) -> bytes:
        """Copies differ in little: the last one's head is most often this one's, too."""
        if outgoing.headers is not self._head_headers or outgoing.path != self._head_path:
            self._head_headers, self._head_path = outgoing.headers, outgoing.path
            self._head = render_copy_head(outgoing, self._pool.origin, self._key_line)
        return self._head

    def _reserve(self, copy: ShadowRequest) -> bool | None:
        """Hold the worst that the copy may cost. False: the budget has no room for it; None: not yet known."""
        budget = self._settings.shadow_budget_usd
        if budget is None:
            return True
        body = copy.outgoing.body
        limit = _MAX_TOKENS.search(body)
        worst = self._pricer.worst_cost(self._arm, len(body), int(limit.group(1)) if limit else None)
        worst += self._arm.infrastructure_usd
        held = self.spent_usd + self._reserved_usd + worst
        fits = held <= budget if self._portions is None else self._portions.covers(held)
        if not fits:
            if fits is False and self._budget is not None:
                self._budget.refused(worst, self.booked_usd)
            return fits
        copy.reserved_usd = worst
        self._reserved_usd += worst
        return True

    def _is_sent_again(self, copy: ShadowRequest) -> bool:
        """Whether the server refused only that evalpipe asked for the usage of a stream: the copy goes out once more."""
        answer = copy.answer
        if answer is None or copy.ended not in {"complete", "closed_by_upstream"}:
            return False
        status = answer.head.status
        if not copy.outgoing.asks_usage:
            if copy.is_changed:
                self._asking.answered_without(status)
            return False
        if not self._asking.refuses(status, answer.headers, answer.kept.data):
            return False
        copy.change(without_stream_options(copy.request_body))
        copy.start(self._loop, self._pool, self._head_of(copy.outgoing))
        return True

    def _ended(self, copy: ShadowRequest) -> None:
        if self._is_sent_again(copy):
            return
        if not self._asking.is_taken and not names_field(self._drop, "stream_options"):
            self._drop = (*self._drop, "stream_options")  # the client's own too: this server takes none
        self._in_flight.discard(copy)
        self._reserved_usd -= copy.reserved_usd
        self._record(copy)
        self._turn_soon()
        answer = copy.answer
        status = None if answer is None else answer.head.status
        outcome = http_outcome(copy.ended, status)
        first_token_ms = None if answer is None else answer.first_token_ms
        self._exchanges.observe(outcome, copy.latency_ms / 1000, first_token_ms)
        if outcome != "ok" or not self._exchanges.is_proven:
            self._watch_setup(copy, status)
        if answer is not None and (status == 429 or answer.head.roles & QUOTA):
            self._heed(status, answer.headers)

    def _watch_setup(self, copy: ShadowRequest, status: int | None) -> None:
        answer = copy.answer
        self._setup.ended(
            "treatment",
            self._exchanges,
            endpoint=copy.outgoing.endpoint,
            status=status,
            headers={} if answer is None else answer.headers,
            body=b"" if answer is None else answer.kept.data,
            ended=copy.ended,
            message=copy.message or None,
            asked_at=copy.received_at,
            unit_id=copy.unit_id,
            asked=(copy.outgoing.endpoint, copy.request_body),
            request_id=copy.request_id,
        )

    def _record(self, copy: ShadowRequest) -> None:
        """A copy's answer; what it cost is booked."""
        self._n_answered += 1
        answer = copy.answer
        endpoint: str = copy.outgoing.endpoint
        redacts = self._redacts or (answer is not None and may_hold(self._keys, answer))
        sends_key = self._keys.may_be_in(copy.request_body)
        is_plain = (
            copy.ended == "complete" and not redacts and not sends_key and self._settings.shadow_budget_usd is None
        )
        template = self._templates.get(endpoint) if is_plain else None
        if template is not None and answer is not None:
            template.add(
                self._answered,
                copy.request_id,
                copy.started_at,
                copy.latency_ms,
                copy.first_byte_ms,
                answer.marks,
                answer.head.status,
                answer.headers_json,
                answer.kept.data,
                answer.kept.n_dropped,
                copy.request_body,
            )
            return
        headers = {} if answer is None else answer.headers
        encoding = headers.get("content-encoding")
        failed = copy.ended not in {"complete", "closed_by_upstream"}
        record = ResponseRecord(
            request_id=copy.request_id,
            experiment=self._settings.experiment,
            arm="treatment",
            role="shadow",
            provider=self._arm.provider,
            endpoint=endpoint,
            started_at=copy.started_at,
            ended=copy.ended,
            latency_ms=copy.latency_ms,
            first_byte_ms=copy.first_byte_ms,
            marks=[] if answer is None else answer.marks,
            status=None if answer is None else answer.head.status,
            headers=self._redactor.headers(headers) if redacts else headers,
            body=self._for_disk(Body() if answer is None else answer.kept.body, encoding, redacts=redacts),
            sent=self._for_disk(Body.of(copy.request_body), None, redacts=self._redacts or sends_key),
            error_type=copy.ended if failed else None,
            error_message=copy.message or None,
            timeout_ms=copy.timeout_ms,
            infrastructure_usd=self._arm.infrastructure_usd,
        )
        if is_plain and not copy.message:
            self._templates[endpoint] = ResponseTemplate(record)
        if self._settings.shadow_budget_usd is not None:
            cost = self._pricer.cost(self._pricer.read(record), self._arm)
            # An answer that does not report its usage may still have been billed: what was reserved counts then.
            self.spent_usd += copy.reserved_usd if cost is None else cost + self._arm.infrastructure_usd
        self._answered.append(render_record(record))

    def _for_disk(self, body: Body, encoding: str | None, *, redacts: bool) -> Body:
        return self._redactor.body(body, encoding) if redacts else body

    def _heed(self, status: int | None, headers: Mapping[str, str]) -> None:
        pause = retry_delay_s(status, headers, time())
        if pause:
            self._hold_until = max(self._hold_until, time() + pause)

    # --- time and end

    def tick(self) -> None:
        """To be called a few times a second."""
        now = perf_counter()
        for copy in list(self._in_flight):
            copy.check(now, self._settings.shadow_timeout_s)
        self._setup.tick()
        oldest = time() - self._settings.shadow_queue_age_s
        while self._queue and self._queue[0].received_at < oldest:
            self._shed(self._pop().request_id, "too_old")
        self._turn()

    def tick_budget(self) -> None:
        """To be called once a second."""
        if self._budget is not None:
            self._budget.tick(self.spent_usd, self.booked_usd)

    @property
    def fullness(self) -> float:
        """Of the queue, 1 where no more should be taken: what waits in the spool costs nothing, and grows too old there too."""
        return max(len(self._queue) / self._max_queue, self._queued_bytes / self._max_queue_bytes)

    @property
    def booked_usd(self) -> float:
        """What was spent, and the worst that copies still under way may cost."""
        return self.spent_usd + self._reserved_usd

    @property
    def is_idle(self) -> bool:
        return not self._queue and not self._in_flight and not self._answered

    def shed_queue(self, reason: str) -> None:
        """At the end: what has not been sent will not be."""
        self._write_answers()
        while self._queue:
            self._shed(self._pop().request_id, reason)

    def waiting(self) -> list[RecordPosition]:
        """Where the requests that wait are recorded."""
        return [copy.place for copy in self._queue if copy.place is not None]


# One treatment copy on its way: sent over the same connections as served traffic, its answer kept and timed.


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


class ShadowRequest(ResponseHandler):
    """`on_end` is called once, when the answer ended in whatever way. `place`: where its request is recorded, once known."""

    def __init__(
        self,
        record: RequestRecord,
        place: RecordPosition | None,
        outgoing: OutgoingRequest,
        *,
        max_bytes: int,
        on_end: Callable[[ShadowRequest], None],
    ) -> None:
        self.request_id: str = record.request_id
        self.received_at: float = record.received_at
        self.unit_id: str | None = record.unit_id
        self.place, self.outgoing = place, outgoing
        self.request_body: bytes = outgoing.body
        self._max_bytes, self._on_end = max_bytes, on_end
        self._upstream: UpstreamConnection | None = None
        self._sent = self._last_byte = 0.0
        self._over = False
        self.started_at = 0.0
        self.first_byte_ms: float | None = None
        self.latency_ms = 0.0
        self.answer: ResponseCapture | None = None
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
        self.outgoing = msgspec.structs.replace(self.outgoing, body=body, asks_usage=False)
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

    def _begin(self, upstream: UpstreamConnection) -> None:
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

    def head(self, answer: ResponseHeaders, reader: BodyReader, at: float, *, last: bool, followed: bool) -> None:
        self.first_byte_ms = (at - self._sent) * 1000
        self.answer = ResponseCapture(answer, self._max_bytes)
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
