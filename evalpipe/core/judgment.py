"""The nouns of judging: one judge call on one pair (or one answer) and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


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
ASKED_MODEL = "asked_model"
"""Key in the note of a call that another model answered: the model that was asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Judgment:
    """One judge call: one row of the `judgments` dataset.

    `key` says what was asked (see
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
