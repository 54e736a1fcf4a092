"""People's labels in an analysis: the corrected win rate, when it decides, and a judge that favours one arm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from experiment_builders import EXPERIMENT, NOW, both_arms, check, connect, metric, run, verdicts

from evalpipe.analysis.analyze import analyze
from evalpipe.analysis.record import new_record, take_look
from evalpipe.analysis.result import Analysis
from evalpipe.analysis.settings import JudgeInfo, MetricRule, Settings
from evalpipe.stats import ppi

N = 400
QUALITY_ALONE = {
    name: MetricRule(role="diagnostic")
    for name in ("error_rate", "timeout_rate", "p50_latency_ms", "cost_per_request_usd")
}
"""of so few pairs no rate of errors is shown to be within its margin"""
METRICS_BESIDE = ("error_rate", "timeout_rate", "empty_rate", "p50_latency_ms", "cost_per_request_usd")


def _people(seed: int = 1, n: int = N, win: float = 0.6) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(seed).random(n) < win).astype(float)


def _judged(people: np.ndarray[Any, Any], *, right: float = 0.85, favours: float = 0.0, seed: int = 2) -> Any:
    """A judge's verdict: people's with probability `right`; the treatment in a share `favours` of all pairs."""
    rng = np.random.default_rng(seed)
    found = np.where(rng.random(len(people)) < right, people, 1 - people)
    return np.where(rng.random(len(people)) < favours, 1.0, found)


def _labels(people: np.ndarray[Any, Any], chosen: Any, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "request_id": [f"r{i}" for i in chosen],
            "preference": [people[i] for i in chosen],
            "source": "support team",
            **columns,
        }
    )


def _analysis(n_labels: int, *, favours: float = 0.0, looks: Any = "fixed", **settings: Any) -> Analysis:
    people = _people()
    labels = _labels(people, range(n_labels)) if n_labels else None
    return run(both_arms(N), verdicts(_judged(people, favours=favours)), labels=labels, looks=looks, **settings)


def test_without_labels_nothing_is_corrected() -> None:
    found = _analysis(0)
    assert found.corrected is None
    assert "win_rate_corrected" not in [one.name for one in found.metrics]
    assert metric(found, "win_rate").role == "primary"


def test_few_labels_correct_and_do_not_decide() -> None:
    found = _analysis(49)
    assert found.corrected is not None
    assert (found.corrected.n_labels, found.corrected.needed_labels, found.corrected.decides) == (49, 1, False)
    assert metric(found, "win_rate").role == "primary"
    assert "win_rate_corrected" not in [one.name for one in found.metrics]


def test_fifty_labels_decide_by_the_corrected_win_rate() -> None:
    people = _people()
    judged = _judged(people)
    found = run(both_arms(N), verdicts(judged), labels=_labels(people, range(50)))
    # One pair a user, a random sample: PPI++ on the very numbers.
    expected = ppi.ppi_mean(people[:50], judged[:50], judged[50:])
    row, own = metric(found, "win_rate_corrected"), metric(found, "win_rate")
    assert (row.role, own.role) == ("primary", "diagnostic")
    assert row.treatment.value == pytest.approx(expected.estimate.point, abs=1e-12)
    assert row.difference == pytest.approx((expected.estimate.point or 0) - 0.5, abs=1e-12)
    assert (row.ci_low + 0.5, row.ci_high + 0.5) == (
        pytest.approx(expected.estimate.ci_low, abs=1e-12),
        pytest.approx(expected.estimate.ci_high, abs=1e-12),
    )
    assert row.control.value == pytest.approx(1 - row.treatment.value)
    shown = found.corrected
    assert shown is not None and shown.decides and shown.needed_labels == 0
    assert (shown.n_labels, shown.n_users, shown.n_pairs, shown.sampling) == (50, 50, N, "random")
    assert shown.lam == pytest.approx(expected.lam) and shown.gain == pytest.approx(expected.gain)
    assert own.treatment.value == pytest.approx(judged.mean())
    assert check(found, "label_sampling").status == "warn"
    assert any("taken for a random sample" in reason for reason in found.decision.reasons)
    assert "win_rate_corrected" in found.basis.metrics and "win_rate" not in found.basis.metrics


def test_labels_off_are_shown_and_never_decide() -> None:
    found = _analysis(120, label_mode="off")
    assert metric(found, "win_rate").role == "primary"
    assert found.corrected is not None and not found.corrected.decides and found.corrected.n_labels == 120


@pytest.mark.parametrize(("n", "more"), [(0, "label 50 more pairs"), (49, "label 1 more pair")])
def test_required_labels_are_waited_for(n: int, more: str) -> None:
    found = _analysis(n, label_mode="required")
    assert (found.decision.recommendation, found.decision.rule) == ("collect_more", "unmeasured")
    assert more in found.decision.headline
    assert metric(found, "win_rate_corrected").status == "too_few_labels"
    assert "win_rate_corrected" in found.decision.blocking


def test_labels_of_pairs_without_a_verdict_are_counted() -> None:
    people = _people()
    found = run(both_arms(60), labels=_labels(people, range(55)), label_mode="required")
    assert "none is there (55 more have no verdict that counts" in found.decision.headline
    assert found.corrected is not None and (found.corrected.n_labels, found.corrected.n_left_out) == (0, 55)


def test_a_probability_that_is_none_is_not_known() -> None:
    found = run(
        both_arms(N), verdicts(_judged(_people())), labels=_labels(_people(), range(60), probability=[0.0, 1.5] * 30)
    ).corrected
    assert found is not None and (found.sampling, found.n_labels) == ("random", 60)


def test_labels_of_one_user_conclude_nothing() -> None:
    people = _people()
    found = run(
        both_arms(N, n_users=1), verdicts(_judged(people)), labels=_labels(people, range(100)), pairs_per_unit=0
    )
    assert metric(found, "win_rate_corrected").status == "one_cluster"
    assert found.corrected is not None and found.corrected.errors[0].status == "one_cluster"


def test_required_labels_decide_when_they_are_there() -> None:
    assert metric(_analysis(60, label_mode="required"), "win_rate_corrected").status == "ok"


def test_a_win_rate_that_decides_nothing_is_not_replaced() -> None:
    found = _analysis(60, primary=("cost_per_request_usd",))
    assert "win_rate_corrected" not in [one.name for one in found.metrics]


def test_several_labels_of_a_pair_are_one() -> None:
    people = _people()
    first = _labels(people, range(50), labeler="ann")
    second = _labels(1 - people, range(10), labeler="bob")
    found = run(both_arms(N), verdicts(_judged(people)), labels=pd.concat([first, second]))
    assert found.corrected is not None and found.corrected.n_labels == 50
    # The ten pairs on which both disagree are ties: the classical mean would be ½ of each.
    mixed = np.concatenate([np.full(10, 0.5), people[10:50]])
    judged = _judged(people)
    assert found.corrected.value == pytest.approx(ppi.ppi_mean(mixed, judged[:50], judged[50:]).estimate.point)


def test_known_probabilities_undo_an_unequal_draw() -> None:
    people = _people(n=3_000)
    judged = _judged(people)
    rng = np.random.default_rng(5)
    probability = np.where(judged > 0.5, 0.05, 0.25)
    chosen = np.flatnonzero(rng.random(3_000) < probability)
    # As if a random sample, too many of the judge's losses are in it.
    aware = run(
        both_arms(3_000), verdicts(judged), labels=_labels(people, chosen, probability=probability[chosen])
    ).corrected
    blind = run(both_arms(3_000), verdicts(judged), labels=_labels(people, chosen)).corrected
    assert aware is not None and blind is not None
    assert aware.sampling == "known"
    assert aware.ci_low is not None and aware.ci_high is not None and aware.ci_low < people.mean() < aware.ci_high
    labels = np.full(3_000, np.nan)
    labels[chosen] = people[chosen]
    expected = ppi.active_mean(ppi.Items(f=judged, y=labels, probability=probability))
    assert aware.value == pytest.approx(expected.estimate.point)


def test_labels_of_two_samples_are_not_mixed() -> None:
    people = _people()
    labels = _labels(people, range(80), probability=[0.2] * 50 + [None] * 30)
    found = run(both_arms(N), verdicts(_judged(people)), labels=labels).corrected
    assert found is not None
    assert (found.sampling, found.n_labels, found.n_left_out) == ("known", 50, 30)


def test_every_pair_labelled_is_the_labels_own_mean() -> None:
    people = _people()
    found = run(both_arms(N), verdicts(_judged(people)), labels=_labels(people, range(N)))
    row = metric(found, "win_rate_corrected")
    assert row.treatment.value == pytest.approx(people.mean())
    assert row.standard_error == pytest.approx(people.std(ddof=1) / np.sqrt(N))
    assert check(found, "label_sampling").status == "pass"


def test_a_rare_outcome_concludes_nothing() -> None:
    people = np.ones(N)
    people[:4] = 0
    found = run(both_arms(N), verdicts(_judged(people)), labels=_labels(people, range(60)))
    row = metric(found, "win_rate_corrected")
    assert row.status == "too_few_labels"
    assert "4 of 60 labels differ from the commonest one" in row.note
    assert found.corrected is not None and found.corrected.lam == 0
    assert found.decision.recommendation == "collect_more"


def test_a_judge_worse_than_useless_is_not_used_and_it_is_reported() -> None:
    people = _people()
    found = run(both_arms(N), verdicts(1 - _judged(people)), labels=_labels(people, range(100)))
    shown = found.corrected
    assert shown is not None and shown.lam == 0
    assert shown.value == pytest.approx(people[:100].mean())
    assert "no better than chance" in (shown.note or "")


def test_users_with_several_pairs_count_once() -> None:
    """Every user's three pairs alike, all labelled or none: the numbers of one pair a user."""
    people, n_users = _people(n=150), 150
    judged = _judged(people)
    one = run(both_arms(150), verdicts(judged), labels=_labels(people, range(60))).corrected
    three = run(
        both_arms(450, n_users=n_users),
        verdicts(np.tile(judged, 3)),
        labels=_labels(np.tile(people, 3), [k for k in range(450) if k % n_users < 60]),
    ).corrected
    assert one is not None and three is not None
    assert (three.n_labels, three.n_users) == (180, 60)
    assert three.value == pytest.approx(one.value)
    assert three.standard_error == pytest.approx(one.standard_error)


def test_at_any_look_the_interval_is_wider_and_waits_for_fifty_users() -> None:
    fixed, anytime = _analysis(60), _analysis(60, looks="anytime")
    narrow, wide = metric(fixed, "win_rate_corrected"), metric(anytime, "win_rate_corrected")
    assert wide.status == "ok" and "anytime" in wide.method
    assert wide.ci_high - wide.ci_low > narrow.ci_high - narrow.ci_low
    people = _people()
    few_users = run(
        both_arms(N, n_users=40),
        verdicts(_judged(people)),
        labels=_labels(people, range(60)),
        looks="anytime",
    )
    row = metric(few_users, "win_rate_corrected")
    assert row.status == "burn_in" and "40 users with labels, 50 needed" in row.note


def test_a_judge_that_favours_the_treatment_may_not_ship() -> None:
    """The treatment loses by people's word; the judge, which prefers it in half of all pairs whatever they hold, sees a win."""
    people = _people(win=0.45)
    judged = _judged(people, favours=0.5)
    unlabelled = run(both_arms(N), verdicts(judged), metrics=QUALITY_ALONE)
    assert unlabelled.decision.recommendation == "ship"
    found = run(both_arms(N), verdicts(judged), labels=_labels(people, range(40)), metrics=QUALITY_ALONE)
    row = metric(found, "win_rate")
    assert (row.status, row.role) == ("judge_biased", "primary")
    assert found.decision.recommendation == "collect_more"
    assert "label 10 more pairs" in row.note
    assert "favours the treatment's answers by" in found.decision.headline
    assert check(found, "judge_error").status == "warn"
    errors = found.corrected.errors if found.corrected is not None else []
    # The mean of judge − label on the labelled pairs, mirrored for control.
    mean = (judged[:40] - people[:40]).mean()
    assert [(one.arm, one.error) for one in errors] == [
        ("control", pytest.approx(-mean)),
        ("treatment", pytest.approx(mean)),
    ]
    off = run(both_arms(N), verdicts(judged), labels=_labels(people, range(60)), label_mode="off")
    assert metric(off, "win_rate").status == "judge_biased"
    assert 'set labels = "auto"' in metric(off, "win_rate").note
    # Enough labels: the corrected win rate decides, and does not ship what people like less.
    enough = run(both_arms(N), verdicts(judged), labels=_labels(people, range(200)), metrics=QUALITY_ALONE)
    assert metric(enough, "win_rate_corrected").difference < 0.05
    assert enough.decision.recommendation != "ship"


def test_an_unbiased_judge_is_not_blocked() -> None:
    found = _analysis(40)
    assert metric(found, "win_rate").status == "ok"
    assert check(found, "judge_error").status == "pass"


def test_the_switch_is_a_recorded_change_of_what_decides() -> None:
    people = _people(win=0.75)
    exchanges, judgments = both_arms(N), verdicts(_judged(people, right=0.95))
    settings = Settings(judges=(JudgeInfo(name="pairwise"),), metrics=QUALITY_ALONE)

    def look(n_labels: int) -> Analysis:
        labels = _labels(people, range(n_labels))
        with connect(exchanges=exchanges, judgments=judgments, labels=labels) as connection:
            return analyze(connection, experiment=EXPERIMENT, mode="shadow", settings=settings, now=NOW, details=False)

    record = new_record(experiment=EXPERIMENT, mode="shadow", settings=settings, now=NOW.isoformat())
    _, record = take_look(look(20), record, mode="shadow", settings=settings, data="a")
    assert record.decided is not None and record.decided.recommendation == "ship" and record.set_number == 1
    after, record = take_look(look(55), record, mode="shadow", settings=settings, data="b")
    assert record.set_number == 2
    undone = next(one for one in record.changes if one.event == "undone")
    assert undone.why == "what decides changed (people's labels correct the win rate)"
    assert "people's labels correct the win rate" in " ".join(one.why for one in after.decision.changes)
    _, same = take_look(look(80), record, mode="shadow", settings=settings, data="c")
    assert same.set_number == 2  # more labels are no further change


@pytest.mark.parametrize("looks", ["fixed", "anytime"])
def test_policy_utility_weighs_the_corrected_win_rate_with_its_own_error(looks: str) -> None:
    """Where nothing else has a weight, the sum is the corrected difference in margins, and its error that of the labels."""
    nothing = {name: MetricRule(weight=0.0) for name in METRICS_BESIDE}
    found = _analysis(100, looks=looks, policy="utility", metrics=nothing)
    row, decision = metric(found, "win_rate_corrected"), found.decision
    assert decision.utility == pytest.approx(row.difference / 0.03)
    assert decision.utility_low is not None and decision.utility_high is not None
    width = (decision.utility_high - decision.utility_low) * 0.03
    assert width == pytest.approx(row.ci_high - row.ci_low, rel=0.15)  # another number of users in c
    own = metric(found, "win_rate")
    assert width > 1.3 * (own.ci_high - own.ci_low)


def test_what_a_consistency_can_hide() -> None:
    # 70 of 100 pairs alike in both orders, no ties: M = .4; a true difference shows at .4 to √.4 of its size.
    first = np.ones(100)
    second = np.where(np.arange(100) < 70, 1.0, 0.0)
    found = run(both_arms(100), verdicts(first, other_order=second))
    judge = next(one for one in found.judges if one.feeds_decision)
    assert judge.consistency == pytest.approx(0.7)
    assert (judge.shows_at_least, judge.shows_at_most) == (pytest.approx(0.4), pytest.approx(0.4**0.5))
    # A judge that calls everything a tie is consistent and shows nothing.
    ties = run(both_arms(100), verdicts(np.full(100, 0.5)))
    judge = next(one for one in ties.judges if one.feeds_decision)
    assert (judge.consistency, judge.shows_at_least, judge.shows_at_most) == (1.0, 0.0, 0.0)
