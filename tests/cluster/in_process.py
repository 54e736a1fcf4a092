"""Shards in threads of the test's process: the real driver, shards, runners and messages, each message pickled, without Ray."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from evalpipe.cluster.driver import LostShardError
from evalpipe.cluster.messages import Finished, Order, Report
from evalpipe.cluster.shard import ShardActor, ShardSetup

Result = TypeVar("Result")


def carried(value: Result) -> Result:
    """The value as another process gets it."""
    found: Result = pickle.loads(pickle.dumps(value))
    return found


class InProcessShard:
    """A shard that is lost with its reports, as a node is, instead of delivering the report of its `lost_at`-th call."""

    def __init__(self, name: str, lost_at: int | None) -> None:
        self.node, self._lost_at = name, lost_at
        self.n_finished = 0
        self._actor = ShardActor()
        self._gone = asyncio.Event()
        self._ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._live()), daemon=True).start()
        self._ready.wait(10)

    async def _live(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self._ready.set()
        await self._end.wait()
        runner = getattr(self._actor, "_runner", None)
        if runner is not None:
            runner.link.give(None)
            self._actor._running.cancel()
            await asyncio.gather(self._actor._running, return_exceptions=True)
            await asyncio.sleep(0.2)  # until its connections, which were closed just now, are gone

    @property
    def other_models(self) -> set[str]:
        """Those that its calls are held at the price of, besides the one asked."""
        return {model for route in self._actor._runner.routes.values() for model in route.other_models}

    async def start(self, setup: ShardSetup) -> None:
        if self._lost_at == 0:
            raise LostShardError("it cannot start")
        await self._while_there(self._actor.start(carried(setup)))

    async def deliver(self, orders: Sequence[Order[Any]]) -> None:
        await self._while_there(self._actor.deliver(carried(orders)))

    async def collect(self) -> list[Report[Any]]:
        found = await self._while_there(self._actor.collect())
        self.n_finished += sum(isinstance(report, Finished) for report in found)
        if self._lost_at is not None and self.n_finished >= self._lost_at:
            self.kill()
            raise LostShardError("it was killed")
        return carried(found)

    def kill(self) -> None:
        if not self._gone.is_set():
            self._gone.set()
            self._loop.call_soon_threadsafe(self._end.set)

    async def _while_there(self, work: Coroutine[Any, Any, Result]) -> Result:
        task = asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))
        gone = asyncio.ensure_future(self._gone.wait())
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not task.done():
            task.cancel()
            raise LostShardError("it is gone")
        return task.result()


@dataclass
class InProcessCluster:
    """`lost_at`: of each shard that is started, in order, the finished call with which it is lost; none beyond the list."""

    n_shards: int
    lost_at: list[int | None] = field(default_factory=list)
    start_timeout_s: float = 5.0
    shards: list[InProcessShard] = field(default_factory=list)

    def new_shard(self) -> InProcessShard:
        number = len(self.shards)
        shard = InProcessShard(f"n{number}", self.lost_at[number] if number < len(self.lost_at) else None)
        self.shards.append(shard)
        return shard
