"""What calls cost whose bill nobody reported, as a person settled it: on the record beside the judgments.

A call that broke off is held against a cap at its worst case for ever, unless somebody looks at the provider's bill. Each
settlement is one file, written whole or not at all; it names every call it settles, so that none is settled twice.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec

from evalpipe.files import write_synced

How = Literal["bill", "calls", "worst_case"]


class SettledCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call: what it was booked at, the most it could cost, and what it is settled at (USD)."""

    judgment_id: str
    estimated_usd: float
    at_most_usd: float
    usd: float


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """`how`: from the bill of all of the judge's calls (`bill_usd`), from a sum for these calls alone, or at their worst case."""

    judge: str
    at: datetime
    how: How
    usd: float
    calls: Sequence[SettledCall]
    bill_usd: float | None = None


def settlements_folder(data: Path, experiment: str) -> Path:
    return data / "judgments" / f"experiment={experiment}" / "settled"


def read_settlements(folder: Path) -> list[Settlement]:
    """Every settlement, oldest first."""
    return [msgspec.json.decode(path.read_bytes(), type=Settlement) for path in sorted(folder.glob("*.json"))]


def settled_calls(folder: Path) -> Mapping[str, float]:
    """judgment_id → USD of every settled call."""
    return {call.judgment_id: call.usd for one in read_settlements(folder) for call in one.calls}


def save_settlement(folder: Path, settlement: Settlement) -> Path:
    """Put a settlement on the record; it survives a power loss before this returns."""
    path = folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{secrets.token_hex(3)}.json"
    write_synced(path, msgspec.json.format(msgspec.json.encode(settlement), indent=1))
    return path
