"""Rows that are not about every request: not measured, values unknown, kinds left out, later turns, users counted once."""

from __future__ import annotations

import csv
import dataclasses
import io
import re

import pytest
from event_builders import eventful
from report_builders import arm, judge, metric, mixed, relative, win_rate

from evalpipe.report.judge import judge_view
from evalpipe.report.metrics import metric_row
from evalpipe.report.render import render
from evalpipe.report.text import render_csv, render_markdown
from evalpipe.report.view import report_view, superscript


def test_what_the_source_cannot_measure_reads_not_measured_and_never_nought() -> None:
    analysis = eventful()
    row = next(row for row in report_view(analysis).rows if row.name == "timeout_rate")
    assert (row.control, row.treatment, row.difference, row.interval, row.control_n, row.effect) == (
        "–", "–", "–", "–", "", None,
    )  # fmt: skip
    assert (row.finding_word, row.finding_note) == ("not measured", "")
    assert row.how_to_read == "The source of this log does not measure timeout rate, so it decides nothing."
    assert "| Timeout rate | – | – | – | – not measured |" in render_markdown(analysis)
    html = render(analysis, max_examples=0)
    opened = re.search(r'<tr [^>]*data-metric="timeout_rate"[^>]*>', html)
    assert opened is not None
    assert "data-control" not in opened.group()
    cells = html[opened.end() : html.index("</tr>", opened.end())]
    assert not re.search(r"0(\.0+)?\s*%", cells.replace("\u00a0", " "))
    sheet = {line["metric"]: line for line in csv.DictReader(io.StringIO(render_csv(analysis)))}["timeout_rate"]
    assert [sheet[name] for name in ("control", "control_n", "treatment", "difference", "ci_low", "ci_high", "n")] == [
        ""
    ] * 7
    assert (sheet["status"], sheet["margin"]) == ("not_measured", "0.005")


def test_what_decides_has_a_row_without_values_and_a_diagnostic_has_none() -> None:
    bare = {
        "control": arm(None, 0),
        "treatment": arm(None, 0),
        "difference": None,
        "ci_low": None,
        "ci_high": None,
        "n": 0,
    }
    goal = win_rate(finding="undefined", status="no_data", n_clusters=0, p_value=None, **bare)
    other = metric("refusal_rate", role="diagnostic", finding="undefined", status="no_data", n_clusters=0, **bare)
    later = dataclasses.replace(goal, name="win_rate_later_turns", role="diagnostic")
    view = report_view(dataclasses.replace(mixed(), metrics=[goal, other, later]))
    assert [(row.name, row.treatment, row.finding_note) for row in view.rows] == [("win_rate", "–", "no observations")]
    # Without later turns there is nothing to measure on them.
    assert view.unmeasured == ["Refusal rate"]


def test_values_that_differ_in_what_is_unknown_conclude_nothing_and_name_the_line_that_mends_it() -> None:
    view = report_view(eventful())
    row = next(row for row in view.rows if row.name == "output_tokens")
    assert (row.finding_word, row.finding_note) == ("no conclusion", "too many values unknown")
    assert "too many values are unknown" in row.how_to_read
    note = next(line for line in view.footnotes if line.startswith(f"{row.mark} Output tokens:"))
    assert 'set stream_usage = "inject" in [collector]' in note


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ""),
        ({"missing_control": 0.0, "missing_treatment": 0.0}, ""),
        (
            {"missing_control": 0.004, "missing_treatment": 0.0},
            "The value is unknown in 0.4 % of control's and 0.0 % of the treatment's requests.",
        ),
        (
            {"kinds_left_out": ["chat, streamed", "responses"], "share_left_out": 0.4186},
            "Left out in both arms: chat, streamed, responses (41.9 % of the requests), whose values one arm mostly does not "
            "report.",
        ),
    ],
)
def test_a_row_names_the_requests_it_leaves_out(changes: dict[str, object], expected: str) -> None:
    row = metric_row(relative("cost_per_request_usd", 0.002, -0.3, 0.02, unit="usd", group="cost", **changes))
    assert row.footnote.replace("\u00a0", " ") == expected


def test_a_win_rate_names_its_users_and_its_share_over_pairs() -> None:
    # 800 pairs of 412 users.
    row = metric_row(win_rate(value_over_pairs=0.51))
    text = "each user counted once (800 judged pairs of 412 users); over these pairs 51.0 %."
    assert row.footnote.replace("\u00a0", " ") == text[:1].upper() + text[1:]
    first = metric_row(win_rate(value_over_pairs=0.51), turns="first turns only")
    assert first.footnote.replace("\u00a0", " ") == f"First turns only; {text}"
    # One pair a user: both ways of counting are the same.
    assert metric_row(win_rate(n_clusters=800, value_over_pairs=0.58)).footnote == ""


def test_the_win_rate_on_later_turns_is_a_row_of_its_own() -> None:
    analysis = eventful()
    view = report_view(analysis)
    rows = {row.name: row for row in view.rows}
    later = rows["win_rate_later_turns"]
    assert (later.label, later.role, later.aside) == ("Win rate on later turns", "diagnostic", "from an even split")
    assert later.footnote.startswith("The users of these turns replied to control's answers")
    assert rows["win_rate"].footnote.startswith("First turns only;")
    everything = dataclasses.replace(analysis, provenance=analysis.provenance | {"turns": "all"})
    assert "First turns only" not in next(r for r in report_view(everything).rows if r.name == "win_rate").footnote


def test_footnotes_are_numbered_in_the_order_of_the_table() -> None:
    view = report_view(eventful())
    marked = [(row.name, row.mark) for row in view.rows if row.mark]
    assert marked == [
        ("win_rate", "¹"), ("win_rate_later_turns", "²"), ("output_tokens", "³"), ("cost_per_request_usd", "⁴"),
    ]  # fmt: skip
    assert [line[0] for line in view.footnotes[:4]] == ["¹", "²", "³", "⁴"]
    assert superscript(12) == "¹²"
    html = render(eventful(), max_examples=0)
    assert html.count('class="mark-number"') == 4


def test_pairs_beyond_the_limit_of_a_user_are_in_the_judges_section() -> None:
    facts = {fact.name: fact.text.replace("\u00a0", " ") for fact in judge_view(eventful().judges[0]).facts}
    assert (
        facts["Beyond the limit per user"]
        == "1,300 more judged pairs of users who have as many as count: shown, not counted"
    )
    assert facts["Treatment preferred"] == (
        "58.0 % (53.9 to 62.1 %), p < 0.001; each user counted once (over these pairs 51.0 %)"
    )
    assert "Beyond the limit per user" not in {fact.name for fact in judge_view(judge()).facts}


def test_no_event_in_either_arm_is_put_in_words() -> None:
    none = arm(0.0, 204, numerator=0, denominator=204)
    row = metric_row(
        metric(control=none, treatment=none, difference=0.0, ci_low=-0.086, ci_high=0.086, non_inferior=False, n=204)
    )
    assert row.how_to_read.replace("\u00a0", " ") == (
        "It occurred in neither arm; values from −8.6 to +8.6 points are compatible with the data. The interval includes zero: "
        "these data do not show either arm to be better. A loss larger than the margin of 0.5 points is not ruled out."
    )


def test_equal_values_are_not_a_matter_of_more_data() -> None:
    equal = metric(
        "timeout_rate", difference=0.0, ci_low=None, ci_high=None, finding="undefined", status="zero_variance"
    )
    early = metric("error_rate", finding="undefined", status="burn_in")
    alone = dataclasses.replace(mixed(), metrics=[equal])
    same = "No conclusion on timeout rate: all pairs have equal values, so no interval can be computed."
    assert report_view(alone).footnotes == [same]
    both = dataclasses.replace(mixed(), metrics=[equal, early])
    yet = "No conclusion: no valid interval can be computed yet, so no difference is shown."
    assert report_view(both).footnotes == [yet, same]


def test_a_difference_that_never_varies_is_named() -> None:
    constant = metric(
        "timeout_rate", difference=0.5, ci_low=None, ci_high=None, finding="undefined", status="zero_variance"
    )
    words = "No conclusion on timeout rate: the difference is the same in all pairs, so no interval can be computed."
    assert report_view(dataclasses.replace(mixed(), metrics=[constant])).footnotes == [words]
