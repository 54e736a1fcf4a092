"""Requests with failures, their aggregates, and the formulas the event-rate tests compare with, written out independently."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st
from scipy import optimize, special

from evalpipe.stats.clusters import ArmAggregate, PairedAggregate, arm_aggregate, paired_aggregate
from evalpipe.stats.estimates import Estimate
from evalpipe.stats.event_rates import paired_events
from evalpipe.stats.group_sequential import Scheduled
from evalpipe.stats.sequential import Anytime, Fixed, Multiplier

N_STAR = 1000.0
ANYTIME = Anytime(n_star=N_STAR)
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def critical(n: float, alpha: float = 0.05) -> float:
    """The asymptotic confidence sequence's multiplier, from its formula (Waudby-Smith et al. 2024)."""
    r = (-special.lambertw(-(alpha**2) / math.e, k=-1).real - 1) / N_STAR * n
    return math.sqrt(2 * (r + 1) / r * math.log(math.sqrt(r + 1) / alpha))


def tango(b: float, c: float, n: float, z: float) -> tuple[float, float]:
    """Tango's limits from the score equation; q by maximising the multinomial likelihood under p_T − p_C = δ."""

    def statistic(delta: float) -> float:
        def loss(q: float) -> float:
            cells = [(b, q + delta), (c, q), (n - b - c, 1 - 2 * q - delta)]
            return -sum(k * math.log(max(p, 1e-300)) for k, p in cells if k > 0)

        low, high = max(0.0, -delta) + 1e-12, (1 - delta) / 2 - 1e-12
        q = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x
        return (b - c - n * delta) / math.sqrt(n * (2 * q + delta * (1 - delta)))

    point = (b - c) / n
    return (
        optimize.brentq(lambda d: statistic(d) - z, -0.999, point, xtol=1e-12),
        optimize.brentq(lambda d: statistic(d) + z, point, 0.999, xtol=1e-12),
    )


@dataclass(frozen=True)
class Requests:
    """Requests that both arms answered: whose each was, in which hour and day, and which arm failed."""

    user: Ints
    hour: Ints
    failed_t: Ints
    failed_c: Ints

    @property
    def n(self) -> int:
        return len(self.user)

    @property
    def t_only(self) -> int:
        return int((self.failed_t & ~self.failed_c & 1).sum())

    @property
    def c_only(self) -> int:
        return int((self.failed_c & ~self.failed_t & 1).sum())

    @property
    def point(self) -> float:
        return (self.t_only - self.c_only) / self.n

    @property
    def heaviness(self) -> float:
        w = np.bincount(self.user)
        return float((w**2).sum() / w.sum()) if self.n else 1.0

    def over(self, cluster: Ints) -> PairedAggregate:
        w, t, c = np.bincount(cluster), np.bincount(cluster, self.failed_t), np.bincount(cluster, self.failed_c)
        return paired_aggregate(t, w, c, w, n_discordant=self.t_only + self.c_only)

    def variance(self, cluster: Ints) -> float:
        """The jackknife by leaving each cluster out."""
        d = self.failed_t - self.failed_c
        kept = [d[cluster != k].mean() for k in np.unique(cluster)]
        return (len(kept) - 1) / len(kept) * float(np.sum((np.array(kept) - d.mean()) ** 2))

    @property
    def independent(self) -> float:
        return float(np.var(self.failed_t - self.failed_c)) / self.n

    def estimate(self, mode: Multiplier = ANYTIME, *, alpha: float = 0.05, times: bool = True) -> Estimate:
        clusters = [self.over(self.hour), self.over(self.hour // 24)] if times else []
        return paired_events(
            t_only=self.t_only,
            c_only=self.c_only,
            n=self.n,
            users=self.over(self.user),
            times=clusters,
            heaviness=self.heaviness,
            multiplier=mode,
            alpha=alpha,
        )


def requests(
    n_users: int, each: int, t_only: list[int], c_only: list[int], *, hours: Callable[[Ints], Ints] | None = None
) -> Requests:
    """`each` requests of every user, in turn; the requests at the positions `t_only`, `c_only` fail in one arm. One hour by
    default, so that time gives no variance."""
    i = np.arange(n_users * each)
    failed_t, failed_c = np.isin(i, t_only).astype(int), np.isin(i, c_only).astype(int)
    return Requests(i % n_users, hours(i) if hours else 0 * i, failed_t, failed_c)


def width(estimate: Estimate) -> float:
    assert estimate.ci_low is not None and estimate.ci_high is not None
    return estimate.ci_high - estimate.ci_low


def arm(n_users: int, each: int, failed: list[int], *, counted: bool = True) -> ArmAggregate:
    """`failed`: the user of every failure (modulo the number of users). `counted`: with the count of events."""
    s = np.bincount(np.array(failed, int) % n_users, minlength=n_users).astype(float)
    return arm_aggregate(s, np.full(n_users, float(each)), n_events=len(failed) if counted else None)


def leave_one_out(s: Floats, w: Floats) -> float:
    kept = [(s.sum() - a) / (w.sum() - b) for a, b in zip(s, w, strict=True)]
    return (len(s) - 1) / len(s) * float(np.sum((np.array(kept) - s.sum() / w.sum()) ** 2))


modes = st.sampled_from([Fixed(), ANYTIME, Anytime(n_star=50), Scheduled(fractions=(0.4, 0.9))])


@st.composite
def traffic(draw: st.DrawFn) -> Requests:
    """Some users, light or heavy, some hours; failures at a rate between 0 and often, in both arms."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n, n_users = draw(st.integers(2, 1500)), draw(st.integers(2, 300))
    activity = np.exp(draw(st.sampled_from([0.0, 1.0, 2.5])) * rng.normal(size=n_users))
    user = rng.permutation(n) if draw(st.booleans()) else rng.choice(n_users, n, p=activity / activity.sum())
    _, user = np.unique(user, return_inverse=True)
    hour = np.sort(rng.integers(0, draw(st.integers(1, 200)), n))
    rates = [draw(st.sampled_from([0.0, 0.003, 0.02, 0.4, 1.0])) for _ in range(2)]
    return Requests(user, hour, *((rng.random(n) < rate).astype(int) for rate in rates))


def is_sound(estimate: Estimate, alpha: float) -> None:
    if estimate.ci_low is None:
        assert estimate.status in {"n_lt_2", "one_cluster"}
        return
    assert estimate.point is not None and estimate.ci_high is not None and estimate.p_value is not None
    assert -1 <= estimate.ci_low <= estimate.point <= estimate.ci_high <= 1
    assert estimate.ci_low < estimate.ci_high and 0 <= estimate.p_value <= 1
    excluded = estimate.ci_low > 0 or estimate.ci_high < 0
    at_zero = min(abs(estimate.ci_low), abs(estimate.ci_high))
    assert excluded == (estimate.p_value < alpha) or at_zero < 1e-9 or abs(estimate.p_value - alpha) < 0.02 * alpha
