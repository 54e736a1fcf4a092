"""`evalpipe judge`: the plan from the store, the runner over it, the journal back into the store."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from evalpipe.config import JudgeConfig
from evalpipe.errors import BudgetError, DataError, UpstreamError
from evalpipe.judging.budget import Budget, CostOf
from evalpipe.judging.client import api_key, open_client
from evalpipe.judging.clock import SystemClock
from evalpipe.judging.estimate import CostEstimate, estimate
from evalpipe.judging.intents import OPEN, intents, pending
from evalpipe.judging.journal import Journal, compact, judging_lock
from evalpipe.judging.limiter import Limiter
from evalpipe.judging.note import MOST
from evalpipe.judging.plan import Plan, asks_of, make_plan, pages
from evalpipe.judging.progress import Progress
from evalpipe.judging.record import message_of
from evalpipe.judging.runner import Runner
from evalpipe.judging.spec import JudgeSpec, judge_names, load_judge
from evalpipe.judging.tally import RunTally
from evalpipe.judging.wire import shown_params
from evalpipe.pipeline.analyze import experiment_name
from evalpipe.pipeline.judge_deciding import decider_of
from evalpipe.pipeline.load import check_writable
from evalpipe.pipeline.prices import price_book
from evalpipe.pipeline.workspace import Workspace
from evalpipe.providers.base import Usage
from evalpipe.providers.pricing import cost_of
from evalpipe.store.datasets import Store, open_store
from evalpipe.store.selection import Selection

ROTATE_AFTER_LINES = 10_000
"""The journal goes into the store every so many lines, so that reports see a long run and a restart is quick."""
_SYNC_EVERY_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeOptions:
    """What the command line says; None where the configuration decides."""

    judges: Sequence[str] = ()
    limit: int | None = None
    max_usd: float | None = None
    until_decided: bool = False
    selection: Selection = field(default_factory=Selection)
    experiment: str | None = None
    show_progress: bool | None = None


JudgeBy = Callable[[Workspace, Store, JudgeSpec, JudgeOptions], RunTally]
"""How one judge does its work: call by call, or in batches."""


def judge(workspace: Workspace, options: JudgeOptions, *, by: JudgeBy | None = None) -> list[RunTally]:
    """Judge what is unanswered, judge after judge, call by call unless `by` says how. Raises EvalpipeError; a run that was
    stopped early says so in its tally."""
    by = by or judge_online
    specs = specs_of(workspace, options.judges)
    name = experiment_name(workspace, options.experiment)
    check_writable(workspace.data)
    for spec in specs:
        api_key(spec)  # a missing key is told before the first call of the first judge
    tallies = []
    with judging_lock(journal_folder(workspace, name)):
        recover(workspace, name)
        for spec in specs:
            with open_store(workspace.data, name, selection=options.selection) as store:
                tallies.append(by(workspace, store, spec, options))
            recover(workspace, name)
            if tallies[-1].stopped in ("interrupted", "refused"):
                break
    return tallies


def recover(workspace: Workspace, experiment: str) -> int:
    """Put what journals hold into the store: at the end of a run, and before the next where one was killed."""
    with open_store(workspace.data, experiment) as store:
        return compact(journal_folder(workspace, experiment), store.write_judgments)


def estimate_judging(workspace: Workspace, options: JudgeOptions) -> list[CostEstimate]:
    """What judging would use, without a call."""
    found = []
    name = experiment_name(workspace, options.experiment)
    for spec in specs_of(workspace, options.judges):
        with open_store(workspace.data, name, selection=options.selection) as store:
            plan = plan_of(workspace, store, spec, limit=options.limit)
            asks = pages(store.connection, spec, plan)
            found.append(estimate(spec, plan, asks, price_of(workspace, spec), price_of(workspace, spec, batch=True)))
    return found


def list_judges(workspace: Workspace) -> list[dict[str, Any]]:
    """Every judge that can be named, with its fingerprint."""
    configured = settings_of(workspace).name
    return [
        {
            "name": spec.name,
            "fingerprint": spec.fingerprint,
            "mode": spec.mode.value,
            "provider": spec.provider,
            "model": spec.model,
            "template": spec.template,
            "dimensions": list(spec.dimensions),
            "configured": spec.name in configured,
        }
        for spec in specs_of(workspace, judge_names(workspace.judge_folders()))
    ]


def show_prompts(workspace: Workspace, request_id: str, options: JudgeOptions) -> list[dict[str, Any]]:
    """Exactly what would be sent for one request, but for the nonce, which is drawn anew for every call."""
    shown = []
    with open_store(workspace.data, experiment_name(workspace, options.experiment)) as store:
        for spec in specs_of(workspace, options.judges):
            asks = [ask for ask in asks_of(store.connection, spec, [request_id]) if not ask.repeat]
            if not asks:
                raise DataError(f"no request {request_id!r} with answers that {spec.name} could judge")
            for ask in asks:
                message = message_of(ask, spec, SystemClock().nonce())
                seen = {"judge": spec.name, "shown_first": ask.shown_first.value, "arm": ask.arm and ask.arm.value}
                shown.append({**seen, "sent": shown_params(spec, [("user", message.text)])})
    return shown


def specs_of(workspace: Workspace, names: Sequence[str] = ()) -> list[JudgeSpec]:
    """The judges asked for, else the configured ones; the configuration's model, address and key go before the file's."""
    config = settings_of(workspace)
    return [
        load_judge(
            name,
            workspace.judge_folders(),
            workspace.prompt_folders(),
            model=config.model,
            base_url=config.base_url,
            api_key_env=config.api_key_env,
        )
        for name in dict.fromkeys(names or config.name)
    ]


def settings_of(workspace: Workspace) -> JudgeConfig:
    return workspace.config.judge if workspace.config else JudgeConfig()


def journal_folder(workspace: Workspace, experiment: str) -> Path:
    return workspace.data / "judgments" / f"experiment={experiment}"


def batches_folder(workspace: Workspace, experiment: str) -> Path:
    return journal_folder(workspace, experiment) / "batches"


def plan_of(workspace: Workspace, store: Store, spec: JudgeSpec, *, limit: int | None, by_user: bool = False) -> Plan:
    """The plan of one judge over the open store. Raises DataError where there is nothing it could judge at all."""
    config = settings_of(workspace)
    experiment = store.experiment or ""
    seed = workspace.config.experiment.effective_salt if workspace.config else experiment
    waiting = pending(batches_folder(workspace, experiment), spec.fingerprint)
    plan = make_plan(
        store.connection, spec, orders=config.orders, seed=seed, limit=limit, by_user=by_user, pending=waiting
    )
    if not plan.n_eligible:
        what = "pair both arms answered" if spec.mode == "pairwise" else "answer"
        hint = " (a log with one answer per request needs a pointwise judge)" if spec.mode == "pairwise" else ""
        raise DataError(f"{store.experiment}: no {what} to judge{hint}; load a log first with `evalpipe load`")
    return plan


def price_of(workspace: Workspace, spec: JudgeSpec, *, batch: bool = False) -> CostOf:
    """Usage → USD for this judge, by the configuration's prices, else the library's."""
    prices = price_book(workspace.config)

    def price(usage: Usage) -> float | None:
        at = datetime.now(UTC)
        cost = cost_of(usage, model=spec.model, provider=spec.provider, at=at, prices=prices, batch=batch)
        return None if cost is None else cost.usd

    return price


def held_by_batches(workspace: Workspace, experiment: str, spec: JudgeSpec) -> float:
    """USD that open batches of this judge can still cost."""
    found = intents(batches_folder(workspace, experiment))
    return sum(one.at_most_usd or 0.0 for one in found if one.state in OPEN and one.judge == spec.name)


def cap_of(workspace: Workspace, options: JudgeOptions) -> float | None:
    return options.max_usd if options.max_usd is not None else settings_of(workspace).max_usd


def budget_of(store: Store, spec: JudgeSpec, cap: float | None, price: CostOf) -> Budget:
    """The cap, and what was spent under it by this judge in this experiment before. Raises BudgetError where a cap is set
    and the price is not known."""
    if cap is not None and price(Usage(input_tokens=1, output_tokens=1)) is None:
        raise BudgetError(
            f"the price of {spec.model!r} is not known, so ${cap:g} cannot be kept: add "
            f'[prices."{spec.model}"] input = …, output = … (USD per million tokens) to evalpipe.toml'
        )
    row = store.connection.execute(
        f"SELECT coalesce(sum(coalesce(json_extract(note, '$.{MOST}')::DOUBLE, cost_usd)), 0) FROM judgments WHERE judge = $1",
        [spec.name],
    ).fetchall()[0]
    return Budget(cap=cap, spent=float(row[0]))


def judge_online(workspace: Workspace, store: Store, spec: JudgeSpec, options: JudgeOptions) -> RunTally:
    """Ask the provider call by call."""
    config = settings_of(workspace)
    price = price_of(workspace, spec)
    budget = budget_of(store, spec, cap_of(workspace, options), price)
    budget.held = held_by_batches(workspace, store.experiment or "", spec)
    plan = plan_of(workspace, store, spec, limit=options.limit, by_user=options.until_decided)
    tally = RunTally(judge=spec.name, fingerprint=spec.fingerprint, n_planned=plan.n_calls, n_known=plan.n_done)
    decider = decider_of(workspace, store, spec) if options.until_decided else None
    decided = decider.start() if decider else None
    if decided:
        tally.stopped, tally.message = "decided", decided
    if not plan.n_calls or decided:
        return tally
    clock = SystemClock()
    folder = journal_folder(workspace, store.experiment or "")
    limiter = limiter_of(config, clock)
    journal = Journal(folder)
    progress = Progress(tally, limiter, budget, shown=options.show_progress)

    async def rotate() -> None:
        if journal.n_lines >= ROTATE_AFTER_LINES:
            in_flight = journal.rotate()
            await asyncio.to_thread(compact, folder, store.write_judgments, keep=journal.path, in_flight=in_flight)

    async def run() -> None:
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
            watch=decider.watch if decider else lambda ask, judgment: None,
        )
        syncing = asyncio.create_task(keep_synced(journal))
        try:
            with interruptible(runner.stop, runner.stop_now):
                await runner.run(pages(store.connection, spec, plan))
        finally:
            syncing.cancel()
            await runner.client.close()

    try:
        asyncio.run(run())
    finally:
        journal.close()
        progress.close()
    if tally.stopped == "refused":
        recover(workspace, store.experiment or "")
        raise UpstreamError(f"judge {spec.name!r}: {spec.provider} refuses the work: {tally.message}")
    return tally


def limiter_of(config: JudgeConfig, clock: SystemClock) -> Limiter:
    return Limiter(
        requests_per_minute=config.requests_per_minute,
        input_tokens_per_minute=config.input_tokens_per_minute,
        output_tokens_per_minute=config.output_tokens_per_minute,
        now=clock.monotonic(),
    )


async def keep_synced(journal: Journal) -> None:
    while True:
        await asyncio.sleep(_SYNC_EVERY_S)
        await asyncio.to_thread(journal.sync)


class interruptible:  # noqa: N801  reads as a statement
    """The first Ctrl-C lets what is in flight finish, the second does not."""

    def __init__(self, first: Callable[[str, str], None], second: Callable[[], object]) -> None:
        self._first, self._second = first, second
        self._n = 0

    def __enter__(self) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._interrupted)

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)

    def _interrupted(self) -> None:
        self._n += 1
        if self._n == 1:
            self._first("interrupted", "finished what was in flight")
        else:
            self._second()
