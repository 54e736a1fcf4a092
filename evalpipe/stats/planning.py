"""Before anything is spent: how many pairs, users, days for a given effect (docs/statistics.md#planning).

n counts clusters (users) or pairs, as real numbers: round up when showing. With A = z_{1−alpha/2} + z_{power}.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from scipy import special

from evalpipe.stats.group_sequential import critical_values
from evalpipe.stats.multiplier import DEFAULT_N_STAR_PAIRS, Anytime, Fixed

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


def noninferiority_n(
    sd: float, margin: float, *, true_effect: float = 0.0, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Pairs to show a loss of less than `margin` when the true effect (above 0 = treatment better) is `true_effect`."""
    return paired_n(sd, true_effect + margin, power=power, alpha=alpha)


def equivalence_n(sd: float, margin: float, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """Pairs to show a difference inside ±`margin` when there is none: (z_{1−alpha/2} + z_{1−beta/2})² sd²/margin²."""
    return ((_z(1 - alpha / 2) + _z(1 - (1 - power) / 2)) * sd / _positive(margin)) ** 2


def minimum_detectable_effect(standard_error: float, *, power: float = 0.8, alpha: float = 0.05) -> float:
    """The effect that an estimate with this standard error finds with the given power."""
    return _a(alpha, power) * standard_error


def quantile_half_width(pilot_half_width: float, pilot_n: float, n: float) -> float:
    """The half-width to expect at `n` units from a pilot's: it falls with the square root."""
    return pilot_half_width * math.sqrt(pilot_n / _positive(n))


def power_at(effect: float, standard_error: float, *, alpha: float = 0.05) -> float:
    """Chance that a fixed two-sided look finds `effect` when the estimate will have `standard_error`."""
    shift, z = effect / _positive(standard_error), _z(1 - alpha / 2)
    return float(special.ndtr(shift - z) + special.ndtr(-shift - z))


def guardrail_power(power: float, n_guardrails: int) -> float:
    """Plan each of G guardrails at 1 − beta/(G+1) so that all pass together (Schultzberg, Ankargren & Frånberg 2024)."""
    return 1 - (1 - power) / (n_guardrails + 1)


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
