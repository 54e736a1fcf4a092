"""A/A through the store's columns and `analyze`: two arms alike in everything, default settings, fifteen looks.

At every look each interval shown is compared with the truth, no difference; a metric is counted once an experiment, however
many looks it is wrong at. `restricted` parts leave out of the analysis the metrics that decide nothing (they are measured in
the other parts), as there are thousands of looks at thousands of requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import numpy as np
from chunks import Chunk, Sums
from experiments import (
    Experiment,
    Flags,
    Incidents,
    Model,
    Traffic,
    activity,
    answers,
    traffic,
    user_preferences,
    verdicts,
)
from lines import Line, at_most
from through_analyze import excludes, look_through, row

from evalpipe.analysis.metrics import metrics

DAYS = 15.0
LOOKS = 15
PAIRS = 2000
ALPHA = 0.05


def one_pair_a_user(rng: np.random.Generator) -> Experiment:
    """Errors so rare that the guardrails hold early: a false win of the goal would ship."""
    asked = traffic(rng, n=PAIRS, days=DAYS)
    return _judged(rng, asked, Model(error_rate=0.001, timeout_rate=0.0005))


def returning_users(rng: np.random.Generator) -> Experiment:
    """500 users who come back on any day; 1 % errors, which some users see more often than others."""
    asked = traffic(rng, n=PAIRS, days=DAYS, shares=activity(rng, 500, tail=None), errors_sd=1.0)
    return _judged(rng, asked, Model())


def heavy_users(rng: np.random.Generator) -> Experiment:
    """1,500 users of whom a few make much of the traffic (Pareto 1.2)."""
    asked = traffic(rng, n=PAIRS, days=DAYS, shares=activity(rng, 1500, tail=1.2), errors_sd=1.0)
    return _judged(rng, asked, Model(error_rate=0.005, timeout_rate=0.001))


SHAPES: dict[str, Callable[[np.random.Generator], Experiment]] = {
    "one pair a user": one_pair_a_user,
    "returning users": returning_users,
    "heavy users": heavy_users,
}


def with_incidents(rng: np.random.Generator, incidents: Incidents, *, shared: bool) -> Experiment:
    """960 requests a day of 2,000 users, .3 % errors; each arm has its own incidents, or both the same ones. A tenth of the
    pairs is judged."""
    asked = traffic(rng, n=int(960 * DAYS), days=DAYS, shares=activity(rng, 2000, tail=None))
    failing = incidents.draw(rng, asked)
    other = failing if shared else incidents.draw(rng, asked)
    return _judged(rng, asked, Model(error_rate=0.003, timeout_rate=0.0005), failing=(failing, other), share=0.1)


def _judged(
    rng: np.random.Generator,
    asked: Traffic,
    model: Model,
    *,
    failing: tuple[Flags | None, Flags | None] = (None, None),
    share: float = 1.0,
) -> Experiment:
    control, treatment = (answers(rng, asked, model, failing=fails) for fails in failing)
    plain = Experiment(asked=asked, control=control, treatment=treatment)
    judged = plain.both_answered & (rng.random(asked.n) < share)
    return replace(plain, verdicts=verdicts(rng, asked, user_preferences(rng, asked.n_users, 0.5), judged))


def simulate_shape(chunk: Chunk, *, shape: str) -> Sums:
    """Experiments of one shape of `SHAPES`."""
    return _add_up(SHAPES[shape](chunk.rng) for _ in range(chunk.n))


def simulate_incidents(
    chunk: Chunk,
    *,
    title: str,
    share_of_days: float,
    hours: float,
    failing: float,
    shared: bool,
    most: float,
    harm: float,
) -> Sums:
    """Experiments with incidents; only the metrics that decide are measured."""
    incidents = Incidents(share_of_days=share_of_days, hours=hours, failing=failing)
    with only_deciding():
        return _add_up(with_incidents(chunk.rng, incidents, shared=shared) for _ in range(chunk.n))


@contextmanager
def only_deciding() -> Iterator[None]:
    """`analyze` measures no metric that is a diagnostic in shadow mode."""
    kept = [item for item in metrics() if item.role_shadow != "diagnostic"]
    with mock.patch("evalpipe.analysis.analyze.metrics", lambda: kept):
        yield


def _add_up(experiments: Iterator[Experiment]) -> Sums:
    sums: Sums = {"wrong: a row that decides": 0.0, "wrong: any row": 0.0}
    sums |= dict.fromkeys(("ship", "ship by quality", "harm", "invalid", "undone"), 0.0)
    for experiment in experiments:
        wrong: dict[str, bool] = {}
        ends: set[str] = set()
        for look in look_through(experiment, n_looks=LOOKS):
            for one in look.shown.metrics:
                key = f"{'decides' if one.role != 'diagnostic' else 'informs'} {one.name}"
                wrong[key] = wrong.get(key, False) or excludes(one)
            now, found = look.raw.decision, row(look.raw, "win_rate")
            if now.recommendation == "ship":
                won = found.status == "ok" and found.ci_low is not None and found.ci_low > 0
                ends |= {"ship", "ship by quality"} if won else {"ship"}
            if now.rule == "harm":
                ends.add("harm")
            if now.recommendation == "invalid":
                ends.add("invalid")
        for end in ends:
            sums[end] += 1
        for key, is_wrong in wrong.items():
            sums[key] = sums.get(key, 0.0) + is_wrong
        sums["wrong: a row that decides"] += any(seen for key, seen in wrong.items() if key.startswith("decides"))
        sums["wrong: any row"] += any(wrong.values())
    return sums


def report_shape(sums: Sums, *, shape: str) -> list[Line]:
    return _report(sums, f"A/A, {shape}", most={}, harm=0.01)


def report_incidents(
    sums: Sums,
    *,
    title: str,
    share_of_days: float,
    hours: float,
    failing: float,
    shared: bool,
    most: float,
    harm: float,
) -> list[Line]:
    """`most`, `harm`: the largest shares of experiments in which the error rate may be called different, or stop by harm."""
    return _report(sums, f"A/A, {title}", most={"error_rate": most}, harm=harm)


def _report(sums: Sums, title: str, *, most: dict[str, float], harm: float) -> list[Line]:
    runs = sums["replications"]

    def line(name: str, key: str, share: float | None, detail: str = "") -> Line:
        bound = None if share is None else at_most(share, runs)
        designed = "" if share is None else f"{share:.3g}"
        return Line(name=f"{title}: {name}", seen=sums[key] / runs, designed=designed, bound=bound, detail=detail)

    lines = [
        line(
            f"{name} wrong at some look",
            f"decides {name}",
            most.get(name, ALPHA),
            f"{runs:.0f} experiments, {LOOKS} looks",
        )
        for name in sorted(key.removeprefix("decides ") for key in sums if key.startswith("decides "))
    ]
    informs = {key.removeprefix("informs "): sums[key] / runs for key in sums if key.startswith("informs ")}
    worst = sorted(informs, key=informs.__getitem__, reverse=True)[:3]
    return [
        *lines,
        line("some row that decides wrong at some look", "wrong: a row that decides", None),
        line(
            "some row wrong at some look",
            "wrong: any row",
            None,
            ", ".join(f"{name} {informs[name]:.3f}" for name in worst),
        ),
        line("ship by quality", "ship by quality", ALPHA / 2),
        line("ship", "ship", ALPHA),
        line("stopped by harm", "harm", harm),
        line("invalid", "invalid", 0.01),
    ]
