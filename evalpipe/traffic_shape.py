"""What the traffic looks like: units that are no users, requests that reach one arm only, calls that were not collected.

One set of limits for the collector's log, `evalpipe doctor` and the report.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

MIN_REQUESTS: Final = 100
"""below this nothing is reported"""
MIN_OF_CLIENT: Final = 50
MAX_UNCOPIED: Final = 0.20
MAX_OF_ONE: Final = 0.50
MOST: Final = 0.95
_PRODUCT: Final = re.compile(r"[A-Za-z][\w.-]*(?:/[A-Za-z][\w-]*)?")


class UnitCounts(NamedTuple):
    """Of requests whose unit was looked for. `n_unnamed`: the conversation is their unit. The rest is about the named ones:
    `n_single`: units with one request, `n_of_one_conversation`: units with several requests, all of one conversation."""

    n_requests: int
    n_unnamed: int
    n_units: int
    n_single: int
    n_of_one_conversation: int
    largest: int
    """requests of the unit that has most, named or not"""


class Finding(NamedTuple):
    """`key`: what it is about, the same whatever the figures."""

    key: str
    detail: str
    remedy: str


_NAME_USERS: Final = (
    "have the application send the user's id (header x-user-id, or x-evalpipe-unit), or name its place in "
    "[experiment] unit (a part of a value: 'body:PATH~PATTERN'; for agents: 'preset:claude-code', 'preset:codex')"
)


def unit_findings(counts: UnitCounts) -> list[Finding]:
    """What is unusual about the units; nothing where they look like users."""
    n = counts.n_requests
    if n < MIN_REQUESTS:
        return []
    found = []
    if counts.largest > MAX_OF_ONE * n:
        found.append(
            Finding(
                "one_unit",
                f"one unit holds {counts.largest:,} of {n:,} requests ({counts.largest / n:.0%}): differences between users "
                "cannot be seen, and a split gives nearly all traffic to one arm",
                _NAME_USERS,
            )
        )
    if counts.n_unnamed > MAX_OF_ONE * n:
        found.append(
            Finding(
                "unnamed",
                f"{counts.n_unnamed:,} of {n:,} requests ({counts.n_unnamed / n:.0%}) name no user: each conversation counts as "
                "one, and an application that sends only its last messages begins a new one with every request",
                _NAME_USERS,
            )
        )
    several = counts.n_units - counts.n_single
    if counts.n_units >= MIN_OF_CLIENT and counts.n_single > MOST * counts.n_units:
        found.append(
            Finding(
                "requests",
                f"{counts.n_single:,} of {counts.n_units:,} units ({counts.n_single / counts.n_units:.0%}) have one request: "
                "they look like requests, not users",
                _NAME_USERS,
            )
        )
    elif several >= MIN_OF_CLIENT and counts.n_of_one_conversation > MOST * several:
        found.append(
            Finding(
                "sessions",
                f"{counts.n_of_one_conversation:,} of {several:,} units with several requests "
                f"({counts.n_of_one_conversation / several:.0%}) have one conversation each: they look like sessions, not users",
                _NAME_USERS,
            )
        )
    return found


def client_name(user_agent: str | None) -> str:
    """A client without its version: "OpenAI/Python", "codex_cli_rs"."""
    found = _PRODUCT.match(user_agent or "")
    return "unnamed clients" if found is None else found.group()[:60]


def uncopied_findings(by_client: Mapping[str, Mapping[str | None, int]]) -> list[Finding]:
    """`by_client`: client → why its requests could not be given to the treatment (None: they could) → requests."""
    found = []
    for client, reasons in sorted(by_client.items()):
        n = sum(reasons.values())
        lost = {reason: number for reason, number in reasons.items() if reason is not None}
        n_lost = sum(lost.values())
        if n < MIN_OF_CLIENT or n_lost <= MAX_UNCOPIED * n:
            continue
        found.append(
            Finding(
                f"client {client}",
                f"{n_lost:,} of {n:,} requests of {client} ({n_lost / n:.0%}) cannot be given to the treatment: "
                f"{_shares(lost.items(), n)}",
                "what is compared is the rest of its traffic; `shadow_reason` in `evalpipe sql` names each",
            )
        )
    return found


def _shares(reasons: Iterable[tuple[str, int]], n: int) -> str:
    ordered = sorted(reasons, key=lambda item: (-item[1], item[0]))
    shares = ", ".join(f"{reason} {number / n:.0%}" for reason, number in ordered[:3])
    return shares if len(ordered) <= 3 else f"{shares} and {len(ordered) - 3} more reasons"


# Requests that look like calls of a model and passed without being collected: counted by path.


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
