"""Replaying logged requests: call by call (`ReplayRunner`), or in a provider's batches (`ReplayBatches`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from evalpipe.calls.batches import OPEN, Batches, BatchItem, BatchRequest, BatchState, intents, items_in
from evalpipe.calls.client import CallOutcome, ModelResponse
from evalpipe.calls.runner import CallRunner, RecordedCost, Route
from evalpipe.identity import fingerprint
from evalpipe.models import Arm, ReplayCall, ReplayStatus
from evalpipe.providers.base import NotShadowableError, OutgoingRequest
from evalpipe.replay.http_client import HttpAnswer, HttpSender, response_of
from evalpipe.replay.plan import PlannedCall
from evalpipe.replay.requests import (
    NOT_THE_ARM,
    LoggedRequest,
    ReplayArm,
    call_row,
    counted_bytes,
    exchange_of,
    longest_answer,
    outgoing_of,
)
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
class ReplayRun(CallRunner[PlannedCall, ReplayCall]):
    """A replay's run, wherever its calls are made."""

    summary: ReplaySummary
    n_failed_in_a_row: dict[Arm, int] = field(default_factory=dict, init=False)

    def ends_without_call(self, planned: PlannedCall) -> bool:
        """A request that cannot be translated faithfully is not sent."""
        if planned.refused is None:
            return False
        self.summary.leave_out(planned.refused)
        return True

    def end(self, planned: PlannedCall, row: ReplayCall) -> None:
        """Count how it ended."""
        self.summary.end(row)
        self._watch_outage(planned.arm, row)
        self.show()

    def _watch_outage(self, arm: Arm, row: ReplayCall) -> None:
        failed = row.status is not ReplayStatus.ANSWERED and (row.kind or "").startswith(("http_5", "timeout", "cut"))
        n = self.n_failed_in_a_row[arm] = self.n_failed_in_a_row.get(arm, 0) + 1 if failed else 0
        if n >= MAX_FAILED_IN_A_ROW:
            self.stop(
                "failing", f"the last {n} calls of {arm.value} all failed ({row.kind}: {row.message or 'no words'})"
            )


@dataclass(kw_only=True)
class ReplayRunner(ReplayRun):
    """Sends what is planned from this process. `retries_errors` False: errors are measured, so an error of the server is the
    arm's answer."""

    experiment: str
    arms: Mapping[Arm, Asked]
    rules: ReadingRules

    async def work(self, planned: PlannedCall) -> None:
        """Ask an arm."""
        asked = self.arms[planned.arm]
        assert planned.outgoing is not None
        call = _ArmCall(planned, planned.outgoing, asked, self.experiment, self.rules)
        row = await self.call(call, asked.route, planned.attempt + 1)
        if row is not None:
            self.end(planned, row)


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
        is_final = is_last and reply.outcome not in NOT_THE_ARM and reply.outcome is not CallOutcome.ANSWERED
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


# In a provider's batches: half the price, no latency, no streams.


OF_THE_BATCH = frozenset({"expired", "canceled", "cancelled", "no_result"})
"""failures of a batch, not of the arm: the request is asked again"""
MAX_BATCH_TRIES = 3
"""Batches in which one request ends with an error before that is the arm's answer."""


class ReplayItem(BatchItem, frozen=True, kw_only=True, omit_defaults=True):
    """One request of a batch. Its text is read from the log again when the answer is there."""

    arm: Arm


def custom_id(request_id: str, arm: Arm, attempt: int) -> str:
    """Within what the providers allow, 64 of [A-Za-z0-9_-], whatever a log's own ids are."""
    return f"{fingerprint([request_id, arm.value], length=52)}-{attempt}"


def pending(folder: Path) -> list[tuple[str, str]]:
    """(request, arm) of everything that waits in an open batch."""
    return [
        (item.request_id, item.arm.value)
        for intent in intents(folder)
        if intent.state in OPEN
        for item in items_in(folder, intent, ReplayItem)
    ]


@dataclass(kw_only=True)
class ReplayBatches(Batches[PlannedCall, ReplayItem, ReplayCall]):
    """The batches of one arm and one endpoint.

    Attributes:
        arm: the arm that is called.
        experiment: the name.
        rules: prices.
        find: the logged requests of these ids.
    """

    spec: ReplayArm
    summary: ReplaySummary
    experiment: str
    rules: ReadingRules
    find: Callable[[Collection[str]], Mapping[str, LoggedRequest]]
    _logged: Mapping[str, LoggedRequest] = field(default_factory=dict, init=False)

    def request_of(self, planned: PlannedCall) -> BatchRequest[ReplayItem] | None:
        """The request as a batch takes it."""
        if planned.refused is not None or planned.outgoing is None:
            return None
        body = planned.outgoing.body
        attempt = planned.attempt + 1
        return BatchRequest(
            item=ReplayItem(
                custom_id=custom_id(planned.logged.request_id, planned.arm, attempt),
                attempt=attempt,
                request_id=planned.logged.request_id,
                arm=planned.arm,
            ),
            body=json.loads(body),
            n_bytes=counted_bytes(body),
            max_tokens=longest_answer(body),
        )

    def before_collecting(self, items: Collection[ReplayItem]) -> None:
        """Read the requests of a batch from the log."""
        self._logged = self.find([item.request_id for item in items])

    def record(self, intent: BatchState, item: ReplayItem, reply: ModelResponse, batch_id: str) -> None:
        """Write down the answer; one of another configuration of the arm is paid, and is no answer of this one."""
        booking = self.booking(intent, item, reply)
        answered = reply.outcome is CallOutcome.ANSWERED
        logged = self._logged.get(item.request_id) or LoggedRequest(
            request_id=item.request_id, request="", endpoint="chat.completions"
        )
        outgoing = self._sent(logged)
        is_ours = intent.fingerprint == self.fingerprint and outgoing is not None
        is_final = answered or (
            reply.outcome is CallOutcome.REFUSED
            or (reply.kind not in OF_THE_BATCH and (reply.kind.startswith("http_4") or item.attempt >= MAX_BATCH_TRIES))
        )
        status = ReplayStatus.ANSWERED if answered else ReplayStatus.FAILED if is_final else ReplayStatus.OPEN
        exchange = None
        if is_ours and is_final and outgoing is not None:
            body = (
                reply.body
                if answered
                else json.dumps({"error": {"message": reply.message, "type": reply.kind}}).encode()
            )
            found = HttpAnswer(
                started_at=self.clock.utc().timestamp(),
                status=200 if answered else 400,
                headers={"content-type": "application/json"}
                | ({"x-simulated-by": "evalpipe"} if reply.simulated else {}),
                body=body,
            )
            exchange = exchange_of(
                logged,
                self.spec,
                outgoing,
                found,
                experiment=self.experiment,
                rules=self.rules,
                attempt=item.attempt,
                batch_id=batch_id,
                usage=reply.usage,
            )
        row = call_row(
            logged,
            self.spec,
            item.attempt,
            status if is_ours else ReplayStatus.OPEN,
            booking=booking,
            at=self.clock.utc(),
            reply=reply,
            exchange=exchange,
            batch_id=batch_id,
        )
        self.write(row, row.cost_usd)
        self.summary.end(row)
        self.show()

    def _sent(self, logged: LoggedRequest) -> OutgoingRequest | None:
        try:
            return outgoing_of(logged, self.spec, batch=True) if logged.request else None
        except NotShadowableError:  # the arm's configuration has changed since
            return None


def of_one(pages: Iterator[list[PlannedCall]], arm: Arm, endpoint: str) -> Iterator[list[PlannedCall]]:
    """The planned calls of one arm and endpoint: a batch holds no others."""
    for page in pages:
        yield [one for one in page if one.arm is arm and (one.outgoing is None or one.outgoing.endpoint == endpoint)]
