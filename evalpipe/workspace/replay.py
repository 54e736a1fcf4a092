"""`evalpipe replay`: logged requests to an arm, call by call or in batches, its answers into the store."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import msgspec

from evalpipe.analysis.turns import goal_turns, mark_first_turns
from evalpipe.calls.batch_client import open_batch_client
from evalpipe.calls.batches import OPEN, BatchState, intents, most_usd
from evalpipe.calls.budget import Budget, CostOf, TokenEstimator
from evalpipe.calls.client import is_local, remember_keys
from evalpipe.calls.journal import CallJournal, RowKind, compact_rows, one_line_if_full, running_lock
from evalpipe.calls.limiter import Limiter
from evalpipe.calls.runner import Progress, Route, SystemClock
from evalpipe.collector.settings import IN_PROCESS, ArmSettings
from evalpipe.config import ArmConfig, Config, ReplayConfig
from evalpipe.errors import BudgetError, ConfigError, DataError, EvalpipeError
from evalpipe.models import Arm, ReplayCall
from evalpipe.providers.base import ENDPOINTS
from evalpipe.providers.model_names import same_model
from evalpipe.providers.registry import PROVIDERS
from evalpipe.replay.http_client import HttpSender
from evalpipe.replay.plan import ReplayPlan, logged_requests, make_plan, pages
from evalpipe.replay.requests import LoggedRequest, ReplayArm
from evalpipe.replay.runner import Asked, ReplayBatches, ReplayItem, ReplayRun, ReplayRunner, of_one, pending
from evalpipe.replay.summary import ReplayEstimate, ReplaySummary, estimate
from evalpipe.store.exchange_rows import ReadingRules
from evalpipe.store.load import rejected_folder
from evalpipe.store.load_history import take_out_replays
from evalpipe.store.parsing import rare_collections
from evalpipe.store.query import Selection, Store, note_control_from, open_store, readable
from evalpipe.store.replays import ReplayAccount, account_of, folder_of, write_calls
from evalpipe.workspace.call_runs import (
    MAX_ROUNDS,
    check_cap,
    make_calls,
    price_of,
    raise_if_ended,
    rotation,
    run_batches,
)
from evalpipe.workspace.collect import arm_fingerprint, arm_settings
from evalpipe.workspace.paths import Workspace, check_writable, has_record, loaded_experiment, price_book
from evalpipe.workspace.record import excluding, load_record


class OpenRun(Protocol):
    """Where the calls of a replay are made: its run, ready to be started, until the block is left."""

    def __call__(
        self,
        workspace: Workspace,
        experiment: str,
        arms: Mapping[Arm, ReplayArm],
        routes: Mapping[Arm, Route],
        **parts: Any,
    ) -> AbstractAsyncContextManager[ReplayRun]:
        """`parts`: the fields of a `ReplayRun`."""
        ...


Output = Callable[[str], object]
Confirm = Callable[[str], bool]

ANSWER_BYTES = 1 << 17
"""Disk space for one response and its request; what is longer is kept without its raw text where the disk is full."""


def _shortened(row: ReplayCall) -> ReplayCall:
    exchange = row.exchange
    return replace(
        row,
        exchange=None
        if exchange is None
        else msgspec.structs.replace(exchange, response=None, request=None, meta=None),
    )


CALLS: RowKind[ReplayCall] = RowKind(type=ReplayCall, id_of=lambda row: row.call_id, shortened=_shortened)


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayOptions:
    """The options of the command line; None where the configuration decides."""

    users: int | None = None
    pairs_per_unit: int | None = None
    turns: str = "first"
    with_control: bool = False
    max_usd: float | None = None
    batch: bool = False
    retry_failed: bool = False
    selection: Selection = field(default_factory=Selection)
    experiment: str | None = None
    show_progress: bool | None = None


@asynccontextmanager
async def _run_here(
    workspace: Workspace, experiment: str, arms: Mapping[Arm, ReplayArm], routes: Mapping[Arm, Route], **parts: Any
) -> AsyncIterator[ReplayRun]:
    """A replay that makes its calls from this process."""
    senders = {
        arm: HttpSender(one.base_url or "", concurrency=parts["concurrency"], timeout_s=one.timeout_s)
        for arm, one in arms.items()
    }
    try:
        yield ReplayRunner(
            experiment=experiment,
            arms={arm: Asked(settings=one, sender=senders[arm], route=routes[arm]) for arm, one in arms.items()},
            rules=ReadingRules(prices=price_book(workspace.config)),
            **parts,
        )
    finally:
        for sender in senders.values():
            await sender.close()


def replay(
    workspace: Workspace,
    options: ReplayOptions,
    *,
    yes: bool,
    output: Output,
    confirm: Confirm | None,
    opened: OpenRun = _run_here,
) -> ReplaySummary:
    """Send what is not answered yet. Raises EvalpipeError; a run that was stopped early has its reason in its summary.

    Args:
        workspace: with the arms configured.
        options: those of the command line.
        yes: spend without asking.
        output: takes the lines of the estimate.
        confirm: asked before money is spent; None: there is no terminal.
        opened: where the calls are made.
    """
    name, arms = prepare(workspace, options)
    check_writable(workspace.data)
    with one_line_if_full(workspace.data), replaying(workspace.data, name):
        recover(workspace.data, name)
        if options.retry_failed:
            n = take_out_replays(workspace.data, name)
            output(f"{name}: {n:,} failed answers are asked for again")
        _check_fingerprints(workspace, name, arms)
        found = _estimate(workspace, name, arms, options)
        waiting = _open_batches(workspace.data, name)
        if not found.calls and not (options.batch and waiting):
            return _nothing(found, workspace, waiting)
        for line in estimate_lines(found, batch=options.batch):
            output(line)
        for arm in arms.values():
            check_cap(arm, _cap(workspace, options), price_of(workspace, arm))
        if found.calls and not yes:
            _agree(found, options, confirm)
        by = _by_batches if options.batch else partial(_online, opened=opened)
        summary = by(workspace, name, arms, options, found)
        recover(workspace.data, name)
        summary.account = _account(workspace, name)
    if summary.stopped == "budget" and not summary.n_calls and not summary.account.cap_usd:
        raise BudgetError(f"replay: nothing was sent: {summary.message}; raise --max-usd ([replay] max_usd)")
    return summary


def estimate_replay(workspace: Workspace, options: ReplayOptions) -> ReplayEstimate:
    """What a replay would use, without a call."""
    name, arms = prepare(workspace, options)
    if folder_of(workspace.data, name).is_dir():
        with replaying(workspace.data, name):
            recover(workspace.data, name)
    return _estimate(workspace, name, arms, options)


def prepare(workspace: Workspace, options: ReplayOptions) -> tuple[str, dict[Arm, ReplayArm]]:
    """The experiment and the arms that are asked. Raises ConfigError where there are none, or no log."""
    config = workspace.require_config()
    own = config.experiment.name
    name = workspace.experiment(options.experiment)
    if name == own:
        note_control_from(workspace.data, own, config.experiment.control_from)
    source = config.experiment.control_from if name == own else None
    if source is not None and source not in workspace.loaded_experiments():
        known = ", ".join(workspace.loaded_experiments()) or "none"
        raise ConfigError(
            f"experiment.control_from = {source!r}: no data of that experiment in {workspace.data}; loaded are {known}"
        )
    if source is None:
        name = loaded_experiment(workspace, options.experiment)
    if config.experiment.mode != "shadow":
        raise ConfigError(
            f"replay compares request by request: it needs mode = 'shadow', not {config.experiment.mode!r}; give the replay an "
            f'experiment of its own, with control_from = "{name}"'
        )
    configured = config.require_arms()
    if configured.treatment is None:
        raise ConfigError("replay needs [arms.treatment]: the arm whose answers are missing")
    arms = {Arm.TREATMENT: _arm(workspace, config, Arm.TREATMENT, configured.treatment)}
    if options.with_control:
        arms[Arm.CONTROL] = _arm(workspace, config, Arm.CONTROL, configured.control)
    for arm in arms.values():
        remember_keys(arm, next(iter(arm.key.values()), "").removeprefix("Bearer ") or None)
    return name, arms


def _arm(workspace: Workspace, config: Config, arm: Arm, configured: ArmConfig) -> ReplayArm:
    settings = arm_settings(workspace, arm.value, configured)
    if settings.base_url == IN_PROCESS:
        raise ConfigError(
            f"arms.{arm.value}: replay asks a server; run the LiteLLM proxy, and set base_url to its address"
        )
    if not configured.model:
        raise ConfigError(f"arms.{arm.value}.model is missing: replay needs the model that it calls, and its price")
    if settings.api_key is None and not is_local(settings.base_url):
        raise ConfigError(
            f"arms.{arm.value} has no key: set api_key_env in evalpipe.toml (a replay has no client whose key could pass through)"
        )
    origin = settings.origin
    scheme = "https" if origin.tls else "http"
    return ReplayArm(
        arm=arm,
        provider=settings.provider,
        base_url=settings.base_url,
        urls={
            endpoint: f"{scheme}://{origin.authority}{str(origin.endpoint_target(endpoint), 'latin-1')}"
            for endpoint in ENDPOINTS.values()
        },
        key=_key_header(settings),
        model=configured.model,
        api_key_env=configured.api_key_env,
        timeout_s=config.collector.shadow_timeout_s,
        params=settings.params,
        drop=settings.drop,
        system_prompt=settings.system_prompt,
        rewrite=arm is Arm.TREATMENT or settings.rewrite,
        fingerprint=arm_fingerprint(settings, configured.api_key_env),
        infrastructure_usd=settings.infrastructure_usd,
    )


def _key_header(settings: ArmSettings) -> dict[str, str]:
    name, _, value = str(settings.key_line, "latin-1").partition(": ")
    return {name: value} if value else {}


def replaying(data: Path, experiment: str) -> AbstractContextManager[None]:
    """Hold the experiment's replay."""
    return running_lock(
        folder_of(data, experiment), command="evalpipe replay", doing="is replaying", lock=".replaying.lock"
    )


def recover(data: Path, experiment: str) -> int:
    """Put what journals of ended runs hold into the store; the rows added."""
    folder = folder_of(data, experiment)
    if not any(folder.glob("journal-*.jsonl")):
        return 0
    return compact_rows(folder, CALLS, lambda rows: write_calls(data, experiment, rows), rejected=rejected_folder(data))


def _batches_folder(data: Path, experiment: str) -> Path:
    return folder_of(data, experiment) / "batches"


def _open_batches(data: Path, experiment: str) -> list[BatchState]:
    return [one for one in intents(_batches_folder(data, experiment)) if one.state in OPEN]


def _check_fingerprints(workspace: Workspace, name: str, arms: Mapping[Arm, ReplayArm]) -> None:
    """Two configurations of one arm in one experiment would be compared as one. Raises ConfigError."""
    if name not in workspace.loaded_experiments():
        return
    with open_store(workspace.data, name) as store:
        rows = store.connection.execute(
            "SELECT arm, config_fingerprint, any_value(model_requested), count(*) FROM exchanges "
            "WHERE role = 'replay' AND experiment = $1 GROUP BY arm, config_fingerprint",
            [name],
        ).fetchall()
    for arm, fingerprint, model, n in rows:
        settings = arms.get(Arm(arm))
        if settings is not None and settings.fingerprint != fingerprint:
            raise ConfigError(
                f"experiment {name!r} holds {n:,} replayed answers of another configuration of {arm} (model {model}): give "
                f'this one an experiment of its own, [experiment] name = "…" and control_from = "{name}"'
            )


def _plan(workspace: Workspace, store: Store, options: ReplayOptions) -> ReplayPlan:
    config = workspace.require_config()
    experiment = store.experiment or ""
    only_first = options.turns == "first"
    if only_first:
        record = load_record(workspace.data, experiment) if has_record(workspace.data, experiment) else None
        found = mark_first_turns(
            store.connection, experiment=experiment, head=record.head if record else None, source="stored_exchanges"
        )
        only_first = goal_turns("first", record.turns if record else None, found) == "first"
    per_user = options.pairs_per_unit if options.pairs_per_unit is not None else config.judge.pairs_per_unit
    return make_plan(
        store.connection,
        seed=config.experiment.effective_salt,
        users=options.users,
        per_user=per_user,
        only_first_turns=only_first,
        with_control=options.with_control,
        pending=pending(_batches_folder(workspace.data, experiment)),
    )


def _opened(workspace: Workspace, name: str, options: ReplayOptions) -> Store:
    record = load_record(workspace.data, name) if has_record(workspace.data, name) else None
    chosen = excluding(readable(workspace.data, name, options.selection), record)
    return open_store(workspace.data, name, selection=chosen)


def _estimate(workspace: Workspace, name: str, arms: Mapping[Arm, ReplayArm], options: ReplayOptions) -> ReplayEstimate:
    with _opened(workspace, name, options) as store:
        plan = _plan(workspace, store, options)
        if not plan.n_requests:
            why = ", ".join(f"{reason} {n:,}" for reason, n in plan.left_out.items()) or "no requests of control"
            raise DataError(f"{name}: nothing to replay: {why}")
        (mean,) = store.connection.execute(
            "SELECT avg(output_tokens) FROM exchanges WHERE arm = 'control' AND outcome = 'ok'"
        ).fetchall()[0]
        prices = {arm: (price_of(workspace, one), price_of(workspace, one, batch=True)) for arm, one in arms.items()}
        found = pages(store.connection, arms, {}, batch=options.batch)
        return estimate(name, plan, found, arms, prices, mean_output=mean)


def _cap(workspace: Workspace, options: ReplayOptions) -> float | None:
    return options.max_usd if options.max_usd is not None else _settings(workspace).max_usd


def _settings(workspace: Workspace) -> ReplayConfig:
    return workspace.config.replay if workspace.config else ReplayConfig()


def _agree(found: ReplayEstimate, options: ReplayOptions, confirm: Confirm | None) -> None:
    usd = found.batch_usd if options.batch else found.usd
    money = f"about ${usd:,.4f}" if usd is not None else "at a price that is not known"
    if confirm is None:
        raise ConfigError(
            f"a replay costs money ({found.calls:,} calls, {money}): add --yes (and --max-usd USD as a cap); nothing was sent"
        )
    if not confirm("Send them?"):
        raise EvalpipeError("nothing was sent: run the same command again to go on")


def estimate_lines(found: ReplayEstimate, *, batch: bool = False) -> list[str]:
    """An estimate in words."""
    lines = [f"{found.experiment}: {found.requests:,} requests of {found.users:,} users"]
    for one in found.arms:
        usd = one.batch_usd if batch else one.usd
        money = f"about ${usd:,.4f}" if usd is not None else "at a price that is not known"
        other = "" if one.batch_usd is None or batch else f" (${one.batch_usd:,.4f} in batches)"
        known = f", {one.known:,} answered already" if one.known else ""
        lines.append(
            f"  {one.arm}: {one.calls:,} calls of {one.model} at {one.address}{known}; "
            f"{one.input_tokens:,} + {one.output_tokens:,} tokens, {money}{other}"
        )
    if found.left_out:
        lines.append("  left out: " + _counted(found.left_out))
    if found.refused:
        lines.append("  cannot be translated faithfully for an arm: " + _counted(found.refused))
    return lines


def _counted(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {n:,}" for reason, n in sorted(reasons.items()))


def _summary_of(found: ReplayEstimate) -> ReplaySummary:
    return ReplaySummary(
        left_out=Counter(found.left_out),
        experiment=found.experiment,
        arms={one.arm: one.model for one in found.arms},
        n_requests=found.requests,
        n_users=found.users,
        n_planned=found.calls,
        n_known=sum(one.known for one in found.arms),
    )


def _nothing(found: ReplayEstimate, workspace: Workspace, waiting: list[BatchState]) -> ReplaySummary:
    summary = _summary_of(found)
    summary.left_out.update(found.refused)
    summary.account = _account(workspace, found.experiment)
    if waiting:
        n = sum(one.n_items for one in waiting)
        summary.message = f"{n:,} requests wait in batches: run it with --batch to collect them"
    return summary


def _prices(workspace: Workspace, *, batch: bool = False) -> dict[str, CostOf]:
    """Of both arms: also calls of the one that is not asked now count against a cap."""
    arms = workspace.require_config().require_arms()
    configured = {Arm.CONTROL: arms.control, Arm.TREATMENT: arms.treatment}
    return {arm.value: price_of(workspace, one, batch=batch) for arm, one in configured.items() if one is not None}


def _account(workspace: Workspace, name: str) -> ReplayAccount:
    return account_of(workspace.data, name, _prices(workspace))


def _route(workspace: Workspace, arm: ReplayArm, account: ReplayAccount, clock: SystemClock, price: CostOf) -> Route:
    settings = _settings(workspace)
    others = {model for model in account.other_models.get(arm.name, ()) if not same_model(model, arm.model)}
    return Route(
        who=arm.who,
        model=arm.model,
        limiter=Limiter(
            requests_per_minute=settings.requests_per_minute,
            input_tokens_per_minute=settings.input_tokens_per_minute,
            output_tokens_per_minute=settings.output_tokens_per_minute,
            now=clock.monotonic(),
        ),
        cost_of=price,
        estimator=TokenEstimator(max_tokens=4096),
        other_models=others,
    )


def _budget(workspace: Workspace, name: str, options: ReplayOptions, account: ReplayAccount) -> Budget:
    budget = Budget(cap=_cap(workspace, options), spent=account.cap_usd)
    folder, prices = _batches_folder(workspace.data, name), _prices(workspace, batch=True)
    for one in _open_batches(workspace.data, name):
        price = prices.get(one.judge)
        if price is not None:
            budget.held += most_usd(folder, one, price, account.other_models.get(one.judge, ()))
    return budget


def _online(
    workspace: Workspace,
    name: str,
    arms: Mapping[Arm, ReplayArm],
    options: ReplayOptions,
    found: ReplayEstimate,
    *,
    opened: OpenRun,
) -> ReplaySummary:
    """Ask call by call."""
    summary = _summary_of(found)
    settings, clock = _settings(workspace), SystemClock()
    account = _account(workspace, name)
    folder = folder_of(workspace.data, name)
    budget = _budget(workspace, name, options, account)
    routes = {arm: _route(workspace, one, account, clock, price_of(workspace, one)) for arm, one in arms.items()}
    journal = CallJournal(folder, CALLS, answer_bytes=ANSWER_BYTES)
    progress = Progress(summary, [route.limiter for route in routes.values()], budget, shown=options.show_progress)

    def write(rows: Sequence[ReplayCall]) -> int:
        return write_calls(workspace.data, name, rows)

    async def run(store: Store) -> None:
        async with opened(
            workspace,
            name,
            arms,
            routes,
            budget=budget,
            journal=journal,
            clock=clock,
            summary=summary,
            concurrency=settings.concurrency,
            show=progress,
            announce=progress.write,
            retries_errors=not options.with_control,
        ) as runner:
            rejected = rejected_folder(workspace.data)
            runner.rotate = rotation(
                workspace.data,
                journal,
                runner,
                lambda path, in_flight: compact_rows(
                    folder, CALLS, write, rejected=rejected, keep=path, in_flight=in_flight
                ),
            )
            await make_calls(runner, pages(store.connection, arms, account.attempts), journal)

    try:
        with _opened(workspace, name, options) as store:
            _plan(workspace, store, options)
            with rare_collections():
                asyncio.run(run(store))
    finally:
        journal.close()
        progress.close()
    raise_if_ended(workspace.data, summary, _blamed(summary, arms), lambda: recover(workspace.data, name))
    return summary


def _blamed(summary: ReplaySummary, arms: Mapping[Arm, ReplayArm]) -> ReplayArm:
    """The arm whose provider ended the run: the one of which nothing was answered."""
    silent = [one for arm, one in arms.items() if not summary.ended.get(arm.value, Counter())["answered"]]
    return (silent or list(arms.values()))[0]


def _by_batches(
    workspace: Workspace,
    name: str,
    arms: Mapping[Arm, ReplayArm],
    options: ReplayOptions,
    found: ReplayEstimate,
) -> ReplaySummary:
    """Collect what is open, then submit what is unanswered and wait for it. Ctrl-C leaves batches running: the next run
    collects them."""
    summary = _summary_of(found)
    for arm in arms.values():
        open_batch_client(arm)  # a provider without batches is named before anything is sent
    summary.left_out.update(found.refused)
    summary.n_planned += sum(one.n_items for one in _open_batches(workspace.data, name))
    for _ in range(MAX_ROUNDS):
        account = _account(workspace, name)
        with _opened(workspace, name, options) as store:
            plan = _plan(workspace, store, options)
            waiting = _open_batches(workspace.data, name)
            if not plan.total and not waiting:
                break
            n_before = summary.n_calls

            async def work(batches: ReplayBatches, store: Store = store, account: ReplayAccount = account) -> None:
                await batches.collect_open()
                if batches.interrupted.is_set():
                    return
                planned = pages(store.connection, arms, account.attempts, batch=True)
                if await batches.submit(of_one(planned, batches.spec.arm, batches.endpoint or "")):
                    await batches.collect_open()

            for arm in arms.values():
                for endpoint in _endpoints(arm):
                    if summary.stopped is None:
                        _with_batches(workspace, store, name, arm, endpoint, options, summary, account, work)
        recover(workspace.data, name)
        if summary.stopped is not None or summary.n_calls == n_before:
            break
    return summary


def _endpoints(arm: ReplayArm) -> tuple[str, ...]:
    """The dialects an arm's batches are in."""
    return tuple(PROVIDERS[arm.provider])


def _with_batches(
    workspace: Workspace,
    store: Store,
    name: str,
    arm: ReplayArm,
    endpoint: str,
    options: ReplayOptions,
    summary: ReplaySummary,
    account: ReplayAccount,
    work: Callable[[ReplayBatches], Awaitable[None]],
) -> None:
    """Work with the batches of one arm and endpoint."""
    clock = SystemClock()
    price = price_of(workspace, arm, batch=True)
    route = _route(workspace, arm, account, clock, price)
    budget = _budget(workspace, name, options, _account(workspace, name))
    journal = CallJournal(folder_of(workspace.data, name), CALLS, answer_bytes=ANSWER_BYTES)
    progress = Progress(summary, [route.limiter], budget, shown=options.show_progress)

    def find(request_ids: Collection[str]) -> dict[str, LoggedRequest]:
        return logged_requests(store.connection, request_ids)

    def make() -> ReplayBatches:
        return ReplayBatches(
            owner=arm.name,
            spec=arm,
            fingerprint=arm.fingerprint,
            item_kind=ReplayItem,
            endpoint=endpoint,
            client=open_batch_client(arm, endpoint),
            folder=_batches_folder(workspace.data, name),
            journal=journal,
            clock=clock,
            summary=summary,
            budget=budget,
            cost_of=price,
            other_models=route.other_models,
            show=progress,
            experiment=name,
            rules=ReadingRules(prices=price_book(workspace.config)),
            find=find,
        )

    run_batches(make, work, journal=journal, progress=progress, summary=summary)
    recover(workspace.data, name)


def result_lines(summary: ReplaySummary) -> list[str]:
    """What a run did, in words."""
    lines = []
    if not summary.n_planned:
        lines.append(f"{summary.experiment}: nothing to send: {summary.n_known:,} answers of the sample are there")
    else:
        spent = "" if summary.spent_usd is None else f", ${summary.spent_usd:,.4f}"
        lines.append(
            f"{summary.experiment}: {summary.n_answered:,} of {summary.n_planned:,} calls answered "
            f"({', '.join(f'{arm}: {model}' for arm, model in summary.arms.items())}){spent}"
        )
    for kind, n in summary.failed.most_common():
        words = f": {summary.failure_messages[kind]}" if summary.failure_messages.get(kind) else ""
        lines.append(f"  failed: {n:,} × {kind}{words}")
    if summary.n_open:
        lines.append(f"  {summary.n_open:,} of them are asked again by the next run")
    if summary.left_out:
        lines.append("  left out: " + _counted(summary.left_out))
    if summary.stopped is not None:
        lines.append(f"  stopped ({summary.stopped}): {summary.message or ''}".rstrip(": "))
    elif summary.message:
        lines.append(f"  {summary.message}")
    account = summary.account
    if account is not None and account.n_unsettled:
        lines.append(
            f"  {account.n_unsettled:,} calls of all runs broke off, and their cost was not reported: they are held against "
            f"the cap at ${account.at_most_usd:,.4f}"
        )
    if summary.n_answered:
        lines.append("  next: `evalpipe judge`, then `evalpipe report`")
    return lines
