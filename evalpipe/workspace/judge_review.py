"""`evalpipe judge self-test`, `audit`, `reparse` and `settle`: checks of a judge, and what its calls have cost."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from evalpipe.analysis.analyze import analyze
from evalpipe.analysis.corrected import judged_pairs
from evalpipe.analysis.judges import agreements_by_labeller, agreements_of_people
from evalpipe.calls.budget import Budget
from evalpipe.calls.client import ENDS, api_key, open_client
from evalpipe.calls.journal import judging_lock, one_line_if_full
from evalpipe.errors import ConfigError, DataError, UpstreamError
from evalpipe.judging.audit import Audit, audit, pairs_to_label
from evalpipe.judging.costs import (
    CostHistory,
    How,
    SettledCall,
    Settlement,
    UnsettledCall,
    save_settlement,
    settled_calls,
    settlements_folder,
    unsettled_calls,
)
from evalpipe.judging.judgments import reparsed
from evalpipe.judging.plan import JudgeCall
from evalpipe.judging.runner import Runner, RunSummary, SystemClock
from evalpipe.judging.selftest import SelfTest, read_results, test_calls
from evalpipe.judging.spec import JudgeSpec
from evalpipe.models import Judgment
from evalpipe.store.query import open_store
from evalpipe.workspace import analyze as workspace_analyze
from evalpipe.workspace.call_runs import price_of
from evalpipe.workspace.judge_setup import (
    JudgeOptions,
    account_of,
    budget_limit,
    journal_folder,
    judge_settings,
    limiter_of,
    load_specs,
    recover,
)
from evalpipe.workspace.paths import Workspace, check_judge, check_writable, loaded_experiment

_ROWS_AT_ONCE = 5_000


def self_test(workspace: Workspace, options: JudgeOptions) -> list[SelfTest]:
    """Known cases put to each pairwise judge. The answers are not kept: they are about the judge, not about the log."""
    found = []
    for spec in load_specs(workspace, options.judges):
        if spec.mode == "pairwise":
            api_key(spec)
            found.append(asyncio.run(_self_test(workspace, spec, options)))
    if not found:
        raise DataError("the self-test compares answers: name a pairwise judge with --judge")
    return found


def audit_judges(workspace: Workspace, options: JudgeOptions, *, n_next: int = 10) -> list[Audit]:
    """An audit of each judge of the log's judgments; the numbers are the report's.

    Args:
        n_next: pairs to label next that are named, of the judge whose win rate decides.
    """
    name = loaded_experiment(workspace, options.experiment)
    for judge in options.judges:
        check_judge(workspace, name, judge)
    workspace_analyze.take_labels(workspace, name)
    settings = workspace_analyze.settings_of(workspace)
    with open_store(workspace.data, name, selection=options.selection, compared=True) as store:
        connection = store.connection
        result = analyze(
            connection,
            experiment=name,
            mode=workspace_analyze.mode_of(workspace.config),
            settings=settings,
            now=datetime.now(UTC),
        )
        judges = [judge for judge in result.judges if not judge.name.startswith("label:")]
        judges = [
            judge
            for judge in judges
            if judge.mode == "pairwise" and (not options.judges or judge.name in options.judges)
        ]
        if not judges:
            raise DataError(f"{name}: no pairwise judgments to audit; run `evalpipe judge` first")
        people = agreements_of_people(connection, alpha=settings.alpha)
        return [
            audit(
                judge,
                labellers=agreements_by_labeller(connection, judge.name, judge.fingerprint, alpha=settings.alpha),
                people=people,
                next_pairs=pairs_to_label(judged_pairs(connection, judge.name, judge.fingerprint), n_next)
                if judge.feeds_decision
                else (),
            )
            for judge in judges
        ]


def reparse(workspace: Workspace, options: JudgeOptions) -> dict[str, dict[str, int]]:
    """Read stored replies again. Judge → status → replies that now read so and did not before."""
    name = loaded_experiment(workspace, options.experiment)
    changes: dict[str, dict[str, int]] = {}
    with judging_lock(journal_folder(workspace, name)):
        recover(workspace, name)
        for spec in load_specs(workspace, options.judges):
            counts = changes.setdefault(spec.name, {})
            with open_store(workspace.data, name, compared=True) as store:
                rows = reparsed(store.connection, spec, at=datetime.now(UTC))
                while batch := list(islice(rows, _ROWS_AT_ONCE)):
                    store.write_judgments(batch)
                    for row in batch:
                        counts[row.status.value] = counts.get(row.status.value, 0) + 1
    return changes


class _NoJournal:
    """The self-test keeps nothing."""

    def begin(self, judgment: Judgment) -> None:
        return None

    def append(self, judgment: Judgment) -> None:
        return None


async def _self_test(workspace: Workspace, spec: JudgeSpec, options: JudgeOptions) -> SelfTest:
    config, clock = judge_settings(workspace), SystemClock()
    judgments: dict[str, Judgment] = {}

    def watch(ask: JudgeCall, judgment: Judgment) -> str | None:
        judgments[ask.key] = judgment
        return None

    summary = RunSummary(judge=spec.name, fingerprint=spec.fingerprint)
    runner = Runner(
        spec=spec,
        client=open_client(spec, concurrency=config.concurrency),
        limiter=limiter_of(config, clock),
        budget=Budget(cap=budget_limit(workspace, options)),
        cost_of=price_of(workspace, spec),
        journal=_NoJournal(),
        clock=clock,
        summary=summary,
        concurrency=config.concurrency,
        watch=watch,
        ask_identical=True,
    )
    try:
        await runner.run(iter([test_calls()]))
    finally:
        await runner.client.close()
    if summary.stopped is not None and summary.stopped in ENDS:
        raise UpstreamError(ENDS[summary.stopped](spec, summary.message or ""))
    return read_results(spec.name, spec.fingerprint, judgments, summary.spent_usd)


# `evalpipe judge settle`: calls whose cost was not reported get one, on the record.


_CENT_OF_A_CENT = 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """A judge's account before and after; `settlement` None: nothing was settled."""

    judge: str
    before: CostHistory
    after: CostHistory
    settlement: Settlement | None

    def as_json(self) -> dict[str, Any]:
        found = self.settlement
        return {
            "judge": self.judge,
            "unsettled_calls": self.before.n_unsettled,
            "known_usd": self.before.known_usd,
            "estimated_usd": self.before.estimated_usd,
            "held_usd": self.before.at_most_usd,
            "settled": None
            if found is None
            else {"how": found.how, "usd": found.usd, "calls": len(found.calls), "at": found.at.isoformat()},
            "counted_against_the_cap_usd": self.after.cap_usd,
        }


def settle(
    workspace: Workspace,
    options: JudgeOptions,
    *,
    bill: float | None = None,
    usd: float | None = None,
    worst_case: bool = False,
) -> list[Settled]:
    """Settle the calls whose cost was not reported; without an amount, only report what is held.

    Args:
        workspace: the workspace.
        options: the judges and the experiment.
        bill: what the provider has billed for all calls of the judge in this experiment.
        usd: what these calls alone have cost.
        worst_case: they have cost the most they can have.

    Raises:
        ConfigError: more than one way, or an amount for several judges.
        DataError: an amount that these calls cannot have cost.
    """
    if sum((bill is not None, usd is not None, worst_case)) > 1:
        raise ConfigError("give one of --bill, --usd and --worst-case")
    if any(amount is not None and not math.isfinite(amount) for amount in (bill, usd)):
        raise ConfigError(f"an amount is a number of USD, not {bill if bill is not None else usd}")
    name = loaded_experiment(workspace, options.experiment)
    specs = load_specs(workspace, options.judges)
    if len(specs) > 1 and not (worst_case or (bill is None and usd is None)):
        raise ConfigError(f"an amount is one judge's: name it with --judge ({', '.join(spec.name for spec in specs)})")
    check_writable(workspace.data)
    with one_line_if_full(workspace.data), judging_lock(journal_folder(workspace, name)):
        recover(workspace, name)
        return [_settle(workspace, name, spec, bill=bill, usd=usd, worst_case=worst_case) for spec in specs]


def _settle(
    workspace: Workspace, experiment: str, spec: JudgeSpec, *, bill: float | None, usd: float | None, worst_case: bool
) -> Settled:
    folder, price = settlements_folder(workspace.data, experiment), price_of(workspace, spec)
    with open_store(workspace.data, experiment) as store:
        before = account_of(store, spec, price)
        done = settled_calls(folder)
        calls = [call for call in unsettled_calls(store.connection, spec, price) if call.judgment_id not in done]
        if not calls or not (worst_case or bill is not None or usd is not None):
            return Settled(judge=spec.name, before=before, after=before, settlement=None)
        total = before.at_most_usd if worst_case else _amount(spec, before, bill=bill, usd=usd)
        how: How = "worst_case" if worst_case else "bill" if bill is not None else "calls"
        settlement = Settlement(
            judge=spec.name, at=datetime.now(UTC), how=how, usd=total, bill_usd=bill, calls=_shared(calls, total)
        )
        save_settlement(folder, settlement)
        return Settled(judge=spec.name, before=before, after=account_of(store, spec, price), settlement=settlement)


def _amount(spec: JudgeSpec, account: CostHistory, *, bill: float | None, usd: float | None) -> float:
    """What the unsettled calls cost together."""
    if bill is not None and bill < account.known_usd - _CENT_OF_A_CENT:
        raise DataError(
            f"judge {spec.name!r}: a bill of ${bill:,.4f} is less than the ${account.known_usd:,.4f} that its answered calls "
            "reported: look at the key, the model and the days of the bill; nothing was settled"
        )
    total = max(bill - account.known_usd, 0.0) if bill is not None else usd or 0.0
    if total > account.at_most_usd + _CENT_OF_A_CENT:
        raise DataError(
            f"judge {spec.name!r}: {account.n_unsettled:,} unsettled calls cannot have cost ${total:,.4f}, "
            f"${account.at_most_usd:,.4f} at most: the bill holds other work, too; take that off, or "
            "settle with --worst-case; nothing was settled"
        )
    return total


def _shared(calls: list[UnsettledCall], total: float) -> list[SettledCall]:
    """The total over the calls, in proportion to what each can have cost."""
    at_most = sum(call.at_most_usd for call in calls)
    return [
        SettledCall(
            judgment_id=call.judgment_id,
            estimated_usd=call.estimated_usd,
            at_most_usd=call.at_most_usd,
            usd=total * call.at_most_usd / at_most if at_most else total / len(calls),
        )
        for call in calls
    ]
