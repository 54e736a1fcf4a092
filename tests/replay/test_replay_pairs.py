"""What replayed answers stand for: in pairs, in what is measured, against control itself, and for several candidates."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from replay_harness import NOON, TREATMENT, logged, query, workspace, write

from evalpipe.analysis.result import Analysis, MetricResult
from evalpipe.models import Arm, Exchange, Role
from evalpipe.report.compare import comparison_markdown, several_candidates
from evalpipe.report.text import escape_markdown
from evalpipe.workspace.analyze import analyze_workspace
from evalpipe.workspace.paths import Workspace

LATER = NOON + timedelta(days=30)


def replayed(row: Exchange, arm: Arm, *, text: str | None = None, **columns: Any) -> Exchange:
    """The answer an arm gave to a logged request a month later."""
    values = {"text": f"{arm.value}'s {row.text}" if text is None else text, "started_at": LATER, **columns}
    model = TREATMENT if arm is Arm.TREATMENT else row.model
    return replace(row, arm=arm, role=Role.REPLAY, model=model, model_requested=model, **values)


def metrics(found: Analysis) -> dict[str, MetricResult]:
    return {one.name: one for one in found.metrics}


def placed(found: Workspace, rows: Sequence[Exchange]) -> Workspace:
    write(found.data, rows)
    return found


def test_only_in_one_run_are_latency_and_errors_measured(tmp_path: Path) -> None:
    control = [logged(number) for number in range(40)]
    found = workspace(tmp_path, "http://127.0.0.1:9", control)
    placed(found, [replayed(row, Arm.TREATMENT, latency_ms=3000.0) for row in control])
    alone = analyze_workspace(found)
    assert alone.funnel.pairs == 40
    assert alone.funnel.kinds == {"served + replayed": 40}
    results = metrics(alone)
    for name in ("error_rate", "timeout_rate", "p50_latency_ms", "p99_latency_ms", "tokens_per_second", "user_rating"):
        assert not results[name].measurable, name
    assert results["output_tokens"].control == results["output_tokens"].treatment
    assert "error_rate" in alone.decision.not_measured

    placed(found, [replayed(row, Arm.CONTROL, latency_ms=2000.0) for row in control])
    both = analyze_workspace(found)
    assert both.funnel.kinds == {"replayed + replayed": 40}
    results = metrics(both)
    assert results["error_rate"].measurable and results["p50_latency_ms"].measurable
    assert results["p50_latency_ms"].control.value == 2000.0
    assert results["p50_latency_ms"].treatment.value == 3000.0
    assert both.provenance["first_at"] == alone.provenance["first_at"]  # a request counts at its own instant
    again = both.provenance["control_again"]
    assert (again["requests"], again["same_text"], again["experiment"]) == (40, 0, "exp~control")


def test_a_batch_measures_neither_latency_nor_errors(tmp_path: Path) -> None:
    control = [logged(number) for number in range(10)]
    found = workspace(tmp_path, "http://127.0.0.1:9", control)
    silent: dict[str, Any] = {"latency_ms": None, "status": None}
    placed(found, [replayed(row, arm, **silent) for row in control for arm in Arm])
    results = metrics(analyze_workspace(found))
    assert not results["error_rate"].measurable
    assert not results["p50_latency_ms"].measurable
    assert results["cost_per_request_usd"].measurable


@pytest.mark.parametrize(
    ("treatments", "expected"),
    [
        ([("shadow", "ok"), ("replay", "ok")], "shadow"),
        ([("imported", "ok"), ("replay", "ok")], "imported"),
        ([("replay", "ok")], "replayed"),
        ([("shadow", "client_closed"), ("replay", "ok")], "replayed"),
        ([("shadow", "http_error"), ("replay", "ok")], "shadow"),
    ],
)
def test_the_treatments_own_answer_goes_before_a_replayed_one(
    tmp_path: Path, treatments: Sequence[tuple[str, str]], expected: str
) -> None:
    control = logged(1)
    rows = [
        replace(replayed(control, Arm.TREATMENT, text=role), role=Role(role), outcome=outcome)
        for role, outcome in treatments
    ]
    found = workspace(tmp_path, "http://127.0.0.1:9", [control, *rows])
    assert query(found, "SELECT treatment_role FROM pairs") == [(expected,)]
    seen = query(found, "SELECT role FROM exchanges WHERE arm = 'treatment'", compared=True)
    assert seen == [(expected,)]
    assert len(query(found, "SELECT role FROM exchanges WHERE role = 'replay'")) == 1


def test_where_control_was_asked_again_pairs_are_of_that_run(tmp_path: Path) -> None:
    control = [logged(number) for number in range(3)]
    found = workspace(tmp_path, "http://127.0.0.1:9", control)
    placed(found, [replayed(row, Arm.TREATMENT) for row in control])
    placed(found, [replayed(control[0], Arm.CONTROL)])
    rows = query(found, "SELECT request_id, control_role, treatment_role FROM pairs")
    assert rows == [("r00000", "replayed", "replayed")]


def test_control_against_itself_is_an_experiment_of_its_own(tmp_path: Path) -> None:
    control = [logged(number) for number in range(4)]
    found = workspace(tmp_path, "http://127.0.0.1:9", control)
    texts = [row.text for row in control[:3]] + ["another answer"]
    placed(found, [replayed(row, Arm.CONTROL, text=text) for row, text in zip(control, texts, strict=True)])
    placed(found, [replayed(row, Arm.TREATMENT) for row in control])
    rows = query(found, "SELECT count(*), count(*) FILTER (control_text = treatment_text) FROM pairs", "exp~control")
    assert rows == [(4, 3)]
    assert analyze_workspace(found, experiment="exp~control").funnel.pairs == 4
    again = analyze_workspace(found).provenance["control_again"]
    assert (again["requests"], again["same_text"]) == (4, 3)


def test_a_candidate_takes_controls_rows_from_another_experiment(tmp_path: Path) -> None:
    control = [logged(number) for number in range(5)]
    shadows = [replace(replayed(row, Arm.TREATMENT), role=Role.SHADOW) for row in control]
    workspace(tmp_path, "http://127.0.0.1:9", [*control, *shadows])
    found = workspace(tmp_path, "http://127.0.0.1:9", experiment="second", control_from="exp")
    write(found.data, [replayed(row, Arm.TREATMENT, text="second's") for row in control[:4]], "second")
    analysis = analyze_workspace(found)
    assert (analysis.experiment, analysis.funnel.requests, analysis.funnel.pairs) == ("second", 5, 4)
    assert query(found, "SELECT DISTINCT experiment, treatment_text FROM pairs", "second") == [("second", "second's")]
    assert query(found, "SELECT count(*) FROM pairs WHERE treatment_role = 'shadow'", "exp") == [(5,)]


def test_two_candidates_side_by_side_say_how_many_were_tried(tmp_path: Path) -> None:
    control = [logged(number) for number in range(5)]
    workspace(tmp_path, "http://127.0.0.1:9", control)
    found = {}
    for name in ("one", "two", "three"):
        place = workspace(tmp_path, "http://127.0.0.1:9", experiment=name, control_from="exp")
        write(place.data, [replayed(row, Arm.TREATMENT, text=name) for row in control], name)
        found[name] = analyze_workspace(place)
    found["two"] = analyze_workspace(workspace(tmp_path, "http://127.0.0.1:9", experiment="two", control_from="exp"))
    note = several_candidates(found["two"], found["three"])
    # 3 candidates at 95 %: 3 × 5 %; each at 1 − 5 %/3
    assert "3 candidates (one, three, two) on the control of exp" in note
    plain = note.replace("\u00a0", " ")
    assert "up to 15.0 %" in plain and "98.33 %" in plain
    assert f"| Candidates on one control | {escape_markdown(note)} |" in comparison_markdown(
        found["two"], found["three"]
    )
    assert several_candidates(found["two"], found["two"]) == ""
