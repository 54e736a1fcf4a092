"""Before anything is spent: pairs, users, days and judge dollars for an effect one wants to see (statistics.md 11)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scipy import special

from evalpipe.analysis.metrics import Metric, Quantile, Ratio
from evalpipe.analysis.result import MetricResult
from evalpipe.analysis.wording import rounded_up
from evalpipe.stats import betting
from evalpipe.stats.planning import (
    anytime_n_star,
    equivalence_n,
    maximum_n,
    mcnemar_n,
    noninferiority_n,
    paired_n,
)

TYPICAL_DISCORDANT = 0.02
"""share of pairs in which exactly one arm fails, where no log says better"""
TYPICAL_SD = {"score_10": 2.0, "score_1": 0.25}
"""standard deviation of a pair's difference, where no log says better"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedMetric:
    """One metric's plan. `sd`: standard deviation of a unit's difference on the scale of `effect`, from `sd_source`.

    `n_fixed`: units for one fixed look; `n_max`: where to stop for good under the configured way of looking. `n_noninferior`,
    `n_equivalent`: units to show no loss beyond, no difference of, `margin` when there is none. Units are pairs in shadow mode
    (of as many a user as in the log; of different users where there is none), users of both arms together otherwise.
    `n_star`: users after which its intervals are made tightest.
    """

    name: str
    label: str
    unit: str
    scale: str
    effect: float
    margin: float
    sd: float
    sd_source: str
    power: float
    alpha: float
    n_fixed: int
    n_max: int
    n_star: int
    n_noninferior: int | None
    n_equivalent: int | None


def plan_metric(
    item: Metric,
    *,
    effect: float,
    margin: float,
    scale: str,
    alpha: float,
    power: float,
    looks: str,
    n_looks: int = 1,
    paired: bool = True,
    pilot: MetricResult | None = None,
    orders: str = "both",
) -> PlannedMetric | None:
    """The plan for one metric; None where nothing says how much it varies (no log yet, and no typical value)."""
    found = _deviation(item, scale=scale, pilot=pilot, orders=orders, effect=effect)
    if found is None:
        return None
    sd, source, pairs_per_user = found if paired else (*found[:2], 1.0)
    binary = isinstance(item.values, Ratio) and item.values.binary
    arms = 1 if paired else 2
    if binary and paired and scale == "absolute":
        n_fixed = mcnemar_n(max(sd * sd, effect), effect, power=power, alpha=alpha)
    else:
        n_fixed = arms * paired_n(sd, effect, power=power, alpha=alpha)

    def units(n_users: float) -> float:
        return n_users * pairs_per_user

    way = "anytime" if looks == "anytime" else "fixed" if looks == "fixed" else "scheduled"
    return PlannedMetric(
        name=item.name,
        label=item.label,
        unit=item.unit,
        scale=scale,
        effect=effect,
        margin=margin,
        sd=sd,
        sd_source=source,
        power=power,
        alpha=alpha,
        n_fixed=math.ceil(units(n_fixed)),
        n_max=rounded_up(maximum_n(units(n_fixed), way, n_looks=max(n_looks, 1))),  # type: ignore[arg-type]
        n_star=max(1, round(anytime_n_star(n_fixed))),
        n_noninferior=math.ceil(units(arms * noninferiority_n(sd, margin, power=power, alpha=alpha)))
        if margin > 0
        else None,
        n_equivalent=math.ceil(units(arms * equivalence_n(sd, margin, power=power, alpha=alpha)))
        if margin > 0
        else None,
    )


def planned_n_star(plans: Mapping[str, PlannedMetric]) -> dict[str, float]:
    """n* by metric, for the experiment record."""
    return {name: float(plan.n_star) for name, plan in plans.items()}


def _deviation(
    item: Metric, *, scale: str, pilot: MetricResult | None, orders: str, effect: float
) -> tuple[float, str, float] | None:
    """(standard deviation of a user's difference, where from, pairs a user has): from the log where it holds enough users,
    else a typical value of one pair a user."""
    if pilot is not None and pilot.n_clusters >= 20:
        se = _standard_error(item, pilot, scale)
        if se is not None and se > 0:
            return se * math.sqrt(pilot.n_clusters), f"the log ({pilot.n_clusters:,} users)", pilot.n / pilot.n_clusters
    if item.name == "win_rate":
        variance = betting.SIGMA2_BOTH_ORDERS if orders == "both" else betting.SIGMA2_ONE_ORDER
        return math.sqrt(variance), "a typical judge", 1.0
    if isinstance(item.values, Ratio) and item.values.binary and scale == "absolute":
        return math.sqrt(max(TYPICAL_DISCORDANT, effect)), f"{TYPICAL_DISCORDANT:.0%} of pairs with one failure", 1.0
    if item.unit in TYPICAL_SD and scale == "absolute":
        return TYPICAL_SD[item.unit], "typical scores", 1.0
    return None


def _standard_error(item: Metric, pilot: MetricResult, scale: str) -> float | None:
    """The standard error of the pilot's difference; where it has only an interval (quantiles, proportions), or on the
    relative scale, from the width of its plain 95 % interval (of the logs where relative)."""
    if scale == "absolute" and not isinstance(item.values, Quantile) and pilot.standard_error is not None:
        return pilot.standard_error
    low, high = (pilot.relative_low, pilot.relative_high) if scale == "relative" else (pilot.ci_low, pilot.ci_high)
    if low is None or high is None or (scale == "relative" and low <= -1):
        return None
    width = math.log1p(high) - math.log1p(low) if scale == "relative" else high - low
    return width / 2 / -float(special.ndtri((1 - pilot.confidence_level) / 2))
