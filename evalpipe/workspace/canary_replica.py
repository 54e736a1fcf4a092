"""The canary's controller where several replicas share the data: follow, publish, and decide while holding the lease."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, MutableSet, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from threading import Event, Thread

from evalpipe.collector.logs import OnceAMinute
from evalpipe.models import CanaryEvent, CanaryState, CanaryStatus
from evalpipe.objects.client import StorageError, open_objects
from evalpipe.objects.lease import Lease, LeaseLostError
from evalpipe.rollout.canary import LIVE, History, Traces
from evalpipe.rollout.controller import Controller, ControllerSettings, StateHistory
from evalpipe.rollout.guardrails import Guardrail
from evalpipe.rollout.observations import Observation
from evalpipe.rollout.shared_answers import PUBLISH_S, AnswerPublisher, SharedAnswers
from evalpipe.rollout.shared_history import Follower, SharedHistory

LEASE_S = 3.0
"""a controller that is silent for so long is replaced by another replica's"""
FOLLOW_S = 0.5
"""how often a replica looks at the shared state"""
_SLICE_S = 0.25
"""how often a controller that waits looks whether it is still the one"""

logger = logging.getLogger(__name__)


def controller_lease(experiment: str) -> str:
    """The name of the lease under which a replica decides for the canary."""
    return f"canary-{experiment}"


class ReplicaController:
    """The controller of one replica: it follows the shared state, publishes its collector's answers, and decides while it holds
    the lease."""

    def __init__(
        self,
        url: str,
        experiment: str,
        replica: str,
        mirror: History,
        settings: ControllerSettings,
        *,
        answers: Callable[[CanaryState], Iterable[Observation]],
        guardrails: Callable[[StateHistory, MutableSet[str | None]], Sequence[Guardrail]],
        traces: Callable[[], Traces],
    ) -> None:
        """Args:
        url: of the object storage.
        experiment: its name.
        replica: this one's name.
        mirror: of the shared history, on this machine's disk.
        settings: of the controller.
        answers: those of this replica's collector that ended since the last call, of the stage in force.
        guardrails: new ones, from the history and the treatment's configurations that have answered in an earlier stage.
        traces: signs that a canary has begun.
        """
        self._experiment, self._replica, self._mirror, self._settings = experiment, replica, mirror, settings
        self._answers, self._guardrails, self._traces = answers, guardrails, traces
        self._quick = open_objects(url, give_up_after_s=LEASE_S / 3)
        self._objects = open_objects(url, give_up_after_s=2 * LEASE_S)
        self._answered: set[str | None] = set()

    def run(
        self,
        on_event: Callable[[CanaryEvent], None],
        on_standby: Callable[[], None],
        clock: Callable[[], float],
        wait: Callable[[float], bool],
        until_done: bool,
    ) -> None:
        """Until `wait(seconds)` returns True, or, with `until_done`, until the canary is done or rolled back."""
        publisher = AnswerPublisher(self._objects, self._experiment, self._replica)
        follower = Follower(SharedHistory(self._quick, self._experiment, self._mirror), self._mirror)
        with (
            repeated(follower.look, FOLLOW_S, "the canary's shared state cannot be read") as following,
            repeated(
                partial(self._publish, publisher), PUBLISH_S, "the canary's controller cannot be given the answers"
            ) as publishing,
        ):
            try:
                self._contend(on_event, on_standby, clock, wait, until_done, (following, publishing))
            finally:
                publishing.stop()
                with suppress(StorageError):
                    publisher.close()

    def _publish(self, publisher: AnswerPublisher) -> None:
        state = self._mirror.state()
        publisher.publish(state.entry, partial(self._of_live_stage, state))

    def _of_live_stage(self, state: CanaryState) -> list[Observation]:
        """The new answers, read in any state; those of a state without a stage are nobody's concern."""
        answers = list(self._answers(state))
        return answers if state.status in LIVE else []

    def _contend(
        self,
        on_event: Callable[[CanaryEvent], None],
        on_standby: Callable[[], None],
        clock: Callable[[], float],
        wait: Callable[[float], bool],
        until_done: bool,
        threads: Sequence[Repeated],
    ) -> None:
        once = OnceAMinute()
        while True:
            check(threads)
            try:
                lease = Lease.take(self._quick, controller_lease(self._experiment), self._replica, LEASE_S)
                if lease is None:
                    on_standby()
                else:
                    try:
                        if self._lead(lease, on_event, clock, wait, until_done, threads):
                            return
                    finally:
                        lease.release()
            except LeaseLostError as error:
                logger.warning("%s", error)
            except StorageError as error:
                if once.is_due("storage"):
                    logger.error("the canary's controller cannot decide: %s", error)
            if wait(_SLICE_S):
                return

    def _lead(
        self,
        lease: Lease,
        on_event: Callable[[CanaryEvent], None],
        clock: Callable[[], float],
        wait: Callable[[float], bool],
        until_done: bool,
        threads: Sequence[Repeated],
    ) -> bool:
        """Decide while the lease is held; whether to end. Raises LeaseLostError, StorageError."""
        history = SharedHistory(self._objects, self._experiment, self._mirror, lease=lease.number, traces=self._traces)
        history.claim()
        logger.info("this replica decides for the canary (lease %d)", lease.number)
        guardrails = partial(self._guardrails, history, self._answered)
        source = SharedAnswers(self._objects, self._experiment)
        controller = Controller(history, self._settings, source, guardrails, silent=source.silent)
        while lease.is_held:
            check(threads)
            event = controller.tick(clock())
            if event is not None:
                on_event(event)
            if until_done and history.state().status in {CanaryStatus.DONE, CanaryStatus.ROLLED_BACK}:
                return True
            next_at = time.monotonic() + self._settings.evaluate_every_s
            while lease.is_held and (left := next_at - time.monotonic()) > 0:
                if wait(min(left, _SLICE_S)):
                    return True
        return False


class Repeated(Thread):
    """Does one thing again and again in a thread of its own, whatever becomes of the storage; another error ends it."""

    def __init__(self, do: Callable[[], None], every_s: float, problem: str) -> None:
        super().__init__(daemon=True)
        self._do, self._every_s, self._problem = do, every_s, problem
        self._ended = Event()
        self._error: Exception | None = None

    def run(self) -> None:
        once = OnceAMinute()
        while not self._ended.is_set():
            try:
                self._do()
            except (StorageError, OSError) as error:
                if once.is_due("storage"):
                    logger.error("%s: %s; it is tried again", self._problem, error)
            except Exception as error:  # noqa: BLE001 - the main thread raises it
                self._error = error
                return
            self._ended.wait(self._every_s)

    def stop(self) -> None:
        self._ended.set()
        self.join(_SLICE_S)  # a storage that does not answer does not hold up the end

    @property
    def error(self) -> Exception | None:
        """What ended the thread."""
        return self._error


def check(threads: Sequence[Repeated]) -> None:
    """Raises what ended one of the threads."""
    for thread in threads:
        if thread.error is not None:
            raise thread.error


@contextmanager
def repeated(do: Callable[[], None], every_s: float, problem: str) -> Iterator[Repeated]:
    """`do` every so many seconds as long as the context lasts; `problem` begins the message of what fails."""
    thread = Repeated(do, every_s, problem)
    thread.start()
    try:
        yield thread
    finally:
        thread.stop()
