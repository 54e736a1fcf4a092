"""What a check gets and gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from evalpipe.analysis.prepare import Prepared
from evalpipe.analysis.result import Check, CorrectedRate, Funnel, JudgeResult, MetricResult
from evalpipe.analysis.settings import LookPlan, Settings
from evalpipe.analysis.sql import Connection
from evalpipe.analysis.verdicts import Chosen

PASS, WARN, FAIL = "pass", "warn", "fail"


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
    chosen: Chosen | None = None
    corrected: CorrectedRate | None = None

    @property
    def judge(self) -> JudgeResult | None:
        return next((judge for judge in self.judges if judge.feeds_decision), None)


CheckFunction = Callable[[CheckContext], Check | None]
