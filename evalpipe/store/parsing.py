"""Finished entries → files of exchanges, in this process or in several: reading answers is what a load spends its time on.

Each process writes files of its own and reads them back. Their names are given by the process that reads the spool, which alone
holds the datasets' locks: where it is killed nothing appears any more.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from io import BufferedReader
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from types import TracebackType

import msgspec
import pyarrow as pa

from evalpipe.models import Exchange
from evalpipe.spool.format import RequestRecord, ResponseRecord, ShadowRecord
from evalpipe.spool.join import PendingRequest, join_attempts
from evalpipe.store.exchange_rows import ReadingRules, read_exchanges
from evalpipe.store.parquet import (
    MAX_FILE_BYTES,
    ParquetFile,
    SealedFile,
    by_partition,
    existing_keys,
    partition_folder,
)
from evalpipe.store.schema import BY_NAME, forgo_pandas, holds_failures, to_table

_DATASET = BY_NAME["exchanges"]
_GROUP_ROWS = 8000
_GROUP_BYTES = 16 * 1024 * 1024
"""Rows of several batches, and their Arrow bytes, that are written as one row group: readers pay for each."""
_MOST_OPEN = 2
"""Batches another process has at a time: the one it is at, and the next."""


@dataclass(kw_only=True, slots=True)
class Written:
    """What became of a batch. `n_known`: rows that were stored already; `failed`: experiments in which a request failed."""

    n_added: int = 0
    n_known: int = 0
    experiments: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)

    def add(self, other: Written) -> None:
        self.n_added += other.n_added
        self.n_known += other.n_known
        self.experiments |= other.experiments
        self.failed |= other.failed


@dataclass(slots=True)
class _Group:
    """Rows of several batches that are to be one row group. `n_bytes`: Arrow's."""

    tables: list[pa.Table] = field(default_factory=list)
    n_rows: int = 0
    n_bytes: int = 0


class RowFiles:
    """The files one process writes the exchanges of a load to. No request may come twice before the files are in place."""

    def __init__(self, data: Path, rules: ReadingRules) -> None:
        self._data, self._rules = data, rules
        self._held: dict[tuple[str, ...], _Group] = {}
        """what the next row group will hold"""
        self._open: dict[tuple[str, ...], ParquetFile] = {}
        self._sealed: list[SealedFile] = []
        self._handed_out: list[SealedFile] = []
        """to be put in place, which they may never be"""

    def write(self, entries: Sequence[PendingRequest], *, may_be_stored: bool) -> Written:
        """Append the rows of `entries`. `may_be_stored`: those that are in the store are left out."""
        join_attempts(entries)
        rows: dict[str, list[Exchange]] = {}
        for entry in entries:
            assert entry.request is not None
            rows.setdefault(entry.request.experiment, []).extend(read_exchanges(entry, self._rules))
        written = Written(experiments=set(rows))
        for experiment, exchanges in rows.items():
            table = to_table(_DATASET.schema, exchanges)
            if holds_failures(table):
                written.failed.add(experiment)
            for partition, part in by_partition(_DATASET, experiment, table):
                new = self._only_new(partition, part) if may_be_stored else part
                written.n_added += new.num_rows
                written.n_known += part.num_rows - new.num_rows
                if new.num_rows:
                    self._append(partition, new)
        return written

    def seal(self) -> list[SealedFile]:
        """Every file, written out and read back. Raises DataError where one is not what was written."""
        for partition in list(self._held):
            self._write_group(partition)
        for partition in list(self._open):
            self._seal(partition)
        self._handed_out, self._sealed = self._sealed, []
        return self._handed_out

    def abandon(self) -> None:
        """Leave nothing behind that is not in place."""
        for file in self._open.values():
            file.abandon()
        for sealed in (*self._sealed, *self._handed_out):
            sealed.temp.unlink(missing_ok=True)
        self._open.clear()

    def _only_new(self, partition: tuple[str, ...], table: pa.Table) -> pa.Table:
        keys = table.select(list(_DATASET.key))
        stored = existing_keys(self._data, _DATASET, partition[0], keys, set(partition[1:]))
        if not stored:
            return table
        rows = zip(*(column.to_pylist() for column in keys.columns), strict=True)
        return table.filter(pa.array([row not in stored for row in rows], pa.bool_()))

    def _append(self, partition: tuple[str, ...], table: pa.Table) -> None:
        held = self._held.setdefault(partition, _Group())
        held.tables.append(table)
        held.n_rows += table.num_rows
        held.n_bytes += table.nbytes
        if held.n_rows >= _GROUP_ROWS or held.n_bytes >= _GROUP_BYTES:
            self._write_group(partition)

    def _write_group(self, partition: tuple[str, ...]) -> None:
        table = pa.concat_tables(self._held.pop(partition).tables)
        file = self._open.get(partition)
        if file is None:
            folder = partition_folder(self._data, _DATASET, partition)
            file = self._open[partition] = ParquetFile(folder, _DATASET.schema)
        file.append(table)
        if file.n_bytes >= MAX_FILE_BYTES:
            self._seal(partition)

    def _seal(self, partition: tuple[str, ...]) -> None:
        file = self._open[partition]
        file.seal()
        self._sealed.append(file.sealed())
        del self._open[partition]


class RowWriters:
    """Takes batches of entries and writes their rows, with `processes` processes of which this one is one.

    The others work while the caller reads on, and what they have no time for is written here. Leaving the block by an exception
    (Ctrl-C) drops what is not in place.
    """

    def __init__(self, data: Path, rules: ReadingRules, processes: int) -> None:
        self.written = Written()
        self._own = RowFiles(data, rules)
        self._others = [_Process(data, rules) for _ in range(max(processes, 1) - 1)]

    def __enter__(self) -> RowWriters:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for other in self._others:
            other.stop()
        self._own.abandon()

    def submit(self, entries: Sequence[PendingRequest], *, may_be_stored: bool) -> None:
        """Have rows written, see `RowFiles.write`. Raises what another process failed with."""
        for other in self._others:
            for batch in other.done():
                self.written.add(batch)
        free = next((other for other in self._others if other.n_open < _MOST_OPEN), None)
        if free is None:
            self.written.add(self._own.write(entries, may_be_stored=may_be_stored))
        else:
            free.write(entries, may_be_stored=may_be_stored)

    def commit(self) -> None:
        """Put every row so far in place. Raises DataError where a file cannot be read back, OSError."""
        sealing = [other.seal() for other in self._others if other.is_used]
        sealed = list(self._own.seal())
        for other in self._others:
            for batch in other.done(wait=True):
                self.written.add(batch)
        for files in sealing:
            sealed += files.result()
        for file in sorted(sealed, key=lambda file: file.path):
            file.place()


class _Process:
    """Another process with files of its own, which are gone when it is stopped before they are in place.

    Batches go through a pipe of their own, in one write and one read each: the pool's takes 64 kB at a time, each into a new
    buffer of the whole size, which costs the processor four times as much.
    """

    def __init__(self, data: Path, rules: ReadingRules) -> None:
        # A fresh interpreter, not a fork: this process may hold threads of DuckDB and Arrow.
        context = get_context("spawn")
        self._received, self._pipe = context.Pipe(duplex=False)
        self._pool = ProcessPoolExecutor(
            max_workers=1, mp_context=context, initializer=_begin, initargs=(data, rules, self._received)
        )
        self._sender = ThreadPoolExecutor(max_workers=1)
        self._batches: deque[Future[Written]] = deque()
        self.is_used = False
        """the process is started with its first batch"""

    @property
    def n_open(self) -> int:
        return len(self._batches)

    def write(self, entries: Sequence[PendingRequest], *, may_be_stored: bool) -> None:
        batch = pack(entries)
        self._batches.append(self._pool.submit(_write, len(batch), may_be_stored))
        self._received.close()  # the process has it by now: where it ends, so does a write to the pipe
        self._sender.submit(_send, self._pipe.fileno(), batch)
        self.is_used = True

    def done(self, *, wait: bool = False) -> Iterator[Written]:
        """The batches in front that are written; all of them with `wait`."""
        while self._batches and (wait or self._batches[0].done()):
            yield self._batches.popleft().result()

    def seal(self) -> Future[list[SealedFile]]:
        return self._pool.submit(_seal)

    def stop(self) -> None:
        for batch in self._batches:
            batch.cancel()
        if self.is_used:
            with suppress(RuntimeError):  # its process was killed, as a system short of memory does
                self._pool.submit(_abandon)
        self._pool.shutdown(wait=True)
        self._sender.shutdown(wait=True)
        self._pipe.close()
        self._received.close()


def _send(pipe: int, batch: bytes) -> None:
    left = memoryview(batch)
    with suppress(BrokenPipeError):  # its process has ended, which the pool reports
        while left:
            left = left[os.write(pipe, left) :]


# Entries on their way to another process. MessagePack: texts are copied there, where in JSON each character is looked at.


class _Packed(msgspec.Struct, array_like=True, gc=False):
    request: RequestRecord | None
    served: ResponseRecord | None
    shadow: ShadowRecord | None
    copy: ResponseRecord | None
    at: float
    lost_reason: str | None


_packer = msgspec.msgpack.Encoder()
_unpacker = msgspec.msgpack.Decoder(list[_Packed])


def pack(entries: Sequence[PendingRequest]) -> bytes:
    return _packer.encode(
        [_Packed(one.request, one.served, one.shadow, one.copy, one.at, one.lost_reason) for one in entries]
    )


def unpack(batch: bytes) -> list[PendingRequest]:
    """The entries, without the lines that they were put together from."""
    return [_unpacked(one) for one in _unpacker.decode(batch)]


def _unpacked(one: _Packed) -> PendingRequest:
    entry = PendingRequest(one.request, one.served, at=one.at, lost_reason=one.lost_reason)
    entry.shadow, entry.copy = one.shadow, one.copy
    return entry


_RARELY = (500_000, 20, 50)
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


# What runs in another process.


_files: RowFiles
"""of this process, where it is such a one"""
_received: BufferedReader
"""the batches that are sent to it"""


def _begin(data: Path, rules: ReadingRules, received: connection.Connection) -> None:
    global _files, _received
    gc.set_threshold(*_RARELY)
    atexit.register(os._exit, 0)  # at its end all is handed back; to take the interpreter apart takes 0.2 s
    _files = RowFiles(data, rules)
    _received = os.fdopen(os.dup(received.fileno()), "rb")
    _watch_parent()
    forgo_pandas()


def _watch_parent() -> None:
    """Ctrl-C reaches the whole process group; one process answering it is enough. A supervisor's SIGTERM does, too: then no
    unfinished file stays. And no worker outlives its parent, however that ended: the pipes of the pool do not show it, since
    each worker holds both ends of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _end(*_: object) -> None:
    _files.abandon()
    os._exit(1)


def _exit_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
    os._exit(1)


def _write(n_bytes: int, may_be_stored: bool) -> Written:
    return _files.write(unpack(_received.read(n_bytes)), may_be_stored=may_be_stored)


def _seal() -> list[SealedFile]:
    return _files.seal()


def _abandon() -> None:
    _files.abandon()
