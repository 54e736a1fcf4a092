"""One metric's numbers by the method that fits its kind and the way of looking (statistics.md 0, 3 to 8)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from evalpipe.analysis.looking import SIGMA2_PAIRED_BINARY, Looking
from evalpipe.analysis.metrics import Metric, Ratio, Verdict
from evalpipe.analysis.result import ArmValue
from evalpipe.analysis.sums import Aggregates
from evalpipe.stats import betting, conditional
from evalpipe.stats.cluster import ArmAggregate
from evalpipe.stats.difference import Scale, arm_interval, paired_difference, unpaired_difference
from evalpipe.stats.estimate import Estimate
from evalpipe.stats.paired import paired_proportion
from evalpipe.stats.winrate import win_rate

MIN_EVENTS = 10
"""below this many events in all, whose event it was says nothing yet"""
MAX_REPEATS = 1.2
"""events per user with an event, above which "one event per user" no longer describes them"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Support:
    """Distinct values per user and how many users have them, for the exact methods: of the paired outcome or preference in
    [0, 1] (`both`), or of each arm's own share."""

    both: tuple[Sequence[float], Sequence[float]] | None = None
    in_order: Sequence[float] | None = None
    """the users' preferences in the planned order of judging"""
    sigma2: float = betting.SIGMA2_BOTH_ORDERS
    """planned variance of a preference"""
    control: tuple[Sequence[float], Sequence[float]] | None = None
    treatment: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A metric with its arms' values; `at(alpha, scale)` is its difference at a level (treatment − control, or /−1)."""

    metric: Metric
    control: ArmValue
    treatment: ArmValue
    at: Callable[[float, Scale], Estimate]


@dataclass(frozen=True, kw_only=True, slots=True)
class BinaryCounts:
    """Paired: pairs in which only one arm had the event, of `n` pairs with both sides. Split: users with an event and all
    users per stage."""

    t_only: int = 0
    c_only: int = 0
    n: int = 0
    stages: Sequence[conditional.Stage] = ()


def measure_ratio(
    item: Metric,
    found: Aggregates | None,
    looking: Looking,
    *,
    counts: BinaryCounts | None = None,
    support: Callable[[], Support] | None = None,
) -> Measured:
    """A mean, a ratio or a share; `found` None where no row has a value."""
    alpha = looking.alpha
    if found is None:
        empty = ArmValue(value=None, n=0)
        return Measured(metric=item, control=empty, treatment=empty, at=lambda level, scale: _nothing("no_data", level))
    multiplier = looking.multiplier(item.name)
    binary = isinstance(item.values, Ratio) and item.values.binary

    @cache  # the table, the rules and the reasons ask for the same few levels
    def at(level: float, scale: Scale) -> Estimate:
        if looking.paired:
            if binary and scale == "absolute" and counts is not None:
                return _paired_share(item, found, looking, counts, support, level)
            return paired_difference(found.paired, multiplier=multiplier, alpha=level, scale=scale)
        if binary and looking.mode == "anytime" and counts is not None:
            return _split_share(item, found, looking, counts, support, level, scale)
        return unpaired_difference(found.control, found.treatment, multiplier=multiplier, alpha=level, scale=scale)

    return Measured(
        metric=item,
        control=_arm_value(found.control, looking, item.name, alpha),
        treatment=_arm_value(found.treatment, looking, item.name, alpha),
        at=at,
    )


def measure_preference(
    item: Metric, found: Aggregates | None, looking: Looking, *, support: Callable[[], Support]
) -> Measured:
    """The win rate: treatment θ, control 1 − θ, difference θ − 1/2. Under anytime by the exact betting e-process on one
    value per user, else by the cluster engine."""
    if found is None:
        empty = ArmValue(value=None, n=0)
        return Measured(metric=item, control=empty, treatment=empty, at=lambda level, scale: _nothing("no_data", level))

    users = found.treatment

    @cache
    def at(level: float, scale: Scale) -> Estimate:
        known = support()
        values, counts = known.both or ((), ())
        estimate = win_rate(
            users,
            values=values,
            counts=counts,
            multiplier=looking.multiplier(item.name),
            alpha=level,
            bets=looking.bets(item.name, level, sigma2=known.sigma2),
            in_order=known.in_order,
        )
        return _shifted(estimate, -0.5, scale)

    shown = at(looking.alpha, "absolute")
    point = None if shown.point is None else shown.point + 0.5
    low = None if shown.ci_low is None else shown.ci_low + 0.5
    high = None if shown.ci_high is None else shown.ci_high + 0.5
    n = found.treatment.n
    treatment = ArmValue(value=point, n=n, ci_low=low, ci_high=high)
    control = ArmValue(value=_minus(point), n=n, ci_low=_minus(high), ci_high=_minus(low))
    return Measured(metric=item, control=control, treatment=treatment, at=at)


def _paired_share(
    item: Metric,
    found: Aggregates,
    looking: Looking,
    counts: BinaryCounts,
    support: Callable[[], Support] | None,
    alpha: float,
) -> Estimate:
    """Error, timeout, refusal, truncation in shadow mode."""
    multiplier = looking.multiplier(item.name)
    complete = found.control.n == found.treatment.n == counts.n
    if not complete and found.control.numerator + found.treatment.numerator > 0:
        # Answered on one side only: the shares stand on different rows, which the cluster engine allows.
        estimate = paired_difference(found.paired, multiplier=multiplier, alpha=alpha)
    else:
        estimate = paired_proportion(
            t_only=counts.t_only,
            c_only=counts.c_only,
            n=counts.n,
            users=found.paired,
            multiplier=multiplier,
            alpha=alpha,
            bets=looking.bets(item.name, alpha, sigma2=SIGMA2_PAIRED_BINARY),
        )
    if looking.mode == "anytime" and estimate.status in {"too_few_events", "burn_in", "zero_variance"} and support:
        both = support().both
        if both is not None and sum(both[1]) >= 2:
            bets = looking.bets(item.name, alpha, sigma2=SIGMA2_PAIRED_BINARY)
            exact = betting.bounded_mean(*both, bets, alpha=alpha, n=counts.n)
            return replace(_shifted(exact, -0.5, factor=2.0), method="betting on users' paired outcomes, anytime")
    return estimate


def _split_share(
    item: Metric,
    found: Aggregates,
    looking: Looking,
    counts: BinaryCounts,
    support: Callable[[], Support] | None,
    alpha: float,
    scale: Scale,
) -> Estimate:
    """A share in ab and canary mode under anytime: whose event was it, else the exact limits of both arms joined."""
    control, treatment = found.control, found.treatment
    rate_c, rate_t = control.ratio, treatment.ratio
    if rate_c is None or rate_t is None:
        return unpaired_difference(control, treatment, multiplier=looking.multiplier(item.name), alpha=alpha)
    with_event = sum(stage.treatment_events + stage.control_events for stage in counts.stages)
    events = control.numerator + treatment.numerator
    if with_event >= MIN_EVENTS and events <= MAX_REPEATS * with_event:
        ratio = conditional.rate_ratio(counts.stages, alpha=alpha)
        estimate = ratio if scale == "relative" else _difference_of(ratio, found)
        point = rate_t / rate_c - 1 if scale == "relative" and rate_c > 0 else rate_t - rate_c
        return replace(
            estimate,
            point=None if scale == "relative" and rate_c <= 0 else point,
            n=control.n + treatment.n,
            n_clusters=control.n_clusters + treatment.n_clusters,
        )
    estimate = unpaired_difference(
        control, treatment, multiplier=looking.multiplier(item.name), alpha=alpha, scale=scale
    )
    if scale == "absolute" and estimate.status in {"too_few_events", "burn_in", "zero_variance"} and support:
        return _joined_limits(item, found, looking, support(), alpha) or estimate
    return estimate


def _difference_of(ratio: Estimate, found: Aggregates) -> Estimate:
    """The limits of the rate ratio as limits of the difference, at the pooled rate of both arms (rare events: the pooled
    rate is known far better than the ratio)."""
    control, treatment = found.control, found.treatment
    events = control.numerator + treatment.numerator

    def difference(above: float | None) -> float | None:
        if above is None:
            return None if treatment.denominator <= 0 else events / treatment.denominator
        rho = 1 + above
        return (rho - 1) * events / (rho * treatment.denominator + control.denominator)

    return replace(
        ratio, ci_low=difference(ratio.ci_low), ci_high=difference(ratio.ci_high), estimand="treatment - control"
    )


def _joined_limits(
    item: Metric, found: Aggregates, looking: Looking, support: Support, alpha: float
) -> Estimate | None:
    """Each arm's exact betting limits at alpha/2, joined: conservative, and right with no event at all."""
    if support.control is None or support.treatment is None:
        return None
    bets = looking.bets(item.name, alpha / 2, sigma2=SIGMA2_PAIRED_BINARY)
    low_c, high_c = betting.limits(*support.control, bets, alpha=alpha / 2)
    low_t, high_t = betting.limits(*support.treatment, bets, alpha=alpha / 2)
    rate_c, rate_t = found.control.ratio or 0.0, found.treatment.ratio or 0.0
    return Estimate(
        point=rate_t - rate_c,
        ci_low=low_t - high_c,
        ci_high=high_t - low_c,
        confidence_level=1 - alpha,
        n=found.control.n + found.treatment.n,
        n_clusters=found.control.n_clusters + found.treatment.n_clusters,
        method="betting on both arms' users, anytime",
        estimand="treatment - control",
    )


def _arm_value(arm: ArmAggregate, looking: Looking, name: str, alpha: float) -> ArmValue:
    estimate = arm_interval(arm, multiplier=looking.multiplier(name), alpha=alpha)
    return ArmValue(
        value=estimate.point,
        n=arm.n,
        ci_low=estimate.ci_low,
        ci_high=estimate.ci_high,
        numerator=arm.numerator,
        denominator=arm.denominator,
    )


def _nothing(status: str, alpha: float) -> Estimate:
    return Estimate(point=None, confidence_level=1 - alpha, status=status)


def _shifted(estimate: Estimate, by: float, scale: Scale = "absolute", *, factor: float = 1.0) -> Estimate:
    """factor · (estimate + by); on the relative scale as a share of one half."""
    moved = replace(
        estimate,
        point=None if estimate.point is None else factor * (estimate.point + by),
        ci_low=None if estimate.ci_low is None else factor * (estimate.ci_low + by),
        ci_high=None if estimate.ci_high is None else factor * (estimate.ci_high + by),
        estimand="treatment - control",
    )
    return _scaled(moved, 0.5) if scale == "relative" else moved


def _scaled(estimate: Estimate, unit: float) -> Estimate:
    def share(value: float | None) -> float | None:
        return None if value is None else value / unit

    return replace(
        estimate,
        point=share(estimate.point),
        ci_low=share(estimate.ci_low),
        ci_high=share(estimate.ci_high),
        standard_error=share(estimate.standard_error),
    )


def _minus(value: float | None) -> float | None:
    return None if value is None else 1 - value


def bounds_of(item: Metric) -> tuple[float, float]:
    """The smallest and largest value a verdict metric can take."""
    return item.values.bounds if isinstance(item.values, Verdict) else (0.0, 1.0)


def discordant_of(counts: Mapping[str, BinaryCounts], name: str) -> dict[str, int]:
    """Pairs in which exactly one arm had the event, as the aggregates take it."""
    return {"": counts[name].t_only + counts[name].c_only} if name in counts else {}
