"""What the page says of an analysis: orientation, words, trust, problems, the top in the right order."""

from __future__ import annotations

import ast
import dataclasses
import xml.etree.ElementTree as ET
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_builders import arm, demo_like, empty, judge, latency_curves, metric, mixed, relative, win_rate

from evalpipe.analysis import checks
from evalpipe.analysis.result import Agreement, Check, Decision, WinRate
from evalpipe.analysis.segments import one_user_in
from evalpipe.report.charts.intervals import Mark, axis_reach, interval_cell, is_bent
from evalpipe.report.charts.plots import latency_at
from evalpipe.report.charts.svg import Scale, log_ticks, nice_ticks, time_span, time_ticks
from evalpipe.report.figures import figures, funnel_figure, judge_figures, more_figures
from evalpipe.report.judge import at_equal_length, judge_trust
from evalpipe.report.metrics import effect_of, metric_row
from evalpipe.report.render import render
from evalpipe.report.segments import segment_table
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


def test_a_number_without_a_valid_interval_is_not_shown() -> None:
    row = metric_row(relative("p99_latency_ms", 5009.0, 0.017, 0.012, finding="undefined", status="tail_too_small"))
    assert (row.difference, row.interval, row.effect) == ("–", "–", None)
    assert (row.finding_word, row.finding_note) == ("no conclusion", "too few in the tail")
    facts = {fact.name: fact.text.replace("\u00a0", " ") for fact in row.facts}
    assert facts["Seen so far"] == "+1.7 %, without a valid interval"


def test_a_win_rate_is_taken_from_an_even_split() -> None:
    # 58 − 42 is not 8: the one row whose values do not subtract to its difference, and it is marked so.
    later = dataclasses.replace(win_rate(), name="win_rate_later_turns")
    assert [metric_row(one).aside for one in (win_rate(), later, metric())] == ["from an even split"] * 2 + [""]
    assert not any("subtract" in line or "minus control" in line for line in report_view(mixed()).footnotes)


def test_one_cost_in_two_units_is_shown_once_unless_it_decides_or_attempts_failed() -> None:
    once = relative("cost_per_request_usd", 0.002, -0.3, 0.02, unit="usd", group="cost")
    again = relative("cost_per_1000_requests_usd", 2.0, -0.3, 0.02, unit="usd", group="cost")
    analysis = dataclasses.replace(mixed(), metrics=[once, again])
    assert [row.name for row in report_view(analysis).rows] == ["cost_per_request_usd"]
    facts = {fact.name: fact.text for fact in report_view(analysis).rows[0].facts}
    assert "Per 1,000 requests" not in facts
    # Four in ten of the treatment's attempts failed, at no cost: the bill of all attempts is less than of as many answers.
    bill = dataclasses.replace(again, treatment=arm(0.6 * 1.4))
    rows = report_view(dataclasses.replace(analysis, metrics=[once, bill])).rows
    assert [row.name for row in rows] == ["cost_per_request_usd", "cost_per_1000_requests_usd"]
    guarded = dataclasses.replace(analysis, metrics=[once, dataclasses.replace(again, role="guardrail")])
    assert len(report_view(guarded).rows) == 2


@pytest.mark.parametrize(
    ("low", "high", "labels", "span"),
    [
        # 20 seconds: seconds in the labels
        ("2026-11-23T16:25:41.5", "2026-11-23T16:26:01", "16:25:45, 16:25:50, 16:25:55, 16:26:00", "23 Nov 2026, UTC"),
        # 50 minutes
        ("2026-11-23T16:05:00", "2026-11-23T16:55:00", "16:10, 16:20, 16:30, 16:40, 16:50", "23 Nov 2026, UTC"),
        # 30 hours: midnight is named by its day
        ("2026-11-23T13:00:00", "2026-11-24T19:00:00", "18:00, 24 Nov, 06:00, 12:00, 18:00", "23 Nov to 24 Nov 2026, UTC"),
        # 10 days
        ("2026-03-02T09:00:00", "2026-03-12T09:00:00", "4 Mar, 6 Mar, 8 Mar, 10 Mar, 12 Mar", "2 Mar to 12 Mar 2026, UTC"),
    ],
)  # fmt: skip
def test_times_on_an_axis_are_round_and_as_fine_as_they_stand_apart(
    low: str, high: str, labels: str, span: str
) -> None:
    start, end = (datetime.fromisoformat(at).replace(tzinfo=UTC).timestamp() for at in (low, high))
    ticks = time_ticks(start, end)
    assert ", ".join(label for _, label in ticks) == labels
    assert all(start <= at <= end for at, _ in ticks)
    assert time_span(start, end) == span


def test_an_axis_far_beyond_the_margin_is_compressed_and_keeps_its_order() -> None:
    assert axis_reach([0.5, -3.0]) == pytest.approx(3.24)
    assert not is_bent(axis_reach([5.0]))
    reach = axis_reach([-0.4, -108.0])
    assert (reach, is_bent(reach)) == (100.0, True)
    x = Scale(-reach, reach, 0.0, 200.0, bent=True)
    places = [x(v) for v in (-100, -20, -5, -1, 0, 1, 5, 20, 100)]
    assert places == sorted(places)
    assert (places[0], places[4], places[-1]) == (0.0, 100.0, 200.0)
    assert places[4] - places[3] > 15  # the margin is still well apart from zero


@pytest.mark.parametrize(
    ("finding", "non_inferior", "note"),
    [
        ("inconclusive", True, "loss within margin"),
        ("inconclusive", False, "loss may exceed margin"),
        ("worse", True, "loss within margin"),
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
        ({"first_seat_low": 0.49, "length_bins": []}, "good"),
        ({"length_bins": []}, "care"),  # 53.0 to 57.6 % for the first seat excludes 50
        ({"first_seat_low": 0.49}, "care"),  # 41 % of 90 where shortest, 71 % of 100 where longest
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
    summary = report_view(mixed()).summary
    answers = {answer.name: answer.text.replace("\u00a0", " ") for answer in summary.answers}
    assert answers["What got better?"].startswith("Win rate +8.0 points (+3.9 to +12.1 points); cost per request")
    # Five are better, four are named.
    assert answers["What got better?"].endswith(". One more in the table below.")
    assert answers["What got worse?"].startswith("99th percentile latency +12.0 % (+3.0 to +21.0 %)")
    assert "2,431 requests by 412 users" in answers["On how much?"]
    assert answers["How sure?"].startswith(
        "Win rate is better (p < 0.001); cost per request is better (p < 0.001). All findings at 95 % confidence."
    )
    assert answers["Can the judge be trusted?"].startswith("With care: it names the same winner")


def test_whatever_was_found_against_the_judge_is_named() -> None:
    own = Check(name="judge_family", status="warn", detail="the judge (m) is the very model of the control arm")
    level, text = judge_trust(judge(), [own])
    text = text.replace("\u00a0", " ")
    assert level == "care"
    assert "The judge (m) is the very model of the control arm; " in text
    assert "the first one gets 55.3 % (53.0 to 57.6 %) of the preference" in text
    assert "longer answers are preferred (win rate 41.0 %" in text


@pytest.mark.parametrize(
    ("theta", "finding", "low", "high", "words"),
    [
        (0.128, "worse", 0.247, 0.471, "worse, but no longer shown to exceed the margin of 3 points"),
        (0.128, "worse", 0.247, 0.469, ""),  # still 3.1 points below even
        (0.128, "worse", 0.40, 0.52, "no longer shown to be worse"),
        (0.58, "better", 0.49, 0.60, "no longer shown to be better"),
        (0.58, "better", 0.51, 0.60, ""),
        (0.5, "equivalent", 0.46, 0.52, "no longer shown to lie within the margin"),
    ],
)
def test_a_finding_that_equal_length_does_not_support_is_reported_at_the_top(
    theta: float, finding: str, low: float, high: float, words: str
) -> None:
    controlled = WinRate(rule="length_controlled", value=(low + high) / 2, ci_low=low, ci_high=high, n=800)
    said = at_equal_length(
        judge(win_rate=theta, ci_low=theta - 0.02, ci_high=theta + 0.02, length_controlled=controlled),
        win_rate(theta, 0.02, finding=finding),
    ).replace("\u00a0", " ")
    assert said.endswith(f": {words}." if words else "")
    assert bool(said) == bool(words)


def test_diagnostics_beyond_their_margin_are_named_as_such() -> None:
    worse = {answer.name: answer.text for answer in report_view(mixed()).summary.answers}["What got worse?"]
    assert "Beyond the margin, though not deciding: refusal rate." in worse


def test_a_warning_that_concerns_no_metric_that_decides_is_no_banner() -> None:
    unknown = Check(name="price_unknown", status="warn", detail="The cost of some answers is not known.")
    warned = dataclasses.replace(mixed(), checks=[unknown])
    assert [problem.title for problem in report_view(warned).problems] == ["Price unknown"]  # the cost can win
    free = [one for one in warned.metrics if one.name != "cost_per_request_usd"]
    view = report_view(dataclasses.replace(warned, metrics=free))
    assert view.problems == []
    assert [check.name for check in view.checks] == ["price unknown"]


def test_a_ticked_check_reads_as_good_news() -> None:
    passed = [Check(name=name, status="pass", detail="") for name in ("price_unknown", "one_user_dominates")]
    view = report_view(dataclasses.replace(mixed(), checks=passed))
    assert [check.name for check in view.checks] == ["prices known", "no user dominates"]


def test_every_row_shows_its_margin() -> None:
    assert metric_row(metric()).margin.replace("\u00a0", " ") == "margin 0.5 points"
    assert metric_row(metric(margin=0.0)).margin == "no margin"


def test_users_who_count_for_a_cost_per_good_answer_are_those_who_got_one() -> None:
    few = {"finding": "undefined", "status": "too_few_clusters", "unit": "usd"}
    row = metric_row(relative("cost_per_ok_answer_usd", 0.01, 0.1, 5.0, **few))
    assert row.finding_note == "fewer than five users with a good answer in an arm"


def test_the_win_rates_picture_says_decided_only_where_the_verdict_is() -> None:
    undecided, decided = (
        mixed(),
        dataclasses.replace(mixed(), decision=Decision(recommendation="ship", reasons=["It is."])),
    )
    assert "win rate settled here" in "".join(str(figure.picture) for figure in figures(undecided))
    assert "decided here" in "".join(str(figure.picture) for figure in figures(decided))


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


def test_segments_of_a_part_of_the_users_say_so() -> None:
    assert "one user in" not in render(mixed())
    large = dataclasses.replace(mixed(), provenance=mixed().provenance | {"segments_one_user_in": 34})
    assert "The log is large: one user in 34 is included here." in render(large)
    assert (one_user_in(300_000), one_user_in(300_001), one_user_in(10_000_000)) == (1, 2, 34)


def test_a_reason_that_is_the_headline_is_not_said_twice() -> None:
    won = "answers were preferred in 53.1 % of 900 judged pairs (52.5 to 53.8 %)"
    decision = Decision(
        recommendation="ship",
        headline=f"Ship the treatment: its {won}, and every guardrail is within its margin.",
        reasons=[f"The treatment's {won}: better.", "Error rate fell."],
    )
    summary = report_view(dataclasses.replace(mixed(), decision=decision)).summary
    assert summary.reasons == ["Error rate fell."]


def test_every_picture_is_well_formed_described_and_without_style() -> None:
    analysis = mixed()
    view = report_view(analysis)
    pictures = [
        f.picture
        for f in (
            *figures(analysis),
            *more_figures(analysis, view.rows),
            *judge_figures(analysis),
            funnel_figure(analysis),
        )
        if f
    ]
    assert len(pictures) == 7
    for picture in pictures:
        root = ET.fromstring(str(picture))
        assert root.get("role") == "img"
        assert len(root.get("aria-label") or "") > 20
        assert "style" not in {name for element in root.iter() for name in element.attrib}


@given(
    st.floats(-50, 50),
    st.one_of(st.none(), st.floats(0, 40)),
    st.one_of(st.none(), st.floats(0, 40)),
    st.floats(2, 100),
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
    assert log_ticks(1, 1.7e308)[-1] == 1e308


def test_latency_is_read_off_the_curve() -> None:
    curve = latency_curves()[0]
    # A logistic in log latency with median 910 ms.
    assert latency_at(curve, 0.5) == pytest.approx(910)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_rounding_is_stable(value: float) -> None:
    once = round_significant(value)
    assert round_significant(once) == once
    assert abs(once - value) <= abs(value) * 5e-6 or abs(value) < 1e-300


def test_every_check_is_listed_with_what_it_looks_at() -> None:
    made: set[str] = set()
    for path in Path(checks.__file__).parents[1].rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Check":
                made |= {k.value.value for k in node.keywords if k.arg == "name" and isinstance(k.value, ast.Constant)}  # type: ignore[misc]
    assert made == set(checks.CHECKS)
    moved = Check(name="nonstationary", status="warn", detail="win rate today differs from the day of the decision")
    (row,) = report_view(dataclasses.replace(mixed(), checks=[moved])).checks
    assert row.about == "Whether the metrics moved since the decision"
