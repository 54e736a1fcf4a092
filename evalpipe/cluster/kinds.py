"""What the driver and its shards need to handle the calls of a judge and those of a replay alike. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from evalpipe.calls.journal import JUDGMENTS
from evalpipe.calls.runner import CallRow
from evalpipe.judging.plan import UNREAD, JudgeCall
from evalpipe.models import Judgment, ReplayCall
from evalpipe.replay.plan import PlannedCall
from evalpipe.workspace.replay import CALLS


class PlannedAttempt(Protocol):
    """A planned call. `attempt`: the calls made for it before."""

    @property
    def attempt(self) -> int: ...


class AttemptRow(CallRow, Protocol):
    """A call's row in the journal. `attempt`: its number, from 1."""

    @property
    def attempt(self) -> int: ...


Planned = TypeVar("Planned", bound=PlannedAttempt)
Row = TypeVar("Row", bound=AttemptRow)


@dataclass(frozen=True, kw_only=True, slots=True)
class CallKind(Generic[Planned, Row]):
    """One kind of calls.

    Attributes:
        id_of: rows of one id are one call, as in the journal.
        key_of: the planned call's own key in its plan; key_of_row: that of the call that a row is about.
        unit_of: whose request it is: calls of one user go to one shard.
        resumed: a planned call after these rows of it, as the plan of the next run would have it.
    """

    id_of: Callable[[Row], str]
    key_of: Callable[[Planned], str]
    key_of_row: Callable[[Row], str]
    unit_of: Callable[[Planned], str]
    resumed: Callable[[Planned, Sequence[Row]], Planned]


def _resumed_judging(planned: JudgeCall, rows: Sequence[Judgment]) -> JudgeCall:
    n_unread = planned.n_unread + sum(row.status in UNREAD for row in rows)
    return replace(planned, attempt=_last_attempt(planned, rows), n_unread=n_unread)


def _resumed_replay(planned: PlannedCall, rows: Sequence[ReplayCall]) -> PlannedCall:
    return replace(planned, attempt=_last_attempt(planned, rows))


def _last_attempt(planned: PlannedAttempt, rows: Sequence[AttemptRow]) -> int:
    return max((row.attempt for row in rows), default=planned.attempt)


JUDGING: CallKind[JudgeCall, Judgment] = CallKind(
    id_of=JUDGMENTS.id_of,
    key_of=lambda planned: planned.key,
    key_of_row=lambda row: row.key,
    unit_of=lambda planned: planned.unit,
    resumed=_resumed_judging,
)
REPLAYING: CallKind[PlannedCall, ReplayCall] = CallKind(
    id_of=CALLS.id_of,
    key_of=lambda planned: f"{planned.logged.request_id}:{planned.arm.value}",
    key_of_row=lambda row: f"{row.request_id}:{row.arm.value}",
    unit_of=lambda planned: planned.logged.unit_id or planned.logged.conversation_id or planned.logged.request_id,
    resumed=_resumed_replay,
)


def shard_of(unit: str, shards: Collection[int]) -> int:
    """The shard of a user: of all shards the one with the highest hash of its number and the user (rendezvous hashing).

    A shard that is lost gives its own users to all the others, and no other user moves; it gets the same ones back.

    Args:
        unit: the user.
        shards: the numbers of the shards that there are, at least one.
    """
    return max(shards, key=lambda shard: hashlib.blake2b(f"{shard}:{unit}".encode(), digest_size=8).digest())
