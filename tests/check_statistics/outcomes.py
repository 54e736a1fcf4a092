"""What is decided in situations people are in: nothing judged, cheaper, equal, a loss after a ship, two files of answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import numpy as np
from chunks import Chunk, Sums
from experiments import Answers, Experiment, Judge, Model, answers, split_users, traffic, user_preferences, verdicts
from lines import Line, at_least, at_most
from through_analyze import DEFAULTS, Look, look_through

from evalpipe.analysis.metrics import metrics
from evalpipe.analysis.planning import Question, plan_metric, planned_n_star

DAYS = 14.0
FAILING = Model(error_rate=0.003, timeout_rate=0.0005)
PILOT = 40_000
EQUAL_LOOKS = 8
QUIET = Model(error_rate=0.001, timeout_rate=0.0005)


def simulate_nothing_judged(chunk: Chunk, *, title: str) -> Sums:
    """Shadow, alike in everything, no verdict: the guardrails hold, and nothing measures the answers."""
    return _ships(_alike(chunk.rng, n=3000, judged=False) for _ in range(chunk.n))


def simulate_cheaper_ab(chunk: Chunk, *, title: str) -> Sums:
    """A/B, 30 % cheaper, no ratings and no judge."""
    return _ships(_cheaper_ab(chunk.rng) for _ in range(chunk.n))


def report_no_ship(sums: Sums, *, title: str) -> list[Line]:
    runs = sums["replications"]
    return [Line(name=f"{title}: ship", seen=sums["ship"], designed="0", bound=0, detail=f"of {runs:.0f} experiments")]


def _ships(experiments: Iterator[Experiment], *, n_looks: int = 3) -> Sums:
    sums: Sums = {"ship": 0.0}
    for experiment in experiments:
        looks = look_through(experiment, n_looks=n_looks)
        sums["ship"] += any(look.shown.decision.recommendation == "ship" for look in looks)
    return sums


def _alike(
    rng: np.random.Generator, *, n: int, judged: bool = True, price: float = 1.0, model: Model = QUIET
) -> Experiment:
    """One pair a user; the arms differ in price at most."""
    asked = traffic(rng, n=n, days=DAYS)
    control, treatment = answers(rng, asked, model), answers(rng, asked, replace(model, price=price))
    found = Experiment(asked=asked, control=control, treatment=treatment)
    if not judged:
        return found
    return replace(found, verdicts=verdicts(rng, asked, user_preferences(rng, n, 0.5), found.both_answered))


def _cheaper_ab(rng: np.random.Generator) -> Experiment:
    asked = traffic(rng, n=6000, days=DAYS, user=np.sort(rng.integers(0, 3000, 6000)))
    control, treatment = answers(rng, asked, QUIET), answers(rng, asked, replace(QUIET, price=0.7))
    split = split_users(rng, asked.n_users, 50.0, asked.user)
    return Experiment(asked=asked, control=control, treatment=treatment, mode="ab", in_treatment=split)


@cache
def planned_pairs() -> tuple[int, dict[str, float]]:
    """What `evalpipe plan` says from a log of `PILOT` pairs without a difference: the cap of the slowest metric that decides,
    and n* of each."""
    pilot = _alike(np.random.default_rng(0), n=PILOT, model=FAILING)
    *_, look = look_through(pilot, n_looks=1, settings=replace(DEFAULTS, looks="fixed"))
    plans = {}
    for item in metrics():
        row = next(row for row in look.raw.metrics if row.name == item.name)
        if row.role not in {"primary", "benefit", "guardrail"}:
            continue
        question = Question(
            effect=row.margin,
            margin=row.margin,
            scale=row.scale,
            alpha=DEFAULTS.alpha,
            role=row.role,
            may_win=row.role != "guardrail",
            margin_counts=row.role != "guardrail",
        )
        planned = plan_metric(item, question, looks="anytime", pilot=row)
        assert planned is not None
        plans[item.name] = planned
    return max(plan.requests_max for plan in plans.values()), planned_n_star(plans)


def simulate_equal(chunk: Chunk, *, price: float, title: str) -> Sums:
    """Equal answers within the planned size: what is recorded at the last look, and after how many pairs it shipped."""
    n, n_star = planned_pairs()
    sums: Sums = {"ship": 0.0, "ship at": [], "keep": 0.0, "harm": 0.0}
    for _ in range(chunk.n):
        experiment = _alike(chunk.rng, n=n, price=price, model=FAILING)
        last: Look | None = None
        for last in look_through(experiment, n_looks=EQUAL_LOOKS, n_star=n_star):
            if last.shown.decision.recommendation == "ship":
                sums["ship at"].append(last.number * n / EQUAL_LOOKS)
                break
        assert last is not None
        for end in ("ship", "keep"):
            sums[end] += last.shown.decision.recommendation == end
        sums["harm"] += last.shown.decision.rule == "harm"
    return sums


def report_equal(sums: Sums, *, price: float, title: str) -> list[Line]:
    runs, (n, _) = sums["replications"], planned_pairs()
    at = f", median after {np.median(sums['ship at']):,.0f}" if sums["ship at"] else ""
    ships = sums["ship"] / runs
    detail = f"{runs:.0f} experiments of {n:,} pairs{at}; keep {sums['keep'] / runs:.2f}"
    if price < 1:
        return [
            Line(name=f"{title}: ship within the planned size", seen=ships, designed=">= .8", bound=at_least(0.8, runs),
                 at_least=True, detail=detail)
        ]  # fmt: skip
    return [Line(name=f"{title}: ship", seen=ships, designed="<= .05", bound=at_most(0.05, runs), detail=detail)]


def simulate_loss_after_ship(chunk: Chunk) -> Sums:
    """The first third of the requests prefers the treatment, the rest does not at all: a ship is undone."""
    sums: Sums = {"ship": 0.0, "undone": 0.0}
    for _ in range(chunk.n):
        rng, n = chunk.rng, 3000
        asked = traffic(rng, n=n, days=DAYS)
        control, treatment = answers(rng, asked, QUIET), answers(rng, asked, replace(QUIET, price=0.7))
        found = Experiment(asked=asked, control=control, treatment=treatment)
        better = np.where(np.arange(n) < n / 3, 0.75, 0.15)
        experiment = replace(found, verdicts=verdicts(rng, asked, better, found.both_answered))
        recommended = [look.shown.decision.recommendation for look in look_through(experiment, n_looks=12)]
        sums["ship"] += "ship" in recommended
        sums["undone"] += "ship" in recommended and recommended[-1] != "ship"
    return sums


def report_loss_after_ship(sums: Sums) -> list[Line]:
    runs = sums["replications"]
    return [
        Line(name="a loss after a ship: undone, of those that shipped", seen=sums["undone"] / max(1.0, sums["ship"]),
             designed="1", bound=1.0, at_least=True, detail=f"{sums['ship']:.0f} of {runs:.0f} experiments shipped first")
    ]  # fmt: skip


def simulate_files(chunk: Chunk) -> Sums:
    """300 pairs from two files of answers (no status, no latency, no usage), of which the treatment wins 87 %."""
    sums: Sums = {"ship": 0.0}
    for _ in range(chunk.n):
        rng, n = chunk.rng, 300
        asked = traffic(rng, n=n, days=0.01)
        control, treatment = (_imported(answers(rng, asked, Model(error_rate=0, timeout_rate=0))) for _ in range(2))
        found = Experiment(
            asked=asked, control=control, treatment=treatment, imported=True, columns=dict.fromkeys(EMPTY)
        )
        judge = Judge(accuracy=1.0, tie=0.0, seat_bias=0.0)
        experiment = replace(found, verdicts=verdicts(rng, asked, np.full(n, 0.87), np.ones(n, bool), judge=judge))
        sums["ship"] += _recommended(experiment) == "ship"
    return sums


EMPTY = ("provider", "endpoint", "model", "model_requested", "config_fingerprint", "request_kind")
"""columns that a file of answers does not fill"""


def report_files(sums: Sums) -> list[Line]:
    runs = sums["replications"]
    return [
        Line(name="two files, 87 % of 300 pairs won: ship", seen=sums["ship"] / runs, designed="1", bound=0.98, at_least=True,
             detail=f"{runs:.0f} experiments")
    ]  # fmt: skip


def _imported(found: Answers) -> Answers:
    unknown = np.full(len(found.outcome), np.nan)
    names = ("status", "latency_ms", "ttft_ms", "input_tokens", "output_tokens", "cost_usd")
    return replace(found, **dict.fromkeys(names, unknown))


def _recommended(experiment: Experiment) -> str:
    return [look.shown.decision.recommendation for look in look_through(experiment, n_looks=1, settings=DEFAULTS)][-1]
