"""Before anything is spent: how many pairs, users, days for a given effect or event rate (statistics.md 11).

n counts clusters (users) or pairs, as real numbers: round up when showing. With A = z_{1−alpha/2} + z_{power}.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from evalpipe.stats import betting, estimates, special
from evalpipe.stats.event_rates import DEFAULT_SIGMA2
from evalpipe.stats.group_sequential import critical_values
from evalpipe.stats.proportions import newcombe_limits, tango_statistic
from evalpipe.stats.sequential import DEFAULT_N_STAR_PAIRS, Anytime, Fixed

Way = Literal["fixed", "anytime", "scheduled"]
"""of looking: once, at any time, at planned looks"""

GROUP_SEQUENTIAL_MAXIMUM: dict[tuple[str, int], float] = {
    ("obrien_fleming", 5): 1.025,
    ("obrien_fleming", 10): 1.038,
    ("obrien_fleming", 20): 1.046,
    ("pocock", 5): 1.21,
    ("pocock", 10): 1.25,
    ("pocock", 20): 1.27,
}
"""largest sample of a group-sequential plan over the fixed one, by spending function and number of looks (rpact)"""
ANYTIME_CAP = 2.0
"""stop an anytime experiment at twice the fixed sample: power .87 where the fixed one has .80"""
ANYTIME_MEAN = {0.0: 1.97, 0.5: 1.78, 1.0: 1.05, 1.5: 0.51, 2.0: 0.30}
"""mean sample of an anytime experiment over the fixed one, by true effect / planned effect (S7a)"""


def paired_n(sd: float, effect: float, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """Pairs for a mean difference `effect` (or margin distance) when the differences have standard deviation `sd`."""
    return (_a(alpha, power) * sd / _positive(effect)) ** 2


def unpaired_n(
    variance_treatment: float,
    variance_control: float,
    effect: float,
    *,
    ratio: float = 1.0,
    power: float = 0.8,
    alpha: float = 0.05,
) -> float:
    """Treatment users for a difference `effect`; control users are `ratio` times as many.

    `variance_…` = G·v of a pilot (users and ratios included), or an observation's variance where each is its own user.
    """
    return _a(alpha, power) ** 2 * (variance_treatment + variance_control / _positive(ratio)) / _positive(effect) ** 2


def mcnemar_n(discordant_share: float, effect: float, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """Pairs for a difference `effect` of paired shares when the share psi ≥ |effect| of pairs is discordant (Connor 1987)."""
    effect = _positive(effect)
    if not effect <= discordant_share <= 1:
        raise ValueError(f"the discordant share must lie between the effect {effect} and 1, got {discordant_share}")
    z_a, z_b = _z(1 - alpha / 2), _z(power)
    return ((z_a * math.sqrt(discordant_share) + z_b * math.sqrt(discordant_share - effect**2)) / effect) ** 2


def equivalence_n(sd: float, margin: float, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """Pairs to show a difference inside ±`margin` when there is none: (z_{1−alpha/2} + z_{1−beta/2})² sd²/margin²."""
    return ((_z(1 - alpha / 2) + _z(1 - (1 - power) / 2)) * sd / _positive(margin)) ** 2


def anytime_n_star(fixed_n: float) -> float:
    """Where to make an anytime interval tightest: half the fixed sample."""
    return max(1.0, fixed_n / 2)


def maximum_n(fixed_n: float, looks: Way, *, n_looks: int = 10) -> float:
    """The sample at which to stop for good: the fixed one, twice it (anytime), or times the O'Brien-Fleming inflation."""
    if looks == "anytime":
        return ANYTIME_CAP * fixed_n
    if looks == "scheduled":
        known = [k for _, k in GROUP_SEQUENTIAL_MAXIMUM]
        nearest = min((k for k in known if k >= n_looks), default=max(known))
        return GROUP_SEQUENTIAL_MAXIMUM["obrien_fleming", nearest] * fixed_n if n_looks > 1 else fixed_n
    return fixed_n


@dataclass(frozen=True, kw_only=True, slots=True)
class Looks:
    """How a planned experiment is looked at; the arguments of `needed_units`, together."""

    way: Way
    n_star: float = DEFAULT_N_STAR_PAIRS
    alpha: float = 0.05
    n_looks: int = 1

    def critical(self, n: float) -> float:
        """The normal critical value after `n` units (of the last look where looks are scheduled)."""
        return _score_critical(n, self.way, self.n_star, self.alpha, self.n_looks)

    def needed(self, sd: float, target: float) -> float:
        """`needed_units` under these looks."""
        return needed_units(sd, target, way=self.way, n_star=self.n_star, alpha=self.alpha, n_looks=self.n_looks)

    def in_half(self, n: float) -> float:
        """The sample by which half of the experiments have excluded a line that the expected values exclude at `n`.

        Looking at any time, chance carries half of the experiments over the line before their expected values get there. The
        first passage of a random walk over the boundary's tangent at `n` has an inverse Gaussian distribution with mean n and
        shape n·c²/4; the lognormal one of the same first two moments has the median n/√(1 + 4/c²). Simulated medians lie up
        to 10 % below it with a look every 1 % of `n`, and at it with looks every 7 %. At looks set beforehand: `n` itself.

        >>> round(Looks(way="anytime", n_star=1000).in_half(8331))  # simulated: 6,723 with a look every 1 %
        7078
        """
        if self.way != "anytime" or not math.isfinite(n):
            return n
        return n / math.sqrt(1 + 4 / self.critical(n) ** 2)


def with_power(needed: float, sd: float, target: float, *, power: float = 0.8) -> float:
    """The fixed sample that excludes a line with `power`, from the one at which the expected values exclude it.

    √n = √needed + z_power·sd/target: the critical value's part as the interval in use has it (exact for score intervals of
    rare events, after Nam 1997, Biometrics 53, for paired rates), and the estimate's own scatter. Of a normal interval it is
    (z_{1−alpha/2} + z_power)² sd²/target².

    Args:
        needed: units at which the fixed interval around the expected difference excludes the line.
        sd: standard deviation of a unit's difference.
        target: distance from the true difference to the line, above 0.
        power: chance to exclude the line, in (0, 1).

    >>> round(with_power(1.95996**2 * 100, 1.0, 0.1))  # (1.96 + 0.84)² · 100
    785
    """
    return (math.sqrt(needed) + _z(power) * sd / _positive(target)) ** 2


def needed_units(
    sd: float, target: float, *, way: Way, n_star: float = DEFAULT_N_STAR_PAIRS, alpha: float = 0.05, n_looks: int = 1
) -> float:
    """The smallest n at which the interval's half-width c(n)·sd/√n is at most `target`: how long until a line is excluded.

    The one method behind the plan and the report's "how much longer". At that n the estimate excludes the line if it then
    equals the expected value, so with probability about ½; a sample with power comes from `paired_n` and its relatives.

    Args:
        sd: standard deviation of a unit's difference, ≥ 0: se·√units of a pilot with clusters and ratios included.
        target: distance from the expected value to the line to be excluded (0, −margin, …), in the unit of `sd`.
        way: "anytime" (asymptotic confidence sequence, tightest at `n_star`), "fixed" (Student's t with n − 1 degrees of
            freedom), "scheduled" (the last of `n_looks` equally spaced O'Brien-Fleming looks).
        n_star: the anytime interval's planned sample, in units.
        alpha: two-sided level.
        n_looks: planned looks, 1 to 20.

    Returns:
        Units as a real number; infinity where `target` ≤ 0 (the expected value lies on the line or beyond it).

    >>> round(needed_units(0.346, 0.03, way="fixed"))  # a win rate of one half, three points from being excluded
    513
    >>> round(needed_units(0.346, 0.03, way="anytime", n_star=500))  # the price of looking at any time
    1265
    """
    if target <= 0:
        return math.inf
    return smallest(lambda n: _critical(n, way, n_star, alpha, n_looks) * sd <= target * math.sqrt(n))


def _critical(n: float, way: Way, n_star: float, alpha: float, n_looks: int) -> float:
    """The critical value of a mean over `n` units at the last look."""
    if way == "fixed":
        return Fixed().critical(alpha, df=n - 1) if n > 1 else math.inf
    return _score_critical(n, way, n_star, alpha, n_looks)


def _score_critical(n: float, way: Way, n_star: float, alpha: float, n_looks: int) -> float:
    """As `_critical`, for score intervals, which take the normal quantile."""
    if way == "anytime":
        return Anytime(n_star=n_star, alpha=alpha).critical(alpha, n=n)
    if way == "scheduled":
        return critical_values(tuple((k + 1) / n_looks for k in range(n_looks)), alpha)[-1]
    return Fixed().critical(alpha)


def smallest(enough: Callable[[float], bool]) -> float:
    """The smallest n ≥ 1 that is enough, to a relative 1e-9, where every larger n is enough too; infinity above 1e18."""
    low, high = 1.0, 2.0
    if enough(low):
        return low
    while not enough(high):
        low, high = high, 2 * high
        if high > 1e18:
            return math.inf
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _a(alpha: float, power: float) -> float:
    if not (0 < alpha < 1 and 0 < power < 1):
        raise ValueError(f"alpha and power must lie between 0 and 1: {alpha}, {power}")
    return _z(1 - alpha / 2) + _z(power)


def _z(p: float) -> float:
    return float(special.ndtri(p))


def _positive(x: float) -> float:
    if not x > 0:
        raise ValueError(f"must be above 0, got {x}")
    return x


# How many units it takes until a difference of two event rates (errors, timeouts, empty answers) excludes a line.
#
# Rare events are not normal: an interval of few events shrinks faster than with 1/√n, and one of no event has a width.
# So the units are found with the very intervals of `event_rates.py`: betting or Tango's score interval where both arms
# answer the same requests, Newcombe's where they do not, each against the asymptotic confidence sequence that takes
# over once there are enough events.
#
# Everything is oriented so that above 0 = treatment better: for errors the difference is control's rate minus the
# treatment's.


MIN_EVENTS_FIXED = {True: 25, False: estimates.MIN_EVENTS_ANYTIME}
"""events from which a fixed or scheduled look takes the normal interval, by whether the arms are paired (`event_rates.py`)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedRates:
    """Paired yes/no outcomes as a forecast reads them.

    Attributes:
        discordant: share of the pairs in which exactly one arm has the event, in [0, 1].
        per_unit: a unit's pairs divided by the design effect: what they are worth as independent pairs, above 0.
        one_each: every unit has one pair; looking at any time, the betting interval is used then.
    """

    discordant: float
    per_unit: float = 1.0
    one_each: bool = True

    @property
    def sd(self) -> float:
        """Standard deviation of a unit's difference when the arms are alike."""
        return math.sqrt(self.discordant / self.per_unit)

    def needed(self, point: float, line: float, looks: Looks, *, half: bool = False) -> float:
        """Units at which the expected difference `point` excludes `line`.

        Args:
            point: the true difference, oriented; the share of discordant pairs is at least its size.
            line: the difference to be excluded, at whichever side of `point` it lies.
            looks: level and plan of looks.
            half: by which half of the experiments have excluded it (`Looks.in_half`), rather than their expected values.

        Returns:
            Units as a real number; infinity where `point` is `line` or no number suffices.
        """
        if point < line:
            point, line = -point, -line
        if point == line:
            return math.inf
        discordant = max(self.discordant, abs(point))
        gains, losses = (discordant + point) / 2, (discordant - point) / 2
        statistic = tango_statistic(line, gains, losses, 1.0)
        by_score = smallest(lambda n: statistic * math.sqrt(n * self.per_unit) >= looks.critical(n))
        # Without events there is no chance in it.
        passed = looks.in_half if half and discordant > 0 else float
        if self.one_each and looks.way == "anytime":
            stakes = betting.tuned_bets(looks.n_star, sigma2=DEFAULT_SIGMA2, alpha=looks.alpha)
            return passed(min(by_score, self._by_betting(gains, losses, line, looks.alpha, stakes)))
        events = MIN_EVENTS_FIXED[True] if looks.way != "anytime" else estimates.MIN_EVENTS_ANYTIME
        floor = max(_ratio(events, discordant * self.per_unit), estimates.MIN_PAIRS_ANYTIME)
        sd = math.sqrt(max(discordant - point**2, 0.0) / self.per_unit)
        by_normal = looks.needed(sd, point - line)
        return passed(by_score) if self.one_each else min(passed(by_score), max(floor, passed(by_normal)))

    def _by_betting(self, gains: float, losses: float, line: float, alpha: float, bets: betting.Bets) -> float:
        mean = (1 + line) / 2
        if not 0 < mean < 1:
            return math.inf
        shares = [losses, max(0.0, 1 - gains - losses), gains]
        needed = math.log(2 / alpha)

        def enough(n: float) -> bool:
            counts = [n * self.per_unit * share for share in shares]
            return betting.log_wealth([0.0, 0.5, 1.0], counts, mean, bets)[0] >= needed

        return smallest(enough)


@dataclass(frozen=True, kw_only=True, slots=True)
class UnpairedRates:
    """Yes/no outcomes of arms with different users, as a forecast reads them.

    Attributes:
        control: control's event rate, in [0, 1].
        share: the treatment's share of the requests, in (0, 1).
        per_unit: a user's requests divided by the design effect, above 0.
        sign: −1 where the event is bad (errors), +1 where it is good.
    """

    control: float
    share: float = 0.5
    per_unit: float = 1.0
    sign: int = -1

    @property
    def sd(self) -> float:
        """Standard deviation per user of both arms (se·√users) when the arms are alike."""
        return self._sd(self.control)

    def needed(self, point: float, line: float, looks: Looks, *, half: bool = False) -> float:
        """Users of both arms at which the expected difference `point` excludes `line`; arguments as `PairedRates.needed`."""
        if point == line:
            return math.inf
        treatment = self.control + self.sign * point
        control = self.control - self.sign * point if not 0 <= treatment <= 1 else self.control
        control, treatment = (min(1.0, max(0.0, rate)) for rate in (control, treatment))

        def enough(n: float) -> bool:
            low, high = self.limits(n, control, treatment, looks.critical(n))
            return low > line if point > line else high < line

        events = estimates.MIN_EVENTS_ANYTIME
        rarer = min(control * (1 - self.share), treatment * self.share) * self.per_unit
        floor = max(_ratio(events, rarer), estimates.MIN_CLUSTERS_ANYTIME / min(self.share, 1 - self.share))
        by_normal = looks.needed(self._sd(treatment, control), abs(point - line))
        passed = looks.in_half if half and max(control, treatment) > 0 else float
        return min(passed(smallest(enough)), max(floor, passed(by_normal)))

    def limits(self, n: float, control: float, treatment: float, c: float) -> tuple[float, float]:
        """Newcombe's limits of the oriented difference after `n` users of both arms, at critical value `c`."""
        size_c, size_t = n * self.per_unit * (1 - self.share), n * self.per_unit * self.share
        low, high = newcombe_limits(control * size_c, size_c, treatment * size_t, size_t, c)
        return (low, high) if self.sign > 0 else (-high, -low)

    def _sd(self, treatment: float, control: float | None = None) -> float:
        control = self.control if control is None else control
        parts = control * (1 - control) / (1 - self.share) + treatment * (1 - treatment) / self.share
        return math.sqrt(parts / self.per_unit)


def paired_rates(
    *,
    point: float,
    edge: float,
    n: int,
    n_units: int,
    most_discordant: float,
    c: float,
    stakes: betting.Bets | None = None,
    alpha: float = 0.05,
) -> PairedRates:
    """The share of discordant pairs and the design effect behind a score or betting interval.

    Of a report only the estimate, one limit and both arms' rates are known. The share that gives that limit is found between
    its bounds, |point| and the sum of both arms' rates; a limit still wider is put down to a design effect.

    Args:
        point: the estimated difference, oriented (above 0 = treatment better).
        edge: a limit of its interval, on the side of the line a forecast is about.
        n: pairs.
        n_units: users.
        most_discordant: both arms' rates together.
        c: critical value of the interval (Tango's); not used with `stakes`.
        stakes: of a betting interval at two-sided level `alpha`.

    Returns:
        The rates; `per_unit` is at most n / n_units.
    """
    upper = edge < point
    gain, limit = (point, edge) if upper else (-point, -edge)
    low, high = abs(point), min(1.0, max(most_discordant, abs(point)))

    def evidence(discordant: float) -> float:
        """That against `limit`, in units of what the interval asks for; falls with the share of discordant pairs."""
        gains, losses = (discordant + gain) / 2 * n, (discordant - gain) / 2 * n
        if stakes is None:
            return (tango_statistic(limit, gains, losses, n) / c) ** 2
        values = [0.0, 0.5, 1.0]
        counts = [max(0.0, losses), max(0.0, n - gains - losses), max(0.0, gains)]
        wealth = betting.log_wealth(values, counts, (1 + limit) / 2, stakes)[0]
        return wealth / math.log(2 / alpha)

    if not -1 < limit < 1:
        return PairedRates(discordant=high, per_unit=n / n_units, one_each=n == n_units)
    if evidence(low) <= 1:
        discordant = low
    elif evidence(high) >= 1:
        discordant = high
    else:
        from scipy import optimize  # slow to load: only where something is planned

        discordant = float(optimize.brentq(lambda share: evidence(share) - 1, low, high, xtol=1e-9))
    worth = 1.0 if low < discordant < high else min(1.0, 1 / evidence(discordant)) if evidence(discordant) > 0 else 1.0
    return PairedRates(discordant=discordant, per_unit=n / n_units * worth, one_each=n == n_units)


def unpaired_rates(
    *,
    control: float,
    treatment: float,
    edge: float,
    n_control: int,
    n_treatment: int,
    n_units: int,
    c: float,
    sign: int = -1,
) -> UnpairedRates:
    """The design effect behind a Newcombe interval of two arms.

    Args:
        control, treatment: both arms' rates.
        edge: a limit of the oriented difference, at critical value `c`.
        n_control, n_treatment: their requests.
        n_units: users of both arms.
        sign: −1 where the event is bad.
    """
    n = n_control + n_treatment
    plain = UnpairedRates(control=control, share=n_treatment / n, per_unit=n / n_units, sign=sign)
    lower = edge < sign * (treatment - control)

    def excess(log_worth: float) -> float:
        size = n_units * math.exp(log_worth)
        low, high = plain.limits(size, control, treatment, c)
        return low - edge if lower else edge - high

    if excess(0.0) <= 0:  # no wider than independent requests give
        return plain
    from scipy import optimize  # slow to load: only where something is planned

    floor = -math.log(n)
    worth = float(optimize.brentq(excess, floor, 0.0)) if excess(floor) < 0 else floor
    return UnpairedRates(control=control, share=plain.share, per_unit=plain.per_unit * math.exp(worth), sign=sign)


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else math.inf
