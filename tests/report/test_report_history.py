"""Every look is kept: its files, what changed since the one before, the page of the history and the folder's index."""

from __future__ import annotations

import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from event_builders import EXCLUSION, eventful
from hostile_texts import hostile
from report_builders import demo_like, empty, example, mixed, win_rate

from evalpipe.analysis.result import Analysis, Decision, DecisionChange, Horizon
from evalpipe.report.charts.history import LookPoint, ribbon_chart
from evalpipe.report.history import (
    KeptLook,
    Look,
    expected,
    history_view,
    is_change,
    look_of,
    read_look,
    since_last,
    since_sentence,
)
from evalpipe.report.render import Listed, render_history, render_index
from evalpipe.workspace.history import keep_look, look_before, stored_looks, write_index
from evalpipe.workspace.paths import Workspace
from evalpipe.workspace.report import report_json, scrub_reports, write_analysis

FIRST = datetime(2026, 11, 1, 9, 14, 5, tzinfo=UTC)
CHANGE = FIRST + timedelta(days=11)
"""the twelfth day: what was collected until then ships"""


def at_day(day: int, *, hours: float = 0.0, theta: float | None = None, pairs: int | None = None) -> Analysis:
    """The report of a day (from 0): 100 more pairs each, the win rate on its way from 51 to 54 %, ship from day 12 on."""
    at = FIRST + timedelta(days=day, hours=hours)
    theta = 0.51 + 0.001 * day if theta is None else theta
    reached = DecisionChange(event="reached", at=CHANGE.isoformat(), look=12, recommendation="ship", rule="ship",
                             why="Ship the treatment: its answers were preferred.")  # fmt: skip
    if at < CHANGE:
        decision = Decision(
            recommendation="collect_more", rule="collect_more", reasons=["Not yet."],
            headline="Collect more data: answers were preferred in about half of the pairs.",
            horizon=Horizon(metric="win_rate", requests=100 * (12 - day), days=12.0 - day),
        )  # fmt: skip
    else:
        decision = Decision(recommendation="ship", rule="ship", reasons=["Better."], headline="Ship the treatment: better.",
                            changes=[reached], decided_at=CHANGE.isoformat())  # fmt: skip
    n = 100 * (day + 1) if pairs is None else pairs
    base = mixed()
    return dataclasses.replace(
        base,
        generated_at=at.isoformat(),
        metrics=[win_rate(theta, 0.08 - 0.002 * day), *base.metrics[:1]],
        funnel=dataclasses.replace(base.funnel, pairs=n, requests=n),
        decision=decision,
        provenance=base.provenance | {"data": {"fingerprint": f"data-{n}", "n_files": 1, "n_bytes": n}},
        examples=base.examples[:3],
        segments=[], series=[], latency=[],
    )  # fmt: skip


def unchecked(data: bytes, name: str) -> bytes:
    return data


def report(reports: Path, analysis: Analysis, *, keep_days: int = 365) -> str:
    """What `evalpipe report` does with an analysis of the whole log; the line on what changed."""
    look = look_of(analysis)
    before = look_before(reports / analysis.experiment, look)
    written = write_analysis(analysis, reports / f"{analysis.experiment}.html", before=before)
    page, document = written.html.read_bytes(), written.json.read_bytes()
    keep_look(reports, look, page=page, document=document, keep_days=keep_days, check=unchecked)
    return written.since.replace("\u00a0", " ")


def kept(reports: Path, ending: str) -> list[str]:
    return sorted(path.name for path in (reports / "support-bot").glob(f"2026-*{ending}"))


def test_thirty_days_with_a_change_on_the_twelfth(tmp_path: Path) -> None:
    lines = [report(tmp_path, at_day(day)) for day in range(30)]
    assert lines[0] == ""
    assert lines[1] == (
        "Since the report of 1 Nov 2026, 09:14 UTC: +100 pairs, win rate 51.0 → 51.1 %, decision unchanged."
    )
    assert lines[11] == (
        "Since the report of 11 Nov 2026, 09:14 UTC: +100 pairs, win rate 52.0 → 52.1 %, decision changed from “Collect more "
        "data” to “Ship the treatment”."
    )
    assert lines[12].endswith("+100 pairs, win rate 52.1 → 52.2 %, decision unchanged.")
    assert kept(tmp_path, ".json") == [f"2026-11-{day:02d}T0914Z.json" for day in range(1, 31)]
    assert kept(tmp_path, ".html") == [f"2026-11-{day:02d}T0914Z.html" for day in range(1, 31)]
    # Each JSON is the report of its day, and the folder's own page is the latest.
    third = read_look((tmp_path / "support-bot" / "2026-11-03T0914Z.json").read_bytes())
    assert (third.generated_at, third.funnel.pairs) == (at_day(2).generated_at, 300)
    latest = (tmp_path / "support-bot.html").read_bytes()
    assert latest == (tmp_path / "support-bot" / "2026-11-30T0914Z.html").read_bytes()
    assert "win rate 53.8 → 53.9" in latest.decode()
    history = (tmp_path / "support-bot" / "index.html").read_text()
    assert history.count('<tr role="row" class="changed">') == 1
    assert '<tr role="row" class="changed"><th role="rowheader" scope="row"><a href="2026-11-12T0914Z.html">' in history
    assert 'href="../support-bot.html"' in history
    assert "Switch from gpt-4o-2024-08-06 to claude-haiku-4-5" in history
    index = (tmp_path / "index.html").read_text()
    assert "Last look 30 Nov 2026, 09:14 UTC" in index
    assert "decided 12 Nov 2026" in index
    assert 'href="support-bot/index.html"' in index


def test_of_a_day_the_last_page_stays_and_each_that_changed_the_decision(tmp_path: Path) -> None:
    report(tmp_path, at_day(10))
    report(tmp_path, at_day(10, hours=2, pairs=1150))
    report(tmp_path, at_day(11))  # ships
    report(tmp_path, at_day(11, hours=2, pairs=1250))
    report(tmp_path, at_day(11, hours=4, pairs=1300))
    assert kept(tmp_path, ".json") == [
        "2026-11-11T0914Z.json", "2026-11-11T1114Z.json", "2026-11-12T0914Z.json", "2026-11-12T1114Z.json",
        "2026-11-12T1314Z.json",
    ]  # fmt: skip
    assert kept(tmp_path, ".html") == ["2026-11-11T1114Z.html", "2026-11-12T0914Z.html", "2026-11-12T1314Z.html"]


def test_a_second_report_of_the_same_data_still_tells_what_changed(tmp_path: Path) -> None:
    report(tmp_path, at_day(0))
    news = report(tmp_path, at_day(1))
    assert report(tmp_path, at_day(1, hours=3)) == news
    assert len(stored_looks(tmp_path / "support-bot")) == 3


def test_two_looks_of_one_minute(tmp_path: Path) -> None:
    report(tmp_path, at_day(0))
    report(tmp_path, at_day(0, hours=20 / 3600))  # of the same data: the same look
    assert kept(tmp_path, ".json") == ["2026-11-01T0914Z.json"]
    report(tmp_path, at_day(0, hours=40 / 3600, pairs=150))
    assert [one.json.name for one in stored_looks(tmp_path / "support-bot")] == [
        "2026-11-01T0914Z.json", "2026-11-01T091445Z.json",
    ]  # fmt: skip


def test_old_looks_are_deleted(tmp_path: Path) -> None:
    for day in range(5):
        report(tmp_path, at_day(day), keep_days=2)
    assert kept(tmp_path, ".json") == ["2026-11-03T0914Z.json", "2026-11-04T0914Z.json", "2026-11-05T0914Z.json"]
    report(tmp_path, at_day(20), keep_days=0)
    assert len(kept(tmp_path, ".json")) == 4


def test_what_is_no_look_or_damaged_is_left_alone(tmp_path: Path) -> None:
    report(tmp_path, at_day(0))
    folder = tmp_path / "support-bot"
    (folder / "2026-11-02T0914Z.json").write_text("{")
    (folder / "notes.json").write_text("{}")
    (folder / "2026-99-99T9999Z.json").write_text("{}")
    assert report(tmp_path, at_day(2)).endswith("+200 pairs, win rate 51.0 → 51.2 %, decision unchanged.")
    assert (folder / "notes.json").exists()
    assert (folder / "2026-11-02T0914Z.json").read_text() == "{"


def look(**changes: Any) -> Look:
    return dataclasses.replace(look_of(mixed()), **changes)


def test_what_changed_in_a_line() -> None:
    before, now = mixed(), mixed()
    before = dataclasses.replace(
        before, metrics=[win_rate(0.531)], funnel=dataclasses.replace(before.funnel, pairs=1000)
    )
    now = dataclasses.replace(now, metrics=[win_rate(0.54)], funnel=dataclasses.replace(now.funnel, pairs=2204))
    then, today = look_of(before), look_of(now)
    assert since_last(then, today).replace("\u00a0", " ") == "+1,204 pairs, win rate 53.1 → 54.0 %, decision unchanged"
    assert since_last(today, today).startswith("no new pairs, win rate 54.0 → 54.0")
    assert since_last(today, then).startswith("−1,204\u00a0pairs")  # a period was excluded
    assert since_sentence(then, today).startswith("Since the report of 12 Mar 2026, 10:00 UTC: +1,204")
    nothing = look_of(empty())
    assert since_last(nothing, nothing) == "no new pairs, decision unchanged"


def test_when_the_decision_changed() -> None:
    open_, shipped = look_of(at_day(0)), look_of(at_day(20))
    undone = DecisionChange(
        event="undone", at="2026-11-25T00:00:00Z", look=25, recommendation="ship", rule="ship", why="x"
    )
    again = dataclasses.replace(
        shipped, decision=dataclasses.replace(shipped.decision, changes=[*shipped.decision.changes, undone])
    )
    assert [is_change(None, open_), is_change(None, shipped), is_change(open_, open_), is_change(open_, shipped)] == [
        False, True, False, True,
    ]  # fmt: skip
    assert is_change(shipped, again)
    assert since_last(shipped, again).endswith(", the decision undone")


@pytest.mark.parametrize(
    ("decision", "words"),
    [
        # Made on 12 Mar 2026 at 10:00; 3.2 days later is the 15th.
        (Decision(recommendation="collect_more", reasons=[], horizon=Horizon(metric="m", requests=4300, days=3.2)),
         "decision expected about 15 Mar 2026 (4,300 more requests)"),
        (Decision(recommendation="collect_more", reasons=[], horizon=Horizon(metric="m", requests=4300)),
         "decision expected after about 4,300 more requests"),
        (Decision(recommendation="collect_more", reasons=[], horizon=Horizon(metric="m", requests=0, days=0.0)),
         "decision expected from the requests in the log"),
        (Decision(recommendation="collect_more", reasons=[]), "no forecast yet"),
        (Decision(recommendation="keep", reasons=[], decided_at="2026-03-11T00:00:00Z"), "decided 11 Mar 2026"),
        (Decision(recommendation="ship", reasons=[]), "decided"),
        (Decision(recommendation="invalid", reasons=[]), "no decision before the problem is corrected"),
    ],
)  # fmt: skip
def test_the_next_expected_decision(decision: Decision, words: str) -> None:
    assert expected(look(decision=decision)) == words


def test_the_history_names_decisions_and_exclusions_in_their_order() -> None:
    view = history_view([KeptLook(look=look_of(eventful()))], latest="../support-bot.html")
    assert [event.when.split(",")[0] for event in view.events] == [
        "4 Mar 2026",
        "5 Mar 2026",
        "5 Mar 2026",
        "6 Mar 2026",
    ]
    texts = [event.text.replace("\u00a0", " ") for event in view.events]
    assert texts[0].startswith("Decided: Ship the treatment. Its answers were preferred in 58 % of 500 judged pairs")
    assert texts[3] == "What decides changed (cost_per_request_usd)."
    excluded = next(text for text in texts if text.startswith("Excluded"))
    assert excluded.startswith("Excluded: 5 Mar 2026 09:00 to 11:30 UTC: wrong key of the treatment")


def points(*values: tuple[float, float | None, float | None, float | None]) -> list[LookPoint]:
    return [LookPoint(at=at * 86400.0, low=low, value=value, high=high) for at, low, value, high in values]


def chart(some: list[LookPoint], **changes: Any) -> Any:
    options: dict[str, Any] = {
        "center": 0.0, "margin": -0.03, "show": lambda v: f"{v:g}", "excluded": [], "changes": [], "title": "t",
        "description": "d",
    } | changes  # fmt: skip
    return ribbon_chart(some, **options)


def test_the_ribbon_has_a_stretch_for_each_run_of_intervals() -> None:
    some = points(
        (1, -0.1, 0, 0.1), (2, -0.08, 0.01, 0.1), (3, None, 0.02, None), (4, -0.02, 0.02, 0.06), (5, -0.01, 0.02, 0.05)
    )
    picture = chart(some, excluded=[(2.5 * 86400, 3 * 86400)], changes=[4 * 86400.0, 99 * 86400.0])
    root = ET.fromstring(str(picture))
    classes = [one.get("class") for one in root.iter()]
    assert classes.count("band") == 2
    assert classes.count("look-line") == 1  # the other one lies outside of what is drawn
    assert classes.count("excluded-time") == 1
    assert classes.count("margin-line") == 1
    assert classes.count("dot treatment") == 5
    assert chart(points((1, 0, 0, 0))) is None
    assert chart(points((1, 0, 0, 0), (1, 0, 0, 0))) is None
    assert chart(points((1, None, None, None), (2, None, None, None))) is None


def test_the_history_of_an_untrusted_json_shows_its_texts_and_does_nothing() -> None:
    document = report_json(hostile())
    found = read_look(document)
    later = dataclasses.replace(found, generated_at="2026-04-01T00:00:00+00:00")
    page = render_history([KeptLook(look=found), KeptLook(look=later, href='x"><script>')], latest='"><script>HIT')
    assert not re.search(r"<script>(?!\n?\"use strict\")", page)
    index = render_index([Listed(look=found, name='"><script>.html', history='"><script>')])
    assert not re.search(r"<script>(?!\n?\"use strict\")", index)


def test_the_index_lists_state_question_and_what_is_expected(tmp_path: Path) -> None:
    asked = dataclasses.replace(mixed(), provenance=mixed().provenance | {"about": {"question": "Is it <good>?"}})
    write_analysis(asked, tmp_path / "a.html")
    write_analysis(demo_like(), tmp_path / "demo.html")
    page, n = write_index(tmp_path, check=unchecked)
    text = page.read_text()
    assert n == 2
    assert "Is it &lt;good&gt;?" in text
    assert "Keep gpt-4o-2024-08-06; do not switch to claude-haiku-4-5 yet" in text
    assert "no forecast yet" in text
    assert "simulated judge" in text
    assert ">history</a>" not in text  # none is kept beside these


def test_forgetting_takes_the_texts_out_of_the_pages_of_the_history(tmp_path: Path) -> None:
    workspace = Workspace(root=tmp_path, data=tmp_path / "data", config=None)
    secret = [example(1, prompt=[{"role": "user", "content": "SECRET question"}])]
    for day in range(2):
        report(workspace.reports, dataclasses.replace(at_day(day), examples=secret))
    other = dataclasses.replace(at_day(0), experiment="other", examples=secret)
    report(workspace.reports, other)
    assert scrub_reports(workspace, "support-bot", {"req-0001"}, dry_run=True) == 3
    assert scrub_reports(workspace, "support-bot", {"req-0001"}, dry_run=False) == 3
    pages = [*workspace.reports.glob("*.html"), *workspace.reports.glob("*/*.html")]
    assert len(pages) == 8  # two reports, three pages of looks, two histories, the index
    holding = {str(page.relative_to(workspace.reports)) for page in pages if b"SECRET" in page.read_bytes()}
    assert holding == {"other.html", "other/2026-11-01T0914Z.html"}
    assert scrub_reports(workspace, "support-bot", {"req-0001"}, dry_run=False) == 0


def test_the_json_of_a_look_is_the_report_json(tmp_path: Path) -> None:
    report(tmp_path, at_day(0))
    document = json.loads((tmp_path / "support-bot" / "2026-11-01T0914Z.json").read_bytes())
    assert document == json.loads((tmp_path / "support-bot.json").read_bytes())
    assert document["schema_version"] == 1


def test_an_excluded_period_is_on_the_picture() -> None:
    looks = [
        KeptLook(look=look_of(dataclasses.replace(eventful(), generated_at=f"2026-03-{day:02d}T10:00:00+00:00")))
        for day in (4, 5, 6)
    ]
    page = render_history(looks, latest="a.html")
    assert page.count('class="excluded-time"') >= 1
    assert EXCLUSION["why"] in page
