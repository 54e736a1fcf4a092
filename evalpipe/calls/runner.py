"""The runner of calls: one process, many in flight, each bounded by the limits, the budget and the user's patience.

Each call is in the journal before it is sent, and its end before another one takes its place. A call that failed for a reason
that costs nothing is made again after a pause, in its place; one that may have been billed is written down first. Ctrl-C
finishes what is in flight; a second one stops at once.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import sys
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from tqdm import tqdm

from evalpipe.calls.budget import Budget, CostOf, MostTokens, TokenEstimator, is_priced_by, most_input_tokens
from evalpipe.calls.client import FREE, CallOutcome, ModelResponse
from evalpipe.calls.journal import NoRoomError
from evalpipe.calls.limiter import DEFAULT_PAUSE_S, Limiter, TokenReservation
from evalpipe.providers.base import Usage
from evalpipe.providers.model_names import same_model
from evalpipe.text import printable

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
_FINAL_OUTCOMES = (CallOutcome.REJECTED, CallOutcome.REFUSED, CallOutcome.FATAL)

Planned = TypeVar("Planned")
Row = TypeVar("Row")
RowIn = TypeVar("RowIn", contravariant=True)
RowOut = TypeVar("RowOut", covariant=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedCost:
    """What a call is booked at. `at_most` only where `cost_usd` is an estimate; `most_tokens` only where that is not known
    either, since the model has no price: once it has one, a cap counts the call."""

    cost_usd: float | None
    at_most: float | None = None
    most_tokens: MostTokens | None = None


class Records(Protocol[RowIn]):
    """Where calls are written down: `journal.Journal`."""

    def begin(self, row: RowIn, /) -> None: ...

    def append(self, row: RowIn, /) -> None: ...


class Clock(Protocol):
    """Time and chance, so that tests can hold them."""

    def monotonic(self) -> float: ...

    def utc(self) -> datetime: ...

    async def sleep(self, seconds: float) -> None: ...

    def jitter(self) -> float:
        """A number in [0, 1)."""
        ...

    def nonce(self) -> str:
        """16 unpredictable hex digits."""
        ...


class CallRow(Protocol):
    """The stored row of a call: what is counted of it."""

    @property
    def input_tokens(self) -> int | None: ...
    @property
    def output_tokens(self) -> int | None: ...
    @property
    def cost_usd(self) -> float | None: ...
    @property
    def simulated(self) -> bool: ...


@dataclass(slots=True, kw_only=True)
class RunCounts(ABC, Generic[Row]):
    """What a run of calls counts, for its progress line, its summary and `--json`.

    Attributes:
        n_planned: calls that were to be made.
        n_known: calls of the plan that were answered before this run.
        retried: calls that cost nothing and were made again, by kind.
        failed: calls that ended without an answer, by kind.
        failure_messages: what the provider reported with the first failure of each kind.
        n_calls: calls that were made.
        spent_usd: what they cost; None where a call used tokens at a price that is not known.
        stopped: why the run ended before its plan; None where it did not. `message`: the details.
    """

    n_planned: int = 0
    n_known: int = 0
    retried: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    failure_messages: dict[str, str] = field(default_factory=dict)
    n_calls: int = 0
    n_simulated: int = 0
    n_estimated_costs: int = 0
    spent_usd: float | None = 0.0
    input_tokens: int = 0
    output_tokens: int = 0
    stopped: str | None = None
    message: str | None = None

    @abstractmethod
    def book(self, row: Row) -> None:
        """Count what a call cost, whatever its outcome."""

    @property
    @abstractmethod
    def title(self) -> str:
        """The name of the run in its progress line."""

    @property
    @abstractmethod
    def n_ended(self) -> int:
        """Planned calls that have ended in this run."""

    def add_usage(self, row: CallRow) -> None:
        """Add the tokens and the cost of a call."""
        self.input_tokens += row.input_tokens or 0
        self.output_tokens += row.output_tokens or 0
        self.n_simulated += row.simulated
        if row.cost_usd is None and row.input_tokens is not None:
            self.spent_usd = None
        if self.spent_usd is not None:
            self.spent_usd += row.cost_usd or 0.0

    def add_failure(self, reason: str, message: str) -> None:
        """Count a call that ended without an answer."""
        self.failed[reason] += 1
        self.failure_messages.setdefault(reason, message)

    def failures_json(self) -> dict[str, Any]:
        return {
            "failures": dict(sorted(self.failed.items())),
            "failure_messages": dict(sorted(self.failure_messages.items())),
            "retries": dict(sorted(self.retried.items())),
        }

    def cost_json(self) -> dict[str, Any]:
        return {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "spent_usd": self.spent_usd,
            "estimated_costs": self.n_estimated_costs,
        }

    def end_json(self) -> dict[str, Any]:
        return {"simulated": self.n_simulated > 0, "stopped": self.stopped, "message": self.message}


class Call(Protocol[RowOut]):
    """One request that is to be answered, and the rows that keep it.

    Attributes:
        n_chars: characters of what is sent, to expect its tokens by.
        n_bytes: the same in bytes, to bound its tokens by.
        max_tokens: the longest answer.
    """

    @property
    def n_chars(self) -> int: ...
    @property
    def n_bytes(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...

    async def send(self) -> ModelResponse:
        """Send it once. Never raises for anything a provider may do."""
        ...

    def sent(self, attempt: int, *, booking: RecordedCost, at: datetime) -> RowOut:
        """The row of a call that is being sent, as it stays if no response arrives."""
        ...

    def answered(self, attempt: int, reply: ModelResponse, *, booking: RecordedCost, at: datetime) -> RowOut: ...

    def failed(
        self, attempt: int, reply: ModelResponse, *, booking: RecordedCost, at: datetime, is_last: bool
    ) -> RowOut:
        """`is_last`: it was tried as often as it ever is."""
        ...


@dataclass(kw_only=True)
class Route:
    """Whom calls go to: a judge, or an arm, with its own limits and prices.

    Attributes:
        who: in messages, e.g. "judge pairwise".
        model: the model that is asked.
        limiter: its rate limits.
        cost_of: usage → USD.
        other_models: models that have answered in place of the one asked, at whose price a call may be billed.
        estimator: what its calls use, learned from those that were answered.
    """

    who: str
    model: str
    limiter: Limiter
    cost_of: CostOf
    estimator: TokenEstimator
    other_models: set[str] = field(default_factory=set)
    gate: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    is_reached: bool = field(default=False, init=False)
    n_unreached: int = field(default=0, init=False)
    why_paused: str = field(default="", init=False)
    announced_until: float = field(default=float("-inf"), init=False)


@dataclass(kw_only=True)
class CallRunner(ABC, Generic[Planned, Row]):
    """Works through pages of planned calls. `rotate` is called between pages and puts what the journal holds into the store;
    `show` after each planned call; `announce` prints a line about a long wait; `retries_errors` False: an error of the server
    is the answer, and is not asked for again."""

    budget: Budget
    journal: Records[Row]
    clock: Clock
    summary: RunCounts[Row]
    concurrency: int
    show: Callable[[], None] = lambda: None
    rotate: Callable[[], Awaitable[None]] | None = None
    announce: Callable[[str], None] = lambda line: None
    retries_errors: bool = True
    n_in_flight: int = field(default=0, init=False)
    _stopping: str = field(default="", init=False)
    _error: BaseException | None = field(default=None, init=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _stopped: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set, init=False)

    @abstractmethod
    async def work(self, planned: Planned) -> None:
        """Bring one planned call to its end."""

    @abstractmethod
    def end(self, planned: Planned, row: Row) -> None:
        """Count how a planned call ended in this run: `row` is the last one of it."""

    def ends_without_call(self, planned: Planned) -> bool:
        """Whether a planned call needs none; where so, it was brought to its end."""
        return False

    async def run(self, pages: Iterator[list[Planned]]) -> None:
        """Work through everything that is planned, or until something stops the run (`summary.stopped`, `summary.message`)."""
        slots = asyncio.Semaphore(self.concurrency)
        page = await asyncio.to_thread(next, pages, None)
        try:
            while page is not None and not self.is_stopping():
                following = asyncio.create_task(asyncio.to_thread(next, pages, None))
                for planned in page:
                    if self.ends_without_call(planned):
                        continue
                    await slots.acquire()
                    if self.is_stopping():
                        slots.release()
                        break
                    task = asyncio.create_task(self._guarded(planned))
                    self._tasks.add(task)
                    task.add_done_callback(partial(self._finished, slots))
                self._raise_bug()
                page = await following
                if self.rotate is not None:
                    await self.rotate()
            while self._tasks:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in self._tasks:
                task.cancel()
        self._raise_bug()

    def is_stopping(self) -> bool:
        """Whether nothing more is to be started."""
        return bool(self._stopping)

    def stop(self, reason: str, message: str | None = None) -> None:
        """Start nothing more; what is in flight is finished. The first reason is kept."""
        if not self._stopping:
            self._stopping = self.summary.stopped = reason
            self.summary.message = message
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

    def _raise_bug(self) -> None:
        if self._error is not None:
            raise self._error

    async def _guarded(self, planned: Planned) -> None:
        try:
            await self.work(planned)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  a bug: raised by `run`, once what is in flight has ended
            self._error = self._error or error
            self.stop("failed")

    async def call(self, call: Call[Row], route: Route, attempt: int) -> Row | None:
        """One answered call, however many tries it takes; None where the run stopped before it was sent."""
        n_free = n_pauses = n_paid = 0
        row: Row | None = None
        while True:
            need = TokenReservation(
                input_tokens=route.estimator.input_tokens(call.n_chars), output_tokens=route.estimator.output_tokens()
            )
            most = MostTokens(input_tokens=most_input_tokens(call.n_bytes), output_tokens=call.max_tokens)
            worst = most.usd(route.cost_of, route.other_models)
            if not await self.acquire(route, need, worst or 0.0):
                return row  # how the last try failed, or None where there was none
            expected = Usage(input_tokens=round(need.input_tokens), output_tokens=route.estimator.mean_output_tokens())
            booking = RecordedCost(
                cost_usd=route.cost_of(expected), at_most=worst, most_tokens=most if worst is None else None
            )
            sent = call.sent(attempt, booking=booking, at=self.clock.utc())
            if not await self.begin(route, need, booking, sent):
                return row
            self.n_in_flight += 1
            try:
                reply = await call.send()
            finally:
                self.n_in_flight -= 1
                self._changed.set()
            route.is_reached |= reply.outcome is not CallOutcome.NO_CONNECTION
            now = self.clock.utc()
            if reply.outcome is CallOutcome.ANSWERED:
                route.estimator.learn(call.n_chars, reply.usage, whole=reply.is_whole)
                cost = route.cost_of(reply.usage, reply.model)
                booked = RecordedCost(cost_usd=cost) if cost is not None else booking
                row = call.answered(attempt, reply, booking=booked, at=now)
                self.finish(route, need, worst, reply, booked, row)
                self.note_model(route, reply)
                return row
            booked = RecordedCost(cost_usd=0.0) if reply.outcome in FREE else booking
            n_paid += reply.outcome is CallOutcome.BROKEN
            n_free += reply.outcome in (CallOutcome.SERVER_ERROR, CallOutcome.NO_CONNECTION)
            n_pauses += reply.outcome is CallOutcome.RATE_LIMITED
            last = n_paid >= MAX_PAID_TRIES or n_free >= MAX_FREE_TRIES or n_pauses >= MAX_PAUSES
            if not self.retries_errors and reply.outcome in (CallOutcome.SERVER_ERROR, CallOutcome.BROKEN):
                last = True
            last = last or reply.outcome in _FINAL_OUTCOMES
            row = call.failed(attempt, reply, booking=booked, at=now, is_last=last)
            if reply.outcome is CallOutcome.FATAL:
                self.stop("refused", f"{reply.kind}: {reply.message}")
            self.finish(route, need, worst, reply, booked, row)
            if last or self._is_unreached(route, reply, n_free) or self._stopping:
                return row
            self.summary.retried[reply.kind or reply.outcome.value] += 1
            attempt += reply.outcome is CallOutcome.BROKEN
            await self._pause(route, reply, n_free + n_paid)

    async def begin(self, route: Route, need: TokenReservation, booking: RecordedCost, row: Row) -> bool:
        """Have a call on the disk before it is sent; False where it must not be sent. `row`: as it stays if no response
        arrives; `need` and `booking`: what is reserved for it."""
        try:
            self.journal.begin(row)
        except NoRoomError as error:  # its answer could not be kept: neither it nor any other call is sent
            self.stop("disk", str(error))
            return False
        return True

    def finish(
        self,
        route: Route,
        need: TokenReservation,
        worst: float | None,
        reply: ModelResponse,
        booked: RecordedCost,
        row: Row,
    ) -> None:
        """A call has ended: what it used of the limits and the budget in place of what was reserved, and its row."""
        self._settle(route, need, reply)
        self._book(worst, booked)
        self.write(row)

    def write(self, row: Row) -> Row:
        """Put the end of a call on the disk, and count it."""
        try:
            self.journal.append(row)
        except NoRoomError as error:  # the journal keeps it as lost, held at its worst case
            self.stop("disk", str(error))
        self.summary.book(row)
        return row

    def note_model(self, route: Route, reply: ModelResponse) -> None:
        """Record a model that answered in place of the one asked: from now on a call is held at the dearer price of both."""
        model = reply.model
        if model is None or model in route.other_models or same_model(model, route.model):
            return
        route.other_models.add(model)
        if (
            self.budget.cap is not None
            and route.cost_of(reply.usage, model) is None
            and not is_priced_by(route.cost_of, model)
        ):
            self.stop(
                "unpriced",
                f"{model} answered, not {route.model}, and its price is not known, so ${self.budget.cap:g} cannot be kept: "
                f'add [prices."{model}"] to evalpipe.toml',
            )

    def _report_wait(self, route: Route, seconds: float, why: str) -> None:
        """Report a long wait once, so that it is not taken for a hang."""
        until = self.clock.monotonic() + seconds
        if seconds <= LONG_WAIT_S or until <= route.announced_until + 1.0:
            return
        route.announced_until = until
        at = (self.clock.utc() + timedelta(seconds=seconds)).astimezone()
        self.announce(f"{route.who}: waiting {seconds:,.0f} s, until {at:%H:%M:%S}: {why}")

    def _is_unreached(self, route: Route, reply: ModelResponse, n_tries: int) -> bool:
        """Whether a call gives up early: nothing ever came from the address. Enough such calls end the run: a server that has
        answered is waited for, a wrong address is not."""
        if route.is_reached or n_tries < MAX_UNREACHED_TRIES:
            return False
        route.n_unreached += 1
        if route.n_unreached >= MAX_UNREACHED_CALLS:
            self.stop("unreachable", reply.message)
        return True

    async def acquire(self, route: Route, need: TokenReservation, worst: float) -> bool:
        """Wait for the budget and the limits, first come first served; False where the run stops instead."""
        async with route.gate:
            while not self._stopping:
                if not self.budget.reserve(worst):
                    if self.n_in_flight == 0:
                        self.stop("budget", self.budget.refusal(worst))
                        return False
                    self._changed.clear()
                    await self._changed.wait()
                    continue
                wait = route.limiter.reserve(self.clock.monotonic(), need)
                if wait <= 0:
                    return True
                self.budget.settle(worst, 0.0)
                is_paused = route.limiter.is_paused(self.clock.monotonic())
                self._report_wait(route, wait, route.why_paused if is_paused else "the limits are used up")
                await self.clock.sleep(min(wait, _LOOK_AGAIN_S))
        return False

    def _settle(self, route: Route, need: TokenReservation, reply: ModelResponse) -> None:
        now = self.clock.monotonic()
        usage = reply.usage
        if reply.outcome is CallOutcome.ANSWERED:
            fresh = (usage.input_tokens or 0) - (usage.cached_input_tokens or 0)
            used = TokenReservation(input_tokens=fresh, output_tokens=usage.output_tokens or 0)
        elif reply.outcome in (CallOutcome.NO_CONNECTION, CallOutcome.RATE_LIMITED):
            used = _NOTHING
        else:
            used = need  # it may have counted; the provider's next headers correct it
        route.limiter.settle(now, need, used)
        route.limiter.observe(now, reply.limits)
        if reply.outcome is CallOutcome.RATE_LIMITED:
            wait = DEFAULT_PAUSE_S if reply.retry_after_s is None else reply.retry_after_s
            asked = (
                ""
                if reply.retry_after_s is None
                else f" and asks for {reply.asked_wait_s or reply.retry_after_s:,.0f} s"
            )
            route.why_paused = f"{reply.kind}: {reply.message}{asked}"
            route.limiter.pause(now, wait)

    async def _pause(self, route: Route, reply: ModelResponse, n_tries: int) -> None:
        """Back off with full jitter; a 429's pause is the limiter's, and everybody's."""
        if reply.outcome is CallOutcome.RATE_LIMITED:
            return
        longest = min(BACKOFF_S * 2 ** max(n_tries - 1, 0), LONGEST_BACKOFF_S)
        wait = max(longest * self.clock.jitter(), reply.retry_after_s or 0.0)
        self._report_wait(route, wait, f"{reply.kind}: {reply.message}")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), wait)

    def _book(self, worst: float | None, booking: RecordedCost) -> None:
        self.budget.settle(worst or 0.0, booking.cost_usd or 0.0, certain=booking.at_most is None)
        self.summary.n_estimated_costs += booking.at_most is not None
        self._changed.set()


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


# The progress line of a run.


_EVERY_S = 0.5


class Progress:
    """A tqdm bar on stderr; silent where stderr is no terminal, unless `shown`."""

    def __init__(
        self, summary: RunCounts[Any], limiters: Sequence[Limiter], budget: Budget, *, shown: bool | None = None
    ) -> None:
        self._summary, self._limiters, self._budget = summary, limiters, budget
        self._started = time.monotonic()
        self._next = 0.0
        self._bar = tqdm(
            total=summary.n_planned,
            desc=summary.title,
            unit="call",
            file=sys.stderr,
            disable=not (sys.stderr.isatty() if shown is None else shown),
            mininterval=_EVERY_S,
            dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )

    def __call__(self) -> None:
        now = time.monotonic()
        if not self._bar.disable and now >= self._next:
            self._next = now + _EVERY_S
            self._bar.n = self._summary.n_ended
            self._bar.set_postfix_str(self.line(now), refresh=True)

    def line(self, now: float) -> str:
        summary = self._summary
        minutes = max((now - self._started) / 60, 1 / 60)
        kind, share = max((one.share_in_use(now) for one in self._limiters), key=lambda found: found[1])
        parts = [f"{summary.n_ended / minutes:.0f}/min", f"{share:.0%} of {kind.replace('_', ' ')}"]
        if summary.spent_usd is not None:
            parts.append(f"${summary.spent_usd:.4f}")
        if self._budget.left is not None:
            parts.append(f"${self._budget.left:.2f} left")
        troubles = summary.failed + summary.retried
        if troubles:
            parts.append(", ".join(f"{name} {n}" for name, n in troubles.most_common(3)))
        return " · ".join(parts)

    def write(self, text: str) -> None:
        """A line of its own on stderr, above the bar; printed where there is no bar, too."""
        tqdm.write(f"evalpipe: {printable(text)}", file=sys.stderr)

    def close(self) -> None:
        self._bar.n = self._summary.n_ended
        if not self._bar.disable:
            self._bar.set_postfix_str(self.line(time.monotonic()), refresh=False)
        self._bar.close()
