"""Leases: the right to one kind of work, held by one process of all machines, with a number that rises with each holder.

A holder renews its lease by changing the object. Nobody compares clocks: who wants the lease watches the object with its own
clock, and takes it when it has not changed for the lease's time. A holder that was suspended for longer finds out when it next
writes: the number is checked where work takes effect (`log.CommitLog`). Leases: Gray & Cheriton, SOSP 1989; the number is what
Kleppmann calls a fencing token (Designing Data-Intensive Applications, ch. 8).
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import msgspec

from evalpipe.errors import WorkspaceBusyError
from evalpipe.objects.client import ChangedError, KeyExistsError, Objects, StorageError

RENEWALS = 3
"""A lease is renewed so many times in its own time."""


class _State(msgspec.Struct):
    """The lease's object. `token` is new with each change, so that every version's bytes are unique."""

    number: int
    owner: str
    is_held: bool
    ttl_s: float
    token: str


class LeaseLostError(WorkspaceBusyError):
    """Another process has taken the lease: this one was silent for longer than the lease's time."""


class Lease:
    """A held lease; a thread renews it until `release`. `number`: higher than that of every earlier holder."""

    def __init__(self, objects: Objects, name: str, state: _State, version: str) -> None:
        self.name, self.number, self.owner, self.ttl_s = name, state.number, state.owner, state.ttl_s
        self._objects = objects
        self._version = version
        self._lock = threading.Lock()
        self._is_held = True
        self._renewed_at = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"lease {name}", daemon=True)
        self._thread.start()

    @classmethod
    def take(
        cls,
        objects: Objects,
        name: str,
        owner: str,
        ttl_s: float,
        *,
        is_own: Callable[[str], bool] = lambda owner: False,
        waits: bool = False,
        waiting: Callable[[str], None] = lambda owner: None,
    ) -> Lease | None:
        """Take the lease.

        Args:
            objects: where it is stored, as `leases/NAME.json`.
            name: of the work.
            owner: in messages: host, process and command.
            ttl_s: a holder that is silent for so long (seconds) has lost it.
            is_own: whether a holder is one that is known to have ended, by its name: its lease is taken at once.
            waits: wait for a holder that is alive; else None as soon as it is seen to be, which takes up to a third of its time.
            waiting: called once with the holder's name before the first wait.

        Raises:
            StorageError: where the storage cannot be reached.
        """
        key = key_of(name)
        seen, since, is_said = "", time.monotonic(), False
        while True:
            found = objects.get(key)
            if found is None:
                state = _State(1, owner, True, ttl_s, secrets.token_hex(8))
                try:
                    return cls(objects, name, state, objects.create(key, msgspec.json.encode(state)))
                except KeyExistsError:
                    continue
            before = msgspec.json.decode(found.data, type=_State)
            is_alive = bool(seen) and found.version != seen
            if found.version != seen:
                seen, since = found.version, time.monotonic()
            is_over = not before.is_held or is_own(before.owner) or time.monotonic() - since >= before.ttl_s
            if is_over:
                state = _State(before.number + 1, owner, True, ttl_s, secrets.token_hex(8))
                try:
                    return cls(objects, name, state, objects.replace(key, msgspec.json.encode(state), found.version))
                except ChangedError:
                    continue
            if is_alive and not waits:
                return None
            if not is_said:
                waiting(before.owner)
                is_said = True
            time.sleep(before.ttl_s / RENEWALS / 5)

    @property
    def is_held(self) -> bool:
        """Whether it was renewed within its time, by this process's clock, and nobody is known to have taken it."""
        return self._is_held and time.monotonic() - self._renewed_at < self.ttl_s

    def renew(self) -> None:
        """Renew it now. Raises LeaseLostError, StorageError."""
        with self._lock:
            self._change(is_held=True)

    def release(self) -> None:
        """Give it back; one that was lost is no error. What cannot be given back ends with its time."""
        self._ended.set()
        self._thread.join()
        with self._lock:
            if self._is_held:
                with suppress(LeaseLostError, StorageError):
                    self._change(is_held=False)
                self._is_held = False

    def _change(self, *, is_held: bool) -> None:
        if not self._is_held:
            raise self._lost()
        asked_at = time.monotonic()
        state = _State(self.number, self.owner, is_held, self.ttl_s, secrets.token_hex(8))
        try:
            self._version = self._objects.replace(key_of(self.name), msgspec.json.encode(state), self._version)
        except ChangedError:
            self._is_held = False
            raise self._lost() from None
        self._renewed_at = asked_at

    def _lost(self) -> LeaseLostError:
        return LeaseLostError(
            f"the lease {self.name!r} of {self._objects.address} was taken by another process, as this one was silent for "
            f"{self.ttl_s:g} s: what it had committed counts; run it again"
        )

    def _keep(self) -> None:
        while not self._ended.wait(self.ttl_s / RENEWALS):
            try:
                self.renew()
            except LeaseLostError:
                return
            except StorageError:  # `is_held` ends with the time; the next renewal may work
                continue


def key_of(name: str) -> str:
    """The key of a lease's object."""
    return f"leases/{name}.json"


def holder(objects: Objects, name: str) -> str | None:
    """Who holds the lease, or held it and ended without giving it back; None: nobody."""
    found = objects.get(key_of(name))
    if found is None:
        return None
    state = msgspec.json.decode(found.data, type=_State)
    return state.owner if state.is_held else None
