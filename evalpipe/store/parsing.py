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
from evalpipe.spool.format import read_record
from evalpipe.spool.join import PendingRequest, put
from evalpipe.store.exchange_rows import ReadingRules, read_exchanges
from evalpipe.store.schema import EXCHANGES, to_table

Job = list[tuple[list[bytes], str | None]]
"""The lines of each entry, and why what is missing in it will not come."""


class Parser:
    """Takes batches of entries and gives tables by experiment, in the order of submission.

    With one process everything happens in `results`; with more, batches are parsed while the caller reads on. Leaving the
    block by an exception (Ctrl-C) drops what is not begun.
    """

    def __init__(self, rules: ReadingRules, processes: int) -> None:
        self._rules = rules
        # A fresh interpreter, not a fork: this process may hold threads of DuckDB and Arrow.
        self._pool = (
            None
            if processes <= 1
            else ProcessPoolExecutor(max_workers=processes, mp_context=get_context("spawn"), initializer=_begin)
        )
        self._waiting: deque[Future[dict[str, bytes]] | Sequence[PendingRequest]] = deque()

    def __enter__(self) -> Parser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=kind is not None)

    def submit(self, entries: Sequence[PendingRequest]) -> None:
        if self._pool is None:
            self._waiting.append(entries)
            return
        job: Job = [([source.data for source in entry.sources], entry.lost_reason) for entry in entries]
        self._waiting.append(self._pool.submit(_parse_job, job, self._rules))

    def results(self, n_pending: int) -> Iterator[tuple[str, pa.Table]]:
        """(experiment, exchanges) of the batches in front, until at most `n_pending` are left (in one process: none)."""
        while len(self._waiting) > (0 if self._pool is None else n_pending):
            batch = self._waiting.popleft()
            if isinstance(batch, Future):
                for experiment, data in batch.result().items():
                    with pa.ipc.open_stream(data) as reader:
                        yield experiment, reader.read_all()
            else:
                yield from _parse(batch, self._rules).items()


_RARELY = (100_000, 20, 50)
"""objects, and rounds, between two searches for cycles: more than a batch holds"""


@contextmanager
def rare_collections() -> Iterator[None]:
    """Records and rows leave no cycles behind: inside the block Python looks for them seldom, not again and again among the
    thousands that wait."""
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
    rows: dict[str, list[Exchange]] = {}
    for entry in entries:
        assert entry.request is not None
        rows.setdefault(entry.request.experiment, []).extend(read_exchanges(entry, rules))
    return {experiment: to_table(EXCHANGES, exchanges) for experiment, exchanges in rows.items()}


def _parse_job(job: Job, rules: ReadingRules) -> dict[str, bytes]:
    """The work of another process: lines in, Arrow streams out, both cheap to hand over."""
    entries = []
    for lines, lost_reason in job:
        entry = PendingRequest(lost_reason=lost_reason)
        for line in lines:
            put(entry, read_record(line))
        entries.append(entry)
    results = {}
    for experiment, table in _parse(entries, rules).items():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        results[experiment] = sink.getvalue().to_pybytes()
    return results
