"""The nouns of a canary: where it stands, what changed it, and what the last evaluation saw. Bytes ⇄ nouns, no I/O.

The history file is the one truth: a line a change, each carrying the state it leads to. The last complete line is the
present state, so a change is one append: there are no two files that could disagree after a crash.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


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


def render_evaluation(evaluation: CanaryEvaluation) -> bytes:
    return _encoder.encode(evaluation)


def read_evaluation(data: bytes) -> CanaryEvaluation:
    """Raises ValueError (msgspec's errors are its subclasses) where it is none."""
    return _evaluation.decode(data)
