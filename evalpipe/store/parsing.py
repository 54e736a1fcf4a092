"""Finished entries → Arrow tables, in this process or in several: reading answers is what a load spends its time on."""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from types import TracebackType

import pyarrow as pa

from evalpipe.models import Exchange
from evalpipe.spool.join import PendingRequest, entry_of, join_attempts
from evalpipe.store.exchange_rows import ReadingRules, read_exchanges
from evalpipe.store.schema import EXCHANGES, to_table

Job = list[tuple[list[bytes], float, str | None]]
"""The lines of each entry, its time, and why what is missing in it will not come."""


class Parser:
    """Takes batches of entries and gives tables by experiment, in the order of submission.

    With several processes, this one counts as one of them: the others parse while the caller reads on, and what they have no
    time for is parsed here. Leaving the block by an exception (Ctrl-C) drops what is not begun.
    """

    def __init__(self, rules: ReadingRules, processes: int) -> None:
        self._rules = rules
        self._n_others = max(processes, 1) - 1
        # A fresh interpreter, not a fork: this process may hold threads of DuckDB and Arrow.
        self._pool = (
            ProcessPoolExecutor(max_workers=self._n_others, mp_context=get_context("spawn"), initializer=_begin)
            if self._n_others
            else None
        )
        self._waiting: deque[Future[dict[str, bytes]] | dict[str, pa.Table]] = deque()

    def __enter__(self) -> Parser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=kind is not None)

    def submit(self, entries: Sequence[PendingRequest]) -> None:
        n_open = sum(isinstance(batch, Future) and not batch.done() for batch in self._waiting)
        if self._pool is None or n_open > self._n_others:  # each of them is busy, and the next batch waits
            self._waiting.append(_parse(entries, self._rules))
            return
        job: Job = [([source.data for source in entry.sources], entry.at, entry.lost_reason) for entry in entries]
        self._waiting.append(self._pool.submit(_parse_job, job, self._rules))

    def results(self, *, finish: bool = False) -> Iterator[tuple[str, pa.Table]]:
        """(experiment, exchanges) of the batches in front that are parsed; those that are not are waited for where too many
        are open. `finish`: all of them."""
        while self._waiting:
            batch = self._waiting[0]
            n_most = 0 if finish else 2 * self._n_others + 1
            if isinstance(batch, Future) and not batch.done() and len(self._waiting) <= n_most:
                return
            self._waiting.popleft()
            if isinstance(batch, Future):
                for experiment, data in batch.result().items():
                    with pa.ipc.open_stream(data) as reader:
                        yield experiment, reader.read_all()
            else:
                yield from batch.items()


_RARELY = (100_000, 20, 50)
"""objects, and rounds, between two searches for cycles: more than a batch holds"""


@contextmanager
def rare_collections() -> Iterator[None]:
    """Records, rows and calls leave few cycles behind: inside the block Python looks for them seldom, not again and again
    among the thousands that wait."""
    before = gc.get_threshold()
    gc.set_threshold(*_RARELY)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _begin() -> None:
    gc.set_threshold(*_RARELY)
    _watch_parent()


def _watch_parent() -> None:
    """Ctrl-C reaches the whole process group; one process answering it is enough. And no worker outlives its parent, however
    that ended: the pipes of the pool do not show it, since each worker holds both ends of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
    os._exit(1)


def _parse(entries: Sequence[PendingRequest], rules: ReadingRules) -> dict[str, pa.Table]:
    join_attempts(entries)
    rows: dict[str, list[Exchange]] = {}
    for entry in entries:
        assert entry.request is not None
        rows.setdefault(entry.request.experiment, []).extend(read_exchanges(entry, rules))
    return {experiment: to_table(EXCHANGES, exchanges) for experiment, exchanges in rows.items()}


def _parse_job(job: Job, rules: ReadingRules) -> dict[str, bytes]:
    """The work of another process: lines in, Arrow streams out, both cheap to hand over."""
    entries = [entry_of(lines, at, lost_reason) for lines, at, lost_reason in job]
    results = {}
    for experiment, table in _parse(entries, rules).items():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        results[experiment] = sink.getvalue().to_pybytes()
    return results
