"""How much longer: when what blocks a decision would be settled at the present noise, by the method of `evalpipe plan`.

A metric is settled when a line is excluded: −δ (not worse), 0 (won, or certainly not better), both ±δ (no difference that
matters), −δ from below (harm). Its distance from the present estimate and the present noise give the users needed.
The experiment ends with a ship, with "nothing gained", by harm, by futility or at `max_requests`, whichever is nearest; each end
takes as long as the slowest metric in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from evalpipe.analysis.decision import DecisionMetric, DecisionOutcome, MetricEvidence
from evalpipe.analysis.metric_formatting import rounded_up
from evalpipe.analysis.planning import Noise, Spread, noise_in, seen_in
from evalpipe.analysis.result import Horizon, MetricResult
from evalpipe.analysis.settings import CORRECTED, SIGMA2_PAIRED_BINARY, LookPlan, Settings
from evalpipe.models import MetricRole, Policy
from evalpipe.stats import betting
from evalpipe.stats.estimates import Estimate
from evalpipe.stats.planning import Looks, Way

MOST_REQUESTS = 1e12
WIN_RATE = "win_rate"
MAX_REQUESTS = "max_requests"
"""the metric of a horizon that ends at the configured number of requests"""
WAITABLE = frozenset({"ok", "burn_in"})
"""statuses that more data mend or that need no mending"""


def requests_per_day(first_at: str | None, last_at: str | None, requests: int) -> float | None:
    """The traffic of the log; None where it has no times or spans less than an hour."""
    if first_at is None or last_at is None:
        return None
    hours = (datetime.fromisoformat(last_at) - datetime.fromisoformat(first_at)).total_seconds() / 3600
    return requests / hours * 24 if hours >= 1 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """The log as a forecast reads it.

    Attributes:
        requests: requests seen, and of them `units` that count (pairs in shadow mode, requests otherwise).
        units: see `requests`.
        requests_per_day: None where the log has no usable times.
        users: users that count.
        judged_pairs: pairs with a verdict, of `judged_users` users.
        judged_users: see `judged_pairs`.
        usd_per_pair: dollars a judged pair costs; None where not known.
        pairs_per_unit: at most so many judged pairs of a user count; 0 = all.
    """

    requests: int
    units: int
    requests_per_day: float | None
    users: int
    judged_pairs: int = 0
    judged_users: int = 0
    usd_per_pair: float | None = None
    pairs_per_unit: int = 0

    @property
    def judged_per_user(self) -> float:
        """Pairs the judge is asked about per user: as so far, else as many as a user has, at most `pairs_per_unit`."""
        judged = self.judged_users > 0
        pairs, users = (self.judged_pairs, self.judged_users) if judged else (self.units, self.users)
        each = pairs / users if users else 1.0
        return min(each, self.pairs_per_unit) if self.pairs_per_unit else each


@dataclass(frozen=True, kw_only=True, slots=True)
class _Wait:
    """A metric and the requests and judged users it still needs; infinite where its estimate lies beyond the line. `harm`: until
    it is shown to be worse than its margin allows."""

    name: str
    requests: float
    judged_users: float = 0.0
    harm: bool = False


def horizon_of(
    ruling: DecisionOutcome,
    evidence: Sequence[MetricEvidence],
    placed: Sequence[DecisionMetric],
    look: LookPlan,
    traffic: Traffic,
    *,
    settings: Settings | None = None,
    utility: Estimate | None = None,
) -> Horizon | None:
    """The forecast of a decision that asks for more data; None where nothing can be forecast.

    Args:
        evidence: what the rules read, by which the lines are drawn.
        placed: the metrics with their terms.
        look: the plan of looks, which gives the critical value at a sample.
        settings: `max_requests` and `min_effect_of_interest`, which end an experiment, too.
        utility: the weighted sum (policy `utility`).

    Returns:
        More requests until the nearest end, the metric that takes longest until then, and the dollars of judging until then.
        While a goal has no value (no pair was judged) the forecast is until it is shown not worse if nothing differs, with
        typical noise.
    """
    if ruling.rule not in {"collect_more", "unmeasured"}:
        return None
    forecast = _Forecast(ruling, placed, look, traffic)
    deciding = [item for item in evidence if item.role is not MetricRole.DIAGNOSTIC and item.measurable]
    ends = _ends(ruling, deciding, forecast, settings, utility)
    if settings is not None and settings.max_requests:
        ends.append([_Wait(name=MAX_REQUESTS, requests=max(0, settings.max_requests - traffic.requests))])
    reachable = [end for end in ends if end and all(wait.requests <= MOST_REQUESTS for wait in end)]
    if not reachable:
        return None
    nearest = min(reachable, key=lambda end: _size(_slowest(end)))
    slowest = _slowest(nearest)
    judged = max(wait.judged_users for wait in nearest)
    usd = None
    if judged > 0 and traffic.usd_per_pair is not None:
        usd = judged * traffic.judged_per_user * traffic.usd_per_pair
    return Horizon(
        metric=slowest.name,
        requests=rounded_up(slowest.requests),
        days=slowest.requests / traffic.requests_per_day if traffic.requests_per_day else None,
        judge_usd=usd,
        harm=slowest.harm,
    )


def _slowest(end: Sequence[_Wait]) -> _Wait:
    return max(end, key=_size)


def _size(wait: _Wait) -> tuple[float, float]:
    return wait.requests, wait.judged_users


def _ends(
    ruling: DecisionOutcome,
    deciding: Sequence[MetricEvidence],
    forecast: _Forecast,
    settings: Settings | None,
    utility: Estimate | None,
) -> list[list[_Wait]]:
    """What each possible end waits for: all of its waits."""
    candidates = [item for item in deciding if item.role in {MetricRole.PRIMARY, MetricRole.BENEFIT}]
    goals = [item for item in candidates if item.role is MetricRole.PRIMARY]
    holds = [forecast.hold(item) for item in deciding if item.name in ruling.blocking]
    harm = [
        [replace(forecast.until(item, -item.margin, below=True, level=ruling.harm_level), harm=True)]
        for item in deciding
    ]
    if ruling.rule == "unmeasured":
        return [holds, *harm] if goals else harm
    if ruling.policy is Policy.NONINFERIORITY:
        return [holds, *harm]
    ends = list(harm)
    if ruling.policy is Policy.UTILITY:
        if utility is not None:
            ends.append([*holds, forecast.utility(utility, below=False)])
            ends.append([forecast.utility(utility, below=True)])
    elif candidates:
        # Beside a goal that is a little worse only a win by more than its margin counts.
        wins = [forecast.until(item, item.margin if ruling.slightly_worse else 0.0) for item in candidates]
        ends.append([*holds, min(wins, key=_size)])
    if candidates:
        ends.append([forecast.no_gain(item) for item in candidates])
    least = settings.min_effect_of_interest if settings is not None else 0.0
    if least > 0 and goals:
        benefits = [item for item in candidates if item.role is MetricRole.BENEFIT]
        ends.append(
            [forecast.until(item, least, below=True) for item in goals]
            + [forecast.until(item, 0.0, below=True) for item in benefits]
        )
    return ends


class _Forecast:
    """Waits of single metrics at the present noise."""

    def __init__(
        self, ruling: DecisionOutcome, placed: Sequence[DecisionMetric], look: LookPlan, traffic: Traffic
    ) -> None:
        self.ruling, self.look, self.traffic = ruling, look, traffic
        self.placed = {one.metric.name: one for one in placed}

    def hold(self, item: MetricEvidence) -> _Wait:
        """Until it is shown not worse than its margin."""
        if item.name == WIN_RATE and item.name in self.ruling.unmeasured:
            noise = Spread(sd=math.sqrt(betting.SIGMA2_BOTH_ORDERS))
            looks = self._looks(item.name, self.look.alpha)
            return self._wait(item.name, noise.needed(0.0, -item.margin, looks, half=True), now=0)
        held = self.until(item, -item.margin, level=self.look.alpha)
        if item.role is MetricRole.GUARDRAIL:
            return held
        return min(held, self.until(item, 0.0), key=_size)  # a win implies it

    def no_gain(self, item: MetricEvidence) -> _Wait:
        """Until it is within ±δ, or certainly not better."""
        alpha = self.look.alpha
        within = [
            self.until(item, -item.margin, level=alpha),
            self.until(item, item.margin, below=True, level=alpha),
        ]
        loss = self.until(item, 0.0, below=True)
        return min(max(within, key=_size), loss, key=_size)

    def until(self, item: MetricEvidence, line: float, *, below: bool = False, level: float | None = None) -> _Wait:
        """Until `line` is excluded: the interval lies above it, or `below` it. `level` None: that of the metric's role."""
        placed = self.placed[item.name]
        users = self.users(item, placed, line, below=below, level=level or self.ruling.levels[item.name])
        estimate = placed.measured.deciding(self.look.alpha, placed.terms.scale)
        return self._wait(item.name, users, now=estimate.n_clusters)

    def utility(self, estimate: Estimate, *, below: bool) -> _Wait:
        """Until the weighted sum is certainly above 0, or below it."""
        point, n = estimate.point or 0.0, estimate.n_clusters
        if estimate.status not in WAITABLE or (point <= 0) != below or not estimate.standard_error or not n:
            return _Wait(name="utility", requests=math.inf)
        looks = self._looks("utility", self.look.alpha)
        noise = Spread(sd=estimate.standard_error * math.sqrt(n))
        return self._wait("utility", _ahead(n, noise, point, 0.0, looks), now=n)

    def users(self, item: MetricEvidence, placed: DecisionMetric, line: float, *, below: bool, level: float) -> float:
        """Users in all until `line` is excluded; infinite where the difference to expect lies on its wrong side."""
        estimate = placed.measured.deciding(level, placed.terms.scale)
        seen = seen_in(estimate, placed.metric, control=placed.measured.control, treatment=placed.measured.treatment)
        if seen is None or item.status not in WAITABLE:
            return math.inf
        edge = seen.high if below else seen.low
        if item.status == "ok" and edge is not None and (edge < line if below else edge > line):
            return float(seen.n_units)  # it is excluded already
        multiplier = self.look.multiplier(item.name)
        noise = noise_in(
            seen,
            placed.metric,
            relative=placed.terms.scale == "relative",
            line=line,
            c=multiplier.critical(level, df=estimate.df, n=seen.n_units, standard_error=estimate.standard_error),
            alpha=level,
            stakes=self.look.bets(item.name, level, sigma2=SIGMA2_PAIRED_BINARY),
            gated=self.look.mode == "anytime",
        )
        if noise is None:
            return math.inf
        within = (line < 0) != below and line != 0  # −δ from above, +δ from below
        point = expected_point(seen.point, line, noise.sd / math.sqrt(seen.n_units)) if within else seen.point
        if point >= line if below else point <= line:
            return math.inf
        looks = self._looks(item.name, level)
        return _ahead(seen.n_units, noise, point, line, looks)

    def _looks(self, name: str, level: float) -> Looks:
        mode = self.look.mode
        way: Way = "anytime" if mode == "anytime" else "fixed" if mode == "fixed" else "scheduled"
        return Looks(way=way, n_star=self.look.star(name), alpha=level, n_looks=self.look.n_looks or 1)

    def _wait(self, name: str, users: float, *, now: int) -> _Wait:
        """The requests that bring so many users: judged users may be in the log already, unjudged. No request brings labels."""
        traffic = self.traffic
        if name == CORRECTED:
            return _Wait(name=name, requests=math.inf if users > now else 0.0)
        present = traffic.users if name == WIN_RATE else now
        if not math.isfinite(users) or not present:
            return _Wait(name=name, requests=math.inf)
        return _Wait(
            name=name,
            requests=max(0.0, users / present - 1) * traffic.requests,
            judged_users=max(0.0, users - now) if name == WIN_RATE else 0.0,
        )


def expected_point(point: float, margin: float, standard_error: float) -> float:
    """The difference to expect of a metric that must be shown to lie within its margin.

    Most differences lie well within the margin, and an early estimate is noisy: it is the posterior mean under a normal
    prior around none whose standard deviation is the margin. With the bare estimate the slowest of several metrics is too often
    the one that had bad luck: in seven simulated settings (100 experiments each) the median forecast at a quarter of the sample
    was 0.96 to 1.29 times the true median, with this one 0.89 to 1.20 times; it came true by then in 42 to 64 % of them.

    Args:
        point: the estimate.
        margin: the line, of either sign, not 0.
        standard_error: of the estimate.

    >>> expected_point(-0.03, -0.03, 0.03)  # as uncertain as the margin is wide: half of it
    -0.015
    """
    return point * margin**2 / (margin**2 + standard_error**2)


def expected_more(
    item: MetricEvidence, placed: DecisionMetric, result: MetricResult, ruling: DecisionOutcome, look: LookPlan
) -> int | None:
    """Requests (judged pairs for the win rate) until this metric alone is settled: what blocks, or its nearest conclusion."""
    if result.status != "ok" or (result.role == MetricRole.DIAGNOSTIC.value and result.finding != "inconclusive"):
        return None
    forecast = _Forecast(ruling, [placed], look, Traffic(requests=0, units=0, requests_per_day=None, users=0))

    def users(line: float, *, below: bool = False, level: float | None = None) -> float:
        return forecast.users(item, placed, line, below=below, level=level or ruling.levels[item.name])

    not_worse = users(-item.margin, level=look.alpha)
    if result.name in ruling.blocking:
        needed = not_worse if item.role is MetricRole.GUARDRAIL else min(not_worse, users(0.0))
    elif result.finding == "inconclusive":
        within = max(not_worse, users(item.margin, below=True, level=look.alpha)) if item.margin > 0 else math.inf
        needed = min(users(0.0), users(0.0, below=True), within)
    else:
        return None
    if not result.n_clusters or not math.isfinite(needed):
        return None
    more = max(0.0, needed / result.n_clusters - 1) * result.n
    return rounded_up(more) if 0 < more <= MOST_REQUESTS else None


def _ahead(now: float, noise: Noise, point: float, line: float, looks: Looks) -> float:
    """The users by which half of the experiments are there, from `now` on: chance brings them earlier than the expected
    values, by the same share of the way that is left as from the start."""
    needed = noise.needed(point, line, looks)
    if not math.isfinite(needed) or needed <= now:
        return needed
    return now + (needed - now) * noise.needed(point, line, looks, half=True) / needed
