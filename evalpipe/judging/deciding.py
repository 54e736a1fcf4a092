"""`--until-decided`: judging stops when the win rate is decided by the exact betting e-process (statistics.md 6 and 7).

Only the completed prefix of the planned order is looked at: calls finish out of order, and a look at whichever happened to
be quick would be a look at the easy pairs. All pairs of a user are adjacent and count once, as their mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evalpipe.core.judgment import FINAL, Judgment, ShownFirst
from evalpipe.judging.plan import Ask, Connection
from evalpipe.stats.stopping import LOOK_EVERY, Evidence, StopRule, look_in_order


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedPair:
    """One pair in the order of the run: how many of its calls are open, and the preferences known before, by order."""

    request_id: str
    unit: str
    n_open: int
    known: Mapping[ShownFirst, Sequence[float]]


class Decider:
    """Told of every judgment that ends; says when enough is known. `max_units`: the sample at which to stop for good."""

    def __init__(self, rule: StopRule, pairs: Sequence[PlannedPair], *, max_units: float) -> None:
        self._rule, self._pairs, self._max = rule, pairs, max_units
        self._open = {pair.request_id: pair.n_open for pair in pairs if pair.n_open}
        self._found = {pair.request_id: {order: list(found) for order, found in pair.known.items()} for pair in pairs}
        self._failed: set[str] = set()
        self._next = 0
        self._unit: list[float] = []
        self._looked_at = 0
        self.preferences: list[float] = []
        """one per user, in the planned order: what the e-process has seen"""
        self.evidence = Evidence()

    @property
    def conclusion(self) -> str:
        return self.evidence.conclusion(self._rule)

    def start(self) -> str | None:
        """What is known before the first call may already decide."""
        return self._look()

    def watch(self, ask: Ask, judgment: Judgment) -> str | None:
        """Why to stop, or None."""
        request_id = ask.request_id
        if request_id not in self._open:
            return None
        self._open[request_id] -= 1
        if judgment.status not in FINAL or judgment.preference is None:
            self._failed.add(request_id)
        else:
            self._found[request_id].setdefault(judgment.shown_first, []).append(judgment.preference)
        if self._open[request_id] == 0:
            del self._open[request_id]
        return self._look()

    def _look(self) -> str | None:
        self._advance()
        n = len(self.preferences)
        if n - self._looked_at < LOOK_EVERY:
            return None
        self._looked_at = n
        self.evidence = look_in_order(self._rule, self.preferences)
        if self.evidence.is_decided(self._rule):
            return f"win rate {self.conclusion} after {n:,} units"
        return f"{n:,} units judged and nothing proven" if n >= self._max else None

    def _advance(self) -> None:
        """Move over every pair whose calls have all ended; a user is complete when the next user's first pair is reached."""
        while self._next < len(self._pairs):
            pair = self._pairs[self._next]
            if pair.request_id in self._open:
                return
            preference = self._preference(pair.request_id)
            if preference is not None:
                self._unit.append(preference)
            self._next += 1
            last = self._next == len(self._pairs)
            if last or self._pairs[self._next].unit != pair.unit:
                if self._unit:
                    self.preferences.append(sum(self._unit) / len(self._unit))
                self._unit = []

    def _preference(self, request_id: str) -> float | None:
        """The mean over orders of the mean over repeats; None for a pair that failed: it is missing, not a tie."""
        orders = [sum(found) / len(found) for found in self._found[request_id].values() if found]
        return None if request_id in self._failed or not orders else sum(orders) / len(orders)


def planned_pairs(connection: Connection, fingerprint: str) -> list[PlannedPair]:
    """The pairs of a plan made with `by_user`, in its order."""
    rows = connection.execute(
        """
        WITH known AS (
            SELECT request_id, list(preference) FILTER (shown_first = 'control') AS control_first,
                list(preference) FILTER (shown_first = 'treatment') AS treatment_first
            FROM judgments
            WHERE judge_fingerprint = $1 AND preference IS NOT NULL AND list_contains($2::VARCHAR[], status)
            GROUP BY request_id
        ), units AS (
            SELECT request_id, any_value(coalesce(unit_id, conversation_id, request_id)) AS unit
            FROM exchanges WHERE arm = 'control' AND role <> 'replay' GROUP BY request_id
        )
        SELECT asked.request_id, units.unit, coalesce(plan.n_calls, 0),
            known.control_first, known.treatment_first
        FROM judging_asked AS asked
        JOIN units USING (request_id)
        LEFT JOIN judging_plan AS plan USING (request_id)
        LEFT JOIN known USING (request_id)
        ORDER BY asked.rank""",
        [fingerprint, sorted(FINAL)],
    ).fetchall()
    return [
        PlannedPair(
            request_id=request_id,
            unit=unit,
            n_open=int(n_open),
            known={ShownFirst.CONTROL: control_first or [], ShownFirst.TREATMENT: treatment_first or []},
        )
        for request_id, unit, n_open, control_first, treatment_first in rows
    ]
