"""How an experiment ends under the rules: `decide` at sixty looks, and what the record keeps of it.

The win rate comes from one judged pair a user (the betting interval), the cost from log ratios of standard deviation .6 (the
asymptotic confidence sequence); errors, timeouts and latency are shown to hold from the start. Ten truths; the design played
120 runs of each, whose ends are the expected ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from chunks import Chunk, Sums
from experiments import Array
from judged_pairs import draw_pairs
from lines import Line

from evalpipe.analysis.decision import DecisionContext, DecisionOutcome, Limits, MetricEvidence, decide
from evalpipe.analysis.record import ExperimentRecord, new_record, survive
from evalpipe.analysis.result import Decision
from evalpipe.analysis.settings import Settings
from evalpipe.models import MetricRole
from evalpipe.stats import betting
from evalpipe.stats.sequential import Anytime

ALPHA = 0.05
LOOKS = np.arange(200, 12_001, 200)
MODE = Anytime(n_star=1000, alpha=ALPHA)
COST_SD = 0.6
DESIGN_RUNS = 120
VALUES = np.array([0.0, 0.5, 1.0])
HELD = ("error_rate", "timeout_rate", "p50_latency_ms", "empty_rate")
K = 2 + len(HELD)
OPEN = "open"


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """`win_rate` and the treatment's `price` as a share of control's; `designed`: ends of the design's 120 runs; `falls`: mean
    number of times a recorded ship fell in them; `first`: median pairs at the first decision."""

    win_rate: float
    price: float
    designed: dict[str, int]
    falls: float = 0.0
    first: str = ""


TRUTHS = {
    "win rate .50, price x 1": Truth(win_rate=0.5, price=1.0, designed={"no_gain": 119, "ship": 1}, first="2,200"),
    "win rate .50, price x .7": Truth(win_rate=0.5, price=0.7, designed={"ship": 120}, first="1,400"),
    "win rate .50, price x .95": Truth(win_rate=0.5, price=0.95, designed={"ship": 120}, first="1,800"),
    "win rate .485, price x .98": Truth(
        win_rate=0.485, price=0.98, designed={"no_gain": 110, "ship": 10}, falls=0.15, first="2,700"
    ),
    "win rate .485, price x .7": Truth(win_rate=0.485, price=0.7, designed={"ship": 114, OPEN: 6}, first="5,100"),
    "win rate .48, price x 1": Truth(win_rate=0.48, price=1.0, designed={"no_gain": 120}, first="2,200"),
    "win rate .515, price x 1": Truth(win_rate=0.515, price=1.0, designed={"ship": 111, "no_gain": 9}, first="2,600"),
    "win rate .53, price x 1": Truth(win_rate=0.53, price=1.0, designed={"ship": 120}, first="1,600"),
    "win rate .47, price x .7": Truth(win_rate=0.47, price=0.7, designed={"ever ship": 2}),
    "win rate .50, price x 1.08": Truth(win_rate=0.5, price=1.08, designed={"no_gain": 120}, first="2,200"),
}


def simulate_ends(chunk: Chunk, *, truth: str) -> Sums:
    """The decision in force at the last look, by rule; falls and returns of a ship; the pairs at the first decision."""
    how = TRUTHS[truth]
    low, high, cost = _paths(chunk.rng, how, chunk.n)
    sums: Sums = {"falls": 0.0, "most falls": [], "returns": 0.0, "uncaused": 0.0, "ever ship": 0.0, "first": []}
    for run in range(chunk.n):
        record, falls, shipped, returned, uncaused, first = _new_record(), 0, False, 0, 0, None
        for look, n in enumerate(LOOKS):
            evidence = _evidence(
                {level: (low[level][run, look], high[level][run, look]) for level in low}, cost[run, look], int(n)
            )
            before = record.decided
            ruling = decide(evidence, DecisionContext(alpha=ALPHA))
            record = _recorded(record, ruling)
            was_ship = before is not None and before.recommendation == "ship"
            is_ship = record.decided is not None and record.decided.recommendation == "ship"
            falls += was_ship and not is_ship
            returned += is_ship and not was_ship and shipped
            # A ship that falls although the rules still ship, or returns although the loss is still shown: a contradiction.
            uncaused += was_ship and not is_ship and ruling.rule == "ship"
            uncaused += is_ship and not was_ship and bool(ruling.losing) and not record.strong_win
            shipped |= is_ship
            if record.decided is not None and first is None:
                first = float(n)
        end = OPEN if record.decided is None else record.decided.rule
        sums[f"end {end}"] = sums.get(f"end {end}", 0.0) + 1
        sums["falls"] += falls
        sums["most falls"] = [max([falls, *sums["most falls"]])]
        sums["returns"] += returned
        sums["uncaused"] += uncaused
        sums["ever ship"] += shipped
        sums["first"].append(np.inf if first is None else first)
    return sums


def report_ends(sums: Sums, *, truth: str) -> list[Line]:
    how, runs = TRUTHS[truth], sums["replications"]
    ends = {key.removeprefix("end "): value for key, value in sums.items() if key.startswith("end ")}
    found = ", ".join(f"{end} {count:.0f}" for end, count in sorted(ends.items(), key=lambda item: -item[1]))
    main, count = max(how.designed.items(), key=lambda item: item[1])
    share = count / DESIGN_RUNS
    rare = main == "ever ship"
    seen = (sums["ever ship"] if rare else ends.get(main, 0.0)) / runs
    slack, first = _slack(share, runs), float(np.median(sums["first"]))
    return [
        Line(
            name=f"{truth}: {main}",
            seen=seen,
            designed=f"{share:.3f}",
            bound=min(1.0, share + slack) if rare else share - slack,
            at_least=not rare,
            detail=f"{runs:.0f} runs: {found}; first decision after {first:,.0f} (designed {how.first or '-'})",
        ),
        Line(
            name=f"{truth}: falls of a ship, a run",
            seen=sums["falls"] / runs,
            designed=f"{how.falls:g}",
            bound=how.falls + _slack(how.falls, runs),
            detail=f"at most {max(sums['most falls']):.0f}; {sums['returns']:.0f} returned when no loss was shown any more",
        ),
        Line(name=f"{truth}: falls or returns without a cause", seen=sums["uncaused"], designed="0", bound=0.0),
    ]


def _slack(share: float, runs: float) -> float:
    """Three binomial standard errors of the two simulations' difference; a share of 0 or 1 is known to half a run only."""
    bounded = min(max(share, 0.5 / (DESIGN_RUNS + 1)), 1 - 0.5 / (DESIGN_RUNS + 1))
    return 3 * float(np.sqrt(bounded * (1 - bounded) * (1 / DESIGN_RUNS + 1 / runs)))


def _paths(rng: np.random.Generator, how: Truth, runs: int) -> tuple[dict[float, Array], dict[float, Array], Array]:
    """Limits of the win rate by level, and the mean log ratio of the costs, each of shape (runs, looks)."""
    x = draw_pairs(rng, how.win_rate, (runs, int(LOOKS[-1])))
    counts = np.stack([np.cumsum(x == value, axis=1)[:, LOOKS - 1] for value in VALUES], axis=-1).astype(float)
    steps = rng.normal(np.log(how.price) * 200, COST_SD * np.sqrt(200), (runs, len(LOOKS)))
    low, high = {}, {}
    for level in (ALPHA, ALPHA / K):
        low[level], high[level] = _betting_limits(counts, level)
        for run, look in zip(rng.integers(0, runs, 2), rng.integers(0, len(LOOKS), 2), strict=True):
            public = betting.limits(VALUES, counts[run, look], _bets(level), alpha=level)
            found = low[level][run, look], high[level][run, look]
            assert np.allclose(public, found, atol=1e-7), f"limits {public} by betting.limits, {found} here"
    return low, high, np.cumsum(steps, axis=1) / LOOKS


@cache
def _bets(level: float) -> betting.Bets:
    return betting.tuned_bets(MODE.n_star, alpha=level)


def _betting_limits(counts: Array, level: float) -> tuple[Array, Array]:
    """`betting.limits` of many count vectors (…, values) at once."""
    low = _lower(counts, VALUES, level)
    return low, 1 - _lower(counts, 1 - VALUES, level)


def _lower(counts: Array, values: Array, level: float) -> Array:
    stakes = np.array(_bets(level).stakes)
    needed = np.log(2 / level)
    left = np.full(counts.shape[:-1], 1e-9)
    right = counts @ values / counts.sum(axis=-1)
    for _ in range(45):
        middle = (left + right) / 2
        logs = np.log1p(stakes[:, None] * (values - middle[..., None, None]) / middle[..., None, None])
        wealth = np.logaddexp.reduce((logs * counts[..., None, :]).sum(axis=-1), axis=-1) - np.log(len(stakes))
        reached = wealth >= needed
        left, right = np.where(reached, middle, left), np.where(reached, right, middle)
    return left


def _evidence(win_rate: dict[float, tuple[float, float]], cost: float, n: int) -> list[MetricEvidence]:
    def of_win_rate(level: float) -> Limits:
        low, high = win_rate[level]
        return low - 0.5, high - 0.5

    def of_cost(level: float) -> Limits:  # lower is better
        reach = MODE.critical(level, n=n) * COST_SD / np.sqrt(n)
        return -float(np.expm1(cost + reach)), -float(np.expm1(cost - reach))

    def held(level: float) -> Limits:
        return -0.001, 0.001

    def item(name: str, role: MetricRole, margin: float, limits: Callable[[float], Limits]) -> MetricEvidence:
        return MetricEvidence(name=name, role=role, margin=margin, status="ok", limits=limits)

    return [
        item("win_rate", MetricRole.PRIMARY, 0.03, of_win_rate),
        item("cost_per_request_usd", MetricRole.BENEFIT, 0.1, of_cost),
        *(item(name, MetricRole.GUARDRAIL, 0.005, held) for name in HELD),
    ]


def _new_record() -> ExperimentRecord:
    return new_record(experiment="e", mode="shadow", settings=Settings(), now="2026-06-01T00:00:00+00:00")


def _recorded(record: ExperimentRecord, ruling: DecisionOutcome) -> ExperimentRecord:
    """The record after a look with this ruling, as `take_look` keeps it."""
    record = replace(record, n_looks=record.n_looks + 1, strong_win=record.strong_win or ruling.strong_win)
    decision = Decision(
        recommendation=ruling.recommendation.value,
        reasons=[],
        headline=ruling.rule,
        rule=ruling.rule,
        policy=ruling.policy.value,
        losing=ruling.losing,
        harm_level=ruling.harm_level,
        strong_win=ruling.strong_win,
    )
    return replace(record, decided=survive(record, decision)[0])
