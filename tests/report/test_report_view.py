"""What the page says of an analysis: orientation, words, trust, problems, the top in the right order."""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_builders import demo_like, empty, judge, latency_curves, metric, mixed, relative, win_rate

from evalpipe.analysis.result import Agreement, Check, Decision
from evalpipe.report.charts.interval import Mark, interval_cell
from evalpipe.report.charts.latency import latency_at
from evalpipe.report.charts.svg import log_ticks, nice_ticks
from evalpipe.report.figures import figures, funnel_figure, judge_figures
from evalpipe.report.judge_view import judge_trust
from evalpipe.report.metric_view import effect_of, metric_row
from evalpipe.report.segment_view import segment_table
from evalpipe.report.view import report_view, round_significant


def test_right_of_zero_is_better_for_the_treatment_whatever_the_direction() -> None:
    lower = effect_of(metric(direction="lower", difference=-0.002, ci_low=-0.006, ci_high=0.002, margin=0.005))
    assert lower is not None
    # −0.2 points of a metric where lower is better, margin 0.5 points: +0.4 margins, from −0.4 to +1.2.
    assert (lower.low, lower.point, lower.high) == (pytest.approx(-0.4), pytest.approx(0.4), pytest.approx(1.2))
    higher = effect_of(win_rate(0.58, 0.06))
    assert higher is not None
    assert (higher.low, higher.point, higher.high) == (
        pytest.approx(2 / 3),
        pytest.approx(8 / 3),
        pytest.approx(14 / 3),
    )


def test_a_relative_metric_is_drawn_in_relative_margins() -> None:
    effect = effect_of(relative("cost", 0.002, -0.31, 0.02, margin=0.1))
    assert effect is not None
    assert (effect.low, effect.point, effect.high) == (pytest.approx(2.9), pytest.approx(3.1), pytest.approx(3.3))


@given(st.floats(-5, 5), st.floats(0, 3), st.floats(0, 3))
def test_mirroring_the_arms_mirrors_the_picture(difference: float, below: float, above: float) -> None:
    low, high = difference - below, difference + above
    one = effect_of(metric(difference=difference, ci_low=low, ci_high=high, margin=0.5))
    other = effect_of(metric(difference=-difference, ci_low=-high, ci_high=-low, margin=0.5))
    assert one is not None
    assert other is not None
    assert (one.low, one.point, one.high) == (-other.high, -other.point, -other.low)  # type: ignore[operator]


def test_nothing_is_drawn_where_there_is_no_number() -> None:
    assert effect_of(metric(difference=None, ci_low=None, ci_high=None, finding="undefined", status="no_data")) is None
    row = metric_row(metric(difference=None, ci_low=None, ci_high=None, finding="undefined", status="missing_arm"))
    assert row.difference == "–"
    assert row.finding_note == "one arm has no observations"
    assert "Nothing can be concluded" in row.how_to_read


@pytest.mark.parametrize(
    ("finding", "non_inferior", "note"),
    [
        ("inconclusive", True, "loss within its margin"),
        ("inconclusive", False, "loss beyond margin not ruled out"),
        ("worse", True, "loss within its margin"),
        ("better", True, ""),
        ("equivalent", True, ""),
    ],
)
def test_beside_the_finding_stands_whether_a_loss_beyond_the_margin_is_ruled_out(
    finding: str, non_inferior: bool, note: str
) -> None:
    assert metric_row(metric(finding=finding, non_inferior=non_inferior)).finding_note == note


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({"simulated": True}, "bad"),
        ({"status": "unreliable_judge"}, "bad"),
        ({}, "good"),
        ({"consistency": 0.6}, "care"),
        ({"agreement": Agreement()}, "care"),
        ({"agreement": Agreement(), "consistency": None}, "unknown"),
        ({"agreement": Agreement(n_labels=50, accuracy=0.6, kappa=0.2, kappa_low=0.05, kappa_high=0.4)}, "care"),
        ({"name": "label:team"}, "good"),
    ],
)
def test_can_the_judge_be_trusted(changes: dict[str, object], level: str) -> None:
    assert judge_trust(judge(**changes))[0] == level


def test_the_simulated_judge_stands_above_all_and_once() -> None:
    view = report_view(demo_like())
    assert [problem.title for problem in view.problems] == ["Simulated judge"]
    page_of_checks = dataclasses.replace(
        demo_like(), checks=[Check(name="a", status="warn", detail="w"), Check(name="b", status="fail", detail="f")]
    )
    titles = [problem.title for problem in report_view(page_of_checks).problems]
    assert titles == ["Simulated judge", "B", "A"]


def test_the_headline_does_not_say_the_recommendation_twice() -> None:
    summary = report_view(mixed()).summary
    assert summary.recommendation_word == "Collect more data"
    assert summary.headline.startswith("Answers were preferred")
    bare = dataclasses.replace(
        mixed(), decision=Decision(recommendation="ship", reasons=["It is better.", "And cheaper."])
    )
    shown = report_view(bare).summary
    assert (shown.headline, shown.reasons) == ("It is better.", ["And cheaper."])


def test_the_questions_of_a_manager_are_answered() -> None:
    answers = {fact.name: fact.text.replace("\u00a0", " ") for fact in report_view(mixed()).summary.answers}
    assert "Win rate +8.0 points (+3.9 to +12.1 points)" in answers["What got better?"]
    assert answers["What got worse?"].startswith("P99 latency ms +12.0 % (+3.0 to +21.0 %)")
    assert "2,431 requests by 412 users" in answers["On how much?"]
    assert "95 %" in answers["How sure?"]
    assert answers["Can the judge be trusted?"].startswith("Yes, as far as checked")


def test_an_empty_analysis_has_a_page() -> None:
    view = report_view(empty())
    assert view.rows == []
    assert view.figures == []
    assert [fact.name for fact in view.summary.answers] == ["On how much?"]


def test_segments_are_worst_first_and_capped() -> None:
    analysis = mixed()
    table = segment_table(analysis)
    assert table is not None
    assert [row.value for row in table.rows[:2]] == ["de", "en"]
    many = dataclasses.replace(analysis, segments=analysis.segments * 10)
    capped = segment_table(many)
    assert capped is not None
    assert (len(capped.rows), capped.n_hidden) == (24, 56)


def test_every_picture_is_well_formed_described_and_without_style() -> None:
    analysis = mixed()
    view = report_view(analysis)
    pictures = [
        f.picture for f in (*figures(analysis, view.rows), *judge_figures(analysis), funnel_figure(analysis)) if f
    ]
    assert len(pictures) == 7
    for picture in pictures:
        root = ET.fromstring(str(picture))
        assert root.get("role") == "img"
        assert len(root.get("aria-label") or "") > 20
        assert "style" not in {name for element in root.iter() for name in element.attrib}


@given(
    st.floats(-50, 50), st.one_of(st.none(), st.floats(0, 40)), st.one_of(st.none(), st.floats(0, 40)), st.floats(2, 6)
)
def test_no_interval_leaves_its_cell(point: float, below: float | None, above: float | None, reach: float) -> None:
    mark = Mark(
        label="m",
        low=None if below is None else point - below,
        point=point,
        high=None if above is None else point + above,
        finding="better",
        text="t",
    )
    root = ET.fromstring(str(interval_cell(mark, reach)))
    for element in root.iter():
        for name in ("x1", "x2", "cx"):
            if element.get(name) is not None:
                assert 0 <= float(element.get(name) or 0) <= 220


def test_ticks_are_round_and_inside() -> None:
    assert nice_ticks(0, 1, 4) == [0, 0.5, 1]
    assert nice_ticks(3, 3) == [3]
    assert log_ticks(80, 1200) == [100, 200, 500, 1000]
    assert log_ticks(3, 4) == [3, 4]


def test_latency_is_read_off_the_curve() -> None:
    curve = latency_curves()[0]
    # A logistic in log latency with median 910 ms.
    assert latency_at(curve, 0.5) == pytest.approx(910)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_rounding_is_stable(value: float) -> None:
    once = round_significant(value)
    assert round_significant(once) == once
    assert abs(once - value) <= abs(value) * 5e-6 or abs(value) < 1e-300
