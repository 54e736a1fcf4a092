"""Below the first screen: segments that differ, each figure once, every word explained."""

from __future__ import annotations

import dataclasses
import html.parser
from math import sqrt
from typing import Any

import pytest
from event_builders import eventful
from report_builders import arm, demo_like, metric, mixed, relative
from scipy.stats import norm

from evalpipe.analysis.result import Analysis, Segment
from evalpipe.report.render import render
from evalpipe.report.segments import segment_table
from evalpipe.report.terms import FINDING_WORDS, GLOSSARY, NOT_MEASURED, ROLES, with_terms
from evalpipe.report.view import report_view


def segment(value: str, difference: float, half: float, n: int = 100, **changes: Any) -> Segment:
    values: dict[str, Any] = {
        "dimension": "language", "value": value, "metric": "win_rate", "n": n, "n_clusters": n, "control": 0.5 - difference / 2,
        "treatment": 0.5 + difference / 2, "difference": difference, "ci_low": difference - half, "ci_high": difference + half,
        "p_value": 0.5, "p_adjusted": 0.5, "discovered": False, "finding": "inconclusive",
    }  # fmt: skip
    return Segment(**(values | changes))


def table(*segments: Segment) -> Any:
    found = segment_table(dataclasses.replace(mixed(), segments=list(segments)))
    assert found is not None
    return found


def test_segments_of_one_effect_are_a_sentence() -> None:
    # The treatment loses everywhere, and no part of the traffic is another matter than the rest.
    same = table(segment("de", -0.4, 0.1), segment("en", -0.41, 0.08), segment("fr", -0.38, 0.12))
    assert same.differing == []
    assert (
        same.sentence
        == "No segment differs from the rest: 3 segments were compared in 1 metric, after correction for their number."
    )
    page = render(dataclasses.replace(mixed(), segments=[segment("de", -0.4, 0.1), segment("en", -0.41, 0.08)]))
    assert "segment</abbr> differs from the rest: 2 segments were compared" in page


def test_a_segment_that_differs_is_named_with_both_differences() -> None:
    # de: -.4 ± .1 against the mean of en and fr, (100 · .1 + 300 · .2) / 400 = .175, ± √(100² · .1² + 300² · .06²) / 400.
    found = table(segment("de", -0.4, 0.1), segment("en", 0.1, 0.1), segment("fr", 0.2, 0.06, n=300))
    z = 1.96 * (0.4 + 0.175) / sqrt(0.1**2 + (0.1 * 100 / 400) ** 2 + (0.06 * 300 / 400) ** 2)
    assert 2 * norm.sf(z) < 1e-15
    first = found.differing[0]
    assert (first.value, first.is_worse) == ("de", True)
    assert (first.here, first.elsewhere) == ("−40.0\u00a0points", "+17.5\u00a0points")
    assert found.sentence.startswith("2 of 3 segments differ from the rest, compared in 1 metric")
    assert first.p_adjusted.startswith("<")


def test_many_segments_are_corrected_for_their_number() -> None:
    # Two of equal size and half widths h: z = 1.96 · d / (h √2); d = .18, h = .1 gives z = 2.49, p = .0126: alone it is found,
    # among 40 contrasts of which it is one of two it is not (.0126 · 40 / 2 = .25 > .1).
    pair = [segment("a", 0.18, 0.1), segment("b", 0.0, 0.1)]
    assert [one.value for one in table(*pair).differing] == ["a", "b"]
    others = [segment(str(n), 0.0, 0.1, dimension=f"d{n // 2}") for n in range(38)]
    assert table(*pair, *others).differing == []


def test_a_relative_metric_is_compared_as_a_share_of_control() -> None:
    # Long prompts cost ten times as much in both arms: half the price everywhere is one effect.
    short = segment("short", -0.001, 0.0001, metric="cost_per_request_usd", control=0.002, treatment=0.001)
    long = segment("long", -0.01, 0.001, metric="cost_per_request_usd", control=0.02, treatment=0.01)
    assert table(short, long).differing == []
    dear = dataclasses.replace(long, difference=0.01, ci_low=0.009, ci_high=0.011, treatment=0.03)
    found = table(short, dear).differing
    assert (found[0].value, found[0].here, found[0].elsewhere) == ("short", "−50\u00a0%", "+50\u00a0%")
    assert not found[0].is_worse


def test_what_has_no_interval_is_not_compared() -> None:
    assert table(segment("de", 0.1, 0.1, ci_low=None), segment("en", 0.1, 0.1)).sentence == (
        "No part of the traffic has enough data to be compared with the rest."
    )


def test_one_figure_under_several_names_is_one_row() -> None:
    def score(name: str, **changes: Any) -> Any:
        values: dict[str, Any] = {
            "control": arm(8.6, 100),
            "treatment": arm(5.4, 100),
            "difference": -3.2,
            "ci_low": -4.2,
        }
        values |= {
            "ci_high": -2.2,
            "n": 100,
            "unit": "score_10",
            "group": "quality",
            "role": "diagnostic",
            "margin": 0.25,
        }
        return metric(name, **(values | changes))

    names = ["accuracy_score", "clarity_score", "completeness_score", "judge_score"]
    rows = report_view(dataclasses.replace(mixed(), metrics=[score(name) for name in names])).rows
    assert [row.label for row in rows] == ["Accuracy, clarity, completeness and judge score"]
    # What decides keeps its row, and so does what only looks alike.
    other = [
        score(names[0]),
        score(names[1], ci_low=-4.3),
        score(names[2], role="guardrail"),
        score(names[3], role="guardrail"),
    ]
    assert len(report_view(dataclasses.replace(mixed(), metrics=other)).rows) == 4


def test_no_event_in_either_arm_is_none_seen_with_its_limit() -> None:
    none = arm(0.0, 204, numerator=0, denominator=204, ci_low=0.0, ci_high=0.0179)
    row = report_view(
        dataclasses.replace(
            mixed(), metrics=[metric(control=none, treatment=none, difference=0.0, ci_low=-0.086, ci_high=0.086)]
        )
    ).rows[0]
    assert (row.difference, row.interval) == ("none seen", "up to 1.8\u00a0%")
    facts = {fact.name: fact.text.replace("\u00a0", " ") for fact in row.facts}
    assert facts["Difference"] == "0.00 points (−8.60 to +8.60 points)"


class Terms(html.parser.HTMLParser):
    """The abbreviations of a page with their meanings, and the terms of its glossary."""

    def __init__(self) -> None:
        super().__init__()
        self.marked: dict[str, str] = {}
        self.listed: list[str] = []
        self._open: str | None = None
        self._in_list = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "abbr":
            self._open = found["title"]
        self._in_list = self._in_list or (tag == "dl" and found.get("class") == "glossary")
        if self._in_list and tag == "dt":
            self._open = "listed"

    def handle_endtag(self, tag: str) -> None:
        self._open = None if tag in {"abbr", "dt"} else self._open
        self._in_list = self._in_list and tag != "dl"

    def handle_data(self, data: str) -> None:
        if self._open == "listed":
            self.listed.append(data)
        elif self._open:
            self.marked[data.lower().removesuffix("s")] = self._open


@pytest.mark.parametrize("make", [mixed, eventful, demo_like])
def test_every_marked_term_is_in_the_glossary_of_the_page(make: Any) -> None:
    analysis: Analysis = make()
    page = Terms()
    page.feed(render(analysis))
    assert page.listed == sorted(GLOSSARY)
    meanings = {term.removesuffix("s"): meaning for term, meaning in GLOSSARY.items()}
    assert page.marked.items() <= meanings.items()
    assert {"guardrail", "interval", "treatment", "control", "margin"} <= set(page.marked)


def test_the_words_of_the_table_have_a_meaning() -> None:
    plain = {"better", "worse"}
    assert {*ROLES.values(), *FINDING_WORDS.values(), NOT_MEASURED} - plain <= set(GLOSSARY)


def test_terms_are_marked_once_and_markup_stays_text() -> None:
    shown = str(with_terms("A margin & a <b>margin</b>, `margin` and marginal; Guardrails."))
    assert shown.count("<abbr") == 2
    assert "&amp; a &lt;b&gt;margin&lt;/b&gt;" in shown
    assert "<code>margin</code> and marginal" in shown
    assert ">Guardrails</abbr>" in shown
    assert str(with_terms("an odd ` backtick")) == "an odd ` backtick"


def test_a_cheaper_long_tail_is_not_a_page_of_rows() -> None:
    # Statisticians find all of them; the manager's part has the sentence alone.
    analysis = dataclasses.replace(mixed(), metrics=[relative("cost_per_request_usd", 0.002, -0.3, 0.02)])
    page = render(analysis)
    manager, _, statistician = page.partition('id="statistics"')
    assert "All segments, worst first" not in manager
    assert "All segments, worst first" in statistician
    assert statistician.count('<th role="rowheader" scope="row"><span class="under">') == len(analysis.segments)
