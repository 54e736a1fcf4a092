"""The analysis of one experiment: from the store's views to everything the report contains. A reader starts here.

`measure` runs the queries; `conclude` applies the rules to what was measured and puts the decision into words. They are apart
because `judge --until-decided` concludes at every look with the verdicts of that moment and everything else unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np

from evalpipe.analysis.checks import invalidating, run_checks
from evalpipe.analysis.checks.base import CheckContext as CheckEvidence
from evalpipe.analysis.checks.base import count_responses
from evalpipe.analysis.checks.traffic import empty_arm, period_check
from evalpipe.analysis.compute_metrics import latency_curves, measure_all
from evalpipe.analysis.corrected import corrected_rate, place_corrected, read_labelled
from evalpipe.analysis.custom_metrics import check_names, custom_columns, custom_metrics
from evalpipe.analysis.decision import (
    DecisionContext,
    DecisionMetric,
    DecisionOutcome,
    MetricEvidence,
    assign_role,
    basis_of,
    decide,
    evidence_of,
    measure_utility,
    result_of,
)
from evalpipe.analysis.examples import select_examples
from evalpipe.analysis.forecast import Traffic, expected_more, horizon_of, requests_per_day
from evalpipe.analysis.intervals import Support, measure_preference
from evalpipe.analysis.judges import judge_results, label_results, prepare_labels
from evalpipe.analysis.metric_formatting import bias_sentence, sentence
from evalpipe.analysis.metrics import Metric, metrics
from evalpipe.analysis.prepare import Prepared, count_users, find_sources, prepare_rows
from evalpipe.analysis.reasons import blocking_metrics, headline, reasons, what_would_change
from evalpipe.analysis.record import ExperimentRecord
from evalpipe.analysis.result import Analysis, Check, CorrectedRate, Decision, Fixed, Funnel, JudgeResult, MetricResult
from evalpipe.analysis.segments import measure_segments, measure_series, medians_over_time, one_user_in
from evalpipe.analysis.settings import CORRECTED, LookPlan, Settings, resolve_look
from evalpipe.analysis.setup_faults import setup_faults
from evalpipe.analysis.sorted_values import SortedValues
from evalpipe.analysis.sql import Connection, rows, scalar
from evalpipe.analysis.verdicts import Chosen, JudgeSummary, choose_pairs, deciding_judge, prepare_verdicts
from evalpipe.files import sql_statements
from evalpipe.models import MetricRole, Policy
from evalpipe.providers.setup_faults import SetupFault
from evalpipe.stats.estimates import Estimate

_SQL = sql_statements("evalpipe.analysis", "funnel.sql")

BLOCKING_JUDGE = frozenset({"unreliable_judge", "length_confounded"})
BIASED = "judge_biased"
WIN_RATE = "win_rate"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurements:
    """What the queries found, before any rule."""

    experiment: str
    mode: str
    settings: Settings
    look: LookPlan
    now: datetime
    prepared: Prepared
    judge: JudgeSummary | None
    placed: list[DecisionMetric]
    judges: list[JudgeResult]
    labels: list[JudgeResult]
    funnel: Funnel
    checks: list[Check]
    utility: Estimate | None
    faults: list[SetupFault]
    empty: str | None
    chosen: Chosen | None
    span: dict[str, Any]
    values: SortedValues
    corrected: CorrectedRate | None = None
    fixed: Fixed = field(default_factory=Fixed)


@dataclass(frozen=True, kw_only=True, slots=True)
class Conclusion:
    """The decision by the rules from the measurements."""

    ruling: DecisionOutcome
    results: dict[str, MetricResult]
    decision: Decision


def analyze(
    connection: Connection,
    *,
    experiment: str,
    mode: str,
    settings: Settings,
    now: datetime,
    provenance: Mapping[str, Any] | None = None,
    details: bool = True,
    record: ExperimentRecord | None = None,
) -> Analysis:
    """Everything the report contains on `experiment`.

    Args:
        connection: with the views `exchanges`, `judgments`, `labels`, `feedback`; temporary tables are made in it.
        mode: shadow | ab | canary.
        now: dates the analysis, and determines which planned look this is.
        provenance: facts to carry along (versions, files, configuration).
        details: False leaves out segments, series, curves and examples (what the gate does not need).
        record: what earlier looks fixed (chosen pairs, turns, constant heads); None before the first.

    Raises:
        DataError: where there is nothing to analyse.
    """
    found = measure(
        connection, experiment=experiment, mode=mode, settings=settings, now=now, details=details, record=record
    )
    analysis = summarized(found, conclude(found), provenance)
    arms = _arms(connection, settings)
    analysis = replace(analysis, provenance={**analysis.provenance, "arms": arms})
    if not details:
        return analysis
    prepared, judge, look = found.prepared, found.judge, found.look
    return replace(
        analysis,
        provenance={**analysis.provenance, "segments_one_user_in": one_user_in(prepared.n_rows)},
        segments=measure_segments(connection, prepared, settings, look, experiment=experiment, judge=judge),
        series=measure_series(connection, prepared, look, judge=judge, values=found.values),
        latency=latency_curves(found.values),
        examples=select_examples(connection, prepared, settings, experiment=experiment, judge=judge)
        if settings.n_examples
        else [],
    )


def summarized(found: Measurements, concluded: Conclusion, provenance: Mapping[str, Any] | None = None) -> Analysis:
    """The decision, the metrics, the judges and the checks of a look, without the details of the page."""
    judge = found.judge
    return Analysis(
        experiment=found.experiment,
        mode=found.mode,
        generated_at=found.now.astimezone(UTC).isoformat(timespec="seconds"),
        provenance={
            **(provenance or {}),
            **found.span,
            "simulated_judge": any(one.simulated for one in found.judges),
            "judge": None if judge is None else judge.name,
            "turns": None if found.chosen is None else found.chosen.turns,
            "segments_one_user_in": 1,
        },
        funnel=found.funnel,
        metrics=list(concluded.results.values()),
        judges=[*found.judges, *found.labels],
        checks=_checks(found, concluded),
        decision=concluded.decision,
        basis=basis_of(found.placed, _judge_fingerprint(found)),
        exclusions=[msgspec.to_builtins(one) for one in found.settings.exclusions],
        corrected=found.corrected,
        fixed=found.fixed,
    )


def measure(
    connection: Connection,
    *,
    experiment: str,
    mode: str,
    settings: Settings,
    now: datetime,
    details: bool = False,
    record: ExperimentRecord | None = None,
) -> Measurements:
    """Run the queries of the analysis; arguments as `analyze` (`details`: those that its details are made of, too)."""
    paired = mode == "shadow"
    check_names(settings)
    first_us = scalar(connection, "SELECT epoch_us(min(started_at)) FROM exchanges WHERE experiment = ?", [experiment])
    look = resolve_look(
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
    chosen = choose_pairs(connection, judge, settings, record, experiment=experiment) if paired else None
    scored = {row["dimension"] for row in rows(connection, "SELECT DISTINCT dimension FROM ev_scores")}
    items = [
        item
        for item in [*metrics(), *custom_metrics(settings.custom)]
        if not item.only_measured or item.name.removesuffix("_score") in scored
    ]
    sources = find_sources(connection, settings, paired=paired, has_texts=prepared.has_texts)
    values = SortedValues(
        connection,
        n_rows=prepared.n_rows // 2 if paired else prepared.n_rows,
        paired=paired,
        bins=medians_over_time(prepared) if details else None,
    )
    placed = [
        assign_role(measured, settings, mode=mode, sources=sources)
        for measured in measure_all(
            connection,
            items,
            look,
            prepared=prepared,
            sources=sources,
            alphas=_levels(items, settings),
            judge=judge,
            pointwise=[one for one in judges if one is not judge],
            values=values,
        )
    ]
    prepared = replace(prepared, n_users=count_users(connection, prepared))
    labelled = read_labelled(connection, judge) if paired else None
    if paired:
        placed = place_corrected(placed, labelled, look, settings)
    corrected = None if labelled is None else corrected_rate(labelled, judge, look, settings)
    if corrected is not None and not corrected.needed_labels:
        corrected = replace(corrected, decides=any(one.metric.name == CORRECTED for one in placed))
    margin = next((one.terms.margin for one in placed if one.metric.name == WIN_RATE), 0.03)
    found_judges = judge_results(
        connection, judges, judge, experiment=experiment, settings=settings, look_plan=look, margin=margin
    )
    funnel = count_funnel(connection, experiment=experiment, prepared=prepared, judge=judge)
    empty = empty_arm(funnel, paired=paired)
    faults = setup_faults(connection, experiment=experiment, mode=mode, settings=settings)
    checks = run_checks(
        CheckEvidence(
            connection=connection,
            experiment=experiment,
            mode=mode,
            settings=settings,
            prepared=prepared,
            funnel=funnel,
            judges=found_judges,
            look_plan=look,
            responses=count_responses(connection, paired=paired),
            results={one.metric.name: result_of(one, alpha=settings.alpha, ruling=None) for one in placed},
            chosen=chosen,
            corrected=corrected,
        )
    )
    return Measurements(
        experiment=experiment,
        mode=mode,
        settings=settings,
        look=look,
        now=now,
        prepared=prepared,
        judge=judge,
        placed=placed,
        judges=found_judges,
        labels=label_results(connection, look),
        funnel=funnel,
        checks=checks,
        utility=measure_utility(connection, placed, look) if settings.policy == "utility" else None,
        faults=faults,
        empty=empty,
        chosen=chosen,
        span=_span(prepared),
        values=values,
        corrected=corrected,
        fixed=Fixed(
            turns=None if chosen is None else chosen.fixed_turns,
            head={} if chosen is None else chosen.fixed_head,
            chosen={} if chosen is None or judge is None else {judge.fingerprint: chosen.request_ids},
        ),
    )


def with_preferences(found: Measurements, preferences: Sequence[float], n_pairs: int, *, sigma2: float) -> Measurements:
    """The same measurements with the win rate of other verdicts: a look of `judge --until-decided`.

    Args:
        preferences: one mean preference x_u in [0, 1] per user.
        n_pairs: judged pairs behind them.
        sigma2: planned variance of a user's preference, which the bets are tuned to.
    """
    values, counts = np.unique(np.round(np.asarray(preferences, float), 12), return_counts=True)
    support = Support(both=(values.tolist(), counts.tolist()), sigma2=sigma2)
    placed = [
        replace(one, measured=measure_preference(one.metric, found.look, support=support, n_pairs=n_pairs))
        if one.metric.name == WIN_RATE
        else one
        for one in found.placed
    ]
    return replace(found, placed=placed)


def conclude(found: Measurements) -> Conclusion:
    """Apply the rules, and put the decision into words."""
    settings, look, empty = found.settings, found.look, found.empty
    judge = next((one for one in found.judges if one.feeds_decision), None)
    evidence = [] if empty is not None else _evidence(found, judge)
    problems = [fault.text for fault in found.faults]
    invalid = invalidating(found.checks)
    known = found.utility if found.utility is not None and found.utility.status == "ok" else None
    ruling = decide(
        evidence,
        DecisionContext(
            alpha=settings.alpha,
            policy=Policy(settings.policy),
            min_effect_of_interest=settings.min_effect_of_interest,
            max_reached=bool(settings.max_requests) and found.funnel.requests >= settings.max_requests,
            setup=problems,
            invalid=invalid,
            utility_low=None if known is None else known.ci_low,
            utility_high=None if known is None else known.ci_high,
        ),
    )
    results = _results(found, evidence, judge, ruling)
    if empty is not None and not problems:  # nothing was compared, so nothing else is worth a sentence
        decision = Decision(
            recommendation="collect_more",
            reasons=[sentence(empty)],
            headline=sentence(f"Collect more data: {empty}"),
            rule="unmeasured",
            policy=settings.policy,
            looks=look.mode,
            looks_explained=look.explained,
            harm_level=ruling.harm_level,
        )
        return Conclusion(
            ruling=ruling, results={name: _one_armed(result) for name, result in results.items()}, decision=decision
        )
    checks = [*_fault_checks(found), *found.checks]
    horizon = horizon_of(
        ruling, evidence, found.placed, look, _traffic(found, judge), settings=settings, utility=found.utility
    )
    shown = problems if ruling.rule == "setup" else invalid
    decision = Decision(
        recommendation=ruling.recommendation.value,
        reasons=reasons(
            ruling,
            results,
            settings,
            problems=shown,
            invalid=invalid,
            checks=checks,
            utility=found.utility,
            horizon=horizon,
        ),
        headline=headline(ruling, results, settings, shown),
        rule=ruling.rule,
        policy=ruling.policy.value,
        looks=look.mode,
        looks_explained=look.explained,
        what_would_change=what_would_change(ruling, results, checks, horizon),
        utility=None if found.utility is None else found.utility.point,
        utility_low=None if found.utility is None else found.utility.ci_low,
        utility_high=None if found.utility is None else found.utility.ci_high,
        expected_more_requests=None if horizon is None else horizon.requests,
        horizon=horizon,
        blocking=blocking_metrics(ruling, results)
        if ruling.rule in {"collect_more", "unmeasured"}
        else ruling.blocking,
        losing=ruling.losing,
        strong_win=ruling.strong_win,
        harm_level=ruling.harm_level,
        not_measured=ruling.not_measurable,
        setup_faults=problems,
        setup_arms=sorted({fault.arm for fault in found.faults}),
        rollback=found.mode != "shadow"
        and (ruling.rule == "harm" or any(fault.arm == "treatment" for fault in found.faults)),
    )
    return Conclusion(ruling=ruling, results=results, decision=decision)


def _levels(items: Sequence[Metric], settings: Settings) -> list[float]:
    """Every level an interval may be asked at: alpha over as many metrics as there can be."""
    return [settings.alpha / k for k in range(1, len(items) + 1)]


def _evidence(found: Measurements, judge: JudgeResult | None) -> list[MetricEvidence]:
    evidence = []
    for one in found.placed:
        item = evidence_of(one, alpha=found.settings.alpha)
        if found.look.waiting is not None and item.status == "ok":
            item = replace(item, status="burn_in")
        if item.name == WIN_RATE and item.status == "ok" and judge is not None and judge.status in BLOCKING_JUDGE:
            item = replace(item, status=judge.status)
        decides = item.name == WIN_RATE and item.role is not MetricRole.DIAGNOSTIC
        if decides and item.status == "ok" and _bias_note(found) is not None:
            item = replace(item, status=BIASED)
        evidence.append(item)
    return evidence


def _bias_note(found: Measurements) -> str | None:
    """Why the judge's own win rate may not decide: by the labels, it favours one arm's answers."""
    corrected = found.corrected
    favoured = None if corrected is None else corrected.biased
    if corrected is None or favoured is None or corrected.decides:
        return None
    more = corrected.needed_labels
    remedy = f"label {more} more pair{'' if more == 1 else 's'}, so that the corrected win rate decides"
    if corrected.setting == "off":
        remedy = 'set labels = "auto" in [decision], so that the corrected win rate decides'
        if more:
            remedy += f", and label {more} more pair{'' if more == 1 else 's'}"
    return f"{bias_sentence(favoured)}: {remedy}"


def _results(
    found: Measurements, evidence: Sequence[MetricEvidence], judge: JudgeResult | None, ruling: DecisionOutcome
) -> dict[str, MetricResult]:
    items = {item.name: item for item in evidence}
    notes = {} if judge is None else {judge.status: judge.note}
    notes[BIASED] = _bias_note(found)
    results = {}
    for one in found.placed:
        result = result_of(one, alpha=found.settings.alpha, ruling=ruling)
        if result.name.startswith(WIN_RATE) and result.name != CORRECTED and judge is not None:
            over_pairs = judge.win_rate_over_pairs if result.name == WIN_RATE else None
            result = replace(result, graded=judge.graded, simulated=judge.simulated, value_over_pairs=over_pairs)
        item = items.get(result.name)
        if item is not None and result.measurable and item.status != result.status:
            note = notes.get(item.status) or (found.look.explained if found.look.waiting else None)
            result = replace(result, status=item.status, note=note)
        if item is not None:
            more = expected_more(item, one, result, ruling, found.look)
            result = replace(result, expected_more_requests=more)
        results[result.name] = result
    return results


def _checks(found: Measurements, concluded: Conclusion) -> list[Check]:
    """The checks of the data, the set-up faults before them, and beside a ship the length of the period."""
    period = period_check(found.prepared) if concluded.ruling.rule == "ship" else None
    return [*_fault_checks(found), *found.checks, *([period] if period is not None else [])]


def _fault_checks(found: Measurements) -> list[Check]:
    return [
        Check(
            name="setup_fault",
            status="fail",
            detail=fault.summary,
            remedy=f"correct {fault.setting}, then take the time out of both arms: {fault.exclude_command}",
        )
        for fault in found.faults
    ]


def _traffic(found: Measurements, judge: JudgeResult | None) -> Traffic:
    paired = found.prepared.paired
    paid = judge is not None and not judge.simulated and judge.cost_usd and judge.asked_pairs
    return Traffic(
        requests=found.funnel.requests,
        units=found.funnel.pairs if paired else found.funnel.requests,
        requests_per_day=requests_per_day(found.span["first_at"], found.span["last_at"], found.funnel.requests),
        users=found.prepared.n_users,
        judged_pairs=0 if judge is None else judge.n_pairs,
        judged_users=0 if judge is None else judge.n_clusters,
        usd_per_pair=judge.cost_usd / judge.asked_pairs if judge is not None and paid and judge.cost_usd else None,
        pairs_per_unit=found.settings.pairs_per_unit,
    )


def _judge_fingerprint(found: Measurements) -> str | None:
    """Of the judge that decides: the one with verdicts, else the configured one."""
    if found.mode != "shadow":
        return None
    if found.judge is not None:
        return found.judge.fingerprint
    return found.settings.judges[0].fingerprint if found.settings.judges else None


def _one_armed(result: MetricResult) -> MetricResult:
    """Metrics without a comparison because an arm is empty, not because values are missing."""
    return replace(result, status="missing_arm") if result.status == "no_data" and result.group != "quality" else result


def _span(prepared: Prepared) -> dict[str, Any]:
    def iso(us: int | None) -> str | None:
        # Logs of other tools may hold no time: the store then numbers the lines from 1970 on.
        if us is None or us < 86_400_000_000:
            return None
        return datetime.fromtimestamp(us / 1e6, UTC).isoformat(timespec="seconds")

    return {"first_at": iso(prepared.first_us), "last_at": iso(prepared.last_us)}


def _arms(connection: Connection, settings: Settings) -> dict[str, Any]:
    arms: dict[str, Any] = {
        arm: {"models": [], "providers": [], "simulated": False, "expected": dict(settings.arms.get(arm, {}))}
        for arm in ("control", "treatment")
    }
    for row in rows(
        connection,
        "SELECT arm, model, provider, bool_or(simulated) AS simulated, sum(n) AS n FROM ev_census "
        "WHERE role <> 'replay' GROUP BY arm, model, provider ORDER BY n DESC, model, provider",
    ):
        arm = arms.setdefault(row["arm"], {"models": [], "providers": [], "simulated": False, "expected": {}})
        for key, value in (("models", row["model"]), ("providers", row["provider"])):
            if value is not None and value not in arm[key]:
                arm[key].append(value)
        arm["simulated"] = arm["simulated"] or bool(row["simulated"])
    return arms


# From requests to verdicts: how many there were at each step, and why the rest fell out.


def count_funnel(connection: Connection, *, experiment: str, prepared: Prepared, judge: JudgeSummary | None) -> Funnel:
    """requests = pairs + Σ exclusions, exactly (shadow mode); in ab and canary mode a served exchange is a request and
    there are no pairs."""
    outcomes: dict[str, dict[str, int]] = {"control": {}, "treatment": {}}
    for row in rows(
        connection,
        "SELECT arm, outcome, sum(n)::BIGINT AS n FROM ev_census WHERE role <> 'replay' GROUP BY ALL ORDER BY ALL",
    ):
        outcomes.setdefault(row["arm"], {})[row["outcome"]] = row["n"]
    shadow: dict[str, int] = {}
    if prepared.paired:
        requests, pairs, exclusions = _pairs(connection)
        shadow = {
            row["shadow_status"]: row["n"]
            for row in rows(
                connection,
                "SELECT shadow_status, sum(n)::BIGINT AS n FROM ev_outcomes WHERE shadow_status IS NOT NULL "
                "GROUP BY shadow_status ORDER BY shadow_status",
            )
        }
    else:
        requests, pairs, exclusions = _served(connection, prepared)
    kinds = _kinds(connection, experiment) if prepared.paired else {}
    if kinds and "treatment_missing" in exclusions:  # the sample is smaller than the log
        exclusions = {"not_replayed" if why == "treatment_missing" else why: n for why, n in exclusions.items()}
    judgments = {
        row["status"]: row["n"]
        for row in rows(connection, "SELECT status, count(*) AS n FROM ev_calls GROUP BY ALL ORDER BY ALL")
    }
    judged = 0
    if judge is not None:
        judged = scalar(
            connection,
            "SELECT count(*) FROM ev_verdicts WHERE judge = ? AND fingerprint = ? AND complete",
            [judge.name, judge.fingerprint],
        )
    return Funnel(
        requests=requests,
        pairs=pairs,
        exclusions=exclusions,
        judgments=judgments,
        judged_pairs=judged,
        users=prepared.n_users,
        shadow=shadow,
        outcomes=outcomes,
        kinds=kinds,
    )


def _kinds(connection: Connection, experiment: str) -> dict[str, int]:
    """Pairs by where their answers come from; empty where none was replayed."""
    if not scalar(connection, "SELECT bool_or(replayed) FROM ev_sources"):
        return {}
    found = rows(connection, _SQL["kinds"], {"experiment": experiment})
    return {row["kind"]: row["n"] for row in found}


def _pairs(connection: Connection) -> tuple[int, int, dict[str, int]]:
    counted = rows(connection, _SQL["pairs"])
    pairs = next((row["n"] for row in counted if row["why"] == "pair"), 0)
    exclusions = {row["why"]: row["n"] for row in counted if row["why"] != "pair"}
    return pairs + sum(exclusions.values()), pairs, exclusions


def _served(connection: Connection, prepared: Prepared) -> tuple[int, int, dict[str, int]]:
    counted = rows(connection, "SELECT reason, n FROM ev_lost WHERE n > 0 ORDER BY n DESC, reason")
    exclusions = {row["reason"]: row["n"] for row in counted}
    return prepared.n_rows + sum(exclusions.values()), 0, exclusions
