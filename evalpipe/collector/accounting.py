"""Tokens and dollars for the metrics: read from the spool when there is nothing better to do.

Parsing and pricing an answer costs more than passing it on. So it is done behind the traffic: under full load these
counters fall behind, and catch up afterwards; the spool is the queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from time import perf_counter

from evalpipe.collector.metrics import Metrics
from evalpipe.collector.pricing import Pricer
from evalpipe.collector.settings import CollectorSettings
from evalpipe.collector.tail import SpoolTail, TailedLine
from evalpipe.core.spool import ResponseRecord, read_record

_PIECE_BYTES = 64 << 10
"""a large piece takes a millisecond to read and to search: so long nobody else shall wait"""
_RESPONSE = b'{"record":"response"'


class Accountant:
    """Counts every answer once: `offsets` is where the last life stopped."""

    def __init__(
        self, settings: CollectorSettings, folder: Path, offsets: dict[str, int], metrics: Metrics, pricer: Pricer
    ) -> None:
        self._settings, self._metrics, self._pricer = settings, metrics, pricer
        self._tails = [SpoolTail(folder, prefix, offsets, _PIECE_BYTES) for prefix in ("served-", "shadow-")]
        self._lines: Iterator[TailedLine] = iter(())

    def look_for_segments(self) -> None:
        for tail in self._tails:
            tail.look_for_segments()

    def let_go(self) -> None:
        for tail in self._tails:
            tail.let_go()

    def work(self, budget_s: float) -> None:
        """Count what was recorded since the last call, for at most about `budget_s` seconds."""
        until = perf_counter() + budget_s
        while perf_counter() < until:
            line = next(self._lines, None)
            if line is None:
                self._lines = chain.from_iterable(tail.read(_RESPONSE) for tail in self._tails)
                line = next(self._lines, None)
                if line is None:
                    return
            self._count(line.line)

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

    def offsets(self) -> dict[str, int]:
        return {name: offset for tail in self._tails for name, offset in tail.offsets().items()}

    def close(self) -> None:
        for tail in self._tails:
            tail.close()
