"""What is on disk of a batch before a provider hears of it: key → custom_id, then the batch's id, then that it is collected.

Two files a batch in `batches/`: NAME.jsonl with its items, written and synced first, and NAME.json with its state, replaced
as a whole. A run that was killed finds its batches here.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from evalpipe.files import write_synced
from evalpipe.judging.plan import JudgeCall
from evalpipe.models import Arm, ShownFirst

State = Literal["intended", "submitted", "collected", "abandoned"]
OPEN: tuple[State, ...] = ("intended", "submitted")


def custom_id(key: str, attempt: int) -> str:
    """Unique in every batch of a key's attempts, and within what the providers allow: 64 of [A-Za-z0-9_-]."""
    return f"{key[:52]}-{attempt}"


class Item(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request of a batch: everything needed to read its answer without the texts. `at_most_usd`: what it can cost at most;
    None = price unknown."""

    custom_id: str
    key: str
    attempt: int
    request_id: str
    shown_first: ShownFirst
    repeat: int
    arm: Arm | None = None
    cut: Mapping[str, int] = {}
    tripwires: Mapping[str, Sequence[str]] = {}
    at_most_usd: float | None = None

    def ask(self) -> JudgeCall:
        """The planned call, without its texts."""
        return JudgeCall(
            key=self.key,
            attempt=self.attempt - 1,
            request_id=self.request_id,
            shown_first=self.shown_first,
            repeat=self.repeat,
            request="",
            arm=self.arm,
        )


class BatchState(msgspec.Struct, frozen=True, kw_only=True):
    """One batch. `at_most_usd`: what it can cost at most, at the batch price; None = price unknown."""

    name: str
    judge: str
    fingerprint: str
    provider: str
    state: State
    n_items: int
    created_at: datetime
    batch_id: str | None = None
    at_most_usd: float | None = None


def new_name() -> str:
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(6)}"


def save_intent(folder: Path, intent: BatchState, items: Sequence[Item]) -> BatchState:
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


def items_of(folder: Path, intent: BatchState) -> Iterator[Item]:
    decoder = msgspec.json.Decoder(Item)
    with (folder / f"{intent.name}.jsonl").open("rb") as file:
        for line in file:
            yield decoder.decode(line)


def pending(folder: Path, fingerprint: str) -> list[tuple[str, str]]:
    """(request_id, key) of every call that waits in an open batch of this judge."""
    return [
        (item.request_id, item.key)
        for intent in intents(folder)
        if intent.state in OPEN and intent.fingerprint == fingerprint
        for item in items_of(folder, intent)
    ]
