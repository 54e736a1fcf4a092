"""Tokens and dollars for the metrics, read from the spool when the process is idle; OpenTelemetry's names for them.

Parsing and pricing an answer costs more than passing it on. So it is done behind the traffic: under full load these
counters fall behind, and catch up afterwards; the spool is the queue. A rate that lasts (some hundred requests a second)
is no such load: there they keep up.
"""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import thread_time
from typing import NamedTuple

from prometheus_client import Histogram

from evalpipe.collector.metrics import Metrics, shared_registry
from evalpipe.collector.settings import ArmSettings, CollectorSettings
from evalpipe.collector.transform import log
from evalpipe.models import FAILED, Outcome
from evalpipe.providers.base import Answer, Usage
from evalpipe.providers.pricing import Price, cost_of
from evalpipe.providers.registry import read_answer
from evalpipe.providers.request_fields import field_named
from evalpipe.providers.setup_faults import RefusalWatch
from evalpipe.spool.format import ResponseRecord, read_record
from evalpipe.spool.reader import SegmentFiles, SpoolTail, TailedLine

_PIECE_BYTES = 64 << 10
"""a large piece takes a millisecond to read and to search: it bounds how long the event loop is blocked"""
_RESPONSE = b'{"record":"response"'
_N_AHEAD = 16
"""segments of each kind that are held open while others are counted: load may delete them meanwhile"""
_REFUSALS_EVERY = 10
"""answers after which the arms' refusals are compared anew"""


_SLICE_S = 0.0005
"""at most this long at a time, and a twentieth of the time in all (some 700 answers a second): copies that come meanwhile
wait, and on a machine of one core the users do"""
_BEHIND_S = 1.0
"""what is not counted for so long is counted between copies, too, up to `_MOST` times as long: else a rate that leaves no
pause would never be counted"""
_MOST = 4.0
_TRIED_S = 1.0
_PAUSE_S = 10.0
"""Where more came than was counted in a second of hurry, the rate is too high to be counted: the next try is so much later, as
each takes time from the users' requests."""


class CountingPace:
    """How long answers are counted at a time: longer where the count is behind, as long as that helps. Pure.

    Args:
        now: the loop's time, in seconds.
        unread_bytes: how much is left to count.
    """

    def __init__(self, now: float, unread_bytes: Callable[[], int]) -> None:
        self._counted_at = self._paused_until = now
        self._unread_bytes = unread_bytes
        self._tried_at: float | None = None
        self._n_unread = 0

    def caught_up(self, now: float) -> None:
        """All of it is counted."""
        self._counted_at = now

    def hurries(self, now: float, *, is_calm: bool) -> bool:
        """Whether the count goes on between copies, too, and for longer."""
        if not is_calm or now - self._counted_at <= _BEHIND_S or now < self._paused_until:
            self._tried_at = None
            return False
        if self._tried_at is None:
            self._tried_at, self._n_unread = now, self._unread_bytes()
        elif now - self._tried_at > _TRIED_S:
            left = self._unread_bytes()
            if left > self._n_unread:
                self._paused_until, self._tried_at = now + _PAUSE_S, None
                return False
            self._tried_at, self._n_unread = now, left
        return True

    def slice_s(self, now: float, *, hurries: bool) -> float:
        """Seconds of this thread's own."""
        return _SLICE_S * min(now - self._counted_at, _MOST) if hurries else _SLICE_S


class UsageMetrics:
    """Counts every answer once: `offsets` is where the process before this one stopped."""

    def __init__(
        self,
        settings: CollectorSettings,
        folder: Path,
        offsets: dict[str, int],
        metrics: Metrics,
        pricer: Pricer,
        files: SegmentFiles,
    ) -> None:
        self._settings, self._metrics, self._pricer = settings, metrics, pricer
        self._tails = [
            SpoolTail(folder, prefix, offsets, _PIECE_BYTES, files=files, n_ahead=_N_AHEAD)
            for prefix in ("served-", "shadow-")
        ]
        self._lines: list[Iterator[TailedLine]] = [iter(()) for _ in self._tails]
        self._turn = 0
        self._refusals = RefusalWatch()
        self._refusing: str | None = None
        self._n_seen = 0

    def look_for_segments(self) -> None:
        for tail in self._tails:
            tail.look_for_segments()

    def let_go(self) -> None:
        for tail in self._tails:
            tail.let_go()

    def unread_bytes(self) -> int:
        """Bytes of the spool that are still to be counted."""
        n_bytes = 0
        for tail in self._tails:
            n_bytes += tail.unread_bytes()
        return n_bytes

    def work(self, budget_s: float) -> bool:
        """Count what was recorded since the last call, for at most about `budget_s` seconds of this thread's own (on a busy
        machine the clock runs on while others have the processor). True: all of it is counted."""
        until = thread_time() + budget_s
        n_empty = 0
        while thread_time() < until:
            # The arms' segments in turns: of neither is more left than of the other.
            self._turn = (self._turn + 1) % len(self._tails)
            line = next(self._lines[self._turn], None)
            if line is not None:
                n_empty = 0
                self._count(line.line)
                continue
            self._lines[self._turn] = self._tails[self._turn].read(_RESPONSE)
            n_empty += 1
            if n_empty == 2 * len(self._tails):  # each has been looked at once more
                return True
        return False

    def _count(self, line: bytes) -> None:
        try:
            record = read_record(line)
        except ValueError:  # load puts broken lines aside and counts them
            return
        if not isinstance(record, ResponseRecord) or record.experiment != self._settings.experiment:
            return
        arm = self._settings.control if record.arm == "control" else self._settings.treatment
        if arm is None:
            return
        answer = self._pricer.read(record)
        self._watch_refusals(record, answer)
        usage = answer.usage
        kinds = (
            ("input", usage.input_tokens),
            ("cached_input", usage.cached_input_tokens),
            ("cache_write", usage.cache_write_tokens),
            ("output", usage.output_tokens),
            ("reasoning", usage.reasoning_tokens),
        )
        for kind, n in kinds:
            if n:
                self._metrics.tokens(record.arm, record.role, kind, n)
        if self._settings.otel_names:
            observe(record, answer, arm)
        usd = self._pricer.cost(answer, arm)
        if usd is not None:
            self._metrics.cost(record.arm, record.role, usd + record.infrastructure_usd)

    def _watch_refusals(self, record: ResponseRecord, answer: Answer) -> None:
        """A line in the log where one arm begins to refuse nearly every request that the other takes."""
        failed = answer.outcome is Outcome.HTTP_ERROR
        request = record.sent.data if failed and record.sent is not None else b""
        self._refusals.saw(
            record.arm, failed=failed, status=record.status, message=answer.error_message, request=request
        )
        self._n_seen += 1
        if self._n_seen % _REFUSALS_EVERY:
            return
        found = self._refusals.found()
        if found is not None and found.arm != self._refusing:
            log(f"{found.text(field_named(found.message, found.request))}")
        elif found is None and self._refusing is not None:
            log(f"the {self._refusing} arm no longer refuses nearly every request")
        self._refusing = None if found is None else found.arm

    def offsets(self) -> dict[str, int]:
        return {name: offset for tail in self._tails for name, offset in tail.offsets().items()}

    def close(self) -> None:
        for tail in self._tails:
            tail.close()


# The same facts under OpenTelemetry's names for generative AI (`[telemetry] names = "otel"`), beside the contract's
# own.
#
# Names, units, attributes and buckets follow the semantic conventions for generative AI client metrics, dots as
# underscores and units as suffixes, as Prometheus spells them. Observed behind the traffic, from the spool.


_ATTRIBUTES = [
    "gen_ai_operation_name",
    "gen_ai_provider_name",
    "gen_ai_request_model",
    "gen_ai_response_model",
    "experiment",
    "arm",
    "role",
]
DURATION = Histogram(
    "gen_ai_client_operation_duration_seconds",
    "GenAI operation duration",
    [*_ATTRIBUTES, "error_type"],
    buckets=(0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92),
    registry=shared_registry(),
)
TOKENS = Histogram(
    "gen_ai_client_token_usage",
    "Number of input and output tokens used",
    [*_ATTRIBUTES, "gen_ai_token_type"],
    buckets=tuple(4**power for power in range(14)),
    registry=shared_registry(),
)
FIRST_CHUNK = Histogram(
    "gen_ai_client_operation_time_to_first_chunk_seconds",
    "Time to receive the first chunk of a streamed answer",
    _ATTRIBUTES,
    buckets=(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    registry=shared_registry(),
)


def observe(record: ResponseRecord, answer: Answer, arm: ArmSettings) -> None:
    """One exchange, from its record and what was read in it."""
    labels = (
        "chat",
        record.provider,
        arm.model or "",
        answer.model or "",
        record.experiment,
        record.arm,
        record.role,
    )
    error = (answer.error_type or answer.outcome.value) if answer.outcome in FAILED else ""
    DURATION.labels(*labels, error).observe(record.latency_ms / 1000)
    if record.marks:
        FIRST_CHUNK.labels(*labels).observe(record.marks[0][1] / 1000)
    for kind, n in (("input", answer.usage.input_tokens), ("output", answer.usage.output_tokens)):
        if n is not None:
            TOKENS.labels(*labels, kind).observe(n)


# What answers cost, for the treatment's budget and the metrics.


_DEFAULT_OUTPUT_TOKENS = 4096
"""reserved where a request names no limit"""
_BYTES_PER_TOKEN = 2.0
"""cautious: reserves more than any tokenizer counts for text"""
_LINEAR_BELOW = 32_000
"""input tokens under which no provider's price depends on the prompt's length: costs are sums of products there"""
_SOME_MODEL = "gpt-4o-mini"
"""priced to read the library where an arm has no model of its own"""
_RATES_KEPT_S = 300.0
"""list prices change by the day"""


class _Rates(NamedTuple):
    """USD per token."""

    input: float
    cached: float
    output: float
    until: float


class Pricer:
    def __init__(self, settings: CollectorSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._rates: dict[tuple[str | None, str | None, str], _Rates] = {}
        self._prices = {model: Price(**price) for model, price in settings.prices.items()}
        for arm in (settings.control, settings.treatment):
            if (
                arm is not None
            ):  # reads the price library now: a copy's latency must not hold that, nor may files be short then
                self._cost(Usage(input_tokens=1, output_tokens=1), None, arm.model or _SOME_MODEL, arm.provider)

    def read(self, record: ResponseRecord) -> Answer:
        ended = record.ended
        return read_answer(record.endpoint, record.status, record.headers, record.body.data, ended=ended)  # type: ignore[arg-type]

    def cost(self, answer: Answer, arm: ArmSettings) -> float | None:
        """USD of one answer, or None where usage or price are unknown."""
        return self._cost(answer.usage, answer.model, arm.model, arm.provider)

    def worst_cost(self, arm: ArmSettings, n_request_bytes: int, max_output_tokens: int | None) -> float:
        """USD to reserve before a copy is sent; 0 where the model has no price (that is refused at the start)."""
        if arm.model is None:
            return 0.0
        usage = Usage(
            input_tokens=int(n_request_bytes / _BYTES_PER_TOKEN) + 1,
            output_tokens=max_output_tokens or _DEFAULT_OUTPUT_TOKENS,
        )
        return self._cost(usage, None, arm.model, arm.provider) or 0.0

    def _cost(self, usage: Usage, model: str | None, requested: str | None, provider: str) -> float | None:
        if not usage.is_plain:
            return self._exact_cost(usage, model, requested, provider)
        if usage.input_tokens is None or usage.output_tokens is None:
            return None
        if usage.input_tokens >= _LINEAR_BELOW or usage.cache_write_tokens:
            return self._exact_cost(usage, model, requested, provider)
        key = (model, requested, provider)
        rates = self._rates.get(key)
        if rates is None or rates.until < self._clock():
            rates = self._rates[key] = self._find_rates(model, requested, provider)
        if rates.input < 0:
            return None
        cached = usage.cached_input_tokens or 0
        if cached > usage.input_tokens:
            return None
        return (usage.input_tokens - cached) * rates.input + cached * rates.cached + usage.output_tokens * rates.output

    def _find_rates(self, model: str | None, requested: str | None, provider: str) -> _Rates:
        def usd(n_input: int, n_cached: int, n_output: int) -> float:
            usage = Usage(input_tokens=n_input, cached_input_tokens=n_cached or None, output_tokens=n_output)
            cost = self._exact_cost(usage, model, requested, provider)
            return -1.0 if cost is None else cost / 1000

        return _Rates(usd(1000, 0, 0), usd(1000, 1000, 0), usd(0, 0, 1000), self._clock() + _RATES_KEPT_S)

    def _exact_cost(self, usage: Usage, model: str | None, requested: str | None, provider: str) -> float | None:
        found = cost_of(
            usage, model=model, requested=requested, provider=provider, at=datetime.now(UTC), prices=self._prices
        )
        return None if found is None else found.usd
