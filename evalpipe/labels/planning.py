"""How wide the corrected win rate's interval will be with so many labels, by the report's own rule (docs/statistics.md). Pure.

The report's mean is over users: its error has a part of the users, who are a sample of all future ones, and a part of the pairs
that are not labelled. Only the second gets smaller by more labels of the same log, or by a judge.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Critical = Callable[[float], float]
"""labelled users → how many standard errors the interval reaches; math.inf where there are too few"""
MOST_VARIANCE = 0.25
"""of a preference in [0, 1], half of each"""
MOST_USERS = 10**9


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """How preferences vary. `variance`: of a pair's. `within`: the correlation of two pairs of one user, in [0, 1]."""

    variance: float
    within: float


def spread_of(by_user: Sequence[Sequence[float]]) -> Spread | None:
    """The spread of users' preferences about the mean of the users' means; None where they never vary.

    Users count alike, as in the report: where all pairs are there, `error` is the standard deviation of the users' means over the
    root of their number. Where no user has two pairs, nothing shows how alike they are: `within` is 1.
    """
    users = [pairs for pairs in by_user if pairs]
    if len(users) < 2:
        return None
    means = [sum(pairs) / len(pairs) for pairs in users]
    center = sum(means) / len(means)
    squares = [sum((one - center) ** 2 for one in pairs) / len(pairs) ** 2 for pairs in users]
    variance = sum(squares) / sum(1 / len(pairs) for pairs in users)
    if variance <= 0:
        return None
    products = sum((mean - center) ** 2 - square for mean, square in zip(means, squares, strict=True))
    weight = sum(1 - 1 / len(pairs) for pairs in users)
    within = min(1.0, max(0.0, products / (variance * weight))) if weight else 1.0
    return Spread(variance=variance, within=within)


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelPlan:
    """A log that is to be labelled.

    Attributes:
        sizes: a user's pairs → how many users have so many.
        spread: of people's preferences.
        critical: the plan of looks.
    """

    sizes: Mapping[int, int]
    spread: Spread
    critical: Critical

    @property
    def n_users(self) -> int:
        return sum(self.sizes.values())

    @property
    def n_pairs(self) -> int:
        return sum(size * n for size, n in self.sizes.items())

    def labelled_users(self, n_labels: int) -> float:
        """Users of whom at least one pair is among so many labelled at random."""
        left_out = 1 - n_labels / self.n_pairs
        return sum(n * (1 - left_out**size) for size, n in self.sizes.items())

    def half_width(self, n_labels: int, *, correlation: float = 0.0) -> float:
        """Of the interval with a random sample of the pairs labelled.

        se² = [V_u + (1/p − 1) W (1 − ρ²)] / users: V_u the variance of the users' means, W that of a pair over the pairs of its
        user (both means over users), p the labelled share. With one pair a user: V (1 − ρ²) / n + V ρ² / users, as PPI++ has it.

        Args:
            n_labels: labelled pairs, from 1.
            correlation: ρ between the judge's preferences and people's, over pairs.
        """
        share = n_labels / self.n_pairs
        unlabelled = self._per_pair() * (1 / share - 1) * (1 - correlation**2)
        return self._reaches((self._of_users() + unlabelled) / self.n_users, self.labelled_users(n_labels))

    def labels_for(self, half_width: float, *, correlation: float = 0.0) -> int | None:
        """Labelled pairs from which on the interval is at most ± `half_width`; None where all pairs are too few."""
        if self.half_width(self.n_pairs, correlation=correlation) > half_width:
            return None
        low, high = 0, self.n_pairs
        while high - low > 1:
            middle = (low + high) // 2
            if self.half_width(middle, correlation=correlation) > half_width:
                low = middle
            else:
                high = middle
        return high

    def users_for(self, half_width: float) -> int | None:
        """Users like these, with all their pairs labelled, for an interval of ± `half_width`; None: more than a billion."""
        low, high = 0, 2
        while self._reaches(self._of_users() / high, high) > half_width:
            low, high = high, 2 * high
            if high > MOST_USERS:
                return None
        while high - low > 1:
            middle = (low + high) // 2
            if self._reaches(self._of_users() / middle, middle) > half_width:
                low = middle
            else:
                high = middle
        return high

    def _reaches(self, squared_error: float, n_users: float) -> float:
        critical = self.critical(n_users)
        return critical * math.sqrt(squared_error) if math.isfinite(critical) else math.inf

    def _per_pair(self) -> float:
        return self.spread.variance * sum(n / size for size, n in self.sizes.items()) / self.n_users

    def _of_users(self) -> float:
        alike = self.spread.variance * self.spread.within
        return self._per_pair() + alike * sum(n * (1 - 1 / size) for size, n in self.sizes.items()) / self.n_users


def sizes_of(users: Sequence[str]) -> Mapping[int, int]:
    """A user's pairs → users with so many, from the user of each pair."""
    return Counter(Counter(users).values())
