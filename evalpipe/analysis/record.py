"""The experiment record: what was fixed before or at a look, every change of the decision, and the decision in force.

Kept with the data as JSON. All tests hold at all looks at once, so a decision that falls and is reached again costs no further
error; only a new set of what decides (metrics, margins, judge, prices, …) adds at most α. What a recorded decision survives is in
`survive`. A single planned look (`looks = "fixed"`) records no decision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import msgspec

from evalpipe.analysis.metric_formatting import listed, sentence
from evalpipe.analysis.metrics import metrics
from evalpipe.analysis.result import Analysis, Basis, Check, Decision, DecisionChange, MetricResult
from evalpipe.analysis.settings import CORRECTED, Exclusion, Settings
from evalpipe.identity import fingerprint
from evalpipe.models import MetricRole, Recommendation
from evalpipe.stats.sequential import DEFAULT_N_STAR_PAIRS, DEFAULT_N_STAR_USERS
from evalpipe.text import within_sentence

FINAL = frozenset({Recommendation.SHIP.value, Recommendation.KEEP.value})
INVALID = frozenset({"setup", "data"})
Interval = tuple[float | None, float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Decided:
    """The decision in force: at which look and instant it was reached, and the intervals of the deciding metrics then.

    `since` and `until`: the period of the requests it rests on, as ISO 8601 instants (None: not known).
    """

    recommendation: str
    rule: str
    headline: str
    at: str
    look: int
    intervals: dict[str, Interval] = field(default_factory=dict)
    since: str | None = None
    until: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedUntil:
    """A run of `judge --until-decided`: `conclusion` is why it stopped, after `n_units` users and before the log was judged;
    None while it has not."""

    judge: str
    at: str
    n_units: int = 0
    conclusion: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentRecord:
    """What an experiment has fixed and decided.

    Attributes:
        n_star: planned sample of every metric's confidence sequence, in units (pairs' users, or users of both arms).
        rules: fingerprint of what decides; another one is another set.
        n_looks: looks at different data.
        decided: the decision in force.
        planned: whether `n_star` comes from `evalpipe plan --save`.
        judged_until: runs of `judge --until-decided` by the judge's fingerprint.
        basis: what decides, readable.
        set_number: which set of what decides this is, from 1.
        strong_win: some metric was better by more than its margin at a look of this set.
        turns: "first" or "all" as fixed; None while it may still change.
        head: user messages of the constant head by system text, as fixed.
        chosen: request ids of the pairs that count in the win rate, by judge fingerprint, in the order they were chosen.
        exclusions: periods whose requests are in no metric.
        changes: every decision reached, replaced or undone.
    """

    experiment: str
    created_at: str
    n_star: dict[str, float]
    confidence_level: float
    rules: str
    n_looks: int = 0
    last_look_at: str | None = None
    last_data: str | None = None
    decided: Decided | None = None
    planned: bool = False
    judged_until: dict[str, JudgedUntil] = field(default_factory=dict)
    basis: Basis | None = None
    set_number: int = 1
    strong_win: bool = False
    turns: str | None = None
    head: dict[str, int] = field(default_factory=dict)
    chosen: dict[str, list[str]] = field(default_factory=dict)
    exclusions: list[Exclusion] = field(default_factory=list)
    changes: list[DecisionChange] = field(default_factory=list)
    schema_version: int = 1


def new_record(
    *, experiment: str, mode: str, settings: Settings, now: str, planned: Mapping[str, float] | None = None
) -> ExperimentRecord:
    """The record before the first look.

    Args:
        planned: n* by metric, from `evalpipe plan`; the other metrics get the default.
    """
    default = float(DEFAULT_N_STAR_PAIRS if mode == "shadow" else DEFAULT_N_STAR_USERS)
    names = [item.name for item in metrics()] + [item.name for item in settings.custom]
    return ExperimentRecord(
        experiment=experiment,
        created_at=now,
        n_star={name: float((planned or {}).get(name, default)) for name in names},
        confidence_level=settings.confidence_level,
        rules=rules_of(mode, settings),
    )


def rules_of(mode: str, settings: Settings, basis: Basis | None = None) -> str:
    """A fingerprint of what decides beside the data: the configuration, and the roles and sources of `basis`."""
    looks = settings.looks if isinstance(settings.looks, str) else [day.isoformat() for day in settings.looks]
    found = [
        mode,
        settings.confidence_level,
        looks,
        settings.policy,
        settings.min_effect_of_interest,
        settings.max_requests,
        settings.pairs_per_unit,
        settings.turns,
        settings.prices,
    ]
    return fingerprint([*found, None if basis is None else msgspec.to_builtins(basis)])


def take_look(
    analysis: Analysis, record: ExperimentRecord, *, mode: str, settings: Settings, data: str
) -> tuple[Analysis, ExperimentRecord]:
    """Record a look.

    Args:
        data: a fingerprint of the data looked at; looking at the same data again is not another look.

    Returns:
        The analysis with the decision in force marked on it, and the record after this look.
    """
    if record.last_data != data:  # before any change, which is dated with this look
        record = replace(record, n_looks=record.n_looks + 1, last_data=data, last_look_at=analysis.generated_at)
    record = _with_basis(record, analysis, mode, settings)
    record = _with_fixed(record, analysis, settings)
    if "n_looks" in analysis.provenance:
        analysis = replace(analysis, provenance={**analysis.provenance, "n_looks": record.n_looks})  # with this one
    if analysis.decision.looks == "fixed":
        return analysis, record
    record = _without_excluded(record, analysis, settings)
    record = replace(record, strong_win=record.strong_win or analysis.decision.strong_win)
    before = record.decided
    decided, why = survive(record, analysis.decision)
    if decided is not None and decided != before:
        decided = _reached(analysis, record)
        if before is not None and before.recommendation == Recommendation.SHIP.value:
            record = _changed(record, analysis, "undone", why or analysis.decision.headline, before)
        record = _changed(record, analysis, "reached", analysis.decision.headline, decided)
    elif decided is None and before is not None:
        record = _changed(record, analysis, "undone", why, before)
    record = replace(record, decided=decided)
    return _marked(analysis, record), record


def survive(record: ExperimentRecord, now: Decision) -> tuple[Decided | None, str]:
    """What is left of the recorded decision at this look; pure.

    A ship falls on harm, on a set-up fault or invalid data, and (policy `superiority`) on a goal with a loss at α/K unless some
    win exceeded its margin. A keep by harm stays. Every other keep gives way to a ship, to harm and to invalid data. A change of
    what decides and an exclusion that touches the period used are handled before.

    Returns:
        The decision in force (a new one is equal to `now` in recommendation and rule, to be filled in by the caller), and why
        the former one was undone ("" where it was not).
    """
    fresh = Decided(recommendation=now.recommendation, rule=now.rule, headline=now.headline, at="", look=0)
    kept = record.decided
    if kept is None:
        return (fresh if now.recommendation in FINAL else None), ""
    if kept.rule == "harm":
        return kept, ""
    if now.rule == "harm":
        return fresh, ""
    if now.rule in INVALID:
        return None, now.headline
    if kept.recommendation == Recommendation.KEEP.value:
        return (fresh if now.recommendation == Recommendation.SHIP.value else kept), ""
    if now.policy == "superiority" and now.losing and not record.strong_win:
        level = 100 * (1 - (now.harm_level or 0.0))
        why = f"{listed([name.replace('_', ' ') for name in now.losing])} is worse (at the {level:.4g} % level)"
        return (fresh if now.recommendation in FINAL and now.recommendation != kept.recommendation else None), why
    return kept, ""


def with_judging_stop(analysis: Analysis, record: ExperimentRecord) -> Analysis:
    """The analysis with a check that reports where `judge --until-decided` stopped."""
    deciding = next((one for one in analysis.judges if one.feeds_decision), None)
    stop = None if deciding is None else record.judged_until.get(deciding.fingerprint)
    if stop is None or stop.conclusion is None:
        return analysis
    detail = (
        f"`judge --until-decided` stopped at {stop.at}, after {stop.n_units:,} users and before the whole log was judged: "
        "more verdicts would not have changed the decision"
    )
    if analysis.decision.looks == "anytime":
        check = Check(
            name="judging_stopped",
            status="pass",
            detail=f"{detail}; the intervals are valid at every look, but a win rate read at the moment of a decision lies, on "
            "average, a little further from one half than the truth",
        )
    else:
        check = Check(
            name="judging_stopped",
            status="warn",
            detail=f"{detail}; intervals made for looks set beforehand are too narrow after such a stop",
            remedy='set looks = "anytime" in [decision], or judge the rest with `evalpipe judge`',
        )
    return replace(analysis, checks=[*analysis.checks, check])


def _with_basis(record: ExperimentRecord, analysis: Analysis, mode: str, settings: Settings) -> ExperimentRecord:
    """A change of what decides is another set: the recorded decision falls and the evidence for wins starts anew."""
    basis = analysis.basis
    before = record.basis
    if before is not None and before.judge is None and basis.judge is not None and not record.chosen:
        before = replace(before, judge=basis.judge)  # the judge was not known before the first verdict: nothing changed
        record = replace(record, rules=rules_of(mode, settings, before))
    rules = rules_of(mode, settings, basis)
    if record.rules == rules:
        return replace(record, basis=basis)
    if before is None and record.decided is None:  # the first look
        return replace(record, basis=basis, rules=rules)
    undone = record.decided
    changed = replace(
        record,
        rules=rules,
        basis=basis,
        decided=None,
        strong_win=False,
        set_number=record.set_number + 1,
        turns=None,
    )
    what = _difference(before, basis, {one.name: one.label for one in analysis.metrics})
    return _changed(changed, analysis, "undone" if undone else "set", f"what decides changed ({what})", undone)


def _difference(before: Basis | None, after: Basis, labels: Mapping[str, str]) -> str:
    """Which part of what decides changed, in a few words."""
    if before is None:
        return "the record is of an earlier version of the rules"
    parts = []
    old, new = msgspec.to_builtins(before.metrics), msgspec.to_builtins(after.metrics)
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if CORRECTED in names and (CORRECTED in new) != (CORRECTED in old):
        now = "people's labels correct the win rate" if CORRECTED in new else "the win rate is the judge's own again"
        parts.append(now)
        names = [name for name in names if name not in {CORRECTED, "win_rate"}]
    if names:
        shown = [within_sentence(labels.get(name) or name.replace("_", " ")) for name in sorted(names)]
        parts += shown[:4] + (["other metrics"] if len(shown) > 4 else [])
    if before.judge != after.judge:
        parts.append("the judge")
    return listed(parts) or "the settings of the decision or the prices"


def _with_fixed(record: ExperimentRecord, analysis: Analysis, settings: Settings) -> ExperimentRecord:
    """What a look fixes: the turns, the constant heads, and the pairs that count."""
    found = analysis.fixed
    return replace(
        record,
        turns=record.turns or found.turns,
        head=record.head or found.head,
        chosen={**record.chosen, **found.chosen},
        exclusions=list(settings.exclusions) or record.exclusions,
    )


def _without_excluded(record: ExperimentRecord, analysis: Analysis, settings: Settings) -> ExperimentRecord:
    """An exclusion declared after the decision that touches the period it rests on undoes it."""
    kept = record.decided
    if kept is None:
        return record
    for one in settings.exclusions:
        later = _instant(one.declared_at) > _instant(kept.at)
        apart = (kept.since is not None and _instant(one.until) <= _instant(kept.since)) or (
            kept.until is not None and _instant(one.since) > _instant(kept.until)
        )
        if later and not apart:
            why = f"the time from {one.since} to {one.until} was excluded ({one.why})"
            return replace(_changed(record, analysis, "undone", why, kept), decided=None)
    return record


def _reached(analysis: Analysis, record: ExperimentRecord) -> Decided:
    decision = analysis.decision
    return Decided(
        recommendation=decision.recommendation,
        rule=decision.rule,
        headline=decision.headline,
        at=analysis.generated_at,
        look=decision.decided_look or record.n_looks,
        intervals={one.name: (one.ci_low, one.ci_high) for one in _deciding(analysis)},
        since=analysis.provenance.get("first_at"),
        until=analysis.provenance.get("last_at"),
    )


def _changed(
    record: ExperimentRecord, analysis: Analysis, event: str, why: str, decided: Decided | None
) -> ExperimentRecord:
    change = DecisionChange(
        event=event,
        at=analysis.generated_at,
        look=record.n_looks,
        recommendation=None if decided is None else decided.recommendation,
        rule=None if decided is None else decided.rule,
        why=why,
        set_number=record.set_number,
        intervals={one.name: (one.ci_low, one.ci_high) for one in _deciding(analysis)},
    )
    return replace(record, changes=[*record.changes, change])


def _deciding(analysis: Analysis) -> list[MetricResult]:
    return [one for one in analysis.metrics if one.role != MetricRole.DIAGNOSTIC.value]


def _marked(analysis: Analysis, record: ExperimentRecord) -> Analysis:
    """The analysis with the decision in force, the changes behind it, and a check whether the metrics moved since."""
    decision = replace(analysis.decision, changes=record.changes, set_number=record.set_number)
    checks = list(analysis.checks)
    series = analysis.series
    decided = record.decided
    if decided is not None:
        moved = _moved(decided, _deciding(analysis))
        decision = _in_force(decision, decided)
        checks.append(_nonstationary(moved, decided))
        series = [replace(one, decided_at=decided.at) if one.kind == "cumulative" else one for one in series]
    last = record.changes[-1] if record.changes else None
    if last is not None and last.event == "undone" and last.look == record.n_looks and last.recommendation is not None:
        undone = f"the earlier decision to {last.recommendation} is undone: {last.why.rstrip('.')}"
        decision = replace(decision, reasons=[sentence(undone), *decision.reasons])
    return replace(analysis, decision=decision, checks=checks, series=series)


def _in_force(now: Decision, decided: Decided) -> Decision:
    """The decision to act on."""
    marked = replace(now, decided_at=decided.at, decided_look=decided.look)
    when = f"look {decided.look} ({decided.at})"
    if now.recommendation == decided.recommendation and now.rule == decided.rule:
        return replace(marked, reasons=[*now.reasons, sentence(f"decided at {when}")])
    since = f"this was decided at {when} and remains in force: {decided.headline.rstrip('.')}"
    return replace(
        marked,
        recommendation=decided.recommendation,
        rule=decided.rule,
        # Its numbers are not today's: the sentence that is quoted, mailed and printed names their date.
        headline=f"{decided.headline.rstrip('.')} (numbers of look {decided.look}, {decided.at}).",
        reasons=[sentence(since), *now.reasons],
        horizon=None,
        expected_more_requests=None,
        what_would_change=[],
    )


def _moved(decided: Decided, deciding: Sequence[MetricResult]) -> list[str]:
    """Metrics whose interval then and now do not overlap."""
    moved = []
    for one in deciding:
        low, high = decided.intervals.get(one.name, (None, None))
        apart = (low is not None and one.ci_high is not None and one.ci_high < low) or (
            high is not None and one.ci_low is not None and one.ci_low > high
        )
        if apart:
            moved.append(one.label.lower())
    return moved


def _nonstationary(moved: Sequence[str], decided: Decided) -> Check:
    if moved:
        return Check(
            name="nonstationary",
            status="warn",
            detail=f"{listed(moved)} today differs from the day of the decision (look {decided.look}) by more than chance",
            remedy="the arms or the traffic changed since: consider a new experiment under a new name",
        )
    return Check(name="nonstationary", status="pass", detail="today's intervals agree with those of the decision")


def _instant(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


def render_record(record: ExperimentRecord) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def read_record(data: bytes) -> ExperimentRecord:
    """Raises `msgspec.ValidationError` or `msgspec.DecodeError` where it is not a record."""
    return msgspec.json.decode(data, type=ExperimentRecord)
