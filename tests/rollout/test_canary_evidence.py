"""What a canary's stage is judged by: the requests of this stage alone, each once, in a history that is on the disk."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from spool_writer import observe_without_reading
from test_canary_controller import Rollout

from evalpipe.errors import ConfigError, EvalpipeError
from evalpipe.models import Arm, CanaryState, CanaryStatus, GuardrailVerdict, Outcome
from evalpipe.rollout import canary as rollout_canary
from evalpipe.rollout.canary import History
from evalpipe.rollout.controller import Controller, ControllerSettings
from evalpipe.rollout.guardrails import build_guardrails
from evalpipe.rollout.observations import Observation, SpoolReader, StageFeed
from evalpipe.spool.format import Body, RequestRecord, ResponseRecord, read_record, render_record
from evalpipe.workspace import canary
from evalpipe.workspace.load import load

PLAN = [rollout_canary.Stage(percentage=5, duration_s=1000), rollout_canary.Stage(percentage=20, duration_s=1000)]


@pytest.fixture
def rollout(tmp_path: Path) -> Rollout:
    return Rollout(tmp_path)


class _Served:
    """Ten good answers of each arm at each look, until it is quiet."""

    quiet = False

    def begin(self, state: CanaryState) -> Iterator[Observation]:
        return iter(())

    def new(self, state: CanaryState) -> Iterator[Observation]:
        for arm in [] if self.quiet else list(Arm):
            for n in range(10):
                facts: dict[str, Any] = {"unit": f"u{n}", "outcome": Outcome.OK, "ttft_ms": None, "cost_usd": None}
                yield Observation(arm=arm, latency_ms=1.0, asked_at=1.0, **facts)


def controller(history: History, source: _Served) -> Controller:
    settings = ControllerSettings(stages=PLAN, min_requests=1)
    return Controller(history, settings, source, lambda: build_guardrails({"error_rate": 0.02}))


def seen_last(history: History) -> tuple[float, int, int, set[int]]:
    found = history.evaluation()
    assert found is not None
    return found.watched_s, found.n_control, found.n_treatment, {one.n for one in found.verdicts}


def test_a_new_stage_begins_with_no_evidence_and_no_time(tmp_path: Path) -> None:
    history, source = History(tmp_path, "x"), _Served()
    first = controller(history, source)
    for now in (1.0, 2.0, 3.0):
        first.tick(now)
    assert seen_last(history)[:3] == (1.0, 20, 20)  # the stage began with the second look
    history.apply(
        lambda state: rollout_canary.approve(state, now=4, stages=PLAN, why="", force=True), now=4, who="alice"
    )
    source.quiet = True
    first.tick(5.0)
    assert history.state().percentage == 20
    assert seen_last(history) == (0.0, 0, 0, {0})


def test_a_controller_that_comes_later_does_not_take_over_the_time_of_another_stage(tmp_path: Path) -> None:
    history = History(tmp_path, "x")
    first = controller(history, _Served())
    for now in (1.0, 2.0, 9.0):
        first.tick(now)
    again = controller(history, _Served())
    again.tick(10.0)
    assert seen_last(history)[0] == 7.0
    history.apply(
        lambda state: rollout_canary.approve(state, now=11, stages=PLAN, why="", force=True), now=11, who="alice"
    )
    controller(history, _Served()).tick(12.0)
    assert seen_last(history)[0] == 0.0


def test_what_led_to_a_rollback_is_kept(tmp_path: Path) -> None:
    history = History(tmp_path, "x")
    looking = controller(history, _Served())
    for now in (1.0, 2.0, 9.0):
        looking.tick(now)
    before = history.evaluation()
    history.apply(lambda state: rollout_canary.rollback(state, now=10, why="test"), now=10, who="alice")
    for now in (11.0, 12.0):
        looking.tick(now)
    assert before is not None and history.evaluation() == before


def test_each_request_counts_once_in_the_stage_it_was_assigned_in(rollout: Rollout) -> None:
    rollout.watch(1)
    spool = SpoolReader(rollout.workspace.spool, "rollout")
    feed = StageFeed(spool, observe_without_reading)
    first, second = rollout.history.state().entry, rollout.history.state().entry + 1
    rollout.traffic.serve(10)
    canary.change_state(rollout.workspace, "approve", why="test", by="alice", force=True, now=rollout.now)
    rollout.traffic.serve(5)  # a worker is ahead of the controller
    assert rollout.history.state().entry == second
    assert len(list(feed.observations(first))) == 10
    feed.new_stage(second)
    assert len(list(feed.observations(second))) == 5
    assert list(feed.observations(second)) == []
    spool.close()


def test_users_who_left_count_neither_from_the_spool_nor_from_the_store(rollout: Rollout) -> None:
    rollout.watch(1)
    rollout.traffic.serve(30)
    for segment in rollout.workspace.spool.glob("*.jsonl"):
        records = [read_record(line) for line in segment.read_bytes().splitlines()]
        left = [
            msgspec.structs.replace(one, ended="client_closed") if isinstance(one, ResponseRecord) else one
            for one in records
        ]
        segment.write_bytes(b"".join(map(render_record, left)))
    rollout.watch(1)
    assert seen_last(rollout.history)[1:3] == (0, 0)
    load(rollout.workspace)
    rollout.watch(1)
    assert seen_last(rollout.history)[1:3] == (0, 0)


def test_testers_requests_count_neither_from_the_spool_nor_from_the_store(rollout: Rollout) -> None:
    rollout.watch(1)
    rollout.traffic.serve(30)
    for segment in rollout.workspace.spool.glob("*.jsonl"):
        records = [read_record(line) for line in segment.read_bytes().splitlines()]
        forced = [
            msgspec.structs.replace(one, forced=True) if isinstance(one, RequestRecord) else one for one in records
        ]
        segment.write_bytes(b"".join(map(render_record, forced)))
    rollout.watch(1)
    assert seen_last(rollout.history)[1:3] == (0, 0)
    load(rollout.workspace)
    rollout.watch(1)
    assert seen_last(rollout.history)[1:3] == (0, 0)


def test_what_is_in_the_store_and_in_the_spool_counts_once(rollout: Rollout) -> None:
    rollout.watch(1)
    rollout.traffic.serve(30)
    load(rollout.workspace, list(rollout.workspace.spool.iterdir()))  # named files stay where they are
    assert list(rollout.workspace.spool.iterdir())
    rollout.watch(1)
    assert sum(seen_last(rollout.history)[1:3]) == 30


def test_a_change_is_synced_with_its_folder_before_its_copy_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    history = History(tmp_path / "canary", "x")
    history.apply(lambda state: rollout_canary.reset(now=1, why=""), now=1, who="alice")
    seen: list[str] = []
    fsync = os.fsync

    def noting(handle: int) -> None:
        fsync(handle)
        seen.append(Path(f"/proc/self/fd/{handle}").readlink().name.split(".tmp")[0])

    monkeypatch.setattr(os, "fsync", noting)
    history.apply(lambda state: rollout_canary.rolled_back(2, "bad"), now=2, who="controller")
    assert seen[:2] == ["x.jsonl", "canary"]
    assert seen[-1] == "canary" and len(seen) == 4, "the copy and its name, after the line"


def test_a_change_that_did_not_fit_on_the_disk_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = History(tmp_path, "x")
    first = history.apply(lambda state: rollout_canary.rolled_back(1, "bad"), now=1, who="controller")
    assert first is not None and first.state.entry == first.seq == 1
    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda file, data: write(file, data[: len(data) // 2]))
        with pytest.raises(EvalpipeError, match="the disk is full; the canary stays as it was"):
            history.apply(lambda state: rollout_canary.reset(now=2, why=""), now=2, who="alice")
    assert (history.state().status, history.loss()) == (CanaryStatus.ROLLED_BACK, None)
    history.apply(lambda state: rollout_canary.reset(now=3, why=""), now=3, who="alice")
    assert [(event.seq, event.action) for event in history.events()] == [(1, "rollback"), (2, "reset")]


def test_a_record_is_read_when_all_of_it_is_there(tmp_path: Path) -> None:
    spool, path = SpoolReader(tmp_path, "rollout"), tmp_path / "served-1.000001.jsonl"
    records = [
        RequestRecord(
            request_id=name,
            experiment=experiment,
            mode="canary",
            arm="control",
            endpoint="messages",
            received_at=1.0,
            body=Body(),
        )
        for name, experiment in (("a", "rollout"), ("b", "another"), ("c", "rollout"))
    ]
    data = b"".join(map(render_record, records))
    found: list[Any] = []
    for at in (10, len(data) - 10, len(data)):
        path.write_bytes(data[:at])
        found.append([record.request_id for record in spool.poll() if isinstance(record, RequestRecord)])
    assert (found, spool.n_broken_lines) == ([[], ["a"], ["c"]], 0)
    spool.close()


def test_two_writers_take_turns(tmp_path: Path) -> None:
    history = History(tmp_path, "x")
    history.apply(lambda state: rollout_canary.reset(now=1, why=""), now=1, who="alice")
    writer = threading.Thread(
        target=lambda: history.apply(lambda state: rollout_canary.rolled_back(2, ""), now=2, who="controller")
    )
    with (tmp_path / "x.lock").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        writer.start()
        writer.join(0.3)
        assert history.state().status is CanaryStatus.WAITING
    writer.join(30)
    assert history.state().status is CanaryStatus.ROLLED_BACK


def test_what_a_person_cannot_approve() -> None:
    running = CanaryState(status=CanaryStatus.PAUSED, percentage=5, stage=0, entry=1, paused_by="gate")
    with pytest.raises(ConfigError, match=r"canary\.stages changed"):
        rollout_canary.approve(running, now=1, stages=[rollout_canary.Stage(percentage=7), PLAN[1]], why="")
    with pytest.raises(ConfigError, match="reset"):
        rollout_canary.approve(rollout_canary.rolled_back(1, "bad").state, now=1, stages=PLAN, why="")
    lost = CanaryState(status=CanaryStatus.PAUSED, paused_by=rollout_canary.HISTORY_LOST)
    with pytest.raises(ConfigError, match="history is lost"):
        rollout_canary.approve(lost, now=1, stages=PLAN, why="", force=True)
    breached = GuardrailVerdict(guardrail="error_rate", kind="absolute", status="breached")
    for verdicts in ([], [breached]):  # nothing but a reset ends it
        looked = rollout_canary.StageStatus(watched_s=1e6, n_treatment=10**6, verdicts=verdicts)
        assert rollout_canary.evaluate(lost, looked, now=1, stages=PLAN, min_requests=1) is None
