"""Before anything is spent: pairs, users and requests for what the decision needs of each metric, given its noise.

A metric that may win (goal, benefit) needs enough units to show the effect planned for, and any metric that decides needs enough
to be shown not worse than its margin when nothing differs. Looking at any time, an experiment is stopped at twice the sample of
one fixed look; half of the experiments are through much earlier. The report's forecast uses the same noise and the same method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from evalpipe.analysis.metric_formatting import rounded_up
from evalpipe.analysis.metrics import Metric, Quantile, Ratio
from evalpipe.analysis.result import ArmValue, MetricResult
from evalpipe.stats import betting, estimates, special
from evalpipe.stats.estimates import Estimate
from evalpipe.stats.event_rates import HEAVINESS_SHARE
from evalpipe.stats.planning import (
    Looks,
    PairedRates,
    UnpairedRates,
    Way,
    anytime_n_star,
    equivalence_n,
    maximum_n,
    mcnemar_n,
    paired_n,
    paired_rates,
    unpaired_rates,
    with_power,
)
from evalpipe.stats.sequential import Fixed

WIN_RATE = "win_rate"
TYPICAL_RATE = 0.01
TYPICAL_RATES = {"timeout_rate": 0.001}
"""share of requests with an event in either arm, where no log shows another; a timeout is one of several errors"""
TYPICAL_SD = {"score_10": 2.0, "score_1": 0.25}
"""standard deviation of a pair's difference by unit, where no log shows another"""
TYPICAL_COST = (0.64, 0.16)
"""variance of the logarithm of a request's cost, tokens or speed: the prompt's, which both arms share, and an answer's own"""
TYPICAL_LATENCY_SD = 0.8
"""of the logarithm of a request's latency"""
TYPICAL_ICC = 0.1
"""share of a value's variance that is the user's: a user's second and third request are worth almost as much as new users"""
MIN_PILOT_USERS = 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Log:
    """What a plan takes from the log beside the metrics' noise.

    Attributes:
        requests: requests so far; 0 without a log.
        pairs: of them compared (shadow mode).
        users: users behind these.
        share: share of the requests that is compared; without a log the configured one.
        pairs_per_unit: judged pairs of a user that count, at most; 0 = all.
        treatment_share: the treatment's share of the requests where the arms have different users.
    """

    requests: int = 0
    pairs: int = 0
    users: int = 0
    share: float = 1.0
    pairs_per_unit: int = 0
    treatment_share: float = 0.5

    def requests_per_user(self, users: int) -> float:
        """Requests behind one of `users` users that have a value; 1/`share` without a log."""
        return self.requests / users if self.requests and users else 1 / self.share

    def compared_per_user(self, *, paired: bool) -> float:
        """A user's requests that count: 1 without a log."""
        counted = self.pairs if paired else self.requests
        return max(1.0, counted / self.users) if counted and self.users else 1.0

    @property
    def judged_per_user(self) -> float:
        """Judged pairs of a user: as many as there are, at most `pairs_per_unit`."""
        pairs = self.compared_per_user(paired=True)
        return min(pairs, self.pairs_per_unit) if self.pairs_per_unit else pairs


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedMetric:
    """One metric's plan.

    Units are pairs in shadow mode (for the win rate judged ones, of as many a user as count; of different users where there is no
    log), users of both arms together otherwise. Where a log holds few users typical noise is used (see `sd_source`).

    Attributes:
        role: primary | benefit | guardrail | diagnostic.
        effect: the difference to be shown, on `scale`; for a guardrail its margin.
        sd: standard deviation of a user's difference (of its logarithm on the relative scale).
        alpha: two-sided level of the effect: alpha over the number of goals, or of benefits.
        n_fixed: units to show the effect in one fixed look with `power`; of a guardrail that it is not worse.
        n_typical: units by which half of the experiments have shown it under the configured plan of looks.
        n_max: where to stop for good: twice `n_fixed` looking at any time (not before `n_typical`).
        n_star: users after which its intervals are made tightest.
        n_noninferior: units to show no loss beyond `margin` in one fixed look with `power` when nothing differs.
        n_noninferior_typical: units by which half of the experiments have shown it.
        n_noninferior_max: where to stop for good.
        n_equivalent: units to show no difference of `margin` either way when there is none.
        may_win: the first numbers are about the effect; False: about "not worse".
        margin_counts: the plan's size covers "not worse", too (not where an effect alone is asked for).
        requests: requests behind `n_typical`, or behind `n_noninferior_typical` where that counts and is more.
        requests_max: the same of the units at which to stop for good: the planned size.
    """

    name: str
    label: str
    role: str
    unit: str
    scale: str
    effect: float
    margin: float
    sd: float
    sd_source: str
    power: float
    alpha: float
    n_fixed: int
    n_typical: int
    n_max: int
    n_star: int
    n_noninferior: int | None
    n_noninferior_typical: int | None
    n_noninferior_max: int | None
    n_equivalent: int | None
    may_win: bool
    margin_counts: bool
    requests: int
    requests_max: int

    @property
    def n_planned_typical(self) -> int:
        """Units by which half of the experiments have shown all that counts."""
        return max(self.n_typical, (self.n_noninferior_typical or 0) if self.margin_counts else 0)

    @property
    def n_planned_max(self) -> int:
        """Units at which to stop for good."""
        return max(self.n_max, (self.n_noninferior_max or 0) if self.margin_counts else 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What is to be shown of a metric.

    Attributes:
        effect: on `scale`, above 0.
        margin: δ ≥ 0.
        scale: absolute | relative.
        alpha: two-sided level of the effect.
        margin_alpha: of "not worse"; None: `alpha`.
        power: chance to show either.
        role: of the metric.
        may_win: an effect is to be shown; False for a guardrail.
        margin_counts: "not worse" belongs to the planned size.
    """

    effect: float
    margin: float
    scale: str
    alpha: float
    margin_alpha: float | None = None
    power: float = 0.8
    role: str = "primary"
    may_win: bool = True
    margin_counts: bool = False


def plan_metric(
    item: Metric,
    question: Question,
    *,
    looks: Way,
    n_looks: int = 1,
    paired: bool = True,
    pilot: MetricResult | None = None,
    orders: str = "both",
    log: Log | None = None,
    n_star: float | None = None,
) -> PlannedMetric | None:
    """The plan for one metric.

    Args:
        item: the metric.
        question: what is to be shown.
        looks: the plan of looks.
        n_looks: planned looks (scheduled).
        paired: both arms answer the same requests (shadow mode).
        pilot: its row in an analysis of the log by plain intervals; None without a log.
        orders: how the judge is asked: both | calibrated | balanced.
        log: traffic; None without a log.
        n_star: the anytime intervals' planned sample in force, in users; None: this plan's.

    Returns:
        The plan, or None where the metric's variance is unknown (no log, and no typical value), or a margin of 0 is to be
        held.
    """
    log = log or Log()
    if (question.effect if question.may_win else question.margin) <= 0:
        return None
    known = _noise(item, question, pilot=pilot, orders=orders, paired=paired, log=log, gated=looks == "anytime")
    if known is None:
        return None
    noise, source, per_user, users = known
    level = question.alpha if question.margin_alpha is None else question.margin_alpha
    holds = question.margin > 0
    held = _fixed(noise, 0.0, -question.margin, level, question.power) if holds else None
    effect = question.effect if question.may_win or held is None else question.margin
    shown = held if held is not None and not question.may_win else None
    fixed = _fixed(noise, effect, 0.0, question.alpha, question.power) if shown is None else shown
    slowest = max(fixed, held or 0.0) if question.margin_counts else fixed
    star = max(1, round(anytime_n_star(slowest)))

    def typical(point: float, line: float, alpha: float, otherwise: float) -> float:
        if looks != "anytime":
            return otherwise
        now = Looks(way=looks, n_star=n_star or star, alpha=alpha, n_looks=n_looks)
        return noise.needed(point, line, now, half=True)

    def units(n_users: float) -> int:
        return math.ceil(min(n_users * per_user, 1e15))

    def cap(n_users: float, half: float) -> float:
        """Where to stop for good, in users: not before the gates of early looks open, or half of the experiments are through."""
        return max(maximum_n(min(n_users, 1e15), looks, n_looks=max(n_looks, 1)), min(half, 1e15))

    def most(n_users: float, half: float) -> int:
        return rounded_up(min(cap(n_users, half) * per_user, 1e15))

    half_held = None if held is None else typical(0.0, -question.margin, level, held)
    half = half_held if shown is not None and half_held is not None else typical(effect, 0.0, question.alpha, fixed)
    requests = log.requests_per_user(users)
    counted = [(half, cap(fixed, half))]
    if question.margin_counts and held is not None and half_held is not None:
        counted.append((half_held, cap(held, half_held)))
    equivalent = None
    if holds:
        distance = min(_distance(noise, 0.0, -question.margin), _distance(noise, 0.0, question.margin))
        equivalent = equivalence_n(noise.sd, distance, power=question.power, alpha=level) if distance > 0 else None
    return PlannedMetric(
        name=item.name,
        label=item.label,
        role=question.role,
        unit=item.unit,
        scale=question.scale,
        effect=effect,
        margin=question.margin,
        sd=noise.sd,
        sd_source=source,
        power=question.power,
        alpha=question.alpha,
        n_fixed=units(fixed),
        n_typical=units(half),
        n_max=most(fixed, half),
        n_star=star,
        n_noninferior=None if held is None else units(held),
        n_noninferior_typical=None if half_held is None else units(half_held),
        n_noninferior_max=None if held is None or half_held is None else most(held, half_held),
        n_equivalent=None if equivalent is None else units(equivalent),
        may_win=shown is None,
        margin_counts=question.margin_counts,
        requests=rounded_up(min(max(one for one, _ in counted) * requests, 1e15)),
        requests_max=rounded_up(min(max(one for _, one in counted) * requests, 1e15)),
    )


def planned_n_star(plans: Mapping[str, PlannedMetric]) -> dict[str, float]:
    """n* by metric, for the experiment record."""
    return {name: float(plan.n_star) for name, plan in plans.items()}


def _fixed(noise: Noise, point: float, line: float, alpha: float, power: float) -> float:
    """Units of one fixed look that shows the true difference `point` to lie beyond `line` with the given power."""
    if isinstance(noise, Spread):
        distance = noise.distance(point, line)
        return paired_n(noise.sd, distance, power=power, alpha=alpha) if distance > 0 else math.inf
    if isinstance(noise, PairedRates) and line == 0:
        return mcnemar_n(max(noise.discordant, point), point, power=power, alpha=alpha) / noise.per_unit
    needed = noise.needed(point, line, Looks(way="fixed", alpha=alpha))
    return with_power(needed, noise.sd, abs(point - line), power=power)


def _distance(noise: Noise, point: float, line: float) -> float:
    return noise.distance(point, line) if isinstance(noise, Spread) else abs(point - line)


def _noise(
    item: Metric,
    question: Question,
    *,
    pilot: MetricResult | None,
    orders: str,
    paired: bool,
    log: Log,
    gated: bool,
) -> tuple[Noise, str, float, int] | None:
    """(noise of a user's difference, where from, units a user has, users of the log): from the log where it holds enough users,
    else typical."""
    relative = question.scale == "relative"
    if pilot is not None and pilot.n_clusters >= MIN_PILOT_USERS and pilot.scale == question.scale:
        found = _from_log(item, pilot, relative=relative, margin=question.margin, gated=gated)
        if found is not None:
            users = log.users if item.name == WIN_RATE else pilot.n_clusters
            per_user = pilot.n / pilot.n_clusters if paired else 1.0
            return found, f"the log ({pilot.n_clusters:,} users)", per_user, users
    judged = item.name == WIN_RATE
    each = log.judged_per_user if judged else log.compared_per_user(paired=paired)
    typical = _typical(item, relative=relative, orders=orders, paired=paired, share=log.treatment_share, each=each)
    return None if typical is None else (*typical, each if paired else 1.0, log.users)


def _from_log(item: Metric, pilot: MetricResult, *, relative: bool, margin: float, gated: bool) -> Noise | None:
    seen = seen_in_row(pilot, item)
    if seen is None:
        return None
    alpha = 1 - pilot.confidence_level
    score = seen.method.startswith(("tango", "newcombe", "betting"))
    c = Fixed().critical(alpha, df=None if score else pilot.n_clusters - 1)
    stakes = betting.tuned_bets(1000, alpha=alpha)  # of the interval of verdicts that are all alike
    return noise_in(seen, item, relative=relative, line=-margin, c=c, alpha=alpha, stakes=stakes, gated=gated)


def _typical(
    item: Metric, *, relative: bool, orders: str, paired: bool, share: float, each: float
) -> tuple[Noise, str] | None:
    """(noise of a user with `each` requests that count, where from) without a log that shows it."""
    # Of arms with different users: both arms' variances over their shares of the users.
    apart = 1.0 if paired else math.sqrt((1 / share + 1 / (1 - share)) / 2)
    apart *= math.sqrt(TYPICAL_ICC + (1 - TYPICAL_ICC) / each)
    if item.name == WIN_RATE and not relative:
        variance = betting.SIGMA2_BOTH_ORDERS if orders == "both" else betting.SIGMA2_ONE_ORDER
        return Spread(sd=math.sqrt(variance) * apart), "a typical judge"
    if isinstance(item.values, Ratio) and item.values.binary and not relative:
        rate = TYPICAL_RATES.get(item.name, TYPICAL_RATE)
        worth = each / (1 + HEAVINESS_SHARE * (each - 1))
        where = f"{100 * rate:g} % of requests in either arm"
        if paired:
            return PairedRates(discordant=2 * rate, per_unit=worth, one_each=each == 1), where
        return UnpairedRates(control=rate, share=share, per_unit=worth, sign=item.sign), where
    if relative and isinstance(item.values, Quantile):
        p = item.values.share
        z = float(special.ndtri(p))
        # Of a lognormal distribution: sqrt(p(1−p)) over the normal density at its quantile, times the logarithm's sd.
        factor = math.sqrt(p * (1 - p)) * math.sqrt(2 * math.pi) * math.exp(z * z / 2)
        spread = Spread(sd=math.sqrt(2) * TYPICAL_LATENCY_SD * factor * apart, relative=True, sign=item.sign)
        return spread, "typical latencies"
    if relative and item.group in {"cost", "performance"}:
        shared, own = TYPICAL_COST
        # Squared coefficients of variation of lognormal values; of paired arms without what both share.
        variance = 2 * (math.expm1(shared + own) - (math.expm1(shared) if paired else 0.0))
        spread = Spread(sd=math.sqrt(variance) * apart, relative=True, sign=item.sign)
        return spread, f"typical {'costs' if item.group == 'cost' else 'speeds'}"
    if item.unit in TYPICAL_SD and not relative:
        return Spread(sd=TYPICAL_SD[item.unit] * apart, sign=item.sign), "typical scores"
    return None


# How much a metric varies, and so how many users it takes to exclude a line: what the plan and the report's forecast
# share.
#
# A line is a difference to be excluded: 0 (a win), −margin (not worse), both ±margin (no difference that matters).
# Everything is oriented so that above 0 = treatment better; on the relative scale distances are taken between
# logarithms, as the intervals are.


UNSEEN = 0.2275
"""events added to those seen: after few requests without an error errors may still come. The median of the expected number
under Jeffreys' prior when none was seen, half the median of a chi-square with one degree of freedom (and .17 when many were)"""


class Noise(Protocol):
    """What a forecast needs of a metric."""

    @property
    def sd(self) -> float:
        """Standard deviation of a unit's difference: se·√units."""
        ...

    def needed(self, point: float, line: float, looks: Looks, *, half: bool = False) -> float:
        """Units at which the expected difference `point` excludes `line`, infinity where none does; `half`: by which half of
        the experiments have excluded it."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """A mean, ratio, quantile or win rate, whose interval shrinks with 1/√units.

    Attributes:
        sd: standard deviation of a unit's difference (of its logarithm on the relative scale).
        relative: the scale of points and lines.
        sign: +1 where a higher value is better, −1 where a lower one is.
        least: units before which its interval may not be used (the gates of early looks).
    """

    sd: float
    relative: bool = False
    sign: int = 1
    least: float = 0.0

    def needed(self, point: float, line: float, looks: Looks, *, half: bool = False) -> float:
        """Units at which the expected difference `point` excludes `line`; arguments as `event_planning.PairedRates.needed`."""
        by_width = looks.needed(self.sd, self.distance(point, line))
        return max(self.least, looks.in_half(by_width) if half else by_width)

    def distance(self, point: float, line: float) -> float:
        """Between two differences, on the scale of `sd`; 0 where one of them is no possible ratio."""
        return (
            abs(_height(point, self) - _height(line, self)) if _possible(point, self) and _possible(line, self) else 0.0
        )


def _possible(value: float, spread: Spread) -> bool:
    return not spread.relative or spread.sign * value > -1


def _height(value: float, spread: Spread) -> float:
    return spread.sign * math.log1p(spread.sign * value) if spread.relative else value


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """A metric's estimate as a forecast reads it, oriented; `standard_error` is that of the logarithm on the relative scale."""

    point: float
    low: float | None
    high: float | None
    standard_error: float | None
    n: int
    n_units: int
    method: str
    status: str
    skewness: float | None
    control: ArmValue
    treatment: ArmValue


def seen_in(estimate: Estimate, item: Metric, *, control: ArmValue, treatment: ArmValue) -> Seen | None:
    """The estimate of a look; None where it has no point."""
    if estimate.point is None or estimate.n_clusters < 1:
        return None
    low, high = _oriented(estimate.ci_low, estimate.ci_high, item.sign)
    return Seen(
        point=item.sign * estimate.point,
        low=low,
        high=high,
        standard_error=estimate.standard_error,
        n=estimate.n,
        n_units=estimate.n_clusters,
        method=estimate.method,
        status=estimate.status,
        skewness=estimate.skewness,
        control=control,
        treatment=treatment,
    )


def seen_in_row(result: MetricResult, item: Metric) -> Seen | None:
    """The same of a row of the decision table, whose standard error is on the absolute scale only."""
    relative = result.scale == "relative"
    point = result.relative if relative else result.difference
    if point is None or result.n_clusters < 1:
        return None
    ends = (result.relative_low, result.relative_high) if relative else (result.ci_low, result.ci_high)
    low, high = _oriented(*ends, item.sign)
    return Seen(
        point=item.sign * point,
        low=low,
        high=high,
        standard_error=None if relative else result.standard_error,
        n=result.n,
        n_units=result.n_clusters,
        method=result.method,
        status=result.status,
        skewness=result.skewness,
        control=result.control,
        treatment=result.treatment,
    )


def noise_in(
    seen: Seen,
    item: Metric,
    *,
    relative: bool,
    line: float,
    c: float,
    alpha: float = 0.05,
    stakes: betting.Bets | None = None,
    gated: bool = True,
) -> Noise | None:
    """The noise behind an interval.

    Args:
        seen: the estimate with its interval.
        item: the metric.
        relative: the interval is that of the relative difference.
        line: the difference to be excluded; of an interval that is not symmetric the side towards it is read.
        c: critical value behind the interval.
        alpha: two-sided level of the interval.
        stakes: of the betting interval, where the method is betting.
        gated: looks at any time are meant, which have to wait until the estimate is near enough to normal.

    Returns:
        The noise, or None where the interval has no width or no limit on that side.
    """
    edge = seen.low if line <= seen.point else seen.high
    binary = isinstance(item.values, Ratio) and item.values.binary and not relative
    if binary and seen.control.value is not None and seen.treatment.value is not None:
        rates = _rates(seen, item, edge, c=c, alpha=alpha, stakes=stakes)
        if rates is not None:
            return rates
    plain = Spread(sd=0.0, relative=relative, sign=item.sign)
    sd = seen.standard_error
    if sd is None:
        if edge is None or not (0 < c < math.inf) or not _possible(edge, plain):
            return None
        sd = plain.distance(seen.point, edge) / c
    if sd <= 0:
        return None
    least = _least(seen) if gated and not binary else 0.0
    return Spread(sd=sd * math.sqrt(seen.n_units), relative=relative, sign=item.sign, least=least)


def _rates(
    seen: Seen, item: Metric, edge: float | None, *, c: float, alpha: float, stakes: betting.Bets | None
) -> Noise | None:
    """Of an event rate; None by a method that reads whose event it was (canary)."""
    control, treatment = seen.control.value or 0.0, seen.treatment.value or 0.0
    method = seen.method
    betted = method.startswith("betting")
    if method.startswith(("tango", "betting")) and edge is not None and (betted or 0 < c < math.inf):
        rates = paired_rates(
            point=seen.point,
            edge=edge,
            n=seen.n,
            n_units=seen.n_units,
            most_discordant=control + treatment,
            c=c,
            stakes=stakes if betted else None,
            alpha=alpha,
        )
        return replace(rates, discordant=min(1.0, rates.discordant + UNSEEN / seen.n))
    if method.startswith("newcombe") and edge is not None and 0 < c < math.inf:
        found = unpaired_rates(
            control=control,
            treatment=treatment,
            edge=edge,
            n_control=seen.control.n,
            n_treatment=seen.treatment.n,
            n_units=seen.n_units,
            c=c,
            sign=item.sign,
        )
        return replace(found, control=min(1.0, found.control + UNSEEN / seen.control.n))
    return None


def _least(seen: Seen) -> float:
    """Units at which the gates of early looks open (`stats.estimates`): the skewness of an estimate falls with 1/√units."""
    if seen.skewness is None:  # win rates and quantiles have no gate
        return 0.0
    units = float(estimates.MIN_PAIRS_ANYTIME)
    if seen.method.startswith("unpaired"):
        share = seen.treatment.n / max(1, seen.treatment.n + seen.control.n)
        units = estimates.MIN_CLUSTERS_ANYTIME / max(min(share, 1 - share), 1e-9)
    return max(units, seen.n_units * (seen.skewness / estimates.MAX_SKEW_ANYTIME) ** 2)


def _oriented(low: float | None, high: float | None, sign: int) -> tuple[float | None, float | None]:
    if sign > 0:
        return low, high
    return (None if high is None else -high), (None if low is None else -low)
