"""Event rates (error, timeout, empty response): the difference of two at any count of events (docs/statistics.md#events), and
rare events under repeated looks (docs/statistics.md#conditional-events).

Events cluster twice: in users (one user's prompts are alike) and in time (a provider's incident fails every user of an hour).
The variance is therefore the largest of the jackknife variances over users, clock hours, blocks of hours and days. Where the
estimate is near enough to normal (`gates`) the interval is point ± c·se. Elsewhere it is a score interval on the counts divided
by a design effect: Tango's where both arms answered the same requests, Newcombe's square-and-add of Wilson limits where the arms
have different users. Score intervals have a width at zero events too, so an interval exists at every count.

Every function takes aggregates (`stats.clusters`) and counts, never rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evalpipe.stats import betting, estimates, special
from evalpipe.stats.clusters import ArmAggregate, PairedAggregate, Spread
from evalpipe.stats.estimates import Estimate
from evalpipe.stats.means import unpaired_skew, welch_df
from evalpipe.stats.proportions import newcombe_limits, tango_limits, tango_statistic
from evalpipe.stats.sequential import Fixed, Multiplier

FEW_DISCORDANT = 25
"""fewer discordant pairs than this: a fixed or scheduled look uses the score interval"""
HEAVINESS_SHARE = 0.05
"""the correlation of a user's events that is assumed before events show one: the design effect is at least
1 + .05·(ΣW²/ΣW − 1), Kish's formula at an intra-class correlation of .05"""
MAX_TIME_DESIGN = 1.5
"""design effect of time above which one request per user no longer makes requests independent"""
FEW_EFFECTIVE_USERS = 100
"""fewer effective users, (ΣW)²/ΣW² (Kish 1965), than this: a few users dominate the mean, and the interval is about their
traffic, which a note states"""
DEFAULT_SIGMA2 = 0.02 / 4
"""planned variance of (1 + d)/2 where 2 % of the pairs are discordant"""
ESTIMAND = "treatment - control"
NOISE = 1e-26
"""a variance below this share of the squared rates is rounding"""


def paired_events(
    *,
    t_only: int,
    c_only: int,
    n: int,
    users: PairedAggregate,
    times: Sequence[PairedAggregate] = (),
    heaviness: float = 1.0,
    multiplier: Multiplier | None = None,
    alpha: float = 0.05,
    bets: betting.Bets | None = None,
) -> Estimate:
    """R_T − R_C per request where both arms answered the same requests (shadow).

    The interval is the first that applies:

    - one request per user, anytime, and a design effect of time of at most `MAX_TIME_DESIGN`: the betting interval on counts
      divided by it;
    - anytime with ≥ 50 users, ≥ 10 discordant pairs and |skewness| ≤ .1 at every clustering: the asymptotic confidence sequence;
    - fixed and scheduled looks with ≥ 25 discordant pairs and several requests per user: t with the degrees of freedom of the
      clustering with the largest variance;
    - else Tango's score limits on counts divided by the design effect, at the critical value of the plan of looks.

    Args:
        t_only: pairs in which only the treatment has the event.
        c_only: pairs in which only control has the event.
        n: pairs in all.
        users: the event summed per user.
        times: the event summed per clock hour, block of hours and day, each an aggregate whose clusters are these; one with fewer
            than 5 clusters is left out, as it gives no variance.
        heaviness: ΣW²/ΣW over users, W = a user's requests; 1 where every user has one.
        multiplier: the plan of looks; `Fixed()` by default.
        alpha: two-sided level, between 0 and 1.
        bets: stakes of the betting interval; planned for 2 % discordant pairs at n* by default.

    Returns:
        The estimate per request. `point` is (t_only − c_only)/n where both arms have all n rows, and lies inside the interval.
        Where an arm lacks rows, the point is R_T − R_C of `users` and the fallback is Newcombe's interval of unrelated arms.
        `p_value` belongs to "no difference" and agrees with the interval where alpha is the multiplier's own. Status ok,
        no_data, missing_arm, n_lt_2, one_cluster, or too_few_clusters (fewer than 5 users).
    """
    mode = multiplier or Fixed()
    ratio_c, ratio_t = users.control.ratio, users.treatment.ratio
    result = _Result(mode, alpha, n, users.n_clusters)
    if n == 0 or ratio_c is None or ratio_t is None:
        return result.undefined("no_data" if (ratio_c is None and ratio_t is None) or n == 0 else "missing_arm")
    complete = users.control.denominator == n == users.treatment.denominator
    point = (t_only - c_only) / n if complete else ratio_t - ratio_c
    if n == 1:
        return result.undefined("n_lt_2", "one pair: no interval can be had", point)
    status, note = estimates.cluster_status(users.n_clusters)
    if status == "one_cluster":
        return result.undefined(status, note, point)
    result.qualify(status, note, n / heaviness)
    one_each = complete and users.n_clusters == n
    discordant = t_only + c_only
    independent = (discordant / n - point * point) / n
    floor = NOISE * max(ratio_c, ratio_t) ** 2
    by_users = _clustering(users.absolute, users.n_clusters, floor, minimum=2)
    by_times = [_clustering(one.absolute, one.n_clusters, floor) for one in times]
    found = [one for one in (by_users, *by_times) if one is not None]
    largest = max(found, key=lambda one: one.variance, default=None)
    # Betting takes requests as independent; where time clusters them, the intervals made of variances are the right ones.
    in_time = _design_effect([one for one in by_times if one is not None], independent, 1.0)
    bets_fit = one_each and (mode.mode != "anytime" or in_time <= MAX_TIME_DESIGN)
    if not bets_fit and largest is not None and _may_be_normal(mode, users.n_clusters, discordant, found):
        return result.normal(point, largest)
    if not complete:
        independent = _binomial_variance(users.control, ratio_c) + _binomial_variance(users.treatment, ratio_t)
    seen = [one for one in by_times if one is not None] if one_each else found
    design = _design_effect(seen, independent, heaviness)
    if not complete:
        return result.newcombe(users.control, users.treatment, (design, design))
    b, c, size = t_only / design, c_only / design, n / design
    if bets_fit and mode.mode == "anytime":
        stakes = bets or betting.tuned_bets(getattr(mode, "n_star", 1000), sigma2=DEFAULT_SIGMA2, alpha=alpha)
        mean = betting.bounded_mean([0.0, 0.5, 1.0], [c, max(0.0, size - b - c), b], stakes, alpha=alpha)
        assert mean.ci_low is not None and mean.ci_high is not None
        return result.made(
            point, 2 * mean.ci_low - 1, 2 * mean.ci_high - 1, p=mean.p_value, method="betting", design=design
        )
    low, high = tango_limits(b, c, size, mode.critical(alpha, n=users.n_clusters))
    p = mode.p_value(tango_statistic(0.0, b, c, size), n=users.n_clusters)
    return result.made(point, low, high, p=p, method="tango", design=design)


def unpaired_events(
    control: ArmAggregate,
    treatment: ArmAggregate,
    *,
    times: Sequence[PairedAggregate] = (),
    heaviness: tuple[float, float] = (1.0, 1.0),
    multiplier: Multiplier | None = None,
    alpha: float = 0.05,
) -> Estimate:
    """R_T − R_C per request where the arms have different users (ab).

    Anytime with ≥ 100 users in the smaller arm, ≥ 10 events in each arm and |skewness| ≤ .1 at every clustering: the asymptotic
    confidence sequence. Fixed and scheduled looks with ≥ 10 events in each arm: t with Welch's degrees of freedom, or those of
    the times where these have the largest variance. Else Newcombe's square-and-add of both arms' Wilson limits (1998,
    method 10 for independent samples), each at its rows divided by its design effect, at the critical value of the plan
    of looks.

    Args:
        control, treatment: the event summed per user of each arm.
        times: the event summed per clock hour, block of hours and day, both arms' sums in one aggregate (an hour's term is the
            treatment's minus control's); one with fewer than 5 clusters is left out.
        heaviness: (control's, treatment's) ΣW²/ΣW over users, W = a user's requests.
        multiplier: the plan of looks; `Fixed()` by default.
        alpha: two-sided level, between 0 and 1.

    Returns:
        The estimate per request; `point` is exactly R_T − R_C and lies inside the interval; `p_value` belongs to "no
        difference" and agrees with the interval where alpha is the multiplier's own. Status ok, no_data, missing_arm,
        one_cluster, or too_few_clusters (fewer than 5 users in an arm).
    """
    mode = multiplier or Fixed()
    ratio_c, ratio_t = control.ratio, treatment.ratio
    result = _Result(mode, alpha, control.n + treatment.n, control.n_clusters + treatment.n_clusters)
    if ratio_c is None or ratio_t is None:
        return result.undefined("no_data" if ratio_c is None and ratio_t is None else "missing_arm")
    point = ratio_t - ratio_c
    smaller = min(control.n_clusters, treatment.n_clusters)
    status, note = estimates.cluster_status(smaller)
    if status == "one_cluster":
        return result.undefined(status, note, point)
    result.qualify(status, note, min(control.n / heaviness[0], treatment.n / heaviness[1]))
    floor = NOISE * max(ratio_c, ratio_t) ** 2
    by_users = _both_arms(control, treatment, floor)
    by_times = [one for one in (_clustering(t.absolute, t.n_clusters, floor) for t in times) if one is not None]
    found = [*([by_users] if by_users else []), *by_times]
    largest = max(found, key=lambda one: one.variance, default=None)
    events = min(_events(control), _events(treatment))
    if largest is not None and by_users and _may_be_normal(mode, smaller, events, found, paired=False):
        return result.normal(point, largest)
    parts = [_binomial_variance(control, ratio_c), _binomial_variance(treatment, ratio_t)]
    time = _design_effect(by_times, sum(parts), 1.0)
    designs = [
        max(time, _arm_design_effect(arm, part, heavy, floor))
        for arm, part, heavy in zip((control, treatment), parts, heaviness, strict=True)
    ]
    return result.newcombe(control, treatment, (designs[0], designs[1]))


@dataclass(frozen=True, slots=True)
class _Clustering:
    """The difference's variance over one kind of cluster; `skew` = Σe³/se³, None where it is not known."""

    variance: float
    df: float
    skew: float | None


def _clustering(
    spread: Spread | None, n_clusters: int, floor: float, *, minimum: int = estimates.MIN_CLUSTERS
) -> _Clustering | None:
    v = None if spread is None else spread.variance("jackknife")
    if spread is None or v is None or v <= floor or n_clusters < minimum:
        return None
    skew = None if spread.m3sum is None else spread.m3sum / v**1.5
    return _Clustering(v, spread.degrees(n_clusters), skew)


def _both_arms(control: ArmAggregate, treatment: ArmAggregate, floor: float) -> _Clustering | None:
    if control.spread is None or treatment.spread is None:
        return None
    v_c, v_t = control.spread.variance("jackknife"), treatment.spread.variance("jackknife")
    if v_c is None or v_t is None or v_c + v_t <= floor:
        return None
    df = welch_df(v_c, control.n_clusters, v_t, treatment.n_clusters)
    return _Clustering(v_c + v_t, df, unpaired_skew(control, treatment, math.sqrt(v_c + v_t)))


def _may_be_normal(
    mode: Multiplier, n_users: int, n_events: int, found: Sequence[_Clustering], *, paired: bool = True
) -> bool:
    """Whether point ± c·se may be used: the burn-in gates at every clustering (anytime), enough events otherwise."""
    if mode.mode != "anytime":
        return n_events >= (FEW_DISCORDANT if paired else estimates.MIN_EVENTS_ANYTIME)
    return all(
        estimates.burn_in_status(n_units=n_users, paired=paired, n_events=n_events, skew=one.skew)[0] == "ok"
        for one in found
    )


def _design_effect(found: Sequence[_Clustering], independent: float, heaviness: float) -> float:
    """The largest variance over that of independent requests, at least 1 + .05·(heaviness − 1); `heaviness` is at least 1."""
    largest = max((one.variance for one in found), default=0.0)
    measured = largest / independent if independent > 0 else 1.0
    return max(measured, 1 + HEAVINESS_SHARE * (heaviness - 1))


def _arm_design_effect(arm: ArmAggregate, independent: float, heaviness: float, floor: float) -> float:
    """As `_design_effect`, of one arm over its users; one request each makes no cluster."""
    alone = None if arm.n_clusters == arm.n else _clustering(arm.spread, arm.n_clusters, floor, minimum=2)
    return _design_effect([alone] if alone else [], independent, heaviness)


def _binomial_variance(arm: ArmAggregate, ratio: float) -> float:
    return max(0.0, ratio * (1 - ratio)) / arm.n


def _events(arm: ArmAggregate) -> int:
    return round(arm.numerator) if arm.n_events is None else arm.n_events


class _Result:
    """Fills in what all estimates of one call share."""

    def __init__(self, mode: Multiplier, alpha: float, n: int, n_clusters: int) -> None:
        self.mode, self.alpha, self.n, self.n_clusters = mode, alpha, n, n_clusters
        self.status = "ok"
        self.note: str | None = None

    def qualify(self, status: str, note: str | None, n_effective: float) -> None:
        """The status by the number of users, and a note where a few of them send most of the requests."""
        self.status, self.note = status, note
        if status == "ok" and n_effective < FEW_EFFECTIVE_USERS:
            self.note = (
                f"the requests come as unevenly as from {n_effective:.0f} equally active users: "
                "the interval is about these users' traffic"
            )

    def undefined(self, status: str, note: str | None = None, point: float | None = None) -> Estimate:
        return Estimate(
            point=point,
            confidence_level=1 - self.alpha,
            n=self.n,
            n_clusters=self.n_clusters,
            estimand=ESTIMAND,
            status=status,
            note=note,
        )

    def normal(self, point: float, by: _Clustering) -> Estimate:
        """point ± c·se."""
        se = math.sqrt(by.variance)
        c = self.mode.critical(self.alpha, df=by.df, n=self.n_clusters, standard_error=se)
        p = self.mode.p_value(point / se, df=by.df, n=self.n_clusters, standard_error=se)
        return self.made(point, point - c * se, point + c * se, p=p, method="jackknife", se=se, df=by.df)

    def newcombe(self, control: ArmAggregate, treatment: ArmAggregate, designs: tuple[float, float]) -> Estimate:
        """Square-and-add of both arms' Wilson limits, each at its rows divided by its design effect.

        The p-value is that of the critical value at which the interval's limit reaches 0.
        """
        ratio_c, ratio_t = control.ratio or 0.0, treatment.ratio or 0.0
        size_c, size_t = control.n / designs[0], treatment.n / designs[1]
        point = ratio_t - ratio_c

        def limits(c: float) -> tuple[float, float]:
            return newcombe_limits(ratio_c * size_c, size_c, ratio_t * size_t, size_t, c)

        def nearest(c: float) -> float:
            low, high = limits(c)
            return low if point > 0 else -high

        statistic = 0.0
        if point != 0:
            from scipy import optimize  # slow to load: only where users are few

            top = 1.0
            while nearest(top) > 0:
                top *= 2
            statistic = float(optimize.brentq(nearest, 0.0, top, xtol=1e-12))
        low, high = limits(self.mode.critical(self.alpha, n=self.n_clusters))
        p = self.mode.p_value(statistic, n=self.n_clusters)
        return self.made(point, low, high, p=p, method="newcombe wilson", design=max(designs))

    def made(
        self,
        point: float,
        low: float,
        high: float,
        *,
        p: float | None,
        method: str,
        design: float = 1.0,
        se: float | None = None,
        df: float | None = None,
    ) -> Estimate:
        """The estimate; limits stay within what a difference of shares can be, and (rounding) around the point."""
        return Estimate(
            point=point,
            ci_low=min(point, max(-1.0, low)),
            ci_high=max(point, min(1.0, high)),
            confidence_level=1 - self.alpha,
            n=self.n,
            n_clusters=self.n_clusters,
            standard_error=se,
            df=df,
            p_value=p,
            method=f"{method}{'' if design == 1 else ' / design effect'}, {self.mode.mode}",
            estimand=ESTIMAND,
            status=self.status,
            note=self.note,
        )


# Rare events looked at repeatedly: whose event was it, and is a rate above a fixed limit? (statistics.md 5 and 6)
#
# Given an event (an error, a timeout), it comes from the treatment with probability pi, the treatment's share of the
# users, if both arms fail alike. Exact whatever the base rate does, and no denominators are needed. One event per user:
# count users with at least one. Over canary stages the logs add up, each stage with its own share.


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
    return float(special.logsumexp(logs) - math.log(len(ALARM_RATIOS)))


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
    from scipy import optimize  # slow to load: only where there are rare events

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
    return float(special.betaln(a + x, b + y) - special.betaln(a, b)) - x * log_p - y * log_q


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

    from scipy import optimize  # slow to load: only where there are rare events

    return float(optimize.brentq(surplus, -MAX_LOG_RATIO, MAX_LOG_RATIO, xtol=1e-13))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


# Is an event rate above a fixed limit? Any number of looks (canary guardrails;
# docs/statistics.md#conditional-events).
#
# The mixture likelihood ratio of Bernoulli events against the limit p0: each bet prod_i (p1/p0)^x_i
# ((1-p1)/(1-p0))^(1-x_i) with p1 > p0 is a non-negative supermartingale whenever the true rate is at most p0, so their
# mean passes 1/alpha with probability at most alpha, ever (Ville's inequality). Users who return are no independent
# events: pass effective counts (`effective_events`). A quantile limit is the same question: "p99 > 5 s" means that more
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
    `MIN_CLUSTERS` users each counts once, as their habits cannot be distinguished from chance.
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
