"""A canary of several replicas: one state for all of them, one controller by lease, each answer counted once."""

from __future__ import annotations

import itertools
import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from live import Process, running, until
from objects.fixtures import Bucket
from spool_writer import SpoolWriter

from evalpipe.collector.assignment import CanaryShare, Share
from evalpipe.errors import ConfigError
from evalpipe.models import Arm, CanaryEvent, CanaryState, CanaryStatus, Outcome, safe_share
from evalpipe.objects.client import ChangedError, Objects, open_objects
from evalpipe.objects.lease import LeaseLostError
from evalpipe.rollout import canary
from evalpipe.rollout.canary import CONTROLLER, History, Stage
from evalpipe.rollout.observations import Observation
from evalpipe.rollout.shared_answers import SILENT_S, AnswerPublisher, SharedAnswers
from evalpipe.rollout.shared_history import Follower, SharedHistory
from evalpipe.workspace.canary import change_state, open_history, read_status, status_lines
from evalpipe.workspace.paths import Workspace, open_workspace

STAGES = [Stage(percentage=10, auto_advance=True), Stage(percentage=50), Stage(percentage=100)]
CONFIG = """
data = "{url}"
[experiment]
name = "rollout"
mode = "canary"
[arms.control]
provider = "openai"
[arms.treatment]
provider = "openai"
[collector]
replica = "{replica}"
[canary]
evaluate_every_s = 0.5
state_timeout_s = 1.5
min_requests = 20
guardrails = {{ error_rate = 0.02 }}
stages = [ {{ percentage = 10, duration_hours = 10 }}, {{ percentage = 50, duration_hours = 10 }} ]
"""


def workspace(folder: Path, bucket: Bucket, replica: str) -> Workspace:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "evalpipe.toml").write_text(CONFIG.format(url=bucket.url, replica=replica))
    return open_workspace(root=folder, pull=False)


def shared(bucket: Bucket, folder: Path, *, lease: int | None = None) -> SharedHistory:
    return SharedHistory(open_objects(bucket.url), "x", History(folder / "canary", "x"), lease=lease)


def start(state: CanaryState) -> canary.StateTransition:
    return canary.StateTransition(
        action="start",
        why="test",
        state=CanaryState(status=CanaryStatus.RUNNING, percentage=10, stage=0),
        enters_stage=True,
    )


def force(state: CanaryState) -> canary.StateTransition:
    return canary.approve(state, now=0.0, stages=STAGES, why="test", force=True)


def rollback(state: CanaryState) -> canary.StateTransition:
    return canary.rollback(state, now=0.0, why="test")


# The shared history.


def test_a_change_on_one_machine_is_seen_on_another_and_mirrored(bucket: Bucket, tmp_path: Path) -> None:
    one, other = shared(bucket, tmp_path / "a", lease=1), shared(bucket, tmp_path / "b")
    one.claim()
    assert one.apply(start, now=1.0, who=CONTROLLER) is not None
    assert other.state().percentage == 10
    mirror = History(tmp_path / "b" / "canary", "x")
    Follower(other, mirror).look()
    assert mirror.events() == other.events() and mirror.state() == other.state()
    other.apply(rollback, now=2.0, who="alice")
    assert one.state().status is CanaryStatus.ROLLED_BACK
    assert [(event.seq, event.who, event.state.entry) for event in one.events()] == [
        (1, CONTROLLER, 1),
        (2, "alice", 2),
    ]


def test_a_controller_with_an_old_lease_is_refused_and_a_person_is_not(bucket: Bucket, tmp_path: Path) -> None:
    old, new = shared(bucket, tmp_path / "a", lease=1), shared(bucket, tmp_path / "b", lease=2)
    old.claim()
    old.apply(start, now=1.0, who=CONTROLLER)
    new.claim()
    with pytest.raises(LeaseLostError, match="lease 2 after 1"):
        old.apply(force, now=2.0, who=CONTROLLER)
    with pytest.raises(LeaseLostError):
        old.claim()
    assert old.state().percentage == 10
    shared(bucket, tmp_path / "c").apply(force, now=3.0, who="alice")
    assert new.state().percentage == 50
    with pytest.raises(LeaseLostError):
        old.apply(force, now=4.0, who=CONTROLLER)


def test_a_change_in_between_is_decided_anew(bucket: Bucket, tmp_path: Path) -> None:
    """The rollback comes between the reading and the writing of the other change."""
    one, other = shared(bucket, tmp_path / "a", lease=1), shared(bucket, tmp_path / "b")
    one.apply(start, now=1.0, who=CONTROLLER)
    seen: list[CanaryStatus] = []

    def decide(state: CanaryState) -> canary.StateTransition | None:
        seen.append(state.status)
        if len(seen) == 1:
            other.apply(rollback, now=2.0, who="alice")
        return force(state) if state.status is CanaryStatus.RUNNING else None

    assert one.apply(decide, now=3.0, who=CONTROLLER) is None
    assert seen == [CanaryStatus.RUNNING, CanaryStatus.ROLLED_BACK]
    assert one.state().percentage == 0


class LostAnswer(Objects):
    """The first compare-and-swap works, its answer is lost, and another change comes on top."""

    def __init__(self, url: str, then: Callable[[], object]) -> None:
        self._within = open_objects(url)
        self._then: Callable[[], object] | None = then
        self.get, self.create = self._within.get, self._within.create  # type: ignore[method-assign]
        self.address = self._within.address

    def replace(self, key: str, data: bytes, version: str) -> str:
        done = self._within.replace(key, data, version)
        if self._then is None:
            return done
        then, self._then = self._then, None
        then()
        raise ChangedError(key)


def test_a_change_whose_answer_was_lost_is_made_once(bucket: Bucket, tmp_path: Path) -> None:
    other = shared(bucket, tmp_path / "b")
    other.apply(start, now=1.0, who="alice")
    objects = LostAnswer(
        bucket.url, lambda: other.apply(lambda state: canary.pause(state, why="x"), now=3.0, who="bob")
    )
    one = SharedHistory(objects, "x", History(tmp_path / "a" / "canary", "x"))
    changed = one.apply(force, now=2.0, who="alice")
    assert changed is not None and changed.state.percentage == 50
    assert [event.action for event in one.events()] == ["start", "approve", "pause"]


def test_a_lost_history_is_at_zero_until_a_reset(bucket: Bucket, tmp_path: Path) -> None:
    one = shared(bucket, tmp_path / "a", lease=1)
    one.apply(start, now=1.0, who=CONTROLLER)
    one.apply(force, now=2.0, who="alice")
    mirror = History(tmp_path / "a" / "canary", "x")
    open_objects(bucket.url).delete(["state/canary/x/state.json"])
    assert one.state().percentage == 0 and "has seen change 2" in str(one.loss())
    Follower(one, mirror).look()
    assert mirror.state().percentage == 0 and mirror.last() == one.last()
    assert one.events()[-1].seq == 3
    one.apply(lambda state: canary.reset(now=4.0, why="test"), now=4.0, who="alice")
    one.apply(start, now=5.0, who=CONTROLLER)
    assert one.state().percentage == 10 and one.state().entry == 5
    assert mirror.state() == one.state()


# What a replica does that has lost sight of it.


def event(seq: int, state: CanaryState) -> CanaryEvent:
    return CanaryEvent(seq=seq, at=0.0, who="x", action="x", why="x", state=state)


def states(*given: tuple[CanaryStatus, float, int, str | None]) -> list[CanaryEvent]:
    return [
        event(seq, CanaryState(status=status, percentage=share, stage=0, entry=entry, paused_by=by))
        for seq, (status, share, entry, by) in enumerate(given, 1)
    ]


RUNNING, PAUSED, DONE = CanaryStatus.RUNNING, CanaryStatus.PAUSED, CanaryStatus.DONE
INCONCLUSIVE, ROLLED_BACK, WAITING = CanaryStatus.INCONCLUSIVE, CanaryStatus.ROLLED_BACK, CanaryStatus.WAITING
FIRST, SECOND = (RUNNING, 10.0, 1, None), (RUNNING, 50.0, 3, None)


@pytest.mark.parametrize(
    ("history", "safe"),
    [
        ([FIRST], (0, 0)),
        ([FIRST, SECOND], (10, 1)),
        ([FIRST, SECOND, (PAUSED, 50.0, 3, "person")], (10, 1)),
        ([FIRST, SECOND, (INCONCLUSIVE, 50.0, 3, None)], (10, 1)),
        ([FIRST, SECOND, (PAUSED, 50.0, 3, "gate")], (50, 3)),
        ([FIRST, SECOND, (DONE, 50.0, 3, None)], (50, 3)),
        ([FIRST, SECOND, (ROLLED_BACK, 0.0, 4, None)], (0, 0)),
        ([FIRST, SECOND, (ROLLED_BACK, 0.0, 4, None), (WAITING, 0.0, 5, None), (RUNNING, 10.0, 6, None)], (0, 0)),
        ([FIRST, (PAUSED, 0.0, 2, "history_lost")], (0, 0)),
    ],
)
def test_the_last_stage_known_to_be_safe(
    history: list[tuple[CanaryStatus, float, int, str | None]], safe: object
) -> None:
    assert safe_share(states(*history)) == safe


def test_without_sight_of_the_state_a_replica_falls_to_the_safe_stage_and_returns(tmp_path: Path) -> None:
    history = History(tmp_path, "x")
    now = [1000.0]
    share = CanaryShare(
        history.path,
        clock=iter(itertools.count(0, 10)).__next__,
        state_timeout_s=60,
        wall_clock=lambda: now[0],
    )
    history.mirror(states(FIRST, SECOND))
    assert share() == Share(10.0, 1), "never seen"
    seen = tmp_path / "x.seen"
    seen.touch()
    os.utime(seen, (1000, 1000))
    assert share() == Share(50.0, 3)
    now[0] = 1060.0
    assert share() == Share(50.0, 3)
    now[0] = 1061.0
    assert share() == Share(10.0, 1)
    os.utime(seen, (1061, 1061))
    assert share() == Share(50.0, 3)
    history.mirror(states(FIRST, SECOND, (ROLLED_BACK, 0.0, 4, None)))
    assert share() == Share(0.0, 4)
    now[0] = 2000.0
    assert share().percentage == 0


# Answers of all replicas.


def answers(first: int, n: int, prefix: str = "r") -> list[Observation]:
    return [
        Observation(
            arm=Arm.TREATMENT if number % 2 else Arm.CONTROL,
            unit=f"user-{number}",
            outcome=Outcome.OK,
            latency_ms=float(number),
            request_id=f"{prefix}{number}",
        )
        for number in range(first, first + n)
    ]


STAGE_1 = CanaryState(status=RUNNING, percentage=10, stage=0, entry=1)
STAGE_2 = CanaryState(status=RUNNING, percentage=50, stage=1, entry=2)


def test_each_answer_of_every_replica_is_read_once(bucket: Bucket) -> None:
    objects = open_objects(bucket.url)
    one, two = AnswerPublisher(objects, "x", "a"), AnswerPublisher(objects, "x", "b")
    reader = SharedAnswers(objects, "x")
    one.publish(1, lambda: answers(0, 3))
    assert reader.begin(STAGE_1) == answers(0, 3)
    assert reader.new(STAGE_1) == []
    one.publish(1, lambda: answers(3, 2))
    two.publish(1, lambda: answers(0, 4, "s"))
    assert reader.new(STAGE_1) == answers(3, 2) + answers(0, 4, "s")
    two.publish(1, list)
    assert reader.new(STAGE_1) == []
    # More than the object holds that is written anew: another controller reads all, the first one what is new.
    one.publish(1, lambda: answers(5, 4500))
    assert sorted(seen.latency_ms for seen in reader.new(STAGE_1) if seen.latency_ms) == list(range(5, 4505))
    later = SharedAnswers(objects, "x").begin(STAGE_1)
    assert len(later) == len({seen.request_id for seen in later}) == 4505 + 4
    # Another stage begins; what comes late of the first one is not counted.
    one.publish(2, lambda: answers(9000, 1))
    assert reader.begin(STAGE_2) == answers(9000, 1)
    two.publish(1, lambda: answers(8000, 1, "s"))
    assert reader.new(STAGE_2) == []


def test_a_restarted_replica_publishes_only_what_it_had_not(bucket: Bucket) -> None:
    objects = open_objects(bucket.url)
    AnswerPublisher(objects, "x", "a").publish(1, lambda: answers(0, 4100))
    again = AnswerPublisher(objects, "x", "a")
    again.publish(1, lambda: answers(0, 4110))  # its log is read from the beginning
    found = SharedAnswers(objects, "x").begin(STAGE_1)
    assert len(found) == len({seen.request_id for seen in found}) == 4110


def test_answers_that_could_not_be_published_are_published_later(faulty_bucket: Bucket) -> None:
    objects = open_objects(faulty_bucket.url, give_up_after_s=0.1)
    publisher, reader = AnswerPublisher(objects, "x", "a"), SharedAnswers(objects, "x")
    publisher.publish(1, lambda: answers(0, 1))
    faulty_bucket.faults.outage(60)
    with pytest.raises(Exception, match="failed for"):
        publisher.publish(1, lambda: answers(1, 5000))
    faulty_bucket.faults.outage(0)
    publisher.publish(1, list)
    assert len(reader.begin(STAGE_1)) == 5001


def test_a_silent_replica_is_reported_and_one_that_ended_is_not(bucket: Bucket) -> None:
    objects = open_objects(bucket.url)
    now = [0.0]
    reader = SharedAnswers(objects, "x", clock=lambda: now[0])
    lasting, killed, ended = (AnswerPublisher(objects, "x", name) for name in ("lasting", "killed", "ended"))
    for publisher in (lasting, killed, ended):
        publisher.publish(1, list)
    ended.close()
    reader.begin(STAGE_1)
    assert reader.silent() == []
    now[0] = SILENT_S
    lasting.publish(1, list)
    reader.new(STAGE_1)
    assert reader.silent() == ["killed"]
    AnswerPublisher(objects, "x", "killed").publish(1, list)  # it is back
    reader.new(STAGE_1)
    assert reader.silent() == []


# Real processes.


def mirror(space: Workspace) -> History:
    return History(space.data / "canary", "rollout")


def n_decides(process: Process) -> int:
    """The number of the lease that a controller has taken last; 0: none."""
    return max(
        (int(number) for number in re.findall(r"decides for the canary \(lease (\d+)\)", process.text)), default=0
    )


@pytest.mark.serial
def test_a_killed_controller_is_replaced_and_replicas_follow(faulty_bucket: Bucket, tmp_path: Path) -> None:
    spaces = [workspace(tmp_path / name, faulty_bucket, name) for name in "ab"]
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                running(space.root / "canary.log", "canary", "run", "--config", str(space.root / "evalpipe.toml"))
            )
            for space in spaces
        ]
        everywhere = lambda share: all(mirror(space).state().percentage == share for space in spaces)  # noqa: E731
        until(lambda: everywhere(10), 60, processes[0].text)

        # One controller counts the answers of both replicas.
        for number, space in enumerate(spaces):
            SpoolWriter(space.data, "rollout", f"served-{number}").serve(40)
        history = open_history(spaces[0])
        seen = lambda: (found := history.evaluation()) is not None and found.n_control + found.n_treatment  # noqa: E731
        until(lambda: seen() == 80, 20, "the answers of both replicas are counted")

        # A person's change reaches the files that the workers look at.
        change_state(spaces[0], "approve", why="test", force=True)
        changed_at = time.monotonic()
        until(lambda: everywhere(50), 20)
        assert time.monotonic() - changed_at < 2

        # Out of sight of the state for `state_timeout_s`, workers serve the last safe stage; back in sight, the one in force.
        share = CanaryShare(mirror(spaces[1]).path, state_timeout_s=1.5)
        assert share() == Share(50.0, 2)
        faulty_bucket.faults.outage(60)
        until(lambda: share() == Share(10.0, 1), 10)
        faulty_bucket.faults.outage(0)
        until(lambda: share() == Share(50.0, 2), 10)

        first = max((0, 1), key=lambda number: n_decides(processes[number]))
        number = n_decides(processes[first])
        processes[first].process.send_signal(signal.SIGKILL)
        killed_at = time.monotonic()
        other = 1 - first
        until(lambda: n_decides(processes[other]) > number, 20, "the other replica decides")
        assert time.monotonic() - killed_at < 5

        traffic = SpoolWriter(spaces[other].data, "rollout", "served-later")
        traffic.serve(200, fails=lambda arm, i: arm == "treatment" and i % 2 == 0)
        until(lambda: mirror(spaces[other]).state().status is ROLLED_BACK, 20)
        assert "error_rate" in open_history(spaces[0]).events()[-1].why
        # Below these nothing is taken for the rest of a commit that was not made.
        keys = [one.key for one in open_objects(faulty_bucket.url).list("")]
        assert keys and all(key.startswith(("state/", "leases/")) for key in keys)
        assert "no controller runs" not in "\n".join(status_lines(read_status(spaces[first])))


def test_commands_say_so_where_nothing_can_be_changed(bucket: Bucket, tmp_path: Path) -> None:
    space = workspace(tmp_path, bucket, "a")
    with pytest.raises(ConfigError, match="nothing to approve: the canary is waiting"):
        change_state(space, "approve", why="test")
