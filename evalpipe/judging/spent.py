"""What a judge has cost so far, from its stored calls: what is known, and the most that the rest can have been."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evalpipe.core.judgment import COST_AT_MOST
from evalpipe.judging.budget import CostOf
from evalpipe.judging.plan import Connection
from evalpipe.judging.spec import JudgeSpec
from evalpipe.providers.base import Usage

NONCE_TOKENS = 200
"""More input tokens than a second asking of the same question can differ by: the tags' codes are drawn anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """USD over all runs. `known_usd` is billed for certain. `n_unsettled` calls broke off, or were in flight when a process
    ended: nobody says what they cost; they are booked at `estimated_usd` and cannot have cost more than `at_most_usd`."""

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
    """One call whose cost nobody reported: what it is booked at, and the most it can have cost (USD)."""

    judgment_id: str
    estimated_usd: float
    at_most_usd: float


def spent_so_far(
    connection: Connection, spec: JudgeSpec, cost_of: CostOf, settled: Mapping[str, float] | None = None
) -> Spent:
    """The account of the judge of this name, whatever its rubric was and whatever is selected now. `settled`: USD of the calls
    that somebody has settled, by judgment id.

    Once a question of an unsettled call was answered, its input is known to the token: from then on only the length of the
    answer that was never seen is held at its worst.
    """
    (known,) = connection.execute(
        "SELECT coalesce(sum(cost_usd), 0) FROM stored_judgments WHERE judge = $1 "
        f"AND json_extract(CASE WHEN json_valid(note) THEN note END, '$.{COST_AT_MOST}') IS NULL",
        [spec.name],
    ).fetchall()[0]
    open_calls = unsettled_calls(connection, spec, cost_of)
    unsettled = [call for call in open_calls if call.judgment_id not in (settled or {})]
    known_by_hand = sum((settled or {}).get(call.judgment_id, 0.0) for call in open_calls)
    return Spent(
        known_usd=float(known) + known_by_hand,
        n_unsettled=len(unsettled),
        estimated_usd=sum(call.estimated_usd for call in unsettled),
        at_most_usd=sum(call.at_most_usd for call in unsettled),
    )


def unsettled_calls(connection: Connection, spec: JudgeSpec, cost_of: CostOf) -> list[UnsettledCall]:
    """Every call of this judge whose cost nobody reported."""
    found = connection.execute(
        f"""
        WITH calls AS (
            SELECT judgment_id, key, judge_fingerprint, attempt, cost_usd, input_tokens,
                CASE WHEN json_valid(note) THEN note END AS note
            FROM stored_judgments WHERE judge = $1
        ), asked_again AS (SELECT key, max(input_tokens) AS input_tokens FROM calls GROUP BY key)
        SELECT calls.judgment_id, calls.judge_fingerprint, coalesce(calls.cost_usd, 0),
            json_extract(note, '$.{COST_AT_MOST}')::DOUBLE,
            CASE WHEN json_extract(note, '$.repair') IS NULL THEN asked_again.input_tokens END
        FROM calls JOIN asked_again USING (key) WHERE json_extract(note, '$.{COST_AT_MOST}') IS NOT NULL""",
        [spec.name],
    ).fetchall()
    calls = []
    for judgment_id, fingerprint, estimated, most, input_tokens in found:
        bound = None
        if input_tokens is not None and fingerprint == spec.fingerprint:
            bound = cost_of(Usage(input_tokens=input_tokens + NONCE_TOKENS, output_tokens=spec.max_tokens))
        at_most = most if bound is None else min(most, bound)
        calls.append(UnsettledCall(judgment_id=judgment_id, estimated_usd=float(estimated), at_most_usd=float(at_most)))
    return calls
