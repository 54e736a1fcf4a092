"""`--until-decided`: when it looks, at what, and when it stops."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_provider import Call, FakeProvider, Response, verdict
from test_judging_run import run, workspace

from evalpipe.cli.judge_text import summary_lines
from evalpipe.judging.plan import JudgeCall
from evalpipe.judging.stopping import EarlyStopper, LookResult, PlannedPair
from evalpipe.models import Judgment, JudgmentStatus, ShownFirst
from evalpipe.workspace.analyze import analyze_workspace
from evalpipe.workspace.paths import open_workspace
from evalpipe.workspace.record import load_record


def result(*, stop: bool = False, blocks: bool = True) -> LookResult:
    return LookResult(
        stop=stop, reason="because", win_rate_blocks=blocks, recommendation="collect_more", rule="collect_more"
    )


def never(preferences: Sequence[float], n_pairs: int) -> LookResult:
    return result()


def pair(
    request_id: str, user: int, n_open: int = 2, known: dict[ShownFirst, list[float]] | None = None
) -> PlannedPair:
    return PlannedPair(request_id=request_id, user=user, n_open=n_open, known=known or {})


def answer(
    decider: EarlyStopper, request_id: str, *preferences: float | None, first: ShownFirst = ShownFirst.CONTROL
) -> str | None:
    """The calls of a pair end, in both orders: each with a preference, or as a failure."""
    reason = None
    for order, preference in zip((first, *(one for one in (ShownFirst.CONTROL, ShownFirst.TREATMENT) if one is not first)),
                                 preferences, strict=False):  # fmt: skip
        ask = JudgeCall(
            key=f"{request_id}{order}", attempt=0, request_id=request_id, shown_first=order, repeat=0, request="q"
        )
        judgment = Judgment(
            key=ask.key,
            attempt=1,
            request_id=request_id,
            judge="j",
            judge_fingerprint="f",
            judge_model="m",
            shown_first=order,
            status=JudgmentStatus.ERROR if preference is None else JudgmentStatus.OK,
            preference=preference,
        )
        reason = decider.watch(ask, judgment) or reason
    return reason


def test_a_user_is_the_mean_of_the_pairs_with_a_verdict_and_only_the_beginning_counts() -> None:
    pairs = [pair("a1", 1), pair("a2", 1), pair("a3", 1), pair("b1", 2), pair("c1", 3)]
    decider = EarlyStopper(never, pairs, both_orders=True)
    answer(decider, "c1", 1.0, 1.0)
    answer(decider, "a1", 1.0, 0.5)
    answer(decider, "a2", 0.0, None)  # one order failed: the pair is missing
    assert decider.preferences == []  # a3 is open: user 1 is not complete, so nothing behind it counts
    answer(decider, "a3", 0.0, 0.0)
    assert decider.preferences == [0.375]  # (0.75 + 0) / 2
    answer(decider, "b1", None, None)
    assert (decider.preferences, decider.n_pairs) == ([0.375, 1.0], 3)  # user 2 has no verdict


def test_one_order_is_enough_where_one_was_promised() -> None:
    decider = EarlyStopper(never, [pair("a1", 1, 1), pair("b1", 2, 2)], both_orders=False)
    answer(decider, "a1", 1.0)
    answer(decider, "b1", None, 0.0)
    assert decider.preferences == [1.0, 0.0]


def test_it_looks_after_ten_newly_completed_users_and_not_before() -> None:
    seen: list[int] = []

    def look(preferences: Sequence[float], n_pairs: int) -> LookResult:
        seen.append(len(preferences))
        return result()

    decider = EarlyStopper(look, [pair(f"p{n}", n) for n in range(35)], both_orders=True)
    assert decider.start() is None
    for n in range(35):
        assert answer(decider, f"p{n}", 1.0, 0.0) is None
    assert seen == [10, 20, 30]
    assert [(one.n_users, one.n_pairs, one.is_new) for one in decider.looks] == [
        (10, 10, True),
        (20, 20, True),
        (30, 30, True),
    ]


@pytest.mark.parametrize(("stop", "blocks"), [(True, True), (False, False)])
def test_it_stops_by_a_rule_or_where_the_win_rate_no_longer_blocks(stop: bool, blocks: bool) -> None:
    def look(preferences: Sequence[float], n_pairs: int) -> LookResult:
        return result(stop=stop, blocks=blocks) if len(preferences) >= 20 else result()

    decider = EarlyStopper(look, [pair(f"p{n}", n) for n in range(30)], both_orders=True)
    reasons = [answer(decider, f"p{n}", 1.0, 1.0) for n in range(20)]
    assert reasons[:19] == [None] * 19
    assert reasons[19] == "because, after 20 users with 20 pairs"


def test_what_is_known_already_may_decide_before_the_first_call() -> None:
    known = {ShownFirst.CONTROL: [1.0], ShownFirst.TREATMENT: [1.0]}
    decider = EarlyStopper(
        lambda preferences, n_pairs: result(blocks=False),
        [pair(f"p{n}", n, 0, known) for n in range(12)],
        both_orders=True,
    )
    assert decider.start() == "because, after 12 users with 12 pairs"
    assert [look.is_new for look in decider.looks] == [False]


def rows(n_users: int, n_pairs: int, *, good: str = "response_b", later: int = 0) -> list[dict[str, Any]]:
    """Users with some pairs each, and later turns of their first conversation; the answer `good` holds the word "good"."""
    found: list[dict[str, Any]] = []
    for user in range(n_users):
        for n in range(n_pairs + later):
            opening = {"role": "user", "content": f"question {user} {0 if n >= n_pairs else n}"}
            more = (
                [{"role": "assistant", "content": "yes"}, {"role": "user", "content": f"then {n}"}]
                if n >= n_pairs
                else []
            )
            found.append(
                {
                    "pair_id": f"{user}-{n}" + ("-later" if n >= n_pairs else ""),
                    "unit_id": f"u{user}",
                    "started_at": 1_780_000_000 + 60 * (n_users * n + user),
                    "prompt": [opening, *more],
                    "response_a": "good" if good == "response_a" else "bad",
                    "response_b": "good" if good == "response_b" else "bad",
                }
            )
    return found


def good_wins(call: Call) -> Response:
    return Response(verdict("response_1" if "good" in call.blocks["response-1"] else "response_2", 5, 5))


def test_a_run_pays_for_three_pairs_a_user_and_stops(tmp_path: Path) -> None:
    with FakeProvider(good_wins) as provider:
        found = workspace(tmp_path, provider.url, rows(60, 12))
        summary = run(found, until_decided=True)
        assert (summary.stopped, summary.n_over_cap) == ("decided", 60 * 9)
        judged = provider.calls
        with_user = {call.user.split("question ")[1].split()[0] for call in judged}
        assert len(with_user) <= 60
        assert len(judged) <= 2 * 3 * 60
        message = str(summary.message)
        assert "Ship the treatment" in message
        assert f"; {summary.n_calls} calls and ${summary.spent_usd:,.4f} in this run" in message
        record = load_record(found.data, "t")
        assert record is not None
        (stop,) = record.judged_until.values()
        assert stop.conclusion is not None
        assert stop.conclusion in message
        assert record.n_looks == stop.n_units // 10
        # The verdicts there are decide again without a call; what was in flight at the stop makes it one more look.
        n_calls = len(judged)
        again = run(found, until_decided=True)
        assert (again.stopped, len(provider.calls)) == ("decided", n_calls)
        assert load_record(found.data, "t").n_looks <= record.n_looks + 1  # type: ignore[union-attr]


def test_the_report_agrees_with_the_look_at_which_judging_stopped(tmp_path: Path) -> None:
    """The decision of the last look is the recorded one; a report beside it decides the same."""
    with FakeProvider(good_wins) as provider:
        found = workspace(tmp_path, provider.url, rows(60, 12))
        run(found, until_decided=True)
        record = load_record(found.data, "t")
        assert record is not None and record.decided is not None
        assert (record.decided.recommendation, record.decided.look) == ("ship", record.n_looks)
        report = analyze_workspace(found, details=False)
        assert (report.decision.recommendation, report.decision.decided_look) == ("ship", record.decided.look)
        assert record.set_number == load_record(found.data, "t").set_number  # type: ignore[union-attr]


def test_guardrails_that_are_open_do_not_keep_the_judge_busy(tmp_path: Path) -> None:
    """The win rate is won at once; what the error rate still needs is requests, not verdicts."""
    served = [{**row, "status_a": 200, "status_b": 200} for row in rows(200, 1)]
    with FakeProvider(good_wins) as provider:
        found = workspace(tmp_path, provider.url, served)
        summary = run(found, until_decided=True)
    assert summary.stopped == "decided"
    words = "  stopped: more judging would not change the decision; not settled: error rate"
    (line,) = [line for line in summary_lines([summary]) if "stopped" in line]
    assert line.startswith(words)
    (told,) = [one for one in analyze_workspace(found, details=False).checks if one.name == "judging_stopped"]
    assert told.detail.count(" users") == 1
    assert "Collect more data" not in told.detail
    assert summary.n_ended < summary.n_planned
    assert load_record(found.data, "t").decided is None  # type: ignore[union-attr]


def test_later_turns_are_asked_and_never_decide(tmp_path: Path) -> None:
    """The treatment wins every first turn and loses every later one; 20 % of the calls are later turns."""

    def first_good(call: Call) -> Response:
        is_later = "then" in call.blocks["request"]
        treatment = "response_1" if "good" in call.blocks["response-1"] else "response_2"
        control = "response_2" if treatment == "response_1" else "response_1"
        return Response(verdict(control if is_later else treatment, 5, 5))

    with FakeProvider(first_good) as provider:
        found = workspace(
            tmp_path, provider.url, rows(60, 2, later=3), settings="requests_per_minute = 60000\nconcurrency = 1\n"
        )
        summary = run(found, until_decided=True)
    assert summary.stopped == "decided"
    assert "its answers were preferred in 100" in str(summary.message)
    n_later = sum("then" in call.blocks["request"] for call in provider.calls)
    assert abs(n_later - 0.2 * len(provider.calls)) <= 2


def test_a_harmful_treatment_stops_judging_too(tmp_path: Path) -> None:
    with FakeProvider(good_wins) as provider:
        found = workspace(tmp_path, provider.url, rows(200, 1, good="response_a"))
        summary = run(found, until_decided=True)
    assert summary.stopped == "decided"
    assert "Keep control" in str(summary.message)
    assert "worse by more than the 3 points allowed" in str(summary.message)
    assert summary.n_ended < summary.n_planned


def test_verdicts_outside_of_the_selection_count_as_they_do_in_the_report(tmp_path: Path) -> None:
    from evalpipe.store.query import read_selection

    with FakeProvider(good_wins) as provider:
        found = workspace(tmp_path, provider.url, rows(60, 1))
        run(found, limit=40)
        n_calls = len(provider.calls)
        judged = {call.user.split("question ")[1].split()[0] for call in provider.calls}
        others = [f"{user}-0" for user in range(60) if str(user) not in judged]
        chosen = read_selection(where=f"list_contains({json.dumps(others)}::VARCHAR[], request_id)".replace('"', "'"))
        summary = run(open_workspace(tmp_path / "evalpipe.toml"), until_decided=True, selection=chosen)
        assert (summary.stopped, len(provider.calls)) == ("decided", n_calls)
        assert "after 40 users with 40 pairs" in str(summary.message)
