"""What a judge's run needs of a workspace: its spec, plan, prices, budget, limits and folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from evalpipe.analysis.sql import rows
from evalpipe.analysis.turns import goal_turns, mark_first_turns
from evalpipe.calls.batches import OPEN, intents, most_usd
from evalpipe.calls.budget import Budget, CostOf
from evalpipe.calls.client import address_of
from evalpipe.calls.journal import compact
from evalpipe.calls.limiter import Limiter
from evalpipe.calls.runner import SystemClock
from evalpipe.config import JudgeConfig
from evalpipe.errors import EvalpipeError, NothingToJudgeError
from evalpipe.judging.batches import pending
from evalpipe.judging.costs import (
    TOKENS_PER_CHAR,
    CostHistory,
    settled_calls,
    settlements_folder,
    spent_since,
    spent_so_far,
)
from evalpipe.judging.facts import FactRules
from evalpipe.judging.plan import NO_FACTS, PairRules, Plan, make_plan
from evalpipe.judging.runner import RunSummary
from evalpipe.judging.spec import JudgeSpec, load_judge
from evalpipe.models import ANSWERED, ASKED_MODEL, JudgeMode
from evalpipe.providers.base import Usage
from evalpipe.providers.setup_faults import provider_words, shown_failure
from evalpipe.store.load import rejected_folder
from evalpipe.store.query import Selection, Store, open_store
from evalpipe.workspace.call_runs import check_cap, price_of
from evalpipe.workspace.paths import Workspace, has_record

if TYPE_CHECKING:
    from evalpipe.analysis.record import ExperimentRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeOptions:
    """The options of the command line; None where the configuration decides."""

    judges: Sequence[str] = ()
    limit: int | None = None
    max_usd: float | None = None
    until_decided: bool = False
    selection: Selection = field(default_factory=Selection)
    experiment: str | None = None
    show_progress: bool | None = None


def load_specs(workspace: Workspace, names: Sequence[str] = ()) -> list[JudgeSpec]:
    """The judges asked for, else the configured ones; the configuration's model, address and key go before the file's."""
    config = judge_settings(workspace)
    return [
        load_judge(
            name,
            workspace.judge_folders(),
            workspace.prompt_folders(),
            model=config.model,
            base_url=config.base_url,
            api_key_env=config.api_key_env,
            fact_rules=FactRules(**config.context.model_dump()),
        )
        for name in dict.fromkeys(names or config.name)
    ]


def judge_settings(workspace: Workspace) -> JudgeConfig:
    return workspace.config.judge if workspace.config else JudgeConfig()


def journal_folder(workspace: Workspace, experiment: str) -> Path:
    return workspace.data / "judgments" / f"experiment={experiment}"


def batches_folder(workspace: Workspace, experiment: str) -> Path:
    return journal_folder(workspace, experiment) / "batches"


def build_plan(
    workspace: Workspace, store: Store, spec: JudgeSpec, *, limit: int | None, keep_order: bool = False
) -> Plan:
    """The plan of one judge over the open store.

    Args:
        limit: only the first so many requests of the order.
        keep_order: leave the table that `stopping.planned_pairs` reads.

    Raises:
        NothingToJudgeError: where there is nothing the judge could be asked about at all.
    """
    config = judge_settings(workspace)
    experiment = store.experiment or ""
    plan = make_plan(
        store.connection,
        spec,
        orders=config.orders,
        seed=workspace.config.experiment.effective_salt if workspace.config else experiment,
        limit=limit,
        max_attempts=config.max_attempts,
        rules=_pair_rules(workspace, store, spec) if spec.mode == "pairwise" else None,
        pending=pending(batches_folder(workspace, experiment), spec.fingerprint),
        keep_order=keep_order,
    )
    if not plan.n_eligible and plan.unjudgeable.keys() & set(NO_FACTS.values()):
        lacking = next(name for name in spec.facts if NO_FACTS[name] in plan.unjudgeable)
        raise NothingToJudgeError(
            f"{experiment}: nothing to judge: no answer has a {lacking} to be checked against "
            f'({plan.unjudgeable[NO_FACTS[lacking]]:,} without); give it with `evalpipe load --map "{lacking}=…"`, or name its '
            f"place in the request under [judge.context]"
        )
    if not plan.n_eligible and plan.unjudgeable:
        kinds = ", ".join(f"{kind} {n:,}" for kind, n in plan.unjudgeable.items())
        raise NothingToJudgeError(
            f"{experiment}: nothing to judge: every answered pair has an answer that holds no text to judge ({kinds})"
        )
    if not plan.n_eligible:
        raise NothingToJudgeError(nothing_to_judge(store, spec.mode))
    return plan


def _pair_rules(workspace: Workspace, store: Store, spec: JudgeSpec) -> PairRules:
    """Which pairs, by the configuration and by what the experiment's looks have fixed. Marks later turns where they matter."""
    config, experiment = judge_settings(workspace), store.experiment or ""
    record = None
    if has_record(workspace.data, experiment):
        from evalpipe.workspace.record import load_record  # SciPy: a third of a second that a first run need not wait

        record = load_record(workspace.data, experiment)
    only_first = only_first_turns(workspace, store, record)
    excluded = record.exclusions if record else []
    return PairRules(
        per_user=config.pairs_per_unit,
        only_first_turns=only_first,
        later_share=config.later_turns_percent / 100,
        chosen=record.chosen.get(spec.fingerprint, []) if record else [],
        excluded=[(_instant(one.since), _instant(one.until)) for one in excluded],
    )


def only_first_turns(workspace: Workspace, store: Store, record: ExperimentRecord | None) -> bool:
    """Whether the win rate is about first turns only; then later ones are marked in the table `ev_later`."""
    experiment = store.experiment or ""
    only_first = workspace.config is None or workspace.config.experiment.mode == "shadow"
    if only_first:
        fixed = record.turns if record else None
        configured = workspace.config.decision.turns if workspace.config else "first"
        if "all" in (configured, fixed):
            only_first = False
        else:
            found = mark_first_turns(
                store.connection,
                experiment=experiment,
                head=record.head if record else None,
                source="stored_exchanges",
            )
            only_first = goal_turns(configured, fixed, found) == "first"
    return only_first


def _instant(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found


def summary_of(spec: JudgeSpec, plan: Plan) -> RunSummary:
    """The summary of a run before its first call."""
    return RunSummary(
        judge=spec.name,
        fingerprint=spec.fingerprint,
        address=address_of(spec),
        n_planned=plan.n_calls,
        n_known=plan.n_done,
        n_over_cap=plan.n_over_cap,
        model=spec.model,
        n_given_up=plan.n_given_up,
        given_up=list(plan.given_up),
        unjudgeable=dict(plan.unjudgeable),
    )


def note_limit(summary: RunSummary, workspace: Workspace, store: Store, spec: JudgeSpec, limit: int | None) -> None:
    """Note in the summary of a run with nothing to do how much is left beyond its limit."""
    if limit is not None:
        summary.limit, summary.n_beyond_limit = limit, build_plan(workspace, store, spec, limit=None).n_units


def other_models(store: Store, spec: JudgeSpec) -> set[str]:
    """Models that have answered this judge's calls in place of the one asked, in any run."""
    found = store.connection.execute(
        "SELECT DISTINCT judge_model FROM stored_judgments WHERE judge = $1 AND judge_model IS NOT NULL "
        "AND json_extract_string(CASE WHEN json_valid(note) THEN note END, $2) = $3",
        [spec.name, f"$.{ASKED_MODEL}", spec.model],
    ).fetchall()
    return {model for (model,) in found}


def held_by_batches(workspace: Workspace, store: Store, spec: JudgeSpec) -> float:
    """USD that open batches of this judge can still cost."""
    folder = batches_folder(workspace, store.experiment or "")
    found = [one for one in intents(folder) if one.state in OPEN and one.judge == spec.name]
    price, others = price_of(workspace, spec, batch=True), other_models(store, spec)
    return sum(most_usd(folder, one, price, others) for one in found)


def budget_limit(workspace: Workspace, options: JudgeOptions) -> float | None:
    return options.max_usd if options.max_usd is not None else judge_settings(workspace).max_usd


def budget_of(
    store: Store,
    spec: JudgeSpec,
    cap: float | None,
    price: CostOf,
    *,
    account_price: CostOf | None = None,
    per_day: float | None = None,
) -> Budget:
    """The cap, and what was spent under it by this judge in this experiment before.

    Args:
        price: of the calls that are made now.
        account_price: of earlier calls whose cost was not reported; None: `price`.
        per_day: the most this judge may cost since midnight UTC (USD); None: no such limit.

    Raises:
        BudgetError: where a cap is set and the price is not known.
    """
    spent = account_of(store, spec, account_price or price).cap_usd
    of_today = None
    if per_day is not None:
        midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        of_today = max(0.0, spent - spent_since(store.connection, spec, midnight, account_price or price) + per_day)
    is_of_a_day = of_today is not None and (cap is None or of_today < cap)
    cap = of_today if is_of_a_day else cap
    check_cap(spec, cap, price)
    return Budget(cap=cap, spent=spent, is_of_a_day=is_of_a_day)


def account_of(store: Store, spec: JudgeSpec, price: CostOf) -> CostHistory:
    """What this judge has cost in the open experiment, with what was settled by hand."""
    settled = settled_calls(settlements_folder(store.data, store.experiment or ""))
    return spent_so_far(store.connection, spec, price, settled)


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
        return compact(folder, store.write_judgments, rejected=rejected_folder(workspace.data))


# What `evalpipe judge` reports where there is nothing to judge: what was loaded, and why none of it can be.


_NEEDS_BOTH = "a log with one answer per request needs a pointwise judge"


def nothing_to_judge(store: Store, mode: JudgeMode) -> str:
    """Why the open store holds no pair (or, for a pointwise judge, no answer) to judge, with the commonest failure."""
    what = "pairs" if mode is JudgeMode.PAIRWISE else "answers"
    rows = store.connection.execute(
        "SELECT arm, count(DISTINCT request_id), count(*) FILTER (list_contains($1::VARCHAR[], outcome)) FROM exchanges "
        "WHERE role <> 'replay' GROUP BY arm",
        [sorted(ANSWERED)],
    ).fetchall()
    n_requests = store.connection.execute(
        "SELECT count(DISTINCT request_id) FROM exchanges WHERE role <> 'replay'"
    ).fetchall()[0][0]
    start = f"{store.experiment}: no {what} to judge"
    if not n_requests:
        return f"{start}: no requests are loaded; load a log first with `evalpipe load`"
    loaded = f"{start}: {n_requests:,} request{' is' if n_requests == 1 else 's are'} loaded, but"
    silent = [arm for arm, _, n_answered in sorted(rows) if not n_answered]
    if silent:
        arms = [f"the {arm} answered none ({_commonest_failure(store, arm)})" for arm in silent]
        return f"{loaded} {', and '.join(arms)}"
    if len(rows) == 1:
        status = _commonest_shadow_status(store)
        if status is not None:
            return f"{loaded} no shadow request was sent ({status})"
        return f"{loaded} only the {rows[0][0]}'s answers are there ({_NEEDS_BOTH})"
    return f"{loaded} none was answered by both arms ({_NEEDS_BOTH})"


def _commonest_shadow_status(store: Store) -> str | None:
    """Why shadow requests were not sent; None where none was due."""
    found = store.connection.execute(
        "SELECT count(*) AS n, shadow_status, shadow_reason FROM exchanges WHERE shadow_status IS NOT NULL "
        "GROUP BY shadow_status, shadow_reason ORDER BY n DESC, shadow_status, shadow_reason LIMIT 1"
    ).fetchall()
    if not found:
        return None
    n, status, reason = found[0]
    return f"{n:,} × {status}: {provider_words(reason)}" if reason else f"{n:,} × {status}"


def _commonest_failure(store: Store, arm: str) -> str:
    n, outcome, status, code, message = store.connection.execute(
        "SELECT count(*) AS n, outcome, status, error_type, arg_min(error_message, started_at) FROM exchanges "
        "WHERE role <> 'replay' AND arm = $1 GROUP BY outcome, status, error_type "
        "ORDER BY n DESC, outcome, status, error_type LIMIT 1",
        [arm],
    ).fetchall()[0]
    return f"{n:,} × {shown_failure(status, code or outcome, message)}"


# The dollars of a judged pair, before it is judged.


OVERHEAD_TOKENS = 700
"""rubric, reply schema and fences around the pair"""
REPLY_TOKENS = 250


def price_per_pair(workspace: Workspace, experiment: str, orders: str) -> tuple[float | None, str | None, str | None]:
    """What a judged pair costs: what past calls cost on average, else by the lengths in the log and the price list.

    Args:
        experiment: whose answers are judged.
        orders: how a pair is asked: both (two calls) | calibrated | balanced.

    Returns:
        (dollars, the judge's name, why the dollars are not known); None where not known, or nothing to add.
    """
    try:
        spec = load_specs(workspace)[0]
    except EvalpipeError as error:
        return None, None, str(error)
    calls = 2 if orders == "both" else 1
    with open_store(workspace.data, experiment) as store:
        paid = rows(
            store.connection,
            "SELECT avg(cost_usd) AS usd, count(cost_usd) AS n FROM judgments "
            "WHERE judge = ? AND NOT simulated AND status = 'ok'",
            [spec.name],
        )[0]
        if paid["n"] >= 20:
            return calls * paid["usd"], spec.name, None
        length = rows(
            store.connection,
            "SELECT avg(least(length(prompt), ?)) * ? AS prompt, avg(least(length(text), ?)) * ? AS answer "
            "FROM exchanges WHERE text IS NOT NULL",
            [spec.max_request_chars, TOKENS_PER_CHAR, spec.max_response_chars, TOKENS_PER_CHAR],
        )[0]
    if length["prompt"] is None or length["answer"] is None:
        return None, spec.name, "There are no answers in the log yet, so the judge's dollars are not known."
    usage = Usage(
        input_tokens=round(OVERHEAD_TOKENS + length["prompt"] + 2 * length["answer"]), output_tokens=REPLY_TOKENS
    )
    usd = price_of(workspace, spec)(usage)
    if usd is None:
        return None, spec.name, f'The price of {spec.model} is not known: add it under [prices."{spec.model}"].'
    return calls * usd, spec.name, None
