"""Work in a provider's batches: half the price, hours instead of minutes, and no batch ever submitted twice.

On disk a batch is two files in `batches/`: NAME.jsonl with its requests, written and synced first, and NAME.json with its
state, replaced as a whole. The order is: requests and state ("intended") on disk, submit, the provider's id ("submitted") on
disk, poll, results into the journal, "collected" on disk. After a kill at any point the next run reads from the disk what
is left to do; only between the submission and the id on disk must it ask the provider, whose newer batches it matches by
custom_id.
"""

from __future__ import annotations

import asyncio
import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import msgspec

from evalpipe.calls.batch_client import BatchCallError, BatchClient, BatchStatus, RequestBody
from evalpipe.calls.budget import Budget, CostOf, MostTokens, most_input_tokens
from evalpipe.calls.client import CallOutcome, ModelResponse, ModelSettings, refusal
from evalpipe.calls.journal import CallJournal, commit_calls
from evalpipe.calls.runner import Clock, RecordedCost, RunCounts
from evalpipe.errors import UpstreamError
from evalpipe.files import write_synced

State = Literal["intended", "submitted", "collected", "abandoned"]
OPEN: tuple[State, ...] = ("intended", "submitted")


class BatchItem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One request of a batch: what is needed to read its answer without the texts. `at_most_usd`: what it can cost at most;
    None = price unknown, and then `most_tokens` is what it can use."""

    custom_id: str
    attempt: int
    request_id: str
    at_most_usd: float | None = None
    most_tokens: MostTokens | None = None

    def most_usd(self, cost_of: CostOf, other_models: Collection[str] = ()) -> float | None:
        """What it can cost at most, at today's price where there was none when it was submitted."""
        if self.at_most_usd is not None or self.most_tokens is None:
            return self.at_most_usd
        return self.most_tokens.usd(cost_of, other_models)


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


def most_usd(folder: Path, intent: BatchState, cost_of: CostOf, other_models: Collection[str] = ()) -> float:
    """USD that an open batch can still cost: as held when it was submitted, or where its model had no price, at today's."""
    if intent.at_most_usd is not None:
        return intent.at_most_usd
    return sum(item.most_usd(cost_of, other_models) or 0.0 for item in items_in(folder, intent, BatchItem))


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


_Result = TypeVar("_Result")
Planned = TypeVar("Planned")
Row = TypeVar("Row")

FIRST_POLL_S, LONGEST_POLL_S, POLL_GROWTH = 1.0, 120.0, 1.4
SETTLING_S = 15.0
"""A submission that was cut off may still be arriving: it is given up only when the intent is older than this."""
CLOCK_SLACK = timedelta(minutes=10)
"""How far the provider's clock may lag behind the local one."""
MAX_TRIES = 8
_AROUND_BYTES = 100
"""Bytes of a submission beside its requests."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRequest(Generic[AnyItem]):
    """One request of a submission. `n_bytes` bounds its input tokens, `max_tokens` its answer."""

    item: AnyItem
    body: RequestBody
    n_bytes: int
    max_tokens: int


@dataclass(kw_only=True)
class Batches(ABC, Generic[Planned, AnyItem, Row]):
    """The batches of one judge or arm in one experiment, under the lock of its command.

    Attributes:
        owner: the judge's or the arm's name, by which its batches are found again.
        spec: whom they are sent to.
        fingerprint: of what decides the answers.
        item_kind: the type of what is kept of a request.
        endpoint: of the requests, where it is not the provider's first.
    """

    owner: str
    spec: ModelSettings
    fingerprint: str
    item_kind: type[AnyItem]
    client: BatchClient
    folder: Path
    journal: CallJournal[Row]
    clock: Clock
    summary: RunCounts[Row]
    budget: Budget
    cost_of: CostOf
    other_models: set[str] = field(default_factory=set)
    show: Callable[[], None] = lambda: None
    interrupted: asyncio.Event = field(default_factory=asyncio.Event)
    endpoint: str | None = None

    @abstractmethod
    def request_of(self, planned: Planned) -> BatchRequest[AnyItem] | None:
        """The request of a planned call; None where it needs none, and was brought to its end."""

    @abstractmethod
    def record(self, intent: BatchState, item: AnyItem, reply: ModelResponse, batch_id: str) -> None:
        """Write down how one request of a batch ended."""

    def write(self, row: Row, cost_usd: float | None) -> None:
        """Put the end of a request on the disk, and count what it cost."""
        self.journal.append(row)
        self.budget.spent += cost_usd or 0.0
        self.summary.book(row)

    def before_collecting(self, items: Collection[AnyItem]) -> None:
        """Called with all requests of a batch whose results are about to be recorded."""

    def open_intents(self) -> list[BatchState]:
        """The owner's batches that are not collected, whatever they were made with."""
        return [
            one
            for one in intents(self.folder)
            if one.state in OPEN and one.judge == self.owner and one.endpoint == self.endpoint
        ]

    async def collect_open(self) -> None:
        """Finish what earlier runs began: find the id of what was being submitted, wait, and collect."""
        for intent in self.open_intents():
            known = intent if intent.state == "submitted" else await self._find(intent)
            if known is not None and not self.interrupted.is_set():
                await self._finish(known)

    async def submit(self, pages: Iterator[list[Planned]]) -> int:
        """Submit everything planned, in as many batches as the provider's bounds and the budget ask for. The number of
        calls submitted."""
        n_submitted = 0
        async for requests, items, worst in self._chunks(pages):
            intent = BatchState(
                name=new_name(),
                judge=self.owner,
                fingerprint=self.fingerprint,
                provider=self.spec.provider,
                state="intended",
                n_items=len(items),
                created_at=self.clock.utc(),
                at_most_usd=worst,
                endpoint=self.endpoint,
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
                await self._with_retries(partial(self.client.cancel, known.batch_id))
                found.append(known)
        return found

    async def open_statuses(self) -> list[tuple[BatchState, BatchStatus | None]]:
        """Every open batch with the status its provider reports (None: not known to have arrived)."""
        seen = []
        for intent in self.open_intents():
            batch_id = intent.batch_id
            seen.append((intent, await self._with_retries(partial(self.client.status, batch_id)) if batch_id else None))
        return seen

    async def _submit(self, intent: BatchState, requests: list[tuple[str, RequestBody]]) -> None:
        await asyncio.to_thread(commit_calls, self.folder.parent)  # another machine must find what may be paid for
        try:
            batch_id = await self.client.submit(intent.name, requests)
        except BatchCallError as error:
            if error.is_final:
                self._close(intent, "abandoned")
                raise UpstreamError(refusal(self.spec, str(error))) from error
            # It may have arrived: check, rather than submit a second one.
            found = await self._find(intent)
            if found is None and self.interrupted.is_set():
                return
            if found is None:
                raise UpstreamError(f"{self.spec.who}: the batch did not arrive: {error}; run it again") from error
            return
        save_state(self.folder, changed(intent, state="submitted", batch_id=batch_id))
        await asyncio.to_thread(commit_calls, self.folder.parent)

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
                self._close(intent, "abandoned")
                return None
            await self._wait(wait)
            wait = min(wait * POLL_GROWTH, LONGEST_POLL_S)
        return None

    async def _match(self, intent: BatchState) -> tuple[str | None, bool]:
        """(the batch's id, whether a candidate still runs and cannot be identified yet)."""
        taken = {one.batch_id for one in intents(self.folder) if one.batch_id}
        ids = {item.custom_id for item in items_in(self.folder, intent, self.item_kind)}
        unsure = False
        for seen in await self._with_retries(lambda: self._newer(intent.created_at - CLOCK_SLACK)):
            if seen.mark is not None:
                if seen.mark == intent.name:
                    return seen.batch_id, False
                continue
            if seen.batch_id in taken or seen.n_requests != len(ids):
                continue
            if not seen.ended:
                unsure = True
            elif await self._with_retries(partial(self._contains, seen.batch_id, ids)):
                return seen.batch_id, False
        return None, unsure

    async def _newer(self, since: datetime) -> list[BatchStatus]:
        found = []
        async for seen in self.client.newest_first():
            if seen.created_at < since:
                break
            found.append(seen)
        return found

    async def _contains(self, batch_id: str, ids: set[str]) -> bool:
        """Whether the batch's first result is of one of these requests."""
        async for name, _ in self.client.results(batch_id):
            return name in ids
        return False

    async def _finish(self, intent: BatchState) -> None:
        batch_id = intent.batch_id
        assert batch_id is not None
        wait = FIRST_POLL_S
        while not (await self._with_retries(lambda: self.client.status(batch_id))).ended:
            await self._wait(wait)
            wait = min(wait * POLL_GROWTH, LONGEST_POLL_S)
            if self.interrupted.is_set():
                return
        waiting = {item.custom_id: item for item in items_in(self.folder, intent, self.item_kind)}
        self.before_collecting(waiting.values())
        await self._with_retries(lambda: self._collect(intent, batch_id, waiting))
        self.journal.sync()
        self._close(intent, "collected")

    def _close(self, intent: BatchState, state: State) -> None:
        """A batch that costs nothing more: on disk, and no longer held."""
        held = most_usd(self.folder, intent, self.cost_of, self.other_models)
        save_state(self.folder, changed(intent, state=state))
        self.budget.held = max(0.0, self.budget.held - held)

    async def _collect(self, intent: BatchState, batch_id: str, waiting: dict[str, AnyItem]) -> None:
        """The results, streamed into the journal. Repeated after a crash it writes the same rows, which count once.

        Args:
            waiting: the requests without a result, by id; emptied. A stream that breaks off is read from its beginning, and
                what was booked before is not booked again.
        """
        async for name, reply in self.client.results(batch_id):
            item = waiting.pop(name, None)
            if item is not None:
                self.record(intent, item, reply, batch_id)
        for item in waiting.values():
            self.record(intent, item, ModelResponse(outcome=CallOutcome.REJECTED, kind="no_result"), batch_id)

    def booking(self, intent: BatchState, item: AnyItem, reply: ModelResponse) -> RecordedCost:
        """The cost of a result. A response without usage, or of a model without a price, is booked at its worst case."""
        if reply.outcome is not CallOutcome.ANSWERED:
            return RecordedCost(cost_usd=0.0)
        cost = self.cost_of(reply.usage, reply.model)
        if cost is not None:
            return RecordedCost(cost_usd=cost)
        worst = item.most_usd(self.cost_of, self.other_models)
        if (
            worst is None and intent.at_most_usd is not None
        ):  # a batch of an earlier version: an equal share of the whole
            worst = intent.at_most_usd / intent.n_items
        return RecordedCost(cost_usd=worst, at_most=worst, most_tokens=item.most_tokens if worst is None else None)

    async def _chunks(
        self, pages: Iterator[list[Planned]]
    ) -> AsyncIterator[tuple[list[tuple[str, RequestBody]], list[AnyItem], float | None]]:
        requests: list[tuple[str, RequestBody]] = []
        items: list[AnyItem] = []
        n_bytes = _AROUND_BYTES
        worst: float | None = 0.0
        while (page := await asyncio.to_thread(next, pages, None)) is not None:
            for planned in page:
                made = self.request_of(planned)
                if made is None:
                    continue
                size = self.client.size_of(made.item.custom_id, made.body)
                most = MostTokens(input_tokens=most_input_tokens(made.n_bytes), output_tokens=made.max_tokens)
                price = most.usd(self.cost_of, self.other_models)
                if items and (len(items) >= self.client.max_requests or n_bytes + size > self.client.max_bytes):
                    yield requests, items, worst
                    requests, items, n_bytes, worst = [], [], _AROUND_BYTES, 0.0
                if not self.budget.reserve(price or 0.0):
                    self.summary.stopped = "budget"
                    self.summary.message = self.budget.refusal(price or 0.0)
                    if items:
                        yield requests, items, worst
                    return
                requests.append((made.item.custom_id, made.body))
                unpriced = most if price is None else None
                items.append(msgspec.structs.replace(made.item, at_most_usd=price, most_tokens=unpriced))
                n_bytes += size
                worst = None if worst is None or price is None else worst + price
        if items:
            yield requests, items, worst

    async def _with_retries(self, call: Callable[[], Awaitable[_Result]]) -> _Result:
        """A call that changes nothing twice, tried again while the provider has troubles that pass."""
        for n_tries in range(1, MAX_TRIES + 1):
            try:
                return await call()
            except BatchCallError as error:
                if error.is_final:
                    raise UpstreamError(refusal(self.spec, str(error))) from error
                if n_tries == MAX_TRIES:
                    raise UpstreamError(f"{self.spec.who}: batches: {error}") from error
                await self._wait(max(error.reply.retry_after_s or 0.0, 0.5 * 2**n_tries * self.clock.jitter()))
        raise AssertionError("unreachable")

    async def _wait(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self.interrupted.wait(), seconds)
        except TimeoutError:
            return
