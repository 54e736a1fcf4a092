"""What is on disk of a batch before a provider hears of it: key → custom_id, then the batch's id, then that it is collected.

Two files a batch in `batches/`: NAME.jsonl with its items, written and synced first, and NAME.json with its state, replaced
as a whole. A run that was killed finds its batches here.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from evalpipe.files import write_synced

State = Literal["intended", "submitted", "collected", "abandoned"]
OPEN: tuple[State, ...] = ("intended", "submitted")


class BatchItem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request of a batch: what is needed to read its answer without the texts. `at_most_usd`: what it can cost at most;
    None = price unknown."""

    custom_id: str
    attempt: int
    request_id: str
    at_most_usd: float | None = None


AnyItem = TypeVar("AnyItem", bound=BatchItem)


class BatchState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One batch. `judge`: whose it is, the name of a judge or of an arm; `endpoint`: of its requests, where it is not its
    provider's first; `at_most_usd`: what it can cost at most, at the batch price; None = price unknown."""

    name: str
    judge: str
    fingerprint: str
    provider: str
    state: State
    n_items: int
    created_at: datetime
    batch_id: str | None = None
    at_most_usd: float | None = None
    endpoint: str | None = None


def new_name() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(6)}"


def save_intent(folder: Path, intent: BatchState, items: Sequence[BatchItem]) -> BatchState:
    """Put a batch on disk, items first; it survives a power loss before this returns."""
    encode = msgspec.json.Encoder().encode
    write_synced(folder / f"{intent.name}.jsonl", b"".join(encode(item) + b"\n" for item in items))
    save_state(folder, intent)
    return intent


def save_state(folder: Path, intent: BatchState) -> None:
    write_synced(folder / f"{intent.name}.json", msgspec.json.encode(intent))
    if intent.state not in OPEN:
        (folder / f"{intent.name}.jsonl").unlink(missing_ok=True)


def changed(intent: BatchState, **values: Any) -> BatchState:
    return msgspec.structs.replace(intent, **values)


def intents(folder: Path) -> list[BatchState]:
    """Every batch ever intended, oldest first."""
    return [msgspec.json.decode(path.read_bytes(), type=BatchState) for path in sorted(folder.glob("*.json"))]


def items_in(folder: Path, intent: BatchState, kind: type[AnyItem]) -> Iterator[AnyItem]:
    """The requests of an open batch."""
    decoder = msgspec.json.Decoder(kind)
    with (folder / f"{intent.name}.jsonl").open("rb") as file:
        for line in file:
            yield decoder.decode(line)
