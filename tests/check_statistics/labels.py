"""People's labels: does the corrected win rate cover the truth where the judge is biased, at one look and at all looks, and is a
bias found?

Users differ in how often people prefer the treatment (Beta, mean `truth`); each has one to three pairs. A judge asked in both
orders gives people's verdict with probability .8 in each, else the other one, and then turns some verdicts for control into
verdicts for the treatment: so many that its win rate is `bias` above the truth on average.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
from chunks import Chunk, Sums
from experiments import Experiment, Model, Verdicts, answers, traffic
from lines import Line, at_least, at_most, standard_error, type_one_bound
from through_analyze import DEFAULTS, NAME, START, row, stored

from evalpipe.analysis.analyze import analyze
from evalpipe.analysis.corrected import LabelledPairs, correct, judge_error
from evalpipe.analysis.settings import LookPlan
from evalpipe.stats.ppi import draw_probabilities
from evalpipe.stats.winrate import win_rate
from evalpipe.store.schema import BY_NAME

ALPHA = 0.05
USERS = 400
RIGHT = 0.8
SIZES = (20, 50, 100, 200)
BIASES = (0.0, 0.08, 0.15)
LOOKS = tuple(range(50, 401, 10))
ONE_LOOK = LookPlan(mode="fixed", alpha=ALPHA, paired=True, n_star={})
ANY_LOOK = LookPlan(mode="anytime", alpha=ALPHA, paired=True, n_star={})
FIXED = replace(DEFAULTS, looks="fixed")
Array = np.ndarray


def simulate_coverage_of_labels(chunk: Chunk, *, bias: float, truth: float) -> Sums:
    """Intervals that hold the truth, and their widths, for each number of labels: a random sample of the pairs, a draw with
    unequal probabilities, the labels alone, and the judge alone; and judges found to be biased."""
    rng, sums = chunk.rng, {}
    for _ in range(chunk.n):
        users, people, judged, disagree = _judged_pairs(rng, truth, bias)
        own = _by_the_judge(users, judged)
        for n in SIZES:
            pairs = _labelled(users, judged, people, _random(rng, len(people), n))
            uneven = draw_probabilities(np.where(disagree, 0.5, 0.3), n)
            drawn = _labelled(users, judged, people, rng.random(len(people)) < uneven, probability=uneven)
            found = {
                "random": correct(pairs, ONE_LOOK, ALPHA).estimate,
                "known": correct(drawn, ONE_LOOK, ALPHA).estimate,
                "labels alone": correct(pairs, ONE_LOOK, ALPHA, lam=0.0).estimate,
                "judge alone": own,
            }
            for name, estimate in found.items():
                low, high = estimate.ci_low, estimate.ci_high
                assert low is not None and high is not None
                _add(sums, f"hit {name} {n}", low <= truth <= high)
                _add(sums, f"width {name} {n}", high - low)
            errors = judge_error(pairs, alpha=ALPHA)
            _add(sums, f"biased {n}", bool(errors) and errors[0].biased)
    return sums


def report_coverage_of_labels(sums: Sums, *, bias: float, truth: float) -> list[Line]:
    runs, lines = sums["replications"], []
    for n in SIZES:
        for name in ("random", "known", "labels alone", "judge alone"):
            seen, width = sums[f"hit {name} {n}"] / runs, sums[f"width {name} {n}"] / runs
            checked = name in {"random", "known"}
            title = f"{n} labels, judge {100 * bias:.0f} points biased, {name}: coverage"
            detail = f"width {100 * width:.1f} points, {runs:.0f} runs"
            lines.append(
                Line(
                    name=title,
                    seen=seen,
                    designed=".93-.97" if checked else "-",
                    bound=at_least(0.93, runs) if checked else None,
                    at_least=True,
                    detail=detail,
                )
            )
            if name == "random":
                lines.append(
                    Line(name=f"{title}, at most", seen=seen, designed=".97", bound=at_most(0.97, runs), detail=detail)
                )
        found = sums[f"biased {n}"] / runs
        lines.append(
            Line(
                name=f"{n} labels, judge {100 * bias:.0f} points biased: found to be biased",
                seen=found,
                designed="-" if bias else ".05",
                # Of few labels the t interval of errors that are mostly 0 errs a little more often.
                bound=None if bias else at_most(0.05 if n >= 50 else 0.08, runs),
                detail=f"{runs:.0f} runs, standard error {standard_error(found, runs):.3f}",
            )
        )
    return lines


def simulate_looks_at_labels(chunk: Chunk, *, bias: float, growing: bool, known: bool) -> Sums:
    """Runs in which the interval leaves out the truth of ½ at some look, while labels come in ten at a time.

    `growing`: users come in, too, two for each label; else all pairs were judged before.
    """
    rng, sums = chunk.rng, {"anytime": 0.0, "one look each time": 0.0, "width at 100": 0.0}
    for _ in range(chunk.n):
        users, people, judged, disagree = _judged_pairs(rng, 0.5, bias, n_users=800 if growing else USERS)
        uneven = draw_probabilities(np.where(disagree, 0.5, 0.3), LOOKS[-1])
        pool = np.flatnonzero(rng.random(len(people)) < uneven) if known else np.arange(len(people))
        order = rng.permutation(pool)  # in which they are labelled
        outside = {"anytime": False, "one look each time": False}
        for n in LOOKS:
            seen = users < (2 * n if growing else len(people))
            chosen = np.zeros(len(people), bool)
            chosen[order[seen[order]][:n]] = True
            pairs = _labelled(
                users[seen],
                judged[seen],
                people[seen],
                chosen[seen],
                probability=uneven[seen] if known else None,
                rng_order=rng.permutation(users.max() + 1),
            )
            for name, look in (("anytime", ANY_LOOK), ("one look each time", ONE_LOOK)):
                estimate = correct(pairs, look, ALPHA).estimate
                if estimate.status != "ok":
                    continue
                low, high = estimate.ci_low, estimate.ci_high
                assert low is not None and high is not None
                outside[name] |= not low <= 0.5 <= high
                if name == "anytime" and n == 100:
                    sums["width at 100"] += high - low
        for name, was in outside.items():
            sums[name] += was
    return sums


def report_looks_at_labels(sums: Sums, *, bias: float, growing: bool, known: bool) -> list[Line]:
    runs = sums["replications"]
    how = ("known probabilities" if known else "random sample") + (", pairs coming in" if growing else "")
    detail = f"{runs:.0f} runs, {len(LOOKS)} looks, width at 100 labels {100 * sums['width at 100'] / runs:.1f} points"
    return [
        Line(
            name=f"labels to {LOOKS[-1]}, judge {100 * bias:.0f} points biased, {how}: false decisions",
            seen=sums["anytime"] / runs,
            designed=".02-.03",
            bound=type_one_bound(runs),
            detail=detail,
        ),
        Line(
            name="… a plain interval at each look",
            seen=sums["one look each time"] / runs,
            designed="-",
            bound=None,
            detail=detail,
        ),
    ]


def simulate_labels_through_analyze(chunk: Chunk, *, bias: float, n_labels: int) -> Sums:
    """Equal arms (truth ½) and a biased judge through `analyze`, one look: the goal called better, with labels and without."""
    rng = chunk.rng
    sums: Sums = {
        "better with labels": 0.0,
        "covered": 0.0,
        "better without": 0.0,
        "decides": 0.0,
        "blocked at 40": 0.0,
    }
    for _ in range(chunk.n):
        users, people, _, _, orders = _judged_pairs(rng, 0.5, bias, n_users=200, orders=True)
        asked = traffic(rng, n=len(people), days=7.0, user=users)
        model = Model(error_rate=0.0, timeout_rate=0.0)
        experiment = Experiment(
            asked=asked,
            control=answers(rng, asked, model),
            treatment=answers(rng, asked, model),
            verdicts=Verdicts(position=np.arange(len(people)), treatment_first=orders[0], control_first=orders[1]),
        )
        chosen = rng.permutation(len(people))
        for n in (n_labels, 40, 0):
            with stored(experiment) as connection:
                if n:
                    connection.register("given", _labels_table(people, chosen[:n]))
                    connection.execute(f"INSERT INTO all_labels SELECT *, '{NAME}' AS experiment FROM given")
                found = analyze(connection, experiment=NAME, mode="shadow", settings=FIXED, now=START, details=False)
            if n == n_labels:
                goal = row(found, "win_rate_corrected")
                sums["decides"] += goal.role == "primary"
                sums["better with labels"] += goal.finding == "better"
                sums["covered"] += (goal.ci_low or 0) <= 0 <= (goal.ci_high or 0)
            elif n:
                sums["blocked at 40"] += row(found, "win_rate").status == "judge_biased"
            else:
                sums["better without"] += row(found, "win_rate").finding == "better"
    return sums


def report_labels_through_analyze(sums: Sums, *, bias: float, n_labels: int) -> list[Line]:
    runs = sums["replications"]
    title = f"equal arms through analyze, judge {100 * bias:.0f} points biased"
    detail = f"{runs:.0f} runs"
    return [
        Line(
            name=f"{title}, {n_labels} labels: called better",
            seen=sums["better with labels"] / runs,
            designed=".025",
            bound=at_most(0.025, runs),
            detail=detail,
        ),
        Line(
            name=f"{title}, {n_labels} labels: coverage",
            seen=sums["covered"] / runs,
            designed=".95",
            bound=at_least(0.93, runs),
            at_least=True,
            detail=f"{detail}; the corrected rate decides in {sums['decides'] / runs:.0%}",
        ),
        Line(
            name=f"{title}, 40 labels: its own win rate may not decide",
            seen=sums["blocked at 40"] / runs,
            designed="-",
            bound=None,
            detail=detail,
        ),
        Line(
            name=f"{title}, no labels: called better by the judge alone",
            seen=sums["better without"] / runs,
            designed="-",
            bound=None,
            detail=detail,
        ),
    ]


def _judged_pairs(
    rng: np.random.Generator, truth: float, bias: float, *, n_users: int = USERS, orders: bool = False
) -> tuple:
    """(users, people's preferences, the judge's, whether its orders disagree[, its verdict in each order]) of every pair."""
    users = np.repeat(np.arange(n_users), rng.integers(1, 4, n_users))
    likes = rng.beta(8 * truth, 8 * (1 - truth), n_users)
    people = (rng.random(len(users)) < likes[users]).astype(float)
    plain = (1 - RIGHT) + (2 * RIGHT - 1) * truth  # the judge's win rate before it is biased
    turned = (truth + bias - plain) / (1 - plain)
    both = []
    for _ in range(2):
        verdict = np.where(rng.random(len(users)) < RIGHT, people, 1 - people)
        both.append(np.where(rng.random(len(users)) < turned, 1.0, verdict))
    found = (users, people, sum(both) / 2, both[0] != both[1])
    return (*found, both) if orders else found


def _labelled(
    users: Array,
    judged: Array,
    people: Array,
    chosen: Array,
    *,
    probability: Array | None = None,
    rng_order: Array | None = None,
) -> LabelledPairs:
    """`rng_order`: places of the users in an order that has nothing to do with them, as the analysis has it."""
    place = users if rng_order is None else np.unique(rng_order[users], return_inverse=True)[1]
    order = np.argsort(place, kind="stable")
    given = np.full(len(users), np.nan) if probability is None else probability
    return LabelledPairs(
        users=np.asarray(place[order], np.int64),
        units=np.arange(int(place.max()) + 1, dtype=np.uint64),
        judged=judged[order],
        labels=np.where(chosen, people, np.nan)[order],
        probability=np.where(chosen, given, np.nan)[order],
        sources=("page",),
        known=probability is not None,
        n_left_out=0,
    )


def _random(rng: np.random.Generator, n_pairs: int, n: int) -> Array:
    chosen = np.zeros(n_pairs, bool)
    chosen[rng.choice(n_pairs, n, replace=False)] = True
    return chosen


def _by_the_judge(users: Array, judged: Array):
    means = np.bincount(users, weights=judged) / np.bincount(users)
    return win_rate(means, np.ones(len(means)), alpha=ALPHA)


def _labels_table(people: Array, chosen: Array) -> pa.Table:
    rows = [{"request_id": f"r{i}", "preference": people[i], "source": "page"} for i in chosen]
    return pa.Table.from_pylist(rows, schema=BY_NAME["labels"].schema)


def _add(sums: Sums, name: str, value: float) -> None:
    before = sums.get(name, 0.0)
    assert not isinstance(before, list)
    sums[name] = before + float(value)
