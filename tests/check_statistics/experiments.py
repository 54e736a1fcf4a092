"""Generators of experiments: requests of users over days, what two arms answer, and a judge's verdicts, as numpy arrays.

All times are seconds since `START`, durations milliseconds, costs dollars; NaN is "not known". Every function takes the
random generator first, so an experiment is a function of its seed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

START = datetime(2026, 6, 1, tzinfo=UTC)
DAY = 86_400.0
HOUR = 3_600.0
TIMEOUT_MS = 60_000.0
FIRST_TOKEN = 0.2
"""of the latency of a streamed answer, the time to its first token"""
INPUT_TOKENS = 200
USD_PER_INPUT, USD_PER_OUTPUT = 2e-6, 8e-6
PLAIN = "chat.completions"
STREAMED = "chat.completions streamed"
STREAMED_WITH_USAGE = "chat.completions streamed with usage"


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """Requests in order of arrival.

    Attributes:
        user: number of each request's user, in [0, n_users).
        seconds: of each request since `START`, rising, in [0, days · 86,400).
        hardness: of each prompt, standard normal: what makes both arms slow on it.
        length: ln of each prompt's factor on the length of an answer.
        user_latency: ln of each user's factor on latencies, shape (n_users,).
        user_length: ln of each user's factor on lengths, shape (n_users,).
        user_errors: each user's factor on error rates, with mean 1, shape (n_users,).
    """

    user: Integers
    seconds: Array
    n_users: int
    days: float
    hardness: Array
    length: Array
    user_latency: Array
    user_length: Array
    user_errors: Array

    @property
    def n(self) -> int:
        return len(self.user)

    @property
    def place_in_user(self) -> Integers:
        """How many requests of the same user came before each."""
        order = np.argsort(self.user, kind="stable")
        starts = np.concatenate([[0], np.nonzero(np.diff(self.user[order]))[0] + 1]) if self.n else np.array([], int)
        place = np.arange(self.n)
        place -= np.repeat(starts, np.diff(np.append(starts, self.n)))
        found = np.empty(self.n, int)
        found[order] = place
        return found


def activity(rng: np.random.Generator, n_users: int, *, tail: float | None) -> Array:
    """Each user's share of the traffic: equal, or Pareto with index `tail` (1.2: a few users make much of it)."""
    weights = np.ones(n_users) if tail is None else rng.pareto(tail, n_users) + 0.2
    return np.asarray(weights / weights.sum())


def traffic(
    rng: np.random.Generator,
    *,
    n: int,
    days: float,
    shares: Array | None = None,
    user: Integers | None = None,
    length_sd: float = 0.5,
    user_sd: float = 0.3,
    errors_sd: float = 0.0,
) -> Traffic:
    """`n` requests at even rate over `days`; each of another user, or of users drawn with `shares`, or of the given ones.

    The `…_sd` are of the logarithms: of a prompt's length, of a user's latency and length, of a user's error rate.
    """
    if user is None:
        user = np.arange(n) if shares is None else rng.choice(len(shares), n, p=shares)
    n_users = int(user.max()) + 1 if shares is None else len(shares)
    return Traffic(
        user=user,
        seconds=np.sort(rng.random(n)) * days * DAY,
        n_users=n_users,
        days=days,
        hardness=rng.normal(0, 1, n),
        length=rng.normal(0, length_sd, n),
        user_latency=rng.normal(0, user_sd, n_users),
        user_length=rng.normal(0, user_sd, n_users),
        user_errors=np.exp(rng.normal(0, errors_sd, n_users) - errors_sd**2 / 2),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """How an arm answers. Rates are shares in [0, 1]: errors of requests, timeouts of the rest, empty answers, refusals and
    truncations of the answers. `…_sd` are of the natural logarithm, `price` is a factor on control's prices."""

    error_rate: float = 0.01
    timeout_rate: float = 0.002
    empty_rate: float = 0.0
    refusal_rate: float = 0.0
    truncation_rate: float = 0.0
    latency_ms: float = 1500.0
    latency_sd: float = 0.5
    tokens: float = 300.0
    tokens_sd: float = 0.6
    price: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What one arm did with every request, one element each."""

    outcome: npt.NDArray[np.str_]
    status: Array
    empty: Flags
    latency_ms: Array
    ttft_ms: Array
    streamed: Flags
    input_tokens: Array
    output_tokens: Array
    cost_usd: Array

    @property
    def answered(self) -> Flags:
        return np.isin(self.outcome, ("ok", "refused", "truncated"))

    def without_usage(self, chosen: Flags) -> Answers:
        """The same with tokens and cost unknown on the chosen requests."""
        hidden = {
            name: np.where(chosen, np.nan, getattr(self, name))
            for name in ("input_tokens", "output_tokens", "cost_usd")
        }
        return replace(self, **hidden)


def answers(
    rng: np.random.Generator,
    asked: Traffic,
    model: Model,
    *,
    failing: Flags | None = None,
    streamed: Flags | None = None,
) -> Answers:
    """The arm's answers. `failing`: requests that fail on top of the model's own errors (an incident)."""
    n = asked.n
    fails = rng.random(n) < model.error_rate * asked.user_errors[asked.user]
    if failing is not None:
        fails |= failing
    late = ~fails & (rng.random(n) < model.timeout_rate)
    bad = fails | late
    speed = 0.4 * asked.hardness + asked.user_latency[asked.user] + rng.normal(0, model.latency_sd, n)
    latency = np.minimum(model.latency_ms * np.exp(speed), TIMEOUT_MS)
    noise = rng.normal(0, model.tokens_sd, n) - model.tokens_sd**2 / 2
    tokens = np.maximum(1, np.rint(model.tokens * np.exp(asked.length + asked.user_length[asked.user] + noise)))
    empty = ~bad & (rng.random(n) < model.empty_rate)
    tokens = np.where(empty, 0, tokens)
    streams = np.zeros(n, bool) if streamed is None else streamed
    cost = model.price * (INPUT_TOKENS * USD_PER_INPUT + tokens * USD_PER_OUTPUT)
    kind = rng.random(n)
    answered = np.where(
        kind < model.refusal_rate,
        "refused",
        np.where(kind < model.refusal_rate + model.truncation_rate, "truncated", "ok"),
    )
    return Answers(
        outcome=np.where(fails, "http_error", np.where(late, "timeout", answered)),
        status=np.where(fails, 503, np.where(late, np.nan, 200)),
        empty=empty,
        latency_ms=np.where(late, TIMEOUT_MS, np.where(fails, 50.0, latency)),
        ttft_ms=np.where(streams & ~bad, FIRST_TOKEN * latency, np.nan),
        streamed=streams,
        input_tokens=np.where(bad, np.nan, INPUT_TOKENS),
        output_tokens=np.where(bad, np.nan, tokens),
        cost_usd=np.where(bad, np.nan, cost),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Incidents:
    """A provider's bad hours: on a share of days (each day by chance) `hours` in a row in which a share of requests fails."""

    share_of_days: float
    hours: float
    failing: float

    def draw(self, rng: np.random.Generator, asked: Traffic) -> Flags:
        """The requests that fail in one arm's incidents; an incident starts at any time of its day."""
        fails = np.zeros(asked.n, bool)
        for day in range(int(np.ceil(asked.days))):
            if rng.random() < self.share_of_days:
                begin = day * DAY + rng.random() * (DAY - self.hours * HOUR)
                hit = (asked.seconds >= begin) & (asked.seconds < begin + self.hours * HOUR)
                fails |= hit & (rng.random(asked.n) < self.failing)
        return fails


@dataclass(frozen=True, kw_only=True, slots=True)
class Judge:
    """A judge that is asked in both orders.

    Attributes:
        accuracy: chance of naming the better answer, each order.
        tie: chance of calling a tie.
        seat_bias: chance of naming the first answer whatever it is.
        shared: chance that the two orders of a pair share their luck.
    """

    accuracy: float = 0.9
    tie: float = 0.15
    seat_bias: float = 0.1
    shared: float = 0.5

    def expected(self, better: Array) -> Array:
        """The mean preference where the treatment is better with these chances."""
        named = self.accuracy * better + (1 - self.accuracy) * (1 - better)
        return 0.5 * self.tie + (1 - self.tie) * (self.seat_bias * 0.5 + (1 - self.seat_bias) * named)

    def judge(self, rng: np.random.Generator, better: Flags) -> tuple[Array, Array]:
        """(preference with the treatment shown first, with control shown first) per pair: 1 treatment, ½ tie, 0 control."""
        n = len(better)
        together, right, tie = rng.random(n) < self.shared, rng.random(n) < self.accuracy, rng.random(n) < self.tie
        orders = []
        for first_is_treatment in (True, False):
            is_right = np.where(together, right, rng.random(n) < self.accuracy)
            is_tie = np.where(together, tie, rng.random(n) < self.tie)
            won = np.where(is_right, better, ~better)
            won = np.where(rng.random(n) < self.seat_bias, first_is_treatment, won)
            orders.append(np.where(is_tie, 0.5, won.astype(float)))
        return orders[0], orders[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdicts:
    """The judged pairs: positions of their requests in the traffic, and the preference in either order."""

    position: Integers
    treatment_first: Array
    control_first: Array


def user_preferences(rng: np.random.Generator, n_users: int, mean: float, *, sd: float = 0.1) -> Array:
    """The chance that the treatment's answer is better, by user: normal around `mean`, kept in [.01, .99]."""
    return np.clip(mean + rng.normal(0, sd, n_users), 0.01, 0.99)


def verdicts(
    rng: np.random.Generator,
    asked: Traffic,
    better: Array,
    judged: Flags,
    *,
    judge: Judge | None = None,
) -> Verdicts:
    """The judge's verdicts on the `judged` requests; `better`: by user (shape (n_users,)) or by request (shape (n,))."""
    position = np.nonzero(judged)[0]
    chance = better[asked.user[position]] if len(better) == asked.n_users else better[position]
    first, second = (judge or Judge()).judge(rng, rng.random(len(position)) < chance)
    return Verdicts(position=position, treatment_first=first, control_first=second)


@dataclass(frozen=True, kw_only=True, slots=True)
class Experiment:
    """Everything the store holds of an experiment.

    Attributes:
        mode: shadow | ab | canary.
        in_treatment: whether each request was served by the treatment (ab and canary).
        percentage: the treatment's percentage when each request came (canary).
        kind: each request's kind; None: plain chat completions.
        ratings: the user's rating of the served answer, in [0, 1]; NaN: not rated.
        imported: the answers come from a file of another tool.
        columns: more columns of the exchanges by name, alike in both arms (arrays of n, or one value for all).
    """

    asked: Traffic
    control: Answers
    treatment: Answers
    verdicts: Verdicts | None = None
    mode: str = "shadow"
    in_treatment: Flags | None = None
    percentage: Array | None = None
    kind: npt.NDArray[np.str_] | None = None
    ratings: Array | None = None
    imported: bool = False
    columns: dict[str, Any] | None = None

    @property
    def both_answered(self) -> Flags:
        return self.control.answered & self.treatment.answered & ~self.control.empty & ~self.treatment.empty


def split_users(rng: np.random.Generator, n_users: int, percent: Array | float, user: Integers) -> Flags:
    """Whether each request is the treatment's: a user's hash below the percentage (of all, or of each request's time)."""
    return np.asarray(rng.random(n_users)[user] < np.asarray(percent) / 100)
