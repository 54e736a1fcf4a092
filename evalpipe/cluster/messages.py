"""What the driver and a shard send each other. Both send in groups: all that has come together since the last message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from evalpipe.calls.client import ModelResponse
from evalpipe.calls.limiter import TokenReservation
from evalpipe.calls.runner import RecordedCost

GATHER_S = 0.005
"""So long a message waits for more to go with it: Ray takes a third of a millisecond of CPU for each, however long it is."""

Planned = TypeVar("Planned")
Row = TypeVar("Row")


# From a shard to the driver.


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask(Generic[Row]):
    """A call is ready to be sent: may it be? `row`: as it stays if no response arrives; `who`: its route."""

    row: Row
    who: str
    need: TokenReservation
    booking: RecordedCost


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished(Generic[Row]):
    """A call has ended: its row, what it is booked at, and what its response says about the limits."""

    row: Row
    booked: RecordedCost
    reply: ModelResponse


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """A planned call has come to its end, with the last of its rows."""

    key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Stopped:
    """A reason why no shard should start anything more."""

    reason: str
    message: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Announced:
    """A line for the user."""

    line: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Over:
    """The shard has nothing in flight and starts nothing more. `error`: the trace of a bug that ended it."""

    error: str | None = None


Report = Ask[Row] | Finished[Row] | Ended | Stopped | Announced | Over


# From the driver to a shard.


@dataclass(frozen=True, kw_only=True, slots=True)
class Work(Generic[Planned]):
    """Planned calls, to be made in this order."""

    calls: list[Planned]


@dataclass(frozen=True, kw_only=True, slots=True)
class Admitted:
    """The answer to `Ask`, by the row's id: its row is on the driver's disk and its worst case is held; or the run stops."""

    row_id: str
    is_admitted: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class OtherModel:
    """A model has answered in place of the one asked; from now on calls are held at the dearer price of both."""

    who: str
    model: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Stop:
    """Start nothing more; what is in flight is finished."""


Order = Work[Planned] | Admitted | OtherModel | Stop
