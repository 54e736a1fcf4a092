"""Is an event rate above a fixed limit? Looked at as often as one likes (canary guardrails;
docs/statistics.md#conditional-events).

The mixture likelihood ratio of Bernoulli events against the limit p0: each bet prod_i (p1/p0)^x_i ((1-p1)/(1-p0))^(1-x_i) with
p1 > p0 is a non-negative supermartingale whenever the true rate is at most p0, so their mean passes 1/alpha with
probability at most alpha, ever (Ville's inequality). Users who return are no independent events: pass effective counts
(`effective_events`). A quantile limit is the same question: "p99 > 5 s" says that more than 1 % of the latencies exceed 5 s.
"""

from __future__ import annotations

import math

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
