"""Judging call by call: the runner over the plan of one judge, its journal into the store, Ctrl-C."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable

from tqdm import tqdm

from evalpipe.errors import UpstreamError
from evalpipe.judging.client import ENDS, open_client
from evalpipe.judging.clock import SystemClock
from evalpipe.judging.journal import Journal, answer_bytes, compact
from evalpipe.judging.plan import pages
from evalpipe.judging.progress import Progress
from evalpipe.judging.room import NoRoomError, no_room, one_line_if_full
from evalpipe.judging.runner import Runner
from evalpipe.judging.spec import JudgeSpec
from evalpipe.judging.tally import RunTally
from evalpipe.pipeline.judge_setup import (
    JudgeOptions,
    budget_of,
    cap_of,
    held_by_batches,
    journal_folder,
    limiter_of,
    note_limit,
    other_models,
    plan_of,
    price_of,
    recover,
    settings_of,
    tally_of,
)
from evalpipe.pipeline.workspace import Workspace
from evalpipe.store.datasets import Store

ROTATE_AFTER_LINES = 10_000
"""The journal goes into the store every so many lines, so that reports see a long run and a restart is quick."""
_SYNC_EVERY_S = 1.0


def judge_online(workspace: Workspace, store: Store, spec: JudgeSpec, options: JudgeOptions) -> RunTally:
    """Ask the provider call by call."""
    config = settings_of(workspace)
    price = price_of(workspace, spec)
    budget = budget_of(store, spec, cap_of(workspace, options), price)
    budget.held = held_by_batches(workspace, store.experiment or "", spec)
    plan = plan_of(workspace, store, spec, limit=options.limit, keep_order=options.until_decided)
    tally = tally_of(spec, plan)
    if not plan.n_calls:
        note_limit(tally, workspace, store, spec, options.limit)
        return tally
    decider, rules, decided = None, None, None
    if options.until_decided:
        # SciPy is a second that other runs need not wait.
        from evalpipe.pipeline.judge_deciding import decider_of, note_looks

        decider, rules = decider_of(workspace, store, spec)
        decided = decider.start()
        if decided:
            tally.stopped, tally.message = "decided", f"{decided}; no call was needed"
            note_looks(workspace, store.experiment or "", spec, decider, rules, decided)
            return tally
    clock = SystemClock()
    folder = journal_folder(workspace, store.experiment or "")
    limiter = limiter_of(config, clock)
    journal = Journal(folder, answer_bytes=answer_bytes(spec.max_tokens))
    progress = Progress(tally, limiter, budget, shown=options.show_progress)

    runner: Runner

    async def rotate() -> None:
        if journal.n_lines >= ROTATE_AFTER_LINES and tally.stopped is None:
            try:
                in_flight = journal.rotate()
                with one_line_if_full(workspace.data):
                    await asyncio.to_thread(
                        compact, folder, store.write_judgments, keep=journal.path, in_flight=in_flight
                    )
            except NoRoomError as error:  # what is in flight has its room: it is waited for
                runner.stop("disk", str(error))

    async def run() -> None:
        nonlocal runner
        runner = Runner(
            spec=spec,
            client=open_client(spec, concurrency=config.concurrency),
            limiter=limiter,
            budget=budget,
            cost_of=price,
            journal=journal,
            clock=clock,
            tally=tally,
            concurrency=config.concurrency,
            show=progress,
            rotate=rotate,
            max_attempts=config.max_attempts,
            other_models=other_models(store, spec),
            announce=progress.write,
            watch=decider.watch if decider else lambda ask, judgment: None,
        )
        syncing = asyncio.create_task(keep_synced(journal))
        try:
            with interruptible(runner.stop, runner.stop_now, "finishing the calls in flight"):
                await runner.run(pages(store.connection, spec, plan))
        finally:
            syncing.cancel()
            await runner.client.close()

    try:
        asyncio.run(run())
    finally:
        journal.close()
        progress.close()
        if decider is not None and rules is not None:
            if tally.stopped == "decided":
                decided = tally.message if tally.n_ended < tally.n_planned else None
                spent = "" if tally.spent_usd is None else f" and ${tally.spent_usd:,.4f}"
                tally.message = f"{tally.message}; {tally.n_calls:,} calls{spent} in this run"
            note_looks(workspace, store.experiment or "", spec, decider, rules, decided)
    if tally.stopped == "disk":
        raise NoRoomError(tally.message or str(no_room(workspace.data)))
    if tally.stopped is not None and tally.stopped in ENDS:
        recover(workspace, store.experiment or "")
        raise UpstreamError(ENDS[tally.stopped](spec, tally.message or ""))
    return tally


async def keep_synced(journal: Journal) -> None:
    while True:
        await asyncio.sleep(_SYNC_EVERY_S)
        await asyncio.to_thread(journal.sync)


class interruptible:  # noqa: N801  reads as a statement
    """The first Ctrl-C lets what is in flight finish, and says so (`doing`); the second does not."""

    def __init__(self, first: Callable[[str, str], None], second: Callable[[], object], doing: str) -> None:
        self._first, self._second, self._doing = first, second, doing
        self._n = 0

    def __enter__(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._interrupted)

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)

    def _interrupted(self) -> None:
        self._n += 1
        if self._n == 1:
            self._first("interrupted", "finished what was in flight")
            tqdm.write(f"evalpipe: {self._doing}; Ctrl-C again to stop at once", file=sys.stderr)
        else:
            self._second()
