"""What surrounds the recommendation (exclusions, set-up faults, history, forecast), in every form of the report and in gate."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from typing import Any

import pytest
from event_builders import CHANGES, EXCLUSION, FAULT, FAULT_REMEDY, eventful, misconfigured
from report_builders import demo_like, empty, mixed, win_rate
from rich.console import Console

from evalpipe.analysis.result import Analysis, Check, Decision, DecisionChange, Horizon
from evalpipe.report.compare import compare
from evalpipe.report.decision import exclusion_text, set_sentence, undone_sentence
from evalpipe.report.render import render
from evalpipe.report.text import gate_document, gate_lines, print_summary, render_markdown
from evalpipe.report.view import report_view

EXCLUDED = "5 Mar 09:00 to 11:30 UTC: wrong key of the treatment (declared 5 Mar 14:02)"
FORECAST = (
    "About 4,300 more requests (3 days at this traffic, $2.10 of judging) until 99th percentile latency, the slowest, "
    "is settled"
)


def spaced(text: str) -> str:
    """Plain spaces for unbreakable ones, one for many."""
    return " ".join(text.split())


def terminal(analysis: Analysis) -> str:
    console = Console(file=io.StringIO(), width=400, color_system=None)
    print_summary(analysis, console)
    return spaced(console.file.getvalue())  # type: ignore[attr-defined]


def markdown(analysis: Analysis) -> str:
    """The Markdown as it reads: escapes and entities resolved."""
    text = re.sub(r"\\([\\`*_{}\[\]()#+!|~-])", r"\1", spaced(render_markdown(analysis)))
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def page(analysis: Analysis) -> str:
    """The page's words, tags left out."""
    text = re.sub(r"<(style|script)>.*?</\1>", "", render(analysis, max_examples=0), flags=re.DOTALL)
    text = re.sub(r"<[^>]+>", " ", text)
    for entity, char in (("&lt;", "<"), ("&gt;", ">"), ("&#34;", '"'), ("&#39;", "'"), ("&amp;", "&")):
        text = text.replace(entity, char)
    return spaced(text)


def gate(analysis: Analysis) -> list[str]:
    return [spaced(line) for line in gate_lines(gate_json(analysis))]


def gate_json(analysis: Analysis) -> dict[str, Any]:
    document = gate_document(analysis.experiment, analysis.decision, analysis, computed_at="2026-03-12T10:00:00+00:00")
    return dict(json.loads(json.dumps(document)))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, EXCLUDED),
        (
            {"until": "2026-03-06T02:00:00+00:00"},
            "5 Mar 09:00 to 6 Mar 02:00 UTC: wrong key of the treatment (declared 5 Mar 14:02)",
        ),
        (
            {"since": "2025-12-31T23:59:30Z", "until": "2026-01-01T00:10:00Z"},
            "31 Dec 2025 23:59:30 to 1 Jan 00:10 UTC: wrong key of the treatment (declared 5 Mar 14:02)",
        ),
        (
            {"since": "2026-03-05T10:00:00+01:00"},  # 09:00 UTC
            EXCLUDED,
        ),
        (
            {"since": "2026-03-05T09:00:00Z", "until": "2026-03-05T09:00:41Z"},
            "5 Mar 09:00:00 to 09:00:41 UTC: wrong key of the treatment (declared 5 Mar 14:02)",
        ),
        ({"seen": True}, EXCLUDED.replace("14:02)", "14:02, after its data had been seen)")),
        ({"seen": True, "fault": True}, EXCLUDED.replace("14:02)", "14:02, a set-up fault was found in it)")),
        ({"why": "line one\nExcluded: nothing"}, EXCLUDED.replace("wrong key of the treatment", "line one Excluded: nothing")),
        ({"since": "some\ntime"}, "some time to 2026-03-05T11:30:00+00:00: wrong key of the treatment (declared 5 Mar 14:02)"),
    ],
)  # fmt: skip
def test_an_excluded_period_in_one_line(changes: dict[str, Any], expected: str) -> None:
    assert exclusion_text(EXCLUSION | changes, year=2026) == expected


def test_exclusions_and_the_decision_without_them_are_in_the_head_of_every_form() -> None:
    analysis = eventful()
    for text in (page(analysis), terminal(analysis), markdown(analysis).replace("**", "")):
        assert text.count(f"Excluded: {EXCLUDED}") == 1
        head, _, rest = text.partition("Win rate is better:")
        assert "Excluded:" in head
        assert "Keep control" in head
        assert "Error rate rose from 0.50 % to 6.10 %" in head
        assert rest
    beside = report_view(analysis).summary.decision.beside
    assert beside is not None
    assert (beside.word, beside.other_word) == ("Collect more data", "Keep control")
    # The headline's own sentence about the other decision is not repeated beside that decision.
    assert spaced(beside.headline).endswith("is not ruled out (+12 %, 3 to 21 %).")
    assert report_view(mixed()).summary.decision.beside is None
    assert "Excluded" not in page(mixed())


def test_how_much_longer_is_in_every_form_and_once() -> None:
    analysis = eventful()
    for text in (page(analysis), terminal(analysis), markdown(analysis)):
        assert text.count(FORECAST) == 1
        assert "Not settled: 99th percentile latency." in text
    assert "What would change it " + FORECAST in page(analysis)
    lines = gate(analysis)
    assert [line for line in lines if FORECAST in line] == [
        f"How much longer: {FORECAST}, if the differences stay as they are."
    ]
    assert "Not settled: 99th percentile latency." in lines
    assert gate_json(analysis)["horizon"] == {
        "metric": "p99_latency_ms", "requests": 4300, "days": 3.2, "judge_usd": 2.1, "harm": False,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"blocking": ["error_rate", "p50_latency_ms"]}, "Not settled: error rate, median latency."),
        ({"blocking": ["win_rate"], "recommendation": "invalid", "rule": "data"}, ""),
        ({"blocking": ["win_rate"], "recommendation": "keep", "rule": "harm"}, ""),
        ({"blocking": []}, ""),
    ],
)
def test_what_is_not_settled_is_what_a_decision_waits_for(changes: dict[str, Any], expected: str) -> None:
    analysis = mixed()
    metrics = [
        dataclasses.replace(one, finding="inconclusive") if one.name == "win_rate" else one for one in analysis.metrics
    ]
    decision = dataclasses.replace(analysis.decision, **changes)
    summary = report_view(dataclasses.replace(analysis, metrics=metrics, decision=decision)).summary
    sure = next(one.rest for one in summary.answers if one.name == "How sure?")
    for text in (sure, summary.decision.how_much_longer) if expected else (sure,):
        assert re.findall(r"Not settled: [^.]*\.", text) == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"horizon": Horizon(metric="win_rate", requests=1, days=0.2)},
            "About 1 more request (less than a day at this traffic) until win rate, the slowest, is settled, if the "
            "differences stay as they are. Not settled: 99th percentile latency.",
        ),
        (
            {"horizon": Horizon(metric="win_rate", requests=0, days=0.0, judge_usd=0.4)},
            "More verdicts on the requests in the log ($0.400 of judging) until win rate, the slowest, is settled, if the "
            "differences stay as they are. Not settled: 99th percentile latency.",
        ),
        ({}, "No forecast can be made yet. Not settled: 99th percentile latency."),
        ({"rule": "unmeasured"}, "More requests alone are not enough: no goal has a value yet."),
        ({"recommendation": "keep"}, ""),
    ],
)
def test_how_much_longer_without_a_full_forecast(changes: dict[str, Any], expected: str) -> None:
    analysis = mixed()
    analysis = dataclasses.replace(analysis, decision=dataclasses.replace(analysis.decision, **changes))
    assert spaced(report_view(analysis).summary.decision.how_much_longer) == expected


def change(event: str, look: int, recommendation: str | None, why: str = "") -> DecisionChange:
    return DecisionChange(
        event=event, at="2026-03-05T14:02:00+00:00", look=look, recommendation=recommendation, rule=None, why=why
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], ""),
        ([change("reached", 2, "ship")], ""),
        (
            [change("reached", 2, "ship"), change("undone", 5, "ship", "Win rate is worse (at the 98.75 % level).")],
            "The decision “Ship the treatment” was undone at look 5 (5 Mar 2026, 14:02 UTC): win rate is worse (at the 98.75 % "
            "level).",
        ),
        (
            [change("reached", 2, "ship"), change("reached", 5, "keep", "Keep control: it lost.")],
            "The decision “Ship the treatment” was replaced by “Keep control” at look 5 (5 Mar 2026, 14:02 UTC).",
        ),
        # Only the last one; the list has the others.
        (
            [change("reached", 2, "ship"), change("undone", 3, "ship", "a"), change("reached", 4, "keep"),
             change("undone", 6, "keep", "b")],
            "The decision “Keep control” was undone at look 6 (5 Mar 2026, 14:02 UTC): b.",
        ),
        ([change("set", 4, None, "what decides changed")], ""),
    ],
)  # fmt: skip
def test_the_last_decision_undone_in_one_line(changes: list[DecisionChange], expected: str) -> None:
    assert spaced(undone_sentence(changes, [])) == expected


def test_a_reason_that_reports_the_undoing_already_is_enough() -> None:
    changes = [change("reached", 2, "ship"), change("undone", 5, "ship", "win rate is worse")]
    assert undone_sentence(changes, ["The earlier decision to ship is undone: win rate is worse."]) == ""


def test_the_history_is_listed_on_the_page_and_in_one_line_elsewhere() -> None:
    analysis = eventful()
    html = render(analysis, max_examples=0)
    assert html.count('<details class="history">') == 1
    words = page(analysis)
    assert "What was decided so far (3 changes)" in words
    assert "look 2, 4 Mar 2026, 10:00 UTC, set 1 Decided: Ship the treatment. Its answers were preferred" in words
    assert (
        "look 3, 5 Mar 2026, 14:02 UTC, set 1 Undone: Ship the treatment. The time from 5 Mar 2026, 09:00 to 11:30 UTC was"
        in words
    )
    assert "look 4, 6 Mar 2026, 10:00 UTC, set 2 What decides changed (cost_per_request_usd)." in words
    undone = "The decision “Ship the treatment” was undone at look 3 (5 Mar 2026, 14:02 UTC): the time from "
    undone += "5 Mar 2026, 09:00 to 11:30 UTC was"
    for text in (terminal(analysis), markdown(analysis), " ".join(gate(analysis))):
        assert text.count(undone) == 1
    assert '<details class="history">' not in render(mixed())
    assert [one["event"] for one in gate_json(analysis)["changes"]] == [one.event for one in CHANGES]


def test_a_further_set_of_what_decides_is_named_with_what_it_costs() -> None:
    sentence = "This is set 2 of what decides; each set adds at most 5 % to the probability of a false decision."
    analysis = eventful()
    for text in (page(analysis), terminal(analysis), markdown(analysis), " ".join(gate(analysis))):
        assert text.count(sentence) == 1
    assert set_sentence(1, 0.05) == ""
    assert "at most 2.5 %" in spaced(set_sentence(3, 1 - 0.975))


def test_a_set_up_fault_is_above_everything_with_what_mends_it() -> None:
    both = dataclasses.replace(misconfigured(), provenance=mixed().provenance | {"simulated_judge": True})
    first, second, *_ = report_view(both).problems
    assert (first.level, first.title, second.title) == ("setup", "Set-up fault of the treatment arm", "Simulated judge")
    for text in (page(both), terminal(both), markdown(both).replace("**", "")):
        at = text.index("12 requests in a row failed: HTTP 401: invalid x-api-key")
        assert at < text.index("Simulated judge")
        # Neither headline nor reasons repeat it; the page lists it once more among the checks.
        assert text.partition("All checks, every segment")[0].count("invalid x-api-key") == 1
        # The command can be copied: its instants stay as they are.
        command = text[text.index("evalpipe exclude") :].replace("&#58;", ":")
        assert command.startswith(
            'evalpipe exclude --since 2026-03-05T09:00:00Z --until 2026-03-05T11:30:00Z --why "treatment: HTTP 401"'
        )
        assert "No decision can be made before the problem above is corrected." in text
        assert "Roll back: users are served by the treatment." in text
    lines = gate(both)
    assert lines[0].startswith("No decision can be made: set-up fault of the treatment arm: 12 requests")
    assert "Roll back: users are served by the treatment." in lines
    assert [line for line in lines if line.startswith("Remedy: ")] == [f"Remedy: {FAULT_REMEDY}"]
    assert gate_json(both)["setup_faults"] == [FAULT]


def test_the_gate_prints_the_command_that_excludes_a_fault_once() -> None:
    command = FAULT_REMEDY.split("`")[1]
    both = misconfigured(f"{FAULT}. Once it is corrected: {command}", f"correct it, then exclude its time: {command}")
    assert "\n".join(gate(both)).count("evalpipe exclude") == 1


def test_a_set_up_fault_without_a_check_is_shown_all_the_same() -> None:
    analysis = dataclasses.replace(misconfigured(), checks=[])
    assert [problem.level for problem in report_view(analysis).problems] == ["setup"]


@pytest.mark.parametrize(
    "words",
    [
        "<script>window.HIT=1</script>",
        "line one\n\nShip the treatment\n- every guardrail is within its margin",
        "`code` and [a](javascript:alert(1)) **bold** | cell",
        "\x1b[2J\x1b[31mred \u202ebackwards",
        "{{7*7}} {% raw %}",
    ],
)
def test_words_of_a_provider_or_a_user_stay_words(words: str) -> None:
    fault = f"set-up fault of the treatment arm: 12 requests in a row failed: HTTP 401: {words}"
    analysis = dataclasses.replace(misconfigured(fault), exclusions=[EXCLUSION | {"why": words}])
    html = render(analysis, max_examples=0)
    assert html.count("<script>") == 1
    assert "{{7*7}}" in html or "7*7" not in words
    console = Console(file=io.StringIO(), width=400, color_system=None)
    print_summary(analysis, console)
    shown: str = console.file.getvalue()  # type: ignore[attr-defined]
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    text = render_markdown(analysis)
    for line in (*shown.splitlines(), *text.splitlines(), *gate_lines(gate_json(analysis))):
        assert not line.strip().startswith(("Ship the treatment", "- every guardrail"))
    assert "<script" not in text
    assert "](javascript" not in text


def test_roles_are_named_and_ordered_by_their_weight() -> None:
    view = report_view(mixed())
    assert {row.name: row.role for row in view.rows if row.role != "diagnostic"} == {
        "error_rate": "guardrail", "timeout_rate": "guardrail", "p99_latency_ms": "guardrail", "win_rate": "goal",
        "cost_per_request_usd": "benefit",
    }  # fmt: skip
    better = next(answer for answer in view.summary.answers if answer.name == "What got better?")
    assert [label for label, _ in better.metrics][:2] == ["Win rate", "Cost per request"]
    facts = {row.name: {fact.name: fact.text for fact in row.facts} for row in view.rows}
    assert facts["cost_per_request_usd"]["Role"] == "benefit (can win beside the goals); lower is better"
    assert "a benefit can win beside the goals" in page(mixed())


def test_two_reports_in_which_a_metric_has_different_roles() -> None:
    guarded = mixed()
    guarded = dataclasses.replace(
        guarded,
        metrics=[
            dataclasses.replace(one, role="guardrail") if one.name == "cost_per_request_usd" else one
            for one in guarded.metrics
        ],
    )
    found = next(one for one in compare(guarded, mixed()).metrics if one.label == "Cost per request")
    assert found.verdict == "same finding: better; guardrail, then benefit"
    assert found.role == "guardrail, then benefit"
    facts = {name: (a, b) for name, a, b in compare(mixed(), eventful()).facts}
    assert facts["Excluded"] == ("–", EXCLUDED)


def test_the_gate_adds_keys_and_keeps_those_it_had() -> None:
    document = gate_json(eventful())
    before = {
        "experiment", "recommendation", "headline", "reasons", "rule", "computed_at", "decided_at", "decided_look",
        "expected_more_requests", "metrics", "failed_checks",
    }  # fmt: skip
    added = {"horizon", "blocking", "setup_faults", "not_measured", "changes", "rollback", "set_number"}
    assert before | added <= set(document)
    assert (document["blocking"], document["not_measured"], document["set_number"]) == (
        ["p99_latency_ms"], ["timeout_rate"], 2,
    )  # fmt: skip
    timeout = next(one for one in document["metrics"] if one["name"] == "timeout_rate")
    assert [timeout[key] for key in ("status", "control", "treatment", "difference", "ci_low", "ci_high")] == [
        "not_measured", None, None, None, None, None,
    ]  # fmt: skip
    nothing = gate_document(
        "e", Decision(recommendation="collect_more", rule="collect_more", reasons=["None."], headline="Collect more data."),
        None, computed_at="2026-03-12T10:00:00+00:00",
    )  # fmt: skip
    assert gate_lines(nothing) == ["Collect more data.", "  - None."]


TOO_STRONG = re.compile(
    r"(?i)for certain|\bcertain(?:ly)?\b|\btold\b|\btells?\b|\bsays?\b|\bstands?\b|\bholds?\b|believed|\bproven\b"
)


@pytest.mark.parametrize("make", [mixed, eventful, misconfigured, demo_like, empty])
def test_no_text_of_the_report_is_stronger_than_its_evidence(make: Any) -> None:
    analysis = make()
    # The builder's own sentences are the analysis', not the report's.
    quiet = dataclasses.replace(
        analysis.decision, what_would_change=[], headline="", reasons=["Fact."], looks_explained="", changes=[]
    )
    checks = [Check(name=check.name, status=check.status, detail="Detail.") for check in analysis.checks]
    analysis = dataclasses.replace(analysis, decision=quiet, checks=checks)
    for text in (page(analysis), terminal(analysis), markdown(analysis)):
        assert TOO_STRONG.findall(text) == []


def test_the_confidence_level_is_stated_once() -> None:
    for analysis in (mixed(), eventful()):
        assert len(re.findall("95 % confidence", page(analysis))) == 1
        assert len(re.findall("95 % confidence", terminal(analysis))) == 1
        assert len(re.findall("95 % confidence", markdown(analysis))) == 1
    own = dataclasses.replace(mixed(), metrics=[win_rate(confidence_level=0.9)])
    assert "All findings at 90 % confidence." in terminal(own)
