"""The records of evalpipe: exchanges, labels, ratings, judgments, decisions, and the states of a canary. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

import msgspec

AGAINST_ITSELF = "~control"
"""NAME~control: control's recorded answers against its replayed ones"""


class Arm(StrEnum):
    CONTROL = "control"
    TREATMENT = "treatment"


class Role(StrEnum):
    """What the exchange was for: a response to a user, a shadow request, a later repetition, or another tool's log."""

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
    """The status of a request's shadow request; the four add up to every eligible request."""

    SAMPLED = "sampled"
    NOT_SAMPLED = "not_sampled"
    NOT_SHADOWABLE = "not_shadowable"
    SHED = "shed"


class Exchange(msgspec.Struct, frozen=True, kw_only=True, gc=False):
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
    context: str | None = None
    """what the model was given to answer from, and the answer it should have given, where an import has them; a request's own
    tool results and documents are read from it when it is judged"""
    reference: str | None = None
    percentage: float | None = None
    """share of treatment in force when the request came (ab, canary), in [0, 100]"""
    forced: bool | None = None
    """the arm was forced by a tester's header: in no statistic"""
    turn: int | None = None
    """user messages of the request; None where the provider keeps the conversation: then by the order of requests"""
    step: int | None = None
    """assistant messages since the last user message (tool loops)"""
    request_kind: str | None = None
    """endpoint, streaming and usage as the client asked for them: they decide which values a response can report"""
    cost_source: str | None = None
    """what `cost_usd` was computed by: "config", the price library and its version, or the provider's own field"""
    cost_note: str | None = None
    """why there is no cost, or what is not in it"""
    removed_at: datetime | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Label:
    """A person's (or an objective test's) preference on a pair: P(treatment better), so 1, 0.5 or 0."""

    request_id: str
    preference: float | None
    source: str
    labeler: str | None = None
    labeled_at: datetime | None = None
    note: str | None = None
    probability: float | None = None
    """with which the pair came into the draw that was labelled, in (0, 1]; None: every pair was as likely, or it is not known"""
    stratum: str | None = None
    """of the draw, where it has strata: sure | unsure, by the judge's verdicts on the pair"""
    control_score: float | None = None
    treatment_score: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Feedback:
    """An end user's rating of the answer they got: 1 up, 0 down, or any number in [0, 1]."""

    request_id: str
    arm: Arm | None
    rating: float
    comment: str | None
    at: datetime


# The records of judging: one judge call on one pair (or one response) and its result.


class JudgeMode(StrEnum):
    PAIRWISE = "pairwise"
    POINTWISE = "pointwise"


class ShownFirst(StrEnum):
    """Which arm's answer the judge read first; `neither` when each was judged alone, `unknown` in other tools' logs."""

    CONTROL = "control"
    TREATMENT = "treatment"
    NEITHER = "neither"
    UNKNOWN = "unknown"


class Winner(StrEnum):
    CONTROL = "control"
    TREATMENT = "treatment"
    TIE = "tie"


class JudgmentStatus(StrEnum):
    """`ok` and `identical` are final; everything else is a visible failure that the next run asks again."""

    OK = "ok"
    IDENTICAL = "identical"
    UNPARSEABLE = "unparseable"
    REFUSED = "refused"
    TRUNCATED = "truncated"
    ERROR = "error"


FINAL = frozenset({JudgmentStatus.OK, JudgmentStatus.IDENTICAL})

COST_AT_MOST = "cost_at_most_usd"
"""Key in the note (a JSON object) of a call whose `cost_usd` is an estimate: the most it can have cost."""
TOKENS_AT_MOST = "tokens_at_most"
"""Key in the note of a call without a reported usage whose model had no price: the most input and output tokens it can be."""
ASKED_MODEL = "asked_model"
"""Key in the note of a call that another model answered: the model that was asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgment:
    """One judge call: one row of the `judgments` dataset.

    `key` identifies the question (see
    `docs/how-to/judges.md`: request, responses, order, repeat, rubric, model, parameters); `attempt`
    counts the calls for it from 1, and `judgment_id` is "key:attempt". `winner` and the scores are in terms of arms,
    never of seats. `preference` is P(treatment better) in [0, 1]; None unless the status is final.
    """

    key: str
    attempt: int
    request_id: str
    judge: str
    judge_fingerprint: str
    judge_model: str | None
    shown_first: ShownFirst
    repeat: int = 0
    status: JudgmentStatus = JudgmentStatus.OK
    winner: Winner | None = None
    preference: float | None = None
    control_scores: Mapping[str, float] = field(default_factory=dict)
    treatment_scores: Mapping[str, float] = field(default_factory=dict)
    reasoning: str | None = None
    raw_reply: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int | None = None
    cost_usd: float | None = None
    latency_ms: float | None = None
    judged_at: datetime | None = None
    batch_id: str | None = None
    simulated: bool = False
    note: str | None = None

    @property
    def judgment_id(self) -> str:
        return f"{self.key}:{self.attempt}"


# The record of replaying: one call of an arm with a logged request.


class ReplayStatus(StrEnum):
    """sent: no response yet, or ever · answered · failed: that is the arm's answer · open: it is asked again."""

    SENT = "sent"
    ANSWERED = "answered"
    FAILED = "failed"
    OPEN = "open"


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayCall:
    """One call of a replay, as its account keeps it.

    `exchange`: the row it becomes, once it is answered or has failed for good. `cost_usd`: what was paid for it, at a batch's
    price where it was in one; an estimate where `at_most_usd` is the most it can have been. `at_most_input_tokens`,
    `at_most_output_tokens`: what it can have used, where its model had no price to say that in USD.
    """

    request_id: str
    arm: Arm
    attempt: int
    status: ReplayStatus
    kind: str | None = None
    """the failure in one snake_case word"""
    message: str | None = None
    model: str | None = None
    cost_usd: float | None = None
    at_most_usd: float | None = None
    at_most_input_tokens: int | None = None
    at_most_output_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    latency_ms: float | None = None
    at: datetime
    batch_id: str | None = None
    simulated: bool = False
    exchange: Exchange | None = None

    @property
    def call_id(self) -> str:
        return f"{self.request_id}:{self.arm.value}:{self.attempt}"


# The records of a decision: metric roles and the recommendation.


class MetricRole(StrEnum):
    """What a metric may do to the decision. A goal (`primary`) can win and block, a benefit can win beside the goals and
    block, a guardrail can only block, a diagnostic only informs."""

    PRIMARY = "primary"
    BENEFIT = "benefit"
    GUARDRAIL = "guardrail"
    DIAGNOSTIC = "diagnostic"


class Recommendation(StrEnum):
    SHIP = "ship"
    KEEP = "keep"
    COLLECT_MORE = "collect_more"
    INVALID = "invalid"

    @property
    def exit_code(self) -> int:
        """The exit code of `evalpipe gate`."""
        return {"ship": 0, "keep": 10, "collect_more": 11, "invalid": 12}[self.value]


class Policy(StrEnum):
    SUPERIORITY = "superiority"
    NONINFERIORITY = "noninferiority"
    UTILITY = "utility"


# The records of a canary: its state, its changes, and the last evaluation. Bytes ⇄ records, no I/O.
#
# The history file is the one truth: a line a change, each carrying the state it leads to. The last complete line is the
# present state, so a change is one append: there are no two files that could disagree after a crash.


class CanaryStatus(StrEnum):
    """waiting: not begun · running · paused: at a gate, or by a person · inconclusive: the stage's time is over without
    enough data · rolled_back: 0 % until a person resets it · done: the last stage held."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    INCONCLUSIVE = "inconclusive"
    ROLLED_BACK = "rolled_back"
    DONE = "done"


class CanaryState(msgspec.Struct, frozen=True, kw_only=True):
    """`percentage`: share of units in treatment, [0, 100]. `stage`: index in the configured stages, -1 before the first.
    `entry`: the history number that began the stage; requests carry it, so a stage's data need no clock. `entered_at`:
    seconds since the epoch. `paused_by`: "gate" | "person" | "history_lost" (only a person's reset leaves it) | None."""

    status: CanaryStatus = CanaryStatus.WAITING
    percentage: float = 0.0
    stage: int = -1
    entry: int = 0
    entered_at: float = 0.0
    paused_by: str | None = None


class CanaryEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One change: `seq` rises by one, `at` in seconds since the epoch, `who` a person or "controller", `why` in words."""

    seq: int
    at: float
    who: str
    action: str
    why: str
    state: CanaryState


class GuardrailVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """`status`: holds | doubtful (beyond the limit, not yet proven) | breached | no_data. `value` and `limit` are in the
    metric's unit; `lower`: the one-sided anytime bound of the rate the limit is about, where it does not hold; `log_e`:
    evidence, alarm at `log_alarm`."""

    guardrail: str
    kind: str
    """ "absolute" | "difference" | "setup" """
    status: str
    value: float | None = None
    limit: float | None = None
    lower: float | None = None
    log_e: float = 0.0
    log_alarm: float = 0.0
    n: int = 0
    note: str = ""


class CanaryEvaluation(msgspec.Struct, frozen=True, kw_only=True):
    """What the controller saw last. `watched_s`: how long the stage has been watched, the only time that counts."""

    entry: int
    at: float
    watched_s: float
    n_control: int = 0
    n_treatment: int = 0
    verdicts: list[GuardrailVerdict] = []
    silent: list[str] = []
    """replicas that have not been heard of for a while: they count with what they last reported"""


_encoder = msgspec.json.Encoder()
_event = msgspec.json.Decoder(CanaryEvent)
_evaluation = msgspec.json.Decoder(CanaryEvaluation)


def render_event(event: CanaryEvent) -> bytes:
    """One line, newline included."""
    return _encoder.encode(event) + b"\n"


def read_events(data: bytes) -> list[CanaryEvent]:
    """Every complete, readable line; a line broken by a power loss is passed over (the next append starts a new line)."""
    events = []
    for line in data.split(b"\n")[:-1]:
        try:
            events.append(_event.decode(line))
        except msgspec.MsgspecError:
            continue
    return events


def last_event(tail: bytes) -> CanaryEvent | None:
    """The last complete line of a history (or of its tail)."""
    for line in reversed(tail.split(b"\n")[:-1]):
        try:
            return _event.decode(line)
        except msgspec.MsgspecError:
            continue
    return None


def copy_name(history: str) -> str:
    """The name of the file beside a history that holds a copy of its last line. It is written after the line: a copy that is
    ahead of its history shows that the history lost its end."""
    return f"{history.removesuffix('.jsonl')}.last.json"


def seen_name(history: str) -> str:
    """The name of the file beside a history that mirrors a shared one: it was last written when the shared one was last seen."""
    return f"{history.removesuffix('.jsonl')}.seen"


def safe_share(events: Sequence[CanaryEvent]) -> tuple[float, int]:
    """The last stage of a history that is known to be safe: its percentage, and the entry that began it.

    A stage is safe once it was passed, or held until its end (the gate, the last one). Before that it is the stage before; after
    a rollback, a reset or a loss nothing is safe but 0 %, which is no stage (entry 0).
    """
    present = events[-1].state
    if present.status is CanaryStatus.DONE or present.paused_by == "gate":
        return present.percentage, present.entry
    if not present.percentage:
        return 0.0, 0
    before = next((event.state for event in reversed(events) if event.state.entry != present.entry), CanaryState())
    return (before.percentage, before.entry) if before.percentage else (0.0, 0)


def controller_lock_name(experiment: str) -> str:
    """The name of the file beside a history that the controller of this canary holds locked as long as it runs."""
    return f"{experiment}.controller.lock"


def render_evaluation(evaluation: CanaryEvaluation) -> bytes:
    return _encoder.encode(evaluation)


def read_evaluation(data: bytes) -> CanaryEvaluation:
    """Raises ValueError (msgspec's errors are its subclasses) where it is none."""
    return _evaluation.decode(data)
