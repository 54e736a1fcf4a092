"""`evalpipe plan`: what the decision needs of every metric, from the log where there is one, before anything is spent."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from evalpipe.analysis.custom_metrics import custom_metrics
from evalpipe.analysis.decision import FROM_FIRST_EVENT, Terms, terms_of
from evalpipe.analysis.forecast import requests_per_day
from evalpipe.analysis.metrics import Metric, metrics
from evalpipe.analysis.planning import Log, PlannedMetric, Question, plan_metric, planned_n_star
from evalpipe.analysis.record import new_record
from evalpipe.analysis.result import Analysis
from evalpipe.analysis.settings import Settings
from evalpipe.errors import ConfigError, DataError
from evalpipe.models import MetricRole, Policy
from evalpipe.stats.planning import Way
from evalpipe.stats.sequential import DEFAULT_N_STAR_PAIRS, DEFAULT_N_STAR_USERS
from evalpipe.workspace.analyze import analyze_workspace, mode_of, settings_of
from evalpipe.workspace.judge_setup import price_per_pair
from evalpipe.workspace.paths import Workspace, experiment_name
from evalpipe.workspace.record import load_record, recording, save_record

WIN_RATE = "win_rate"
DEFAULT_EFFECTS = {WIN_RATE: 0.05}
"""preference points of an effect worth planning for; elsewhere the metric's margin"""
WIDER = 2.0
"""how much wider the margin is whose saving is named"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bottleneck:
    """The metric with the largest planned size.

    Attributes:
        metric: its name.
        requests: requests by which half of the experiments have shown what it needs.
        days: the same at the logged traffic; None without one.
        requests_max: where to stop for good: the planned size of the experiment.
        days_max: the same in days.
    """

    metric: str
    requests: int
    days: float | None
    requests_max: int
    days_max: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class WiderMargin:
    """What twice the bottleneck's margin would save: its requests then, and the metric that would be the slowest."""

    metric: str
    margin: float
    requests: int
    requests_max: int
    next: str
    next_requests: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The plan of an experiment.

    `requests`, `days`, `pairs`, `judge_usd`: by when half of the experiments are through, if the effects are there; `…_max`:
    where to stop for good, the planned size. `requests_per_day`: at the logged traffic (None: no log, or of less than an hour).
    `judge_usd_per_pair` None: no price or no length is known. `unplanned`: metrics that decide and whose noise is not known;
    `not_measured`: those the log cannot measure, which decide nothing.
    """

    experiment: str
    mode: str
    looks: str
    policy: str
    power: float
    confidence_level: float
    metrics: list[PlannedMetric]
    unplanned: list[str]
    not_measured: list[str]
    bottleneck: Bottleneck | None
    wider_margin: WiderMargin | None
    pairs: int
    pairs_max: int
    requests: int
    requests_max: int
    days: float | None
    days_max: float | None
    requests_per_day: float | None
    share_of_requests: float
    judge: str | None
    judge_pairs: int | None
    judge_calls: int | None
    judge_usd_per_pair: float | None
    judge_usd: float | None
    judge_usd_max: float | None
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Basis:
    """What the plan of every metric starts from."""

    mode: str
    settings: Settings
    power: float
    orders: str
    looks: Way
    terms: dict[str, Terms]
    analysis: Analysis | None
    log: Log
    n_star: dict[str, float]
    default_n_star: float | None
    effect: str | None
    alone: bool
    """one metric was asked for: its effect, not the decision"""

    def level(self, role: MetricRole) -> float:
        """alpha over the number of goals, or of benefits."""
        sharing = [one for one in self.terms.values() if one.role is role and one.measurable]
        shared = role in {MetricRole.PRIMARY, MetricRole.BENEFIT} and not self.alone
        return round(self.settings.alpha / (max(1, len(sharing)) if shared else 1), 12)

    def question(self, item: Metric, *, wider: float = 1.0) -> Question:
        """What is to be shown of the metric; `wider` multiplies its margin."""
        terms = self.terms[item.name]
        margin = terms.margin * wider
        asked = self.effect if self.alone or terms.role is MetricRole.PRIMARY else None
        candidates = [one for one in self.terms.values() if one.measurable and one.role in CANDIDATES]
        noninferiority = self.settings.policy == Policy.NONINFERIORITY.value
        may_win = self.alone or (terms.role in CANDIDATES and not noninferiority)
        return Question(
            effect=_effect(item, asked, terms, wider=wider),
            margin=margin,
            scale=terms.scale,
            alpha=self.level(terms.role),
            margin_alpha=round(self.settings.alpha, 12),
            power=self.power,
            role=terms.role.value,
            may_win=may_win,
            # A win implies "not worse": it counts apart where something else may bring the win.
            margin_counts=not self.alone and (not may_win or len(candidates) > 1),
        )

    def plan(self, item: Metric, *, wider: float = 1.0) -> PlannedMetric | None:
        rows = {} if self.analysis is None else {one.name: one for one in self.analysis.metrics}
        return plan_metric(
            item,
            self.question(item, wider=wider),
            looks=self.looks,
            n_looks=len(self.settings.looks) if not isinstance(self.settings.looks, str) else 1,
            paired=self.mode == "shadow",
            pilot=rows.get(item.name),
            orders=self.orders,
            log=self.log,
            n_star=self.n_star.get(item.name, self.default_n_star),
        )


CANDIDATES = frozenset({MetricRole.PRIMARY, MetricRole.BENEFIT})


def plan(
    workspace: Workspace,
    *,
    metric: str | None = None,
    effect: str | None = None,
    power: float = 0.8,
    experiment: str | None = None,
    save: bool = False,
) -> Plan:
    """The plan of the decision, or of one metric's effect.

    Args:
        metric: plan for an effect of this metric alone; None: for every metric that decides.
        effect: the effect to show of every goal and benefit ("0.05", "10%"); None: the default ones.
        power: chance to show it if it is there, in (0, 1).
        experiment: its name; None: the configured one.
        save: fix n* in the experiment record.

    Raises:
        ConfigError: for an unknown metric, an impossible effect, or a plan that is fixed already.
    """
    settings, mode = settings_of(workspace), mode_of(workspace.config)
    name = experiment or (workspace.config.experiment.name if workspace.config else experiment_name(workspace, None))
    known = {item.name: item for item in [*metrics(), *custom_metrics(settings.custom)]}
    chosen = None if metric is None else _metric(metric, known)
    basis = _basis(workspace, name, mode, settings, known, power=power, effect=effect, chosen=chosen, save=save)
    items = [chosen] if chosen is not None else _deciding(basis, known)
    planned = {item.name: found for item in items if (found := basis.plan(item)) is not None}
    if save:
        _save(workspace, name, mode, settings, planned)
    return _summed(workspace, name, basis, items, planned)


def _basis(
    workspace: Workspace,
    name: str,
    mode: str,
    settings: Settings,
    known: dict[str, Metric],
    *,
    power: float,
    effect: str | None,
    chosen: Metric | None,
    save: bool,
) -> _Basis:
    config = workspace.config
    terms = {item.name: terms_of(item, settings, mode=mode, sources={}) for item in known.values()}
    for item in [chosen] if chosen is not None else _of_role(MetricRole.PRIMARY, terms, known):
        _effect(item, effect, terms[item.name])  # what is wrong in the question comes before the log
    analysis = _pilot(workspace, name)
    if analysis is not None:
        sources = {one.name: one.measurable for one in analysis.metrics}
        terms = {item.name: terms_of(item, settings, mode=mode, sources=sources) for item in known.values()}
    record = load_record(workspace.data, name)
    default = float(DEFAULT_N_STAR_PAIRS if mode == "shadow" else DEFAULT_N_STAR_USERS)
    return _Basis(
        mode=mode,
        settings=settings,
        power=power,
        orders=config.judge.orders if config else "both",
        looks=settings.look_mode,  # type: ignore[arg-type]
        terms=terms,
        analysis=analysis,
        log=_log(workspace, settings, analysis, mode),
        n_star={} if save or record is None else dict(record.n_star),
        default_n_star=None if save else default,
        effect=effect,
        alone=chosen is not None,
    )


def _of_role(role: MetricRole, terms: Mapping[str, Terms], known: Mapping[str, Metric]) -> list[Metric]:
    return [item for name, item in known.items() if terms[name].role is role and terms[name].measurable]


def _deciding(basis: _Basis, known: Mapping[str, Metric]) -> list[Metric]:
    return [
        item for role in MetricRole if role is not MetricRole.DIAGNOSTIC for item in _of_role(role, basis.terms, known)
    ]


def _metric(name: str, known: Mapping[str, Metric]) -> Metric:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"--metric {name!r} is no metric{hint} (one of {', '.join(known)})")
    return known[name]


def _effect(item: Metric, text: str | None, terms: Terms, *, wider: float = 1.0) -> float:
    """The effect asked for on the metric's scale: "5%" of a relative metric or of a share, else a number in its unit; by default
    that of `DEFAULT_EFFECTS`, else the margin (`wider` times)."""
    if text is None:
        return DEFAULT_EFFECTS.get(item.name, terms.margin * wider)
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%?)\s*", text)
    value = float(match.group(1)) / (100 if match.group(2) else 1) if match else 0.0
    if not match or value <= 0:
        raise ConfigError(f"--effect {text!r}: give a size above 0, such as 0.05 or 5%")
    if match.group(2) and terms.scale == "absolute" and item.unit != "ratio":
        raise ConfigError(f"--effect {text!r}: {item.name} is planned in its own unit ({item.unit}); give a number")
    if item.name == WIN_RATE and value >= 0.5:
        raise ConfigError(f"--effect {text!r}: a win rate differs from one half by less than 0.5, e.g. 0.05 for 55 %")
    if item.direction == "lower" and value >= 1 and (terms.scale == "relative" or item.unit == "ratio"):
        raise ConfigError(f"--effect {text!r}: {item.name} cannot fall by 100 % or more; 10% is 0.1")
    return value


def _pilot(workspace: Workspace, name: str) -> Analysis | None:
    """What the log shows already; None without one. A plan is no look: nothing is recorded."""
    try:
        return analyze_workspace(workspace, experiment=name, details=False, pilot=True)
    except DataError:
        return None


def _log(workspace: Workspace, settings: Settings, analysis: Analysis | None, mode: str) -> Log:
    config = workspace.config
    share = config.collector.sample_percent / 100 if config is not None and mode == "shadow" else 1.0
    treated = settings.treatment_percent / 100 if settings.treatment_percent else 0.5
    treated = min(max(treated, 0.001), 0.999)
    if analysis is None:
        return Log(share=share or 1.0, pairs_per_unit=settings.pairs_per_unit, treatment_share=treated)
    funnel = analysis.funnel
    if mode == "shadow" and funnel.requests:
        share = funnel.pairs / funnel.requests
    return Log(
        requests=funnel.requests,
        pairs=funnel.pairs,
        users=funnel.users,
        share=share,
        pairs_per_unit=settings.pairs_per_unit,
        treatment_share=treated,
    )


def _summed(
    workspace: Workspace, name: str, basis: _Basis, items: list[Metric], planned: dict[str, PlannedMetric]
) -> Plan:
    analysis, log, shadow = basis.analysis, basis.log, basis.mode == "shadow"
    per_day, notes = _traffic(analysis)
    slowest = _slowest(basis, planned)
    bottleneck = None
    if slowest is not None:
        bottleneck = Bottleneck(
            metric=slowest.name,
            requests=slowest.requests,
            days=None if not per_day else slowest.requests / per_day,
            requests_max=slowest.requests_max,
            days_max=None if not per_day else slowest.requests_max / per_day,
        )
    judged = planned.get(WIN_RATE) if shadow else None
    price, judge, price_note = price_per_pair(workspace, name, basis.orders)
    notes += [price_note] if price_note else []
    if judged is not None and basis.settings.turns == "first" and basis.settings.later_turns_percent:
        part = basis.settings.later_turns_percent / 100
        notes.append(
            f"Where users have later turns, judging them takes {100 * part / (1 - part):.0f} % on top "
            "(`later_turns_percent` in [judge])."
        )
    if analysis is not None and analysis.decision.horizon is not None:
        notes.append(
            'The report\'s "about N more requests" is until a conclusion if the difference seen so far stays as it is; '
            "a plan is for the difference named, whatever was seen."
        )
    unplanned = [item.name for item in items if item.name not in planned]
    if any(basis.terms[one].margin <= 0 for one in unplanned):
        notes.append("A margin of 0 can never be shown when nothing differs.")
    if basis.alone or slowest is None or slowest.name not in planned:
        wider = None
    else:
        wider = _wider(basis, planned, slowest, {item.name: item for item in items})
    calls = 2 if basis.orders == "both" else 1
    pairs = None if judged is None else judged.n_planned_typical
    requests = 0 if slowest is None else slowest.requests
    requests_max = 0 if slowest is None else slowest.requests_max
    return Plan(
        experiment=name,
        mode=basis.mode,
        looks=basis.looks,
        policy=basis.settings.policy,
        power=basis.power,
        confidence_level=basis.settings.confidence_level,
        metrics=list(planned.values()),
        unplanned=unplanned,
        not_measured=[]
        if basis.alone
        else [
            one
            for one, terms in basis.terms.items()
            if not terms.measurable and terms.role is not MetricRole.DIAGNOSTIC
        ],
        bottleneck=bottleneck,
        wider_margin=wider,
        pairs=round(requests * log.share) if shadow else 0,
        pairs_max=round(requests_max * log.share) if shadow else 0,
        requests=requests,
        requests_max=requests_max,
        days=None if bottleneck is None else bottleneck.days,
        days_max=None if bottleneck is None else bottleneck.days_max,
        requests_per_day=per_day,
        share_of_requests=log.share,
        judge=judge,
        judge_pairs=pairs,
        judge_calls=None if pairs is None else calls * pairs,
        judge_usd_per_pair=price,
        judge_usd=None if price is None or pairs is None else price * pairs,
        judge_usd_max=None if price is None or judged is None else price * judged.n_planned_max,
        notes=notes,
    )


def _slowest(basis: _Basis, planned: Mapping[str, PlannedMetric]) -> PlannedMetric | None:
    """The metric with the largest planned size. The share of empty answers blocks only once the treatment gave one."""
    rows = {} if basis.analysis is None else {one.name: one for one in basis.analysis.metrics}

    def blocks(name: str) -> bool:
        seen = rows.get(name)
        return name not in FROM_FIRST_EVENT or (seen is not None and bool(seen.treatment.numerator))

    counted = [one for one in planned.values() if basis.alone or blocks(one.name)]
    return max(counted, key=lambda one: (one.requests_max, one.requests), default=None)


def _wider(
    basis: _Basis, planned: Mapping[str, PlannedMetric], slowest: PlannedMetric, items: Mapping[str, Metric]
) -> WiderMargin | None:
    """What twice the margin of the slowest metric would save; None where it would save nothing."""
    found = basis.plan(items[slowest.name], wider=WIDER)
    if found is None or found.requests_max >= slowest.requests_max:
        return None
    after = _slowest(basis, {**planned, slowest.name: found}) or found
    return WiderMargin(
        metric=slowest.name,
        margin=found.margin,
        requests=found.requests,
        requests_max=found.requests_max,
        next=after.name,
        next_requests=after.requests,
    )


def _traffic(analysis: Analysis | None) -> tuple[float | None, list[str]]:
    """(requests a day, notes), from the log."""
    if analysis is None:
        return None, [
            "Nothing is loaded yet: run `evalpipe collect` for a while, then `evalpipe load`, to have days and measured noise."
        ]
    first, last = analysis.provenance.get("first_at"), analysis.provenance.get("last_at")
    if not first or not last:
        return None, ["The log does not hold when its requests came, so days are not known."]
    per_day = requests_per_day(first, last, analysis.funnel.requests)
    return per_day, [] if per_day is not None else ["The log covers less than an hour, so days are not known."]


def _save(workspace: Workspace, name: str, mode: str, settings: Settings, planned: dict[str, PlannedMetric]) -> None:
    """Fix n* in the experiment record; only before the first look, as it may not follow the data."""
    with recording(workspace.data, name):
        record = load_record(workspace.data, name)
        if record is not None and (record.n_looks or record.judged_until):
            looks = f"looked at {record.n_looks} times" if record.n_looks else "judged by `judge --until-decided`"
            raise ConfigError(f"experiment {name!r} has been {looks}: its plan is fixed; plan a new experiment")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        fresh = new_record(experiment=name, mode=mode, settings=settings, now=now, planned=planned_n_star(planned))
        save_record(workspace.data, replace(fresh, planned=True))
