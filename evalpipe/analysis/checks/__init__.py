"""Can the data support a decision? Each check looks at one thing; `CHECKS` lists them, and a failed one can forbid a decision."""

from __future__ import annotations

from collections.abc import Sequence

from evalpipe.analysis.checks.base import FAIL, CheckContext, CheckFunction
from evalpipe.analysis.result import Check

CHECKS = {
    "setup_fault": "whether an arm fails because of a wrong key, address or model",
    "both_arms": "whether both arms have answers",
    "uncollected_calls": "whether model calls passed the collector without a record",
    "pairing": "whether every request has an answer of both arms",
    "sample_ratio": "whether requests or users are split between the arms as planned",
    "arm_contamination": "whether users stayed with one arm",
    "shed": "how many copies were not sent",
    "missing_answers": "how many pairs cannot be compared because an arm failed",
    "empty_answers": "how many answers hold neither text nor a tool call",
    "finish_reasons": "whether answers ended for a reason that no provider documents",
    "unjudgeable_answers": "how many answers hold more than text, or are not finished",
    "later_turns": "how many pairs are of later turns of a conversation",
    "short_period": "whether a ship is based on a week of traffic",
    "duplicate_requests": "whether requests were logged more than once",
    "clock_skew": "whether the times of the log are in order",
    "price_unknown": "how many answers have no known cost",
    "no_usage_in_streams": "how many streamed answers do not report their tokens",
    "arm_models": "whether the models that answered are those configured",
    "one_user_dominates": "whether one user sent a large part of the requests",
    "units": "whether the units look like users",
    "uncopied": "how many of a client's requests cannot be given to the treatment",
    "drift": "whether the two halves of the log agree",
    "one_score": "whether a judge gives most answers the same score",
    "judge_coverage": "how many pairs have a verdict",
    "judge_model": "whether the model that was asked has answered",
    "judge_consistency": "whether the judge prefers the same answer in both orders",
    "seat_bias": "whether the judge prefers the answer shown first",
    "judge_family": "whether the judge is of the family of one arm",
    "judge_agreement": "whether the judge agrees with labels",
    "judge_error": "whether the judge errs alike for both arms' answers, by labels",
    "label_sampling": "whether the labelled pairs are a random sample",
    "simulated_judge": "whether the verdicts come from a simulated judge",
    "judging_stopped": "whether judging ended before the whole log was judged",
    "nonstationary": "whether the metrics moved since the decision",
}
"""Every check by its name, with what it looks at: those of the data (`run_checks`), of a ship, and of the experiment's record."""


def run_checks(evidence: CheckContext) -> list[Check]:
    """The checks that apply to this kind of experiment, in the order of the list."""
    from evalpipe.analysis.checks import (
        data,
        traffic,  # they import what a check is from here
    )
    from evalpipe.analysis.checks import judge as checks_judge

    functions: list[CheckFunction] = [
        *traffic.CHECKS,
        *data.CHECKS,
        *data.ANSWER_CHECKS,
        *traffic.UNIT_CHECKS,
        *checks_judge.CHECKS,
    ]
    return [check for check in (function(evidence) for function in functions) if check is not None]


def invalidating(checks: Sequence[Check]) -> list[str]:
    """Why no decision may be made: the details of failed checks."""
    return [check.detail for check in checks if check.status == FAIL]
