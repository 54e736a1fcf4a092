"""What judging costs: the estimate of a plan, the cost so far, and settlements of calls whose cost was not reported."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from evalpipe.analysis.sql import Connection
from evalpipe.calls.budget import CostOf, MostTokens
from evalpipe.files import sql_statements, write_synced
from evalpipe.judging.judgments import message_of
from evalpipe.judging.plan import JudgeCall, Plan
from evalpipe.judging.spec import JudgeSpec
from evalpipe.models import ASKED_MODEL, COST_AT_MOST, TOKENS_AT_MOST
from evalpipe.providers.base import Usage

_SQL = sql_statements("evalpipe.judging", "costs.sql")

TOKENS_PER_CHAR = 0.27
"""English prose and code; other scripts are denser. A run measures the true ratio, an estimate has only this."""
REASONING_TOKENS, SCORE_TOKENS = 120, 12
CLAIM_TOKENS = 300
"""of a list of claims: some eight of them"""
_SAMPLE_CALLS = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class CostEstimate:
    """What a run will probably use. Tokens from the characters of a sample of the plan; `usd` at list price, `batch_usd`
    at the batch price; None where the model has no known price. `identical`: calls that need not be made. `left_out`: pairs whose
    user has enough others; `later`, `later_left_out`: pairs of later turns in the plan and beyond their share;
    `unjudgeable`: left out since an answer holds no text, or there is nothing to check it against,
    by kind; `given_up`: calls that are not made
    again, with their requests; `warning`: why this judge is doubtful for these arms."""

    judge: str
    fingerprint: str
    model: str
    units: int
    calls: int
    known: int
    identical: int
    input_tokens: int
    output_tokens: int
    usd: float | None
    batch_usd: float | None
    left_out: int = 0
    later: int = 0
    later_left_out: int = 0
    unjudgeable: dict[str, int] = field(default_factory=dict)
    given_up: int = 0
    given_up_requests: list[str] = field(default_factory=list)
    warning: str | None = None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def estimate(
    spec: JudgeSpec,
    plan: Plan,
    pages: Iterator[list[JudgeCall]],
    cost_of: CostOf,
    batch_cost_of: CostOf,
    *,
    warning: str | None = None,
) -> CostEstimate:
    """Extrapolates from the first 400 calls of the plan, which are a random sample of it."""
    sample: list[JudgeCall] = []
    for page in pages:
        sample += page[: _SAMPLE_CALLS - len(sample)]
        if len(sample) >= _SAMPLE_CALLS:
            break
    asked = [ask for ask in sample if not ask.is_identical]
    share = len(asked) / len(sample) if sample else 1.0
    n_calls = round(plan.n_calls * share)
    chars = sum(len(spec.system) + len(str(spec.schema)) + len(message_of(ask, spec, "0" * 16).text) for ask in asked)
    per_call = chars / len(asked) * TOKENS_PER_CHAR if asked else 0.0
    seats = 1 if sample and sample[0].arm is not None else 2
    listed = CLAIM_TOKENS if spec.lists_claims else 0
    reply = listed + (REASONING_TOKENS if spec.reasoning else 0) + SCORE_TOKENS * len(spec.dimensions) * seats + 20
    usage = Usage(input_tokens=round(per_call * n_calls), output_tokens=min(reply, spec.max_tokens) * n_calls)
    return CostEstimate(
        judge=spec.name,
        fingerprint=spec.fingerprint,
        model=spec.model,
        units=plan.n_units,
        calls=n_calls,
        known=plan.n_done,
        identical=plan.n_calls - n_calls,
        input_tokens=usage.input_tokens or 0,
        output_tokens=usage.output_tokens or 0,
        usd=cost_of(usage),
        batch_usd=batch_cost_of(usage),
        left_out=plan.n_over_cap,
        later=plan.n_later,
        later_left_out=plan.n_later_left_out,
        unjudgeable=dict(plan.unjudgeable),
        given_up=plan.n_given_up,
        given_up_requests=list(plan.given_up),
        warning=warning,
    )


# What a judge has cost so far, from its stored calls: what is known, and the most that the rest can have been.


NONCE_TOKENS = 200
"""More input tokens than a second asking of the same question can differ by: the tags' codes are drawn anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CostHistory:
    """USD over all runs. `known_usd` is billed. `n_unsettled` calls broke off, or were in flight when a process
    ended: their cost is unknown; they are booked at `estimated_usd` and cannot have cost more than `at_most_usd`."""

    known_usd: float = 0.0
    n_unsettled: int = 0
    estimated_usd: float = 0.0
    at_most_usd: float = 0.0

    @property
    def cap_usd(self) -> float:
        """What counts against a cap."""
        return self.known_usd + self.at_most_usd


@dataclass(frozen=True, kw_only=True, slots=True)
class UnsettledCall:
    """One call whose cost was not reported: what it is booked at, and the most it can have cost (USD)."""

    judgment_id: str
    estimated_usd: float
    at_most_usd: float


def spent_so_far(
    connection: Connection, spec: JudgeSpec, cost_of: CostOf, settled: Mapping[str, float] | None = None
) -> CostHistory:
    """The account of the judge of this name, whatever its rubric was and whatever is selected now. `settled`: USD of the calls
    that were settled, by judgment id.

    Once a question of an unsettled call was answered, its input is known to the token: from then on only the length of the
    answer that was never seen is held at its worst.
    """
    (known,) = connection.execute(
        "SELECT coalesce(sum(cost_usd), 0) FROM stored_judgments WHERE judge = $1 "
        f"AND json_extract(CASE WHEN json_valid(note) THEN note END, '$.{COST_AT_MOST}') IS NULL",
        [spec.name],
    ).fetchall()[0]
    known += _priced_since(connection, spec, cost_of)
    open_calls = unsettled_calls(connection, spec, cost_of)
    unsettled = [call for call in open_calls if call.judgment_id not in (settled or {})]
    known_by_hand = sum((settled or {}).get(call.judgment_id, 0.0) for call in open_calls)
    return CostHistory(
        known_usd=float(known) + known_by_hand,
        n_unsettled=len(unsettled),
        estimated_usd=sum(call.estimated_usd for call in unsettled),
        at_most_usd=sum(call.at_most_usd for call in unsettled),
    )


def spent_since(connection: Connection, spec: JudgeSpec, since: datetime, cost_of: CostOf) -> float:
    """USD of this judge's calls that ended at `since` or later, those whose cost was not reported at their worst case."""
    (spent,) = connection.execute(
        f"SELECT coalesce(sum(coalesce(json_extract(CASE WHEN json_valid(note) THEN note END, '$.{COST_AT_MOST}')::DOUBLE, "
        "cost_usd, 0)), 0) FROM stored_judgments WHERE judge = $1 AND judged_at >= $2::TIMESTAMPTZ",
        [spec.name, since],
    ).fetchall()[0]
    unpriced = sum(call.at_most_usd for call in _unpriced_calls(connection, spec, cost_of, since))
    return float(spent) + _priced_since(connection, spec, cost_of, since) + unpriced


def _priced_since(connection: Connection, spec: JudgeSpec, cost_of: CostOf, since: datetime | None = None) -> float:
    """USD of answers whose model had no price when they came and has one now."""
    found = connection.execute(
        "SELECT judge_model, input_tokens, output_tokens, cached_input_tokens FROM stored_judgments "
        "WHERE judge = $1 AND cost_usd IS NULL AND input_tokens IS NOT NULL AND output_tokens IS NOT NULL "
        f"AND json_extract(CASE WHEN json_valid(note) THEN note END, '$.{COST_AT_MOST}') IS NULL "
        "AND ($2::TIMESTAMPTZ IS NULL OR judged_at >= $2::TIMESTAMPTZ)",
        [spec.name, since],
    ).fetchall()
    usages = [
        (Usage(input_tokens=input_tokens, output_tokens=output_tokens, cached_input_tokens=cached), model)
        for model, input_tokens, output_tokens, cached in found
    ]
    return sum(cost_of(usage, model) or 0.0 for usage, model in usages)


def unsettled_calls(connection: Connection, spec: JudgeSpec, cost_of: CostOf) -> list[UnsettledCall]:
    """Every call of this judge whose cost was not reported."""
    # Another model counts other tokens, at another price: its answers bound nothing, and a call may have been its.
    n_by_others = len(_other_models(connection, spec))
    found = connection.execute(_SQL["unsettled"].format(at_most=COST_AT_MOST), {"judge": spec.name}).fetchall()
    calls = []
    for judgment_id, fingerprint, estimated, most, input_tokens in found:
        bound = None
        if input_tokens is not None and fingerprint == spec.fingerprint and not n_by_others:
            bound = cost_of(Usage(input_tokens=input_tokens + NONCE_TOKENS, output_tokens=spec.max_tokens))
        at_most = most if bound is None else min(most, bound)
        calls.append(UnsettledCall(judgment_id=judgment_id, estimated_usd=float(estimated), at_most_usd=float(at_most)))
    return calls + _unpriced_calls(connection, spec, cost_of)


def _unpriced_calls(
    connection: Connection, spec: JudgeSpec, cost_of: CostOf, since: datetime | None = None
) -> list[UnsettledCall]:
    """The calls whose cost was not reported and whose model had no price when they were made; empty where it still has none."""
    found = connection.execute(
        _SQL["unpriced"].format(tokens=TOKENS_AT_MOST), {"judge": spec.name, "since": since}
    ).fetchall()
    others = _other_models(connection, spec)
    calls = []
    for judgment_id, input_tokens, output_tokens in found:
        usd = MostTokens(input_tokens=input_tokens, output_tokens=output_tokens).usd(cost_of, others)
        if usd is not None:
            calls.append(UnsettledCall(judgment_id=judgment_id, estimated_usd=usd, at_most_usd=usd))
    return calls


def _other_models(connection: Connection, spec: JudgeSpec) -> list[str]:
    """Models that have answered this judge's calls in place of the one that was asked."""
    found = connection.execute(
        "SELECT DISTINCT judge_model FROM stored_judgments WHERE judge = $1 "
        f"AND json_extract(CASE WHEN json_valid(note) THEN note END, '$.{ASKED_MODEL}') IS NOT NULL",
        [spec.name],
    ).fetchall()
    return [model for (model,) in found]


# The cost of calls for which none was reported, as settled by a person: on the record beside the judgments.
#
# A call that broke off counts against a cap at its worst case until it is settled from the provider's bill.
# Each settlement is one file, written whole or not at all; it names every call it settles, so that none is settled
# twice.


How = Literal["bill", "calls", "worst_case"]


class SettledCall(msgspec.Struct, frozen=True, kw_only=True):
    """One call: what it was booked at, the most it could cost, and what it is settled at (USD)."""

    judgment_id: str
    estimated_usd: float
    at_most_usd: float
    usd: float


class Settlement(msgspec.Struct, frozen=True, kw_only=True):
    """`how`: from the bill of all of the judge's calls (`bill_usd`), from a sum for these calls alone, or at their worst case."""

    judge: str
    at: datetime
    how: How
    usd: float
    calls: Sequence[SettledCall]
    bill_usd: float | None = None


def settlements_folder(data: Path, experiment: str) -> Path:
    return data / "judgments" / f"experiment={experiment}" / "settled"


def read_settlements(folder: Path) -> list[Settlement]:
    """Every settlement, oldest first."""
    return [msgspec.json.decode(path.read_bytes(), type=Settlement) for path in sorted(folder.glob("*.json"))]


def settled_calls(folder: Path) -> Mapping[str, float]:
    """judgment_id → USD of every settled call."""
    return {call.judgment_id: call.usd for one in read_settlements(folder) for call in one.calls}


def save_settlement(folder: Path, settlement: Settlement) -> Path:
    """Put a settlement on the record; it survives a power loss before this returns."""
    path = folder / f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{secrets.token_hex(3)}.json"
    write_synced(path, msgspec.json.format(msgspec.json.encode(settlement), indent=1))
    return path
