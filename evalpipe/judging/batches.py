"""Judging in a provider's batches (`calls.batches`): the request of a pair, what is stored of it until its reply arrives, and the
judgment made of the reply."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evalpipe.calls.batches import (
    OPEN,
    Batches,
    BatchItem,
    BatchRequest,
    BatchState,
    State,
    changed,
    intents,
    items_in,
    new_name,
    save_intent,
    save_state,
)
from evalpipe.calls.client import CallOutcome, ModelResponse, shown_params
from evalpipe.judging.judgments import ended, identical, message_of, outdated
from evalpipe.judging.plan import JudgeCall
from evalpipe.judging.prompt import Message
from evalpipe.judging.runner import RunSummary, system_bytes
from evalpipe.judging.spec import JudgeSpec
from evalpipe.models import Arm, Judgment, ShownFirst

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

    def planned_call(self) -> JudgeCall:
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


@dataclass(kw_only=True)
class BatchRun(Batches[JudgeCall, Item, Judgment]):
    """The batches of one judge in one experiment, under the experiment's lock."""

    spec: JudgeSpec
    summary: RunSummary

    def request_of(self, planned: JudgeCall) -> BatchRequest[Item] | None:
        """The judge's request; identical responses are a tie without a call."""
        if planned.is_identical:
            judgment = identical(planned, self.spec, at=self.clock.utc())
            self.journal.append(judgment)
            self.summary.end(judgment)
            return None
        message = message_of(planned, self.spec, self.clock.nonce())
        return BatchRequest(
            item=_item(planned, message),
            body=shown_params(self.spec, [("user", message.text)]),
            n_bytes=system_bytes(self.spec) + len(message.text.encode("utf-8", "surrogatepass")),
            max_tokens=self.spec.max_tokens,
        )

    def record(self, intent: BatchState, item: Item, reply: ModelResponse, batch_id: str) -> None:
        """Write down the judgment."""
        ask, at = item.planned_call(), self.clock.utc()
        message = Message(text="", cut=item.cut, tripwires=item.tripwires)
        spec = self.spec
        booking = self.booking(intent, item, reply)
        if (
            intent.fingerprint != spec.fingerprint
        ):  # no planned call has this answer now: it is asked anew where needed, and its cost is booked
            if reply.outcome is CallOutcome.ANSWERED:
                judgment = outdated(
                    ask,
                    item.attempt,
                    spec,
                    reply,
                    fingerprint=intent.fingerprint,
                    booking=booking,
                    at=at,
                    batch_id=batch_id,
                )
                self.write(judgment, judgment.cost_usd)
            return
        judgment = ended(ask, item.attempt, spec, reply, booking=booking, at=at, message=message, batch_id=batch_id)
        self.write(judgment, judgment.cost_usd)
        self.summary.n_calls += 1
        self.summary.end(judgment)
        self.show()


def _item(ask: JudgeCall, message: Message) -> Item:
    attempt = ask.attempt + 1
    return Item(
        custom_id=custom_id(ask.key, attempt),
        key=ask.key,
        attempt=attempt,
        request_id=ask.request_id,
        shown_first=ask.shown_first,
        repeat=ask.repeat,
        arm=ask.arm,
        cut=message.cut,
        tripwires=message.tripwires,
    )
