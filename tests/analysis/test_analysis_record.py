"""What is fixed at the first look stays fixed, and a decision once reached stays marked with its look."""

from __future__ import annotations

import dataclasses

from evalpipe.analysis.record import ExperimentRecord, new_record, read_record, render_record, take_look
from evalpipe.analysis.result import Analysis, ArmValue, Decision, Funnel, MetricResult
from evalpipe.analysis.settings import MetricRule, Settings

SETTINGS = Settings()


def _analysis(
    recommendation: str, rule: str, *, low: float, high: float, at: str = "2026-06-01T00:00:00+00:00"
) -> Analysis:
    goal = MetricResult(
        name="win_rate", label="Win rate", group="quality", unit="ratio", direction="higher", role="primary", scale="absolute",
        control=ArmValue(value=0.4, n=10), treatment=ArmValue(value=0.6, n=10), difference=(low + high) / 2, ci_low=low,
        ci_high=high, confidence_level=0.95, p_value=None, margin=0.03,
    )  # fmt: skip
    return Analysis(
        experiment="e", mode="shadow", generated_at=at, provenance={}, funnel=Funnel(requests=10, pairs=10), metrics=[goal],
        judges=[], checks=[], decision=Decision(recommendation=recommendation, rule=rule, reasons=["Because."], headline="So."),
    )  # fmt: skip


def _record() -> ExperimentRecord:
    return new_record(experiment="e", mode="shadow", settings=SETTINGS, now="2026-06-01T00:00:00+00:00")


def _look(
    record: ExperimentRecord, analysis: Analysis, data: str, settings: Settings = SETTINGS
) -> tuple[Analysis, ExperimentRecord]:
    return take_look(analysis, record, mode="shadow", settings=settings, data=data)


def test_a_record_survives_its_file() -> None:
    _, record = _look(_record(), _analysis("ship", "ship", low=0.05, high=0.1), "d1")
    assert read_record(render_record(record)) == record


def test_the_same_data_is_not_another_look() -> None:
    record = _record()
    for data, n in (("d1", 1), ("d1", 1), ("d2", 2)):
        _, record = _look(record, _analysis("collect_more", "collect_more", low=-1, high=1), data)
        assert record.n_looks == n


def test_the_report_counts_the_look_it_is() -> None:
    analysis = dataclasses.replace(_analysis("ship", "ship", low=0.05, high=0.1), provenance={"n_looks": 0})
    found, record = _look(_record(), analysis, "d1")
    assert found.provenance["n_looks"] == found.decision.decided_look == record.n_looks == 1


def test_the_first_decision_stands_and_names_its_look() -> None:
    _, record = _look(_record(), _analysis("collect_more", "collect_more", low=-1, high=1), "d1")
    first, record = _look(record, _analysis("ship", "ship", low=0.02, high=0.1), "d2")
    assert (first.decision.decided_look, first.decision.recommendation) == (2, "ship")
    later, record = _look(record, _analysis("collect_more", "collect_more", low=-0.01, high=0.08), "d3")
    assert (later.decision.recommendation, later.decision.decided_look) == ("ship", 2)
    assert later.decision.reasons[0].startswith("This was decided at look 2")
    assert [check.status for check in later.checks if check.name == "nonstationary"] == ["pass"]


def test_proven_harm_outranks_an_earlier_ship() -> None:
    _, record = _look(_record(), _analysis("ship", "ship", low=0.02, high=0.1), "d1")
    harmed, _ = _look(record, _analysis("keep", "harm", low=-0.2, high=-0.1), "d2")
    assert harmed.decision.recommendation == "keep"
    assert "this outranks it" in harmed.decision.reasons[-1]
    assert [check.status for check in harmed.checks if check.name == "nonstationary"] == ["warn"]


def test_other_rules_start_anew_but_keep_the_plan() -> None:
    _, record = _look(_record(), _analysis("ship", "ship", low=0.02, high=0.1), "d1")
    other = dataclasses.replace(SETTINGS, metrics={"error_rate": MetricRule(margin=0.5)})
    found, after = _look(record, _analysis("collect_more", "collect_more", low=-1, high=1), "d2", other)
    assert (found.decision.recommendation, after.decided) == ("collect_more", None)
    assert after.n_star == record.n_star


def test_a_single_planned_look_has_nothing_to_keep() -> None:
    analysis = _analysis("ship", "ship", low=0.02, high=0.1)
    fixed = dataclasses.replace(analysis, decision=dataclasses.replace(analysis.decision, looks="fixed"))
    assert _look(_record(), fixed, "d1")[1].decided is None
