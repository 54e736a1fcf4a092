"""Tokens and dollars for the metrics: read from the spool when there is nothing better to do.

Parsing and pricing an answer costs more than passing it on. So it is done behind the traffic: under full load these
counters fall behind, and catch up afterwards; the spool is the queue. A rate that lasts (some hundred requests a second)
is no such load: there they keep up.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import thread_time

from evalpipe.collector.metrics import Metrics
from evalpipe.collector.pricing import Pricer
from evalpipe.collector.settings import CollectorSettings
from evalpipe.collector.stream_usage import log
from evalpipe.collector.tail import SegmentFiles, SpoolTail, TailedLine
from evalpipe.core.refusals import RefusalWatch
from evalpipe.core.spool import ResponseRecord, read_record
from evalpipe.core.traffic import Outcome
from evalpipe.providers.base import Answer
from evalpipe.providers.translate.drop import field_named

_PIECE_BYTES = 64 << 10
"""a large piece takes a millisecond to read and to search: so long nobody else shall wait"""
_RESPONSE = b'{"record":"response"'
_N_AHEAD = 16
"""segments of each kind that are held open while others are counted: load may delete them meanwhile"""
_REFUSALS_EVERY = 10
"""answers after which the arms' refusals are compared anew"""


class Accountant:
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
            from evalpipe.collector.genai_metrics import observe

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
