"""Which arm answers a request: the unit's bucket against the share of treatment in force, or what a tester forced.

The decision is a hash of the unit's raw id: no state, so requests, workers, replicas and restarts agree. Only the share
changes: in ab mode it is the configured one; in canary mode it is read from the canary's history, which a controller (or a
person) appends to and every worker looks at several times a second.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Protocol

import msgspec

from evalpipe.core.canary import last_event
from evalpipe.core.identity import in_treatment
from evalpipe.core.traffic import Arm

ARM_HEADER = "x-evalpipe-arm"
"""asked by a tester (with the token); on every answer in ab and canary mode"""
POLL_S = 0.2
_TAIL_BYTES = 1 << 16


class Share(msgspec.Struct, frozen=True):
    """`percentage` of units in treatment, [0, 100]; `stage`: the canary history entry it began with (None in ab mode)."""

    percentage: float
    stage: int | None = None


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """`percentage` and `stage` as in force when the arm was chosen; `forced`: by a tester's header, in no statistic."""

    arm: Arm
    percentage: float
    stage: int | None = None
    forced: bool = False


class ForcedArmError(Exception):
    """A forced arm that cannot be had; `status` is the HTTP status, the text one line for the tester."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ShareSource(Protocol):
    def __call__(self) -> Share: ...


class CanaryShare:
    """The share in a canary's history file, looked at again after `POLL_S` and read only when it changed.

    No file yet, or nothing readable in it: 0 %. A file that cannot be read for a moment leaves the share as it was.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = monotonic) -> None:
        self._path, self._clock = path, clock
        self._looked_at = -POLL_S
        self._version: tuple[int, int, int] | None = None
        self._share = Share(0.0)

    def __call__(self) -> Share:
        now = self._clock()
        if now - self._looked_at >= POLL_S:
            self._looked_at = now
            self._look()
        return self._share

    def _look(self) -> None:
        try:
            found = self._path.stat()
            version = (found.st_ino, found.st_size, found.st_mtime_ns)
            if version == self._version:
                return
            with self._path.open("rb") as file:
                file.seek(max(0, found.st_size - _TAIL_BYTES), os.SEEK_SET)
                event = last_event(file.read())
        except FileNotFoundError:
            self._version, self._share = None, Share(0.0)
            return
        except OSError:  # e.g. out of descriptors: the next look will tell
            return
        self._version = version
        self._share = Share(event.state.percentage, event.state.entry) if event else Share(0.0)


def assign(salt: str, unit_id: str, share: Share, *, forced: str | None = None, may_force: bool = False) -> Assignment:
    """The arm of `unit_id` (its raw value) at `share`. `forced`: the tester's header; needs `may_force` (a valid token).

    Raises ForcedArmError for a header without the right to it, or for an arm that does not exist: a tester must not believe
    to have tested the treatment when control answered.
    """
    if forced is not None:
        if not may_force:
            raise ForcedArmError(403, f"{ARM_HEADER} needs the collector's token in x-evalpipe-token")
        try:
            arm = Arm(forced.strip().lower())
        except ValueError:
            raise ForcedArmError(400, f"{ARM_HEADER} must be control or treatment") from None
        return Assignment(arm=arm, percentage=share.percentage, stage=share.stage, forced=True)
    arm = Arm.TREATMENT if in_treatment(salt, unit_id, share.percentage) else Arm.CONTROL
    return Assignment(arm=arm, percentage=share.percentage, stage=share.stage)
