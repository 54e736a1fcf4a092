"""Flights → records in the spool (and, under redaction, originals to the treatment process through memory)."""

from __future__ import annotations

import re
from time import time
from typing import TYPE_CHECKING

import msgspec

from evalpipe.collector.heads import CREDENTIAL, LOGGED_REQUEST, logged
from evalpipe.collector.kept import KeptAnswer, http_outcome
from evalpipe.collector.metrics import Exchanges, Metrics
from evalpipe.collector.settings import CollectorSettings
from evalpipe.collector.setup_watch import SetupWatch
from evalpipe.collector.spooling import SpoolWriter
from evalpipe.collector.turn import Turn
from evalpipe.core.identity import hash_unit
from evalpipe.core.spool import (
    Body,
    FeedbackRecord,
    RequestRecord,
    ResponseRecord,
    ShadowRecord,
    render_record,
)
from evalpipe.core.templates import RequestTemplate, ResponseTemplate

if TYPE_CHECKING:
    from evalpipe.collector.flight import Flight
    from evalpipe.collector.originals import OriginalsOut
    from evalpipe.collector.outbound import Outbound
    from evalpipe.collector.redaction import Redactor

_SECRET_QUERY = re.compile(
    rb"([?&](?:[^=&]*(?:key|token|secret|signature|password|sig|auth)[^=&]*)=)[^&]*", re.IGNORECASE
)


class Recorder:
    def __init__(
        self,
        settings: CollectorSettings,
        writer: SpoolWriter,
        turn: Turn,
        metrics: Metrics,
        setup: SetupWatch,
        *,
        redactor: Redactor | None,
        originals: OriginalsOut | None,
    ) -> None:
        self._settings, self._writer, self._turn, self._metrics = settings, writer, turn, metrics
        self._redactor, self._originals, self._setup = redactor, originals, setup
        self._unit_key = settings.unit_key.value.encode("latin-1")

    def request(self, flight: Outbound, *, whole: bool = True) -> None:
        """The request record; `whole` False: the arm answered before the request was in, so no copy is due."""
        assignment = flight.assignment
        assert assignment is not None and flight.endpoint is not None
        facts = flight.request.facts
        kept = flight.kept_request
        template = facts.template
        if template is not None and whole:
            template.add(self._turn.lines(), flight.request_id, flight.started_at, kept.data, kept.n_dropped)
            return
        body = kept.body
        eligible = assignment.eligible and whole
        record = RequestRecord(
            request_id=flight.request_id,
            experiment=self._settings.experiment,
            mode=self._settings.mode,
            arm=assignment.arm,
            received_at=flight.started_at,
            unit_id=self._stored_id(assignment.unit_id),
            unit_source=assignment.unit_source,
            conversation_id=self._stored_id(assignment.conversation_id),
            endpoint=flight.endpoint,
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
        if self._redactor is None:
            if whole and assignment is facts.assignment:
                facts.template = RequestTemplate(record)
            self._turn.record(render_record(record))
            return
        encoding = record.headers.get("content-encoding")
        redacted = msgspec.structs.replace(
            record,
            body=self._redactor.body(body, encoding),
            target=self._redactor.text(record.target),
            headers=self._redactor.headers(record.headers),
        )
        self._turn.record(render_record(redacted))
        if eligible and self._originals is not None:
            reason = self._originals.send(render_record(record))
            if reason is not None:
                self.shadow(flight.request_id, *reason)

    def response(self, flight: Flight, ended: str, message: str | None, kept: KeptAnswer | None) -> None:
        assignment = flight.assignment
        assert assignment is not None and flight.endpoint is not None
        latency_ms = flight.latency_ms
        arm = flight.arm
        name: str = arm.arm
        first_token_ms = None if kept is None else kept.first_token_ms
        exchanges = self._metrics.served(name)
        outcome = http_outcome(ended, flight.status)
        exchanges.observe(outcome, latency_ms / 1000, first_token_ms)
        if outcome != "ok" or not exchanges.is_proven:
            self._watch_setup(flight, exchanges, ended, message, kept)
        templates = flight.request.facts.answer_templates
        is_plain = kept is not None and ended == "complete" and flight.sent_body is None and self._redactor is None
        template = templates.get(name) if is_plain else None
        if template is not None and kept is not None:
            template.add(
                self._turn.lines(),
                flight.request_id,
                flight.started_at,
                latency_ms,
                flight.first_byte_ms,
                kept.marks,
                flight.status,
                kept.headers_json,
                kept.kept.data,
                kept.kept.n_dropped,
                b"",
            )
            return
        body = _EMPTY if kept is None else kept.kept.body
        headers = {} if kept is None else kept.headers
        sent = None if flight.sent_body is None else Body.of(flight.sent_body)
        if self._redactor is not None:
            encoding = headers.get("content-encoding")
            body = self._redactor.body(body, encoding)
            headers = self._redactor.headers(headers)
            message = None if message is None else self._redactor.text(message)
            sent = None if sent is None else self._redactor.body(sent, None)
        failed = ended not in {"complete", "closed_by_upstream", "client_closed"}
        record = ResponseRecord(
            request_id=flight.request_id,
            experiment=self._settings.experiment,
            arm=arm.arm,
            role="served",
            provider=arm.provider,
            endpoint=flight.answer_endpoint or flight.endpoint,
            started_at=flight.started_at,
            ended=ended,
            latency_ms=latency_ms,
            first_byte_ms=flight.first_byte_ms,
            marks=[] if kept is None else kept.marks,
            status=flight.status or None,
            headers=headers,
            body=body,
            sent=sent,
            error_type=ended if failed else None,
            error_message=message or None,
            timeout_ms=flight.timeout_ms,
            infrastructure_usd=arm.infrastructure_usd,
        )
        if is_plain and message is None:
            templates[name] = ResponseTemplate(record)
        self._turn.record(render_record(record))

    def _watch_setup(
        self, flight: Flight, exchanges: Exchanges, ended: str, message: str | None, kept: KeptAnswer | None
    ) -> None:
        assignment = flight.assignment
        assert assignment is not None and flight.endpoint is not None
        self._setup.ended(
            flight.arm.arm,
            exchanges,
            endpoint=flight.answer_endpoint or flight.endpoint,
            status=flight.status or None,
            headers={} if kept is None else kept.headers,
            body=b"" if kept is None else kept.kept.data,
            ended=ended,
            message=message,
            asked_at=flight.started_at,
            unit_id=assignment.unit_id,
            asked=(flight.endpoint, flight.readable_request),
            secrets=[line.value for line in flight.request.facts.lines if line.role & CREDENTIAL],
        )

    def shadow(self, request_id: str, status: str, reason: str) -> None:
        """Told after the request's own record, in the same turn."""
        experiment = self._settings.experiment
        record = ShadowRecord(request_id=request_id, experiment=experiment, status=status, at=time(), reason=reason)
        self._turn.record(render_record(record))
        self._metrics.shadow(status)
        if status == "shed":
            self._metrics.shed(reason)

    def feedback(self, request_id: str, rating: float, comment: str | None) -> bool:
        """False: it could not be written."""
        arm = {"c": "control", "t": "treatment"}.get(request_id[-1:])
        if comment is not None and self._redactor is not None:
            comment = self._redactor.text(comment)
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

    def _stored_id(self, raw: str | None) -> str | None:
        if raw is None:
            return None
        if self._settings.hash_units or (self._redactor is not None and self._redactor.text(raw) != raw):
            return hash_unit(self._unit_key, raw)
        return raw


_EMPTY = Body()


def _without_secrets(target: bytes) -> bytes:
    """Some clients carry a key in the query."""
    return _SECRET_QUERY.sub(rb"\1redacted", target) if b"?" in target else target
