"""A canary whose history is gone, or lost its end, stands at 0 % until a person's reset; a fresh one simply starts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from test_canary_controller import Rollout

from evalpipe.analysis.record import Decided, new_record
from evalpipe.errors import ConfigError
from evalpipe.models import Arm, CanaryState, Outcome
from evalpipe.rollout import canary
from evalpipe.rollout.canary import History
from evalpipe.rollout.controller import Controller, ControllerSettings, leader_lock
from evalpipe.rollout.guardrails import build_guardrails
from evalpipe.rollout.observations import Observation
from evalpipe.spool.format import read_record, render_record
from evalpipe.workspace.analyze import settings_of
from evalpipe.workspace.canary import read_status, status_lines
from evalpipe.workspace.load import load
from evalpipe.workspace.record import save_record


@pytest.fixture
def rolled_back(tmp_path: Path) -> Rollout:
    """A canary that began, served users with the treatment, and was rolled back for its errors."""
    rollout = Rollout(tmp_path)
    rollout.watch(1)
    rollout.watch(4, lambda: rollout.traffic.serve(200, fails=lambda arm, i: arm == "treatment"))
    assert rollout.status == "rolled_back 0"
    return rollout


def _only(rollout: Rollout, *kept: str) -> None:
    """Remove every trace but `kept`: files of the canary's folder, or "spool"."""
    for path in rollout.history.path.parent.iterdir():
        if path.name not in kept:
            path.unlink()
    if "spool" not in kept:
        shutil.rmtree(rollout.workspace.spool)


@pytest.mark.parametrize(
    "kept",
    [
        "rollout.evaluation.json",
        "rollout.controller.lock",
        "rollout.last.json",
        "spool",
    ],
)
@pytest.mark.parametrize("emptied", [True, False])
def test_a_lost_history_beside_any_trace_is_a_pause_at_0_percent(
    rolled_back: Rollout, kept: str, emptied: bool
) -> None:
    _only(rolled_back, kept)
    if emptied:
        rolled_back.history.path.write_bytes(b"")
    assert rolled_back.status == "paused 0"
    shown = "\n".join(status_lines(read_status(rolled_back.workspace)))
    assert "history lost" in shown and "evalpipe canary reset" in shown
    rolled_back.watch(5)
    assert [event.action for event in rolled_back.history.events()] == ["history_lost"]
    assert rolled_back.events[-1].action == "history_lost", "the log reports it"
    assert rolled_back.status == "paused 0"
    with pytest.raises(ConfigError, match="canary reset"):
        rolled_back.change_state("approve")
    rolled_back.change_state("reset")
    rolled_back.watch(2)
    assert rolled_back.status == "running 10"


def test_what_was_loaded_from_the_spool_is_a_trace_too(rolled_back: Rollout) -> None:
    load(rolled_back.workspace)
    shutil.rmtree(rolled_back.history.path.parent)
    rolled_back.watch(2)
    assert rolled_back.status == "paused 0"
    why = rolled_back.history.events()[0].why
    assert "stored requests were served by the treatment" in why


def test_a_store_that_cannot_be_read_is_a_trace(rolled_back: Rollout) -> None:
    load(rolled_back.workspace)
    for path in rolled_back.workspace.data.glob("exchanges/*/*/*.parquet"):
        path.write_bytes(path.read_bytes()[:100])
    shutil.rmtree(rolled_back.history.path.parent)
    assert rolled_back.status == "paused 0"


@pytest.mark.parametrize(("mode", "status"), [("canary", "paused 0"), ("shadow", "waiting 0")])
def test_a_decision_of_the_canary_is_a_trace_one_of_an_earlier_shadow_run_is_none(
    tmp_path: Path, mode: str, status: str
) -> None:
    rollout = Rollout(tmp_path)
    at = "2026-06-01T00:00:00+00:00"
    record = new_record(experiment="rollout", mode=mode, settings=settings_of(rollout.workspace), now=at)
    decided = Decided(recommendation="keep", rule="r", headline="Keep", at=at, look=1)
    save_record(rollout.workspace.data, replace(record, decided=decided))
    assert rollout.status == status


def test_a_history_that_lost_its_last_line_serves_nobody(rolled_back: Rollout) -> None:
    lines = rolled_back.history.path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 2
    rolled_back.history.path.write_bytes(lines[0])  # what is left says: 10 %
    assert rolled_back.traffic.serve(500)["treatment"] == 0, "a worker must not go back to the lost rollback's stage"
    assert rolled_back.status == "paused 0"
    rolled_back.watch(3, lambda: rolled_back.traffic.serve(100))
    assert rolled_back.status == "paused 0"
    assert [event.action for event in rolled_back.history.events()] == ["start", "history_lost"]
    rolled_back.change_state("reset")
    rolled_back.watch(2)
    last = rolled_back.history.last()
    assert last is not None and last.action == "start"
    assert last.state.entry > 2, "requests of the lost stage must not count for the new one"


@pytest.mark.parametrize("noted", [True, False])
def test_a_start_after_a_reset_gets_a_number_no_request_carries(rolled_back: Rollout, noted: bool) -> None:
    """Whether a controller noted the loss before the person's reset, or nobody did."""
    stage = 7
    rolled_back.change_state("reset")
    for _ in range(2):
        rolled_back.watch(2, lambda: rolled_back.traffic.serve(200, fails=lambda arm, i: arm == "treatment"))
        rolled_back.change_state("reset")
    rolled_back.watch(2, lambda: rolled_back.traffic.serve(50))
    held = rolled_back.history.last()
    assert held is not None and held.state.entry >= stage
    _only(rolled_back, "spool")
    if noted:
        rolled_back.watch(1)
    rolled_back.change_state("reset")
    rolled_back.watch(1)
    assert rolled_back.history.state().entry > held.state.entry


def test_controllers_killed_before_their_first_line_are_no_trace(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path)
    rollout.traffic.serve(100)  # control's, before the canary
    for _ in range(3):
        with leader_lock(rollout.history.controller_lock_path):
            pass  # killed here: the lock's file is left
    rollout.history.path.write_bytes(b"")  # or here: made, not written to
    assert rollout.status == "waiting 0"
    rollout.watch(1)
    assert rollout.status == "running 10"
    _only(rollout, "rollout.controller.lock")
    assert rollout.status == "paused 0"


def test_a_tester_who_forced_the_treatment_is_no_trace(tmp_path: Path) -> None:
    rollout = Rollout(tmp_path)
    rollout.watch(1)
    rollout.traffic.serve(50, unit="somebody")
    shutil.rmtree(rollout.history.path.parent)
    for segment in rollout.workspace.spool.glob("*.jsonl"):
        records = [read_record(line) for line in segment.read_bytes().splitlines()]
        forced = [
            msgspec.structs.replace(one, forced=True, arm="treatment") if hasattr(one, "forced") else one
            for one in records
        ]
        segment.write_bytes(b"".join(map(render_record, forced)))
    assert rollout.status == "waiting 0"


class _MovedWhileWatched:
    """Every answer of the treatment fails; while they are read, a person moves the canary."""

    def __init__(self, move: Callable[[], object]) -> None:
        self._move = move

    def begin(self, state: CanaryState) -> Iterator[Observation]:
        return iter(())

    def new(self, state: CanaryState) -> Iterator[Observation]:
        for arm in Arm:
            for n in range(300):
                yield Observation(
                    arm=arm,
                    unit=f"u{n}",
                    outcome=Outcome.HTTP_ERROR if arm is Arm.TREATMENT else Outcome.OK,
                    latency_ms=1.0,
                    ttft_ms=None,
                    cost_usd=None,
                    asked_at=1.0,
                )
        self._move()


@pytest.mark.parametrize("moved", [True, False])
def test_what_was_seen_of_a_stage_says_nothing_of_the_stage_a_person_moved_to(tmp_path: Path, moved: bool) -> None:
    history = History(tmp_path, "x")
    plan = [canary.Stage(percentage=5), canary.Stage(percentage=20)]
    nothing = canary.StageStatus(watched_s=0, n_treatment=0, verdicts=[])
    history.apply(lambda state: canary.evaluate(state, nothing, now=1, stages=plan, min_requests=1), now=1, who="c")

    def approve() -> None:
        if moved:
            history.apply(
                lambda state: canary.approve(state, now=2, stages=plan, why="ok", force=True), now=2, who="alice"
            )

    controller = Controller(
        history,
        ControllerSettings(stages=plan, min_requests=1),
        _MovedWhileWatched(approve),
        lambda: build_guardrails({"error_rate": 0.02}),
    )
    event = controller.tick(3.0)
    if moved:
        assert event is None and history.state().percentage == 20
    else:
        assert event is not None and event.action == "rollback"
