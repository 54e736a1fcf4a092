"""What a look fixes, what a recorded decision survives, and that every change stays in the record."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from evalpipe.analysis.record import ExperimentRecord, new_record, read_record, render_record, take_look
from evalpipe.analysis.result import Analysis, ArmValue, Basis, BasisMetric, Decision, Fixed, Funnel, MetricResult
from evalpipe.analysis.settings import Exclusion, Settings
from evalpipe.workspace.analyze import with_alternative

SETTINGS = Settings()
SPAN = {"first_at": "2026-06-01T00:00:00+00:00", "last_at": "2026-06-08T00:00:00+00:00"}


def _basis(**margins: float) -> Basis:
    return Basis(
        metrics={
            name: BasisMetric(role="guardrail", margin=margin, scale="absolute", weight=1.0, measurable=True)
            for name, margin in {"error_rate": 0.005, **margins}.items()
        },
        judge="f1",
    )


def _analysis(
    recommendation: str,
    rule: str,
    *,
    low: float = -0.1,
    high: float = 0.1,
    at: str = "2026-06-09T00:00:00+00:00",
    basis: Basis | None = None,
    fixed: Fixed | None = None,
    **decision: Any,
) -> Analysis:
    goal = MetricResult(
        name="win_rate", label="Win rate", group="quality", unit="ratio", direction="higher", role="primary", scale="absolute",
        control=ArmValue(value=0.4, n=10), treatment=ArmValue(value=0.6, n=10), difference=(low + high) / 2, ci_low=low,
        ci_high=high, confidence_level=0.95, p_value=None, margin=0.03,
    )  # fmt: skip
    said = Decision(recommendation=recommendation, rule=rule, reasons=["Because."], headline=f"{rule}.", **decision)
    return Analysis(
        experiment="e", mode="shadow", generated_at=at, provenance=dict(SPAN), funnel=Funnel(requests=10, pairs=10),
        metrics=[goal], judges=[], checks=[], decision=said, basis=basis or _basis(), fixed=fixed or Fixed(),
    )  # fmt: skip


def _record() -> ExperimentRecord:
    return new_record(experiment="e", mode="shadow", settings=SETTINGS, now="2026-06-01T00:00:00+00:00")


def _look(
    record: ExperimentRecord, analysis: Analysis, data: str, settings: Settings = SETTINGS
) -> tuple[Analysis, ExperimentRecord]:
    return take_look(analysis, record, mode="shadow", settings=settings, data=data)


SHIP = ("ship", "ship", {})
HARM = ("keep", "harm", {})
NO_GAIN = ("keep", "no_gain", {})
MORE = ("collect_more", "collect_more", {})
LOST = ("collect_more", "collect_more", {"losing": ["win_rate"], "harm_level": 0.01})
NOTHING_WON = ("keep", "no_gain", {"losing": ["win_rate"], "harm_level": 0.01})
SETUP = ("invalid", "setup", {})
DATA = ("invalid", "data", {})


@pytest.mark.parametrize(
    ("looks", "in_force"),
    [
        ([MORE, SHIP, MORE], "ship"),
        ([SHIP, NO_GAIN], "ship"),  # no longer winning is no reason
        ([SHIP, HARM], "keep"),
        ([SHIP, HARM, SHIP], "keep"),  # a keep by harm stays
        ([SHIP, SETUP], "invalid"),
        ([SHIP, SETUP, MORE], "collect_more"),
        ([SHIP, DATA, SHIP], "ship"),
        ([SHIP, LOST], "collect_more"),
        ([SHIP, NOTHING_WON], "keep"),
        ([NO_GAIN, MORE], "keep"),
        ([NO_GAIN, SHIP], "ship"),  # gives way, at no cost in error
        ([NO_GAIN, HARM], "keep"),
        ([NO_GAIN, SETUP], "invalid"),
        ([HARM, SETUP], "keep"),
        ([HARM, MORE], "keep"),
    ],
)
def test_what_a_decision_survives(looks: list[tuple[str, str, dict[str, Any]]], in_force: str) -> None:
    record = _record()
    for number, (recommendation, rule, more) in enumerate(looks):
        found, record = _look(record, _analysis(recommendation, rule, **more), f"d{number}")
    assert found.decision.recommendation == in_force


def test_a_small_proven_loss_does_not_undo_a_ship_whose_win_exceeded_its_margin() -> None:
    _, record = _look(_record(), _analysis("ship", "ship", strong_win=True), "d1")
    found, record = _look(record, _analysis("collect_more", "collect_more", **LOST[2]), "d2")
    assert (found.decision.recommendation, record.strong_win) == ("ship", True)


@pytest.mark.parametrize("policy", ["noninferiority", "utility"])
def test_a_small_proven_loss_undoes_only_under_superiority(policy: str) -> None:
    _, record = _look(_record(), _analysis("ship", "ship", policy=policy), "d1")
    found, _ = _look(record, _analysis("collect_more", "collect_more", policy=policy, **LOST[2]), "d2")
    assert found.decision.recommendation == "ship"


def test_the_record_keeps_every_change_with_its_reason_and_numbers() -> None:
    _, record = _look(_record(), _analysis("ship", "ship", low=0.02, high=0.1), "d1")
    undone, record = _look(record, _analysis("collect_more", "collect_more", low=-0.03, high=-0.01, **LOST[2]), "d2")
    assert [(c.event, c.recommendation, c.look) for c in record.changes] == [
        ("reached", "ship", 1),
        ("undone", "ship", 2),
    ]
    assert record.changes[1].intervals == {"win_rate": (-0.03, -0.01)}
    assert record.changes[1].why == "win rate is worse (at the 99 % level)"
    assert (
        undone.decision.reasons[0] == "The earlier decision to ship is undone: win rate is worse (at the 99 % level)."
    )
    assert undone.decision.changes == record.changes


@pytest.mark.parametrize("first", [SHIP, HARM, NO_GAIN])
def test_a_change_of_what_decides_starts_another_set(first: tuple[str, str, dict[str, Any]]) -> None:
    _, record = _look(_record(), _analysis(*first[:2], **first[2]), "d1")
    found, after = _look(record, _analysis(*MORE[:2], basis=_basis(timeout_rate=0.005)), "d2")
    assert (found.decision.recommendation, found.decision.set_number) == ("collect_more", 2)
    assert (after.changes[-1].why, after.changes[-1].look) == ("what decides changed (timeout rate)", 2)
    assert after.n_star == record.n_star
    again, after = _look(after, _analysis(*SHIP[:2], basis=_basis(timeout_rate=0.005)), "d3")
    assert (again.decision.recommendation, again.decision.set_number) == ("ship", 2)


@pytest.mark.parametrize(
    "changed",
    [
        {"confidence_level": 0.9},
        {"policy": "noninferiority"},
        {"min_effect_of_interest": 0.01},
        {"max_requests": 100},
        {"pairs_per_unit": 1},
        {"turns": "all"},
        {"prices": "other"},
    ],
)
def test_settings_that_decide_are_part_of_it(changed: dict[str, Any]) -> None:
    _, record = _look(_record(), _analysis(*SHIP[:2]), "d1")
    found, _ = _look(record, _analysis(*MORE[:2]), "d2", dataclasses.replace(SETTINGS, **changed))
    assert found.decision.recommendation == "collect_more"


def test_a_judge_that_was_not_known_before_its_first_verdict_changes_nothing() -> None:
    unjudged = dataclasses.replace(_basis(), judge=None)
    _, record = _look(_record(), _analysis("collect_more", "unmeasured", basis=unjudged), "d1")
    found, record = _look(record, _analysis(*SHIP[:2]), "d2")
    assert (found.decision.recommendation, record.set_number) == ("ship", 1)
    other = dataclasses.replace(_basis(), judge="f2")
    found, record = _look(record, _analysis(*MORE[:2], basis=other, fixed=Fixed(chosen={"f2": []})), "d3")
    assert (found.decision.recommendation, record.set_number) == ("collect_more", 2)


@pytest.mark.parametrize(
    ("since", "until", "declared", "falls"),
    [
        ("2026-06-03", "2026-06-04", "2026-06-10", True),
        ("2026-06-08", "2026-06-09", "2026-06-10", True),  # from the last request used on
        ("2026-06-09", "2026-06-10", "2026-06-11", False),  # after the data used
        ("2026-05-01", "2026-05-30", "2026-06-10", False),  # before them
        ("2026-06-03", "2026-06-04", "2026-06-05", False),  # declared before the decision
    ],
)
@pytest.mark.parametrize("first", [SHIP, HARM])
def test_an_exclusion_that_touches_the_time_used_undoes_it(
    since: str, until: str, declared: str, falls: bool, first: tuple[str, str, dict[str, Any]]
) -> None:
    _, record = _look(_record(), _analysis(*first[:2]), "d1")
    out = Exclusion(since=since, until=until, why="wrong key", declared_at=declared)
    found, record = _look(record, _analysis(*MORE[:2]), "d2", dataclasses.replace(SETTINGS, exclusions=(out,)))
    assert (found.decision.recommendation == "collect_more") is falls
    assert record.exclusions == [out]


def test_a_record_survives_its_file() -> None:
    fixed = Fixed(turns="first", head={"h": 2}, chosen={"f1": ["r1", "r2"]})
    _, record = _look(_record(), _analysis(*SHIP[:2], fixed=fixed), "d1")
    assert read_record(render_record(record)) == record
    assert (record.turns, record.head, record.chosen) == ("first", {"h": 2}, {"f1": ["r1", "r2"]})


def test_a_record_of_before_is_read_and_its_decision_is_another_sets() -> None:
    old = b"""{"experiment": "e", "created_at": "2026-06-01T00:00:00+00:00", "n_star": {"win_rate": 500.0},
      "confidence_level": 0.95, "rules": "0123456789abcdef", "n_looks": 3, "last_look_at": "2026-06-02T00:00:00+00:00",
      "last_data": "d0", "decided": {"recommendation": "ship", "rule": "ship", "headline": "Ship.", "at":
      "2026-06-02T00:00:00+00:00", "look": 3, "intervals": {"win_rate": [0.01, 0.1]}}, "planned": true,
      "judged_until": {}, "schema_version": 1}"""
    found, record = _look(read_record(old), _analysis(*MORE[:2]), "d1")
    assert (found.decision.recommendation, record.n_looks, record.n_star) == ("collect_more", 4, {"win_rate": 500.0})
    (undone,) = record.changes
    assert (undone.event, undone.look, undone.why) == (
        "undone", 4, "what decides changed (the record is of an earlier version of the rules)",
    )  # fmt: skip


def test_a_change_of_what_decides_is_named_by_labels_and_dated_with_its_look() -> None:
    _, record = _look(_record(), _analysis(*SHIP[:2]), "d1")
    goal = BasisMetric(role="primary", margin=0.05, scale="absolute", weight=1.0, measurable=True)
    wider = dataclasses.replace(_basis(), metrics={**_basis().metrics, "win_rate": goal}, judge="f2")
    _, record = _look(record, _analysis(*NO_GAIN[:2], basis=wider), "d2")
    assert [(one.event, one.look, one.set_number) for one in record.changes] == [
        ("reached", 1, 1), ("undone", 2, 2), ("reached", 2, 2),
    ]  # fmt: skip
    assert record.changes[1].why == "what decides changed (win rate and the judge)"
    _, record = _look(record, _analysis(*MORE[:2], basis=wider), "d3", dataclasses.replace(SETTINGS, prices="other"))
    assert record.changes[-1].why == "what decides changed (the settings of the decision or the prices)"


def test_the_same_data_is_not_another_look() -> None:
    record = _record()
    for data, n in (("d1", 1), ("d1", 1), ("d2", 2)):
        _, record = _look(record, _analysis(*MORE[:2]), data)
        assert record.n_looks == n


def test_the_report_counts_the_look_it_is() -> None:
    analysis = dataclasses.replace(_analysis(*SHIP[:2]), provenance={"n_looks": 0})
    found, record = _look(_record(), analysis, "d1")
    assert found.provenance["n_looks"] == found.decision.decided_look == record.n_looks == 1


def test_the_decision_in_force_names_its_look() -> None:
    _, record = _look(_record(), _analysis(*MORE[:2], low=-1, high=1), "d1")
    first, record = _look(record, _analysis(*SHIP[:2], low=0.02, high=0.1), "d2")
    assert (first.decision.decided_look, first.decision.recommendation) == (2, "ship")
    later, record = _look(record, _analysis(*MORE[:2], low=-0.01, high=0.08), "d3")
    assert (later.decision.recommendation, later.decision.decided_look) == ("ship", 2)
    assert later.decision.reasons[0].startswith("This was decided at look 2")
    # What is quoted by itself does not pass the numbers of that day for today's.
    assert (
        later.decision.headline
        == f"{first.decision.headline.rstrip('.')} (numbers of look 2, {first.decision.decided_at})."
    )
    assert [check.status for check in later.checks if check.name == "nonstationary"] == ["pass"]
    moved, _ = _look(record, _analysis(*MORE[:2], low=-0.2, high=-0.1), "d4")
    assert [check.status for check in moved.checks if check.name == "nonstationary"] == ["warn"]


def test_a_single_planned_look_has_nothing_to_keep() -> None:
    assert _look(_record(), _analysis(*SHIP[:2], looks="fixed"), "d1")[1].decided is None


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ("collect_more", "the decision is the same with it."),
        ("keep", "with it the decision would be: keep control."),
    ],
)
def test_the_decision_with_an_excluded_time_is_named_where_it_differs(other: str, words: str) -> None:
    found = with_alternative(_analysis("collect_more", "collect_more"), _analysis(other, other))
    assert found.decision.headline.endswith(f"which is outside the error guarantee; {words}")
    assert found.decision.without_exclusions is not None
    assert found.decision.without_exclusions.recommendation == other
