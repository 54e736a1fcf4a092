"""Which arm answers a request: the unit's bucket against the share of treatment in force, or what a tester forced.

The decision is a hash of the unit's raw id: no state, so requests, workers, replicas and restarts agree. Only the share
changes: in ab mode it is the configured one; in canary mode it is read from the canary's history, which a controller (or a
person) appends to and every worker looks at several times a second.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec

from evalpipe.collector.arms import Assignment, RequestHead
from evalpipe.collector.heads import HeadError
from evalpipe.core.canary import last_event, read_evaluation
from evalpipe.core.identity import conversation_id, in_treatment, unit_in_body
from evalpipe.core.traffic import Arm
from evalpipe.providers.registry import read_request

if TYPE_CHECKING:
    from evalpipe.collector.metrics import Metrics

TOKEN_HEADER = "x-evalpipe-token"
ARM_HEADER = "x-evalpipe-arm"
"""asked by a tester (with the token); on every answer in ab and canary mode"""
POLL_S = 0.2
_TAIL_BYTES = 1 << 16


class Share(msgspec.Struct, frozen=True):
    """`percentage` of units in treatment, [0, 100]; `stage`: the canary history entry it began with (None in ab mode)."""

    percentage: float
    stage: int | None = None


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """`percentage` and `stage` as in force when the arm was chosen; `forced`: by a tester's header, in no statistic."""

    arm: Arm
    percentage: float
    stage: int | None = None
    forced: bool = False


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


def choose(salt: str, unit_id: str, share: Share, *, forced: str | None = None, may_force: bool = False) -> Choice:
    """The arm of `unit_id` (its raw value) at `share`. `forced`: the tester's header; needs `may_force` (a valid token).

    Raises HeadError for a header without the right to it, or for an arm that does not exist: a tester must not believe to
    have tested the treatment when control answered.
    """
    if forced is not None:
        if not may_force:
            raise HeadError(403, f"{ARM_HEADER} needs the collector's token in {TOKEN_HEADER}")
        try:
            arm = Arm(forced.strip().lower())
        except ValueError:
            raise HeadError(400, f"{ARM_HEADER} must be control or treatment") from None
        return Choice(arm=arm, percentage=share.percentage, stage=share.stage, forced=True)
    arm = Arm.TREATMENT if in_treatment(salt, unit_id, share.percentage) else Arm.CONTROL
    return Choice(arm=arm, percentage=share.percentage, stage=share.stage)


class RolloutGauges:
    """The share in force and the canary's guardrails as metrics; looked at once a second by every worker."""

    def __init__(self, share: Callable[[], Share], evaluation: Path, metrics: Metrics) -> None:
        self._share, self._evaluation, self._metrics = share, evaluation, metrics
        self._version: tuple[int, int] | None = None

    def tick(self) -> None:
        self._metrics.canary(self._share().percentage)
        try:
            found = self._evaluation.stat()
            if (found.st_ino, found.st_mtime_ns) == self._version:
                return
            verdicts = read_evaluation(self._evaluation.read_bytes()).verdicts
        except (OSError, ValueError):  # not yet there: no controller has looked
            return
        self._version = (found.st_ino, found.st_mtime_ns)
        breached: dict[str, bool] = {}
        for verdict in verdicts:
            breached[verdict.guardrail] = breached.get(verdict.guardrail, False) or verdict.status == "breached"
        for name, is_breached in breached.items():
            self._metrics.guardrail(name, is_breached)


class SplitAssigner:
    """Ab and canary mode: the arm by the unit's bucket. Without a unit id the conversation is the unit, and is counted so.

    `token`: what a tester must send to force an arm; None = nobody may. `shadow_percent` of the conversations that control
    serves get a treatment copy as well (canary: pairs for a judge).
    """

    needs_body = True

    def __init__(
        self,
        *,
        salt: str,
        unit_sources: tuple[str, ...],
        share: Callable[[], Share],
        token: str | None,
        shadow_percent: float = 0.0,
    ) -> None:
        self._salt, self._share, self._token, self._shadow_percent = salt, share, token, shadow_percent
        self._sources = ("header:x-evalpipe-unit", *unit_sources)
        self._now = share()

    def tick(self) -> None:
        self._now = self._share()

    def assign(self, head: RequestHead, body: bytes | None) -> Assignment:
        document = _document(body or b"")
        unit_id, source = self._unit(head, document)
        conversation = head.header(b"x-evalpipe-conversation")
        if conversation is None:
            view = read_request(head.endpoint, body or b"")
            conversation = conversation_id(view.system_text, view.first_user_message)
        if unit_id is None:
            unit_id, source = conversation, "conversation"
        token = head.header(TOKEN_HEADER.encode())
        may_force = bool(self._token and token and hmac.compare_digest(token.encode(), self._token.encode()))
        self.tick()
        forced = head.header(ARM_HEADER.encode())
        choice = choose(self._salt, unit_id, self._now, forced=forced, may_force=may_force)
        return Assignment(
            arm=choice.arm.value,
            unit_id=unit_id,
            unit_source=source,
            conversation_id=conversation,
            percentage=choice.percentage,
            stage=choice.stage,
            forced=choice.forced,
            eligible=choice.arm is Arm.CONTROL
            and not choice.forced
            and in_treatment(f"{self._salt}:shadow", conversation, self._shadow_percent),
        )

    def _unit(self, head: RequestHead, document: Any) -> tuple[str | None, str]:
        for source in self._sources:
            kind, _, where = source.partition(":")
            value = head.header(where.lower().encode()) if kind == "header" else unit_in_body(document, where)
            if value:
                return value, source
        return None, ""


def _document(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError):  # control says what is wrong with it; here it only names nobody
        return None
