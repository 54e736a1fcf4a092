"""A shard: an actor on some node with the ordinary runner of calls, which asks the driver before each call is sent.

It writes nothing to a disk. A row goes to the driver before its call is sent and again when it has ended, so what a node has
done is safe as soon as the driver has it, and a shard that has lost its driver sends nothing.
"""

from __future__ import annotations

import asyncio
import queue
import socket
import traceback
from abc import abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, NoReturn, Protocol

from msgspec.structs import replace as replaced

from evalpipe.calls.budget import Budget
from evalpipe.calls.client import ModelResponse
from evalpipe.calls.limiter import Limiter, TokenReservation
from evalpipe.calls.runner import CallRunner, RecordedCost, Route
from evalpipe.cluster.kinds import CallKind, Planned, Row
from evalpipe.cluster.messages import (
    GATHER_S,
    Admitted,
    Announced,
    Ask,
    Ended,
    Finished,
    Order,
    OtherModel,
    Over,
    Report,
    Stop,
    Stopped,
    Work,
)


class Link(Generic[Planned, Row]):
    """The shard's end of the connection: reports wait here until the driver collects them, orders arrive here."""

    def __init__(self, kind: CallKind[Planned, Row]) -> None:
        self._kind = kind
        self._reports: list[Report[Row]] = []
        self._any = asyncio.Event()
        self._asking: dict[str, asyncio.Future[bool]] = {}
        self._work: queue.SimpleQueue[list[Planned] | None] = queue.SimpleQueue()

    def report(self, report: Report[Row]) -> None:
        """Have it collected. What is reported without a pause in between is collected together, or not at all."""
        self._reports.append(report)
        self._any.set()

    async def collect(self) -> list[Report[Row]]:
        """Everything since the last time, as soon as there is anything."""
        await self._any.wait()
        await asyncio.sleep(GATHER_S)
        self._any.clear()
        found, self._reports = self._reports, []
        return found

    async def ask(self, question: Ask[Row]) -> bool:
        """Whether a call may be sent."""
        row_id = self._kind.id_of(question.row)
        self._asking[row_id] = asyncio.get_running_loop().create_future()
        self.report(question)
        return await self._asking[row_id]

    def answer(self, found: Admitted) -> None:
        """The driver's answer to a question."""
        self._asking.pop(found.row_id).set_result(found.is_admitted)

    def give(self, calls: list[Planned] | None) -> None:
        """Planned calls; None: there will be no more."""
        self._work.put(calls)

    def pages(self) -> Iterator[list[Planned]]:
        """What was given, for a runner, which reads it in a thread."""
        while (calls := self._work.get()) is not None:
            yield calls


@dataclass(kw_only=True)
class ShardRunner(CallRunner[Planned, Row]):
    """What is different in a runner of calls within a shard: the driver reserves, writes and counts."""

    kind: CallKind[Planned, Row]
    link: Link[Planned, Row]

    @property
    @abstractmethod
    def routes(self) -> Mapping[str, Route]:
        """Whom its calls go to, by `Route.who`."""

    async def acquire(self, route: Route, need: TokenReservation, worst: float) -> bool:
        """The budget and the limits are the driver's: `begin` waits for them."""
        return not self.is_stopping()

    async def begin(self, route: Route, need: TokenReservation, booking: RecordedCost, row: Row) -> bool:
        """Wait until the driver has reserved the call and has its row on the disk."""
        return await self.link.ask(Ask(row=row, who=route.who, need=need, booking=booking))

    def finish(
        self,
        route: Route,
        need: TokenReservation,
        worst: float | None,
        reply: ModelResponse,
        booked: RecordedCost,
        row: Row,
    ) -> None:
        """Send the row, and what the driver settles by. No text of the response goes twice."""
        answer = reply.answer
        if answer is not None:
            answer = replaced(answer, text=None, tool_calls=[], assembled=None, late_reasoning="")
        self.link.report(Finished(row=row, booked=booked, reply=replace(reply, answer=answer, text="", body=b"")))

    def end(self, planned: Planned, row: Row) -> None:
        """Have the driver count it."""
        self.link.report(Ended(key=self.kind.key_of(planned)))

    def stop(self, reason: str, message: str | None = None) -> None:
        """Start nothing more here, and have the driver stop all."""
        if not self.is_stopping():
            self.link.report(Stopped(reason=reason, message=message))
        super().stop(reason, message)
        self.link.give(None)

    def follow(self, order: Order[Planned]) -> None:
        """Do what the driver asks for."""
        match order:
            case Work(calls=calls):
                self.link.give(calls)
            case Admitted():
                self.link.answer(order)
            case OtherModel(who=who, model=model):
                self.routes[who].other_models.add(model)
            case Stop():
                super().stop("stopped")
                self.link.give(None)


class ShardSetup(Protocol):
    """Everything a shard needs to begin, made by the driver. It may hold keys: it is sent to the actor itself, never kept by
    Ray's own store of actors."""

    def open(self) -> tuple[ShardRunner[Any, Any], Callable[[], Awaitable[None]]]:
        """The runner, on the node it runs on, and what closes its connections."""
        ...


class ShardActor:
    """What Ray runs as an actor: `start` once; then the driver delivers and collects until `Over`."""

    _runner: ShardRunner[Any, Any]

    async def start(self, setup: ShardSetup) -> str:
        """Open the connections and wait for work: the node's name. Raises ConfigError where it lacks what they need."""
        self._runner, self._close = setup.open()
        self._running = asyncio.create_task(self._run())
        return socket.gethostname()

    async def deliver(self, orders: Sequence[Order[Any]]) -> None:
        """What the driver has for this shard."""
        for order in orders:
            self._runner.follow(order)

    async def collect(self) -> list[Report[Any]]:
        """What this shard has for the driver, as soon as there is anything."""
        return await self._runner.link.collect()

    async def _run(self) -> None:
        error: str | None = None
        try:
            await self._runner.run(self._runner.link.pages())
        except BaseException:
            error = traceback.format_exc()
            raise
        finally:
            self._runner.link.report(Over(error=error))
            await self._close()


class NoRecords:
    """The journal of a shard: none, as the driver has it."""

    def begin(self, row: object, /) -> NoReturn:
        raise RuntimeError("a shard has no journal")

    append = begin


def no_limits() -> Limiter:
    """The limits within a shard: none, as the driver keeps them."""
    rate = float("inf")
    return Limiter(requests_per_minute=rate, input_tokens_per_minute=rate, output_tokens_per_minute=rate)


def shard_parts(kind: CallKind[Planned, Row], *, cap: float | None, concurrency: int) -> dict[str, Any]:
    """The fields of a runner within a shard that are alike for a judge and a replay. `cap`: whether a price must be known."""
    link = Link(kind)
    return {
        "kind": kind,
        "link": link,
        "budget": Budget(cap=cap),
        "journal": NoRecords(),
        "concurrency": concurrency,
        "announce": lambda line: link.report(Announced(line=line)),
    }
