"""A logged request → the request an arm is sent, in the arm's dialect; the arm's response → its row of `exchanges`. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from evalpipe.calls.client import CallOutcome, ModelResponse, masked
from evalpipe.calls.runner import RecordedCost
from evalpipe.models import Arm, Exchange, ReplayCall, ReplayStatus
from evalpipe.providers.base import NotShadowableError, OutgoingRequest, Usage
from evalpipe.providers.pricing import Unpriced, price_of
from evalpipe.providers.registry import serves
from evalpipe.providers.translate import render_treatment_request
from evalpipe.replay.http_client import HttpAnswer
from evalpipe.spool.format import Body, RequestRecord, ResponseRecord
from evalpipe.store.exchange_rows import ReadingRules, read_replayed

LONGEST_ANSWER = 32_768
"""output tokens that a request without a limit of its own can cost at most, as far as a cap is concerned"""
DEFAULT_LIMIT = 4_096
"""`max_tokens` of an imported request for Anthropic, which takes none without"""
_DATA_TOKENS_BYTES = 8_000
_DATA = re.compile(rb"[A-Za-z0-9+/=_-]{4000,}")
"""a picture or a file within a request: its tokens are not counted by its bytes"""
_LIMITS = ("max_completion_tokens", "max_output_tokens", "max_tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedRequest:
    """A request as the log holds it, with the fields of its row. `headers`: the client's that an arm of its dialect gets."""

    request_id: str
    request: str
    endpoint: str
    unit_id: str | None = None
    conversation_id: str | None = None
    prompt: str | None = None
    model: str | None = None
    turn: int | None = None
    step: int | None = None
    request_kind: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    is_imported: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayArm:
    """An arm that is asked. `base_url`: what the vendor's SDK would be given; `urls`: the address of each endpoint; `key`: the
    header that carries the arm's key; `fingerprint`: of what decides its answers."""

    arm: Arm
    provider: str
    base_url: str | None
    urls: Mapping[str, str]
    key: Mapping[str, str]
    model: str
    api_key_env: str | None = None
    timeout_s: float = 120.0
    params: Mapping[str, Any] = field(default_factory=dict)
    drop: tuple[str, ...] = ()
    system_prompt: str | None = None
    rewrite: bool = True
    fingerprint: str = ""
    infrastructure_usd: float = 0.0

    @property
    def name(self) -> str:
        return self.arm.value

    @property
    def who(self) -> str:
        """In messages."""
        return f"arms.{self.arm.value}"

    @property
    def key_setting(self) -> str:
        return f"[arms.{self.arm.value}]"

    @property
    def stores_by_default(self) -> bool:
        """Whether its server keeps answers unless asked not to."""
        return "openai.com" in (self.base_url or "")


def outgoing_of(logged: LoggedRequest, arm: ReplayArm, *, batch: bool = False) -> OutgoingRequest:
    """The request an arm is sent. Raises NotShadowableError with the reason where no faithful one exists.

    The treatment gets its model, its parameters and its system prompt; control gets the request as it was, unless its arm is
    configured to `rewrite`. `batch`: no stream.
    """
    document = _document(logged)
    endpoint = _endpoint(logged, document)
    model: str | None = arm.model
    if not arm.rewrite:
        model = None if isinstance(document.get("model"), str) and serves(arm.provider, endpoint) else arm.model
    if logged.is_imported and endpoint == "messages":
        document.setdefault("max_tokens", DEFAULT_LIMIT)
    made = render_treatment_request(
        endpoint,
        json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass")
        if logged.is_imported
        else logged.request.encode("utf-8", "surrogatepass"),
        provider=arm.provider,
        model=model,
        params=arm.params if arm.rewrite else {},
        drop=arm.drop if arm.rewrite else (),
        system_prompt=arm.system_prompt if arm.rewrite else None,
        headers=logged.headers,
        stores_by_default=arm.stores_by_default,
    )
    return _unstreamed(made) if batch else made


def _document(logged: LoggedRequest) -> dict[str, Any]:
    try:
        document = json.loads(logged.request)
    except (ValueError, RecursionError):
        raise NotShadowableError("unreadable_request") from None
    if not isinstance(document, dict):
        raise NotShadowableError("unreadable_request")
    if logged.is_imported and logged.model and not document.get("model"):
        document["model"] = logged.model
    return document


def _endpoint(logged: LoggedRequest, document: Mapping[str, Any]) -> str:
    """Of an imported request the dialect is that of its fields: other tools' logs do not name it."""
    if not logged.is_imported:
        return logged.endpoint
    if "messages" not in document and "input" in document:
        return "responses"
    is_anthropic = "system" in document or "anthropic_version" in document or "stop_sequences" in document
    return "messages" if is_anthropic or logged.endpoint == "messages" else "chat.completions"


def _unstreamed(made: OutgoingRequest) -> OutgoingRequest:
    document = json.loads(made.body)
    if not document.pop("stream", False):
        return made
    document.pop("stream_options", None)
    return replace(made, body=json.dumps(document).encode(), asks_usage=False)


def longest_answer(body: bytes) -> int:
    """The most output tokens a request can be answered with."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return LONGEST_ANSWER
    limits = [document[name] for name in _LIMITS if isinstance(document.get(name), int)]
    n = document.get("n")
    return max(limits, default=LONGEST_ANSWER) * (n if isinstance(n, int) and n > 0 else 1)


def counted_bytes(body: bytes) -> int:
    """Bytes to bound a request's input tokens by: pictures and files within it count by what they can cost at most."""
    found = _DATA.findall(body)
    return len(body) - sum(map(len, found)) + _DATA_TOKENS_BYTES * len(found)


# From the response of an arm to the stored row, read as the collector's responses are.


IN_A_BATCH = "answered in a batch at half this price: a single call costs what is shown"
"""`cost_note` of answers of batches: the arms are compared by what users' requests would cost"""
LOST = "lost"
"""`kind` of a call that was sent and has no response: the process ended first"""
NOT_THE_ARM = (CallOutcome.NO_CONNECTION, CallOutcome.RATE_LIMITED, CallOutcome.FATAL)
"""failures that are not the arm's: the request is sent again"""
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
    """The row of one answer, or of how a call failed. A response from a batch has neither a status nor times: they would not be
    those of the arm."""
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
    meta: dict[str, Any] = {"replay": {"attempt": attempt, **({"batch_id": batch_id} if batch_id else {})}}
    meta["response_headers"] = dict(response.headers)
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
        meta=msgspec.json.encode(meta).decode(),
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
    most = booking.most_tokens
    return ReplayCall(
        request_id=logged.request_id,
        arm=arm.arm,
        attempt=attempt,
        status=status,
        kind=LOST if reply is None else None if status is ReplayStatus.ANSWERED else reply.kind or reply.outcome.value,
        message=(reply.message or None) if reply is not None else None,
        model=reply.model if reply is not None else None,
        cost_usd=booking.cost_usd,
        at_most_usd=booking.at_most,
        at_most_input_tokens=most.input_tokens if most is not None else None,
        at_most_output_tokens=most.output_tokens if most is not None else None,
        input_tokens=usage.input_tokens if usage else None,
        output_tokens=usage.output_tokens if usage else None,
        latency_ms=reply.latency_ms if reply is not None else None,
        at=at.astimezone(UTC),
        batch_id=batch_id,
        simulated=reply.simulated if reply is not None else False,
        exchange=exchange,
    )
