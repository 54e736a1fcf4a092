"""Exchanges → records in the spool (and, under redaction, originals to the treatment process through memory)."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import re
from time import time
from typing import TYPE_CHECKING, Final

import msgspec

from evalpipe.collector.exchange_base import ResponseCapture, WriteBatch, http_outcome
from evalpipe.collector.known_keys import KnownKeys, client_keys, held_keys
from evalpipe.collector.metrics import Exchanges, Metrics
from evalpipe.collector.settings import CollectorSettings
from evalpipe.collector.setup_watch import SetupWatch
from evalpipe.http1.headers import ENCODING, LOGGED_REQUEST, logged
from evalpipe.identity import hash_unit
from evalpipe.spool.format import Body, FeedbackRecord, RequestRecord, ResponseRecord, ShadowRecord, render_record
from evalpipe.spool.writer import RequestTemplate, ResponseTemplate, SpoolWriter

if TYPE_CHECKING:
    from evalpipe.collector.exchange_base import ExchangeState
    from evalpipe.collector.forward_headers import ParsedHeaders
    from evalpipe.collector.redaction import Redactor
    from evalpipe.collector.unredacted_channel import UnredactedSender


_SECRET_QUERY = re.compile(
    rb"([?&](?:[^=&]*(?:key|token|secret|signature|password|sig|auth)[^=&]*)=)[^&]*", re.IGNORECASE
)


class Recorder:
    def __init__(
        self,
        settings: CollectorSettings,
        writer: SpoolWriter,
        write_batch: WriteBatch,
        metrics: Metrics,
        setup: SetupWatch,
        *,
        originals: UnredactedSender | None,
    ) -> None:
        self._settings, self._writer, self._write_batch, self._metrics = settings, writer, write_batch, metrics
        self._originals, self._setup = originals, setup
        self._redacts = bool(settings.redact)
        self._held = held_keys(settings)
        self._held_keys = KnownKeys(self._held, [])
        self._known: dict[tuple[str, ...], KnownKeys] = {(): self._held_keys}
        self._redactors: dict[tuple[str, ...], Redactor] = {}
        self._unit_key = settings.unit_key.value.encode("latin-1")

    def request(self, exchange: ExchangeState, *, whole: bool = True) -> None:
        """The request record; `whole` False: the arm answered before the request was in, so no copy is due."""
        assignment = exchange.assignment
        assert assignment is not None and exchange.endpoint is not None
        facts = exchange.request.facts
        kept = exchange.kept_request
        keys = self._keys_of(facts)
        template = facts.template
        holds_key = keys.may_be_in(kept.data)
        if template is not None and whole and not holds_key:
            template.add(self._write_batch.lines(), exchange.request_id, exchange.started_at, kept.data, kept.n_dropped)
            return
        body = kept.body
        eligible = assignment.eligible and whole
        record = RequestRecord(
            request_id=exchange.request_id,
            experiment=self._settings.experiment,
            mode=self._settings.mode,
            arm=assignment.arm,
            received_at=exchange.started_at,
            unit_id=self._stored_id(assignment.unit_id, keys),
            unit_source=assignment.unit_source,
            conversation_id=self._stored_id(assignment.conversation_id, keys),
            endpoint=exchange.endpoint,
            method=str(facts.method, "latin-1"),
            target=str(_without_secrets(facts.target), "latin-1"),
            headers=logged(facts.lines, LOGGED_REQUEST),
            body=body,
            eligible=eligible,
            percentage=assignment.percentage,
            stage=assignment.stage,
            forced=assignment.forced,
            config_fingerprint=self._settings.config_fingerprint,
            injects_usage=self._settings.inject_stream_usage,
        )
        redacts = self._redacts or holds_key
        written = record
        if keys.values or redacts:
            redactor = self._redactor(keys)
            headers = {name: redactor.text(value) for name, value in record.headers.items()}
            written = msgspec.structs.replace(record, target=redactor.text(record.target), headers=headers)
            if redacts:
                headers = redactor.headers(record.headers)
                decoded = redactor.body(body, record.headers.get("content-encoding"))
                written = msgspec.structs.replace(written, body=decoded, headers=headers)
        if not redacts and whole and assignment is facts.assignment:
            facts.template = RequestTemplate(written)
        self._write_batch.record(render_record(written))
        if eligible and self._originals is not None:
            reason = self._originals.send(render_record(record))
            if reason is not None:
                self.shadow(exchange.request_id, *reason)

    def response(self, exchange: ExchangeState, ended: str, message: str | None, kept: ResponseCapture | None) -> None:
        assignment = exchange.assignment
        assert assignment is not None and exchange.endpoint is not None
        latency_ms = exchange.latency_ms
        arm = exchange.arm
        name: str = arm.arm
        first_token_ms = None if kept is None else kept.first_token_ms
        exchanges = self._metrics.served(name)
        outcome = http_outcome(ended, exchange.status)
        exchanges.observe(outcome, latency_ms / 1000, first_token_ms)
        if outcome != "ok" or not exchanges.is_proven:
            self._watch_setup(exchange, exchanges, ended, message, kept)
        facts = exchange.request.facts
        keys = self._keys_of(facts)
        redacts = self._redacts or (kept is not None and may_hold(keys, kept))
        templates = facts.answer_templates
        is_plain = kept is not None and ended == "complete" and exchange.sent_body is None and not redacts
        template = templates.get(name) if is_plain else None
        if template is not None and kept is not None:
            template.add(
                self._write_batch.lines(),
                exchange.request_id,
                exchange.started_at,
                latency_ms,
                exchange.first_byte_ms,
                kept.marks,
                exchange.status,
                kept.headers_json,
                kept.kept.data,
                kept.kept.n_dropped,
                b"",
            )
            return
        body = _EMPTY if kept is None else kept.kept.body
        headers = {} if kept is None else kept.headers
        sent = None if exchange.sent_body is None else Body.of(exchange.sent_body)
        if redacts or sent is not None:
            redactor = self._redactor(keys)
            if redacts:
                body = redactor.body(body, headers.get("content-encoding"))
                headers = redactor.headers(headers)
                message = None if message is None else redactor.text(message)
            if sent is not None and (self._redacts or keys.may_be_in(sent.data)):
                sent = redactor.body(sent, None)
        failed = ended not in {"complete", "closed_by_upstream", "client_closed"}
        record = ResponseRecord(
            request_id=exchange.request_id,
            experiment=self._settings.experiment,
            arm=arm.arm,
            role="served",
            provider=arm.provider,
            endpoint=exchange.answer_endpoint or exchange.endpoint,
            started_at=exchange.started_at,
            ended=ended,
            latency_ms=latency_ms,
            first_byte_ms=exchange.first_byte_ms,
            marks=[] if kept is None else kept.marks,
            status=exchange.status or None,
            headers=headers,
            body=body,
            sent=sent,
            error_type=ended if failed else None,
            error_message=message or None,
            timeout_ms=exchange.timeout_ms,
            infrastructure_usd=arm.infrastructure_usd,
        )
        if is_plain and message is None:
            templates[name] = ResponseTemplate(record)
        self._write_batch.record(render_record(record))

    def _watch_setup(
        self,
        exchange: ExchangeState,
        exchanges: Exchanges,
        ended: str,
        message: str | None,
        kept: ResponseCapture | None,
    ) -> None:
        assignment = exchange.assignment
        assert assignment is not None and exchange.endpoint is not None
        self._setup.ended(
            exchange.arm.arm,
            exchanges,
            endpoint=exchange.answer_endpoint or exchange.endpoint,
            status=exchange.status or None,
            headers={} if kept is None else kept.headers,
            body=b"" if kept is None else kept.kept.data,
            ended=ended,
            message=message,
            asked_at=exchange.started_at,
            unit_id=assignment.unit_id,
            asked=(exchange.endpoint, exchange.readable_request),
            request_id=exchange.request_id,
            secrets=self._keys_of(exchange.request.facts).values,
        )

    def shadow(self, request_id: str, status: str, reason: str) -> None:
        """Called after the request's own record, in the same batch."""
        experiment = self._settings.experiment
        record = ShadowRecord(request_id=request_id, experiment=experiment, status=status, at=time(), reason=reason)
        self._write_batch.record(render_record(record))
        self._metrics.shadow(status)
        if status == "shed":
            self._metrics.shed(reason)

    def feedback(self, request_id: str, rating: float, comment: str | None) -> bool:
        """False: it could not be written."""
        arm = {"c": "control", "t": "treatment"}.get(request_id[-1:])
        if comment is not None:
            comment = self._redactor(self._held_keys).text(comment)
        self._metrics.rated(arm, rating)
        return self._writer.append(
            FeedbackRecord(
                request_id=request_id,
                experiment=self._settings.experiment,
                arm=arm,
                rating=rating,
                at=time(),
                comment=comment,
            )
        )

    def _stored_id(self, raw: str | None, keys: KnownKeys) -> str | None:
        if raw is None:
            return None
        if self._settings.hash_units or self._redactor(keys).text(raw) != raw:
            return hash_unit(self._unit_key, raw)
        return raw

    def _keys_of(self, facts: ParsedHeaders) -> KnownKeys:
        """What must not be written of this request and its answers."""
        keys = facts.keys
        if keys is None:
            client = tuple(client_keys(facts.target, facts.lines))
            keys = self._known.get(client)
            if keys is None:
                if len(self._known) >= _MAX_KNOWN:
                    self._known.clear()
                keys = self._known[client] = KnownKeys(self._held, client)
            facts.keys = keys
        return keys

    def _redactor(self, keys: KnownKeys) -> Redactor:
        redactor = self._redactors.get(keys.values)
        if redactor is None:
            from evalpipe.collector.redaction import Redactor  # only where there is something to be taken out

            if len(self._redactors) >= _MAX_REDACTORS:
                self._redactors.clear()
            redactor = self._redactors[keys.values] = Redactor(self._settings.redact, keys.values)
        return redactor


_EMPTY = Body()
_MAX_KNOWN = 2048
_MAX_REDACTORS = 256
_BRACE: Final = ord("{")


def may_hold(keys: KnownKeys, kept: ResponseCapture) -> bool:
    """Whether an answer, its body decoded, may hold one of the keys."""
    if not keys.values:
        return False
    data = kept.kept.data
    status = kept.head.status
    if kept.head.roles & ENCODING:
        from evalpipe.providers.decoding import EncodingError, decode

        try:
            data = decode(kept.headers, data).data
        except EncodingError:
            return not 200 <= status < 300  # what cannot be read is not written of a failure: it may repeat a key
    # What does not begin like a JSON object may be a stream under another type.
    streamed = kept.streamed or (len(data) > 0 and data[0] != _BRACE)
    return keys.may_be_in_answer(data, streamed=streamed, failed=not 200 <= status < 300) or keys.may_be_in_headers(
        kept.headers_json
    )


def _without_secrets(target: bytes) -> bytes:
    """Some clients carry a key in the query."""
    return _SECRET_QUERY.sub(rb"\1redacted", target) if b"?" in target else target
