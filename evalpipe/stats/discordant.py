"""Paired yes/no outcomes, looked at whenever: the beta-binomial e-process on discordant pairs (statistics.md 4).

Of the pairs in which exactly one arm has the event, half should be the treatment's if the arms are alike. Exact for one
pair per user, at any look. Source: the mixture martingale of Ville 1939 / Robbins 1970; checked against ville.
"""

from __future__ import annotations

import math

from scipy import optimize
from scipy.special import betaln

PRIOR = 2.0


def log_e(t_only: int, c_only: int, *, p0: float = 0.5, prior: tuple[float, float] = (PRIOR, PRIOR)) -> float:
    """ln E against "a discordant event is the treatment's with probability `p0`"; reject when E ≥ 1/alpha. 0 events: 0."""
    a, b = prior
    if min(t_only, c_only) < 0 or not 0 < p0 < 1:
        raise ValueError(f"counts must not be negative and p0 in (0, 1): {t_only}, {c_only}, {p0}")
    mixture = float(betaln(a + t_only, b + c_only) - betaln(a, b))
    return mixture - t_only * math.log(p0) - c_only * math.log1p(-p0)


def p_value(t_only: int, c_only: int) -> float:
    """The anytime p-value of "no difference": min(1, 1/E)."""
    return math.exp(-max(0.0, log_e(t_only, c_only)))


def share_limits(
    t_only: int, c_only: int, *, alpha: float = 0.05, prior: tuple[float, float] = (PRIOR, PRIOR)
) -> tuple[float, float]:
    """The confidence sequence for the treatment's share of the events: {p: ln E_p < ln 1/alpha}. No events: (0, 1)."""
    x, y = t_only, c_only
    if x + y == 0:
        return 0.0, 1.0
    needed = -math.log(alpha)
    peak = min(max(x / (x + y), 1e-12), 1 - 1e-12)

    def excess(p: float) -> float:
        return log_e(x, y, p0=p, prior=prior) - needed

    low = 0.0 if x == 0 or excess(1e-15) < 0 else optimize.brentq(excess, 1e-15, peak, xtol=1e-14)
    high = 1.0 if y == 0 or excess(1 - 1e-15) < 0 else optimize.brentq(excess, peak, 1 - 1e-15, xtol=1e-14)
    return float(low), float(high)
