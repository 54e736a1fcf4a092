"""The nouns of deciding: findings, checks, the recommendation."""

from __future__ import annotations

from enum import StrEnum


class MetricRole(StrEnum):
    """What a metric may do to the decision. A goal (`primary`) can win and block, a benefit can win beside the goals and
    block, a guardrail can only block, a diagnostic only informs."""

    PRIMARY = "primary"
    BENEFIT = "benefit"
    GUARDRAIL = "guardrail"
    DIAGNOSTIC = "diagnostic"


class FindingOutcome(StrEnum):
    """What an interval says of a metric (docs/statistics.md#findings)."""

    BETTER = "better"
    EQUIVALENT = "equivalent"
    WORSE = "worse"
    INCONCLUSIVE = "inconclusive"
    UNDEFINED = "undefined"


class CheckStatus(StrEnum):
    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"


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
