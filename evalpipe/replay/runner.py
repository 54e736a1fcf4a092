"""Replaying call by call: the runner of calls with an arm's requests, and the rows that keep their answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from evalpipe.calls.client import CallOutcome, ModelResponse
from evalpipe.calls.http import HttpAnswer, HttpSender, response_of
from evalpipe.calls.runner import CallRunner, RecordedCost, Route
from evalpipe.models import Arm, ReplayCall, ReplayStatus
from evalpipe.providers.base import OutgoingRequest
from evalpipe.replay.plan import PlannedCall
from evalpipe.replay.requests import ReplayArm, counted_bytes, longest_answer
from evalpipe.replay.rows import NOT_THE_ARM, call_row, exchange_of
from evalpipe.replay.summary import ReplaySummary
from evalpipe.store.exchange_rows import ReadingRules

MAX_FAILED_IN_A_ROW = 20
"""Answers of an arm that were all failures of its server before the run ends: that is an outage, not the arm."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """An arm, how it is reached, and its limits."""

    settings: ReplayArm
    sender: HttpSender
    route: Route


@dataclass(kw_only=True)
class ReplayRunner(CallRunner[PlannedCall, ReplayCall]):
    """Sends what is planned. `retries_errors` False: errors are measured, so an error of the server is the arm's answer."""

    experiment: str
    arms: Mapping[Arm, Asked]
    rules: ReadingRules
    tally: ReplaySummary
    n_failed_in_a_row: dict[Arm, int] = field(default_factory=dict, init=False)

    def ends_without_call(self, planned: PlannedCall) -> bool:
        """What cannot be said to an arm faithfully is not sent."""
        if planned.refused is None:
            return False
        self.tally.leave_out(planned.refused)
        return True

    async def work(self, planned: PlannedCall) -> None:
        """Ask an arm, and count how it ended."""
        asked = self.arms[planned.arm]
        assert planned.outgoing is not None
        call = _ArmCall(planned, planned.outgoing, asked, self.experiment, self.rules)
        row = await self.call(call, asked.route, planned.attempt + 1)
        if row is not None:
            self.tally.end(row)
            self._watch_outage(planned.arm, row)
        self.show()

    def _watch_outage(self, arm: Arm, row: ReplayCall) -> None:
        failed = row.status is not ReplayStatus.ANSWERED and (row.kind or "").startswith(("http_5", "timeout", "cut"))
        n = self.n_failed_in_a_row[arm] = self.n_failed_in_a_row.get(arm, 0) + 1 if failed else 0
        if n >= MAX_FAILED_IN_A_ROW:
            self.stop(
                "failing", f"the last {n} calls of {arm.value} all failed ({row.kind}: {row.message or 'no words'})"
            )


class _ArmCall:
    """One call of an arm with a logged request."""

    def __init__(
        self, planned: PlannedCall, outgoing: OutgoingRequest, asked: Asked, experiment: str, rules: ReadingRules
    ) -> None:
        self._planned, self._outgoing, self._asked = planned, outgoing, asked
        self._experiment, self._rules = experiment, rules
        self._found: HttpAnswer | None = None
        self.n_chars = len(outgoing.body)
        self.n_bytes = counted_bytes(outgoing.body)
        self.max_tokens = longest_answer(outgoing.body)

    async def send(self) -> ModelResponse:
        arm, made = self._asked.settings, self._outgoing
        self._found = await self._asked.sender.post(arm.urls[made.endpoint], {**made.headers, **arm.key}, made.body)
        return response_of(made.endpoint, self._found)

    def sent(self, attempt: int, *, booking: RecordedCost, at: datetime) -> ReplayCall:
        return self._row(attempt, ReplayStatus.SENT, booking, at, None, keeps=False)

    def answered(self, attempt: int, reply: ModelResponse, *, booking: RecordedCost, at: datetime) -> ReplayCall:
        return self._row(attempt, ReplayStatus.ANSWERED, booking, at, reply, keeps=True)

    def failed(
        self, attempt: int, reply: ModelResponse, *, booking: RecordedCost, at: datetime, is_last: bool
    ) -> ReplayCall:
        is_final = is_last and reply.fate not in NOT_THE_ARM and reply.fate is not CallOutcome.ANSWERED
        status = ReplayStatus.FAILED if is_final else ReplayStatus.OPEN
        return self._row(attempt, status, booking, at, reply, keeps=is_final)

    def _row(
        self,
        attempt: int,
        status: ReplayStatus,
        booking: RecordedCost,
        at: datetime,
        reply: ModelResponse | None,
        *,
        keeps: bool,
    ) -> ReplayCall:
        logged, arm = self._planned.logged, self._asked.settings
        exchange = None
        if keeps and self._found is not None:
            exchange = exchange_of(
                logged,
                arm,
                self._outgoing,
                self._found,
                experiment=self._experiment,
                rules=self._rules,
                attempt=attempt,
            )
        return call_row(logged, arm, attempt, status, booking=booking, at=at, reply=reply, exchange=exchange)
