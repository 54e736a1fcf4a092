"""Coverage of everything a row shows: control's value, the treatment's value, their difference and ratio, each with its interval.

1,500 users with Pareto(1.2) activity, one look. What a row claims is about these users' requests, so in every replication the
users (their activity, habits and errors) are given, the outcomes are drawn, and the truth is the ratio of what is expected of
these users' requests. The two arms differ in everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from chunks import Chunk, Sums
from experiments import (
    FIRST_TOKEN,
    INPUT_TOKENS,
    TIMEOUT_MS,
    USD_PER_INPUT,
    USD_PER_OUTPUT,
    Array,
    Experiment,
    Flags,
    Judge,
    Model,
    Traffic,
    activity,
    answers,
    split_users,
    traffic,
    user_preferences,
    verdicts,
)
from lines import Line, at_least
from scipy.special import ndtr
from through_analyze import DEFAULTS, look_through

USERS, REQUESTS, DAYS = 1500, 4000, 10.0
LENGTH_SD, HARDNESS = 0.5, 0.4
CONTROL = Model(error_rate=0.01, timeout_rate=0.004, empty_rate=0.01, refusal_rate=0.02, truncation_rate=0.03)
TREATMENT = Model(
    error_rate=0.015,
    timeout_rate=0.003,
    empty_rate=0.015,
    refusal_rate=0.03,
    truncation_rate=0.02,
    latency_ms=1300.0,
    tokens=330.0,
    price=0.8,
)
PREFERENCE, RATING = 0.55, (0.7, 0.72)
MIN_SHOWN = 100
"""replications with status ok below which a row's coverage is not judged"""
WHAT = ("control", "treatment", "difference", "ratio")


@dataclass(frozen=True, kw_only=True, slots=True)
class Truths:
    """Control's and the treatment's expected value of every metric on these users' requests."""

    values: dict[str, tuple[float, float]]

    def of(self, name: str) -> tuple[float, ...] | None:
        """In the order of `WHAT`; None where no truth is computed."""
        if name not in self.values:
            return None
        control, treatment = self.values[name]
        difference = treatment - 0.5 if name == "win_rate" else treatment - control
        return control, treatment, difference, treatment / control - 1


def simulate_coverage(chunk: Chunk, *, mode: str, looks: str) -> Sums:
    """By row and quantity: replications with status ok and an interval, and those whose interval holds the truth."""
    sums: Sums = {}
    for _ in range(chunk.n):
        experiment, truths = _draw(chunk.rng, mode)
        settings = replace(DEFAULTS, looks=looks)
        for look in look_through(experiment, n_looks=1, settings=settings):
            for one in look.raw.metrics:
                true = truths.of(one.name)
                if one.status != "ok" or true is None:
                    continue
                shown = [
                    (one.control.ci_low, one.control.ci_high),
                    (one.treatment.ci_low, one.treatment.ci_high),
                    (one.ci_low, one.ci_high),
                    (one.relative_low, one.relative_high),
                ]
                for what, value, (low, high) in zip(WHAT, true, shown, strict=True):
                    if low is None and high is None:
                        continue
                    holds = (low is None or low <= value) and (high is None or value <= high)
                    for key, count in ((f"shown {one.name} {what}", 1), (f"holds {one.name} {what}", holds)):
                        sums[key] = sums.get(key, 0.0) + count
    return sums


def report_coverage(sums: Sums, *, mode: str, looks: str) -> list[Line]:
    """A line a row: the least covered of its quantities against 94 % − 2 standard errors."""
    names = dict.fromkeys(key.split()[1] for key in sums if key.startswith("shown "))
    lines = []
    for name in names:
        found = [
            (sums[f"holds {name} {what}"] / sums[f"shown {name} {what}"], sums[f"shown {name} {what}"], what)
            for what in WHAT
            if f"shown {name} {what}" in sums
        ]
        share, shown, what = min(found, key=lambda entry: entry[0] - at_least(0.94, entry[1]))
        lines.append(
            Line(name=f"coverage, {mode}, {looks}: {name}", seen=share, designed=".94",
                 bound=at_least(0.94, shown) if shown >= MIN_SHOWN else None, at_least=True,
                 detail=f"of {what}; " + ", ".join(f"{each} {part:.3f}" for part, _, each in found) + f"; {shown:.0f} shown")
        )  # fmt: skip
    return lines


def _draw(rng: np.random.Generator, mode: str) -> tuple[Experiment, Truths]:
    asked = traffic(
        rng, n=REQUESTS, days=DAYS, shares=activity(rng, USERS, tail=1.2), length_sd=LENGTH_SD, errors_sd=0.5
    )
    streamed = rng.random(asked.n) < 0.5
    control, treatment = (answers(rng, asked, model, streamed=streamed) for model in (CONTROL, TREATMENT))
    if mode == "shadow":
        plain = Experiment(asked=asked, control=control, treatment=treatment)
        better, judge = user_preferences(rng, USERS, PREFERENCE), Judge()
        found = verdicts(rng, asked, better, plain.both_answered, judge=judge)
        judged = np.unique(asked.user[found.position])
        preferred = float(judge.expected(better[judged]).mean())
        values = _values(asked, lambda arm: np.ones(asked.n, bool), paired=True)
        values["win_rate"] = (1 - preferred, preferred)
        return replace(plain, verdicts=found), Truths(values=values)
    treated = split_users(rng, USERS, 50.0, asked.user)
    liked = [np.clip(rate + rng.normal(0, 0.1, USERS), 0, 1) for rate in RATING]
    chance = np.where(treated, liked[1][asked.user], liked[0][asked.user])
    ratings = np.where(rng.random(asked.n) < 0.3, (rng.random(asked.n) < chance).astype(float), np.nan)
    experiment = Experiment(
        asked=asked, control=control, treatment=treatment, mode="ab", in_treatment=treated, ratings=ratings
    )
    values = _values(asked, lambda arm: treated if arm == 1 else ~treated, paired=False)
    values["user_rating"] = (
        float(liked[0][asked.user[~treated]].mean()),
        float(liked[1][asked.user[treated]].mean()),
    )
    return experiment, Truths(values=values)


def _values(asked: Traffic, served: Callable[[int], Flags], *, paired: bool) -> dict[str, tuple[float, float]]:
    """The expected values of both arms over the requests that are in each row.

    A row is about requests both arms answered (with text) in shadow mode, each arm's own otherwise; how likely that is differs
    between users by their errors.
    """
    models = (CONTROL, TREATMENT)
    by_arm: list[dict[str, float]] = []
    for arm, model in enumerate(models):
        requests = np.bincount(asked.user[served(arm)], minlength=USERS).astype(float)
        in_row = models if paired else (model,)
        answered = np.prod([_answered(asked, one) for one in in_row], axis=0)
        nonempty = requests * answered * np.prod([1 - one.empty_rate for one in in_row])
        timed = requests * np.prod([_timed(asked, one) for one in in_row], axis=0)
        errors = np.minimum(1, model.error_rate * asked.user_errors)
        tokens = model.tokens * np.exp(LENGTH_SD**2 / 2 + asked.user_length)
        ms = model.latency_ms * np.exp((HARDNESS**2 + model.latency_sd**2) / 2 + asked.user_latency)
        cost = model.price * (INPUT_TOKENS * USD_PER_INPUT + tokens * USD_PER_OUTPUT)
        free = INPUT_TOKENS * USD_PER_INPUT * model.price
        billed = _answered(asked, model) * ((1 - model.empty_rate) * cost + model.empty_rate * free)
        good = _answered(asked, model) * (1 - model.refusal_rate - model.truncation_rate)
        known = [_not_late(asked, one) for one in models]  # of a timeout nobody knows the bill
        others = requests * (known[1 - arm] if paired else 1.0)
        late = model.timeout_rate / (model.timeout_rate + (1 - model.timeout_rate) * (1 - model.empty_rate))
        by_arm.append(
            {
                "error_rate": _mean(requests, errors + (1 - errors) * model.timeout_rate),
                "timeout_rate": _mean(requests, (1 - errors) * model.timeout_rate),
                "empty_rate": model.empty_rate,
                "refusal_rate": model.refusal_rate,
                "truncation_rate": model.truncation_rate,
                "input_tokens": float(INPUT_TOKENS),
                "output_tokens": _mean(nonempty, tokens),
                "tokens_used": INPUT_TOKENS + _mean(nonempty, tokens),
                "cost_per_request_usd": _mean(nonempty, cost),
                "cost_per_1000_requests_usd": 1000 * float(others @ billed / (others @ known[arm])),
                "cost_per_ok_answer_usd": float(others @ billed / (others @ good)),
                "tokens_per_second": _mean(nonempty, tokens) / _mean(nonempty, ms * (1 - FIRST_TOKEN / 2) / 1000),
                **{
                    f"p{share}_latency_ms": _quantile(timed, asked, model, share / 100, late=late) for share in (50, 99)
                },
                **{
                    f"p{share}_ttft_ms": FIRST_TOKEN * _quantile(nonempty, asked, model, share / 100, late=0.0)
                    for share in (50, 99)
                },
            }
        )
    return {name: (by_arm[0][name], by_arm[1][name]) for name in by_arm[0]}


def _answered(asked: Traffic, model: Model) -> Array:
    """The chance that the arm answers a request, by user."""
    return (1 - np.minimum(1, model.error_rate * asked.user_errors)) * (1 - model.timeout_rate)


def _not_late(asked: Traffic, model: Model) -> Array:
    """The chance that a request does not time out, by user."""
    return 1 - (1 - np.minimum(1, model.error_rate * asked.user_errors)) * model.timeout_rate


def _timed(asked: Traffic, model: Model) -> Array:
    """The chance that a request has a latency: answered with text, or timed out."""
    not_failed = 1 - np.minimum(1, model.error_rate * asked.user_errors)
    return not_failed * (model.timeout_rate + (1 - model.timeout_rate) * (1 - model.empty_rate))


def _mean(weights: Array, values: Array) -> float:
    return float(weights @ values / weights.sum())


def _quantile(weights: Array, asked: Traffic, model: Model, share: float, *, late: float) -> float:
    """The quantile of the mixture of the users' lognormal latencies and a share `late` at the limit."""
    sd = np.sqrt(HARDNESS**2 + model.latency_sd**2)
    centre = np.log(model.latency_ms) + asked.user_latency
    low, high = 1.0, TIMEOUT_MS
    for _ in range(60):
        middle = (low + high) / 2
        below = (1 - late) * _mean(weights, ndtr((np.log(middle) - centre) / sd))
        low, high = (middle, high) if below < share else (low, middle)
    return high
