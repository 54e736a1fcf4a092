"""The difference of two rare events' rates, per request, when users return and one looks every day: `paired_events`.

Two thousand users, 1,000 requests a day for fifteen days, a look a day. Either the arms are alike, or the treatment is worse by
exactly the margin on these users' traffic, all of the harm falling on a part of the users.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from chunks import Chunk, Sums
from experiments import DAY, HOUR, Array, Flags, Integers, Traffic, traffic
from lines import Line, at_most

from evalpipe.stats.clusters import PairedAggregate, paired_aggregate
from evalpipe.stats.event_rates import paired_events
from evalpipe.stats.sequential import Anytime

USERS, A_DAY, DAYS = 2000, 1000, 15
MARGIN = 0.005
ALPHA = 0.05
N_STAR = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """`activity`: lognormal | pareto; `base`: rate of both arms; `harmed`: share of users on whom the harm falls, 0: none;
    `designed`: false "not worse" of these users in the design's simulation."""

    activity: str
    base: float
    harmed: float
    designed: str


SHAPES = {
    "lognormal users, .5 %, alike": Shape(activity="lognormal", base=0.005, harmed=0.0, designed=""),
    "lognormal users, .05 %, alike": Shape(activity="lognormal", base=0.0005, harmed=0.0, designed=""),
    "Pareto users, .05 %, alike": Shape(activity="pareto", base=0.0005, harmed=0.0, designed=""),
    "lognormal users, .5 %, 10 % of users harmed": Shape(activity="lognormal", base=0.005, harmed=0.1, designed=".010"),
    "lognormal users, .5 %, 2 % of users harmed": Shape(activity="lognormal", base=0.005, harmed=0.02, designed="0"),
    "Pareto users, .5 %, 2 % of users harmed": Shape(activity="pareto", base=0.005, harmed=0.02, designed=".002"),
    "Pareto users, .05 %, 2 % of users harmed": Shape(activity="pareto", base=0.0005, harmed=0.02, designed="0"),
}


def simulate_event_rates(chunk: Chunk, *, shape: str) -> Sums:
    """Runs with a wrong interval at some look; where the arms are alike, when the treatment is first shown not worse."""
    how = SHAPES[shape]
    true = MARGIN if how.harmed else 0.0
    sums: Sums = {"not worse": 0.0, "wrong": 0.0, "shown after": []}
    for _ in range(chunk.n):
        asked, control, treatment = _draw(chunk.rng, how)
        shown_after: float | None = None
        wrong = False
        for look in range(1, DAYS + 1):
            n = look * A_DAY
            low, high = _interval(asked, control, treatment, n)
            wrong |= not low <= true <= high
            if high < MARGIN and shown_after is None:
                shown_after = n
        sums["not worse"] += shown_after is not None
        sums["wrong"] += wrong
        sums["shown after"].append(-1.0 if shown_after is None else shown_after)
    return sums


def report_event_rates(sums: Sums, *, shape: str) -> list[Line]:
    how, runs = SHAPES[shape], sums["replications"]
    detail = f"{runs:.0f} runs, {DAYS} looks"
    lines = [
        Line(name=f"{shape}: interval wrong at some look", seen=sums["wrong"] / runs, designed="", bound=at_most(ALPHA, runs),
             detail=detail)
    ]  # fmt: skip
    if how.harmed:
        lines.append(
            Line(name=f"{shape}: shown not worse", seen=sums["not worse"] / runs, designed=how.designed,
                 bound=at_most(ALPHA / 2, runs), detail="worse by exactly the margin")
        )  # fmt: skip
    else:
        after = np.median([n if n > 0 else np.inf for n in sums["shown after"]])
        lines.append(
            Line(name=f"{shape}: shown not worse within {A_DAY * DAYS:,} requests", seen=sums["not worse"] / runs, designed="",
                 bound=None, at_least=True, detail=f"median after {after:,.0f}")
        )  # fmt: skip
    return lines


def _draw(rng: np.random.Generator, how: Shape) -> tuple[Traffic, Flags, Flags]:
    """Requests, and which of them fail in control and in the treatment."""
    while True:
        weights = rng.lognormal(0, 1, USERS) if how.activity == "lognormal" else rng.pareto(1.2, USERS) + 1
        asked = traffic(rng, n=A_DAY * DAYS, days=DAYS, shares=weights / weights.sum())
        harmed = rng.random(USERS) < how.harmed
        share = float(harmed[asked.user].mean())
        if not how.harmed or 0 < MARGIN / share < 0.6:
            break
    extra = np.where(harmed, MARGIN / share if how.harmed else 0.0, 0.0)[asked.user]
    return asked, rng.random(asked.n) < how.base, rng.random(asked.n) < how.base + extra


def _interval(asked: Traffic, control: Flags, treatment: Flags, n: int) -> tuple[float, float]:
    """The limits of treatment − control after the first `n` requests."""
    c, t = control[:n], treatment[:n]
    requests = np.bincount(asked.user[:n]).astype(float)
    estimate = paired_events(
        t_only=int((t & ~c).sum()),
        c_only=int((c & ~t).sum()),
        n=n,
        users=_summed(asked.user[:n], t, c),
        times=[_summed((asked.seconds[:n] // length).astype(int), t, c) for length in (HOUR, DAY)],
        heaviness=float((requests**2).sum() / requests.sum()),
        multiplier=Anytime(n_star=N_STAR, alpha=ALPHA),
        alpha=ALPHA,
    )
    assert estimate.ci_low is not None and estimate.ci_high is not None
    return estimate.ci_low, estimate.ci_high


def _summed(cluster: Integers, treatment: Flags, control: Flags) -> PairedAggregate:
    requests: Array = np.bincount(cluster).astype(float)
    sums = [np.bincount(cluster, weights=failed) for failed in (treatment, control)]
    return paired_aggregate(sums[0], requests, sums[1], requests)
