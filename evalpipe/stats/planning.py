"""Before anything is spent: how many pairs, users, days for a given effect (statistics.md 11).

n counts clusters (users) or pairs, as real numbers: round up when showing. With A = z_{1−alpha/2} + z_{power}.
"""

from __future__ import annotations

import math
from typing import Literal

from scipy import special

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


def maximum_n(fixed_n: float, looks: Literal["fixed", "anytime", "scheduled"], *, n_looks: int = 10) -> float:
    """The sample at which to stop for good: the fixed one, twice it (anytime), or times the O'Brien-Fleming inflation."""
    if looks == "anytime":
        return ANYTIME_CAP * fixed_n
    if looks == "scheduled":
        known = [k for _, k in GROUP_SEQUENTIAL_MAXIMUM]
        nearest = min((k for k in known if k >= n_looks), default=max(known))
        return GROUP_SEQUENTIAL_MAXIMUM["obrien_fleming", nearest] * fixed_n if n_looks > 1 else fixed_n
    return fixed_n


def expected_more(n: float, width: float, width_needed: float, *, no_events: bool = False) -> float | None:
    """Extra units until an interval of `width` at `n` shrinks to `width_needed`: n((width/width_needed)² − 1), at least 0.

    `no_events`: a share of which no event was seen; its interval shrinks with 1/n, not 1/√n (±z²/(n + z²), statistics.md 4).
    """
    if not (n > 0 and width > 0 and width_needed > 0):
        return None
    return max(0.0, n * ((width / width_needed) ** (1 if no_events else 2) - 1))


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
