"""Metrics as measured, made of a few numbers, for forecasts."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

from evalpipe.analysis.decision import DecisionMetric, Terms
from evalpipe.analysis.intervals import Measured
from evalpipe.analysis.metrics import metrics
from evalpipe.analysis.result import ArmValue, MetricResult
from evalpipe.analysis.settings import LookPlan
from evalpipe.models import MetricRole
from evalpipe.stats.estimates import Estimate

LOOK = LookPlan(mode="anytime", alpha=0.05, paired=True, n_star={})
ITEMS = {item.name: item for item in metrics()}


def placed(
    name: str,
    at: Callable[[float, str], Estimate],
    *,
    role: str,
    margin: float,
    scale: str = "absolute",
    control: ArmValue | None = None,
    treatment: ArmValue | None = None,
) -> DecisionMetric:
    """A metric with `at(alpha, scale)` as its interval."""
    nothing = ArmValue(value=1.0, n=100, numerator=1.0)
    return DecisionMetric(
        measured=Measured(metric=ITEMS[name], control=control or nothing, treatment=treatment or nothing, at=cache(at)),
        terms=Terms(role=MetricRole(role), scale=scale, margin=margin),  # type: ignore[arg-type]
    )


def normal(
    name: str,
    point: float,
    se: float,
    users: int,
    *,
    role: str,
    margin: float,
    scale: str = "absolute",
    status: str = "ok",
    skewness: float | None = None,
    pairs: int | None = None,
    look: LookPlan = LOOK,
) -> DecisionMetric:
    """A mean of `users` users (treatment − control, not oriented) under the normal-mixture interval; `point` and `se` of the
    logarithm on the relative scale."""

    def at(level: float, wanted: str) -> Estimate:
        c = look.multiplier(name).critical(level, n=users, df=users - 1)
        shown = math.expm1 if scale == "relative" else float
        return Estimate(
            point=shown(point),
            ci_low=shown(point - c * se),
            ci_high=shown(point + c * se),
            confidence_level=1 - level,
            n=pairs or users,
            n_clusters=users,
            standard_error=se,
            method="paired jackknife, anytime",
            status=status,
            skewness=skewness,
        )

    return placed(name, at, role=role, margin=margin, scale=scale)


def row(one: DecisionMetric, *, finding: str = "inconclusive", alpha: float = 0.05) -> MetricResult:
    """Its row of the decision table."""
    item, terms = one.metric, one.terms
    found = one.measured.at(alpha, terms.scale)
    relative = terms.scale == "relative"
    return MetricResult(
        name=item.name,
        label=item.label,
        group=item.group,
        unit=item.unit,
        direction=item.direction,
        role=terms.role.value,
        scale=terms.scale,
        control=one.measured.control,
        treatment=one.measured.treatment,
        difference=found.point,
        ci_low=found.ci_low,
        ci_high=found.ci_high,
        confidence_level=1 - alpha,
        p_value=None,
        margin=terms.margin,
        relative=found.point if relative else None,
        relative_low=found.ci_low if relative else None,
        relative_high=found.ci_high if relative else None,
        standard_error=None if relative else found.standard_error,
        skewness=found.skewness,
        n=found.n,
        n_clusters=found.n_clusters,
        method=found.method,
        status=found.status,
        finding=finding,
    )
