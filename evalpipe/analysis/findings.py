"""A measured metric and its role → one row of the decision table, and the evidence the rules read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from evalpipe.analysis.decide import Evidence, Limits, Ruling
from evalpipe.analysis.measure import Measured
from evalpipe.analysis.metrics import Metric, Ratio
from evalpipe.analysis.result import MetricResult
from evalpipe.analysis.settings import Settings
from evalpipe.analysis.wording import rounded_up
from evalpipe.core.experiment import MetricRole
from evalpipe.stats.difference import Scale
from evalpipe.stats.estimate import Estimate
from evalpipe.stats.planning import expected_more

NOT_MEASURED = frozenset({"no_data"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """A measured metric with the role and margin it has in this experiment. `explicit`: the user gave it that role."""

    measured: Measured
    role: MetricRole
    scale: Scale
    margin: float
    weight: float
    explicit: bool

    @property
    def metric(self) -> Metric:
        return self.measured.metric


def place(measured: Measured, settings: Settings, *, mode: str) -> Placed:
    """Roles and margins: the user's where given, else the contract's for the mode."""
    item = measured.metric
    rule = settings.rule(item.name)
    default = item.role_shadow if mode == "shadow" else item.role_split
    explicit = rule.role is not None
    role = rule.role or default
    if settings.primary is not None and rule.role is None:
        explicit = item.name in settings.primary
        role = "primary" if explicit else ("diagnostic" if default == "primary" else default)
    scale: Scale = item.scale
    margin = item.margin
    if rule.margin is not None:
        scale, margin = ("relative" if rule.margin_relative else "absolute"), rule.margin
    return Placed(
        measured=measured, role=MetricRole(role), scale=scale, margin=margin, weight=rule.weight, explicit=explicit
    )


def evidence_of(placed: Placed, *, alpha: float) -> Evidence | None:
    """What the rules read; None where nothing was measured and nobody asked for it: such a metric is not at hand."""
    estimate = placed.measured.at(alpha, placed.scale)
    if estimate.status in NOT_MEASURED and not placed.explicit:
        return None
    sign = placed.metric.sign

    @lru_cache(maxsize=8)
    def limits(level: float) -> Limits:
        found = placed.measured.at(level, placed.scale)
        low, high = found.ci_low, found.ci_high
        return (low, high) if sign > 0 else (_negative(high), _negative(low))

    return Evidence(
        name=placed.metric.name,
        role=placed.role,
        margin=placed.margin,
        status=estimate.status,
        limits=limits,
        weight=placed.weight,
    )


def result_of(placed: Placed, *, alpha: float, ruling: Ruling | None) -> MetricResult:
    """The row of the decision table; its finding is the ruling's (goals are judged at alpha/S)."""
    item = placed.metric
    absolute = placed.measured.at(alpha, "absolute")
    relative = placed.measured.at(alpha, "relative") if placed.scale == "relative" else None
    deciding = relative if relative is not None else absolute
    verdict = ruling.verdicts.get(item.name) if ruling else None
    level = ruling.levels.get(item.name, alpha) if ruling else alpha
    notes = [deciding.note] if deciding.note else []
    if level != alpha and placed.role is MetricRole.PRIMARY:
        notes.append(f"the finding is at the {100 * (1 - level):g} % level: several goals share the risk")
    return MetricResult(
        name=item.name,
        label=item.label,
        group=item.group,
        unit=item.unit,
        direction=item.direction,
        role=placed.role.value,
        scale=placed.scale,
        control=placed.measured.control,
        treatment=placed.measured.treatment,
        difference=absolute.point,
        ci_low=absolute.ci_low,
        ci_high=absolute.ci_high,
        confidence_level=1 - alpha,
        p_value=deciding.p_value,
        margin=placed.margin,
        relative=None if relative is None else relative.point,
        relative_low=None if relative is None else relative.ci_low,
        relative_high=None if relative is None else relative.ci_high,
        standard_error=absolute.standard_error,
        n=deciding.n,
        n_clusters=deciding.n_clusters,
        method=deciding.method,
        estimand=item.estimand,
        status=deciding.status,
        finding="undefined" if verdict is None else verdict.label,
        non_inferior=False if verdict is None else verdict.non_inferior,
        weight=placed.weight,
        expected_more_requests=_more(placed, deciding, verdict is not None and verdict.label == "inconclusive"),
        note="; ".join(notes) or None,
    )


def not_at_hand(results: Mapping[str, MetricResult]) -> list[MetricResult]:
    """Metrics that would decide but of which nothing was measured."""
    return [
        result
        for result in results.values()
        if result.status in NOT_MEASURED and result.role != MetricRole.DIAGNOSTIC.value
    ]


def with_status(result: MetricResult, status: str, note: str) -> MetricResult:
    """The same numbers under a status that forbids a conclusion."""
    return replace(result, status=status, finding="undefined", non_inferior=False, note=note)


def _more(placed: Placed, estimate: Estimate, inconclusive: bool) -> int | None:
    """Requests until the nearest conclusion at the present noise: n((width/width needed)² − 1), statistics.md 12."""
    if not inconclusive or estimate.point is None or estimate.ci_low is None or estimate.ci_high is None:
        return None
    sign, arms = placed.metric.sign, (placed.measured.control, placed.measured.treatment)
    point = sign * estimate.point
    half = (estimate.ci_high - estimate.ci_low) / 2
    needed = [abs(point)]  # better or worse
    if placed.margin > abs(point):
        needed.append(placed.margin - abs(point))  # equivalent
    if placed.role is MetricRole.GUARDRAIL:
        needed = [point + placed.margin] if point + placed.margin > 0 else [-point - placed.margin]
    target = max(needed)
    if target <= 0:
        return None
    values = placed.metric.values
    no_events = isinstance(values, Ratio) and values.binary and not any(arm.value for arm in arms)
    more = expected_more(estimate.n, half, target, no_events=no_events)
    return None if more is None or more > 1e12 else rounded_up(more)


def _negative(value: float | None) -> float | None:
    return None if value is None else -value
