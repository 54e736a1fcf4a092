"""Finished entries → Arrow tables, in this process or in several: reading answers is what a load spends its time on."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from datetime import UTC, datetime, timedelta
from multiprocessing import connection, get_context, parent_process
from types import TracebackType

import pyarrow as pa

from evalpipe.core.spool import read_record
from evalpipe.core.traffic import Exchange
from evalpipe.store.exchange_rows import ReadingRules, read_exchanges
from evalpipe.store.rows import to_table
from evalpipe.store.schema import EXCHANGES
from evalpipe.store.spool_join import Entry, put

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
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
            else ProcessPoolExecutor(
                max_workers=processes, mp_context=get_context("spawn"), initializer=_belong_to_the_parent
            )
        )
        self._waiting: deque[Future[dict[str, bytes]] | Sequence[Entry]] = deque()

    def __enter__(self) -> Parser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=kind is not None)

    def submit(self, entries: Sequence[Entry]) -> None:
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


def _belong_to_the_parent() -> None:
    """Ctrl-C reaches the whole process group; one process answering it is enough. And no worker outlives its parent, however
    that ended: the pipes of the pool do not tell, since each worker holds both ends of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
    os._exit(1)


def instant(seconds: float) -> datetime:
    return _EPOCH + timedelta(seconds=seconds)


def _parse(entries: Sequence[Entry], rules: ReadingRules) -> dict[str, pa.Table]:
    rows: dict[str, list[Exchange]] = {}
    for entry in entries:
        assert entry.request is not None
        rows.setdefault(entry.request.experiment, []).extend(read_exchanges(entry, rules))
    return {experiment: to_table(EXCHANGES, exchanges) for experiment, exchanges in rows.items()}


def _parse_job(job: Job, rules: ReadingRules) -> dict[str, bytes]:
    """The work of another process: lines in, Arrow streams out, both cheap to hand over."""
    entries = []
    for lines, lost_reason in job:
        entry = Entry(lost_reason=lost_reason)
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
