"""What a check gets and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from evalpipe.analysis.classes import number_of
from evalpipe.analysis.prepare import Prepared
from evalpipe.analysis.result import Check, CorrectedRate, Funnel, JudgeResult, MetricResult
from evalpipe.analysis.settings import LookPlan, Settings
from evalpipe.analysis.sql import Connection, rows
from evalpipe.analysis.verdicts import Chosen

PASS, WARN, FAIL = "pass", "warn", "fail"


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponseCounts:
    """Of one arm's responses that count: those answered, and of these those without a cost; those streamed, and of these those
    without tokens; and those that end before they begin or before their first token."""

    treatment: bool
    answered: int
    unpriced: int
    streamed: int
    unmetered: int
    reversed: int


def count_responses(connection: Connection, *, paired: bool) -> list[ResponseCounts]:
    """Of each arm, control first; from `ev_counted_classes`."""
    conditions = {
        "answered": "@answered",
        "unpriced": "@answered AND @cost_usd IS NULL",
        "streamed": "@answered AND @streamed",
        "unmetered": "@answered AND @streamed AND @output_tokens IS NULL",
        "reversed": "@latency_ms < 0 OR @ttft_ms > @latency_ms + 1",
    }
    found = []
    for arm, side in ((False, "c_"), (True, "t_")):
        counts = ", ".join(
            f"{number_of(condition.replace('@', side if paired else ''))} AS {name}"
            for name, condition in conditions.items()
        )
        of_arm = "" if paired else f"WHERE treatment = {arm}"
        found.append(
            ResponseCounts(treatment=arm, **rows(connection, f"SELECT {counts} FROM ev_counted_classes {of_arm}")[0])
        )
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckContext:
    """What a check may look at."""

    connection: Connection
    experiment: str
    mode: str
    settings: Settings
    prepared: Prepared
    funnel: Funnel
    judges: Sequence[JudgeResult]
    look_plan: LookPlan
    results: Mapping[str, MetricResult]
    responses: Sequence[ResponseCounts]
    """control's, the treatment's"""
    chosen: Chosen | None = None
    corrected: CorrectedRate | None = None

    @property
    def judge(self) -> JudgeResult | None:
        return next((judge for judge in self.judges if judge.feeds_decision), None)


CheckFunction = Callable[[CheckContext], Check | None]
