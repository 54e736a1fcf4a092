"""Judging call by call: a pair's message, its verdict, and the one repair of a reply that cannot be read.

The limits, the budget, the journal and the retries are those of every run of calls (`calls.runner`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from evalpipe.calls.budget import CostOf, TokenEstimator
from evalpipe.calls.client import JudgeClient, Messages, ModelResponse
from evalpipe.calls.limiter import Limiter
from evalpipe.calls.runner import CallRunner, RecordedCost, Route, SystemClock
from evalpipe.judging.judgments import ended, identical, message_of, read_note, sent
from evalpipe.judging.plan import MAX_ATTEMPTS, JudgeCall
from evalpipe.judging.prompt import Message, repair_message
from evalpipe.judging.run_summary import RunSummary
from evalpipe.judging.spec import JudgeSpec
from evalpipe.models import Judgment, JudgmentStatus

__all__ = ["Runner", "SystemClock", "repair_turns"]


@dataclass(kw_only=True)
class Runner(CallRunner[JudgeCall, Judgment]):
    """Everything one judge's run needs. `watch` gets every judgment that ended and may return a reason to
    stop; `ask_identical`: also put the same answer twice to the judge (a test of the judge); `max_attempts`: answers without a
    verdict that a call is paid for, over all runs; `other_models`: models that have answered in place of the one asked."""

    spec: JudgeSpec
    client: JudgeClient
    limiter: Limiter
    cost_of: CostOf
    summary: RunSummary
    watch: Callable[[JudgeCall, Judgment], str | None] = lambda ask, judgment: None
    ask_identical: bool = False
    max_attempts: int = MAX_ATTEMPTS
    other_models: set[str] = field(default_factory=set)

    async def run(self, pages: Iterator[list[JudgeCall]]) -> None:
        """Judge everything that is planned, or until something stops the run (`summary.stopped`, `summary.message`)."""
        self._route = Route(
            who=f"judge {self.spec.name}",
            model=self.spec.model,
            limiter=self.limiter,
            cost_of=self.cost_of,
            estimator=TokenEstimator(max_tokens=self.spec.max_tokens),
            other_models=self.other_models,
        )
        await super().run(pages)

    def ends_without_call(self, planned: JudgeCall) -> bool:
        """Identical responses are a tie without a call."""
        if not planned.is_identical or self.ask_identical:
            return False
        self._end(planned, self.write(identical(planned, self.spec, at=self.clock.utc())))
        return True

    async def work(self, planned: JudgeCall) -> None:
        """Ask for a verdict; a reply that cannot be read is asked for once more, with what was wrong with it."""
        message = message_of(planned, self.spec, self.clock.nonce())
        request = _JudgeRequest(planned, self.spec, self.client, message, [("user", message.text)])
        judgment = await self.call(request, self._route, planned.attempt + 1)
        can_repair = planned.n_unread + 1 < self.max_attempts
        if (
            judgment is not None
            and judgment.status is JudgmentStatus.UNPARSEABLE
            and can_repair
            and not self.is_stopping()
        ):
            self.summary.n_repairs += 1
            again = _JudgeRequest(
                planned, self.spec, self.client, message, repair_turns(request.turns, judgment), repair=True
            )
            judgment = await self.call(again, self._route, judgment.attempt + 1) or judgment
        if judgment is not None:
            self._end(planned, judgment)

    def _end(self, ask: JudgeCall, judgment: Judgment) -> None:
        """A planned call has ended in this run."""
        self.summary.end(judgment)
        reason = self.watch(ask, judgment)
        if reason:
            self.stop("decided", reason)
        self.show()


class _JudgeRequest:
    """One call of a judge: the turns it is sent, and the judgments that keep it."""

    def __init__(
        self,
        ask: JudgeCall,
        spec: JudgeSpec,
        client: JudgeClient,
        message: Message,
        turns: Messages,
        *,
        repair: bool = False,
    ) -> None:
        self._ask, self._spec, self._client, self._message, self._repair = ask, spec, client, message, repair
        self.turns = turns
        self.max_tokens = spec.max_tokens
        self.n_chars = len(spec.system) + sum(len(text) for _, text in turns)
        self.n_bytes = system_bytes(spec) + sum(len(text.encode("utf-8", "surrogatepass")) for _, text in turns)

    async def send(self) -> ModelResponse:
        return await self._client.ask(self.turns)

    def sent(self, attempt: int, *, booking: RecordedCost, at: datetime) -> Judgment:
        return sent(self._ask, attempt, self._spec, booking=booking, at=at, repair=self._repair)

    def answered(self, attempt: int, reply: ModelResponse, *, booking: RecordedCost, at: datetime) -> Judgment:
        return self._ended(attempt, reply, booking, at)

    def failed(
        self, attempt: int, reply: ModelResponse, *, booking: RecordedCost, at: datetime, is_last: bool
    ) -> Judgment:
        return self._ended(attempt, reply, booking, at)

    def _ended(self, attempt: int, reply: ModelResponse, booking: RecordedCost, at: datetime) -> Judgment:
        return ended(
            self._ask,
            attempt,
            self._spec,
            reply,
            booking=booking,
            at=at,
            message=self._message,
            repair=self._repair,
        )


def system_bytes(spec: JudgeSpec) -> int:
    """Bytes of what every call of a judge begins with: its rubric and the schema of its reply."""
    return len(spec.system.encode("utf-8", "surrogatepass")) + len(str(spec.schema))


def repair_turns(turns: Messages, judgment: Judgment) -> Messages:
    """The turns of the one repair: the unreadable reply, and what was wrong with it. An empty reply is no turn."""
    asked = repair_message(str(read_note(judgment.note).get("message", "it is not the JSON object asked for")))
    reply = judgment.raw_reply or ""
    if reply.strip():
        return [*turns, ("assistant", reply), ("user", asked)]
    ((role, text),) = turns
    return [(role, f"{text}\n\n{asked}")]
