"""Requests that look like calls of a model and passed without being collected: counted by path."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import msgspec

_SHOWN = 3


class UncollectedPath(msgspec.Struct, frozen=True, kw_only=True):
    """`path` without its query, ids replaced by `*`; `first_at`, `last_at`: seconds since the epoch."""

    method: str
    path: str
    count: int
    first_at: float
    last_at: float

    @property
    def shown(self) -> str:
        return f"{self.method} {self.path}"


def merged(found: Iterable[UncollectedPath]) -> list[UncollectedPath]:
    """Each path once, its counts added up, the most frequent first."""
    known: dict[str, UncollectedPath] = {}
    for one in found:
        other = known.get(one.shown)
        if other is not None:
            one = msgspec.structs.replace(
                one,
                count=one.count + other.count,
                first_at=min(one.first_at, other.first_at),
                last_at=max(one.last_at, other.last_at),
            )
        known[one.shown] = one
    return sorted(known.values(), key=lambda one: (-one.count, one.shown))


def summary(found: Sequence[UncollectedPath]) -> str:
    """What was passed without a record, in one sentence. `found`: merged, not empty."""
    n = sum(one.count for one in found)
    named = ", ".join(f"{one.shown} ({one.count:,})" for one in found[:_SHOWN])
    more = f" and {len(found) - _SHOWN} more paths" if len(found) > _SHOWN else ""
    first = datetime.fromtimestamp(min(one.first_at for one in found), UTC)
    last = datetime.fromtimestamp(max(one.last_at for one in found), UTC)
    times = f"{first:%Y-%m-%d %H:%M}" if first == last else f"{first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M}"
    requests = "1 request looks" if n == 1 else f"{n:,} requests look"
    return f"{requests} like a model call and passed without being collected or copied: {named}{more}, {times} UTC"


REMEDY = (
    "send them to a path that ends in /chat/completions, /responses or /messages; only those are collected, copied and "
    "assigned"
)
