"""The analysis of one experiment: from the store's views to everything the report says. A reader starts here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from evalpipe.analysis.checks import Evidence as CheckEvidence
from evalpipe.analysis.checks import invalidating, run_checks
from evalpipe.analysis.checks_traffic import empty_arm
from evalpipe.analysis.connection import Connection, rows, scalar
from evalpipe.analysis.custom import check_names, custom_columns, custom_metrics
from evalpipe.analysis.decide import Evidence, Ruling, Situation, decide
from evalpipe.analysis.examples import select_examples
from evalpipe.analysis.findings import Placed, evidence_of, place, result_of
from evalpipe.analysis.funnel import count_funnel
from evalpipe.analysis.gather import measure_all
from evalpipe.analysis.judges import judge_results
from evalpipe.analysis.labelled import label_results, prepare_labels
from evalpipe.analysis.looking import Looking, looking
from evalpipe.analysis.metrics import Metric, metrics
from evalpipe.analysis.quantiles import latency_curves
from evalpipe.analysis.reasons import headline, more_requests, reasons, what_would_change
from evalpipe.analysis.result import Analysis, Check, Decision, JudgeResult, MetricResult
from evalpipe.analysis.rows import Prepared, prepare_rows
from evalpipe.analysis.segments import measure_segments, one_user_in
from evalpipe.analysis.series import measure_series
from evalpipe.analysis.settings import Settings
from evalpipe.analysis.utility import measure_utility
from evalpipe.analysis.verdicts import deciding_judge, prepare_verdicts
from evalpipe.analysis.wording import sentence
from evalpipe.core.experiment import MetricRole, Policy
from evalpipe.stats.estimate import Estimate

BLOCKING_JUDGE = frozenset({"unreliable_judge", "length_confounded"})


def analyze(
    connection: Connection,
    *,
    experiment: str,
    mode: str,
    settings: Settings,
    now: datetime,
    provenance: Mapping[str, Any] | None = None,
    details: bool = True,
) -> Analysis:
    """Everything the report knows of `experiment`.

    `connection` has the views `exchanges`, `judgments`, `labels`, `feedback`; temporary tables are made in it. `mode`: shadow
    | ab | canary. `now` dates the analysis and says which planned look this is. `details` False leaves out segments, series,
    curves and examples (what the gate does not need). Raises DataError where there is nothing to analyse.
    """
    paired = mode == "shadow"
    check_names(settings)
    first_us = scalar(connection, "SELECT epoch_us(min(started_at)) FROM exchanges WHERE experiment = ?", [experiment])
    look = looking(
        settings.looks, alpha=settings.alpha, paired=paired, n_star=settings.n_star, first_us=first_us, now=now
    )
    prepared = prepare_rows(
        connection,
        experiment=experiment,
        mode=mode,
        extra=custom_columns(connection, settings.custom),
        until_us=look.until_us,
    )
    judges = prepare_verdicts(connection, experiment=experiment, settings=settings)
    prepare_labels(connection, experiment=experiment)
    judge = deciding_judge(judges, settings) if paired else None
    items = [*metrics(), *custom_metrics(settings.custom)]
    placed = [
        place(measured, settings, mode=mode)
        for measured in measure_all(
            connection,
            items,
            look,
            alphas=_levels(items, settings, mode),
            judge=judge,
            pointwise=[one for one in judges if one is not judge],
        )
    ]
    margin = next((one.margin for one in placed if one.metric.name == "win_rate"), 0.03)
    found_judges = judge_results(
        connection, judges, judge, experiment=experiment, settings=settings, looking=look, margin=margin
    )
    labels = label_results(connection, look)
    funnel = count_funnel(connection, experiment=experiment, prepared=prepared, judge=judge)
    empty = empty_arm(funnel, paired=paired)
    evidence = _evidence(placed, found_judges, look, settings) if empty is None else []
    tables = {one.metric.name: result_of(one, alpha=settings.alpha, ruling=None) for one in placed}
    checks = run_checks(
        CheckEvidence(
            connection=connection,
            experiment=experiment,
            mode=mode,
            settings=settings,
            prepared=prepared,
            funnel=funnel,
            judges=found_judges,
            looking=look,
            results=tables,
        )
    )
    utility = measure_utility(connection, placed, look) if settings.policy == "utility" else None
    ruling = decide(evidence, _situation(settings, prepared, checks, utility, funnel.requests))
    results = _results(placed, evidence, found_judges, look, settings, ruling)
    if empty is None:
        decision = _decision(ruling, results, settings, checks, look, utility)
    else:  # nothing was compared, so nothing else is worth a sentence
        results = {name: _one_armed(result) for name, result in results.items()}
        decision = Decision(
            recommendation=ruling.recommendation.value,
            reasons=[sentence(empty)],
            headline=sentence(f"Collect more data: {empty}"),
            rule=ruling.rule,
            policy=ruling.policy.value,
            looks=look.mode,
            looks_explained=look.explained,
        )
    return Analysis(
        experiment=experiment,
        mode=mode,
        generated_at=now.astimezone(UTC).isoformat(timespec="seconds"),
        provenance={
            **(provenance or {}),
            **_span(prepared),
            "arms": _arms(connection, experiment, settings),
            "simulated_judge": any(one.simulated for one in found_judges),
            "judge": None if judge is None else judge.name,
            "segments_one_user_in": one_user_in(prepared.n_rows) if details else 1,
        },
        funnel=funnel,
        metrics=list(results.values()),
        judges=[*found_judges, *labels],
        checks=checks,
        decision=decision,
        segments=measure_segments(connection, prepared, settings, look, experiment=experiment, judge=judge)
        if details
        else [],
        series=measure_series(connection, prepared, look, judge=judge) if details else [],
        latency=latency_curves(connection) if details else [],
        examples=select_examples(connection, prepared, settings, experiment=experiment, judge=judge)
        if details and settings.n_examples
        else [],
    )


def _levels(items: Sequence[Metric], settings: Settings, mode: str) -> list[float]:
    """Every level an interval may be asked at: alpha, alpha/S and alpha/K for as many goals and metrics as there can be."""
    return [settings.alpha / k for k in range(1, len(items) + 1)]


def _evidence(
    placed: Sequence[Placed], judges: Sequence[JudgeResult], look: Looking, settings: Settings
) -> list[Evidence]:
    judge = next((one for one in judges if one.feeds_decision), None)
    found = []
    for one in placed:
        item = evidence_of(one, alpha=settings.alpha)
        if item is None:
            continue
        if look.waiting is not None and item.status == "ok":
            item = replace(item, status="burn_in")
        if item.name == "win_rate" and judge is not None and judge.status in BLOCKING_JUDGE:
            item = replace(item, status=judge.status)
        found.append(item)
    return found


def _situation(
    settings: Settings, prepared: Prepared, checks: Sequence[Check], utility: Estimate | None, requests: int
) -> Situation:
    known = utility if utility is not None and utility.status == "ok" else None
    return Situation(
        alpha=settings.alpha,
        policy=Policy(settings.policy),
        min_effect_of_interest=settings.min_effect_of_interest,
        max_reached=bool(settings.max_requests) and requests >= settings.max_requests,
        invalid=invalidating(checks),
        utility_low=None if known is None else known.ci_low,
        utility_high=None if known is None else known.ci_high,
    )


def _results(
    placed: Sequence[Placed],
    evidence: Sequence[Evidence],
    judges: Sequence[JudgeResult],
    look: Looking,
    settings: Settings,
    ruling: Ruling,
) -> dict[str, MetricResult]:
    status = {item.name: item.status for item in evidence}
    deciding = next((one for one in judges if one.feeds_decision), None)
    notes = {} if deciding is None else {deciding.status: deciding.note}
    results = {}
    for one in placed:
        result = result_of(one, alpha=settings.alpha, ruling=ruling)
        if result.name == "win_rate" and deciding is not None:
            result = replace(result, graded=deciding.graded, simulated=deciding.simulated)
        overruled = status.get(result.name, result.status)
        if overruled != result.status:
            note = notes.get(overruled) or (look.explained if look.waiting else None)
            result = replace(result, status=overruled, note=note, expected_more_requests=None)
        results[result.name] = result
    return results


def _decision(
    ruling: Ruling,
    results: Mapping[str, MetricResult],
    settings: Settings,
    checks: Sequence[Check],
    look: Looking,
    utility: Estimate | None,
) -> Decision:
    invalid = invalidating(checks)
    unmeasured = [
        result
        for result in results.values()
        if result.name not in ruling.verdicts
        and result.role != MetricRole.DIAGNOSTIC.value
        and (result.group != "quality" or result.name == "win_rate")  # scores and ratings count where there are any
    ]
    return Decision(
        recommendation=ruling.recommendation.value,
        reasons=reasons(
            ruling, results, settings, invalid=invalid, checks=checks, utility=utility, unmeasured=unmeasured
        ),
        headline=headline(ruling, results, settings, invalid),
        rule=ruling.rule,
        policy=ruling.policy.value,
        looks=look.mode,
        looks_explained=look.explained,
        what_would_change=what_would_change(ruling, results, checks),
        utility=None if utility is None else utility.point,
        utility_low=None if utility is None else utility.ci_low,
        utility_high=None if utility is None else utility.ci_high,
        expected_more_requests=more_requests(ruling, results),
    )


def _one_armed(result: MetricResult) -> MetricResult:
    """What could not be compared for want of an arm, rather than for want of any value."""
    return replace(result, status="missing_arm") if result.status == "no_data" and result.group != "quality" else result


def _span(prepared: Prepared) -> dict[str, Any]:
    def iso(us: int | None) -> str | None:
        # Logs of other tools may hold no time: the store then numbers the lines from 1970 on.
        if us is None or us < 86_400_000_000:
            return None
        return datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="seconds")

    return {"first_at": iso(prepared.first_us), "last_at": iso(prepared.last_us)}


def _arms(connection: Connection, experiment: str, settings: Settings) -> dict[str, Any]:
    arms: dict[str, Any] = {
        arm: {"models": [], "providers": [], "simulated": False, "expected": dict(settings.arms.get(arm, {}))}
        for arm in ("control", "treatment")
    }
    for row in rows(
        connection,
        "SELECT arm, model, provider, bool_or(simulated) AS simulated, count(*) AS n FROM exchanges WHERE experiment = ? "
        "AND role <> 'replay' GROUP BY arm, model, provider ORDER BY n DESC, model, provider",
        [experiment],
    ):
        arm = arms.setdefault(row["arm"], {"models": [], "providers": [], "simulated": False, "expected": {}})
        for key, value in (("models", row["model"]), ("providers", row["provider"])):
            if value is not None and value not in arm[key]:
                arm[key].append(value)
        arm["simulated"] = arm["simulated"] or bool(row["simulated"])
    return arms
