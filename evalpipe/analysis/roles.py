"""Which role and margin a metric has in this experiment: the user's where given, else the default for mode and source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evalpipe.analysis.metrics import Metric
from evalpipe.analysis.settings import Settings
from evalpipe.core.experiment import MetricRole
from evalpipe.stats.difference import Scale

BY_SOURCE = frozenset({"user_rating", "relevance_score", "faithfulness_score"})
"""goals of a split only where there are ratings, or a pointwise judge's scores"""
MEASURED_BY_US = frozenset({"p50_latency_ms", "p99_latency_ms"})
"""latencies of a log that evalpipe did not measure inform; they decide only where the user gives them a role"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What holds for a metric here.

    Attributes:
        role: goal, benefit, guardrail or diagnostic.
        scale: of the margin and the deciding interval.
        margin: δ ≥ 0, a share where `scale` is relative.
        weight: in the utility.
        measurable: whether the source of the log can measure it.
        default_margin: nobody set the margin.
    """

    role: MetricRole
    scale: Scale
    margin: float
    weight: float = 1.0
    measurable: bool = True
    default_margin: bool = True


def terms_of(item: Metric, settings: Settings, *, mode: str, sources: Mapping[str, bool]) -> Terms:
    """The terms of a metric.

    Args:
        mode: shadow | ab | canary.
        sources: by metric name, whether the log's source can measure it; a name that is missing: it can.
    """
    rule = settings.rule(item.name)
    default = item.role_shadow if mode == "shadow" else item.role_split
    measurable = sources.get(item.name, True)
    role = rule.role
    if role is None and settings.primary is not None:
        if item.name in settings.primary:
            role = "primary"
        elif default == "primary":
            role = "diagnostic"
    if role is not None and item.name in MEASURED_BY_US:
        measurable = True  # asked for by the user: the log's own figures
    if role is None:
        absent = not measurable and item.name in BY_SOURCE | MEASURED_BY_US
        role = "diagnostic" if absent else default
    scale, margin = item.scale, item.margin
    if rule.margin is not None:
        scale, margin = ("relative" if rule.margin_relative else "absolute"), rule.margin
    return Terms(
        role=MetricRole(role),
        scale=scale,
        margin=margin,
        weight=rule.weight,
        measurable=measurable,
        default_margin=rule.margin is None,
    )
