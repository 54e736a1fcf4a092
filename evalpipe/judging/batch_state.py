"""What is on disk of a judge's batch: its items, so that a reply is read without the texts it is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from evalpipe.calls.batches import (
    OPEN,
    BatchItem,
    BatchState,
    State,
    changed,
    intents,
    items_in,
    new_name,
    save_intent,
    save_state,
)
from evalpipe.judging.plan import JudgeCall
from evalpipe.models import Arm, ShownFirst

__all__ = [
    "OPEN",
    "BatchState",
    "Item",
    "State",
    "changed",
    "custom_id",
    "intents",
    "items_of",
    "new_name",
    "pending",
    "save_intent",
    "save_state",
]


def custom_id(key: str, attempt: int) -> str:
    """Unique in every batch of a key's attempts, and within what the providers allow: 64 of [A-Za-z0-9_-]."""
    return f"{key[:52]}-{attempt}"


class Item(BatchItem, frozen=True, kw_only=True, omit_defaults=True):
    """One call of a judge in a batch."""

    key: str
    shown_first: ShownFirst
    repeat: int
    arm: Arm | None = None
    cut: Mapping[str, int] = {}
    tripwires: Mapping[str, Sequence[str]] = {}

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


def items_of(folder: Path, intent: BatchState) -> Iterator[Item]:
    """The calls of an open batch."""
    return items_in(folder, intent, Item)


def pending(folder: Path, fingerprint: str) -> list[tuple[str, str]]:
    """(request_id, key) of every call that waits in an open batch of this judge."""
    return [
        (item.request_id, item.key)
        for intent in intents(folder)
        if intent.state in OPEN and intent.fingerprint == fingerprint
        for item in items_of(folder, intent)
    ]
