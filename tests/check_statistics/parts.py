"""The parts of `make check-statistics`, in the order they are run and printed."""

from __future__ import annotations

import math
from collections.abc import Callable

from canary_cost import report_canary_cost, simulate_canary_cost
from chunks import Part, Sums
from coverage import report_coverage, simulate_coverage
from decisions import report_decisions, simulate_decisions
from ends import TRUTHS, report_ends, simulate_ends
from equal_arms import SHAPES, report_incidents, report_shape, simulate_incidents, simulate_shape
from event_rates import SHAPES as EVENTS
from event_rates import report_event_rates, simulate_event_rates
from few_users import report_few_users, simulate_few_users
from identical_arms import ENLARGED, report_identical_arms, simulate_identical_arms
from judged_pairs import report_judged_pairs, simulate_judged_pairs
from labels import (
    BIASES,
    report_coverage_of_labels,
    report_labels_through_analyze,
    report_looks_at_labels,
    simulate_coverage_of_labels,
    simulate_labels_through_analyze,
    simulate_looks_at_labels,
)
from lines import Line
from missing_usage import (
    report_cheaper,
    report_dearest,
    report_half_streams,
    simulate_cheaper,
    simulate_dearest,
    simulate_half_streams,
)
from outcomes import (
    report_equal,
    report_files,
    report_loss_after_ship,
    report_no_ship,
    simulate_cheaper_ab,
    simulate_equal,
    simulate_files,
    simulate_loss_after_ship,
    simulate_nothing_judged,
)
from pairs_per_user import SHAPES as RETURNING
from pairs_per_user import report_pairs_per_user, simulate_pairs_per_user
from random_reports import report_random_reports, simulate_random_reports
from segments import SEGMENTS, report_segments, simulate_segments
from tail import report_p99, simulate_p99
from type_one import (
    COST_CAP,
    report_canary_error,
    report_mean,
    report_paired_error,
    report_win_rate,
    simulate_canary_error,
    simulate_mean,
    simulate_paired_error,
    simulate_win_rate,
)

ANALYSIS = ("analysis", "stats")
"""what the parts depend on that go through `analyze`"""


def _mean(name: str, draw: str, designed: str, seed: int) -> Part:
    return Part(
        name=f"peeking-{name.replace(' ', '-').replace(',', '')}",
        simulate=simulate_mean,
        report=report_mean,
        replications=2000,
        per_chunk=250,
        seed=seed,
        parameters={"draw": draw, "title": name, "designed": designed},
    )


def _canary_cost(title: str, designed: str, cap: float, seed: int) -> Part:
    return Part(
        name=f"peeking-canary-cost-{title.replace(' ', '-')}",
        simulate=simulate_canary_cost,
        report=report_canary_cost,
        replications=1000,
        per_chunk=40,
        seed=seed,
        parameters={"title": title, "designed": designed, "cap": cap},
    )


def _segments(name: str, title: str, n_true: int) -> Part:
    return Part(
        name=f"segments-{name}",
        simulate=simulate_segments,
        report=report_segments,
        replications=1000,
        per_chunk=250,
        seed=14,
        parameters={"title": title, "n_true": n_true},
    )


def _identical_arms(name: str, title: str, copies: int, per_chunk: int) -> Part:
    return Part(
        name=f"identical-arms-{name}",
        simulate=simulate_identical_arms,
        report=report_identical_arms,
        replications=20,
        per_chunk=per_chunk,
        seed=0,
        parameters={"title": title, "copies": copies},
        packages=("",),
    )


def _equal_arms(shape: str, seed: int) -> Part:
    return Part(
        name=f"equal-arms-{shape.replace(' ', '-')}",
        simulate=simulate_shape,
        report=report_shape,
        replications=200,
        per_chunk=4,
        seed=seed,
        parameters={"shape": shape},
        packages=ANALYSIS,
    )


def _incidents(
    name: str,
    title: str,
    days: float,
    hours: float,
    failing: float,
    *,
    shared: bool = False,
    most: float = 0.05,
    harm: float = 0.01,
) -> Part:
    """`most` and `harm`: figures of the table that the rules come from (hours and days as clusters, too)."""
    return Part(
        name=f"incidents-{name}",
        simulate=simulate_incidents,
        report=report_incidents,
        replications=200,
        per_chunk=4,
        seed=30,
        parameters={
            "title": title,
            "share_of_days": days,
            "hours": hours,
            "failing": failing,
            "shared": shared,
            "most": most,
            "harm": harm,
        },
        packages=ANALYSIS,
    )


def _pairs_per_user(number: int, shape: str) -> Part:
    return Part(
        name=f"pairs-per-user-{number}",
        simulate=simulate_pairs_per_user,
        report=report_pairs_per_user,
        replications=4000,
        per_chunk=500,
        seed=40 + number,
        parameters={"shape": shape},
    )


def _event_rates(number: int, shape: str) -> Part:
    return Part(
        name=f"event-rates-{number}",
        simulate=simulate_event_rates,
        report=report_event_rates,
        replications=800,
        per_chunk=200,
        seed=50 + number,
        parameters={"shape": shape},
    )


def _ends(number: int, truth: str) -> Part:
    return Part(
        name=f"ends-{number}",
        simulate=simulate_ends,
        report=report_ends,
        replications=600,
        per_chunk=300,
        seed=60 + number,
        parameters={"truth": truth},
        packages=ANALYSIS,
    )


def _missing(name: str, simulate: Callable[..., Sums], report: Callable[..., list[Line]], seed: int) -> list[Part]:
    return [
        Part(
            name=f"usage-{name}-{mode}",
            simulate=simulate,
            report=report,
            replications=200,
            per_chunk=20,
            seed=seed,
            parameters={"mode": mode},
            packages=ANALYSIS,
        )
        for mode in ("shadow", "ab")
    ]


def _coverage(mode: str, looks: str) -> Part:
    return Part(
        name=f"coverage-{mode}-{looks}",
        simulate=simulate_coverage,
        report=report_coverage,
        replications=1000,
        per_chunk=20,
        seed=80,
        parameters={"mode": mode, "looks": looks},
        packages=ANALYSIS,
    )


def _outcome(
    name: str,
    simulate: Callable[..., Sums],
    report: Callable[..., list[Line]],
    replications: int,
    per_chunk: int,
    **parameters: float | str,
) -> Part:
    return Part(
        name=f"outcome-{name}",
        simulate=simulate,
        report=report,
        replications=replications,
        per_chunk=per_chunk,
        seed=90,
        parameters=parameters,
        packages=ANALYSIS,
    )


STATISTICS = [
    Part(name="peeking-p99", simulate=simulate_p99, report=report_p99, replications=1000, per_chunk=250, seed=7),
    Part(
        name="few-users", simulate=simulate_few_users, report=report_few_users, replications=4000, per_chunk=500, seed=8
    ),
    Part(
        name="peeking-win-rate",
        simulate=simulate_win_rate,
        report=report_win_rate,
        replications=2000,
        per_chunk=250,
        seed=5,
    ),
    Part(
        name="peeking-errors-paired",
        simulate=simulate_paired_error,
        report=report_paired_error,
        replications=2000,
        per_chunk=250,
        seed=4,
    ),
    Part(
        name="peeking-errors-canary",
        simulate=simulate_canary_error,
        report=report_canary_error,
        replications=2000,
        per_chunk=500,
        seed=6,
    ),
    _mean("mean latency, paired", "latency", ".027", 2),
    _mean("skewed cost, capped", "capped cost", ".025", 3),
    _mean("judge score 0-10, paired", "score", ".041", 1),
    _mean("skewed cost, as billed", "cost", "-", 12),
    _canary_cost("capped", ".025", COST_CAP, 11),
    _canary_cost("as billed", ".056", math.inf, 13),
    _segments("none", "none differs", 0),
    _segments("some", "a quarter differ by .15 sd", SEGMENTS // 4),
    Part(
        name="judged-pairs",
        simulate=simulate_judged_pairs,
        report=report_judged_pairs,
        replications=2000,
        per_chunk=250,
        seed=9,
    ),
    *(_pairs_per_user(number, shape) for number, shape in enumerate(RETURNING, start=1)),
    *(_event_rates(number, shape) for number, shape in enumerate(EVENTS, start=1)),
]
"""methods of `evalpipe.stats` alone"""

DECISIONS = [
    Part(
        name="rules-seven-metrics",
        simulate=simulate_decisions,
        report=report_decisions,
        replications=2000,
        per_chunk=100,
        seed=10,
        packages=ANALYSIS,
    ),
    *(_ends(number, truth) for number, truth in enumerate(TRUTHS, start=1)),
    _outcome("nothing-judged", simulate_nothing_judged, report_no_ship, 200, 10, title="alike, nothing judged"),
    _outcome(
        "cheaper-ab", simulate_cheaper_ab, report_no_ship, 200, 10, title="A/B, 30 % cheaper, nothing judged or rated"
    ),
    _outcome("equal-cheaper", simulate_equal, report_equal, 200, 4, title="equal and 30 % cheaper", price=0.7),
    _outcome("equal", simulate_equal, report_equal, 200, 4, title="equal in everything", price=1.0),
    _outcome("loss-after-ship", simulate_loss_after_ship, report_loss_after_ship, 20, 2),
    _outcome("files", simulate_files, report_files, 50, 10),
    *_missing("half-streams", simulate_half_streams, report_half_streams, 70),
    *_missing("cheaper", simulate_cheaper, report_cheaper, 71),
    *_missing("dearest", simulate_dearest, report_dearest, 72),
    Part(
        name="random-reports",
        simulate=simulate_random_reports,
        report=report_random_reports,
        replications=1000,
        per_chunk=20,
        seed=73,
        packages=ANALYSIS,
    ),
    _identical_arms("demo", "the demo's data", 1, 5),
    _identical_arms("enlarged", f"{ENLARGED} times the demo's users", ENLARGED, 1),
]

EQUAL_ARMS = [
    *(_equal_arms(shape, 20 + number) for number, shape in enumerate(SHAPES)),
    _incidents("none", "no incidents", 0.0, 1.0, 0.0),
    _incidents("hour", "incidents 7 % of days, 1 h, all fail", 0.07, 1.0, 1.0),
    _incidents("three-hours", "incidents 7 % of days, 3 h, all fail", 0.07, 3.0, 1.0),
    _incidents("half", "incidents 15 % of days, 3 h, half fail", 0.15, 3.0, 0.5, most=0.05),
    _incidents("long", "incidents 15 % of days, 8 h, a fifth fails", 0.15, 8.0, 0.2, most=0.19, harm=0.06),
    _incidents("shared", "incidents of both arms at once, 15 %, 3 h, half fail", 0.15, 3.0, 0.5, shared=True),
]
"""A/A through the store's columns and `analyze`"""

COVERAGE = [_coverage("shadow", "fixed"), _coverage("shadow", "anytime"), _coverage("ab", "anytime")]

LABELS = [
    *(
        Part(
            name=f"labels-coverage-{round(100 * bias)}",
            simulate=simulate_coverage_of_labels,
            report=report_coverage_of_labels,
            replications=2000,
            per_chunk=250,
            seed=80 + number,
            parameters={"bias": bias, "truth": 0.55},
            packages=ANALYSIS,
        )
        for number, bias in enumerate(BIASES)
    ),
    *(
        Part(
            name=f"labels-looks-{round(100 * bias)}{'-growing' if growing else ''}{'-known' if known else ''}",
            simulate=simulate_looks_at_labels,
            report=report_looks_at_labels,
            replications=1000,
            per_chunk=100,
            seed=90 + number,
            parameters={"bias": bias, "growing": growing, "known": known},
            packages=ANALYSIS,
        )
        for number, (bias, growing, known) in enumerate(
            [(0.0, False, False), (0.08, False, False), (0.15, False, False), (0.08, True, False), (0.08, True, True)]
        )
    ),
    Part(
        name="labels-through-analyze",
        simulate=simulate_labels_through_analyze,
        report=report_labels_through_analyze,
        replications=200,
        per_chunk=20,
        seed=99,
        parameters={"bias": 0.08, "n_labels": 100},
        packages=ANALYSIS,
    ),
]
"""People's labels"""

PARTS = [*STATISTICS, *LABELS, *DECISIONS, *COVERAGE, *EQUAL_ARMS]
