"""What a reader must know before anything else: banners above the recommendation."""

from __future__ import annotations

from dataclasses import dataclass

from evalpipe.analysis.result import Analysis, Check
from evalpipe.core.format import full_sentence, readable_instants, sentence_case
from evalpipe.report.metric_view import is_measured
from evalpipe.report.words import check_name


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something a reader must know before anything else. `level`: setup | simulated | fail | warn."""

    level: str
    title: str
    detail: str
    remedy: str


def is_simulated(analysis: Analysis) -> bool:
    """Whether a simulated judge's verdicts feed anything on the page."""
    return bool(analysis.provenance.get("simulated_judge")) or any(judge.simulated for judge in analysis.judges)


def problems(analysis: Analysis) -> list[Problem]:
    """What is above everything else: set-up faults, the simulated judge, then failed checks, then the warnings that concern a
    metric that decides. The other warnings are among the checks."""
    found = _setup_faults(analysis)
    if is_simulated(analysis):
        found.append(
            Problem(
                level="simulated",
                title="Simulated judge",
                detail="The verdicts in this report were made by a program that follows a stated rule, not by a language "
                "model and not by people. They show how evalpipe works. They are no evidence of which arm is better.",
                remedy="Judge with a real model: set its key, then run `evalpipe judge` and `evalpipe report`.",
            )
        )
    for status in ("fail", "warn"):
        for check in analysis.checks:
            if (
                check.status == status
                and not (status == "fail" and check.name == SETUP_FAULT)
                and not _is_about_simulation(check)
                and _can_decide(check, analysis)
            ):
                found.append(_problem(check, level=status))
    return found


def _setup_faults(analysis: Analysis) -> list[Problem]:
    """The set-up faults with what mends each; a fault that is only in the decision has no remedy of its own."""
    checks = [check for check in analysis.checks if check.name == SETUP_FAULT and check.status == "fail"]
    known = tuple(_one_line(check.detail) for check in checks)
    others = [
        Check(name=SETUP_FAULT, status="fail", detail=fault)
        for fault in analysis.decision.setup_faults
        if not _one_line(fault).startswith(known)  # the decision's sentence continues with what mends it
    ]
    return [_problem(check, level="setup") for check in (*checks, *others)]


def _problem(check: Check, *, level: str) -> Problem:
    title, detail = sentence_case(check_name(check.name, check.status)), _one_line(check.detail)
    whose, _, rest = detail.partition(": ")
    if level == "setup" and rest and whose.lower().startswith(title.lower()):  # "set-up fault of the treatment arm: …"
        title, detail = sentence_case(whose), rest
    return Problem(
        level=level,
        title=title,
        detail=full_sentence(readable_instants(detail)),
        remedy=full_sentence(_one_line(check.remedy or "")),
    )


def _one_line(text: str) -> str:
    """Words of a provider or a user may hold line breaks, which would look like further lines of the report."""
    return " ".join(text.split())


def _is_about_simulation(check: Check) -> bool:
    """The simulated judge's own check repeats its banner."""
    return check.name in {"simulated_judge", "judge_simulated"}


SETUP_FAULT = "setup_fault"
COST = frozenset({"cost_per_request_usd", "cost_per_1000_requests_usd", "cost_per_ok_answer_usd"})
TOKENS = frozenset({"input_tokens", "output_tokens", "tokens_used", "tokens_per_second"})
CONCERNED = {"price_unknown": COST, "no_usage_in_streams": COST | TOKENS}
"""the metrics that a warning is about; any other warning may concern them all"""


def _can_decide(check: Check, analysis: Analysis) -> bool:
    """Whether the check can change the verdict: it failed, or a metric that it is about decides (one's own might be)."""
    concerned = CONCERNED.get(check.name)
    if check.status == "fail" or concerned is None:
        return True
    return any(
        metric.role != "diagnostic" and is_measured(metric) and (metric.name in concerned or metric.group == "custom")
        for metric in analysis.metrics
    )
