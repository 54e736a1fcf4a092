"""The canary's guardrails: absolute limits, differences to control, set-up faults, win rate; valid at any look.

Every guardrail sees the requests of the present stage once, as they come, and gives a verdict at any time. All share the
false alarm rate: with K of them each may err with probability alpha/K, over the whole stage, not per look.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, MutableSet, Sequence
from dataclasses import dataclass
from typing import Protocol

from evalpipe.errors import ConfigError
from evalpipe.models import ANSWERED, FAILED, Arm, GuardrailVerdict
from evalpipe.providers.setup_faults import FaultDetector
from evalpipe.rollout.observations import RATES, Event, Observation, UserSums, cost_of, latency_of, ttft_of
from evalpipe.stats import estimates, event_rates
from evalpipe.stats.betting import log_wealth, tuned_bets
from evalpipe.stats.event_rates import effective_events, log_e_above, lower_bound
from evalpipe.stats.sequential import DEFAULT_N_STAR_USERS, one_sided_critical_value, optimal_r

_QUANTILE = re.compile(r"p(\d\d|99\d)_(latency|ttft)_ms")
KNOWN = (*RATES, "p50_latency_ms", "p99_latency_ms", "p50_ttft_ms", "p99_ttft_ms", "cost_per_request_usd", "win_rate")


class Guardrail(Protocol):
    """Sees requests one by one; `verdict` may be called at any time. `alpha`: its share of the false alarms."""

    def add(self, seen: Observation) -> None: ...

    def verdict(self, *, percentage: float, alpha: float) -> GuardrailVerdict: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Margin:
    """The largest acceptable loss against control: absolute (a rate), or relative to control's value."""

    value: float
    relative: bool


DEFAULT_MARGINS: Mapping[str, Margin] = {
    "error_rate": Margin(value=0.005, relative=False),
    "timeout_rate": Margin(value=0.005, relative=False),
    "cost_per_request_usd": Margin(value=0.10, relative=True),
}


class RateLimit:
    """The treatment's rate of an event stays at or under a limit. Also quantile limits: p99 > 5 s means > 1 % exceed 5 s."""

    def __init__(self, name: str, event: Event, limit: float, *, shown_limit: float | None = None) -> None:
        self.name, self.event, self.limit = name, event, limit
        self.shown_limit = limit if shown_limit is None else shown_limit
        self.sums = UserSums()

    def add(self, seen: Observation) -> None:
        if seen.arm is Arm.TREATMENT and (event := self.event(seen)) is not None:
            self.sums.add(seen.unit, float(event))

    def verdict(self, *, percentage: float, alpha: float) -> GuardrailVerdict:
        sums, log_alarm = self.sums, -math.log(alpha)
        if not sums.n:
            return _no_data(self.name, "absolute", self.shown_limit, log_alarm)
        rate = sums.total / sums.n
        # The linearised variance costs nothing; where it alarms, the jackknife, robust to a few heavy users, decides.
        variance = sums.linearised_variance()
        events, n = effective_events(sums.total, sums.n, sums.n_users, variance)
        log_e = self._log_e(events, n)
        if log_e >= log_alarm:
            spread = sums.aggregate().spread
            jackknife = None if spread is None else spread.v_jack
            variance = max((v for v in (variance, jackknife) if v is not None), default=None)
            events, n = effective_events(sums.total, sums.n, sums.n_users, variance)
            log_e = self._log_e(events, n)
        status = "breached" if log_e >= log_alarm else "doubtful" if rate > self.limit else "holds"
        what = f"{rate:.2%} of {sums.n} requests"
        if self.shown_limit != self.limit:
            what += f" exceed {self.shown_limit:g} ms"
        return GuardrailVerdict(
            guardrail=self.name,
            kind="absolute",
            status=status,
            value=rate,
            limit=self.shown_limit,
            lower=None if status == "holds" else lower_bound(events, n, alpha),
            log_e=log_e,
            log_alarm=log_alarm,
            n=sums.n,
            note=f"{self.name}: {what}, at most {self.limit:.3g} allowed",
        )

    def _log_e(self, events: float, n: float) -> float:
        """The mean of two kinds of evidence: by requests (at their effective number), and by users, each counted once with
        their own rate, so that one heavy user can neither raise the alarm alone nor drown everyone else's failures.

        A rate in [0, 1] is as fair a draw as an event: each bet is convex in it, so its expectation is no larger.
        """
        by_users = log_e_above(self.sums.total_of_means, self.sums.n_users, self.limit)
        by_requests = log_e_above(events, n, self.limit)
        return max(by_users, by_requests) + math.log1p(math.exp(-abs(by_users - by_requests))) - math.log(2)


class RateDifference:
    """The treatment fails no more users than control does, up to a margin: the conditional-event test of
    docs/statistics.md#conditional-events."""

    def __init__(self, name: str, event: Event, margin: Margin) -> None:
        self.name, self.event, self.margin = name, event, margin
        self.sums = {Arm.CONTROL: UserSums(), Arm.TREATMENT: UserSums()}

    def add(self, seen: Observation) -> None:
        if (event := self.event(seen)) is not None:
            self.sums[seen.arm].add(seen.unit, float(event))

    def verdict(self, *, percentage: float, alpha: float) -> GuardrailVerdict:
        control, treatment = self.sums[Arm.CONTROL], self.sums[Arm.TREATMENT]
        log_alarm, share = -math.log(alpha), percentage / 100
        if not control.n or not treatment.n or not 0 < share < 1:
            return _no_data(self.name, "difference", None, log_alarm)
        x, y = treatment.n_users_with_event, control.n_users_with_event
        # An absolute margin becomes a rate ratio by control's own rate, taken low by one event's worth at most.
        ratio = 1 + (self.margin.value if self.margin.relative else self.margin.value * control.n / (control.total + 1))
        allowed = share * ratio / (share * ratio + 1 - share)
        log_e = event_rates.log_alarm([event_rates.Stage(treatment_events=x, control_events=y, share=allowed)])
        difference = treatment.total / treatment.n - control.total / control.n
        return GuardrailVerdict(
            guardrail=self.name,
            kind="difference",
            status="breached" if log_e >= log_alarm else "holds",
            value=difference,
            limit=self.margin.value,
            log_e=log_e,
            log_alarm=log_alarm,
            n=control.n + treatment.n,
            note=f"{self.name}: treatment {treatment.total / treatment.n:.2%}, control {control.total / control.n:.2%}; "
            f"users with one: {x} and {y} at {percentage:g} %",
        )


class CostLimit:
    """The treatment's mean cost a request stays at or under a limit (one-sided asymptotic confidence sequence)."""

    def __init__(self, name: str, limit: float) -> None:
        self.name, self.limit = name, limit
        self.sums = UserSums()

    def add(self, seen: Observation) -> None:
        if seen.arm is Arm.TREATMENT and (cost := cost_of(seen)) is not None:
            self.sums.add(seen.unit, cost)

    def verdict(self, *, percentage: float, alpha: float) -> GuardrailVerdict:
        arm = self.sums.aggregate()
        mean = arm.ratio
        if mean is None:
            return _no_data(self.name, "absolute", self.limit, -math.log(alpha))
        v = None if arm.spread is None else arm.spread.v_jack
        lower = None
        if v and arm.n_clusters >= estimates.MIN_CLUSTERS_ANYTIME:
            r = optimal_r(2 * alpha) * arm.n_clusters / DEFAULT_N_STAR_USERS
            lower = mean - float(one_sided_critical_value(r, alpha)) * math.sqrt(v)
        breached = lower is not None and lower > self.limit
        return GuardrailVerdict(
            guardrail=self.name,
            kind="absolute",
            status="breached" if breached else "doubtful" if mean > self.limit else "holds",
            value=mean,
            limit=self.limit,
            lower=lower,
            log_alarm=-math.log(alpha),
            n=self.sums.n,
            note=f"{self.name}: {mean:.3g} USD over {self.sums.n} requests, at most {self.limit:g} allowed",
        )


def _no_data(name: str, kind: str, limit: float | None, log_alarm: float) -> GuardrailVerdict:
    return GuardrailVerdict(
        guardrail=name, kind=kind, status="no_data", limit=limit, log_alarm=log_alarm, note=f"{name}: no data yet"
    )


def build_guardrails(limits: Mapping[str, float], margins: Mapping[str, Margin] | None = None) -> list[Guardrail]:
    """The guardrails of `[canary] guardrails` and, for errors and timeouts, their difference to control.

    `margins` override `DEFAULT_MARGINS`. `win_rate` is built by the caller, who has the verdicts. Raises ConfigError for a
    name or a limit that means nothing.
    """
    built: list[Guardrail] = []
    for name, limit in limits.items():
        if name != "win_rate":
            built.append(_absolute(name, limit))
    wanted = {**DEFAULT_MARGINS, **(margins or {})}
    built.extend(
        RateDifference(name, RATES[name], wanted[name])
        for name in ("error_rate", "timeout_rate")
        if name == "error_rate" or name in limits
    )
    return built


def _absolute(name: str, limit: float) -> Guardrail:
    if name in RATES:
        if not 0 < limit < 1:
            raise ConfigError(f"canary.guardrails.{name} = {limit:g}: a rate lies between 0 and 1 (0.02 is 2 %)")
        return RateLimit(name, RATES[name], limit)
    if name == "cost_per_request_usd":
        return CostLimit(name, limit)
    match = _QUANTILE.fullmatch(name)
    if match:
        level = int(match[1]) / 10 ** len(match[1])
        if 0 < level < 1:
            value_of = latency_of if match[2] == "latency" else ttft_of
            return RateLimit(
                name,
                lambda seen: None if (value := value_of(seen)) is None else value > limit,
                round(1 - level, 6),
                shown_limit=limit,
            )
    raise ConfigError(f"canary.guardrails.{name}: not a guardrail; known are {', '.join(KNOWN)}")


def evaluate_guardrails(guardrails: Sequence[Guardrail], *, percentage: float, alpha: float) -> list[GuardrailVerdict]:
    """Every verdict, the false alarm rate `alpha` shared equally among those that test a rate."""
    n_tests = max(1, sum(not isinstance(one, TreatmentSetup) for one in guardrails))
    return [one.verdict(percentage=percentage, alpha=alpha / n_tests) for one in guardrails]


# A set-up fault of the treatment as a guardrail: users receive its refusals, whatever their reason.
#
# A fault of control is none of a canary's concern: rolling back would send everybody to the broken arm.


NAME = "setup"


class TreatmentSetup:
    """Breached by a set-up fault of the treatment in the present stage.

    Args:
        passes_through: whether the client's model reaches the treatment.
        answered: fingerprints of configurations that have answered in any stage, kept by the caller over all of them: in
            later stages five refusals are not the first answers any more.
    """

    def __init__(self, *, passes_through: bool, answered: MutableSet[str | None]) -> None:
        self._passes_through, self._answered = passes_through, answered
        self._detectors: dict[str | None, FaultDetector] = {}
        self._waiting: list[Observation] = []
        self._n = 0

    def add(self, seen: Observation) -> None:
        if seen.arm is Arm.TREATMENT and (seen.outcome in ANSWERED or seen.outcome in FAILED):
            self._waiting.append(seen)

    def verdict(self, *, percentage: float, alpha: float) -> GuardrailVerdict:
        """It is no test of a rate: `alpha` has no part in it."""
        self._take()
        faults = [fault for detector in self._detectors.values() for fault in detector.faults]
        if faults:
            newest = max(faults, key=lambda fault: fault.last_at)
            return GuardrailVerdict(
                guardrail=NAME, kind=NAME, status="breached", value=float(newest.count), n=self._n, note=newest.text
            )
        status = "holds" if self._n else "no_data"
        return GuardrailVerdict(guardrail=NAME, kind=NAME, status=status, n=self._n, note=f"{NAME}: no set-up fault")

    def _take(self) -> None:
        """Since the last look, in the order of time: several workers write beside each other."""
        waiting, self._waiting = sorted(self._waiting, key=lambda seen: seen.asked_at), []
        for seen in waiting:
            self._n += 1
            mark = seen.configuration
            detector = self._detectors.get(mark)
            if detector is None:
                detector = self._detectors[mark] = FaultDetector(
                    arm=Arm.TREATMENT,
                    fingerprint=mark,
                    passes_through=self._passes_through,
                    answered_before=mark in self._answered,
                )
            if seen.outcome in ANSWERED:
                detector.answered()
                self._answered.add(mark)
            else:
                detector.failed(seen.failure, at=seen.asked_at, unit=seen.unit, message=seen.words)


# A judge's verdicts as a guardrail: the treatment's win rate on the shadowed share must not prove to be under a limit.


N_STAR = 500
"""judged users at which the bets are best (half the fixed sample for a win rate of .45 against .5)"""


class WinRateLimit:
    """`limit` in (0, 1): e.g. 0.45. `read` gives (user, mean preference for the treatment in [0, 1]) of the present stage."""

    def __init__(self, limit: float, read: Callable[[], Sequence[tuple[str, float]]]) -> None:
        if not 0 < limit < 1:
            raise ConfigError(f"canary.guardrails.win_rate = {limit:g}: a win rate lies between 0 and 1 (e.g. 0.45)")
        self.limit, self._read = limit, read

    def add(self, seen: Observation) -> None:
        """Served responses carry no verdicts."""

    def verdict(self, *, percentage: float, alpha: float) -> GuardrailVerdict:
        values = [preference for _, preference in self._read()]
        log_alarm = -math.log(alpha)
        if not values:
            return GuardrailVerdict(
                guardrail="win_rate",
                kind="absolute",
                status="no_data",
                limit=self.limit,
                log_alarm=log_alarm,
                note="win_rate: nothing judged in this stage yet (run `evalpipe load` and `evalpipe judge`)",
            )
        mean = sum(values) / len(values)
        _, log_e = log_wealth(values, [1] * len(values), self.limit, tuned_bets(N_STAR, alpha=2 * alpha))
        return GuardrailVerdict(
            guardrail="win_rate",
            kind="absolute",
            status="breached" if log_e >= log_alarm else "doubtful" if mean < self.limit else "holds",
            value=mean,
            limit=self.limit,
            log_e=log_e,
            log_alarm=log_alarm,
            n=len(values),
            note=f"win_rate: {mean:.3f} over {len(values)} judged users, at least {self.limit:g} required",
        )
