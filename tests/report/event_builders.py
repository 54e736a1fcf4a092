"""Analyses with a history: excluded periods, decisions undone, a set-up fault, rows that leave requests out."""

from __future__ import annotations

import dataclasses

from report_builders import LABELS, arm, metric, mixed, relative, win_rate

from evalpipe.analysis.result import AlternativeDecision, Analysis, Check, Decision, DecisionChange, Horizon

EXCLUSION = {
    "since": "2026-03-05T09:00:00+00:00",
    "until": "2026-03-05T11:30:00+00:00",
    "why": "wrong key of the treatment",
    "declared_at": "2026-03-05T14:02:00+00:00",
}
CHANGES = [
    DecisionChange(
        event="reached", at="2026-03-04T10:00:00+00:00", look=2, recommendation="ship", rule="ship",
        why="Ship the treatment: its answers were preferred in 58 % of 500 judged pairs, every guardrail is within its margin.",
    ),
    DecisionChange(
        event="undone", at="2026-03-05T14:02:00+00:00", look=3, recommendation="ship", rule="ship",
        why="the time from 2026-03-05T09:00:00+00:00 to 2026-03-05T11:30:00+00:00 was excluded (wrong key of the treatment)",
    ),
    DecisionChange(
        event="set", at="2026-03-06T10:00:00+00:00", look=4, recommendation=None, rule=None,
        why="what decides changed (cost_per_request_usd)", set_number=2,
    ),
]  # fmt: skip


def eventful() -> Analysis:
    """An experiment with a history: an excluded period, a decision undone, a second set of what decides, rows that were not
    measured or leave requests out, later turns, pairs beyond the limit per user, and a forecast."""
    analysis = mixed()
    cost = relative(
        "cost_per_request_usd", 0.002134, -0.31, 0.02, group="cost", unit="usd", role="benefit", finding="better",
        p_value=0.00001, kinds_left_out=["chat, streamed, usage not asked for"], share_left_out=0.419,
        missing_control=0.001, missing_treatment=0.0,
    )  # fmt: skip
    tokens = relative(
        "output_tokens", 187.2, 0.02, 0.04, group="cost", unit="tokens", finding="undefined", status="missing_differs",
        non_inferior=False, p_value=None, missing_control=0.31, missing_treatment=0.002,
        note='unknown in 31 % of control\'s and 0.2 % of treatment\'s: set stream_usage = "inject" in [collector], or '
        'role = "diagnostic" under [decision.metrics.output_tokens]',
    )  # fmt: skip
    unmeasured = metric(
        "timeout_rate", control=arm(0.0, 2400, numerator=0, denominator=2400), measurable=False, status="not_measured",
        treatment=arm(0.0, 2400, numerator=0, denominator=2400), difference=0.0, ci_low=-0.002, ci_high=0.002,
        finding="undefined", non_inferior=False, p_value=None,
    )  # fmt: skip
    later = win_rate(
        0.42, 0.05, label=LABELS["win_rate_later_turns"], role="diagnostic", n=300, n_clusters=120,
        control=arm(0.58, 300), treatment=arm(0.42, 300), finding="worse", non_inferior=False,
    )  # fmt: skip
    later = dataclasses.replace(later, name="win_rate_later_turns")
    changed = {one.name: one for one in (cost, tokens, unmeasured, win_rate(value_over_pairs=0.51))}
    metrics = [changed.get(one.name, one) for one in analysis.metrics]
    metrics.insert(next(n for n, one in enumerate(metrics) if one.name == "win_rate") + 1, later)
    horizon = Horizon(metric="p99_latency_ms", requests=4300, days=3.2, judge_usd=2.1)
    forecast = (
        "About 4,300 more requests (3 days at this traffic, $2.10 of judging) until 99th percentile latency, the slowest, is "
        "settled, if the differences stay as they are."
    )
    decision = dataclasses.replace(
        analysis.decision,
        headline=f"{analysis.decision.headline} A period was excluded after its data had been seen, which is outside the error "
        "guarantee; with it the decision would be: keep control.",
        reasons=[
            *analysis.decision.reasons,
            forecast,
            "All findings at 95 % confidence, harm at 98.75 % (shared by 4 metrics).",
        ],
        what_would_change=[forecast, *analysis.decision.what_would_change],
        horizon=horizon,
        expected_more_requests=horizon.requests,
        not_measured=["timeout_rate"],
        set_number=2,
        changes=CHANGES,
        without_exclusions=AlternativeDecision(
            recommendation="keep",
            headline="Keep control: error rate rose from 0.50 % to 6.10 % (+5.60 points, +4.20 to +7.00 points), a loss of more "
            "than the 0.5 points allowed",
        ),
    )
    deciding = dataclasses.replace(analysis.judges[0], win_rate_over_pairs=0.51, n_beyond=1300)
    return dataclasses.replace(
        analysis,
        metrics=metrics,
        decision=decision,
        judges=[deciding, *analysis.judges[1:]],
        exclusions=[EXCLUSION],
        provenance=analysis.provenance | {"turns": "first"},
    )


FAULT = (
    "set-up fault of the treatment arm: 12 requests in a row failed: HTTP 401: invalid x-api-key "
    "(2026-03-05T09:00:00Z to 2026-03-05T11:30:00Z). Check [arms.treatment] api_key_env"
)
FAULT_REMEDY = (
    "correct it, then take its time out of both arms: `evalpipe exclude --since 2026-03-05T09:00:00Z "
    '--until 2026-03-05T11:30:00Z --why "treatment: HTTP 401"`'
)


def misconfigured(fault: str = FAULT, remedy: str | None = FAULT_REMEDY) -> Analysis:
    """A wrong key of the treatment: invalid, whatever the metrics are."""
    analysis = mixed()
    return dataclasses.replace(
        analysis,
        mode="canary",
        checks=[Check(name="setup_fault", status="fail", detail=fault, remedy=remedy), *analysis.checks],
        decision=Decision(
            recommendation="invalid",
            rule="setup",
            headline=f"No decision can be made: {fault}.",
            reasons=[f"{fault}.", "Win rate: not decided yet."],
            what_would_change=[remedy] if remedy else [],
            setup_faults=[fault],
            rollback=True,
        ),
    )
