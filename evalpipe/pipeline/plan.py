"""`evalpipe plan`: what it takes to see an effect, from the log where there is one, before anything is spent."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from evalpipe.analysis.connection import rows
from evalpipe.analysis.metrics import Metric, Verdict, metrics
from evalpipe.analysis.plan import PlannedMetric, plan_metric, planned_n_star
from evalpipe.analysis.record import new_record
from evalpipe.analysis.result import Analysis
from evalpipe.analysis.settings import Settings
from evalpipe.errors import ConfigError, DataError, EvalpipeError
from evalpipe.judging.estimate import TOKENS_PER_CHAR
from evalpipe.pipeline.analyze import analyze_workspace, mode_of, settings_of
from evalpipe.pipeline.judge_setup import price_of, specs_of
from evalpipe.pipeline.record import load_record, recording, save_record
from evalpipe.pipeline.workspace import Workspace, experiment_name
from evalpipe.providers.base import Usage
from evalpipe.store.datasets import open_store

DEFAULT_EFFECTS = {"win_rate": 0.05}
"""preference points of an effect worth planning for; elsewhere the metric's margin"""
OVERHEAD_TOKENS = 700
"""rubric, reply schema and fences around the pair"""
REPLY_TOKENS = 250


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """`requests_per_day`: at the logged traffic (None: no log, or of less than an hour). `judge_usd_per_pair` None: no price
    or no length is known."""

    experiment: str
    mode: str
    looks: str
    metrics: list[PlannedMetric]
    unplanned: list[str]
    pairs: int
    requests: int
    days: float | None
    requests_per_day: float | None
    share_of_requests: float
    judge: str | None
    judge_calls: int | None
    judge_usd_per_pair: float | None
    judge_usd: float | None
    judge_usd_max: float | None
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def plan(
    workspace: Workspace,
    *,
    metric: str | None = None,
    effect: str | None = None,
    power: float = 0.8,
    experiment: str | None = None,
    save: bool = False,
) -> Plan:
    """The plan for `metric` (default: every metric that decides). Raises ConfigError for an unknown metric or effect."""
    settings, mode = settings_of(workspace), mode_of(workspace.config)
    name = experiment or (workspace.config.experiment.name if workspace.config else experiment_name(workspace, None))
    items = _items(metric, mode, settings)
    scales = {item.name: _scale(item, settings) for item in items}
    effects = {item.name: _effect(item, effect, *scales[item.name]) for item in items}
    analysis = _pilot(workspace, name)  # after what can be wrong in the question
    known = {} if analysis is None else {one.name: one for one in analysis.metrics}
    looks = settings.looks if isinstance(settings.looks, str) else "scheduled"
    orders = workspace.config.judge.orders if workspace.config else "both"
    planned: dict[str, PlannedMetric] = {}
    for item in items:
        scale, margin = scales[item.name]
        found = plan_metric(
            item,
            effect=effects[item.name],
            margin=margin,
            scale=scale,
            alpha=settings.alpha,
            power=power,
            looks=looks,
            n_looks=len(settings.looks) if not isinstance(settings.looks, str) else 1,
            paired=mode == "shadow",
            pilot=known.get(item.name),
            orders=orders,
        )
        if found is not None:
            planned[item.name] = found
    if save:
        _save(workspace, name, mode, settings, planned)
    return _summed(workspace, name, mode, looks, orders, items, planned, analysis)


def _summed(
    workspace: Workspace,
    name: str,
    mode: str,
    looks: str,
    orders: str,
    items: list[Metric],
    planned: dict[str, PlannedMetric],
    analysis: Analysis | None,
) -> Plan:
    judged = [p for p in planned.values() if isinstance(_metric(p.name).values, Verdict)]
    pairs = max((p.n_fixed for p in judged), default=0)
    pairs_max = max((p.n_max for p in judged), default=0)
    units = max((p.n_fixed for p in planned.values()), default=0)
    per_day, share, notes = _traffic(workspace, analysis)
    requests = round(max(units, pairs) * _requests_per_unit(analysis) / share) if share > 0 else 0
    price, judge, price_note = _price_per_pair(workspace, name, orders)
    notes += [price_note] if price_note else []
    if analysis is not None and any(one.expected_more_requests for one in analysis.metrics):
        notes.append(
            'The report\'s "about N more" is another question: until a conclusion if the difference seen so far stays as it is. '
            "A plan is for the difference you name, seen or not."
        )
    calls = 2 if orders == "both" else 1
    shadow = mode == "shadow" and bool(judged)
    return Plan(
        experiment=name,
        mode=mode,
        looks=looks,
        metrics=list(planned.values()),
        unplanned=[item.name for item in items if item.name not in planned],
        pairs=max(units, pairs) if mode == "shadow" else 0,
        requests=requests,
        days=None if not per_day else requests / per_day,
        requests_per_day=per_day,
        share_of_requests=share,
        judge=judge,
        judge_calls=calls * pairs if shadow else None,
        judge_usd_per_pair=price,
        judge_usd=price * pairs if price is not None and shadow else None,
        judge_usd_max=price * pairs_max if price is not None and shadow else None,
        notes=notes,
    )


def _pilot(workspace: Workspace, name: str) -> Analysis | None:
    """What the log says already; None without one. A plan is no look: nothing is recorded."""
    try:
        return analyze_workspace(workspace, experiment=name, details=False, pilot=True)
    except DataError:
        return None


def _items(metric: str | None, mode: str, settings: Settings) -> list[Metric]:
    if metric is not None:
        return [_metric(metric)]
    deciding = []
    for item in metrics():
        default = item.role_shadow if mode == "shadow" else item.role_split
        primary = settings.primary is not None and item.name in settings.primary
        role = settings.rule(item.name).role or ("primary" if primary else default)
        if role != "diagnostic":
            deciding.append(item)
    return deciding


def _metric(name: str) -> Metric:
    found = {item.name: item for item in metrics()}
    if name not in found:
        import difflib

        near = difflib.get_close_matches(name, found, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"--metric {name!r} is no metric{hint} (one of {', '.join(found)})")
    return found[name]


def _scale(item: Metric, settings: Settings) -> tuple[str, float]:
    rule = settings.rule(item.name)
    if rule.margin is None:
        return item.scale, item.margin
    return ("relative" if rule.margin_relative else "absolute"), rule.margin


def _effect(item: Metric, text: str | None, scale: str, margin: float) -> float:
    """The effect asked for on the metric's scale: "5%" of a relative metric or of a share, else a number in its unit."""
    if text is None:
        return DEFAULT_EFFECTS.get(item.name, margin) or margin
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*(%?)\s*", text)
    value = float(match.group(1)) / (100 if match.group(2) else 1) if match else 0.0
    if not match or value <= 0:
        raise ConfigError(f"--effect {text!r}: give a size above 0, such as 0.05 or 5%")
    if match.group(2) and scale == "absolute" and item.unit != "ratio":
        raise ConfigError(f"--effect {text!r}: {item.name} is planned in its own unit ({item.unit}); give a number")
    if item.name == "win_rate" and value >= 0.5:
        raise ConfigError(f"--effect {text!r}: a win rate differs from one half by less than 0.5, e.g. 0.05 for 55 %")
    return value


def _traffic(workspace: Workspace, analysis: Analysis | None) -> tuple[float | None, float, list[str]]:
    """(requests a day, share of them that becomes a unit, notes), from the log."""
    share = workspace.config.collector.sample_percent / 100 if workspace.config else 1.0
    if analysis is None:
        return None, share, ["There is no log yet: run `evalpipe collect` for a while to have days and measured noise."]
    first, last = analysis.provenance.get("first_at"), analysis.provenance.get("last_at")
    if analysis.mode == "shadow" and analysis.funnel.requests:
        share = analysis.funnel.pairs / analysis.funnel.requests
    if not first or not last:
        return None, share, ["The log does not say when its requests came, so days cannot be told."]
    hours = (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds() / 3600
    if hours < 1:
        return None, share, ["The log covers less than an hour, so days cannot be told."]
    return analysis.funnel.requests / hours * 24, share, []


def _requests_per_unit(analysis: Analysis | None) -> float:
    """Units are pairs in shadow mode, users otherwise: these send as many requests each as in the log."""
    if analysis is None or analysis.mode == "shadow" or not analysis.funnel.users:
        return 1.0
    return analysis.funnel.requests / analysis.funnel.users


def _price_per_pair(workspace: Workspace, name: str, orders: str) -> tuple[float | None, str | None, str | None]:
    """(dollars a pair, judge, note): what past calls cost, else by the lengths in the log and the price list."""
    try:
        spec = specs_of(workspace)[0]
    except EvalpipeError as error:
        return None, None, str(error)
    calls = 2 if orders == "both" else 1
    with open_store(workspace.data, name) as store:
        paid = rows(
            store.connection,
            "SELECT avg(cost_usd) AS usd, count(cost_usd) AS n FROM judgments "
            "WHERE judge = ? AND NOT simulated AND status = 'ok'",
            [spec.name],
        )[0]
        if paid["n"] >= 20:
            return calls * paid["usd"], spec.name, None
        length = rows(
            store.connection,
            "SELECT avg(least(length(prompt), ?)) * ? AS prompt, avg(least(length(text), ?)) * ? AS answer "
            "FROM exchanges WHERE text IS NOT NULL",
            [spec.max_request_chars, TOKENS_PER_CHAR, spec.max_response_chars, TOKENS_PER_CHAR],
        )[0]
    if length["prompt"] is None or length["answer"] is None:
        return None, spec.name, "There are no answers in the log yet, so the judge's dollars cannot be told."
    usage = Usage(
        input_tokens=round(OVERHEAD_TOKENS + length["prompt"] + 2 * length["answer"]), output_tokens=REPLY_TOKENS
    )
    usd = price_of(workspace, spec)(usage)
    if usd is None:
        return None, spec.name, f'The price of {spec.model} is not known: add it under [prices."{spec.model}"].'
    return calls * usd, spec.name, None


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
