"""A measured metric and its terms → one row of the decision table, and the evidence the rules read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from evalpipe.analysis.decision import Evidence, Limits, Ruling
from evalpipe.analysis.measure import Measured
from evalpipe.analysis.metrics import Metric
from evalpipe.analysis.result import ArmValue, Basis, BasisMetric, MetricResult
from evalpipe.analysis.roles import Terms, terms_of
from evalpipe.analysis.settings import Settings
from evalpipe.core.experiment import MetricRole
from evalpipe.stats.estimate import Estimate

FROM_FIRST_EVENT = frozenset({"empty_rate"})
"""guardrails that block only from the treatment's first event on: with none seen, so rare an event would block for ever"""
DEFAULT_MARGIN_GROUPS = frozenset({"cost", "performance"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """A measured metric with the terms it has in this experiment."""

    measured: Measured
    terms: Terms

    @property
    def metric(self) -> Metric:
        return self.measured.metric

    @property
    def role(self) -> MetricRole:
        return self.terms.role

    @property
    def margin(self) -> float:
        """δ ≥ 0 on the margin's scale: the terms', but where nobody set it no less than the metric's resolution."""
        control = self.measured.control.value
        if not (self.terms.default_margin and self.terms.scale == "relative" and control):
            return self.terms.margin
        return max(self.terms.margin, self.metric.resolution / abs(control))


def place(measured: Measured, settings: Settings, *, mode: str, sources: Mapping[str, bool]) -> Placed:
    """The metric under its terms (see `roles.terms_of`)."""
    return Placed(measured=measured, terms=terms_of(measured.metric, settings, mode=mode, sources=sources))


def basis_of(placed: list[Placed], judge: str | None) -> Basis:
    """What decides: every goal, benefit and guardrail with its terms."""
    return Basis(
        metrics={
            one.metric.name: BasisMetric(
                role=one.role.value,
                margin=one.terms.margin,
                scale=one.terms.scale,
                weight=one.terms.weight,
                measurable=one.terms.measurable,
            )
            for one in placed
            if one.role is not MetricRole.DIAGNOSTIC
        },
        judge=judge,
    )


def evidence_of(placed: Placed, *, alpha: float) -> Evidence:
    """What the rules read of a metric."""
    terms = placed.terms
    estimate = placed.measured.deciding(alpha, terms.scale)
    sign = placed.metric.sign

    @lru_cache(maxsize=8)
    def limits(level: float) -> Limits:
        found = placed.measured.deciding(level, terms.scale)
        low, high = found.ci_low, found.ci_high
        return (low, high) if sign > 0 else (_negative(high), _negative(low))

    name = placed.metric.name
    return Evidence(
        name=name,
        role=terms.role,
        margin=placed.margin,
        status=estimate.status,
        limits=limits,
        weight=terms.weight,
        measurable=terms.measurable,
        blocks=not (name in FROM_FIRST_EVENT and not placed.measured.treatment.numerator),
        by_default=terms.default_margin and placed.metric.group in DEFAULT_MARGIN_GROUPS,
    )


def result_of(placed: Placed, *, alpha: float, ruling: Ruling | None) -> MetricResult:
    """The row of the decision table; its finding is the ruling's, at the level of its role."""
    item, terms = placed.metric, placed.terms
    if terms.scale == "relative":
        absolute, relative = placed.measured.both(alpha)
    else:
        absolute, relative = placed.measured.at(alpha, "absolute"), None
    deciding = relative if relative is not None else absolute
    verdict = ruling.verdicts.get(item.name) if ruling else None
    level = ruling.levels.get(item.name, alpha) if ruling else alpha
    notes = [deciding.note] if deciding.note else []
    if level != alpha:
        notes.append(
            f"the finding is at the {100 * (1 - level):.4g} % level: several metrics of its role share the risk"
        )
    missing = placed.measured.missing
    control, treatment = placed.measured.control, placed.measured.treatment
    if not terms.measurable:  # what the source cannot measure is no 0
        control = treatment = ArmValue(value=None, n=0)
        absolute = Estimate(point=None, confidence_level=1 - alpha, status="not_measured")
        relative, deciding, notes = None, absolute, []
    return MetricResult(
        name=item.name,
        label=item.label,
        group=item.group,
        unit=item.unit,
        direction=item.direction,
        role=terms.role.value,
        scale=terms.scale,
        control=control,
        treatment=treatment,
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
        skewness=deciding.skewness,
        n=deciding.n,
        n_clusters=deciding.n_clusters,
        method=deciding.method,
        estimand=item.estimand,
        status=deciding.status if terms.measurable else "not_measured",
        finding="undefined" if verdict is None or not terms.measurable else verdict.label,
        non_inferior=verdict is not None and terms.measurable and verdict.non_inferior,
        weight=terms.weight,
        note="; ".join(notes) or None,
        measurable=terms.measurable,
        default_margin=terms.default_margin,
        missing_control=None if missing is None else missing.control,
        missing_treatment=None if missing is None else missing.treatment,
        kinds_left_out=[] if missing is None else list(missing.kinds_left_out),
        share_left_out=0.0 if missing is None else missing.share_left_out,
    )


def with_status(result: MetricResult, status: str, note: str) -> MetricResult:
    """The same numbers under a status that forbids a conclusion."""
    return replace(result, status=status, finding="undefined", non_inferior=False, note=note)


def _negative(value: float | None) -> float | None:
    return None if value is None else -value
