"""The event stream of the counters: one poll of the collectors for all who listen, none while nobody does."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from evalpipe.collector.logs import OnceAMinute
from evalpipe.serve.experiments import Experiment
from evalpipe.text import format_usd
from evalpipe.workspace.live import Counters

logger = logging.getLogger(__name__)
EVERY_S: Final = 2.0
BEAT_S: Final = 15.0
"""a comment goes out so often where nothing else does, so that a lost connection is noticed"""
MOST_CLIENTS: Final = 200


class TooManyClientsError(Exception):
    """As many listen as the server serves."""


def live_texts(counters: Counters | None) -> dict[str, str]:
    """The counters as the page shows them; a dash where they are not known."""
    if counters is None:
        return dict.fromkeys(
            ("state", "requests", "arms", "pairs", "failures", "budget", "spool", "percentage"), "–"
        ) | {"state": "no collector"}
    budget = "" if counters.budget_usd is None else f" of {format_usd(counters.budget_usd)}"
    arms = counters.requests if len(counters.requests) > 1 else {}
    return {
        "state": "collecting, with problems" if counters.reasons else "collecting",
        "requests": f"{counters.n_requests:,}",
        "arms": ", ".join(f"{n:,} {arm}" for arm, n in sorted(arms.items())) or "–",
        "pairs": f"{counters.pairs:,}",
        "failures": ", ".join(f"{n:,} {name}" for name, n in counters.failures.items()) or "none",
        "budget": f"{format_usd(counters.copies_usd)}{budget}",
        "spool": f"{counters.unloaded_bytes / 1e6:,.1f} MB"
        + (f", {_age(counters.unloaded_age_s)}" if counters.unloaded_bytes else ""),
        "percentage": "–" if counters.percentage is None else f"{counters.percentage:g} %",
    }


def _age(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s old"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min old"
    return f"{seconds / 3600:,.0f} h old"


class Live:
    """The latest counters of all experiments as one event, given to everybody who listens.

    A client that reads slowly gets the latest event next, never a queue of old ones.
    """

    def __init__(self, experiments: Sequence[Experiment], *, every_s: float = EVERY_S) -> None:
        self._experiments, self._every_s = experiments, every_s
        self._event: bytes | None = None
        self._next = asyncio.Event()
        self._wanted = asyncio.Event()
        self._closed = False
        self._once_a_minute = OnceAMinute()
        self.n_clients = 0

    async def run(self) -> None:
        """Poll while anybody listens, until cancelled."""
        while True:
            await self._wanted.wait()
            self._publish(await self._poll())
            await asyncio.sleep(self._every_s)

    def close(self) -> None:
        """Every stream ends."""
        self._closed = True
        self._next.set()

    def stream(self) -> AsyncIterator[bytes]:
        """The events for one client.

        Raises:
            TooManyClientsError: where `MOST_CLIENTS` listen already.
        """
        if self.n_clients >= MOST_CLIENTS:
            raise TooManyClientsError
        return self._stream()

    async def _stream(self) -> AsyncIterator[bytes]:
        self.n_clients += 1
        self._wanted.set()
        seen = self._event  # of a poll that may be long ago: the next one is awaited
        try:
            yield b"retry: 3000\n\n"
            while not self._closed:
                following = self._next
                if self._event is not seen and self._event is not None:
                    seen = self._event
                    yield seen
                    continue
                try:
                    async with asyncio.timeout(BEAT_S):
                        await following.wait()
                except TimeoutError:
                    yield b": still here\n\n"
        finally:
            self.n_clients -= 1
            if not self.n_clients:
                self._wanted.clear()

    async def _poll(self) -> bytes:
        states = await asyncio.gather(
            *(asyncio.to_thread(_state, one) for one in self._experiments), return_exceptions=True
        )
        found: dict[str, object] = {}
        for one, state in zip(self._experiments, states, strict=True):
            if isinstance(state, BaseException):  # the others' counters go on
                if self._once_a_minute.is_due(one.key):
                    logger.error("%s cannot be read", one.name, exc_info=state)
            else:
                found[one.key] = state
        at = f"{datetime.now(UTC):%H:%M:%S} UTC"
        return b"event: counters\ndata: " + msgspec.json.encode({"at": at, "experiments": found}) + b"\n\n"

    def _publish(self, event: bytes) -> None:
        self._event = event
        before, self._next = self._next, asyncio.Event()
        before.set()


def _state(experiment: Experiment) -> dict[str, object]:
    counters, _ = experiment.counters()
    return {"version": experiment.version(), "texts": live_texts(counters)}


@contextlib.asynccontextmanager
async def polling(live: Live) -> AsyncIterator[None]:
    """Within it the collectors are polled for those who listen."""
    task = asyncio.create_task(live.run())
    try:
        yield
    finally:
        live.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
