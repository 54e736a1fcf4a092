"""`evalpipe judge settle`: calls whose cost nobody reported get one, on the record."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from evalpipe.errors import ConfigError, DataError
from evalpipe.judging.journal import judging_lock
from evalpipe.judging.room import one_line_if_full
from evalpipe.judging.settlements import (
    How,
    SettledCall,
    Settlement,
    save_settlement,
    settled_calls,
    settlements_folder,
)
from evalpipe.judging.spec import JudgeSpec
from evalpipe.judging.spent import Spent, UnsettledCall, unsettled_calls
from evalpipe.pipeline.judge_setup import JudgeOptions, account_of, journal_folder, price_of, recover, specs_of
from evalpipe.pipeline.load import check_writable
from evalpipe.pipeline.names import loaded_experiment
from evalpipe.pipeline.workspace import Workspace
from evalpipe.store.datasets import open_store

_CENT_OF_A_CENT = 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class Settled:
    """A judge's account before and after; `settlement` None: nothing was settled."""

    judge: str
    before: Spent
    after: Spent
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
    """Settle the calls whose cost nobody reported; without an amount, only report what is held.

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
    specs = specs_of(workspace, options.judges)
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


def _amount(spec: JudgeSpec, account: Spent, *, bill: float | None, usd: float | None) -> float:
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
