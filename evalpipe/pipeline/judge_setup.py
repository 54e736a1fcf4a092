"""What a judge's run needs of a workspace: its spec, plan, prices, budget, limits and folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from evalpipe.config import JudgeConfig
from evalpipe.errors import BudgetError, DataError
from evalpipe.judging.budget import Budget, CostOf
from evalpipe.judging.clock import SystemClock
from evalpipe.judging.intents import OPEN, intents, pending
from evalpipe.judging.journal import compact
from evalpipe.judging.limiter import Limiter
from evalpipe.judging.plan import Plan, make_plan
from evalpipe.judging.spec import JudgeSpec, load_judge
from evalpipe.judging.spent import spent_so_far
from evalpipe.pipeline.prices import price_book
from evalpipe.pipeline.workspace import Workspace
from evalpipe.providers.base import Usage
from evalpipe.providers.pricing import cost_of
from evalpipe.store.datasets import Store, open_store
from evalpipe.store.selection import Selection


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
    return Budget(cap=cap, spent=spent_so_far(store.connection, spec, price).cap_usd)


def limiter_of(config: JudgeConfig, clock: SystemClock) -> Limiter:
    return Limiter(
        requests_per_minute=config.requests_per_minute,
        input_tokens_per_minute=config.input_tokens_per_minute,
        output_tokens_per_minute=config.output_tokens_per_minute,
        now=clock.monotonic(),
    )


def recover(workspace: Workspace, experiment: str) -> int:
    """Put what journals of ended runs hold into the store; the rows added."""
    folder = journal_folder(workspace, experiment)
    if not any(folder.glob("journal-*.jsonl")):
        return 0
    with open_store(workspace.data, experiment) as store:
        return compact(folder, store.write_judgments)
