"""The runner: one process, many calls in flight, each bounded by the limits, the budget and the user's patience.

Each judgment is in the journal before another call takes its place. A call that failed for a reason that costs nothing is
asked again after a pause, in its place; one that may have been billed is written down first. Ctrl-C finishes what is in
flight; a second one stops at once.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Protocol

from evalpipe.calls.budget import Budget, CostOf, TokenEstimator, dearest, is_priced_by, most_input_tokens
from evalpipe.calls.client import FREE, CallOutcome, JudgeClient, JudgeResponse, Messages
from evalpipe.calls.journal import NoRoomError
from evalpipe.calls.limiter import DEFAULT_PAUSE_S, Limiter, TokenReservation
from evalpipe.judging.judgments import RecordedCost, answered, failure, identical, message_of, read_note, sent
from evalpipe.judging.plan import MAX_ATTEMPTS, JudgeCall
from evalpipe.judging.prompt import Message, repair_message
from evalpipe.judging.run_summary import RunSummary
from evalpipe.judging.spec import JudgeSpec
from evalpipe.models import Judgment, JudgmentStatus
from evalpipe.providers.base import Usage
from evalpipe.providers.model_names import same_model

MAX_FREE_TRIES = 8
"""Tries of one call at a server that fails without charge: about two minutes of back-off."""
MAX_UNREACHED_TRIES = 4
"""Tries of one call at an address that has never sent anything in this run: a few seconds of back-off."""
MAX_UNREACHED_CALLS = 3
"""Calls that found no connection in all their tries before the run ends, where none ever found one."""
MAX_PAUSES = 60
"""429s of one call; each is waited out."""
MAX_PAID_TRIES = 3
"""Tries of one call whose answers break off: each may be billed."""
BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
_LOOK_AGAIN_S = 0.05
"""While a limit is waited for, it is looked at this often: a settled call or a header may have freed it sooner."""
_NOTHING = TokenReservation(requests=0.0)
LONG_WAIT_S = 10.0
"""A longer wait is announced."""
_FINAL_FATES = (CallOutcome.REJECTED, CallOutcome.REFUSED, CallOutcome.FATAL)


class Records(Protocol):
    """Where calls are written down: `journal.Journal`."""

    def begin(self, judgment: Judgment) -> None: ...

    def append(self, judgment: Judgment) -> None: ...


class Clock(Protocol):
    """Time and chance, so that tests can hold them."""

    def monotonic(self) -> float: ...

    def utc(self) -> datetime: ...

    async def sleep(self, seconds: float) -> None: ...

    def jitter(self) -> float:
        """A number in [0, 1)."""
        ...

    def nonce(self) -> str:
        """16 hex digits nobody can foresee."""
        ...


@dataclass(kw_only=True)
class Runner:
    """Everything one judge's run needs. `watch` is told of every judgment that ended and may answer with a reason to
    stop; `rotate` is called between pages and puts what the journal holds into the store; `ask_identical`: also put the same
    answer twice to the judge (a test of the judge); `max_attempts`: answers without a verdict that a call is paid for, over all
    runs; `other_models`: models that have answered in place of the one asked, at whose price a call may be billed; `announce`
    prints a line about a long wait."""

    spec: JudgeSpec
    client: JudgeClient
    limiter: Limiter
    budget: Budget
    cost_of: CostOf
    journal: Records
    clock: Clock
    tally: RunSummary
    concurrency: int
    watch: Callable[[JudgeCall, Judgment], str | None] = lambda ask, judgment: None
    show: Callable[[], None] = lambda: None
    rotate: Callable[[], Awaitable[None]] | None = None
    ask_identical: bool = False
    max_attempts: int = MAX_ATTEMPTS
    other_models: set[str] = field(default_factory=set)
    announce: Callable[[str], None] = lambda line: None
    n_in_flight: int = field(default=0, init=False)
    _reached: bool = field(default=False, init=False)
    _n_unreached: int = field(default=0, init=False)
    _stopping: str = field(default="", init=False)
    _error: BaseException | None = field(default=None, init=False)
    _said_until: float = field(default=float("-inf"), init=False)
    _why_paused: str = field(default="", init=False)

    async def run(self, pages: Iterator[list[JudgeCall]]) -> None:
        """Judge everything that is planned, or until something stops the run (`tally.stopped`, `tally.message`)."""
        self._estimator = TokenEstimator(max_tokens=self.spec.max_tokens)
        self._gate = asyncio.Lock()
        self._changed = asyncio.Event()
        self._stopped = asyncio.Event()
        self._n_system_chars = len(self.spec.system)
        self._n_system_bytes = len(self.spec.system.encode("utf-8", "surrogatepass")) + len(str(self.spec.schema))
        slots = asyncio.Semaphore(self.concurrency)
        self._tasks: set[asyncio.Task[None]] = set()
        page = await asyncio.to_thread(next, pages, None)
        try:
            while page is not None and not self.is_stopping():
                following = asyncio.create_task(asyncio.to_thread(next, pages, None))
                for ask in page:
                    if ask.is_identical and not self.ask_identical:
                        self._end(ask, self._write(identical(ask, self.spec, at=self.clock.utc())))
                        continue
                    await slots.acquire()
                    if self.is_stopping():
                        slots.release()
                        break
                    task = asyncio.create_task(self._judge(ask))
                    self._tasks.add(task)
                    task.add_done_callback(partial(self._finished, slots))
                self._raise_ours()
                page = await following
                if self.rotate is not None:
                    await self.rotate()
            while self._tasks:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in self._tasks:
                task.cancel()
        self._raise_ours()

    def is_stopping(self) -> bool:
        """Whether nothing more is to be started."""
        return bool(self._stopping)

    def stop(self, reason: str, message: str | None = None) -> None:
        """Start nothing more; what is in flight is finished. The first reason stands."""
        if not self._stopping:
            self._stopping = self.tally.stopped = reason
            self.tally.message = message
            self._stopped.set()
            self._changed.set()

    def stop_now(self) -> None:
        """Drop what is in flight: it stays in the journal as sent."""
        self.stop("interrupted")
        for task in self._tasks:
            task.cancel()

    def _finished(self, slots: asyncio.Semaphore, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        slots.release()

    def _raise_ours(self) -> None:
        if self._error is not None:
            raise self._error

    async def _judge(self, ask: JudgeCall) -> None:
        try:
            await self._judge_one(ask)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  a bug of ours: raised by `run`, once what is in flight has ended
            self._error = self._error or error
            self.stop("failed")

    async def _judge_one(self, ask: JudgeCall) -> None:
        message = message_of(ask, self.spec, self.clock.nonce())
        turns = [("user", message.text)]
        judgment = await self._call(ask, ask.attempt + 1, turns, message)
        can_repair = ask.n_unread + 1 < self.max_attempts
        if judgment is not None and judgment.status is JudgmentStatus.UNPARSEABLE and can_repair and not self._stopping:
            self.tally.n_repairs += 1
            again = repair_turns(turns, judgment)
            judgment = await self._call(ask, judgment.attempt + 1, again, message, repair=True) or judgment
        if judgment is not None:
            self._end(ask, judgment)

    async def _call(
        self, ask: JudgeCall, attempt: int, turns: Messages, message: Message, *, repair: bool = False
    ) -> Judgment | None:
        """One answered call, however many tries it takes; None where the run stopped before it was sent."""
        n_chars = self._n_system_chars + sum(len(text) for _, text in turns)
        n_bytes = self._n_system_bytes + sum(len(text.encode("utf-8", "surrogatepass")) for _, text in turns)
        n_free = n_pauses = n_paid = 0
        judgment: Judgment | None = None
        while True:
            need = TokenReservation(
                input_tokens=self._estimator.input_tokens(n_chars), output_tokens=self._estimator.output_tokens()
            )
            worst = dearest(
                self.cost_of,
                Usage(input_tokens=most_input_tokens(n_bytes), output_tokens=self.spec.max_tokens),
                self.other_models,
            )
            if not await self._go(need, worst or 0.0):
                return judgment  # how the last try failed, or None where there was none
            guess = self._price(round(need.input_tokens), self._estimator.mean_output_tokens())
            booking = RecordedCost(cost_usd=guess, at_most=worst)
            try:
                self.journal.begin(sent(ask, attempt, self.spec, booking=booking, at=self.clock.utc(), repair=repair))
            except NoRoomError as error:  # its answer could not be kept: it is not sent
                self.budget.settle(worst or 0.0, 0.0)
                self.limiter.settle(self.clock.monotonic(), need, _NOTHING)
                self.stop("disk", str(error))
                return judgment
            self.n_in_flight += 1
            try:
                reply = await self.client.ask(turns)
            finally:
                self.n_in_flight -= 1
                self._changed.set()
            self._settle(need, reply)
            self._reached |= reply.fate is not CallOutcome.NO_CONNECTION
            now = self.clock.utc()
            if reply.fate is CallOutcome.ANSWERED:
                self._estimator.learn(n_chars, reply.usage, whole=reply.is_whole)
                cost = self.cost_of(reply.usage, reply.model)
                told = RecordedCost(cost_usd=cost) if cost is not None else booking
                self._book(worst, told)
                self._note_model(reply)
                judgment = answered(
                    ask, attempt, self.spec, reply, booking=told, at=now, message=message, repair=repair
                )
                return self._write(judgment)
            told = RecordedCost(cost_usd=0.0) if reply.fate in FREE else booking
            self._book(worst, told)
            judgment = failure(ask, attempt, self.spec, reply, booking=told, at=now, message=message, repair=repair)
            if reply.fate is CallOutcome.FATAL:
                self.stop("refused", f"{reply.kind}: {reply.message}")
            n_paid += reply.fate is CallOutcome.BROKEN
            self._write(judgment)
            n_free += reply.fate in (CallOutcome.SERVER_ERROR, CallOutcome.NO_CONNECTION)
            n_pauses += reply.fate is CallOutcome.RATE_LIMITED
            last = n_paid >= MAX_PAID_TRIES or n_free >= MAX_FREE_TRIES or n_pauses >= MAX_PAUSES
            if last or self._is_unreached(reply, n_free) or self._stopping or reply.fate in _FINAL_FATES:
                return judgment
            self.tally.retried[reply.kind or reply.fate.value] += 1
            attempt += reply.fate is CallOutcome.BROKEN
            await self._pause(reply, n_free + n_paid)

    def _note_model(self, reply: JudgeResponse) -> None:
        """Remember a model that answered in place of the one asked: from now on a call is held at the dearer price of both."""
        model = reply.model
        if model is None or model in self.other_models or same_model(model, self.spec.model):
            return
        self.other_models.add(model)
        if (
            self.budget.cap is not None
            and self.cost_of(reply.usage, model) is None
            and not is_priced_by(self.cost_of, model)
        ):
            self.stop(
                "unpriced",
                f"{model} answered, not {self.spec.model}, and its price is not known, so ${self.budget.cap:g} cannot be kept: "
                f'add [prices."{model}"] to evalpipe.toml',
            )

    def _say_wait(self, seconds: float, why: str) -> None:
        """Report a wait that somebody who watches would take for a standstill, once."""
        until = self.clock.monotonic() + seconds
        if seconds <= LONG_WAIT_S or until <= self._said_until + 1.0:
            return
        self._said_until = until
        at = (self.clock.utc() + timedelta(seconds=seconds)).astimezone()
        self.announce(f"judge {self.spec.name}: waiting {seconds:,.0f} s, until {at:%H:%M:%S}: {why}")

    def _is_unreached(self, reply: JudgeResponse, n_tries: int) -> bool:
        """Whether a call gives up early: nothing ever came from the address. Enough such calls end the run: a server that has
        answered is waited for, a wrong address is not."""
        if self._reached or n_tries < MAX_UNREACHED_TRIES:
            return False
        self._n_unreached += 1
        if self._n_unreached >= MAX_UNREACHED_CALLS:
            self.stop("unreachable", reply.message)
        return True

    async def _go(self, need: TokenReservation, worst: float) -> bool:
        """Wait for the budget and the limits, first come first served; False where the run stops instead."""
        async with self._gate:
            while not self._stopping:
                if not self.budget.reserve(worst):
                    if self.n_in_flight == 0:
                        self.stop(
                            "budget", f"the next call can cost ${worst:.4f}, and ${self.budget.left or 0:.4f} are left"
                        )
                        return False
                    self._changed.clear()
                    await self._changed.wait()
                    continue
                wait = self.limiter.reserve(self.clock.monotonic(), need)
                if wait <= 0:
                    return True
                self.budget.settle(worst, 0.0)
                self._say_wait(
                    wait,
                    self._why_paused if self.limiter.is_paused(self.clock.monotonic()) else "the limits are used up",
                )
                await self.clock.sleep(min(wait, _LOOK_AGAIN_S))
        return False

    def _settle(self, need: TokenReservation, reply: JudgeResponse) -> None:
        now = self.clock.monotonic()
        usage = reply.usage
        if reply.fate is CallOutcome.ANSWERED:
            fresh = (usage.input_tokens or 0) - (usage.cached_input_tokens or 0)
            used = TokenReservation(input_tokens=fresh, output_tokens=usage.output_tokens or 0)
        elif reply.fate in (CallOutcome.NO_CONNECTION, CallOutcome.RATE_LIMITED):
            used = _NOTHING
        else:
            used = need  # it may have counted; what the provider says next corrects it
        self.limiter.settle(now, need, used)
        self.limiter.observe(now, reply.limits)
        if reply.fate is CallOutcome.RATE_LIMITED:
            wait = DEFAULT_PAUSE_S if reply.retry_after_s is None else reply.retry_after_s
            asked = (
                ""
                if reply.retry_after_s is None
                else f" and asks for {reply.asked_wait_s or reply.retry_after_s:,.0f} s"
            )
            self._why_paused = f"{reply.kind}: {reply.message}{asked}"
            self.limiter.pause(now, wait)

    async def _pause(self, reply: JudgeResponse, n_tries: int) -> None:
        """Back off with full jitter; a 429's pause is the limiter's, and everybody's."""
        if reply.fate is CallOutcome.RATE_LIMITED:
            return
        longest = min(BACKOFF_S * 2 ** max(n_tries - 1, 0), LONGEST_BACKOFF_S)
        wait = max(longest * self.clock.jitter(), reply.retry_after_s or 0.0)
        self._say_wait(wait, f"{reply.kind}: {reply.message}")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), wait)

    def _price(self, input_tokens: int, output_tokens: int) -> float | None:
        return self.cost_of(Usage(input_tokens=input_tokens, output_tokens=output_tokens))

    def _book(self, worst: float | None, booking: RecordedCost) -> None:
        self.budget.settle(worst or 0.0, booking.cost_usd or 0.0, certain=booking.at_most is None)
        self.tally.n_estimated_costs += booking.at_most is not None
        self._changed.set()

    def _write(self, judgment: Judgment) -> Judgment:
        try:
            self.journal.append(judgment)
        except NoRoomError as error:  # the journal keeps it as lost, held at its worst case
            self.stop("disk", str(error))
        self.tally.book(judgment)
        return judgment

    def _end(self, ask: JudgeCall, judgment: Judgment) -> None:
        """A planned call has come to its end for this run."""
        self.tally.end(judgment)
        reason = self.watch(ask, judgment)
        if reason:
            self.stop("decided", reason)
        self.show()


def repair_turns(turns: Messages, judgment: Judgment) -> Messages:
    """The turns of the one repair: the unreadable reply, and what was wrong with it. An empty reply is no turn."""
    asked = repair_message(str(read_note(judgment.note).get("message", "it is not the JSON object asked for")))
    said = judgment.raw_reply or ""
    if said.strip():
        return [*turns, ("assistant", said), ("user", asked)]
    ((role, text),) = turns
    return [(role, f"{text}\n\n{asked}")]


# The real clock and real chance, for the runner; tests bring their own.


class SystemClock:
    """Monotonic seconds, UTC instants, sleep, jitter and nonces."""

    def __init__(self) -> None:
        self._random = random.SystemRandom()

    def monotonic(self) -> float:
        return time.monotonic()

    def utc(self) -> datetime:
        return datetime.now(UTC)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def jitter(self) -> float:
        return self._random.random()

    def nonce(self) -> str:
        return secrets.token_hex(8)
