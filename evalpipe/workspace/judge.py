"""`evalpipe judge`: the plan from the store, the calls one by one or in batches, the journal back into the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Protocol, TypeVar

from evalpipe.analysis.analyze import Conclusion, Measurements, conclude, measure, summarized, with_preferences
from evalpipe.analysis.record import ExperimentRecord, JudgedUntil, take_look
from evalpipe.analysis.settings import CORRECTED
from evalpipe.calls.batch_client import open_batch_client
from evalpipe.calls.batches import OPEN, intents
from evalpipe.calls.client import address_of, api_key, open_client, shown_params
from evalpipe.calls.journal import Journal, answer_bytes, compact, judging_lock, one_line_if_full
from evalpipe.calls.runner import Progress, SystemClock
from evalpipe.errors import BudgetError, ConfigError, DataError
from evalpipe.judging.batches import BatchRun, Item
from evalpipe.judging.costs import CostEstimate, estimate
from evalpipe.judging.judgments import message_of
from evalpipe.judging.plan import calls_for, pages
from evalpipe.judging.runner import JudgeRun, Runner, RunSummary
from evalpipe.judging.spec import JudgeSpec, judge_names
from evalpipe.judging.stopping import EarlyStopper, LookResult, planned_pairs
from evalpipe.stats.betting import SIGMA2_BOTH_ORDERS, SIGMA2_ONE_ORDER
from evalpipe.store.load import rejected_folder
from evalpipe.store.parsing import rare_collections
from evalpipe.store.query import Selection, Store, open_store, readable
from evalpipe.text import within_sentence
from evalpipe.workspace.analyze import mode_of, planned_record, settings_of
from evalpipe.workspace.call_runs import MAX_ROUNDS, make_calls, price_of, raise_if_ended, rotation, run_batches
from evalpipe.workspace.damaged import refuse_damaged
from evalpipe.workspace.judge_setup import (
    JudgeOptions,
    account_of,
    batches_folder,
    budget_limit,
    budget_of,
    build_plan,
    held_by_batches,
    journal_folder,
    judge_settings,
    limiter_of,
    load_specs,
    note_limit,
    other_models,
    recover,
    summary_of,
)
from evalpipe.workspace.judge_setup import judge_settings as judge_settings_of
from evalpipe.workspace.paths import Workspace, check_writable, has_record, loaded_experiment
from evalpipe.workspace.record import excluding, load_record, recording, save_record

JudgeBy = Callable[[Workspace, Store, JudgeSpec, JudgeOptions], RunSummary]
"""How one judge does its work: call by call, or in batches."""


class OpenRun(Protocol):
    """Where the calls of a run are made: the run of a judge, ready to be started, until the block is left."""

    def __call__(self, workspace: Workspace, spec: JudgeSpec, **parts: Any) -> AbstractAsyncContextManager[JudgeRun]:
        """`parts`: the fields of a `JudgeRun` but `spec`."""
        ...


# Judging call by call: the runner over the plan of one judge, its journal into the store, Ctrl-C.


@asynccontextmanager
async def _run_here(workspace: Workspace, spec: JudgeSpec, **parts: Any) -> AsyncIterator[JudgeRun]:
    """A run that makes its calls from this process."""
    client = open_client(spec, concurrency=parts["concurrency"])
    try:
        yield Runner(spec=spec, client=client, **parts)
    finally:
        await client.close()


def judge_online(
    workspace: Workspace, store: Store, spec: JudgeSpec, options: JudgeOptions, *, opened: OpenRun = _run_here
) -> RunSummary:
    """Ask the provider call by call."""
    config = judge_settings(workspace)
    price = price_of(workspace, spec)
    budget = budget_of(store, spec, budget_limit(workspace, options), price, per_day=config.max_usd_per_day)
    budget.held = held_by_batches(workspace, store, spec)
    plan = build_plan(workspace, store, spec, limit=options.limit, keep_order=options.until_decided)
    summary = summary_of(spec, plan)
    if not plan.n_calls:
        note_limit(summary, workspace, store, spec, options.limit)
        return summary
    decider, rules, decided = None, None, None
    if options.until_decided:
        decider, rules = decider_of(workspace, store, spec)
        decided = decider.start()
        if decided:
            summary.stopped, summary.message = "decided", f"{decided}; no call was needed"
            note_looks(workspace, store.experiment or "", spec, decider, rules, decided)
            return summary
    clock = SystemClock()
    folder = journal_folder(workspace, store.experiment or "")
    limiter = limiter_of(config, clock)
    journal = Journal(folder, answer_bytes=answer_bytes(spec.max_tokens))
    progress = Progress(summary, [limiter], budget, shown=options.show_progress)

    async def run() -> None:
        async with opened(
            workspace,
            spec,
            limiter=limiter,
            budget=budget,
            cost_of=price,
            journal=journal,
            clock=clock,
            summary=summary,
            concurrency=config.concurrency,
            show=progress,
            max_attempts=config.max_attempts,
            other_models=other_models(store, spec),
            announce=progress.write,
            watch=decider.watch if decider else lambda ask, judgment: None,
        ) as runner:
            rejected = rejected_folder(workspace.data)
            runner.rotate = rotation(
                workspace.data,
                journal,
                runner,
                lambda path, in_flight: compact(
                    folder, store.write_judgments, rejected=rejected, keep=path, in_flight=in_flight
                ),
            )
            await make_calls(runner, pages(store.connection, spec, plan), journal)

    try:
        with rare_collections():
            asyncio.run(run())
    finally:
        journal.close()
        progress.close()
        if decider is not None and rules is not None:
            if summary.stopped == "decided":
                decided = summary.message if summary.n_ended < summary.n_planned else None
                spent = "" if summary.spent_usd is None else f" and ${summary.spent_usd:,.4f}"
                summary.message = f"{summary.message}; {summary.n_calls:,} calls{spent} in this run"
            note_looks(workspace, store.experiment or "", spec, decider, rules, decided)
    raise_if_ended(workspace.data, summary, spec, lambda: recover(workspace, store.experiment or ""))
    return summary


def judge(workspace: Workspace, options: JudgeOptions, *, by: JudgeBy = judge_online) -> list[RunSummary]:
    """Judge what is unanswered, judge after judge, call by call, or by `by`. Raises EvalpipeError; a run that was
    stopped early has its reason in its summary."""
    name = loaded_experiment(workspace, options.experiment)
    specs = load_specs(workspace, options.judges)
    check_writable(workspace.data)
    for spec in specs:
        api_key(spec)  # a missing key is reported before the first call of the first judge
    summaries = []
    with one_line_if_full(workspace.data), judging_lock(journal_folder(workspace, name)):
        refuse_damaged(workspace.data, name, "judgments")
        recover(workspace, name)
        for spec in specs:
            with open_store(
                workspace.data, name, selection=readable(workspace.data, name, options.selection), compared=True
            ) as store:
                summaries.append(by(workspace, store, spec, options))
                compact(
                    journal_folder(workspace, name), store.write_judgments, rejected=rejected_folder(workspace.data)
                )
            with open_store(workspace.data, name) as store:
                summaries[-1].account = account_of(store, spec, price_of(workspace, spec))
            _check_budget(summaries[-1], spec)
            if summaries[-1].stopped is None and options.limit is None and options.selection.is_whole:
                _all_judged(workspace, name, spec)
            if summaries[-1].stopped in ("interrupted", "refused"):
                break
    return summaries


def _all_judged(workspace: Workspace, experiment: str, spec: JudgeSpec) -> None:
    """Nothing of the log is left to this judge: a stop of before is over."""
    if not has_record(workspace.data, experiment):
        return

    forget_stop(workspace, experiment, spec.fingerprint)


def _check_budget(summary: RunSummary, spec: JudgeSpec) -> None:
    """Raise BudgetError where the cap was too small from the first call on: no run under it can ever do anything."""
    if (
        summary.stopped == "budget"
        and not summary.n_calls
        and summary.account is not None
        and not summary.account.cap_usd
    ):
        raise BudgetError(
            f"judge {spec.name!r}: nothing was asked: {summary.message}; raise --max-usd ([judge] max_usd)"
        )


def estimate_judging(workspace: Workspace, options: JudgeOptions) -> list[CostEstimate]:
    """What judging would use, without a call."""
    found = []
    name = loaded_experiment(workspace, options.experiment)
    for spec in load_specs(workspace, options.judges):
        with open_store(
            workspace.data, name, selection=readable(workspace.data, name, options.selection), compared=True
        ) as store:
            plan = build_plan(workspace, store, spec, limit=options.limit)
            asks = pages(store.connection, spec, plan)
            prices = price_of(workspace, spec), price_of(workspace, spec, batch=True)
            found.append(estimate(spec, plan, asks, *prices, warning=_family_warning(workspace, store, spec)))
    return found


def _family_warning(workspace: Workspace, store: Store, spec: JudgeSpec) -> str | None:
    """What the report will warn of, while nothing is paid yet: a judge that is of one arm's own kind."""
    from evalpipe.analysis.checks.judge import OTHER_FAMILY, family_overlap, models_of_arms

    status, detail = family_overlap(spec.model, models_of_arms(store.connection, store.experiment or ""))
    return f"{detail}; {OTHER_FAMILY}" if status == "warn" else None


def list_judges(workspace: Workspace) -> list[dict[str, Any]]:
    """Every judge that can be named, with its fingerprint."""
    configured = judge_settings(workspace).name
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
        for spec in load_specs(workspace, judge_names(workspace.judge_folders()))
    ]


def show_prompts(workspace: Workspace, request_id: str, options: JudgeOptions) -> list[dict[str, Any]]:
    """Exactly what would be sent for one request, but for the nonce, which is drawn anew for every call."""
    shown = []
    with open_store(workspace.data, loaded_experiment(workspace, options.experiment), compared=True) as store:
        for spec in load_specs(workspace, options.judges):
            asks = [ask for ask in calls_for(store.connection, spec, [request_id]) if not ask.repeat]
            if not asks:
                raise DataError(
                    f"no request {request_id!r} with answers that {spec.name} could judge; "
                    '`evalpipe sql "select request_id from pairs"` lists those there are'
                )
            for ask in asks:
                message = message_of(ask, spec, SystemClock().nonce())
                seen = {"judge": spec.name, "shown_first": ask.shown_first.value, "arm": ask.arm and ask.arm.value}
                shown.append({**seen, "sent": shown_params(spec, [("user", message.text)])})
    return shown


# `evalpipe judge --until-decided`: the decision's rules at each look, and what the experiment's record keeps of a run.


WIN_RATE = "win_rate"
JUDGING_OPEN = frozenset({"collect_more", "unmeasured"})
"""rules that ask for more data"""


class Rules:
    """The decision's rules over everything that was measured before the run, with the win rate of the present verdicts."""

    def __init__(self, found: Measurements, *, sigma2: float) -> None:
        """Args:
        found: the measurements at the beginning of the run.
        sigma2: planned variance of a user's preference.
        """
        self._found, self._sigma2 = found, sigma2
        self.last: tuple[Measurements, Conclusion] | None = None

    def __call__(self, preferences: Sequence[float], n_pairs: int) -> LookResult:
        found = with_preferences(self._found, preferences, n_pairs, sigma2=self._sigma2)
        concluded = conclude(found)
        self.last = found, concluded
        decision = concluded.decision
        return LookResult(
            stop=decision.rule not in JUDGING_OPEN,
            reason=decision.headline.rstrip(".") if decision.rule not in JUDGING_OPEN else _no_change(concluded),
            win_rate_blocks=not {WIN_RATE, CORRECTED}.isdisjoint(decision.blocking),
            recommendation=decision.recommendation,
            rule=decision.rule,
        )


def _no_change(concluded: Conclusion) -> str:
    """Why verdicts are of no more use although the decision is open: what it waits for is not the judge's."""
    open_ = [within_sentence(concluded.results[name].label) for name in concluded.decision.blocking]
    missing = f"; not settled: {', '.join(open_)}" if open_ else ""
    return f"more judging would not change the decision{missing}"


def decider_of(workspace: Workspace, store: Store, spec: JudgeSpec) -> tuple[EarlyStopper, Rules]:
    """The pairs and the rules of a run. Call after a plan made with `keep_order`.

    Raises:
        ConfigError: for a judge that names no winner.
    """
    if spec.mode != "pairwise":
        raise ConfigError(f"--until-decided needs a judge that names a winner; {spec.name!r} is {spec.mode}")
    name = store.experiment or ""
    record = _note(workspace, name, JudgedUntil(judge=spec.name, at=_now()), spec.fingerprint)
    both = judge_settings_of(workspace).orders == "both"
    rules = Rules(_measured(workspace, name, spec, record), sigma2=SIGMA2_BOTH_ORDERS if both else SIGMA2_ONE_ORDER)
    return EarlyStopper(rules, planned_pairs(store.connection, spec.fingerprint), both_orders=both), rules


def note_looks(
    workspace: Workspace, experiment: str, spec: JudgeSpec, decider: EarlyStopper, rules: Rules, stop: str | None
) -> None:
    """Keep what a run did: its looks, the decision it reached, and (`stop`) why it ended before the log was judged.

    The looks of the judge that decides are the experiment's; those of another one are not, as a report of another judge is none.
    """
    n_new = sum(look.is_new for look in decider.looks)
    decides = _decides(workspace, spec)
    entry = JudgedUntil(judge=spec.name, at=_now(), n_units=len(decider.preferences), conclusion=stop)
    reached = rules.last if decides and stop is not None else None
    n_looks = max(0, n_new - (reached is not None)) if decides else 0
    _note(workspace, experiment, entry, spec.fingerprint, n_looks=n_looks, reached=reached)


def forget_stop(workspace: Workspace, experiment: str, fingerprint: str) -> None:
    """Everything is judged after all: where a judge stopped once is of no interest any more."""
    with recording(workspace.data, experiment):
        record = load_record(workspace.data, experiment)
        stop = record.judged_until.get(fingerprint) if record else None
        if record and stop and stop.conclusion is not None:
            kept = {**record.judged_until, fingerprint: replace(stop, conclusion=None)}
            save_record(workspace.data, replace(record, judged_until=kept))


def _decides(workspace: Workspace, spec: JudgeSpec) -> bool:
    """Whether a report without `--judge` reads this judge."""
    configured = workspace.config.judge.name if workspace.config else ()
    return not configured or spec.name == configured[0]


def _measured(workspace: Workspace, name: str, spec: JudgeSpec, record: ExperimentRecord) -> Measurements:
    settings = settings_of(workspace, judge=None if _decides(workspace, spec) else spec.name)
    settings = replace(settings, n_star=record.n_star, exclusions=tuple(record.exclusions))
    with open_store(workspace.data, name, selection=excluding(Selection(), record), compared=True) as store:
        return measure(
            store.connection,
            experiment=name,
            mode=mode_of(workspace.config),
            settings=settings,
            now=datetime.now(UTC),
            record=record,
        )


def _note(
    workspace: Workspace,
    experiment: str,
    entry: JudgedUntil,
    fingerprint: str,
    *,
    n_looks: int = 0,
    reached: tuple[Measurements, Conclusion] | None = None,
) -> ExperimentRecord:
    with recording(workspace.data, experiment):
        mode, settings = mode_of(workspace.config), settings_of(workspace)
        record = planned_record(workspace, experiment, mode, settings, datetime.now(UTC))
        record = replace(
            record,
            n_looks=record.n_looks + n_looks,
            last_look_at=_now() if n_looks else record.last_look_at,
            judged_until={**record.judged_until, fingerprint: entry},
        )
        if reached is not None:
            found, concluded = reached
            settings = replace(settings, exclusions=tuple(record.exclusions))
            data = f"judging {fingerprint} {entry.n_units}"
            now = replace(found, now=datetime.now(UTC))
            _, record = take_look(summarized(now, concluded), record, mode=mode, settings=settings, data=data)
        save_record(workspace.data, record)
    return record


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# `evalpipe judge --batch`: submit, wait, collect; show and cancel what is open.


_Result = TypeVar("_Result")


def judge_by_batches(workspace: Workspace, store: Store, spec: JudgeSpec, options: JudgeOptions) -> RunSummary:
    """Collect what is open, then submit what is unanswered and wait for it. Ctrl-C leaves batches running: the next run
    collects them."""
    summary = RunSummary(judge=spec.name, fingerprint=spec.fingerprint, address=address_of(spec), model=spec.model)
    experiment = store.experiment or ""
    for n_round in range(MAX_ROUNDS):
        selection = readable(workspace.data, experiment, options.selection)
        with open_store(workspace.data, experiment, selection=selection, compared=True) as fresh:
            waiting = [one for one in intents(batches_folder(workspace, experiment)) if one.state in OPEN]
            plan = build_plan(workspace, fresh, spec, limit=options.limit)
            summary.n_known = plan.n_done if n_round == 0 else summary.n_known
            summary.n_over_cap = plan.n_over_cap
            summary.n_given_up, summary.given_up = plan.n_given_up, list(plan.given_up)
            summary.unjudgeable = dict(plan.unjudgeable)
            if not plan.n_calls and not any(one.judge == spec.name for one in waiting):
                if not summary.n_planned:
                    note_limit(summary, workspace, fresh, spec, options.limit)
                break
            summary.n_planned = max(summary.n_planned, plan.n_calls + sum(one.n_items for one in waiting))

            async def work(run: BatchRun, fresh: Store = fresh, plan: Any = plan) -> None:
                await run.collect_open()
                if not run.interrupted.is_set() and plan.n_calls:
                    await run.submit(pages(fresh.connection, spec, plan))
                    await run.collect_open()

            before = summary.stopped
            _with_run(workspace, fresh, spec, options, summary, work)
        recover(workspace, experiment)
        if summary.stopped == "interrupted" or (summary.stopped == "budget" and before == "budget"):
            break
    return summary


def batch_statuses(workspace: Workspace, options: JudgeOptions) -> list[dict[str, Any]]:
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
            for intent, seen in await run.open_statuses()
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
        for spec in load_specs(workspace, options.judges):
            if any(one.state in OPEN and one.judge == spec.name for one in intents(batches_folder(workspace, name))):
                summary = RunSummary(judge=spec.name, fingerprint=spec.fingerprint)
                with open_store(workspace.data, name) as store:
                    found += _with_run(workspace, store, spec, options, summary, work)
    return found


def _with_run(
    workspace: Workspace,
    store: Store,
    spec: JudgeSpec,
    options: JudgeOptions,
    summary: RunSummary,
    work: Callable[[BatchRun], Awaitable[_Result]],
) -> _Result:
    experiment = store.experiment or ""
    config, clock = judge_settings(workspace), SystemClock()
    price = price_of(workspace, spec, batch=True)
    # A call that was lost was made at the full price: at the batch price half of what it can have cost would be free.
    limit, full_price = budget_limit(workspace, options), price_of(workspace, spec)
    budget = budget_of(store, spec, limit, price, account_price=full_price, per_day=config.max_usd_per_day)
    budget.held = held_by_batches(workspace, store, spec)
    limiter = limiter_of(config, clock)
    journal = Journal(journal_folder(workspace, experiment))
    progress = Progress(summary, [limiter], budget, shown=options.show_progress)

    def make() -> BatchRun:
        return BatchRun(
            owner=spec.name,
            spec=spec,
            fingerprint=spec.fingerprint,
            item_kind=Item,
            client=open_batch_client(spec),
            folder=batches_folder(workspace, experiment),
            journal=journal,
            clock=clock,
            summary=summary,
            budget=budget,
            cost_of=price,
            other_models=other_models(store, spec),
            show=progress,
        )

    return run_batches(make, work, journal=journal, progress=progress, summary=summary)
