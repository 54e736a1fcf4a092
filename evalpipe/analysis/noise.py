"""How much a metric varies, and so how many users it takes to exclude a line: what the plan and the report's forecast share.

A line is a difference to be excluded: 0 (a win), −margin (not worse), both ±margin (no difference that matters). Everything is
oriented so that above 0 = treatment better; on the relative scale distances are taken between logarithms, as the intervals are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

from evalpipe.analysis.metrics import Metric, Ratio
from evalpipe.analysis.result import ArmValue, MetricResult
from evalpipe.stats import betting, gates
from evalpipe.stats.estimate import Estimate
from evalpipe.stats.event_planning import paired_rates, unpaired_rates
from evalpipe.stats.planning import Looks

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
    """Units at which the gates of early looks open (`gates.py`): the skewness of an estimate falls with 1/√units."""
    if seen.skewness is None:  # win rates and quantiles have no gate
        return 0.0
    units = float(gates.MIN_PAIRS_ANYTIME)
    if seen.method.startswith("unpaired"):
        share = seen.treatment.n / max(1, seen.treatment.n + seen.control.n)
        units = gates.MIN_CLUSTERS_ANYTIME / max(min(share, 1 - share), 1e-9)
    return max(units, seen.n_units * (seen.skewness / gates.MAX_SKEW_ANYTIME) ** 2)


def _oriented(low: float | None, high: float | None, sign: int) -> tuple[float | None, float | None]:
    if sign > 0:
        return low, high
    return (None if high is None else -high), (None if low is None else -low)
