"""What a replay will cost and what it did: the estimate, the counts of a run, and what `--json` prints."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from evalpipe.calls.budget import CostOf
from evalpipe.calls.runner import RunCounts
from evalpipe.models import Arm, ReplayCall, ReplayStatus
from evalpipe.providers.base import Usage
from evalpipe.replay.plan import PlannedCall, ReplayPlan
from evalpipe.replay.requests import ReplayArm, counted_bytes, longest_answer
from evalpipe.store.replays import ReplayAccount

TOKENS_PER_BYTE = 0.25
"""English prose and code as JSON; a run measures the true ratio, an estimate has only this"""
EXPECTED_OUTPUT = 300
"""output tokens of an answer where the log holds none to go by"""
_SAMPLE_CALLS = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmEstimate:
    """What asking one arm will probably use; USD None where its model has no known price."""

    arm: str
    model: str
    address: str
    calls: int
    known: int
    input_tokens: int
    output_tokens: int
    usd: float | None
    batch_usd: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayEstimate:
    """`left_out`: requests of the log that are not in the sample, by reason; `refused`: those of the sample that have no faithful
    form for an arm, by reason (extrapolated from 400 calls)."""

    experiment: str
    requests: int
    users: int
    arms: list[ArmEstimate]
    left_out: dict[str, int]
    refused: dict[str, int]

    @property
    def calls(self) -> int:
        return sum(one.calls for one in self.arms)

    @property
    def usd(self) -> float | None:
        costs = [one.usd for one in self.arms]
        return None if any(cost is None for cost in costs) else sum(cost for cost in costs if cost is not None)

    @property
    def batch_usd(self) -> float | None:
        costs = [one.batch_usd for one in self.arms]
        return None if any(cost is None for cost in costs) else sum(cost for cost in costs if cost is not None)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "calls": self.calls, "usd": self.usd, "batch_usd": self.batch_usd}


def estimate(
    experiment: str,
    plan: ReplayPlan,
    pages: Iterator[list[PlannedCall]],
    arms: Mapping[Arm, ReplayArm],
    prices: Mapping[Arm, tuple[CostOf, CostOf]],
    *,
    mean_output: float | None,
) -> ReplayEstimate:
    """Extrapolates from the first 400 calls of the plan, which are a random sample of it.

    Args:
        experiment: the name.
        plan: what is left to send.
        pages: its calls.
        arms: the arms that are called.
        prices: of each arm, single calls and batches.
        mean_output: output tokens of control's answers in the log, where they are known.
    """
    sample: list[PlannedCall] = []
    for page in pages:
        sample += page[: _SAMPLE_CALLS - len(sample)]
        if len(sample) >= _SAMPLE_CALLS:
            break
    refused: Counter[str] = Counter()
    found, scale = [], 1.0
    for arm, settings in arms.items():
        mine = [one for one in sample if one.arm is arm]
        sent = [one for one in mine if one.outgoing is not None]
        planned = plan.n_calls.get(arm.value, 0)
        n = round(planned * len(sent) / len(mine)) if mine else 0
        if arm is Arm.TREATMENT:
            scale = planned / len(mine) if mine else 1.0
            for one in mine:
                if one.refused is not None:
                    refused[one.refused] += 1
        sizes = [counted_bytes(one.outgoing.body) for one in sent if one.outgoing is not None]
        limits = [longest_answer(one.outgoing.body) for one in sent if one.outgoing is not None]
        expected = EXPECTED_OUTPUT if mean_output is None else mean_output
        output = sum(min(expected, limit) for limit in limits) / len(limits) if limits else expected
        per_call = sum(sizes) / len(sizes) * TOKENS_PER_BYTE if sizes else 0.0
        usage = Usage(input_tokens=round(per_call * n), output_tokens=round(output * n))
        single, batch = prices[arm]
        found.append(
            ArmEstimate(
                arm=arm.value,
                model=settings.model,
                address=settings.base_url or settings.provider,
                calls=n,
                known=plan.n_known.get(arm.value, 0),
                input_tokens=usage.input_tokens or 0,
                output_tokens=usage.output_tokens or 0,
                usd=single(usage) if n else 0.0,
                batch_usd=batch(usage) if n else 0.0,
            )
        )
    return ReplayEstimate(
        experiment=experiment,
        requests=plan.n_requests,
        users=plan.n_users,
        arms=found,
        left_out=dict(plan.left_out),
        refused={reason: round(n * scale) for reason, n in refused.items()},
    )


@dataclass(slots=True, kw_only=True)
class ReplaySummary(RunCounts[ReplayCall]):
    """One run of a replay. `n_known` counts answers of the sample that were there before.

    Attributes:
        arms: the arms that are called, with their models.
        ended: calls by how they ended, by arm.
        left_out: requests that were not sent, by reason.
        account: what the experiment's replays have cost over all runs; None until the run has ended.
    """

    experiment: str
    arms: dict[str, str] = field(default_factory=dict)
    n_requests: int = 0
    n_users: int = 0
    ended: dict[str, Counter[str]] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    account: ReplayAccount | None = None

    @property
    def title(self) -> str:
        return "replay"

    def book(self, row: ReplayCall) -> None:
        """Count what a call cost, whatever its outcome."""
        self.n_calls += 1
        self.add_usage(row)

    def end(self, row: ReplayCall) -> None:
        """Count how a planned call ended: `row` is its last attempt of this run."""
        self.ended.setdefault(row.arm.value, Counter())[row.status.value] += 1
        if row.status is not ReplayStatus.ANSWERED:
            self.add_failure(row.kind or row.status.value, row.message or "")

    def leave_out(self, reason: str) -> None:
        """Count a planned call that cannot be sent."""
        self.left_out[reason] += 1

    @property
    def n_ended(self) -> int:
        return sum(sum(counts.values()) for counts in self.ended.values())

    @property
    def n_answered(self) -> int:
        return sum(counts[ReplayStatus.ANSWERED.value] for counts in self.ended.values())

    @property
    def n_open(self) -> int:
        """Calls that the next run makes again."""
        return sum(counts[ReplayStatus.OPEN.value] for counts in self.ended.values())

    @property
    def is_failure(self) -> bool:
        """Calls were made, and none of them was answered."""
        return bool(self.failed) and not self.n_answered

    def as_json(self) -> dict[str, Any]:
        return {
            "experiment": self.experiment,
            "arms": dict(self.arms),
            "requests": self.n_requests,
            "users": self.n_users,
            "planned": self.n_planned,
            "known": self.n_known,
            "answered": self.n_answered,
            "calls_by_arm": {arm: dict(sorted(counts.items())) for arm, counts in sorted(self.ended.items())},
            **self.failures_json(),
            "left_out": dict(sorted(self.left_out.items())),
            "open": self.n_open,
            "calls": self.n_calls,
            **self.cost_json(),
            "all_runs": None if self.account is None else self.account.as_json(),
            **self.end_json(),
        }
