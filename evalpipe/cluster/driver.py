"""The driver of a cluster: the ordinary run of planned calls, whose calls are made by shards on other nodes.

The plan, the rate limits, the budget, the journal, the looks and the counts are here, as on one machine; a shard asks before each
call. So a call is leased one by one, at its worst case, in the message that carries its row, and limits and cap hold over all
shards without being divided. Where a shard is lost, its calls in flight are booked at their worst case, and what it had to do
goes on elsewhere.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections.abc import Awaitable, Coroutine, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol

from evalpipe.calls.client import CallOutcome, ModelResponse
from evalpipe.calls.runner import CallRunner, Route
from evalpipe.cluster.kinds import CallKind, Planned, Row, shard_of
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
from evalpipe.cluster.shard import ShardSetup
from evalpipe.errors import ClusterError

START_GRACE_S = 30.0
"""So long the first shard waits for the others, so that the work is divided from the beginning."""
_LOOK_EVERY_S = 0.05
MAX_STARTS = 5
"""Starts of a shard that ends nothing in between; then the others do its work."""
MAX_LOST = 3
"""Shards that are lost with one planned call in flight, which may be why; then the next run asks for it."""
LOST = ModelResponse(outcome=CallOutcome.BROKEN, kind="lost", message="the shard that made the call is gone")


class LostShardError(Exception):
    """A shard or its node is gone; `str()` in a few words."""


class Shard(Protocol):
    """A shard as the driver reaches it. Every method raises LostShardError where it is gone."""

    @property
    def node(self) -> str:
        """In messages."""
        ...

    async def start(self, setup: ShardSetup) -> None: ...

    async def deliver(self, orders: Sequence[Order[Any]]) -> None: ...

    async def collect(self) -> list[Report[Any]]: ...

    def kill(self) -> None:
        """End it, if it is still there."""
        ...


class Cluster(Protocol):
    """Where shards are started."""

    @property
    def n_shards(self) -> int: ...
    @property
    def start_timeout_s(self) -> float: ...

    def new_shard(self) -> Shard:
        """A shard on any node that has room for it, now or later."""
        ...


@dataclass(kw_only=True)
class _Job(Generic[Planned, Row]):
    """A planned call that a shard has. `rows`: how its calls ended so far; `kind`: of the last of them; `n_lost`: of all."""

    planned: Planned
    done: asyncio.Future[Row | None]
    rows: list[Row] = field(default_factory=list)
    kind: str = ""
    n_lost: int = 0

    def resolve(self, row: Row | None) -> None:
        if not self.done.done():
            self.done.set_result(row)


@dataclass(kw_only=True)
class _Member(Generic[Planned, Row]):
    """A shard at work: what it is to be sent, what waits to be admitted, what is in flight, and its share of the plan."""

    number: int
    shard: Shard
    calls: list[Planned] = field(default_factory=list)
    orders: list[Order[Planned]] = field(default_factory=list)
    any: asyncio.Event = field(default_factory=asyncio.Event)
    asking: set[asyncio.Task[None]] = field(default_factory=set)
    in_flight: dict[str, Ask[Row]] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)

    def send(self, order: Order[Planned]) -> None:
        self.orders.append(order)
        self.any.set()

    def take(self) -> list[Order[Planned]]:
        """What is to be sent now."""
        orders, self.orders = self.orders, []
        if self.calls:
            orders.append(Work(calls=self.calls))
            self.calls = []
        self.any.clear()
        return orders


@dataclass(kw_only=True)
class ClusterRunner(CallRunner[Planned, Row]):
    """A run whose planned calls are brought to their end by shards. `concurrency`: planned calls that shards have at a time;
    `max_in_flight`: calls in flight over all of them; None: each shard has a bound of its own."""

    kind: CallKind[Planned, Row]
    setup: ShardSetup
    cluster: Cluster
    max_in_flight: int | None
    _members: dict[int, _Member[Planned, Row]] = field(default_factory=dict, init=False)
    _shards: list[Shard] = field(default_factory=list, init=False)
    _starting: set[int] = field(default_factory=set, init=False)
    _n_starts: dict[int, int] = field(default_factory=dict, init=False)
    _jobs: dict[str, _Job[Planned, Row]] = field(default_factory=dict, init=False)
    _background: set[asyncio.Task[None]] = field(default_factory=set, init=False)
    _joined: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    @property
    @abstractmethod
    def routes(self) -> Mapping[str, Route]:
        """Whom calls go to, by `Route.who`."""

    async def run(self, pages: Iterator[list[Planned]]) -> None:
        """Start the shards, and have them work through everything that is planned. Raises ClusterError where there are none."""
        self._room = asyncio.Semaphore(self.max_in_flight or 1_000_000)
        try:
            for number in range(self.cluster.n_shards):
                self._start(number)
            await self._wait_for_shards()
            await super().run(pages)
        finally:
            for task in self._background:
                task.cancel()
            for shard in self._shards:
                shard.kill()

    async def work(self, planned: Planned) -> None:
        """Give a planned call to the shard of its user, and count how it ended."""
        key = self.kind.key_of(planned)
        job = self._jobs[key] = _Job(planned=planned, done=asyncio.get_running_loop().create_future())
        try:
            self._assign(key)
            row = await job.done
        finally:
            del self._jobs[key]
        if row is not None:
            self.end(job.planned, row)

    def stop(self, reason: str, message: str | None = None) -> None:
        """Have every shard finish what it has in flight and start nothing more."""
        if self.is_stopping():
            return
        super().stop(reason, message)
        for member in self._members.values():
            member.send(Stop())
        for key in [key for key in self._jobs if not any(key in member.keys for member in self._members.values())]:
            self._jobs[key].resolve(None)

    # Shards: started, joined, lost.

    def _start(self, number: int) -> None:
        self._n_starts[number] = self._n_starts.get(number, 0) + 1
        self._starting.add(number)
        shard = self.cluster.new_shard()
        self._shards.append(shard)
        self._spawn(self._join(number, shard))

    async def _join(self, number: int, shard: Shard) -> None:
        """Wait until a shard is there, and let it take part."""
        try:
            await shard.start(self.setup)
        except LostShardError as error:
            self._starting.discard(number)
            self._replace(number, f"shard {number + 1} did not start: {error}")
            return
        self._starting.discard(number)
        member: _Member[Planned, Row] = _Member(number=number, shard=shard)
        self._members[number] = member
        self._spawn(self._collect(member))
        self._spawn(self._deliver(member))
        for who, route in self.routes.items():
            for model in route.other_models:
                member.send(OtherModel(who=who, model=model))
        if self.is_stopping():
            member.send(Stop())
        for key, job in self._jobs.items():
            if not job.done.done() and not any(key in one.keys for one in self._members.values()):
                self._assign(key)
        self._joined.set()

    async def _wait_for_shards(self) -> None:
        """Until all are there, or one is and the others are late, or the run is stopped. Raises ClusterError where none comes."""
        now = asyncio.get_running_loop().time
        began, first = now(), float("inf")
        while self._starting and not self.is_stopping() and now() < first + START_GRACE_S:
            if self._members:
                first = min(first, now())
            elif now() > began + self.cluster.start_timeout_s:
                raise ClusterError(
                    f"no node of the cluster has started a shard within {self.cluster.start_timeout_s:g} s: look with "
                    "`ray status` whether it has free CPUs ([cluster] cpus_per_shard, start_timeout_s); nothing was sent"
                )
            await asyncio.sleep(_LOOK_EVERY_S)

    def _lose(self, member: _Member[Planned, Row], why: str) -> None:
        """A shard is gone: book what it had in flight at its worst case, and give what it had to do to others."""
        if self._members.get(member.number) is not member:
            return
        del self._members[member.number]
        member.shard.kill()
        for task in member.asking:
            task.cancel()
        lost, member.in_flight = member.in_flight, {}
        for question in lost.values():
            self._end_call(Finished(row=question.row, booked=question.booking, reply=LOST), question)
        open_keys = [key for key, job in self._jobs.items() if key in member.keys and not job.done.done()]  # as planned
        for key in open_keys:
            self._assign(key)
        where = f"shard {member.number + 1} on node {member.shard.node} is lost ({why})"
        booked = f"{len(lost):,} calls in flight are booked at their worst case"
        self._replace(member.number, f"{where}: {booked}, {len(open_keys):,} planned ones go on elsewhere")

    def _replace(self, number: int, notice: str) -> None:
        """Start a shard again; what it had to do is done by the others meanwhile."""
        self.announce(notice)
        if self.is_stopping():
            return
        if self._n_starts[number] < MAX_STARTS:
            self._start(number)
        if not self._members:
            self._spawn(self._end_without_shards(notice))

    async def _end_without_shards(self, notice: str) -> None:
        self._joined.clear()
        if self._starting:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.cluster.start_timeout_s):
                    await self._joined.wait()
        if not self._members and not self.is_stopping():
            raise ClusterError(f"no shard of the cluster is left: {notice}; every answer so far is kept: run it again")

    # Planned calls.

    def _assign(self, key: str) -> None:
        """Give a planned call to a shard; where there is none, it waits for one."""
        job = self._jobs[key]
        if self.is_stopping() or job.n_lost >= MAX_LOST:
            job.resolve(job.rows[-1] if job.rows else None)
        elif self._members:
            planned = self.kind.resumed(job.planned, job.rows)
            member = self._members[shard_of(self.kind.unit_of(planned), self._members)]
            member.keys.add(key)
            member.calls.append(planned)
            member.any.set()

    # Messages.

    async def _deliver(self, member: _Member[Planned, Row]) -> None:
        try:
            while True:
                await member.any.wait()
                await asyncio.sleep(GATHER_S)
                await member.shard.deliver(member.take())
        except LostShardError as error:
            self._lose(member, str(error))

    async def _collect(self, member: _Member[Planned, Row]) -> None:
        try:
            while True:
                for report in await member.shard.collect():
                    if self._members.get(member.number) is member:  # else its calls are booked, and made elsewhere
                        self._follow(member, report)
        except LostShardError as error:
            self._lose(member, str(error))

    def _follow(self, member: _Member[Planned, Row], report: Report[Row]) -> None:
        match report:
            case Ask():
                task = asyncio.create_task(self._guard(self._admit(member, report)))
                member.asking.add(task)
                task.add_done_callback(member.asking.discard)
            case Finished():
                self._end_call(report, member.in_flight.pop(self.kind.id_of(report.row)))
            case Ended(key=key):
                member.keys.discard(key)
                self._n_starts[member.number] = 0
                job = self._jobs.get(key)
                if job is not None:
                    job.resolve(job.rows[-1])
            case Stopped(reason=reason, message=message):
                self.stop(reason, message and f"{message} (on node {member.shard.node})")
            case Announced(line=line):
                self.announce(line)
            case Over(error=error):
                self._finish_member(member, error)

    async def _admit(self, member: _Member[Planned, Row], question: Ask[Row]) -> None:
        """Reserve a call, have its row on the disk, and let it be sent."""
        self._count_again(question)
        route = self.routes[question.who]
        await self._room.acquire()
        is_admitted = False
        try:
            is_admitted = (
                not self.is_stopping()
                and await self.acquire(route, question.need, question.booking.at_most or 0.0)
                and await self.begin(route, question.need, question.booking, question.row)
            )
        finally:
            if not is_admitted:
                self._room.release()
        row_id = self.kind.id_of(question.row)
        if is_admitted:
            self.n_in_flight += 1
            member.in_flight[row_id] = question
        member.send(Admitted(row_id=row_id, is_admitted=is_admitted))

    def _end_call(self, ended: Finished[Row], question: Ask[Row]) -> None:
        """Settle a call, write its row, and count it."""
        self.n_in_flight -= 1
        self._room.release()
        route = self.routes[question.who]
        self.finish(route, question.need, question.booking.at_most, ended.reply, ended.booked, ended.row)
        if ended.reply.outcome is CallOutcome.ANSWERED:
            self._share_model(route, ended.reply)
        job = self._jobs.get(self.kind.key_of_row(ended.row))
        if job is not None:
            job.rows.append(ended.row)
            job.kind = ended.reply.kind or ended.reply.outcome.value
            job.n_lost += ended.reply is LOST

    def _share_model(self, route: Route, reply: ModelResponse) -> None:
        """Have every shard hold its calls at the price of a model that answered in place of the one asked, too."""
        known = set(route.other_models)
        self.note_model(route, reply)
        for model in route.other_models - known:
            for member in self._members.values():
                member.send(OtherModel(who=route.who, model=model))

    def _count_again(self, question: Ask[Row]) -> None:
        """Count a call that is made once more."""
        job = self._jobs.get(self.kind.key_of_row(question.row))
        if job is not None and job.rows:
            self.again(job.rows[-1], job.kind)

    def again(self, row: Row, kind: str) -> None:
        """A planned call is asked once more, after this row."""
        self.summary.retried[kind] += 1

    def _finish_member(self, member: _Member[Planned, Row], error: str | None) -> None:
        """A shard has ended of its own accord, as it was stopped, or by a bug."""
        self._members.pop(member.number, None)
        if error is not None:
            raise RuntimeError(f"shard {member.number + 1} on node {member.shard.node} has failed:\n{error}")
        for key in member.keys & self._jobs.keys():
            job = self._jobs[key]
            job.resolve(job.rows[-1] if job.rows else None)

    # Tasks beside the planned calls.

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(self._guard(work))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _guard(self, work: Awaitable[None]) -> None:
        """An error ends the run at once; what is in flight stays in the journal as sent."""
        try:
            await work
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  raised by `run`
            self._error = self._error or error
            self.stop("failed")
            for task in self._tasks:
                task.cancel()
