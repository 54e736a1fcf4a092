"""The canary's history as one object that all replicas share, changed by compare-and-swap under the controller's lease.

The object holds the whole history (tens of changes) and the number of the lease under which the controller last changed it. A
controller that was silent for too long finds a higher number there, and its change is refused. A person's change needs no lease.

Each replica mirrors the object into the history on its disk (`Follower`), which its workers look at as on one machine.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Final

import msgspec

from evalpipe.errors import DataError
from evalpipe.models import CanaryEvaluation, CanaryEvent, CanaryState, read_evaluation, render_evaluation
from evalpipe.models import seen_name as seen_name_of
from evalpipe.objects.client import ChangedError, KeyExistsError, Objects
from evalpipe.objects.lease import LeaseLostError
from evalpipe.rollout.canary import CONTROLLER, LOST, History, StateTransition, Traces, lost_event

_EVALUATION_EVERY: Final = 4
"""looks at the history for one at the evaluation, which is for metrics only"""


class _Shared(msgspec.Struct, frozen=True):
    """The object. `lease`: number of the controller's lease; `token` is new with each change, so that its bytes are unique."""

    lease: int
    events: tuple[CanaryEvent, ...]
    token: str


class _Present(msgspec.Struct, frozen=True):
    """What is in force. `loss`: why the history counts as lost; `highest`: the highest number of an entry in use."""

    state: CanaryState
    loss: str | None
    highest: int


class SharedHistory:
    """The canary of one experiment under `state/canary/EXPERIMENT/` of object storage: what `canary.History` is on one machine.

    A history that is gone, or older than the mirror of it here, is lost: 0 % until a person's reset. Every method waits for the
    network, and raises StorageError where the storage cannot be reached.
    """

    def __init__(
        self,
        objects: Objects,
        experiment: str,
        mirror: History,
        *,
        lease: int | None = None,
        traces: Callable[[], Traces] = Traces,
    ) -> None:
        """Args:
        objects: of the store.
        experiment: its name.
        mirror: of the history on this machine's disk.
        lease: the number of the controller's lease; None: changes are a person's.
        traces: further signs that a canary has begun; asked where there is no history.
        """
        self._objects, self._mirror, self._lease, self._traces = objects, mirror, lease, traces
        self._key = f"state/canary/{experiment}/state.json"
        self._evaluation_key = f"state/canary/{experiment}/evaluation.json"
        self.controller_lock_path = mirror.controller_lock_path

    # Reading.

    def state(self) -> CanaryState:
        return self._present(self._read()[0]).state

    def loss(self) -> str | None:
        """Why the history counts as lost, in one sentence; None where it is whole, or nothing has begun."""
        return self._present(self._read()[0]).loss

    def events(self) -> list[CanaryEvent]:
        shared, _ = self._read()
        return [] if shared is None else list(shared.events)

    def last(self) -> CanaryEvent | None:
        events = self.events()
        return events[-1] if events else None

    def evaluation(self) -> CanaryEvaluation | None:
        """What the controller saw last; None where it never looked (or it cannot be read: it is only a cache)."""
        found = self._objects.get(self._evaluation_key)
        try:
            return None if found is None else read_evaluation(found.data)
        except ValueError:
            return None

    def refresh(self) -> None:
        """Bring the mirror on this disk to the shared history. A loss is written down at once: its share is 0 %."""
        shared, _ = self._read()
        seen = self._mirror.last()
        newest = shared.events[-1] if shared is not None and shared.events else None
        if seen is not None and (newest is None or newest.seq < seen.seq):
            self.note_loss(now=seen.at)
        elif shared is not None and newest is not None and newest != seen:
            self._mirror.mirror(shared.events)

    # Changing.

    def claim(self) -> None:
        """Make the lease's number the history's: from now on a controller with a lower one is refused. Raises LeaseLostError."""
        while True:
            shared, version = self._read()
            self._check_lease(shared)
            if shared is not None and shared.lease == self._lease:
                return
            if self._write(() if shared is None else shared.events, shared, version):
                return

    def note_loss(self, *, now: float) -> CanaryEvent | None:
        """Write down that the history is lost, if it is: from then on the history itself holds the pause."""
        while True:
            shared, version = self._read()
            present = self._present(shared)
            if present.loss is None:
                return None
            lost = lost_event(present.loss, entry=present.highest, now=now)
            if self._write((*(shared.events if shared else ()), lost), shared, version):
                return lost

    def apply(
        self, decide: Callable[[CanaryState], StateTransition | None], *, now: float, who: str
    ) -> CanaryEvent | None:
        """Call `decide` with the present state and write the change it returns, unless another one came in between: then `decide`
        is asked anew.

        Raises:
            LeaseLostError: where another controller has claimed the history.
        """
        event: CanaryEvent | None = None
        while True:
            shared, version = self._read()
            if shared is not None and event in shared.events:  # the write seemed to fail, and others have written since
                return event
            if who == CONTROLLER:
                self._check_lease(shared)
            present = self._present(shared)
            change = decide(present.state)
            if change is None:
                return None
            events = () if shared is None else shared.events
            seq = present.highest + 1  # after a loss, too, no stage gets a number that is in use, and mirrors follow
            state = msgspec.structs.replace(change.state, entry=seq) if change.enters_stage else change.state
            event = CanaryEvent(seq=seq, at=now, who=who, action=change.action, why=change.why, state=state)
            if self._write((*events, event), shared, version):
                return event

    def write_evaluation(self, evaluation: CanaryEvaluation) -> None:
        self._objects.put(self._evaluation_key, render_evaluation(evaluation))

    # The object.

    def _read(self) -> tuple[_Shared | None, str]:
        found = self._objects.get(self._key)
        if found is None:
            return None, ""
        try:
            return msgspec.json.decode(found.data, type=_Shared), found.version
        except msgspec.DecodeError as error:
            raise DataError(
                f"{self._objects.address}: {self._key} is no history of a canary ({error}): restore it from a backup, or delete "
                "it and start over with `evalpipe canary reset`"
            ) from error

    def _present(self, shared: _Shared | None) -> _Present:
        seen = self._mirror.last()
        newest = shared.events[-1] if shared is not None and shared.events else None
        where = f"{self._key} of {self._objects.address}"
        if newest is not None:
            if seen is None or seen.seq <= newest.seq:
                return _Present(newest.state, None, newest.seq)
            return _Present(
                LOST, f"{where} ends at change {newest.seq}, this machine has seen change {seen.seq}", seen.seq
            )
        if seen is not None:
            return _Present(LOST, f"{where} holds no change, this machine has seen change {seen.seq}", seen.seq)
        outside = self._traces()
        if outside.found:
            why = f"{where} holds no change, but a canary has begun ({', '.join(outside.found)})"
            return _Present(LOST, why, outside.entry)
        return _Present(CanaryState(), None, 0)

    def _check_lease(self, shared: _Shared | None) -> None:
        if shared is not None and self._lease is not None and shared.lease > self._lease:
            raise LeaseLostError(
                f"another controller has taken over this canary ({self._key} of {self._objects.address}, lease {shared.lease} "
                f"after {self._lease}): this change is refused"
            )

    def _write(self, events: tuple[CanaryEvent, ...], before: _Shared | None, version: str) -> bool:
        """Whether nobody else was first."""
        lease = max(0 if before is None else before.lease, self._lease or 0)
        data = msgspec.json.encode(_Shared(lease, events, secrets.token_hex(8)))
        try:
            if before is None:
                self._objects.create(self._key, data)
            else:
                self._objects.replace(self._key, data, version)
        except (KeyExistsError, ChangedError):
            return False
        if events:
            self._mirror.mirror(events)
        return True


class Follower:
    """Keeps the mirror of a shared history on this machine's disk, and the time at which it was last seen."""

    def __init__(self, history: SharedHistory, mirror: History) -> None:
        self._history, self._mirror = history, mirror
        self._n_looks = 0
        self._seen = mirror.path.with_name(seen_name_of(mirror.path.name))

    def look(self) -> None:
        """Once. Raises StorageError, OSError; then the replica's workers see how old the last look is."""
        self._history.refresh()
        self._seen.touch(mode=0o600)
        if self._n_looks % _EVALUATION_EVERY == 0:
            evaluation = self._history.evaluation()
            if evaluation is not None and evaluation != self._mirror.evaluation():
                self._mirror.write_evaluation(evaluation)
        self._n_looks += 1
