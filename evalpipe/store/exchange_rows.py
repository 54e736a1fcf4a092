"""The records of one request → its exchanges: the response parsed, timed and priced."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final, cast

import msgspec
from msgspec.structs import replace

from evalpipe.identity import conversation_id, conversation_in, hash_unit, read_sources, unit_of
from evalpipe.models import FAILED, Arm, Exchange, Outcome, Role, ShadowStatus
from evalpipe.providers.base import Answer, RequestView
from evalpipe.providers.decoding import EncodingError, decode, header
from evalpipe.providers.json_values import MalformedJSONError, parse_document, parse_exact
from evalpipe.providers.pricing import NOT_REPORTED, Cost, Price, Unpriced, price_of
from evalpipe.providers.registry import read_answer, read_request, view_of
from evalpipe.spool.format import Body, Ended, RequestRecord, ResponseRecord, ShadowRecord
from evalpipe.spool.join import LOST, STOPPED, PendingRequest
from evalpipe.store.importers.base import prompt_text
from evalpipe.text import well_formed

SIMULATED_HEADER = "x-simulated-by"
_ARMS: Final[Mapping[str, Arm]] = {arm.value: arm for arm in Arm}
_SHADOW_STATUSES: Final[Mapping[str, ShadowStatus]] = {status.value: status for status in ShadowStatus}
# Looked up once: an enum's member takes compiled code as long as ten of its own steps.
_SERVED_ROLE: Final = Role.SERVED
_SHADOW_ROLE: Final = Role.SHADOW
_SAMPLED: Final = ShadowStatus.SAMPLED.value
_TREATMENT: Final = Arm.TREATMENT.value
_TIMEOUT: Final = Outcome.TIMEOUT
_UNREADABLE: Final = Outcome.UNREADABLE
_HTTP_ERROR: Final = Outcome.HTTP_ERROR
BROKEN_OFF = "the answer failed before it reported its tokens: what was billed for it is not known"
"""`cost_note` of failures that may have been billed"""


class ReadingRules(msgspec.Struct, frozen=True, kw_only=True):
    """The configuration of reading records.

    `unit_sources`: as `[experiment] unit`, the first one present names the unit (headers were looked at by the collector).
    `unit_key`: the key of hashed unit ids, None where they are stored as they are. `prices` go before the price library.
    """

    unit_sources: Sequence[str] = ()
    unit_key: bytes | None = None
    prices: Mapping[str, Price] = msgspec.field(default_factory=dict)


def read_exchanges(entry: PendingRequest, rules: ReadingRules) -> list[Exchange]:
    """The rows of a request that is finished, or given up: the served response, and the shadow one where one was sent."""
    request = entry.request
    assert request is not None
    client = _Client(request, rules, entry.served)
    client.is_repeated, client.earlier_attempts = entry.is_repeated, entry.earlier_attempts
    rows = [_served(client, entry)]
    sent = entry.shadow is not None and entry.shadow.status == _SAMPLED
    if entry.copy is not None:
        rows.append(_answered(client, entry.copy, _SHADOW_ROLE))
    elif sent and entry.shadow is not None:
        rows.append(_copy_lost(client, entry.shadow, entry.lost_reason or STOPPED))
    return rows


def read_replayed(request: RequestRecord, response: ResponseRecord, rules: ReadingRules, **columns: Any) -> Exchange:
    """The row of an answer to a logged request that was sent once more, later.

    Args:
        request: the logged request, as its client sent it.
        response: what the arm answered.
        rules: prices.
        columns: what is known of the request by its own row, such as its user and its place in the conversation.
    """
    found = _answered(_Client(request, rules, None), response, Role.REPLAY)
    return replace(found, **columns)


_hashed = lru_cache(maxsize=16_384)(hash_unit)


class _Client:
    """The request as the client sent it, read once for all its exchanges. `served`: the answer the user got, if any."""

    def __init__(self, request: RequestRecord, rules: ReadingRules, served: ResponseRecord | None) -> None:
        self.record = request
        self.rules = rules
        self.body = _decoded(request.headers, request.body)
        self._document: Any
        try:  # nearly every body: parsed once for both
            self._document = parse_exact(self.body)
            self.view = view_of(request.endpoint, self._document)
        except MalformedJSONError:
            self.view = read_request(request.endpoint, self.body)
            self._document = _object(self.body)
        if not rules.unit_sources and not _holds_cache_key(self.body):
            self._document = None
        self.prompt = _prompt(self.view.messages)
        named = request.conversation_id or conversation_in(
            self.view.system_text, self.view.first_user_message, self._document
        )
        self.conversation = named or conversation_id(self.view.system_text, self.view.first_user_message)
        self.unit_id, self.unit_source = self._unit()
        # Under an id of the client's own, one user message may be any turn: the order of its requests decides.
        self.turn = None if self.view.turn == 1 and named and self._names_conversation() else self.view.turn
        self.kind = _kind(request, self.view, served)
        self.is_repeated = False
        self.earlier_attempts: Sequence[str] = ()

    def _names_conversation(self) -> bool:
        """Whether the client named the conversation. A split stores the derived id too, perhaps hashed: that is no name."""
        stored, key = self.conversation, self.rules.unit_key
        derived = conversation_id(self.view.system_text, self.view.first_user_message)
        return stored != derived and (key is None or stored != hash_unit(key, derived))

    def _unit(self) -> tuple[str, str]:
        if self.record.unit_id is not None:
            return self.record.unit_id, self.record.unit_source or "header"
        raw, source = unit_of(read_sources(tuple(self.rules.unit_sources)), None, self._document)
        if raw is not None:
            key = self.rules.unit_key
            return (raw if key is None else _hashed(key, raw)), source
        return self.conversation, "conversation"

    def meta(self, response: ResponseRecord | None) -> str:
        """Fields without a column of their own, as JSON text."""
        request = self.record
        meta = _Meta(
            mode=request.mode,
            unit_source=self.unit_source,
            target=request.target,
            request_headers=request.headers,
            usage_requested=self.view.usage_requested,
        )
        if self.earlier_attempts:
            meta.earlier_attempts = list(self.earlier_attempts)
        if self.is_repeated:
            meta.repeated = True
        if request.stage is not None:
            meta.stage = request.stage
        if request.body.n_dropped_bytes:
            meta.n_request_bytes_dropped = request.body.n_dropped_bytes
        if response is not None:
            meta.ended = response.ended
            meta.first_byte_ms = response.first_byte_ms
            meta.response_headers = response.headers
            if response.body.n_dropped_bytes:
                meta.n_response_bytes_dropped = response.body.n_dropped_bytes
        return _meta_encoder.encode(meta).decode()


class _Meta(msgspec.Struct, kw_only=True, gc=False):
    """The columns' rest, in the order of its JSON; what is unset is not in it."""

    mode: str
    unit_source: str
    target: str
    request_headers: Mapping[str, str]
    usage_requested: bool
    earlier_attempts: list[str] | msgspec.UnsetType = msgspec.UNSET
    repeated: bool | msgspec.UnsetType = msgspec.UNSET
    stage: int | msgspec.UnsetType = msgspec.UNSET
    n_request_bytes_dropped: int | msgspec.UnsetType = msgspec.UNSET
    ended: str | msgspec.UnsetType = msgspec.UNSET
    first_byte_ms: float | msgspec.UnsetType | None = msgspec.UNSET
    response_headers: Mapping[str, str] | msgspec.UnsetType = msgspec.UNSET
    n_response_bytes_dropped: int | msgspec.UnsetType = msgspec.UNSET


_meta_encoder: Final = msgspec.json.Encoder()


def _prompt(messages: Sequence[Mapping[str, Any]]) -> str:
    """`prompt_text`, without a call for the one message of most requests."""
    if len(messages) == 1 and messages[0]["role"] == "user":
        return str(messages[0]["content"])
    return prompt_text(messages)


def _kind(request: RequestRecord, view: RequestView, served: ResponseRecord | None) -> str | None:
    """What is known of the request before any arm responds, as far as it decides what a response can report: the endpoint,
    whether it is streamed, and whether the stream will carry its usage."""
    if not view.streamed:
        return request.endpoint or None
    usage = " with usage" if view.usage_requested else ""
    if view.usage_left_open and (request.injects_usage or _was_injected(served)):
        usage = " usage injected"
    return f"{request.endpoint} streamed{usage}"


def _was_injected(served: ResponseRecord | None) -> bool:
    """Whether evalpipe asked control for usage: collectors before `injects_usage` show it in what was sent only."""
    if served is None or served.arm != Arm.CONTROL or served.sent is None:
        return False
    return read_request(served.endpoint, served.sent.data).usage_requested


def _served(client: _Client, entry: PendingRequest) -> Exchange:
    request = client.record
    status, reason = _shadow_status(entry)
    if entry.served is None:
        return Exchange(
            request_id=request.request_id,
            arm=_ARMS[request.arm],
            role=Role.SERVED,
            started_at=instant(request.received_at),
            endpoint=request.endpoint or None,
            model_requested=client.view.model,
            request=_storable(client.body),
            outcome=Outcome.CLIENT_CLOSED,
            error_type=entry.lost_reason or STOPPED,
            streamed=client.view.streamed,
            shadow_status=status,
            shadow_reason=reason,
            **_common(client, request.arm),
        )
    return _answered(client, entry.served, _SERVED_ROLE, status, reason)


def _shadow_status(entry: PendingRequest) -> tuple[ShadowStatus | None, str | None]:
    """The status of the shadow request; one without a decision was shed."""
    if entry.shadow is not None:
        return _SHADOW_STATUSES[entry.shadow.status], entry.shadow.reason
    assert entry.request is not None
    if not entry.request.eligible:
        return None, None
    return ShadowStatus.SHED, LOST if entry.lost_reason == LOST else STOPPED


def _answered(
    client: _Client,
    response: ResponseRecord,
    role: Role,
    shadow_status: ShadowStatus | None = None,
    shadow_reason: str | None = None,
) -> Exchange:
    request, body = client.record, response.body.content
    ended = cast(Ended, response.ended)
    answer = _as_far_as_kept(
        response, read_answer(response.endpoint, response.status, response.headers, body, ended=ended)
    )
    sent_body = client.body if response.sent is None else response.sent.content
    requested, asks_stream = _asked(client, response)
    outcome = _TIMEOUT if response.error_type == "timeout" else answer.outcome
    usage = answer.usage
    sent_at = instant(response.started_at)
    is_served = role is _SERVED_ROLE
    began_with_it = not is_served or request.received_at == response.started_at
    found = _cost(client, response, answer, requested, outcome, sent_at)
    cost = found if type(found) is Cost else None
    timed_out = outcome is _TIMEOUT and response.timeout_ms is not None
    return Exchange(
        request_id=request.request_id,
        arm=_ARMS[response.arm],
        role=role,
        started_at=sent_at if began_with_it else instant(request.received_at),
        provider=response.provider or None,
        endpoint=response.endpoint or None,
        model_requested=requested,
        model=answer.model,
        request=_storable(sent_body),
        response=answer.assembled if answer.assembled is not None else _raw_text(response, body),
        text=_text(client, response, role, answer),
        tool_calls=json.dumps(answer.tool_calls) if answer.tool_calls else None,
        finish_reason=answer.finish_reason,
        outcome=outcome,
        status=response.status,
        error_type=response.error_type or answer.error_type,
        error_message=response.error_message or answer.error_message,
        latency_ms=response.timeout_ms if timed_out else response.latency_ms,
        ttft_ms=_ttft(response, answer),
        streamed=answer.streamed or asks_stream,
        input_tokens=usage.input_tokens,
        cached_input_tokens=usage.cached_input_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        output_tokens=usage.output_tokens,
        reasoning_tokens=usage.reasoning_tokens,
        cost_usd=None if cost is None else cost.usd + response.infrastructure_usd,
        priced_at=None if cost is None else cost.priced_at,
        cost_source=None if cost is None else cost.source,
        cost_note=found.reason if isinstance(found, Unpriced) else found.note,
        simulated=bool(header(response.headers, SIMULATED_HEADER)),
        shadow_status=shadow_status,
        shadow_reason=shadow_reason,
        # As `_common`, without the detour of a mapping.
        unit_id=client.unit_id,
        conversation_id=client.conversation,
        meta=client.meta(response),
        config_fingerprint=_of_arm(request.config_fingerprint, response.arm),
        prompt=client.prompt,
        percentage=request.percentage,
        forced=request.forced or client.is_repeated,
        turn=client.turn,
        step=client.view.step,
        request_kind=client.kind,
    )


def _copy_lost(client: _Client, shadow: ShadowRecord, reason: str) -> Exchange:
    """A shadow request that was sent (or about to be) when its process was killed: at most once means it is not sent again."""
    return Exchange(
        request_id=client.record.request_id,
        arm=Arm.TREATMENT,
        role=Role.SHADOW,
        started_at=instant(shadow.at),
        outcome=Outcome.CLIENT_CLOSED,
        error_type=reason,
        **_common(client, Arm.TREATMENT),
    )


def _common(client: _Client, arm: str) -> dict[str, Any]:
    """The columns of a row without an answer that its request decides."""
    request = client.record
    return {
        "unit_id": client.unit_id,
        "conversation_id": client.conversation,
        "meta": client.meta(None),
        "config_fingerprint": _of_arm(request.config_fingerprint, arm),
        "prompt": client.prompt,
        "percentage": request.percentage,
        "forced": request.forced or client.is_repeated,
        "turn": client.turn,
        "step": client.view.step,
        "request_kind": client.kind,
    }


def _of_arm(fingerprints: str | None, arm: str) -> str | None:
    """The fingerprint of this arm's configuration; records of older collectors hold one of the whole, taken as it is."""
    control, dash, treatment = (fingerprints or "").partition("-")
    return (treatment if dash and arm == _TREATMENT else control) or None


def _asked(client: _Client, response: ResponseRecord) -> tuple[str | None, bool]:
    """The model, and whether a stream was wanted, in what this arm got: the client's own request, or its translation."""
    if response.sent is None:
        return client.view.model, client.view.streamed
    view = read_request(response.endpoint, response.sent.content)
    return view.model, view.streamed


def _as_far_as_kept(response: ResponseRecord, answer: Answer) -> Answer:
    """An answer that went through whole and is longer than the log keeps is no failure of the arm: what was kept of it
    breaks off, the answer did not. Its tokens, where its end would have reported them, are unknown."""
    n_dropped = response.body.n_dropped_bytes
    if not n_dropped or response.ended != "complete" or answer.outcome is not _UNREADABLE:
        return answer
    message = f"the answer is longer than the log keeps: {n_dropped:,} bytes are not in it"
    return replace(answer, outcome=Outcome.OK, error_type="not_kept_whole", error_message=message)


def _cost(
    client: _Client, response: ResponseRecord, answer: Answer, requested: str | None, outcome: Outcome, at: datetime
) -> Cost | Unpriced:
    generated = answer.usage.output_tokens is not None or answer.text or answer.tool_calls
    if outcome is _HTTP_ERROR and not generated and _is_not_billed(response):
        return Cost(usd=0.0, priced_at=at, source="not billed")
    cost = price_of(
        answer.usage,
        model=answer.model,
        requested=requested,
        provider=response.provider,
        at=at,
        prices=client.rules.prices,
    )
    if outcome in FAILED and isinstance(cost, Unpriced) and cost.reason == NOT_REPORTED:
        return Unpriced(reason=BROKEN_OFF)
    return cost


def _text(client: _Client, response: ResponseRecord, role: Role, answer: Answer) -> str | None:
    """The answer's text. Of a stream that was translated for its user, all that the user got: reasoning that only its closing
    tag shows to be some had passed by then."""
    is_translated = role is _SERVED_ROLE and response.endpoint != client.record.endpoint
    if is_translated and client.view.streamed and answer.late_reasoning:
        return answer.late_reasoning + (answer.text or "")
    return answer.text


def _is_not_billed(response: ResponseRecord) -> bool:
    """Whether the request was never sent, or answered with an error's status: neither vendor bills those. An error within a
    200, and a connection that broke, may come after tokens that are billed."""
    if response.ended == "connect_error":
        return True
    is_answered = response.ended in {"complete", "closed_by_upstream"}
    return is_answered and response.status is not None and response.status >= 300


def _ttft(response: ResponseRecord, answer: Answer) -> float | None:
    """Ms until the bytes with the first content were there: the first mark at or behind them."""
    if not answer.streamed or answer.content_offset is None:
        return None
    return next((ms for n_bytes, ms in response.marks if n_bytes >= answer.content_offset), None)


def _decoded(headers: Mapping[str, str], body: Body) -> bytes | str:
    """The body without its content encoding, as text where it has none and is UTF-8."""
    if not header(headers, "content-encoding"):
        return body.content
    try:
        return decode(headers, body.data).data
    except EncodingError:
        return body.data


def _raw_text(response: ResponseRecord, body: bytes | str) -> str | None:
    """What came, as text, where no message could be read from it; nothing is null."""
    if not body:
        return None
    return _storable(_decoded(response.headers, response.body))


def _storable(body: bytes | str) -> str:
    return body if isinstance(body, str) else well_formed(str(body, "utf-8", "replace"))


def _object(body: bytes | str) -> dict[str, Any]:
    try:
        document = parse_document(body.encode() if isinstance(body, str) else body)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _holds_cache_key(body: bytes | str) -> bool:
    return '"prompt_cache_key"' in body if isinstance(body, str) else b'"prompt_cache_key"' in body


_from_timestamp: Final = datetime.fromtimestamp


def instant(seconds: float) -> datetime:
    return _from_timestamp(seconds, UTC)
