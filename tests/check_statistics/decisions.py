"""The whole decision rule under peeking: two goals and five guardrails, twenty looks to 20 000 users
(docs/statistics.md#measured)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from chunks import Chunk, Sums
from lines import Line

from evalpipe.analysis.decision import DecisionContext, Limits, MetricEvidence, decide
from evalpipe.models import MetricRole
from evalpipe.stats.sequential import Anytime

MARGIN = 0.05
"""in standard deviations of a user's difference, as are all effects"""
LOOKS = tuple(range(1000, 20_001, 1000))
CORRELATION = 0.3
ROLES = (MetricRole.PRIMARY,) * 2 + (MetricRole.GUARDRAIL,) * 5
MODE = Anytime(n_star=2000)
SITUATION = DecisionContext(alpha=0.05, min_effect_of_interest=0.02)

Scenario = tuple[str, tuple[float, ...], str, str, float, bool, str]
SCENARIOS: list[Scenario] = [
    ("no effect: ships", (0.0,) * 7, "ship", "ship", 0.05, False, ".007"),
    ("no effect: stops for harm", (0.0,) * 7, "keep", "harm", 0.05, False, ".001"),
    ("goals +.05: ships", (0.05,) * 2 + (0.0,) * 5, "ship", "ship", 0.95, True, "1.0"),
    ("goals +.05, a guardrail at -margin: ships", (0.05, 0.05, -MARGIN, 0, 0, 0, 0), "ship", "ship", 0.05, False, ".004"),
    ("goals +.05, a guardrail at -2 margins: harm", (0.05, 0.05, -2 * MARGIN, 0, 0, 0, 0), "keep", "harm", 0.95, True, ".996"),
]  # fmt: skip


def simulate_decisions(chunk: Chunk) -> Sums:
    """How many runs of each scenario end first with what it is about, and after how many users."""
    sums: Sums = {}
    for name, effects, recommendation, rule, *_ in SCENARIOS:
        ends = [_first_ruling(chunk.rng, effects) for _ in range(chunk.n)]
        users = [n for found, why, n in ends if (found, why) == (recommendation, rule)]
        sums[name] = len(users)
        sums[f"{name}: users"] = sum(users)
    return sums


def report_decisions(sums: Sums) -> list[Line]:
    runs = sums["replications"]
    lines = []
    for name, _, _, _, bound, at_least, designed in SCENARIOS:
        hits = sums[name]
        at = f" at {sums[f'{name}: users'] / hits:.0f} users on average" if hits and at_least else ""
        lines.append(
            Line(name=name, seen=hits / runs, designed=designed, bound=bound, at_least=at_least,
                 detail=f"{runs:.0f} runs, a look every 1000 users{at}")
        )  # fmt: skip
    return lines


def _first_ruling(rng: np.random.Generator, effects: tuple[float, ...]) -> tuple[str, str, int]:
    """The first recommendation other than collect_more; the sums of 1000 users' differences are drawn at once."""
    k = len(effects)
    shared = rng.normal(size=(len(LOOKS), 1))
    own = rng.normal(size=(len(LOOKS), k))
    sums = np.cumsum(np.sqrt(1000) * (np.sqrt(CORRELATION) * shared + np.sqrt(1 - CORRELATION) * own), axis=0)
    for row, n in enumerate(LOOKS):
        se = 1 / np.sqrt(n)
        points = sums[row] / n + np.array(effects)
        evidence = [
            MetricEvidence(name=str(j), role=role, margin=MARGIN, status="ok", limits=_limits(float(point), se, n))
            for j, (role, point) in enumerate(zip(ROLES, points, strict=True))
        ]
        ruling = decide(evidence, SITUATION)
        if ruling.rule != "collect_more":
            return ruling.recommendation.value, ruling.rule, n
    return "collect_more", "collect_more", LOOKS[-1]


def _limits(point: float, se: float, n: int) -> Callable[[float], Limits]:
    def limits(alpha: float) -> Limits:
        reach = MODE.critical(alpha, n=n) * se
        return point - reach, point + reach

    return limits
