"""What a run of paid calls needs of the workspace, a judge's or a replay's: prices, the journal's sync and rotation, Ctrl-C, and
the error in which a stopped run ends."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

from evalpipe.calls.batches import Batches
from evalpipe.calls.budget import CostOf
from evalpipe.calls.client import ENDS, ModelSettings
from evalpipe.calls.journal import CallJournal, NoRoomError, commit_calls, no_room, one_line_if_full
from evalpipe.calls.runner import CallRunner, Progress, RunCounts
from evalpipe.errors import BudgetError, EvalpipeError, UpstreamError
from evalpipe.objects.client import StorageError
from evalpipe.objects.shared import working_copy
from evalpipe.providers.base import Usage
from evalpipe.providers.pricing import Price, cost_of
from evalpipe.workspace.paths import Workspace, price_book

MAX_ROUNDS = 3
"""What a batch ends without, or cannot be read, is submitted again, at most so often in one run."""
ROTATE_AFTER_LINES = 10_000
"""The journal goes into the store every so many lines, so that reports see a long run and a restart is quick."""
_SYNC_EVERY_S = 1.0
SHARE_EVERY_S = 2.0
SHARE_AFTER_LINES = 200
"""seconds, and lines, after which a run's answers are committed to object storage"""

Planned = TypeVar("Planned")
Row = TypeVar("Row")
AnyBatches = TypeVar("AnyBatches", bound=Batches[Any, Any, Any])
Result = TypeVar("Result")


class PricedModel(Protocol):
    """The model that is asked, and its provider."""

    @property
    def provider(self) -> str: ...
    @property
    def model(self) -> str | None: ...


def price_of(workspace: Workspace, asked: PricedModel, *, batch: bool = False) -> CostOf:
    """Usage → USD for this judge or arm: at the price of the model that answered, else of the one asked."""
    return price_by(price_book(workspace.config), asked, batch=batch)


def price_by(prices: Mapping[str, Price], asked: PricedModel, *, batch: bool = False) -> CostOf:
    """`price_of` without a workspace. `prices`: those that go before the price library."""

    def price(usage: Usage, answered: str | None = None) -> float | None:
        cost = cost_of(
            usage,
            model=answered or asked.model,
            requested=asked.model,
            provider=asked.provider,
            at=datetime.now(UTC),
            prices=prices,
            batch=batch,
        )
        return None if cost is None else cost.usd

    return price


def check_cap(asked: ModelSettings, cap: float | None, price: CostOf) -> None:
    """Raises BudgetError where a cap is set and the price is not known."""
    if cap is not None and price(Usage(input_tokens=1, output_tokens=1)) is None:
        raise BudgetError(
            f"the price of {asked.model!r} is not known, so ${cap:g} cannot be kept: add "
            f'[prices."{asked.model}"] input = …, output = … (USD per million tokens) to evalpipe.toml'
        )


def rotation(
    data: Path,
    journal: CallJournal[Any],
    runner: CallRunner[Any, Any],
    store_others: Callable[[Path, frozenset[str]], object],
) -> Callable[[], Awaitable[None]]:
    """What a runner calls between pages: every `ROTATE_AFTER_LINES` a new journal is begun, and `store_others` puts the rows of
    all but that (its path, the ids in flight) into the store."""

    n_stored = 0

    async def rotate() -> None:
        nonlocal n_stored
        if journal.n_lines - n_stored < ROTATE_AFTER_LINES or runner.is_stopping():
            return
        n_stored = journal.n_lines
        try:
            async with journal.moving:
                in_flight = journal.rotate()
                with one_line_if_full(data):
                    await asyncio.to_thread(store_others, journal.path, in_flight)
        except NoRoomError as error:  # what is in flight has its reserved space: it is waited for
            runner.stop("disk", str(error))

    return rotate


async def make_calls(
    runner: CallRunner[Planned, Row], pages: Iterator[list[Planned]], journal: CallJournal[Row]
) -> None:
    """Run what is planned, the journal synced beside it; Ctrl-C finishes what is in flight."""
    syncing = asyncio.create_task(_keep_synced(journal))
    sharing = asyncio.create_task(_keep_shared(journal, runner.stop))
    try:
        with _graceful_interrupt(runner.stop, runner.stop_now, "finishing the calls in flight"):
            await runner.run(pages)
    finally:
        syncing.cancel()
        sharing.cancel()


def run_batches(
    make: Callable[[], AnyBatches],
    work: Callable[[AnyBatches], Awaitable[Result]],
    *,
    journal: CallJournal[Any],
    progress: Progress,
    summary: RunCounts[Any],
) -> Result:
    """Do `work` with the batches that `make` gives, and close the journal. Ctrl-C leaves open ones at their provider."""

    async def run() -> Result:
        batches = make()

        def interrupt(reason: str, _message: str) -> None:
            summary.stopped, summary.message = reason, "open batches go on; run it again to collect them"
            batches.interrupted.set()

        syncing = asyncio.create_task(_keep_synced(journal))
        task = asyncio.current_task()
        assert task is not None
        try:
            with _graceful_interrupt(interrupt, task.cancel, "leaving the open batches to go on without us"):
                return await work(batches)
        finally:
            syncing.cancel()
            await batches.client.close()

    try:
        return asyncio.run(run())
    finally:
        journal.close()
        progress.close()


def raise_if_ended(data: Path, summary: RunCounts[Any], asked: ModelSettings, recover: Callable[[], object]) -> None:
    """Raises NoRoomError or UpstreamError where the disk or the provider ended the run; `recover` stores what it did."""
    if summary.stopped == "disk":
        raise NoRoomError(summary.message or str(no_room(data)))
    if summary.stopped == "storage":
        raise StorageError(summary.message or "the object storage cannot be reached")
    if summary.stopped is not None and summary.stopped in ENDS:
        recover()
        raise UpstreamError(ENDS[summary.stopped](asked, summary.message or ""))


async def _keep_synced(journal: CallJournal[Any]) -> None:
    while True:
        await asyncio.sleep(_SYNC_EVERY_S)
        await asyncio.to_thread(journal.sync)


async def _keep_shared(journal: CallJournal[Any], stop: Callable[[str, str], None]) -> None:
    """Where the data are on object storage: commit what was answered every `SHARE_EVERY_S` or `SHARE_AFTER_LINES`, so that no
    more is lost with this machine. A storage that cannot be written, or a lost lease, ends the run."""
    if working_copy(journal.folder.parents[1]) is None:
        return
    n_before, since = journal.n_lines, time.monotonic()
    while True:
        await asyncio.sleep(SHARE_EVERY_S / 20)
        n_new = journal.n_lines - n_before
        if n_new < SHARE_AFTER_LINES and (not n_new or time.monotonic() - since < SHARE_EVERY_S):
            continue
        try:
            async with journal.moving:
                journal.rotate()  # a finished file is written once; the new one holds what is in flight
                n_before, since = journal.n_lines, time.monotonic()
                await asyncio.to_thread(commit_calls, journal.folder)
        except NoRoomError as error:
            stop("disk", str(error))
            return
        except EvalpipeError as error:
            stop("storage", f"{error}; every answer so far is kept here, and goes there with the next run")
            return


class _graceful_interrupt:  # noqa: N801  reads as a statement
    """The first Ctrl-C (or SIGTERM) lets what is in flight finish and prints `doing`; the second does not."""

    def __init__(self, first: Callable[[str, str], None], second: Callable[[], object], doing: str) -> None:
        self._first, self._second, self._doing = first, second, doing
        self._n = 0

    def __enter__(self) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._interrupted)

    def __exit__(self, *_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().remove_signal_handler(number)

    def _interrupted(self) -> None:
        self._n += 1
        if self._n == 1:
            self._first("interrupted", "finished what was in flight")
            tqdm.write(f"evalpipe: {self._doing}; Ctrl-C again to stop at once", file=sys.stderr)
        else:
            self._second()
