"""Judging in a provider's batches: half the price, hours instead of minutes, and no batch ever submitted twice.

Order of things: items and state on disk, submit, id on disk, poll, results into the journal, "collected" on disk. Wherever
a run is killed, the next one knows from the disk what to do; only between "submitted" and "id on disk" must it ask the
provider, whose newer batches it matches by custom_id.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from evalpipe.calls.batch import BatchCallError, BatchClient, BatchStatus
from evalpipe.calls.budget import Budget, CostOf, dearest, most_input_tokens
from evalpipe.calls.client import CallOutcome, JudgeResponse, Messages, refusal
from evalpipe.calls.journal import Journal
from evalpipe.errors import UpstreamError
from evalpipe.judging.batch_state import (
    OPEN,
    BatchState,
    Item,
    changed,
    custom_id,
    intents,
    items_of,
    new_name,
    save_intent,
    save_state,
)
from evalpipe.judging.judgments import RecordedCost, answered, failure, identical, message_of, outdated
from evalpipe.judging.plan import JudgeCall
from evalpipe.judging.prompt import Message
from evalpipe.judging.run_summary import RunSummary
from evalpipe.judging.runner import Clock
from evalpipe.judging.spec import JudgeSpec
from evalpipe.providers.base import Usage

_Result = TypeVar("_Result")

FIRST_POLL_S, LONGEST_POLL_S, POLL_GROWTH = 1.0, 120.0, 1.4
SETTLING_S = 15.0
"""A submission that was cut off may still be arriving: it is given up only when the intent is older than this."""
CLOCK_SLACK = timedelta(minutes=10)
"""How far the provider's clock may lag behind ours."""
MAX_TRIES = 8
_AROUND_BYTES = 100
"""What stands around the requests of a submission."""


@dataclass(kw_only=True)
class BatchRun:
    """The batches of one judge in one experiment, under the experiment's lock."""

    spec: JudgeSpec
    client: BatchClient
    folder: Path
    journal: Journal
    clock: Clock
    tally: RunSummary
    budget: Budget
    cost_of: CostOf
    other_models: set[str] = field(default_factory=set)
    show: Callable[[], None] = lambda: None
    interrupted: asyncio.Event = field(default_factory=asyncio.Event)

    def open_intents(self) -> list[BatchState]:
        """This judge's batches that are not collected, whatever rubric they were made with."""
        return [one for one in intents(self.folder) if one.state in OPEN and one.judge == self.spec.name]

    async def collect_open(self) -> None:
        """Finish what earlier runs began: find the id of what was being submitted, wait, and collect."""
        for intent in self.open_intents():
            known = intent if intent.state == "submitted" else await self._find(intent)
            if known is not None and not self.interrupted.is_set():
                await self._finish(known)

    async def submit(self, pages: Iterator[list[JudgeCall]]) -> int:
        """Submit everything planned, in as many batches as the provider's bounds and the budget ask for. The number of
        calls submitted."""
        n_submitted = 0
        async for requests, items, worst in self._chunks(pages):
            intent = BatchState(
                name=new_name(),
                judge=self.spec.name,
                fingerprint=self.spec.fingerprint,
                provider=self.spec.provider,
                state="intended",
                n_items=len(items),
                created_at=self.clock.utc(),
                at_most_usd=worst,
            )
            await self._submit(save_intent(self.folder, intent, items), requests)
            n_submitted += len(items)
            if self.interrupted.is_set():
                break
        return n_submitted

    async def cancel_open(self) -> list[BatchState]:
        """Ask the provider to stop; what is done by then is collected by the next run."""
        found = []
        for intent in self.open_intents():
            known = intent if intent.state == "submitted" else await self._find(intent)
            if known is not None and known.batch_id is not None:
                await self._patiently(partial(self.client.cancel, known.batch_id))
                found.append(known)
        return found

    async def see_open(self) -> list[tuple[BatchState, BatchStatus | None]]:
        """Every open batch, and what its provider says of it (None: not known to have arrived)."""
        seen = []
        for intent in self.open_intents():
            batch_id = intent.batch_id
            seen.append((intent, await self._patiently(partial(self.client.see, batch_id)) if batch_id else None))
        return seen

    async def _submit(self, intent: BatchState, requests: list[tuple[str, Messages]]) -> None:
        try:
            batch_id = await self.client.submit(intent.name, requests)
        except BatchCallError as error:
            if error.is_final:
                save_state(self.folder, changed(intent, state="abandoned"))
                self.budget.held -= intent.at_most_usd or 0.0
                raise UpstreamError(refusal(self.spec, str(error))) from error
            # It may have arrived all the same: look, rather than submit a second one.
            found = await self._find(intent)
            if found is None and self.interrupted.is_set():
                return
            if found is None:
                raise UpstreamError(
                    f"judge {self.spec.name!r}: the batch did not arrive: {error}; run it again"
                ) from error
            return
        save_state(self.folder, changed(intent, state="submitted", batch_id=batch_id))

    async def _find(self, intent: BatchState) -> BatchState | None:
        """The intent with its batch's id; None where it never arrived (then it is given up) or the user will not wait."""
        wait = FIRST_POLL_S
        while not self.interrupted.is_set():
            batch_id, unsure = await self._match(intent)
            if batch_id is not None:
                found = changed(intent, state="submitted", batch_id=batch_id)
                save_state(self.folder, found)
                return found
            age = (self.clock.utc() - intent.created_at).total_seconds()
            if not unsure and age >= SETTLING_S:
                save_state(self.folder, changed(intent, state="abandoned"))
                self.budget.held = max(0.0, self.budget.held - (intent.at_most_usd or 0.0))
                return None
            await self._wait(wait)
            wait = min(wait * POLL_GROWTH, LONGEST_POLL_S)
        return None

    async def _match(self, intent: BatchState) -> tuple[str | None, bool]:
        """(the batch's id, whether a candidate still runs and cannot be told yet)."""
        taken = {one.batch_id for one in intents(self.folder) if one.batch_id}
        ids = {item.custom_id for item in items_of(self.folder, intent)}
        unsure = False
        for seen in await self._patiently(lambda: self._newer(intent.created_at - CLOCK_SLACK)):
            if seen.mark is not None:
                if seen.mark == intent.name:
                    return seen.batch_id, False
                continue
            if seen.batch_id in taken or seen.n_requests != len(ids):
                continue
            if not seen.ended:
                unsure = True
            elif await self._patiently(partial(self._holds, seen.batch_id, ids)):
                return seen.batch_id, False
        return None, unsure

    async def _newer(self, since: datetime) -> list[BatchStatus]:
        found = []
        async for seen in self.client.newest_first():
            if seen.created_at < since:
                break
            found.append(seen)
        return found

    async def _holds(self, batch_id: str, ids: set[str]) -> bool:
        """Whether the batch's first result is of one of these requests."""
        async for name, _ in self.client.results(batch_id):
            return name in ids
        return False

    async def _finish(self, intent: BatchState) -> None:
        batch_id = intent.batch_id
        assert batch_id is not None
        wait = FIRST_POLL_S
        while not (await self._patiently(lambda: self.client.see(batch_id))).ended:
            await self._wait(wait)
            wait = min(wait * POLL_GROWTH, LONGEST_POLL_S)
            if self.interrupted.is_set():
                return
        waiting = {item.custom_id: item for item in items_of(self.folder, intent)}
        await self._patiently(lambda: self._collect(intent, batch_id, waiting))
        self.journal.sync()
        save_state(self.folder, changed(intent, state="collected"))
        self.budget.held = max(0.0, self.budget.held - (intent.at_most_usd or 0.0))

    async def _collect(self, intent: BatchState, batch_id: str, waiting: dict[str, Item]) -> None:
        """The results, streamed into the journal. Repeated after a crash it writes the same rows, which count once.

        Args:
            waiting: the requests without a result, by id; emptied. A stream that breaks off is read from its beginning, and
                what was booked before is not booked again.
        """
        async for name, reply in self.client.results(batch_id):
            item = waiting.pop(name, None)
            if item is not None:
                self._record(intent, item, reply, batch_id)
        for item in waiting.values():
            self._record(intent, item, JudgeResponse(fate=CallOutcome.REJECTED, kind="no_result"), batch_id)

    def _record(self, intent: BatchState, item: Item, reply: JudgeResponse, batch_id: str) -> None:
        ask, at = item.ask(), self.clock.utc()
        message = Message(text="", cut=item.cut, tripwires=item.tripwires)
        spec = self.spec
        booking = self._booking(intent, item, reply)
        if intent.fingerprint != spec.fingerprint:  # it is nobody's answer now, asked anew where it is wanted, and paid
            if reply.fate is CallOutcome.ANSWERED:
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
                self.journal.append(judgment)
                self.budget.spent += judgment.cost_usd or 0.0
                self.tally.book(judgment)
            return
        if reply.fate is CallOutcome.ANSWERED:
            judgment = answered(
                ask, item.attempt, spec, reply, booking=booking, at=at, message=message, batch_id=batch_id
            )
        else:
            judgment = failure(
                ask, item.attempt, spec, reply, booking=booking, at=at, message=message, batch_id=batch_id
            )
        self.journal.append(judgment)
        self.budget.spent += judgment.cost_usd or 0.0
        self.tally.n_calls += 1
        self.tally.book(judgment)
        self.tally.end(judgment)
        self.show()

    def _booking(self, intent: BatchState, item: Item, reply: JudgeResponse) -> RecordedCost:
        """What a result cost. An answer whose usage nobody reports, or whose model nobody prices, is booked at its worst."""
        if reply.fate is not CallOutcome.ANSWERED:
            return RecordedCost(cost_usd=0.0)
        cost = self.cost_of(reply.usage, reply.model)
        if cost is not None:
            return RecordedCost(cost_usd=cost)
        worst = item.at_most_usd  # a batch of an earlier version: an equal share of the whole
        if worst is None and intent.at_most_usd is not None:
            worst = intent.at_most_usd / intent.n_items
        return RecordedCost(cost_usd=worst, at_most=worst)

    async def _chunks(
        self, pages: Iterator[list[JudgeCall]]
    ) -> AsyncIterator[tuple[list[tuple[str, Messages]], list[Item], float | None]]:
        requests: list[tuple[str, Messages]] = []
        items: list[Item] = []
        n_bytes, worst = _AROUND_BYTES, 0.0
        overhead = len(self.spec.system.encode("utf-8", "surrogatepass")) + len(str(self.spec.schema))
        while (page := await asyncio.to_thread(next, pages, None)) is not None:
            for ask in page:
                if ask.is_identical:
                    judgment = identical(ask, self.spec, at=self.clock.utc())
                    self.journal.append(judgment)
                    self.tally.end(judgment)
                    continue
                message = message_of(ask, self.spec, self.clock.nonce())
                item, turns = _item(ask, message), [("user", message.text)]
                size = self.client.size_of(item.custom_id, turns)
                n_text = overhead + len(message.text.encode("utf-8", "surrogatepass"))
                most = Usage(input_tokens=most_input_tokens(n_text), output_tokens=self.spec.max_tokens)
                price = dearest(self.cost_of, most, self.other_models)
                if items and (len(items) >= self.client.max_requests or n_bytes + size > self.client.max_bytes):
                    yield requests, items, worst
                    requests, items, n_bytes, worst = [], [], _AROUND_BYTES, 0.0
                if not self.budget.reserve(price or 0.0):
                    self.tally.stopped = "budget"
                    self.tally.message = (
                        f"the next call can cost ${price or 0:.4f}, and ${self.budget.left or 0:.4f} are left"
                    )
                    if items:
                        yield requests, items, worst
                    return
                requests.append((item.custom_id, turns))
                items.append(msgspec.structs.replace(item, at_most_usd=price))
                n_bytes += size
                worst += price or 0.0
        if items:
            yield requests, items, worst

    async def _patiently(self, call: Callable[[], Awaitable[_Result]]) -> _Result:
        """A call that changes nothing twice, tried again while the provider has troubles that pass."""
        for n_tries in range(1, MAX_TRIES + 1):
            try:
                return await call()
            except BatchCallError as error:
                if error.is_final:
                    raise UpstreamError(refusal(self.spec, str(error))) from error
                if n_tries == MAX_TRIES:
                    raise UpstreamError(f"judge {self.spec.name!r}: batches: {error}") from error
                await self._wait(max(error.reply.retry_after_s or 0.0, 0.5 * 2**n_tries * self.clock.jitter()))
        raise AssertionError("unreachable")

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.interrupted.wait(), seconds)
        except TimeoutError:
            return


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
