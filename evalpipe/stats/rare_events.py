"""Rare events looked at repeatedly: whose event was it, and is a rate above a fixed limit? (statistics.md 5 and 6)

Given an event (an error, a timeout), it comes from the treatment with probability pi, the treatment's share of the users,
if both arms fail alike. Exact whatever the base rate does, and no denominators are needed. One event per user: count users
with at least one. Over canary stages the logs add up, each stage with its own share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import optimize
from scipy.special import betaln, logsumexp

from evalpipe.stats.estimates import Estimate

PRIOR_WEIGHT = 20.0
ALARM_RATIOS = (1.25, 1.5, 2.0, 3.0, 5.0)
MAX_LOG_RATIO = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Users with at least one event per arm, while the treatment had the share `share` (0 < share < 1) of the users.

    Counts may be fractional (divided by a design effect).
    """

    treatment_events: float
    control_events: float
    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(f"the treatment's share must lie strictly between 0 and 1, got {self.share}")
        if min(self.treatment_events, self.control_events) < 0:
            raise ValueError("event counts must not be negative")


def log_e(stages: Sequence[Stage], *, rate_ratio: float = 1.0, prior_weight: float = PRIOR_WEIGHT) -> float:
    """ln E against "the treatment's event rate is `rate_ratio` times control's", two-sided; reject at E ≥ 1/alpha."""
    return sum(_log_e(stage, math.log(rate_ratio), prior_weight) for stage in stages)


def log_alarm(stages: Sequence[Stage]) -> float:
    """ln E against "the treatment's rate is not higher", one-sided (rollback): 20–40 % sooner than the two-sided form.

    The mean over rate ratios 1.25, 1.5, 2, 3, 5 of the likelihood ratio; alarm at E ≥ 1/alpha.
    """
    logs = []
    for ratio in ALARM_RATIOS:
        total = 0.0
        for stage in stages:
            p = stage.share * ratio / (stage.share * ratio + 1 - stage.share)
            total += stage.treatment_events * math.log(p / stage.share)
            total += stage.control_events * math.log((1 - p) / (1 - stage.share))
        logs.append(total)
    return float(logsumexp(logs) - math.log(len(ALARM_RATIOS)))


def rate_ratio(stages: Sequence[Stage], *, alpha: float = 0.05, prior_weight: float = PRIOR_WEIGHT) -> Estimate:
    """Treatment's event rate / control's, minus 1, with its exact anytime interval (compare with a relative margin).

    The point is the ratio of counts weighed by the shares (None without a control event). No event at all: status
    too_few_events. Stages that no common ratio fits: burn_in, without an interval. `n` = events.
    """
    x = sum(stage.treatment_events for stage in stages)
    y = sum(stage.control_events for stage in stages)
    method, estimand = "conditional events, anytime", "treatment / control - 1"
    if x + y == 0:
        return Estimate(
            point=None,
            confidence_level=1 - alpha,
            method=method,
            estimand=estimand,
            status="too_few_events",
            note="no event in either arm",
        )
    centre = _most_likely(stages)
    needed = -math.log(alpha)

    def excess(log_ratio: float) -> float:
        return sum(_log_e(stage, log_ratio, prior_weight) for stage in stages) - needed

    inner = min(max(centre, -MAX_LOG_RATIO), MAX_LOG_RATIO)
    p_value = math.exp(-max(0.0, excess(0.0) + needed))
    if excess(inner) >= 0:
        return Estimate(
            point=math.expm1(centre) if math.isfinite(centre) else None,
            confidence_level=1 - alpha,
            n=round(x + y),
            n_clusters=round(x + y),
            p_value=p_value,
            method=method,
            estimand=estimand,
            status="burn_in",
            note="the stages contradict each other: no one rate ratio fits them",
        )
    low = high = None
    if x > 0 and excess(-MAX_LOG_RATIO) > 0:
        low = optimize.brentq(excess, -MAX_LOG_RATIO, inner, xtol=1e-12)
    if y > 0 and excess(MAX_LOG_RATIO) > 0:
        high = optimize.brentq(excess, inner, MAX_LOG_RATIO, xtol=1e-12)
    return Estimate(
        point=math.expm1(centre) if math.isfinite(centre) else (-1.0 if y else None),
        ci_low=-1.0 if low is None else math.expm1(low),
        ci_high=None if high is None else math.expm1(high),
        confidence_level=1 - alpha,
        n=round(x + y),
        n_clusters=round(x + y),
        p_value=p_value,
        method=method,
        estimand=estimand,
    )


def _log_e(stage: Stage, log_ratio: float, prior_weight: float) -> float:
    x, y, share = stage.treatment_events, stage.control_events, stage.share
    a, b = prior_weight * share, prior_weight * (1 - share)
    logit = math.log(share / (1 - share)) + log_ratio
    log_p, log_q = -_softplus(-logit), -_softplus(logit)
    return float(betaln(a + x, b + y) - betaln(a, b)) - x * log_p - y * log_q


def _most_likely(stages: Sequence[Stage]) -> float:
    """The log rate ratio that explains the events best: Σ x_s = Σ n_s p_s(ratio); ±inf where one arm has none."""
    x = sum(stage.treatment_events for stage in stages)
    y = sum(stage.control_events for stage in stages)
    if x == 0 or y == 0:
        return -math.inf if x == 0 else math.inf

    def surplus(log_ratio: float) -> float:
        total = 0.0
        for stage in stages:
            logit = math.log(stage.share / (1 - stage.share)) + log_ratio
            total += (stage.treatment_events + stage.control_events) * math.exp(-_softplus(-logit))
        return total - x

    return float(optimize.brentq(surplus, -MAX_LOG_RATIO, MAX_LOG_RATIO, xtol=1e-13))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


# Is an event rate above a fixed limit? Looked at as often as one likes (canary guardrails;
# docs/statistics.md#conditional-events).
#
# The mixture likelihood ratio of Bernoulli events against the limit p0: each bet prod_i (p1/p0)^x_i
# ((1-p1)/(1-p0))^(1-x_i) with p1 > p0 is a non-negative supermartingale whenever the true rate is at most p0, so their
# mean passes 1/alpha with probability at most alpha, ever (Ville's inequality). Users who return are no independent
# events: pass effective counts (`effective_events`). A quantile limit is the same question: "p99 > 5 s" says that more
# than 1 % of the latencies exceed 5 s.


ALARM_ODDS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0)
"""how many times the limit's odds each bet supposes: from barely above to a total outage"""
MIN_CLUSTERS = 5
"""fewer users than this cannot show a design effect: each then counts as one observation"""


def log_e_above(events: float, n: float, limit: float) -> float:
    """ln E against "the event rate is at most `limit`" (0 < limit < 1) after `events` of `n`; alarm at E >= 1/alpha.

    Counts may be fractional (effective sizes), 0 <= events <= n. n = 0 gives 0: no evidence.
    """
    if not 0 < limit < 1:
        raise ValueError(f"limit must lie strictly between 0 and 1, got {limit}")
    if not 0 <= events <= n:
        raise ValueError(f"events must lie between 0 and n = {n}, got {events}")
    rest = n - events
    logs = []
    for odds in ALARM_ODDS:
        scale = 1 - limit + limit * odds  # p1 = limit·odds/scale, 1 − p1 = (1 − limit)/scale
        logs.append(events * math.log(odds / scale) - rest * math.log(scale))
    top = max(logs)
    return top + math.log(math.fsum(math.exp(value - top) for value in logs) / len(logs))


def lower_bound(events: float, n: float, alpha: float) -> float:
    """The one-sided anytime lower bound of an event rate: the largest limit the counts refute at `alpha`; 0 where none."""
    if n <= 0 or events <= 0:
        return 0.0
    needed, low, high = -math.log(alpha), 0.0, min(events / n, 1 - 1e-12)
    if log_e_above(events, n, 1e-12) < needed:
        return 0.0
    for _ in range(30):
        middle = (low + high) / 2
        if middle > 0 and log_e_above(events, n, middle) >= needed:
            low = middle
        else:
            high = middle
    return low


def effective_events(events: float, n: float, n_clusters: int, variance: float | None) -> tuple[float, float]:
    """(events, n) divided by the design effect, never below 1: what clustered requests are worth as independent ones.

    `variance` is the clustered variance of the rate events/n
    (docs/statistics.md#means; None = not defined). With fewer than
    `MIN_CLUSTERS` users each counts once, as nothing tells their habits from chance.
    """
    if n <= 0:
        return 0.0, 0.0
    rate = events / n
    if n_clusters < MIN_CLUSTERS:
        size = min(float(n), float(n_clusters))
    elif variance is None or variance <= 0 or not 0 < rate < 1:
        size = float(n)
    else:
        size = min(float(n), rate * (1 - rate) / variance)
    return rate * size, size
