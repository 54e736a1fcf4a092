"""The account of a judge over runs, rubrics, settlements and crashes: nothing that may have been billed leaves it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fake_provider import Call, FakeProvider, Response, longer_wins, render
from test_judging_run import FAST, pairs, rows, run, workspace
from test_judging_settle import ANSWERED, OPTIONS, crashed, held

from evalpipe.calls.batches import BatchState, save_intent
from evalpipe.calls.journal import Journal, compact, judging_lock, read_journal
from evalpipe.calls.runner import RecordedCost, SystemClock
from evalpipe.errors import BudgetError, WorkspaceBusyError
from evalpipe.judging.judgments import sent
from evalpipe.judging.plan import calls_for
from evalpipe.models import Judgment, JudgmentStatus, ShownFirst
from evalpipe.store.query import open_store, read_selection
from evalpipe.workspace import call_runs, judge_setup
from evalpipe.workspace.judge import judge, judge_by_batches
from evalpipe.workspace.judge_review import self_test, settle
from evalpipe.workspace.judge_setup import JudgeOptions
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import Workspace, open_workspace


@pytest.fixture(autouse=True)
def quick_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalpipe.calls.runner.BACKOFF_S", 0.001)


def judgment(key: str, status: JudgmentStatus = JudgmentStatus.ERROR, **fields: Any) -> Judgment:
    facts: dict[str, Any] = {"judge": "pairwise", "judge_fingerprint": "older", "judge_model": "m", **fields}
    return Judgment(key=key, attempt=1, request_id="p0", shown_first=ShownFirst.CONTROL, status=status, **facts)


def lost(found: Workspace, booking: RecordedCost, *, attempt: int = 1, repair: bool = False, **fields: Any) -> None:
    """Leave the journal of a killed run: one call about the first pair was sent."""
    (spec,) = judge_setup.load_specs(found)
    with open_store(found.data, "t") as store:
        ask = calls_for(store.connection, spec, ["p0"])[0]
    journal = Journal(judge_setup.journal_folder(found, "t"))
    call = sent(ask, attempt, spec, booking=booking, at=SystemClock().utc(), repair=repair)
    journal.begin(replace(call, **fields))
    journal.close()
    judge_setup.recover(found, "t")


def test_each_paid_try_is_a_row_and_counts(tmp_path: Path) -> None:
    """Both orders of a pair, three tries each, all of which may be billed."""
    with FakeProvider(lambda call: Response("x", drop=True)) as provider:
        found = workspace(tmp_path, provider.url, pairs(1), settings=FAST + "concurrency = 1\n")
        summary = run(found)
    assert rows(found, "SELECT count(*), count(DISTINCT judgment_id) FROM judgments") == [(6, 6)]
    assert summary.account is not None and summary.account.n_unsettled == 6


def test_a_try_that_breaks_off_stays_held_at_its_worst(tmp_path: Path) -> None:
    """Three tries would follow each other; the cap has room for two of which nobody reports the cost."""
    with FakeProvider(lambda call: Response("x", drop=True)) as provider:
        found = workspace(tmp_path, provider.url, pairs(1), settings=FAST + "concurrency = 1\n")
        with pytest.raises(BudgetError, match=r"can cost \$[0-9.]+") as refused:
            run(found, max_usd=1e-6)
        worst = float(str(refused.value).split("can cost $")[1].split(",")[0])
        run(found, max_usd=2.5 * worst)
    assert len(provider.calls) == 2


def test_a_try_of_a_later_run_is_another_row(tmp_path: Path) -> None:
    """What the first run's tries may have cost stays beside the answer."""
    with FakeProvider(lambda call: Response("x", drop=True)) as provider:
        found = workspace(tmp_path, provider.url, pairs(1), settings=FAST + "concurrency = 1\n")
        run(found)
        provider.behaviour = longer_wins
        tally = run(found)
    found_rows = rows(
        found, "SELECT status, count(*), count(DISTINCT judgment_id) FROM judgments GROUP BY 1 ORDER BY 1"
    )
    assert found_rows == [("error", 6, 6), ("ok", 2, 2)]
    assert rows(found, "SELECT count(DISTINCT judgment_id), min(attempt), max(attempt) FROM judgments") == [(8, 1, 4)]
    assert tally.account is not None and tally.account.n_unsettled == 6


def test_what_a_killed_run_was_answered_is_not_asked_again(tmp_path: Path) -> None:
    """The answer lies in the journal alone."""
    with FakeProvider(longer_wins) as provider:
        found = workspace(tmp_path, provider.url, pairs(1), settings=FAST)
        (spec,) = judge_setup.load_specs(found)
        with open_store(found.data, "t") as store:
            ask = calls_for(store.connection, spec, ["p0"])[0]
        journal = Journal(judge_setup.journal_folder(found, "t"))
        call = sent(ask, 1, spec, booking=RecordedCost(cost_usd=0.001), at=SystemClock().utc())
        journal.begin(call)
        journal.append(replace(call, status=JudgmentStatus.OK, winner="treatment", preference=1.0))
        journal.close()
        run(found)
    assert len(provider.calls) == 1, "the other order"
    assert rows(found, "SELECT status, count(*) FROM judgments GROUP BY 1") == [("ok", 2)]


def test_a_run_whose_journal_rotates_stores_every_answer_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_runs, "ROTATE_AFTER_LINES", 4)
    monkeypatch.setattr("evalpipe.judging.plan._PAGE_MIN", 3)
    with FakeProvider(longer_wins) as provider:
        found = workspace(tmp_path, provider.url, pairs(12), settings=FAST)
        run(found)
    assert len(provider.calls) == 24
    assert rows(found, "SELECT count(*), count(DISTINCT judgment_id) FROM judgments WHERE status = 'ok'") == [(24, 24)]


def test_waiting_for_a_limit_holds_nothing(tmp_path: Path) -> None:
    # Four calls at once, then one each quarter of a second: a wait that held its worst case at each look would use up the cap.
    limits = FAST.replace("requests_per_minute = 60000", "requests_per_minute = 240")
    with FakeProvider(longer_wins) as provider:
        found = workspace(tmp_path, provider.url, pairs(3), settings=limits + "concurrency = 1\n")
        summary = run(found, max_usd=0.03)
    assert (summary.stopped, summary.n_succeeded) == (None, 6)


def test_no_more_calls_are_in_flight_than_the_cap_has_room_for(tmp_path: Path) -> None:
    delays = iter([0.02, 0.08] * 50)  # one of two is in flight while the other one ends
    with FakeProvider(lambda call: Response(longer_wins(call).text, delay=next(delays))) as provider:
        found = workspace(tmp_path, provider.url, pairs(6), settings=FAST + "concurrency = 4\n")
        with pytest.raises(BudgetError, match=r"can cost \$[0-9.]+") as refused:
            run(found, max_usd=1e-6)
        worst = float(str(refused.value).split("can cost $")[1].split(",")[0])
        tally = run(found, max_usd=2.5 * worst)
    assert tally.n_succeeded >= 4 and provider.most_open == 2


@pytest.mark.parametrize("state", ["intended", "submitted"])
def test_open_batches_hold_the_cap_of_calls(tmp_path: Path, state: str) -> None:
    """Also one of which nobody knows whether it arrived; what is collected or was given up holds nothing."""
    with FakeProvider(longer_wins) as provider:
        found = workspace(tmp_path, provider.url, pairs(3))
        folder = judge_setup.batches_folder(found, "t")
        facts: dict[str, Any] = {"fingerprint": "older", "provider": "anthropic", "n_items": 0}
        at = SystemClock().utc()
        for name, judge, usd, how in (
            ("a", "pairwise", 0.09, state),
            ("b", "another", 5.0, state),
            ("c", "pairwise", 5.0, "collected"),
            ("d", "pairwise", 5.0, "abandoned"),
        ):
            intent = BatchState(name=name, judge=judge, state=how, created_at=at, at_most_usd=usd, **facts)
            save_intent(folder, intent, [])
        with pytest.raises(BudgetError, match="nothing was asked"):
            run(found, max_usd=0.095)
        assert provider.calls == []
        assert run(found, max_usd=0.14).stopped is None


def test_the_account_is_the_judges_whatever_its_rubric_was(tmp_path: Path) -> None:
    with FakeProvider(longer_wins) as provider:
        found = workspace(tmp_path, provider.url, pairs(2))
        run(found)
        lost(found, RecordedCost(cost_usd=0.01, at_most=0.04), judge_fingerprint="older", key="k")
        lost(found, RecordedCost(cost_usd=0.25), judge_fingerprint="oldest", key="l")
        assert held(found) == pytest.approx(4 * ANSWERED + 0.04 + 0.25)


def test_only_the_same_question_bounds_a_lost_call(tmp_path: Path) -> None:
    """An answered question's tokens say nothing of a repair's turns, nor of a rubric that allowed longer answers."""
    with FakeProvider(longer_wins) as provider:
        found = workspace(tmp_path, provider.url, pairs(1))
        run(found)
    lost(found, RecordedCost(cost_usd=0.01, at_most=0.04), attempt=7, repair=True)
    assert held(found) == pytest.approx(2 * ANSWERED + 0.04)
    answered = {"judge_fingerprint": "older", "status": JudgmentStatus.OK, "input_tokens": 100, "note": None}
    lost(found, RecordedCost(cost_usd=0.0), key="k", attempt=1, **answered)
    lost(found, RecordedCost(cost_usd=0.01, at_most=0.06), key="k", attempt=2, judge_fingerprint="older")
    assert held(found) == pytest.approx(2 * ANSWERED + 0.04 + 0.06)


def test_the_longest_asking_of_a_question_bounds_a_lost_call(tmp_path: Path) -> None:
    found = workspace(tmp_path, "http://127.0.0.1:9", pairs(1))
    lost(found, RecordedCost(cost_usd=0.01, at_most=0.04), attempt=4)
    other = {"status": JudgmentStatus.OK, "note": None}
    lost(found, RecordedCost(cost_usd=0.0), attempt=1, key="another question", input_tokens=100, **other)
    assert held(found) == pytest.approx(0.04)
    for attempt, input_tokens in ((1, 900), (2, 100)):
        lost(found, RecordedCost(cost_usd=0.0), attempt=attempt, input_tokens=input_tokens, **other)
    assert held(found) == pytest.approx((900 + 200) * 1e-6 + 1024 * 5e-6)
    lost(found, RecordedCost(cost_usd=0.001, at_most=0.002), attempt=5)  # at another day's price, or a batch's
    assert held(found) == pytest.approx((900 + 200) * 1e-6 + 1024 * 5e-6 + 0.002)


def test_each_judge_has_its_own_account(tmp_path: Path) -> None:
    found = workspace(tmp_path, "http://127.0.0.1:9", pairs(1))
    lost(found, RecordedCost(cost_usd=0.5), judge="pointwise", key="k")
    lost(found, RecordedCost(cost_usd=0.1, at_most=3.0), judge="pointwise", key="l")
    assert held(found) == 0
    (done,) = settle(found, JudgeOptions(judges=["pointwise"]), usd=0.2)
    assert (done.before.cap_usd, done.after.cap_usd) == (pytest.approx(3.5), pytest.approx(0.7))
    assert held(found) == 0


def test_a_lost_call_counts_whatever_is_selected_now(tmp_path: Path) -> None:
    with FakeProvider(longer_wins) as provider:
        found = workspace(tmp_path, provider.url, pairs(3))
        lost(found, RecordedCost(cost_usd=0.01, at_most=0.04))
        # A call can cost a cent, some 5,000 tokens and 1,024 of output: 0.005 USD are no room for one, 0.045 are.
        summary = run(found, max_usd=0.045, selection=read_selection(where="request_id <> 'p0'"))
        assert (summary.stopped, provider.calls) == ("budget", [])


def test_a_cap_of_the_configuration_holds_for_every_kind_of_call(tmp_path: Path) -> None:
    with FakeProvider(longer_wins) as provider:
        found = workspace(tmp_path, provider.url, pairs(1), settings=FAST + "max_usd = 0.001\n")
        with pytest.raises(BudgetError, match="nothing was asked"):
            run(found)
        assert self_test(found, JudgeOptions())[0].cost_usd == 0
        assert provider.calls == []
        assert run(found, max_usd=1.0).n_succeeded == 2


def test_a_repair_that_breaks_off_is_held_with_all_its_turns(tmp_path: Path) -> None:
    def rambling(call: Call) -> Response:
        return Response("x", drop=True) if call.is_repair else Response("no verdict " * 2_000)

    with FakeProvider(rambling) as provider:
        found = workspace(tmp_path, provider.url, pairs(1), settings=FAST + "concurrency = 1\n")
        run(found)
    amounts = rows(
        found,
        "SELECT json_extract(note, '$.cost_at_most_usd')::DOUBLE FROM judgments "
        "WHERE json_extract(note, '$.repair') IS NOT NULL",
    )
    assert len(amounts) == 6  # both orders, three tries each
    assert all(usd > (22_000 + 1000) * 1e-6 + 1024 * 5e-6 for (usd,) in amounts)


def test_what_another_model_answered_bounds_no_lost_call(tmp_path: Path) -> None:
    """It counts other tokens at another price, and the lost call may have been its."""

    def dear(call: Call) -> Response:
        answer = render(call, longer_wins(call))
        return Response(raw=json.dumps({**answer, "model": "claude-opus-4-5-20251101"}).encode())

    with FakeProvider(dear) as provider:
        found = workspace(tmp_path, provider.url, pairs(1))
        run(found)
    lost(found, RecordedCost(cost_usd=0.01, at_most=0.2), attempt=7)
    assert held(found) == pytest.approx(2 * 5 * ANSWERED + 0.2)


def test_a_lost_call_is_held_at_its_full_price_where_batches_are_asked_for(tmp_path: Path) -> None:
    with FakeProvider(longer_wins) as provider:
        found = workspace(tmp_path, provider.url, pairs(2))
        run(found, selection=read_selection(where="request_id = 'p0'"))
        for attempt in range(7, 11):
            lost(found, RecordedCost(cost_usd=0.001, at_most=0.04), attempt=attempt)
        # Its question took 100 tokens, 200 more for other codes in the tags; half of the four would leave room for two calls.
        open_usd = 4 * ((100 + 200) * 1e-6 + 1024 * 5e-6)
        options = JudgeOptions(show_progress=False, max_usd=2 * ANSWERED + open_usd + 0.0005)
        (summary,) = judge(found, options, by=judge_by_batches)
        assert (summary.stopped, summary.n_calls, len(provider.calls)) == ("budget", 0, 2)


def test_answers_that_had_no_price_count_once_there_is_one(tmp_path: Path) -> None:
    with FakeProvider(longer_wins) as provider:
        found = workspace(tmp_path, provider.url, pairs(1), settings=FAST + 'model = "house-judge-7"\n')
        assert run(found).spent_usd is None
    with (tmp_path / "evalpipe.toml").open("a") as file:
        file.write('[prices."house-judge-7"]\ninput = 1.0\noutput = 5.0\n')
    assert held(open_workspace(tmp_path / "evalpipe.toml")) == pytest.approx(2 * ANSWERED)


def test_a_call_that_broke_off_without_a_price_counts_once_there_is_one(tmp_path: Path) -> None:
    """At one token a byte and the longest answer (1,024 tokens): as it were held, had there been a price when it was made."""
    sizes: list[int] = []

    def broken(call: Call) -> Response:
        texts = [message["content"] for message in call.body["messages"]]
        sizes.append(sum(len(text.encode()) for text in [call.body["system"], *texts]))
        return Response("x", drop=True)

    with FakeProvider(broken) as provider:
        own = FAST + 'concurrency = 1\nmodel = "house-judge-7"\n'
        found = workspace(tmp_path, provider.url, pairs(1), settings=own)
        summary = run(found)
        assert summary.account is not None and summary.account.cap_usd == 0
        with (tmp_path / "evalpipe.toml").open("a") as file:
            file.write('[prices."house-judge-7"]\ninput = 1.0\noutput = 5.0\n')
        found = open_workspace(tmp_path / "evalpipe.toml")
        # The schema, some 1,000 bytes, and 1,000 tokens of a provider's own come on top of what is sent as text.
        least = sum(size + 1000 for size in sizes) * 1e-6 + len(sizes) * 1024 * 5e-6
        assert len(sizes) == 6 and least < held(found) < least + len(sizes) * 1_500e-6
        (spec,) = judge_setup.load_specs(found)
        with open_store(found.data, "t") as store:
            day = judge_setup.budget_of(store, spec, None, call_runs.price_of(found, spec), per_day=0.5)
        assert day.left == pytest.approx(0.5 - held(found)), "they were all made today"
        n = len(provider.calls)
        summary = run(found, max_usd=held(found) + 0.005)  # a call can cost a cent
        assert (summary.stopped, len(provider.calls) - n) == ("budget", 0)
        (done,) = settle(found, OPTIONS, usd=0.001)
        assert (done.before.n_unsettled, held(found)) == (6, pytest.approx(0.001))


def test_an_answer_without_a_price_and_a_usage_counts_once_there_is_one(tmp_path: Path) -> None:
    """An answer that reports half of its usage has no cost; one that reports all of it is known."""

    def half(call: Call) -> Response:
        document = render(call, longer_wins(call))
        return Response(raw=json.dumps({**document, "usage": {"input_tokens": 100}}).encode())

    with FakeProvider(half) as provider:
        found = workspace(tmp_path, provider.url, pairs(1), settings=FAST + 'model = "house-judge-7"\n')
        run(found)
    with (tmp_path / "evalpipe.toml").open("a") as file:
        file.write('[prices."house-judge-7"]\ninput = 1.0\noutput = 5.0\n')
    assert held(open_workspace(tmp_path / "evalpipe.toml")) > 2 * 1024 * 5e-6


def test_a_day_is_bounded_by_what_its_calls_can_have_cost_and_not_by_yesterdays(tmp_path: Path) -> None:
    found = workspace(tmp_path, "http://127.0.0.1:9", pairs(1))
    today, yesterday = SystemClock().utc(), SystemClock().utc() - timedelta(days=1)
    lost(found, RecordedCost(cost_usd=0.25), key="k", judged_at=yesterday)
    lost(found, RecordedCost(cost_usd=0.01, at_most=0.04), key="l", judged_at=today)
    lost(found, RecordedCost(cost_usd=0.10), key="m", judged_at=today)
    (spec,) = judge_setup.load_specs(found)
    price = call_runs.price_of(found, spec)
    with open_store(found.data, "t") as store:
        for cap, per_day, left in (
            (None, 0.5, 0.5 - 0.14),
            (1.0, 0.5, 0.5 - 0.14),
            (0.6, 0.5, 0.6 - 0.39),
            (None, 0.1, 0.0),
        ):
            assert judge_setup.budget_of(store, spec, cap, price, per_day=per_day).left == pytest.approx(left)


def test_a_settlement_is_of_its_own_experiment(tmp_path: Path) -> None:
    """The same log loaded into two experiments asks the same questions."""
    found = crashed(tmp_path, "http://127.0.0.1:9")
    settle(found, OPTIONS, usd=0.0)
    load(found, [tmp_path / "pairs.jsonl"], experiment="u", format_name="pairs")
    (spec,) = judge_setup.load_specs(found)
    with open_store(found.data, "u") as store:
        ask = calls_for(store.connection, spec, ["p0"])[0]
        call = sent(ask, 1, spec, booking=RecordedCost(cost_usd=0.01, at_most=0.04), at=SystemClock().utc())
        store.write_judgments([call])
    with open_store(found.data, "u") as store:
        assert judge_setup.budget_of(store, spec, 1.0, call_runs.price_of(found, spec)).spent == pytest.approx(0.04)
    assert held(found) == 0


def test_a_settlement_is_shared_by_what_each_call_can_have_cost(tmp_path: Path) -> None:
    found = workspace(tmp_path, "http://127.0.0.1:9", pairs(1))
    for attempt, at_most in ((1, 0.01), (2, 0.03)):
        lost(found, RecordedCost(cost_usd=0.005, at_most=at_most), attempt=attempt)
    (done,) = settle(found, OPTIONS, usd=0.02)
    assert done.settlement is not None
    shares = {call.judgment_id[-1]: call.usd for call in done.settlement.calls}
    assert shares == {"1": pytest.approx(0.005), "2": pytest.approx(0.015)}


def test_a_bill_rounded_below_what_is_known_settles_at_nothing(tmp_path: Path) -> None:
    found = workspace(tmp_path, "http://127.0.0.1:9", pairs(1))
    lost(found, RecordedCost(cost_usd=0.25), key="k")
    lost(found, RecordedCost(cost_usd=0.01, at_most=0.04))
    (done,) = settle(found, OPTIONS, bill=0.25 - 0.00005)
    assert done.settlement is not None and done.settlement.usd == 0
    assert held(found) == pytest.approx(0.25)


def test_nothing_is_settled_while_a_judge_runs(tmp_path: Path) -> None:
    found = crashed(tmp_path, "http://127.0.0.1:9")
    with (
        judging_lock(judge_setup.journal_folder(found, "t")),
        pytest.raises(WorkspaceBusyError, match="wait for it"),
    ):
        settle(found, OPTIONS, worst_case=True)
    assert held_after(found) == pytest.approx(0.12)


def held_after(found: Workspace) -> float:
    judge_setup.recover(found, "t")
    return held(found)


def test_a_whole_line_of_a_journal_that_cannot_be_read_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path)
    journal.begin(judgment("a"))
    journal.append(judgment("a", JudgmentStatus.OK))
    journal.close()
    torn = b'{"judgment_id": "to'
    journal.path.write_bytes(journal.path.read_bytes() + b'{"version": 9, "answer": "paid for"}\n' + torn)
    stored: list[Judgment] = []
    compact(tmp_path, lambda found: stored.extend(found) or len(found), rejected=tmp_path / "rejected")
    assert [one.judgment_id for one in stored] == ["a:1"]
    assert list(tmp_path.glob("journal-*")) == []
    (kept,) = (tmp_path / "rejected").glob("*.jsonl")
    (line,) = map(json.loads, kept.read_text().splitlines())
    assert (line["line"], line["text"]) == (3, '{"version": 9, "answer": "paid for"}\n')
    assert "1 lines of" in caplog.text and str(kept) in caplog.text


def test_a_journal_stays_until_its_rows_are_stored(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.begin(judgment("a"))
    journal.append(judgment("a", JudgmentStatus.OK))
    journal.close()

    def failing(found: Any) -> int:
        raise OSError("the disk failed")

    with pytest.raises(OSError, match="disk failed"):
        compact(tmp_path, failing, rejected=tmp_path / "rejected")
    stored: list[Judgment] = []
    compact(tmp_path, lambda found: stored.extend(found) or len(found), rejected=tmp_path / "rejected")
    assert [(one.judgment_id, one.status) for one in stored] == [("a:1", JudgmentStatus.OK)]
    assert list(tmp_path.glob("journal-*")) == []


def test_a_run_killed_after_it_rotated_leaves_what_was_in_flight(tmp_path: Path) -> None:
    stored: list[Judgment] = []

    def write(found: Any) -> int:
        stored.extend(found)
        return len(found)

    journal = Journal(tmp_path)
    journal.begin(judgment("a"))
    journal.begin(judgment("b"))
    journal.append(judgment("a", JudgmentStatus.OK))
    in_flight = journal.rotate()
    compact(tmp_path, write, keep=journal.path, in_flight=in_flight, rejected=tmp_path / "rejected")
    journal.close()
    compact(tmp_path, write, rejected=tmp_path / "rejected")
    assert [(one.key, one.status) for one in stored] == [("a", JudgmentStatus.OK), ("b", JudgmentStatus.ERROR)]


def test_a_journal_is_synced_with_its_name_and_gone_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noting(handle: int) -> None:
        fsync(handle)
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().name)

    monkeypatch.setattr(os, "fsync", noting)
    folder = tmp_path / "journals"
    journal = Journal(folder)
    first = journal.path.name
    assert synced[-1] == "journals"
    journal.begin(judgment("a"))
    synced.clear()
    in_flight = journal.rotate()
    assert synced == ["journals", journal.path.name, first], "the new file holds what the old one held"
    compact(folder, len, keep=journal.path, in_flight=in_flight, rejected=folder / "rejected")
    assert synced[-1] == "journals" and [path.name for path in folder.glob("journal-*")] == [journal.path.name]
    journal.close()


def test_a_write_that_takes_a_part_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: pwrite(file, data[:7], at))
    journal = Journal(tmp_path)
    journal.begin(judgment("a"))
    journal.append(judgment("a", JudgmentStatus.OK))
    assert [one.status for one in read_journal(journal.path)] == [JudgmentStatus.ERROR, JudgmentStatus.OK]
    journal.close()


def test_a_line_that_was_lost_in_the_middle_hides_none_after_it(tmp_path: Path) -> None:
    """After a power loss a page that was never written reads as zeros."""
    journal = Journal(tmp_path)
    for key in ("a", "b", "c", "d"):
        journal.begin(judgment(key))
    journal.close()
    first, second, third, fourth = journal.path.read_bytes().splitlines(keepends=True)
    journal.path.write_bytes(first + bytes(len(second)) + third + fourth[:20] + b"\n" + fourth)
    assert [one.key for one in read_journal(journal.path)] == ["a", "c", "d"]


def test_answers_are_synced_while_a_run_goes_on_and_at_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def noting(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        fsync(handle)
        if path.name.startswith("journal-"):
            synced.append(sum(one.status is JudgmentStatus.OK for one in read_journal(path)))

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr("evalpipe.workspace.call_runs._SYNC_EVERY_S", 0.02)
    with FakeProvider(lambda call: replace(longer_wins(call), delay=0.1)) as provider:
        found = workspace(tmp_path, provider.url, pairs(2), settings=FAST + "concurrency = 1\n")
        run(found)
    assert synced[-1] == 4
    assert {1, 2, 3} & set(synced[:-1])


def test_an_answer_without_a_usage_holds_its_worst_case_over_runs(tmp_path: Path) -> None:
    def silent(call: Call) -> Response:
        document = {**render(call, longer_wins(call)), "usage": {"input_tokens": 0, "output_tokens": 0}}
        return Response(raw=json.dumps(document).encode())

    with FakeProvider(silent) as provider:
        found = workspace(tmp_path, provider.url, pairs(1))
        summary = run(found)
    assert summary.n_succeeded == 2
    # Each can have cost 1,024 tokens of output at 5 USD a million, and its input.
    assert held(found) > 2 * 1024 * 5e-6
    (done,) = settle(found, OPTIONS, usd=0.004)
    assert done.settlement is not None and len(done.settlement.calls) == 2
    assert held(found) == pytest.approx(0.004)


def test_a_pair_that_is_half_judged_is_asked_in_the_other_order_only(tmp_path: Path) -> None:
    def one_order(call: Call) -> Response:
        return Response(status=400) if call.blocks["response-1"].startswith("short") else longer_wins(call)

    with FakeProvider(one_order) as provider:
        found = workspace(tmp_path, provider.url, pairs(2))
        assert dict(run(found).asked) == {"ok": 2, "error": 2}
        n, provider.behaviour = len(provider.calls), longer_wins
        assert dict(run(found).asked) == {"ok": 2}
        assert len(provider.calls) - n == 2
