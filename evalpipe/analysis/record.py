"""The experiment record: what was fixed before the first look, and the first decision reached, which stands.

Kept with the data as JSON. Under "anytime" and on planned dates a decision, once reached, is marked with its look; only
proven harm or data that may not be believed outrank it later. A single planned look ("fixed") has nothing to keep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from evalpipe.analysis.metrics import metrics
from evalpipe.analysis.result import Analysis, Check, Decision, MetricResult
from evalpipe.analysis.settings import Settings
from evalpipe.analysis.wording import listed, sentence
from evalpipe.core.experiment import MetricRole, Recommendation
from evalpipe.core.identity import fingerprint
from evalpipe.stats.multiplier import DEFAULT_N_STAR_PAIRS, DEFAULT_N_STAR_USERS

FINAL = frozenset({Recommendation.SHIP.value, Recommendation.KEEP.value})


@dataclass(frozen=True, kw_only=True, slots=True)
class Decided:
    """The first decision reached: at which look and instant, and the intervals of the metrics that decide, then."""

    recommendation: str
    rule: str
    headline: str
    at: str
    look: int
    intervals: dict[str, tuple[float | None, float | None]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedUntil:
    """`judge --until-decided` looked at a judge's evidence while it came in: the plan is fixed since. `conclusion`: with what
    it stopped, after so many units and before the log was judged; None while it has not."""

    judge: str
    at: str
    n_units: int = 0
    conclusion: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ExperimentRecord:
    """`n_star`: planned sample of every metric's confidence sequence, in units (pairs' users, or users of both arms), and
    `confidence_level`, fixed at the first look. `rules`: fingerprint of what decides; other rules start anew. `n_looks`
    counts looks at different data."""

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
    """whether n* comes from `evalpipe plan --save`, else it is the default"""
    judged_until: dict[str, JudgedUntil] = field(default_factory=dict)
    """by the judge's fingerprint"""
    schema_version: int = 1


def new_record(
    *, experiment: str, mode: str, settings: Settings, now: str, planned: Mapping[str, float] | None = None
) -> ExperimentRecord:
    """The record before the first look; `planned` holds the n* of metrics that `evalpipe plan` has planned."""
    default = float(DEFAULT_N_STAR_PAIRS if mode == "shadow" else DEFAULT_N_STAR_USERS)
    names = [item.name for item in metrics()] + [item.name for item in settings.custom]
    return ExperimentRecord(
        experiment=experiment,
        created_at=now,
        n_star={name: float((planned or {}).get(name, default)) for name in names},
        confidence_level=settings.confidence_level,
        rules=rules_of(mode, settings),
    )


def rules_of(mode: str, settings: Settings) -> str:
    """A fingerprint of all that a decision depends on beside the data."""
    return fingerprint(
        [
            mode,
            settings.confidence_level,
            settings.looks if isinstance(settings.looks, str) else [day.isoformat() for day in settings.looks],
            settings.policy,
            settings.primary,
            settings.min_effect_of_interest,
            settings.max_requests,
            {
                name: [rule.role, rule.margin, rule.margin_relative, rule.weight]
                for name, rule in settings.metrics.items()
            },
            [info.name for info in settings.judges],
            settings.judge,
        ]
    )


def take_look(
    analysis: Analysis, record: ExperimentRecord, *, mode: str, settings: Settings, data: str
) -> tuple[Analysis, ExperimentRecord]:
    """The analysis with the standing decision marked on it, and the record after this look.

    `data`: a fingerprint of the data looked at; looking at the same data again is not another look.
    """
    rules = rules_of(mode, settings)
    if record.rules != rules:
        record = replace(record, rules=rules, decided=None)
    if record.last_data != data:
        record = replace(record, n_looks=record.n_looks + 1, last_data=data, last_look_at=analysis.generated_at)
    if "n_looks" in analysis.provenance:
        analysis = replace(analysis, provenance={**analysis.provenance, "n_looks": record.n_looks})  # with this one
    if analysis.decision.looks == "fixed":
        return analysis, record
    look = analysis.decision.decided_look or record.n_looks
    deciding = [one for one in analysis.metrics if one.role != MetricRole.DIAGNOSTIC.value]
    decided = record.decided
    if decided is None:
        if analysis.decision.recommendation not in FINAL:
            return analysis, record
        decided = Decided(
            recommendation=analysis.decision.recommendation,
            rule=analysis.decision.rule,
            headline=analysis.decision.headline,
            at=analysis.generated_at,
            look=look,
            intervals={one.name: (one.ci_low, one.ci_high) for one in deciding},
        )
        record = replace(record, decided=decided)
    moved = _moved(decided, deciding)
    check = _nonstationary(moved, decided)
    return replace(
        analysis,
        decision=_standing(analysis.decision, decided, moved),
        checks=[*analysis.checks, check],
        series=[replace(one, decided_at=decided.at) if one.kind == "cumulative" else one for one in analysis.series],
    ), record


def with_judging_stop(analysis: Analysis, record: ExperimentRecord) -> Analysis:
    """The analysis with a check that tells where the verdicts themselves decided when judging ended."""
    deciding = next((one for one in analysis.judges if one.feeds_decision), None)
    stop = None if deciding is None else record.judged_until.get(deciding.fingerprint)
    if stop is None or stop.conclusion is None:
        return analysis
    words = {"inconclusive": "nothing proven about the win rate"}.get(
        stop.conclusion, f"the win rate proven {stop.conclusion}"
    )
    detail = (
        f"judging stopped at {stop.at}, after {stop.n_units:,} users and before the whole log was judged, with {words} "
        "(`judge --until-decided`)"
    )
    if analysis.decision.looks == "anytime":
        check = Check(
            name="judging_stopped",
            status="pass",
            detail=f"{detail}; the intervals hold at every look, at this one too, but a win rate read at the moment of a proof "
            "lies, on average, a little further from a tie than the truth",
        )
    else:
        check = Check(
            name="judging_stopped",
            status="warn",
            detail=f"{detail}; intervals that are made for looks set beforehand are too narrow after such a stop",
            remedy='set looks = "anytime" in [decision], or judge the rest with `evalpipe judge`',
        )
    return replace(analysis, checks=[*analysis.checks, check])


def _standing(now: Decision, decided: Decided, moved: Sequence[str]) -> Decision:
    """The decision to act on: the one reached first, unless harm is proven or the data may not be believed by now."""
    marked = replace(now, decided_at=decided.at, decided_look=decided.look)
    if now.rule in {"harm", "invalid"} and decided.rule != now.rule:
        reached = f"at look {decided.look} ({decided.at}) it was decided to {decided.recommendation}; this outranks it"
        return replace(marked, reasons=[*now.reasons, sentence(reached)])
    if now.recommendation == decided.recommendation:
        return replace(marked, reasons=[*now.reasons, sentence(f"decided at look {decided.look} ({decided.at})")])
    stands = f"this was decided at look {decided.look} ({decided.at}) and stands: {decided.headline.rstrip('.')}"
    return replace(
        marked,
        recommendation=decided.recommendation,
        rule=decided.rule,
        headline=decided.headline,
        reasons=[sentence(stands), *now.reasons],
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


def render_record(record: ExperimentRecord) -> bytes:
    return msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n"


def read_record(data: bytes) -> ExperimentRecord:
    """Raises `msgspec.ValidationError` or `msgspec.DecodeError` where it is not a record."""
    return msgspec.json.decode(data, type=ExperimentRecord)
