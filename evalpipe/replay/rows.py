"""What an arm answered → the row of `exchanges` it becomes, read as the collector's answers are. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import msgspec

from evalpipe.calls.client import CallOutcome, ModelResponse, masked
from evalpipe.calls.http import HttpAnswer
from evalpipe.calls.runner import RecordedCost
from evalpipe.models import Arm, Exchange, ReplayCall, ReplayStatus
from evalpipe.providers.base import OutgoingRequest, Usage
from evalpipe.providers.pricing import Unpriced, price_of
from evalpipe.replay.requests import LoggedRequest, ReplayArm
from evalpipe.spool.format import Body, RequestRecord, ResponseRecord
from evalpipe.store.exchange_rows import ReadingRules, read_replayed

IN_A_BATCH = "answered in a batch at half this price: a single call costs what is shown"
"""`cost_note` of answers of batches: the arms are compared by what users' requests would cost"""
LOST = "lost"
"""`kind` of a call that was sent and never heard of again: the process ended first"""
NOT_THE_ARM = (CallOutcome.NO_CONNECTION, CallOutcome.RATE_LIMITED, CallOutcome.FATAL)
"""failures that say nothing about the arm: the request is asked again"""
_KEPT_HEADERS = frozenset({"content-type", "content-encoding", "x-request-id", "request-id", "x-simulated-by"})


def exchange_of(
    logged: LoggedRequest,
    arm: ReplayArm,
    outgoing: OutgoingRequest,
    found: HttpAnswer,
    *,
    experiment: str,
    rules: ReadingRules,
    attempt: int,
    batch_id: str | None = None,
    usage: Usage | None = None,
) -> Exchange:
    """The row of one answer, or of how a call failed. An answer of a batch has neither a status nor times: they say nothing of
    the arm."""
    request = RequestRecord(
        request_id=logged.request_id,
        experiment=experiment,
        mode="shadow",
        arm=Arm.CONTROL,
        received_at=found.started_at,
        unit_id=logged.unit_id,
        conversation_id=logged.conversation_id,
        endpoint=logged.endpoint,
        body=Body.of(logged.request.encode("utf-8", "surrogatepass")),
    )
    failed = found.ended not in ("complete", "closed_by_upstream")
    response = ResponseRecord(
        request_id=logged.request_id,
        experiment=experiment,
        arm=arm.arm,
        role="replay",
        provider=arm.provider,
        endpoint=outgoing.endpoint,
        started_at=found.started_at,
        ended=found.ended,
        latency_ms=found.latency_ms,
        first_byte_ms=found.first_byte_ms,
        marks=found.marks,
        status=found.status,
        headers={name: masked(value) for name, value in found.headers.items() if name in _KEPT_HEADERS},
        body=Body.of(_without_keys(found.body)),
        sent=Body.of(outgoing.body),
        error_type=found.ended if failed else None,
        error_message=masked(str(found.error)) if failed and found.error is not None else None,
        timeout_ms=found.timeout_ms,
        infrastructure_usd=arm.infrastructure_usd,
    )
    told: dict[str, Any] = {"replay": {"attempt": attempt, **({"batch_id": batch_id} if batch_id else {})}}
    told["response_headers"] = dict(response.headers)
    row = read_replayed(
        request,
        response,
        rules,
        unit_id=logged.unit_id,
        conversation_id=logged.conversation_id,
        turn=logged.turn,
        step=logged.step,
        request_kind=logged.request_kind,
        prompt=logged.prompt,
        meta=msgspec.json.encode(told).decode(),
        config_fingerprint=arm.fingerprint or None,
        percentage=None,
        forced=None,
    )
    return row if batch_id is None else _as_a_single_call(row, arm, usage or Usage(), rules)


def _as_a_single_call(row: Exchange, arm: ReplayArm, usage: Usage, rules: ReadingRules) -> Exchange:
    """A batch's answer, priced as users' requests would be, with nothing that only a single call shows."""
    row = replace(row, status=None, latency_ms=None, ttft_ms=None)
    if row.cost_usd is None:
        return row
    cost = price_of(
        replace(usage, service_tier=None),
        model=row.model,
        requested=row.model_requested,
        provider=arm.provider,
        at=row.started_at,
        prices=rules.prices,
    )
    if isinstance(cost, Unpriced):
        return replace(row, cost_note=cost.reason, cost_usd=None)
    return replace(row, cost_usd=cost.usd + arm.infrastructure_usd, cost_source=cost.source, cost_note=IN_A_BATCH)


def _without_keys(body: bytes) -> bytes:
    """The answer without the arm's key: providers repeat keys that they refuse."""
    try:
        return masked(str(body, "utf-8")).encode()
    except UnicodeDecodeError:
        return body


def call_row(
    logged: LoggedRequest,
    arm: ReplayArm,
    attempt: int,
    status: ReplayStatus,
    *,
    booking: RecordedCost,
    at: datetime,
    reply: ModelResponse | None = None,
    exchange: Exchange | None = None,
    batch_id: str | None = None,
) -> ReplayCall:
    """What the account keeps of a call."""
    usage = reply.usage if reply is not None else None
    return ReplayCall(
        request_id=logged.request_id,
        arm=arm.arm,
        attempt=attempt,
        status=status,
        kind=LOST if reply is None else None if status is ReplayStatus.ANSWERED else reply.kind or reply.fate.value,
        message=(reply.message or None) if reply is not None else None,
        model=reply.model if reply is not None else None,
        cost_usd=booking.cost_usd,
        at_most_usd=booking.at_most,
        input_tokens=usage.input_tokens if usage else None,
        output_tokens=usage.output_tokens if usage else None,
        latency_ms=reply.latency_ms if reply is not None else None,
        at=at.astimezone(UTC),
        batch_id=batch_id,
        simulated=reply.simulated if reply is not None else False,
        exchange=exchange,
    )
