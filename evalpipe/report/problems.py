"""What a reader must know before anything else: banners above the recommendation."""

from __future__ import annotations

from dataclasses import dataclass

from evalpipe.analysis.result import Analysis, Check
from evalpipe.core.format import full_sentence, readable_instants, sentence_case
from evalpipe.report.metric_view import is_measured
from evalpipe.report.words import plain


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something a reader must know before anything else. `level`: simulated | fail | warn."""

    level: str
    title: str
    detail: str
    remedy: str


def is_simulated(analysis: Analysis) -> bool:
    """Whether a simulated judge's verdicts feed anything on the page."""
    return bool(analysis.provenance.get("simulated_judge")) or any(judge.simulated for judge in analysis.judges)


def problems(analysis: Analysis) -> list[Problem]:
    """What stands above everything else: the simulated judge, then failed checks, then the warnings that concern a metric
    that decides. The other warnings are among the checks."""
    found: list[Problem] = []
    if is_simulated(analysis):
        found.append(
            Problem(
                level="simulated",
                title="Simulated judge",
                detail="The verdicts in this report were made by a program that follows a stated rule, not by a language "
                "model and not by people. They show how evalpipe works. They do not say which arm is better.",
                remedy="Judge with a real model: set its key, then run `evalpipe judge` and `evalpipe report`.",
            )
        )
    for status in ("fail", "warn"):
        for check in analysis.checks:
            if check.status == status and not _is_about_simulation(check) and _can_decide(check, analysis):
                found.append(
                    Problem(
                        level=status,
                        title=sentence_case(plain(check.name)),
                        detail=full_sentence(readable_instants(check.detail)),
                        remedy=full_sentence(check.remedy or ""),
                    )
                )
    return found


def _is_about_simulation(check: Check) -> bool:
    """The simulated judge's own check says what its banner says."""
    return check.name in {"simulated_judge", "judge_simulated"}


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
