"""May the data be believed? Each check looks at one thing; `CHECKS` lists them, and a failed one can forbid a decision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from evalpipe.analysis.connection import Connection
from evalpipe.analysis.looking import Looking
from evalpipe.analysis.result import Check, Funnel, JudgeResult, MetricResult
from evalpipe.analysis.rows import Prepared
from evalpipe.analysis.settings import Settings

PASS, WARN, FAIL = "pass", "warn", "fail"


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """What a check may look at."""

    connection: Connection
    experiment: str
    mode: str
    settings: Settings
    prepared: Prepared
    funnel: Funnel
    judges: Sequence[JudgeResult]
    looking: Looking
    results: Mapping[str, MetricResult]

    @property
    def judge(self) -> JudgeResult | None:
        return next((judge for judge in self.judges if judge.feeds_decision), None)


CheckFunction = Callable[[Evidence], Check | None]


def run_checks(evidence: Evidence) -> list[Check]:
    """Every check that has something to say about this kind of experiment, in the order of the list."""
    from evalpipe.analysis import checks_data, checks_judge, checks_traffic  # they import what a check is from here

    functions: list[CheckFunction] = [*checks_traffic.CHECKS, *checks_data.CHECKS, *checks_judge.CHECKS]
    return [check for check in (function(evidence) for function in functions) if check is not None]


def invalidating(checks: Sequence[Check]) -> list[str]:
    """Why no decision may be made: the details of failed checks."""
    return [check.detail for check in checks if check.status == FAIL]
