"""`evalpipe judge`: the plan from the store, the runner over it, the journal back into the store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from evalpipe.errors import BudgetError, DataError
from evalpipe.judging.client import api_key
from evalpipe.judging.clock import SystemClock
from evalpipe.judging.estimate import CostEstimate, estimate
from evalpipe.judging.journal import compact, judging_lock
from evalpipe.judging.plan import asks_of, pages
from evalpipe.judging.record import message_of
from evalpipe.judging.room import one_line_if_full
from evalpipe.judging.spec import JudgeSpec, judge_names
from evalpipe.judging.tally import RunTally
from evalpipe.judging.wire import shown_params
from evalpipe.pipeline.damaged import refuse_damaged
from evalpipe.pipeline.judge_online import judge_online
from evalpipe.pipeline.judge_setup import (
    JudgeOptions,
    account_of,
    journal_folder,
    plan_of,
    price_of,
    recover,
    settings_of,
    specs_of,
)
from evalpipe.pipeline.load import check_writable
from evalpipe.pipeline.names import loaded_experiment
from evalpipe.pipeline.workspace import Workspace, has_record
from evalpipe.store.datasets import Store, open_store, readable

JudgeBy = Callable[[Workspace, Store, JudgeSpec, JudgeOptions], RunTally]
"""How one judge does its work: call by call, or in batches."""


def judge(workspace: Workspace, options: JudgeOptions, *, by: JudgeBy = judge_online) -> list[RunTally]:
    """Judge what is unanswered, judge after judge, call by call unless `by` says how. Raises EvalpipeError; a run that was
    stopped early says so in its tally."""
    name = loaded_experiment(workspace, options.experiment)
    specs = specs_of(workspace, options.judges)
    check_writable(workspace.data)
    for spec in specs:
        api_key(spec)  # a missing key is told before the first call of the first judge
    tallies = []
    with one_line_if_full(workspace.data), judging_lock(journal_folder(workspace, name)):
        refuse_damaged(workspace.data, name, "judgments")
        recover(workspace, name)
        for spec in specs:
            with open_store(workspace.data, name, selection=readable(workspace.data, name, options.selection)) as store:
                tallies.append(by(workspace, store, spec, options))
                compact(journal_folder(workspace, name), store.write_judgments)
            with open_store(workspace.data, name) as store:
                tallies[-1].account = account_of(store, spec, price_of(workspace, spec))
            _check_budget(tallies[-1], spec)
            if tallies[-1].stopped is None and options.limit is None and options.selection.is_whole:
                _all_judged(workspace, name, spec)
            if tallies[-1].stopped in ("interrupted", "refused"):
                break
    return tallies


def _all_judged(workspace: Workspace, experiment: str, spec: JudgeSpec) -> None:
    """Nothing of the log is left to this judge: a stop of before is over."""
    if not has_record(workspace.data, experiment):
        return
    from evalpipe.pipeline.judge_deciding import forget_stop  # SciPy: half a second, once the work is done

    forget_stop(workspace, experiment, spec.fingerprint)


def _check_budget(tally: RunTally, spec: JudgeSpec) -> None:
    """Raise BudgetError where the cap was too small from the first call on: no run under it can ever do anything."""
    if tally.stopped == "budget" and not tally.n_calls and tally.account is not None and not tally.account.cap_usd:
        raise BudgetError(f"judge {spec.name!r}: nothing was asked: {tally.message}; raise --max-usd ([judge] max_usd)")


def estimate_judging(workspace: Workspace, options: JudgeOptions) -> list[CostEstimate]:
    """What judging would use, without a call."""
    found = []
    name = loaded_experiment(workspace, options.experiment)
    for spec in specs_of(workspace, options.judges):
        with open_store(workspace.data, name, selection=readable(workspace.data, name, options.selection)) as store:
            plan = plan_of(workspace, store, spec, limit=options.limit)
            asks = pages(store.connection, spec, plan)
            prices = price_of(workspace, spec), price_of(workspace, spec, batch=True)
            found.append(estimate(spec, plan, asks, *prices, warning=_kin_warning(workspace, store, spec)))
    return found


def _kin_warning(workspace: Workspace, store: Store, spec: JudgeSpec) -> str | None:
    """What the report will warn of, while nothing is paid yet: a judge that is of one arm's own kind."""
    from evalpipe.analysis.checks_judge import OTHER_FAMILY, kinship, models_of_arms

    status, detail = kinship(spec.model, models_of_arms(store.connection, store.experiment or ""))
    return f"{detail}; {OTHER_FAMILY}" if status == "warn" else None


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
    with open_store(workspace.data, loaded_experiment(workspace, options.experiment)) as store:
        for spec in specs_of(workspace, options.judges):
            asks = [ask for ask in asks_of(store.connection, spec, [request_id]) if not ask.repeat]
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
