"""`evalpipe judge --batch`: submit, wait, collect; show and cancel what is open."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from evalpipe.judging.batch_client import open_batch_client
from evalpipe.judging.batches import BatchRun
from evalpipe.judging.client import address_of
from evalpipe.judging.clock import SystemClock
from evalpipe.judging.intents import OPEN, intents
from evalpipe.judging.journal import Journal, judging_lock
from evalpipe.judging.plan import pages
from evalpipe.judging.progress import Progress
from evalpipe.judging.spec import JudgeSpec
from evalpipe.judging.tally import RunTally
from evalpipe.pipeline.judge_online import interruptible, keep_synced
from evalpipe.pipeline.judge_setup import (
    JudgeOptions,
    batches_folder,
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
    specs_of,
)
from evalpipe.pipeline.names import loaded_experiment
from evalpipe.pipeline.workspace import Workspace
from evalpipe.store.datasets import Store, open_store, readable

MAX_ROUNDS = 3
"""What a batch ends without, or cannot be read, is submitted again, at most so often in one run."""

_Result = TypeVar("_Result")


def judge_by_batches(workspace: Workspace, store: Store, spec: JudgeSpec, options: JudgeOptions) -> RunTally:
    """Collect what is open, then submit what is unanswered and wait for it. Ctrl-C leaves batches running: the next run
    collects them."""
    tally = RunTally(judge=spec.name, fingerprint=spec.fingerprint, address=address_of(spec), model=spec.model)
    experiment = store.experiment or ""
    for n_round in range(MAX_ROUNDS):
        selection = readable(workspace.data, experiment, options.selection)
        with open_store(workspace.data, experiment, selection=selection) as fresh:
            waiting = [one for one in intents(batches_folder(workspace, experiment)) if one.state in OPEN]
            plan = plan_of(workspace, fresh, spec, limit=options.limit)
            tally.n_known = plan.n_done if n_round == 0 else tally.n_known
            tally.n_over_cap = plan.n_over_cap
            tally.n_given_up, tally.given_up = plan.n_given_up, list(plan.given_up)
            tally.unjudgeable = dict(plan.unjudgeable)
            if not plan.n_calls and not any(one.judge == spec.name for one in waiting):
                if not tally.n_planned:
                    note_limit(tally, workspace, fresh, spec, options.limit)
                break
            tally.n_planned = max(tally.n_planned, plan.n_calls + sum(one.n_items for one in waiting))

            async def work(run: BatchRun, fresh: Store = fresh, plan: Any = plan) -> None:
                await run.collect_open()
                if not run.interrupted.is_set() and plan.n_calls:
                    await run.submit(pages(fresh.connection, spec, plan))
                    await run.collect_open()

            before = tally.stopped
            _with_run(workspace, fresh, spec, options, tally, work)
        recover(workspace, experiment)
        if tally.stopped == "interrupted" or (tally.stopped == "budget" and before == "budget"):
            break
    return tally


def see_batches(workspace: Workspace, options: JudgeOptions) -> list[dict[str, Any]]:
    """The open batches, as their providers see them."""

    async def see(run: BatchRun) -> list[dict[str, Any]]:
        return [
            {
                "batch": intent.name,
                "batch_id": intent.batch_id,
                "judge": intent.judge,
                "requests": intent.n_items,
                "submitted_at": intent.created_at.isoformat(),
                "state": seen.state if seen else "not known to have arrived",
                "counts": seen.counts if seen else {},
            }
            for intent, seen in await run.see_open()
        ]

    return _each_judge(workspace, options, see)


def cancel_batches(workspace: Workspace, options: JudgeOptions) -> list[dict[str, Any]]:
    """Cancel the open batches; what was done is collected by the next run."""

    async def cancel(run: BatchRun) -> list[dict[str, Any]]:
        return [
            {"batch": one.name, "batch_id": one.batch_id, "judge": one.judge, "state": "cancelling"}
            for one in await run.cancel_open()
        ]

    return _each_judge(workspace, options, cancel)


def _each_judge(
    workspace: Workspace, options: JudgeOptions, work: Callable[[BatchRun], Awaitable[list[dict[str, Any]]]]
) -> list[dict[str, Any]]:
    name = loaded_experiment(workspace, options.experiment)
    found: list[dict[str, Any]] = []
    with judging_lock(journal_folder(workspace, name)):
        for spec in specs_of(workspace, options.judges):
            if any(one.state in OPEN and one.judge == spec.name for one in intents(batches_folder(workspace, name))):
                tally = RunTally(judge=spec.name, fingerprint=spec.fingerprint)
                with open_store(workspace.data, name) as store:
                    found += _with_run(workspace, store, spec, options, tally, work)
    return found


def _with_run(
    workspace: Workspace,
    store: Store,
    spec: JudgeSpec,
    options: JudgeOptions,
    tally: RunTally,
    work: Callable[[BatchRun], Awaitable[_Result]],
) -> _Result:
    experiment = store.experiment or ""
    config, clock = settings_of(workspace), SystemClock()
    price = price_of(workspace, spec, batch=True)
    budget = budget_of(store, spec, cap_of(workspace, options), price)
    budget.held = held_by_batches(workspace, experiment, spec)
    limiter = limiter_of(config, clock)
    journal = Journal(journal_folder(workspace, experiment))
    progress = Progress(tally, limiter, budget, shown=options.show_progress)

    async def run() -> _Result:
        batches = BatchRun(
            spec=spec,
            client=open_batch_client(spec),
            folder=batches_folder(workspace, experiment),
            journal=journal,
            clock=clock,
            tally=tally,
            budget=budget,
            cost_of=price,
            other_models=other_models(store, spec),
            show=progress,
        )

        def interrupt(reason: str, _message: str) -> None:
            tally.stopped, tally.message = reason, "open batches go on; run it again to collect them"
            batches.interrupted.set()

        syncing = asyncio.create_task(keep_synced(journal))
        task = asyncio.current_task()
        assert task is not None
        try:
            with interruptible(interrupt, task.cancel, "leaving the open batches to go on without us"):
                return await work(batches)
        finally:
            syncing.cancel()
            await batches.client.close()

    try:
        return asyncio.run(run())
    finally:
        journal.close()
        progress.close()
