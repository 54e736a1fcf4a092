"""What a batch can cost, what it did cost, and whose batch it is, where a run was killed in between."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fake_provider import FakeProvider, Response, longer_wins
from test_judging_batches import STATED, each_once, forget, run, vendor_workspace, workspace

from evalpipe.calls import batch_client, batches
from evalpipe.calls.batch_client import BatchCallError
from evalpipe.calls.client import CallOutcome, ModelResponse
from evalpipe.calls.journal import Journal, judging_lock
from evalpipe.calls.runner import RecordedCost, SystemClock
from evalpipe.errors import BudgetError, UpstreamError, WorkspaceBusyError
from evalpipe.judging.batches import items_of
from evalpipe.judging.judgments import sent
from evalpipe.judging.plan import calls_for
from evalpipe.models import ASKED_MODEL
from evalpipe.providers.base import Usage
from evalpipe.sim.app import start_sim
from evalpipe.sim.settings import SimSettings
from evalpipe.store.query import open_store
from evalpipe.workspace import call_runs, judge_setup
from evalpipe.workspace.judge import batch_statuses, cancel_batches, judge
from evalpipe.workspace.judge_setup import JudgeOptions, batches_folder
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import Workspace, open_workspace


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evalpipe.calls.batches.FIRST_POLL_S", 0.05)
    monkeypatch.setattr("evalpipe.calls.batches.SETTLING_S", 0.2)


@pytest.fixture
def sim() -> Iterator[Any]:
    with start_sim(SimSettings(judge=STATED, batch_seconds=0.1)) as found:
        yield found


class Killed(BaseException):
    """The process ends here."""


def killed(call: Callable[..., Any], *, after: bool = True) -> Callable[..., Any]:
    def dying(*arguments: Any, **named: Any) -> Any:
        if after:
            call(*arguments, **named)
        raise Killed

    return dying


def submit_and_die(found: Workspace, **options: Any) -> None:
    """The batch's id is on the disk; nothing more."""

    save_state = batches.save_state

    def until_submitted(folder: Path, intent: Any) -> None:
        save_state(folder, intent)
        if intent.state == "submitted":
            raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(batches, "save_state", until_submitted)
        run(found, **options)


def spent(found: Workspace) -> float:
    """What counts against a cap, stored calls alone."""
    (spec,) = judge_setup.load_specs(found)
    with open_store(found.data, "t") as store:
        return judge_setup.budget_of(store, spec, None, call_runs.price_of(found, spec)).spent


def more_pairs(found: Workspace, n: int) -> None:
    rows = [{"pair_id": f"m{i}", "prompt": f"q{i}", "response_a": "one", "response_b": "other"} for i in range(n)]
    (found.root / "more.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    load(found, [found.root / "more.jsonl"], format_name="pairs")


def test_a_batch_is_held_at_one_token_a_byte_and_the_longest_answers(tmp_path: Path, sim: Any) -> None:
    """claude-haiku-4-5 in a batch: 0.5 and 2.5 USD a million tokens; 1,024 tokens of answer."""
    found = workspace(tmp_path, sim.base_url)
    submit_and_die(found)
    (intent,) = batches.intents(batches_folder(found, "t"))
    (spec,) = judge_setup.load_specs(found)
    least = len(spec.system.encode()) + 1000
    assert intent.at_most_usd is not None
    floor = 10 * (least * 0.5e-6 + 1024 * 2.5e-6)
    assert floor < intent.at_most_usd < 1.5 * floor, "the questions are short; outside a batch it were twice the price"
    assert sum(item.at_most_usd or 0 for item in items_of(batches_folder(found, "t"), intent)) == pytest.approx(
        intent.at_most_usd
    )


def test_what_a_collected_batch_did_cost_is_no_longer_free_and_what_it_could_is(tmp_path: Path, sim: Any) -> None:
    found = workspace(tmp_path, sim.base_url)
    submit_and_die(found)
    (first,) = batches.intents(batches_folder(found, "t"))
    assert first.at_most_usd is not None
    more_pairs(found, 40)
    cap = 3 * first.at_most_usd
    run(found, max_usd=cap)
    others = [one for one in batches.intents(batches_folder(found, "t")) if one.name != first.name]
    second = max(others, key=lambda one: one.at_most_usd or 0)  # names of one second have no order
    with open_store(found.data, "t") as store:
        (cost,) = store.connection.execute(
            "SELECT sum(cost_usd) FROM judgments WHERE starts_with(request_id, 'p')"
        ).fetchall()[0]
    assert cost > 0 and second.at_most_usd is not None
    # All that the first batch did not need is there for the second, to within one call.
    assert second.at_most_usd <= cap - cost + 1e-9
    assert second.at_most_usd > cap - cost - first.at_most_usd / first.n_items * 1.5


def test_killed_while_it_collects_nothing_is_asked_again(tmp_path: Path, sim: Any) -> None:
    found = workspace(tmp_path, sim.base_url)
    submit_and_die(found)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Journal, "append", killed(Journal.append, after=False))
        run(found)
    run(found)
    assert (each_once(found), sim.ledger()["calls"]) == (True, 10)


def test_killed_before_its_state_is_on_the_disk_a_batch_never_was(tmp_path: Path, sim: Any) -> None:
    found = workspace(tmp_path, sim.base_url)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(batches, "write_synced", killed(batches.write_synced))
        run(found)
    assert sim.ledger()["calls"] == 0
    run(found)
    assert (each_once(found), sim.ledger()["calls"]) == (True, 10)


def submit_unheard(found: Workspace, *, sends: bool = True) -> None:
    """Killed between submitting and reading the id, or (`sends` False) before the submission left."""
    submit = batch_client._MessageBatches.submit

    async def unheard(self: Any, name: str, requests: Any) -> str:
        if sends:
            await submit(self, name, requests)
        raise Killed

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(batch_client._MessageBatches, "submit", unheard)
        run(found)


def look(monkeypatch: pytest.MonkeyPatch, seen: Callable[[float, Any], Any]) -> None:
    """What the provider's list of batches shows: `seen` of the seconds so far and a batch as it is; None: it is not listed."""
    newest, began = batch_client._MessageBatches.newest_first, time.monotonic()

    async def looked(self: Any) -> AsyncIterator[Any]:
        async for one in newest(self):
            shown = seen(time.monotonic() - began, one)
            if shown is not None:
                yield shown

    monkeypatch.setattr(batch_client._MessageBatches, "newest_first", looked)


def test_a_batch_that_may_be_ours_is_waited_for(tmp_path: Path, sim: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a vendor whose batches show their requests only at their end, which is long after a submission could still arrive."""
    found = workspace(tmp_path, sim.base_url)
    submit_unheard(found)
    look(monkeypatch, lambda seconds, one: one if seconds > 4 * batches.SETTLING_S else replace(one, ended=False))
    run(found)
    assert (each_once(found), sim.ledger()["calls"]) == (True, 10)


def test_a_submission_that_is_still_arriving_is_waited_for(
    tmp_path: Path, sim: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The provider lists the batch only some looks later."""
    found = workspace(tmp_path, sim.base_url)
    submit_unheard(found)
    monkeypatch.setattr(batches, "SETTLING_S", 30.0)
    n_looks = iter(range(1000))
    look(monkeypatch, lambda seconds, one: one if next(n_looks) >= 3 else None)
    run(found)
    assert (each_once(found), sim.ledger()["calls"]) == (True, 10)


def test_a_submission_whose_answer_was_lost_is_looked_for(
    tmp_path: Path, sim: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same process goes on: the provider has the batch, and its answer was an error of the server."""
    submit = batch_client._MessageBatches.submit

    async def unheard(self: Any, name: str, requests: Any) -> str:
        await submit(self, name, requests)
        raise BatchCallError(ModelResponse(outcome=CallOutcome.SERVER_ERROR, kind="http_502"))

    monkeypatch.setattr(batch_client._MessageBatches, "submit", unheard)
    found = workspace(tmp_path, sim.base_url)
    run(found)
    assert (each_once(found), sim.ledger()["calls"]) == (True, 10)
    assert [one.state for one in batches.intents(batches_folder(found, "t"))] == ["collected"]


def test_a_batch_whose_id_was_read_is_not_looked_for(tmp_path: Path, sim: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = workspace(tmp_path, sim.base_url)

    def seen(seconds: float, one: Any) -> Any:
        raise AssertionError("its id is on the disk")

    look(monkeypatch, seen)
    run(found)
    assert each_once(found)


def test_a_running_batch_that_is_known_is_not_waited_for_as_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another judge's batch of as many requests runs for an hour; ours never left."""
    with start_sim(SimSettings(judge=STATED, batch_seconds=3600)) as slow:
        (tmp_path / "other").mkdir()
        other = workspace(tmp_path / "other", slow.base_url)
        submit_and_die(other)
        (running,) = batches.intents(batches_folder(other, "t"))
        found = workspace(tmp_path, slow.base_url)
        submit_unheard(found, sends=False)
        batches.save_intent(batches_folder(found, "t"), batches.changed(running, judge="another"), [])
        submit = batch_client._MessageBatches.submit

        async def quick(self: Any, name: str, requests: Any) -> str:
            slow.configure(batch_seconds=0.0)
            return await submit(self, name, requests)

        def not_for_long(seconds: float, one: Any) -> Any:
            assert seconds < 20, "it waits for the other one"
            return one

        monkeypatch.setattr(batch_client._MessageBatches, "submit", quick)
        look(monkeypatch, not_for_long)
        run(found)
        assert each_once(found)


def test_a_batch_that_was_refused_is_over(tmp_path: Path) -> None:
    """Its pairs are asked by the next run, which holds nothing for it."""
    with FakeProvider(lambda call: Response(status=401, error="authentication_error")) as provider:
        found = workspace(tmp_path, provider.url)
        with pytest.raises(UpstreamError, match="http_401"):
            run(found)
        (refused,) = batches.intents(batches_folder(found, "t"))
        provider.behaviour = longer_wins
        assert refused.at_most_usd is not None
        judge(found, JudgeOptions(show_progress=False, max_usd=refused.at_most_usd * 2.2))
    assert each_once(found)


def test_results_that_fail_or_never_come_are_rows_cost_nothing_and_are_asked_again(
    tmp_path: Path, sim: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, n_read = batch_client._MessageBatches.results, iter(range(1000))

    async def partial(self: Any, batch_id: str) -> AsyncIterator[tuple[str, ModelResponse]]:
        async for name, reply in results(self, batch_id):
            n = next(n_read)
            if n == 0:
                yield name, ModelResponse(outcome=CallOutcome.REJECTED, kind="expired")
            elif n != 1:
                yield name, reply

    monkeypatch.setattr(batch_client._MessageBatches, "results", partial)
    submit, ids = batch_client._MessageBatches.submit, []

    async def noted(self: Any, name: str, requests: Any) -> str:
        ids.extend(custom_id for custom_id, _ in requests)
        return await submit(self, name, requests)

    monkeypatch.setattr(batch_client._MessageBatches, "submit", noted)
    found = workspace(tmp_path, sim.base_url)
    summary = run(found)
    assert len(ids) == len(set(ids)) == 12, "an id is of one attempt"
    assert each_once(found)
    assert dict(summary.failed) == {"expired": 1, "no_result": 1}
    with open_store(found.data, "t") as store:
        failed = store.connection.execute(
            "SELECT note->>'$.error', cost_usd, note->>'$.cost_at_most_usd' FROM judgments WHERE status = 'error' ORDER BY 1"
        ).fetchall()
        (n_again,) = store.connection.execute("SELECT count(*) FROM judgments WHERE attempt = 2").fetchall()[0]
    assert failed == [("expired", 0.0, None), ("no_result", 0.0, None)]
    assert n_again == 2


def test_a_batch_holds_no_more_requests_than_the_cap_has_room_for(tmp_path: Path, sim: Any) -> None:
    found = workspace(tmp_path, sim.base_url, n=40)
    submit_and_die(found, max_usd=0.03)
    folder = batches_folder(found, "t")
    (intent,) = batches.intents(folder)
    held = [item.at_most_usd for item in items_of(folder, intent)]
    assert len(held) == intent.n_items and None not in held
    worst = sum(usd for usd in held if usd is not None)
    assert worst == pytest.approx(intent.at_most_usd) and worst <= 0.03 < worst + 2 * worst / len(held)


def test_each_of_several_batches_is_held_at_its_own_requests(
    tmp_path: Path, sim: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_client._MessageBatches, "max_requests", 3)
    found = workspace(tmp_path, sim.base_url)
    run(found)
    all_of_them = batches.intents(batches_folder(found, "t"))
    assert sorted(one.n_items for one in all_of_them) == [1, 3, 3, 3]
    of_a_request = [(one.at_most_usd or 0.0) / one.n_items for one in all_of_them]
    assert 0 < max(of_a_request) < 1.1 * min(of_a_request), "the questions are of one length"


def test_what_waits_for_another_rubric_is_asked_of_this_one(tmp_path: Path) -> None:
    with start_sim(SimSettings(judge=STATED, batch_seconds=3600)) as slow:
        found = workspace(tmp_path, slow.base_url)
        submit_and_die(found)
        file = tmp_path / "evalpipe.toml"
        file.write_text(file.read_text() + 'model = "claude-opus-4-8"\n')
        (summary,) = judge(open_workspace(file), JudgeOptions(show_progress=False))
        assert (summary.n_known, summary.n_planned, dict(summary.asked)) == (0, 10, {"ok": 10})


@pytest.mark.parametrize("command", [batch_statuses, cancel_batches])
def test_open_batches_are_left_alone_while_a_judge_runs(tmp_path: Path, sim: Any, command: Any) -> None:
    found = workspace(tmp_path, sim.base_url)
    with judging_lock(judge_setup.journal_folder(found, "t")), pytest.raises(WorkspaceBusyError, match="is judging t"):
        command(found, JudgeOptions())


def test_an_open_batch_of_another_judge_is_left_to_it(tmp_path: Path, sim: Any) -> None:
    found = workspace(tmp_path, sim.base_url)
    folder = batches_folder(found, "t")
    facts: dict[str, Any] = {
        "fingerprint": "f",
        "provider": "anthropic",
        "n_items": 0,
        "created_at": SystemClock().utc(),
    }
    other = batches.BatchState(name="other", judge="another", state="submitted", batch_id="msgbatch_other", **facts)
    batches.save_intent(folder, other, [])
    run(found)  # would ask for that batch, which nobody has
    assert each_once(found)
    assert sorted((one.judge, one.state) for one in batches.intents(folder)) == [
        ("another", "submitted"), ("pairwise", "collected"),
    ]  # fmt: skip


@pytest.mark.parametrize("vendor", ["anthropic", "openai"])
def test_a_newer_batch_of_another_project_is_not_ours(tmp_path: Path, sim: Any, vendor: str) -> None:
    ours, others = tmp_path / "ours", tmp_path / "others"
    ours.mkdir()
    others.mkdir()
    found = vendor_workspace(ours, sim.base_url, vendor)
    forget(found, run, keep_rows=False)
    vendor_workspace(others, sim.base_url, vendor)
    rubric = others / "judges/pairwise.toml"
    rubric.write_text(rubric.read_text().replace("max_tokens = 1024", "max_tokens = 1000"))
    run(open_workspace(others / "evalpipe.toml"))
    n_calls = sim.ledger()["calls"]
    assert n_calls == 20
    run(found)
    assert (each_once(found), sim.ledger()["calls"]) == (True, n_calls)


def test_answers_to_another_rubric_give_no_verdict_and_are_paid(tmp_path: Path, sim: Any) -> None:
    found = workspace(tmp_path, sim.base_url)
    submit_and_die(found)
    (before,) = judge_setup.load_specs(found)
    (tmp_path / "evalpipe.toml").write_text((tmp_path / "evalpipe.toml").read_text() + 'model = "claude-opus-4-8"\n')
    found = open_workspace(tmp_path / "evalpipe.toml")
    (after,) = judge_setup.load_specs(found)
    run(found)
    with open_store(found.data, "t") as store:
        rows = store.connection.execute(
            "SELECT judge_fingerprint, status, count(*), count(preference) FROM judgments GROUP BY 1, 2"
        ).fetchall()
    assert sorted(rows) == sorted([(before.fingerprint, "error", 10, 0), (after.fingerprint, "ok", 10, 10)])
    assert spent(found) == pytest.approx(sim.ledger()["billed"]["usd"])


def test_an_answer_of_a_batch_without_a_usage_is_held_at_its_worst(
    tmp_path: Path, sim: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = batch_client._MessageBatches.results

    async def silent(self: Any, batch_id: str) -> AsyncIterator[tuple[str, ModelResponse]]:
        async for name, reply in results(self, batch_id):
            assert reply.answer is not None
            yield name, replace(reply, answer=msgspec.structs.replace(reply.answer, usage=Usage()))

    monkeypatch.setattr(batch_client._MessageBatches, "results", silent)
    found = workspace(tmp_path, sim.base_url)
    run(found)
    (intent,) = batches.intents(batches_folder(found, "t"))
    assert each_once(found)
    assert spent(found) == pytest.approx(intent.at_most_usd)


def test_a_batch_is_held_by_the_bytes_of_its_texts(tmp_path: Path, sim: Any) -> None:
    """Two answers of 9,000 bytes and 3,000 characters each, in both orders."""
    found = workspace(tmp_path, sim.base_url, texts=["判" * 3_000])
    submit_and_die(found)
    (intent,) = batches.intents(batches_folder(found, "t"))
    assert intent.at_most_usd is not None
    assert intent.at_most_usd > 2 * ((18_000 + 1_000) * 0.5e-6 + 1024 * 2.5e-6)


def test_a_batch_is_held_at_the_price_of_a_dearer_model_that_answered_before(tmp_path: Path, sim: Any) -> None:
    """claude-opus-4-5 in a batch: 12.5 USD a million tokens of answer."""
    found = workspace(tmp_path, sim.base_url, n=1)
    (spec,) = judge_setup.load_specs(found)
    with open_store(found.data, "t") as store:
        ask = calls_for(store.connection, spec, ["p0"])[0]
        before = sent(replace(ask, key="k"), 1, spec, booking=RecordedCost(cost_usd=0.0), at=SystemClock().utc())
        note = json.dumps({ASKED_MODEL: spec.model})
        store.write_judgments([replace(before, judge_model="claude-opus-4-5-20251101", note=note)])
    submit_and_die(found)
    (intent,) = batches.intents(batches_folder(found, "t"))
    assert intent.at_most_usd is not None and intent.at_most_usd > 2 * 1024 * 12.5e-6


def test_a_batch_submitted_without_a_price_is_held_once_there_is_one(
    tmp_path: Path, sim: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At what it can cost, 0.5 and 2.5 USD a million tokens in a batch, while it is open, and after its answers have no usage."""
    prices = '[prices."house-judge-7"]\ninput = 1.0\noutput = 5.0\n'
    file = tmp_path / "evalpipe.toml"
    workspace(tmp_path, sim.base_url)
    file.write_text(file.read_text() + 'model = "house-judge-7"\n')
    submit_and_die(open_workspace(file))
    file.write_text(file.read_text() + prices)
    found = open_workspace(file)
    more_pairs(found, 1)
    (spec,) = judge_setup.load_specs(found)
    least = 10 * ((len(spec.system.encode()) + 1000) * 0.5e-6 + 1024 * 2.5e-6)
    with open_store(found.data, "t") as store:
        open_usd = judge_setup.held_by_batches(found, store, spec)
    assert least < open_usd < 1.5 * least
    with pytest.raises(BudgetError, match="nothing was asked"):
        judge(found, JudgeOptions(show_progress=False, max_usd=least))
    results = batch_client._MessageBatches.results

    async def silent(self: Any, batch_id: str) -> AsyncIterator[tuple[str, ModelResponse]]:
        async for name, reply in results(self, batch_id):
            assert reply.answer is not None
            yield name, replace(reply, answer=msgspec.structs.replace(reply.answer, usage=Usage()))

    monkeypatch.setattr(batch_client._MessageBatches, "results", silent)
    run(found)
    with open_store(found.data, "t") as store:
        booked = store.connection.execute(
            "SELECT count(*), sum(json_extract(note, '$.cost_at_most_usd')::DOUBLE) FROM judgments "
            "WHERE starts_with(request_id, 'p') AND status = 'ok'"
        ).fetchall()
    assert booked == [(10, pytest.approx(open_usd))]


def test_a_batch_of_an_earlier_version_is_held_at_equal_shares(
    tmp_path: Path, sim: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = workspace(tmp_path, sim.base_url)
    submit_and_die(found)
    folder = batches_folder(found, "t")
    (intent,) = batches.intents(folder)
    items = folder / f"{intent.name}.jsonl"
    older = [{**json.loads(line), "at_most_usd": None} for line in items.read_text().splitlines()]
    items.write_text("".join(json.dumps(item) + "\n" for item in older))
    results = batch_client._MessageBatches.results

    async def silent(self: Any, batch_id: str) -> AsyncIterator[tuple[str, ModelResponse]]:
        async for name, reply in results(self, batch_id):
            assert reply.answer is not None
            yield name, replace(reply, answer=msgspec.structs.replace(reply.answer, usage=Usage()))

    monkeypatch.setattr(batch_client._MessageBatches, "results", silent)
    run(found)
    assert each_once(found)
    assert spent(found) == pytest.approx(intent.at_most_usd)


def test_results_that_break_off_are_booked_once(tmp_path: Path, sim: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    results, n_read = batch_client._MessageBatches.results, []

    async def torn(self: Any, batch_id: str) -> AsyncIterator[tuple[str, ModelResponse]]:
        n_read.append(0)
        async for found in results(self, batch_id):
            if len(n_read) == 1 and n_read[0] == 6:
                raise BatchCallError(ModelResponse(outcome=CallOutcome.BROKEN, kind="cut"))
            n_read[-1] += 1
            yield found

    monkeypatch.setattr(batch_client._MessageBatches, "results", torn)
    found = workspace(tmp_path, sim.base_url)
    summary = run(found)
    assert n_read == [6, 10]
    assert (each_once(found), dict(summary.asked), summary.n_calls) == (True, {"ok": 10}, 10)
    assert summary.spent_usd == pytest.approx(sim.ledger()["billed"]["usd"])


def test_the_answers_are_synced_before_the_batch_counts_as_collected(
    tmp_path: Path, sim: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    fsync, save_state = os.fsync, batches.save_state

    def noting(handle: int) -> None:
        fsync(handle)
        if Path(f"/proc/self/fd/{handle}").readlink().name.startswith("journal-"):
            seen.append("sync")

    def saving(folder: Path, intent: Any) -> None:
        seen.append(intent.state)
        save_state(folder, intent)

    monkeypatch.setattr(os, "fsync", noting)
    monkeypatch.setattr(batches, "save_state", saving)
    monkeypatch.setattr("evalpipe.workspace.call_runs._SYNC_EVERY_S", 1e6)
    run(workspace(tmp_path, sim.base_url))
    assert seen[:4] == ["intended", "submitted", "sync", "collected"]
