"""The nouns of traffic: an arm, an exchange (one request with one arm's answer), a person's label, a user's rating."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Mode(StrEnum):
    """How the arms get their traffic: a copy of every request, a split by unit, or a split that grows in stages."""

    SHADOW = "shadow"
    AB = "ab"
    CANARY = "canary"


class Arm(StrEnum):
    CONTROL = "control"
    TREATMENT = "treatment"


class Role(StrEnum):
    """What the exchange was for: an answer a user got, a copy, a later repetition, or another tool's log."""

    SERVED = "served"
    SHADOW = "shadow"
    REPLAY = "replay"
    IMPORTED = "imported"


class Outcome(StrEnum):
    """How an exchange ended. The metrics' row sets are built from these: see `ANSWERED`, `FAILED`."""

    OK = "ok"
    HTTP_ERROR = "http_error"
    TIMEOUT = "timeout"
    REFUSED = "refused"
    TRUNCATED = "truncated"
    UNREADABLE = "unreadable"
    CLIENT_CLOSED = "client_closed"
    SHED = "shed"


ANSWERED = frozenset({Outcome.OK, Outcome.REFUSED, Outcome.TRUNCATED})
FAILED = frozenset({Outcome.HTTP_ERROR, Outcome.TIMEOUT, Outcome.UNREADABLE})


class ShadowStatus(StrEnum):
    """What became of a request's treatment copy; the four add up to every eligible request."""

    SAMPLED = "sampled"
    NOT_SAMPLED = "not_sampled"
    NOT_SHADOWABLE = "not_shadowable"
    SHED = "shed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """One request with one arm's answer, as stored: one row of the `exchanges` dataset. Not measured is None, never 0.

    Times are UTC instants (`_at`) or milliseconds (`_ms`); tokens and dollars are counts as billed. `input_tokens` holds
    the whole input, cached and cache-write tokens included. JSON texts are stored as received.
    """

    request_id: str
    arm: Arm
    role: Role
    unit_id: str | None
    conversation_id: str | None
    started_at: datetime
    provider: str | None = None
    endpoint: str | None = None
    model_requested: str | None = None
    model: str | None = None
    request: str | None = None
    response: str | None = None
    meta: str | None = None
    text: str | None = None
    tool_calls: str | None = None
    finish_reason: str | None = None
    outcome: Outcome = Outcome.OK
    status: int | None = None
    error_type: str | None = None
    error_message: str | None = None
    latency_ms: float | None = None
    ttft_ms: float | None = None
    streamed: bool | None = None
    input_tokens: int | None = None
    cached_input_tokens: int | None = None
    cache_write_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    cost_usd: float | None = None
    priced_at: datetime | None = None
    config_fingerprint: str | None = None
    simulated: bool = False
    shadow_status: ShadowStatus | None = None
    shadow_reason: str | None = None
    prompt: str | None = None
    """the request's conversation as a person reads it"""
    percentage: float | None = None
    """share of treatment in force when the request came (ab, canary), in [0, 100]"""
    forced: bool | None = None
    """the arm was forced by a tester's header: in no statistic"""
    turn: int | None = None
    """user messages of the request; None where the provider keeps the conversation: it is then told by the order of requests"""
    step: int | None = None
    """assistant messages since the last user message (tool loops)"""
    request_kind: str | None = None
    """endpoint, streaming and usage as the client asked for them: what decides which values an answer can tell"""
    cost_source: str | None = None
    """what `cost_usd` was computed by: "config", the price library and its version, or the provider's own field"""
    cost_note: str | None = None
    removed_at: datetime | None = None
    """why there is no cost, or what is not in it"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """A person's (or an objective test's) preference on a pair: P(treatment better), so 1, 0.5 or 0."""

    request_id: str
    preference: float | None
    source: str
    labeler: str | None = None
    labeled_at: datetime | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Feedback:
    """An end user's rating of the answer they got: 1 up, 0 down, or any number in [0, 1]."""

    request_id: str
    arm: Arm | None
    rating: float
    comment: str | None
    at: datetime
