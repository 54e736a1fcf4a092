"""The controller over real spool files and a real history, its clock in our hands: every path of a rollout."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from spool_writer import SpoolWriter

from evalpipe.errors import ConfigError
from evalpipe.models import CanaryEvent, CanaryStatus, Judgment, ShownFirst, last_event
from evalpipe.rollout.controller import has_leader, leader_lock
from evalpipe.store.query import open_store
from evalpipe.workspace import canary
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import Workspace, open_workspace

CONFIG = """
[experiment]
name = "rollout"
mode = "canary"
[arms.control]
provider = "openai"
[arms.treatment]
provider = "openai"
[canary]
evaluate_every_s = 10
min_requests = 20
guardrails = { error_rate = 0.02, p99_latency_ms = 5000 }
stages = [
  { percentage = 10, duration_hours = 0.01, auto_advance = true },
  { percentage = 50, duration_hours = 0.01, auto_advance = false },
  { percentage = 100, auto_advance = false },
]
"""


class Rollout:
    """A workspace, its traffic, and a clock that moves when told."""

    def __init__(self, tmp_path: Path) -> None:
        (tmp_path / "evalpipe.toml").write_text(CONFIG)
        self.workspace: Workspace = open_workspace(root=tmp_path)
        self.now = 1_000_000.0
        self.events: list[CanaryEvent] = []
        self.traffic = SpoolWriter(self.workspace.data, "rollout", clock=lambda: self.now)
        self.history = canary.open_history(self.workspace)

    def watch(self, n_looks: int, between: Callable[[], object] = lambda: None, *, step_s: float = 10.0) -> None:
        """A controller of its own for `n_looks` evaluations; `between` runs after each."""
        looks = iter(range(n_looks - 1))

        def wait(seconds: float) -> bool:
            between()
            self.now += step_s
            return next(looks, None) is None

        canary.run(self.workspace, on_event=self.events.append, clock=lambda: self.now, wait=wait)

    def change_state(self, action: str) -> None:
        self.events.append(canary.change_state(self.workspace, action, why="test", by="alice", now=self.now))

    @property
    def status(self) -> str:
        return f"{self.history.state().status} {self.history.state().percentage:g}"


@pytest.fixture
def rollout(tmp_path: Path) -> Rollout:
    return Rollout(tmp_path)


def test_happy_path_through_a_gate_to_everyone(rollout: Rollout) -> None:
    rollout.watch(8, lambda: rollout.traffic.serve(100))
    assert [event.action for event in rollout.events] == ["start", "advance"]
    assert rollout.status == "running 50"
    rollout.watch(8, lambda: rollout.traffic.serve(50))
    assert rollout.status == "paused 50", "the gate holds, whatever goes well"
    rollout.change_state("approve")
    rollout.watch(4, lambda: rollout.traffic.serve(50))
    assert rollout.status == "done 100"
    assert rollout.traffic.serve(10) == {"control": 0, "treatment": 10}
    assert [(event.seq, event.who) for event in rollout.history.events()] == [
        (1, "controller"),
        (2, "controller"),
        (3, "controller"),
        (4, "alice"),
        (5, "controller"),
    ]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_error_burst_in_any_stage_is_over_after_one_interval(rollout: Rollout, stage: int) -> None:
    rollout.watch(1)
    while rollout.history.state().stage + 1 < stage:
        rollout.watch(6, lambda: rollout.traffic.serve(100))
        if rollout.history.state().status is CanaryStatus.PAUSED:
            rollout.change_state("approve")
    rollout.watch(2, lambda: rollout.traffic.serve(50))
    before = rollout.history.state().percentage
    exposed = rollout.traffic.serve(200, fails=lambda arm, i: arm == "treatment" and i % 2 == 0)
    assert before > 0 and exposed["treatment"] > 0
    rollout.watch(1)
    assert rollout.status == "rolled_back 0"
    assert "error_rate" in rollout.events[-1].why
    assert rollout.traffic.serve(200)["treatment"] == 0
    rollout.watch(5, lambda: rollout.traffic.serve(10))
    assert rollout.status == "rolled_back 0", "a new start needs a person"
    rollout.change_state("reset")
    rollout.watch(1)
    assert rollout.status == "running 10"


def test_a_breach_while_waiting_at_the_gate(rollout: Rollout) -> None:
    rollout.watch(17, lambda: rollout.traffic.serve(100))
    assert rollout.status == "paused 50"
    rollout.traffic.serve(60, fails=lambda arm, i: arm == "treatment")
    rollout.watch(1)
    assert rollout.status == "rolled_back 0"


def test_a_slow_tail_breaches_p99(rollout: Rollout) -> None:
    rollout.watch(1)
    rollout.traffic.serve(2000, latency_ms=lambda arm, i: 9000.0 if arm == "treatment" and i % 10 == 0 else 900.0)
    rollout.watch(1)
    assert rollout.status == "rolled_back 0"
    assert "p99_latency_ms" in rollout.events[-1].why and "exceed 5000 ms" in rollout.events[-1].why


def test_errors_in_both_arms_alike_and_under_the_limit_hold(rollout: Rollout) -> None:
    rollout.watch(5, lambda: rollout.traffic.serve(600, fails=lambda arm, i: i % 100 == 7))
    assert rollout.status in {"running 10", "running 50", "inconclusive 10"}


def test_no_traffic_is_inconclusive_and_late_traffic_counts(rollout: Rollout) -> None:
    rollout.watch(20)
    assert rollout.status == "inconclusive 10"
    rollout.watch(50)
    assert rollout.status == "inconclusive 10" and len(rollout.events) == 2
    rollout.watch(3, lambda: rollout.traffic.serve(400))
    assert rollout.status == "running 50"


def test_a_clock_that_jumps_neither_skips_nor_stops_a_stage(rollout: Rollout) -> None:
    rollout.watch(1)
    rollout.traffic.serve(500)
    rollout.now += 10 * 3600
    rollout.watch(1)
    assert rollout.status == "running 10", "ten hours nobody watched are no evidence"
    rollout.watch(2, step_s=24 * 3600)
    assert rollout.status == "running 10"
    rollout.now -= 30 * 24 * 3600
    rollout.watch(1)
    rollout.traffic.serve(100)
    rollout.watch(8)
    assert [event.action for event in rollout.events][:2] == ["start", "advance"]


def test_a_new_controller_goes_on_where_the_last_one_died(rollout: Rollout) -> None:
    for _ in range(8):  # each look by a controller of its own, and everything loaded out of the spool in between
        rollout.watch(1)
        rollout.traffic.serve(60)
        rollout.traffic.segment += 1
    evaluation = rollout.history.evaluation()
    assert evaluation is not None and evaluation.n_control + evaluation.n_treatment == 7 * 60
    assert evaluation.watched_s == 0, "nobody watched in between"
    load(rollout.workspace, list(rollout.workspace.spool.iterdir()))
    for segment in rollout.workspace.spool.iterdir():
        segment.unlink()
    rollout.watch(1)
    evaluation = rollout.history.evaluation()
    assert evaluation is not None and evaluation.n_control + evaluation.n_treatment == 8 * 60


def test_segments_loaded_and_deleted_between_two_looks_are_found_in_the_store(rollout: Rollout) -> None:
    rollout.watch(1)

    def come_and_go() -> None:
        rollout.traffic.serve(40)
        rollout.traffic.segment += 1
        rollout.traffic.serve(40)
        rollout.traffic.segment += 1
        load(rollout.workspace, list(rollout.workspace.spool.iterdir()))
        for segment in rollout.workspace.spool.iterdir():
            segment.unlink()
        rollout.traffic.serve(1)

    rollout.watch(3, come_and_go)
    evaluation = rollout.history.evaluation()
    assert evaluation is not None
    assert evaluation.n_control + evaluation.n_treatment == 2 * 81


def test_two_controllers_only_one_decides(rollout: Rollout) -> None:
    path = rollout.history.controller_lock_path
    assert not has_leader(path)
    stood_by: list[bool] = []
    with leader_lock(path) as first:
        assert first and has_leader(path)
        canary.run(
            rollout.workspace,
            on_event=rollout.events.append,
            on_standby=lambda: stood_by.append(True),
            clock=lambda: rollout.now,
            wait=lambda seconds: len(stood_by) == 3,
        )
    assert len(stood_by) == 3 and not rollout.events
    rollout.watch(1)
    assert rollout.status == "running 10"


def test_a_history_cut_anywhere_is_the_old_state_or_the_new_one(rollout: Rollout) -> None:
    rollout.watch(8, lambda: rollout.traffic.serve(100))
    whole = rollout.history.path.read_bytes()
    states = {0: None, **{event.seq: event.state for event in rollout.history.events()}}
    for length in range(len(whole)):
        event = last_event(whole[:length])
        n_lines = whole[:length].count(b"\n")
        assert (event.seq if event else 0) == n_lines
        assert event is None or event.state == states[n_lines]
    rollout.history.path.write_bytes(whole[:-20])
    rollout.change_state("rollback")
    assert rollout.status == "rolled_back 0"
    assert [event.seq for event in rollout.history.events()] == [1, 2]


def test_forced_requests_and_other_stages_are_not_counted(rollout: Rollout) -> None:
    rollout.traffic.serve(100)  # before the start: 0 %, no stage
    rollout.watch(1)
    rollout.traffic.serve(100)
    rollout.watch(1)
    evaluation = rollout.history.evaluation()
    assert evaluation is not None and evaluation.n_control + evaluation.n_treatment == 100


@pytest.mark.parametrize(
    ("orders", "status"), [((0.0, 0.2), "rolled_back 0"), ((0.5, 0.5), "running 10"), ((0.0,), "running 10")]
)
def test_a_judges_verdicts_of_whole_pairs_are_a_guardrail(
    tmp_path: Path, orders: tuple[float, ...], status: str
) -> None:
    """`orders`: the preference in the one order, then in the other; a pair of which one is missing is not heard yet."""
    rollout = Rollout(tmp_path)
    (tmp_path / "evalpipe.toml").write_text(CONFIG.replace("error_rate = 0.02", "win_rate = 0.45"))
    rollout.workspace = open_workspace(root=tmp_path)
    rollout.watch(1)
    rollout.traffic.serve(200)
    rollout.watch(1)
    load(rollout.workspace)
    with open_store(rollout.workspace.data, "rollout") as store:
        asked = store.connection.execute("SELECT request_id FROM exchanges WHERE arm = 'control'").fetchall()
        store.write_judgments(
            Judgment(
                key=f"{request_id}-{first}",
                attempt=1,
                request_id=request_id,
                judge="pairwise",
                judge_fingerprint="f",
                judge_model="m",
                shown_first=first,
                preference=preference,
            )
            for (request_id,) in asked
            for first, preference in zip((ShownFirst.CONTROL, ShownFirst.TREATMENT), orders, strict=False)
        )
    rollout.watch(2)
    assert rollout.status == status
    evaluation = rollout.history.evaluation()
    assert evaluation is not None
    verdict = next(verdict for verdict in evaluation.verdicts if verdict.guardrail == "win_rate")
    assert verdict.status == {2: "breached" if status.startswith("rolled") else "holds", 1: "no_data"}[len(orders)]
    if verdict.status == "holds":  # pairs of one stage say nothing of the next
        rollout.now += 10
        canary.change_state(rollout.workspace, "approve", why="", by="alice", force=True, now=rollout.now)
        rollout.watch(1)
        evaluation = rollout.history.evaluation()
        assert evaluation is not None
        assert [one.status for one in evaluation.verdicts if one.guardrail == "win_rate"] == ["no_data"]


def test_who_asks_for_a_controller_keeps_none_from_leading(tmp_path: Path) -> None:
    """`canary status`, `health` and a starting collector hold the lock, shared, for the moment of their question."""
    path = tmp_path / "x.controller.lock"
    path.touch()
    question = os.open(path, os.O_RDONLY)
    fcntl.flock(question, fcntl.LOCK_SH)
    answered = threading.Timer(0.02, os.close, (question,))
    answered.start()
    with leader_lock(path) as leads:
        assert leads
    answered.join()


def test_not_a_canary_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "evalpipe.toml").write_text(CONFIG.replace('mode = "canary"', 'mode = "ab"'))
    with pytest.raises(ConfigError, match="needs mode"):
        canary.change_state(open_workspace(root=tmp_path), "pause", why="")
    with pytest.raises(ConfigError, match="needs mode"):
        canary.read_status(open_workspace(root=tmp_path))
    (tmp_path / "evalpipe.toml").write_text(CONFIG.replace("error_rate = 0.02", "error_rat = 0.02"))
    with pytest.raises(ConfigError, match=r"canary\.guardrails\.error_rat"):
        canary.change_state(open_workspace(root=tmp_path), "pause", why="")
