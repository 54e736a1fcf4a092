"""A thousand reports of random experiments: in every row the values subtract, and every point lies inside its interval.

Mode, size, users, missing values, kinds of requests, outcomes, canary stages, imports and settings are all drawn.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from chunks import Chunk, Sums
from experiments import (
    PLAIN,
    STREAMED,
    STREAMED_WITH_USAGE,
    Answers,
    Array,
    Experiment,
    Flags,
    Model,
    Traffic,
    activity,
    answers,
    split_users,
    traffic,
    user_preferences,
    verdicts,
)
from lines import Line
from through_analyze import DEFAULTS, look_through

from evalpipe.analysis.result import Analysis, MetricResult, Segment
from evalpipe.analysis.settings import Settings

TOLERANCE = 1e-9
"""of the larger value, in a subtraction"""
WIN_RATES = ("win_rate", "win_rate_later_turns")
"""rows of a share and its complement, whose difference is to one half"""


def simulate_random_reports(chunk: Chunk) -> Sums:
    """Rows, and those that break a rule, with a few of them in words."""
    sums: Sums = {"rows": 0.0, "segments": 0.0, "broken": 0.0, "examples": []}
    for number in range(chunk.n):
        experiment, settings, details = _draw(chunk.rng)
        for look in look_through(experiment, n_looks=1, settings=settings, details=details):
            found = broken_rules(look.raw)
            sums["rows"] += sum(one.difference is not None for one in look.raw.metrics)
            sums["segments"] += len(look.raw.segments)
            sums["broken"] += len(found)
            sums["examples"] += [f"report {chunk.first + number} ({experiment.mode}): {text}" for text in found[:1]]
    sums["examples"] = sums["examples"][:3]
    return sums


def report_random_reports(sums: Sums) -> list[Line]:
    detail = f"{sums['replications']:.0f} reports, {sums['rows']:,.0f} rows, {sums['segments']:,.0f} of segments"
    return [
        Line(name="random reports: rows that do not subtract or miss their point", seen=sums["broken"], designed="0", bound=0,
             detail="; ".join([detail, *sums["examples"][:3]]))
    ]  # fmt: skip


def broken_rules(analysis: Analysis) -> list[str]:
    """What is wrong with the rows and the segments of a report, in words."""
    found = [text for one in analysis.metrics for text in _row(one)]
    return found + [text for one in analysis.segments for text in _segment(one)]


def _row(one: MetricResult) -> list[str]:
    control, treatment, difference = one.control.value, one.treatment.value, one.difference
    found = []
    if control is not None and treatment is not None and difference is not None:
        expected = treatment - 0.5 if one.name in WIN_RATES else treatment - control
        if one.name in WIN_RATES and abs(control + treatment - 1) > TOLERANCE:
            found.append(f"{one.name}: {control!r} and {treatment!r} do not add up to 1")
        if abs(difference - expected) > TOLERANCE * max(abs(control), abs(treatment), 1e-12):
            found.append(f"{one.name}: {treatment!r} - {control!r} is not {difference!r}")
        if one.relative is not None and control and abs(one.relative - (treatment / control - 1)) > 1e-9:
            found.append(f"{one.name}: {treatment!r} / {control!r} - 1 is not {one.relative!r}")
    parts = [
        ("difference", difference, one.ci_low, one.ci_high),
        ("ratio", one.relative, one.relative_low, one.relative_high),
        ("control", control, one.control.ci_low, one.control.ci_high),
        ("treatment", treatment, one.treatment.ci_low, one.treatment.ci_high),
    ]
    return found + [f"{one.name}, {text}" for part in parts if (text := _outside(*part))]


def _segment(one: Segment) -> list[str]:
    found = []
    if None not in (one.control, one.treatment, one.difference):
        expected = one.treatment - 0.5 if one.metric in WIN_RATES else one.treatment - one.control
        if abs(one.difference - expected) > TOLERANCE * max(abs(one.control), abs(one.treatment), 1e-12):
            found.append(f"{one.metric} in {one.value}: {one.treatment!r} - {one.control!r} is not {one.difference!r}")
    text = _outside("difference", one.difference, one.ci_low, one.ci_high)
    return [*found, f"{one.metric} in {one.value}, {text}"] if text else found


def _outside(what: str, point: float | None, low: float | None, high: float | None) -> str | None:
    numbers = [number for number in (point, low, high) if number is not None]
    if any(not math.isfinite(number) for number in numbers):
        return f"{what}: {point!r} ({low!r} to {high!r}) is not finite"
    slack = TOLERANCE * max((abs(number) for number in numbers), default=0.0)
    if point is None or ((low is None or low <= point + slack) and (high is None or point <= high + slack)):
        return None
    return f"{what}: {point!r} is not in {low!r} to {high!r}"


def _draw(rng: np.random.Generator) -> tuple[Experiment, Settings, bool]:
    """(experiment, settings, whether segments are measured, too)"""
    mode = str(rng.choice(["shadow", "ab", "canary"]))
    n = int(np.exp(rng.uniform(0, np.log(3000))))
    asked = _traffic(rng, n)
    is_import = mode == "shadow" and rng.random() < 0.2
    kinds = rng.choice([PLAIN, STREAMED, STREAMED_WITH_USAGE], n, p=rng.dirichlet(np.ones(3)))
    streamed = kinds != PLAIN
    arms = [_worn(rng, answers(rng, asked, _model(rng), streamed=streamed), kinds, is_import) for _ in range(2)]
    experiment = Experiment(
        asked=asked,
        control=arms[0],
        treatment=arms[1],
        mode=mode,
        kind=kinds,
        columns={"turn": rng.integers(1, 4, n), "step": (rng.random(n) < 0.1).astype(int)},
    )
    if is_import:
        experiment = replace(
            experiment,
            imported=True,
            kind=None,
            columns={"provider": None, "config_fingerprint": None, "request_kind": None},
        )
    if mode == "shadow":
        judged = experiment.both_answered & (rng.random(n) < rng.random())
        if judged.any() and rng.random() < 0.8:
            better = user_preferences(rng, asked.n_users, rng.uniform(0.2, 0.8))
            experiment = replace(experiment, verdicts=verdicts(rng, asked, better, judged))
    else:
        percent = _percentage(rng, asked, mode)
        ratings = np.where(rng.random(n) < rng.random(), rng.choice([0.0, 0.25, 1.0], n), np.nan)
        experiment = replace(
            experiment,
            in_treatment=split_users(rng, asked.n_users, percent, asked.user),
            percentage=percent if mode == "canary" else None,
            ratings=ratings if rng.random() < 0.5 else None,
        )
    settings = replace(
        DEFAULTS,
        looks=str(rng.choice(["anytime", "fixed"])),
        policy=str(rng.choice(["superiority", "noninferiority"])),
        pairs_per_unit=int(rng.integers(0, 4)),
        turns=str(rng.choice(["first", "all"])),
    )
    return experiment, settings, bool(rng.random() < 0.1)


def _traffic(rng: np.random.Generator, n: int) -> Traffic:
    shares = None
    if rng.random() < 0.7:
        users = int(rng.integers(1, max(2, n)))
        shares = activity(rng, users, tail=None if rng.random() < 0.5 else float(rng.uniform(1.1, 2)))
    return traffic(rng, n=n, days=float(rng.uniform(0.05, 20)), shares=shares, errors_sd=float(rng.uniform(0, 1)))


def _model(rng: np.random.Generator) -> Model:
    rate = lambda: float(rng.choice([0, 0.002, 0.02, 0.2, 0.7], p=[0.3, 0.25, 0.25, 0.15, 0.05]))  # noqa: E731
    return Model(
        error_rate=rate(),
        timeout_rate=rate(),
        empty_rate=rate(),
        refusal_rate=rate() / 2,
        truncation_rate=rate() / 2,
        latency_ms=float(rng.uniform(100, 5000)),
        tokens=float(rng.uniform(5, 1000)),
        tokens_sd=float(rng.uniform(0, 1.2)),
        price=float(rng.uniform(0.2, 2)),
    )


def _worn(rng: np.random.Generator, found: Answers, kinds: np.ndarray, is_import: bool) -> Answers:
    """The answers with values missing: here and there, of a kind of request, or of the whole arm; other outcomes, too."""
    n = len(found.outcome)
    hidden: Flags = rng.random(n) < rng.choice([0, 0.003, 0.05, 0.6], p=[0.4, 0.2, 0.2, 0.2])
    if rng.random() < 0.3:
        hidden |= kinds == STREAMED
    columns: dict[str, Array] = {}
    for name in ("input_tokens", "output_tokens", "cost_usd", "latency_ms", "ttft_ms"):
        share = float(rng.choice([0, 0, 0.01, 0.5, 1]))
        own = rng.random(n) < share
        columns[name] = np.where(
            own | (hidden if name.endswith(("tokens", "usd")) else False), np.nan, getattr(found, name)
        )
    if is_import:
        columns |= {"status": np.full(n, np.nan), "latency_ms": np.full(n, np.nan), "ttft_ms": np.full(n, np.nan)}
    lost = rng.random(n) < float(rng.choice([0, 0.01, 0.2]))
    outcome = np.where(lost, rng.choice(["client_closed", "unreadable", "shed"], n), found.outcome)
    return replace(found, outcome=outcome, **columns)


def _percentage(rng: np.random.Generator, asked: Traffic, mode: str) -> Array:
    """The treatment's percentage at each request: one in ab, up to four rising stages in canary."""
    if mode == "ab":
        return np.full(asked.n, 50.0)
    stages = np.sort(rng.choice([1.0, 5.0, 10.0, 25.0, 50.0], int(rng.integers(1, 5)), replace=False))
    ends = np.sort(rng.random(len(stages) - 1)) * asked.days * 86_400
    return np.asarray(stages[np.searchsorted(ends, asked.seconds)])
