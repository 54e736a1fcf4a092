"""Finished entries → files of exchanges, by tasks on other machines, which get records and give back whole files.

A task begins from nothing and is run again where its machine is lost: what it wrote is seen by nobody until the process that
reads the spool, which alone holds the datasets' locks, has it on its own disk and puts it in place.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa

from evalpipe.errors import DataError
from evalpipe.files import make_folder
from evalpipe.spool.join import PendingRequest
from evalpipe.store.exchange_rows import ReadingRules, instant
from evalpipe.store.parquet import SealedFile, checksum, existing_keys
from evalpipe.store.parsing import RowFiles, Written, pack, unpack
from evalpipe.store.schema import BY_NAME, forgo_pandas

TASK_BYTES = 64 * 1024 * 1024
"""Packed records of a task: some 16,000 requests of 4 kB, a second or two of its CPU."""
_DATASET = BY_NAME["exchanges"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Workers:
    """Who runs tasks. Its futures raise EvalpipeError where a task fails for good.

    Attributes:
        executor: runs functions of the modules of evalpipe; arguments and results are pickled.
        n_tasks: that are given to it at a time, so that none of its machines waits for work.
        share: makes an argument of many tasks out of a value, which is then carried to each machine once.
    """

    executor: Executor
    n_tasks: int
    share: Callable[[Any], Any] = lambda value: value


OpenWorkers = Callable[[], AbstractContextManager[Workers]]
"""Where tasks run, as long as the block lasts."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FileContent:
    """A finished file: its path below the data folder, which ends in its checksum, and its bytes."""

    name: str
    data: bytes

    def sealed_in(self, data: Path) -> SealedFile:
        """The file on this machine's disk, synced and compared with its checksum, not in place yet. Raises DataError, OSError."""
        path = data / self.name
        stem, mark = path.name.split(".", 2)[:2]
        temp = path.with_name(f".{stem}.tmp")
        make_folder(path.parent)
        try:
            with os.fdopen(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(self.data)
                file.flush()
                os.fsync(file.fileno())
            if checksum(temp) != mark:
                raise DataError(f"{path} is not what was written: is the disk full or failing?")
        except BaseException:
            temp.unlink(missing_ok=True)
            raise
        return SealedFile(temp=temp, path=path)


def write_rows(rules: ReadingRules, batches: Sequence[bytes]) -> tuple[Written, list[FileContent]]:
    """A task: the rows of packed entries, none of which is stored, as files that were read back."""
    forgo_pandas()
    pa.set_memory_pool(pa.system_memory_pool())  # gives back to the machine what a task has freed
    with tempfile.TemporaryDirectory(prefix="evalpipe-rows-") as folder:
        data = Path(folder)
        files, written = RowFiles(data, rules), Written()
        try:
            for batch in batches:
                written.add(files.write(unpack(batch), may_be_stored=False))
            found = files.seal()
        except BaseException:
            files.abandon()
            raise
        return written, [
            FileContent(name=one.path.relative_to(data).as_posix(), data=one.temp.read_bytes()) for one in found
        ]


class TaskWriters:
    """As `parsing.RowWriters`, with tasks in place of processes. Requests of which some row is stored already are few, those that
    a killed load left: their rows are written here, where the store is."""

    def __init__(self, data: Path, rules: ReadingRules, workers: Workers) -> None:
        self.written = Written()
        self._data, self._rules, self._workers = data, rules, workers
        self._own = RowFiles(data, rules)
        self._batches: list[bytes] = []
        """of the next task"""
        self._n_bytes = 0
        self._running: set[Future[tuple[Written, list[FileContent]]]] = set()
        self._sealed: list[SealedFile] = []

    def __enter__(self) -> TaskWriters:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in self._running:
            task.cancel()
        for file in self._sealed:
            file.temp.unlink(missing_ok=True)
        self._own.abandon()

    def submit(self, entries: Sequence[PendingRequest], *, may_be_stored: bool) -> None:
        """As `RowWriters.submit`."""
        if may_be_stored and _is_any_stored(self._data, entries):
            self.written.add(self._own.write(entries, may_be_stored=True))
            return
        self._batches.append(pack(entries))
        self._n_bytes += len(self._batches[-1])
        if self._n_bytes >= TASK_BYTES:
            self._start()

    def commit(self) -> None:
        """As `RowWriters.commit`."""
        if self._batches:
            self._start()
        sealed = list(self._own.seal())
        while self._running:
            self._collect()
        for file in sorted([*sealed, *self._sealed], key=lambda file: file.path):
            file.place()
        self._sealed.clear()

    def _start(self) -> None:
        while len(self._running) >= self._workers.n_tasks:
            self._collect()
        self._running.add(self._workers.executor.submit(write_rows, self._rules, self._batches))
        self._batches, self._n_bytes = [], 0

    def _collect(self) -> None:
        """Wait for a task, and have the files of those that have ended on this disk."""
        ended, self._running = wait(self._running, return_when=FIRST_COMPLETED)
        for task in ended:
            written, files = task.result()
            self.written.add(written)
            for file in files:
                self._sealed.append(file.sealed_in(self._data))


def _is_any_stored(data: Path, entries: Sequence[PendingRequest]) -> bool:
    """Whether a row of any of these requests is stored."""
    asked: dict[str, tuple[set[str], set[str]]] = {}
    for entry in entries:
        assert entry.request is not None
        requests, dates = asked.setdefault(entry.request.experiment, (set(), set()))
        requests.add(entry.request.request_id)
        dates.update(instant(at).date().isoformat() for at in entry.row_times())
    return any(
        existing_keys(data, _DATASET, experiment, pa.table({"request_id": sorted(requests)}), dates)
        for experiment, (requests, dates) in asked.items()
    )
