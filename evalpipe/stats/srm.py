"""Sample-ratio mismatch: did the arms get the share of users they were promised? (docs/statistics.md#srm)

Counts are users, the unit that is assigned. Sources: Pearson's chi-square; the anytime form is the Dirichlet-multinomial
e-value of Lindon & Malek 2022 (checked against savvi).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy import stats as distributions
from scipy.special import gammaln

PRIOR_WEIGHT = 1000.0
ALARM_E = 100.0
"""hold at E ≥ 100: .25 % false alarms over 60 daily looks"""
ALARM_P = 0.001
"""the fixed look's threshold"""


def chi_square(counts: Sequence[int], shares: Sequence[float]) -> tuple[float, float] | None:
    """(chi2, p) of the counts against the promised shares (any positive scale); None without a user."""
    n, ratio = sum(counts), _normalised(shares)
    if n == 0:
        return None
    chi2 = sum((k - n * r) ** 2 / (n * r) for k, r in zip(counts, ratio, strict=True))
    return chi2, float(distributions.chi2.sf(chi2, len(counts) - 1))


def log_e(counts: Sequence[int], shares: Sequence[float], *, prior_weight: float = PRIOR_WEIGHT) -> float:
    """ln E against the promised shares, valid at any look; 0 without a user. Over canary stages the logs add up."""
    ratio = _normalised(shares)
    before = [prior_weight * r for r in ratio]
    after = [a + k for a, k in zip(before, counts, strict=True)]
    return _log_beta(after) - _log_beta(before) - sum(k * math.log(r) for k, r in zip(counts, ratio, strict=True))


def _normalised(shares: Sequence[float]) -> list[float]:
    total = sum(shares)
    if not all(s > 0 for s in shares):
        raise ValueError(f"every promised share must be positive, got {list(shares)}")
    return [s / total for s in shares]


def _log_beta(weights: Sequence[float]) -> float:
    return float(sum(gammaln(w) for w in weights) - gammaln(sum(weights)))
