"""Judging call by call: a pair's message, its verdict, the one repair of a reply that cannot be read, and what a run did.

The limits, the budget, the journal and the retries are those of every run of calls (`calls.runner`). `RunSummary` counts for the
progress line, the summary and `--json`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any

from evalpipe.calls.budget import CostOf, TokenEstimator
from evalpipe.calls.client import JudgeClient, Messages, ModelResponse
from evalpipe.calls.limiter import Limiter
from evalpipe.calls.runner import CallRunner, RecordedCost, Route, RunCounts, SystemClock
from evalpipe.judging.costs import CostHistory
from evalpipe.judging.judgments import ended, identical, message_of, read_note, sent
from evalpipe.judging.plan import MAX_ATTEMPTS, NO_FACTS, JudgeCall
from evalpipe.judging.prompt import Message, repair_message
from evalpipe.judging.spec import JudgeSpec
from evalpipe.models import ASKED_MODEL, FINAL, Judgment, JudgmentStatus

__all__ = ["WITHOUT_FACTS", "JudgeRun", "RunSummary", "Runner", "SystemClock", "repair_turns", "system_bytes"]

WITHOUT_FACTS = frozenset(NO_FACTS.values())


@dataclass(slots=True)
class RunSummary(RunCounts[Judgment]):
    """One judge's run. `failed` counts judgments that are not final.

    Attributes:
        address: where the calls go.
        n_over_cap: pairs that were left out because their user has k others.
        limit: only the first so many pairs were to be judged; None: all. n_beyond_limit: with nothing to do within it, how many
            are left beyond it.
        asked: judgments that ended, by status.
        n_given_up: calls that are not made again, as none of their answers held a verdict; `given_up`: the requests of them.
        unjudgeable: pairs (or answers) left out since an answer holds no text to judge, or there is nothing to check it against,
            by kind.
        other_models: calls of this run that another model than `model` answered, by its name.
        account: what this judge has cost in this experiment, over all runs; None until the run has ended.
    """

    judge: str
    fingerprint: str
    address: str = ""
    model: str = ""
    n_over_cap: int = 0
    limit: int | None = None
    n_beyond_limit: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    tripwires: Counter[str] = field(default_factory=Counter)
    n_repairs: int = 0
    n_contradictions: int = 0
    n_cut: int = 0
    n_given_up: int = 0
    given_up: list[str] = field(default_factory=list)
    unjudgeable: dict[str, int] = field(default_factory=dict)
    other_models: Counter[str] = field(default_factory=Counter)
    account: CostHistory | None = None

    def book(self, row: Judgment) -> None:
        """Count what a call cost, whatever its outcome."""
        self.n_calls += row.latency_ms is not None
        if ASKED_MODEL in (row.note or ""):
            self.other_models[row.judge_model or "?"] += 1
        self.add_usage(row)

    def end(self, judgment: Judgment) -> None:
        """Count how a planned call ended: `judgment` is its last attempt of this run."""
        self.asked[judgment.status.value] += 1
        note = read_note(judgment.note)
        self.n_contradictions += bool(note.get("contradiction"))
        self.n_cut += bool(note.get("cut"))
        self.tripwires.update({name for names in note.get("tripwires", {}).values() for name in names})
        if judgment.status not in FINAL:
            reason = str(note.get("error", judgment.status.value))
            self.add_failure(reason, str(note.get("message", "")))

    @property
    def title(self) -> str:
        return f"judge {self.judge}"

    @property
    def n_ended(self) -> int:
        return sum(self.asked.values())

    @property
    def n_failed(self) -> int:
        return sum(self.failed.values())

    @property
    def n_succeeded(self) -> int:
        """Judgments with a verdict; ties of identical answers, for which no call is made, among them."""
        return sum(self.asked[status.value] for status in FINAL)

    @property
    def is_failure(self) -> bool:
        """Calls were made, and none of them gave a verdict."""
        return self.n_failed > 0 and not self.asked[JudgmentStatus.OK.value]

    def as_json(self) -> dict[str, Any]:
        return {
            "judge": self.judge,
            "fingerprint": self.fingerprint,
            "planned": self.n_planned,
            "known": self.n_known,
            "succeeded": self.n_succeeded,
            "left_out_by_pairs_per_unit": self.n_over_cap,
            "left_beyond_limit": self.n_beyond_limit,
            "given_up": self.n_given_up,
            "given_up_requests": list(self.given_up),
            "left_out_without_text": {
                kind: n for kind, n in sorted(self.unjudgeable.items()) if kind not in WITHOUT_FACTS
            },
            "left_out_without_facts": {
                kind: n for kind, n in sorted(self.unjudgeable.items()) if kind in WITHOUT_FACTS
            },
            "answered_by_other_models": dict(sorted(self.other_models.items())),
            "judgments": dict(sorted(self.asked.items())),
            **self.failures_json(),
            "calls": self.n_calls,
            "repairs": self.n_repairs,
            "contradictions": self.n_contradictions,
            "cut": self.n_cut,
            "tripwires": dict(sorted(self.tripwires.items())),
            **self.cost_json(),
            "all_runs": None if self.account is None else asdict(self.account),
            **self.end_json(),
        }


@dataclass(kw_only=True)
class JudgeRun(CallRunner[JudgeCall, Judgment]):
    """One judge's run, wherever its calls are made. `watch` gets every judgment that ended and may return a reason to
    stop; `ask_identical`: also put the same answer twice to the judge (a test of the judge); `max_attempts`: answers without a
    verdict that a call is paid for, over all runs; `other_models`: models that have answered in place of the one asked."""

    spec: JudgeSpec
    limiter: Limiter
    cost_of: CostOf
    summary: RunSummary
    watch: Callable[[JudgeCall, Judgment], str | None] = lambda ask, judgment: None
    ask_identical: bool = False
    max_attempts: int = MAX_ATTEMPTS
    other_models: set[str] = field(default_factory=set)
    route: Route = field(init=False)

    def __post_init__(self) -> None:
        self.route = Route(
            who=f"judge {self.spec.name}",
            model=self.spec.model,
            limiter=self.limiter,
            cost_of=self.cost_of,
            estimator=TokenEstimator(max_tokens=self.spec.max_tokens),
            other_models=self.other_models,
        )

    def ends_without_call(self, planned: JudgeCall) -> bool:
        """Identical responses are a tie without a call."""
        if not planned.is_identical or self.ask_identical:
            return False
        self.end(planned, self.write(identical(planned, self.spec, at=self.clock.utc())))
        return True

    def end(self, planned: JudgeCall, row: Judgment) -> None:
        """A planned call has ended in this run."""
        self.summary.end(row)
        reason = self.watch(planned, row)
        if reason:
            self.stop("decided", reason)
        self.show()


@dataclass(kw_only=True)
class Runner(JudgeRun):
    """Makes the calls of a judge's run from this process."""

    client: JudgeClient

    async def work(self, planned: JudgeCall) -> None:
        """Ask for a verdict; a reply that cannot be read is asked for once more, with what was wrong with it."""
        message = message_of(planned, self.spec, self.clock.nonce())
        request = _JudgeRequest(planned, self.spec, self.client, message, [("user", message.text)])
        judgment = await self.call(request, self.route, planned.attempt + 1)
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
            judgment = await self.call(again, self.route, judgment.attempt + 1) or judgment
        if judgment is not None:
            self.end(planned, judgment)


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
