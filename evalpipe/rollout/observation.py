"""What the guardrails see of one answered request, and the running sums over users they decide on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evalpipe.core.setup_fault import Signature
from evalpipe.core.traffic import ANSWERED, FAILED, Arm, Outcome
from evalpipe.stats.cluster import ArmAggregate, arm_aggregate


@dataclass(frozen=True, kw_only=True, slots=True)
class Observation:
    """One served request with its answer. `unit`: whatever tells users apart. Not measured is None.

    `asked_at`: seconds since the epoch; `failure` and `words`: what a failed one may be part of, and the provider's words for
    it; `configuration`: the fingerprint of the arm's.
    """

    arm: Arm
    unit: str
    outcome: Outcome
    latency_ms: float | None = None
    ttft_ms: float | None = None
    cost_usd: float | None = None
    asked_at: float = 0.0
    failure: Signature | None = None
    words: str | None = None
    configuration: str | None = None


Event = Callable[[Observation], bool | None]
"""Whether the request is an event (an error, say); None where the metric does not count this request."""


def _failed(seen: Observation) -> bool | None:
    return seen.outcome in FAILED if seen.outcome in ANSWERED or seen.outcome in FAILED else None


def _timed_out(seen: Observation) -> bool | None:
    return seen.outcome is Outcome.TIMEOUT if seen.outcome in ANSWERED or seen.outcome in FAILED else None


def _refused(seen: Observation) -> bool | None:
    return seen.outcome is Outcome.REFUSED if seen.outcome in ANSWERED else None


def _truncated(seen: Observation) -> bool | None:
    return seen.outcome is Outcome.TRUNCATED if seen.outcome in ANSWERED else None


RATES: dict[str, Event] = {
    "error_rate": _failed,
    "timeout_rate": _timed_out,
    "refusal_rate": _refused,
    "truncation_rate": _truncated,
}


def latency_of(seen: Observation) -> float | None:
    """latency_ms where the metric counts the request: a timeout counts as its limit, other failures have none."""
    return seen.latency_ms if seen.outcome in ANSWERED or seen.outcome is Outcome.TIMEOUT else None


def ttft_of(seen: Observation) -> float | None:
    return seen.ttft_ms if seen.outcome in ANSWERED else None


def cost_of(seen: Observation) -> float | None:
    return seen.cost_usd if seen.outcome in ANSWERED or seen.outcome in FAILED else None


class UserSums:
    """ΣS and ΣW of one metric in one arm, by user, with the sums of squares kept as they grow: an evaluation is O(1).

    For events S is a count and the sums are exact integers, so nothing is lost to rounding.
    """

    def __init__(self) -> None:
        self._users: dict[str, list[float]] = {}
        self.n = 0
        self.total = 0.0
        self.n_users_with_event = 0
        self.total_of_means = 0.0
        """sum over users of their own mean"""
        self._ss = self._sw = self._ww = 0.0

    def add(self, user: str, value: float) -> None:
        sums = self._users.get(user)
        if sums is None:
            sums = self._users[user] = [0.0, 0.0]
        s, w = sums
        self._ss += value * (2 * s + value)
        self._sw += s + value * (w + 1)
        self._ww += 2 * w + 1
        if value and not s:
            self.n_users_with_event += 1
        self.total_of_means += (s + value) / (w + 1) - (s / w if w else 0.0)
        sums[0], sums[1] = s + value, w + 1
        self.n += 1
        self.total += value

    @property
    def n_users(self) -> int:
        return len(self._users)

    @property
    def mean(self) -> float | None:
        return self.total / self.n if self.n else None

    def linearised_variance(self) -> float | None:
        """The variance of the mean by
        docs/statistics.md#means, linearised, from the running sums (events only: exact)."""
        g = self.n_users
        if g < 2:
            return None
        r = self.total / self.n
        return max(0.0, g / (g - 1) * (self._ss - 2 * r * self._sw + r * r * self._ww) / self.n**2)

    def aggregate(self) -> ArmAggregate:
        """The same by the delete-one-user jackknife, which few heavy users do not fool; O(users)."""
        sums = np.array(list(self._users.values()), float).reshape(-1, 2)
        return arm_aggregate(sums[:, 0], sums[:, 1], n=self.n)
