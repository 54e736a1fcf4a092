"""Another tool's log file → the datasets: detect the format, read, put broken lines aside, write each row once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from evalpipe.core.traffic import Arm
from evalpipe.errors import ConfigError, DataError
from evalpipe.store.datasets import writing
from evalpipe.store.documents import Line, parse, read_lines
from evalpipe.store.importers import IMPORTERS, detect
from evalpipe.store.importers.base import BrokenLineError, Imported, Importer
from evalpipe.store.rejects import Rejects
from evalpipe.store.rows import holds_failures, to_table
from evalpipe.store.schema import BY_NAME
from evalpipe.store.tally import Tally
from evalpipe.store.writer import DatasetWriter

BATCH_BYTES = 32 * 1024 * 1024
"""Bytes of log whose rows are held in memory before they are written."""

DETECTION_LINES = 100
"""Lines that are tried before a format is given up as unknown."""


def load_file(
    path: Path,
    data: Path,
    experiment: str,
    *,
    format_name: str = "auto",
    arm: Arm = Arm.CONTROL,
    progress: Callable[[int], object] = lambda n_bytes: None,
) -> Tally:
    """Load one file into `experiment`; `arm`: whose answers they are, where the format does not tell.

    Raises ConfigError for an unknown format, DataError for an unreadable file.
    """
    importer = find_importer(path, format_name)
    rejects = Rejects(data, path)
    tally = Tally(experiments={experiment}, n_files=1)
    with _Writers(data, experiment) as writers:
        for line in read_lines(path):
            imported = _read(importer, line, rejects, arm)
            if imported is not None:
                writers.add(imported, len(line.data))
            progress(line.n_read_bytes)
        writers.flush()
    rejects.write()
    writers.count(tally)
    tally.n_rejected = len(rejects)
    tally.rejected = [str(rejects.path)] if rejects else []
    return tally


def is_spool(path: Path) -> bool:
    """Whether the file is one of the collector's segments."""
    for n_read, line in enumerate(read_lines(path)):
        if n_read >= DETECTION_LINES:
            break
        try:
            document = parse(line.data)
        except ValueError:
            continue
        return isinstance(document, dict) and {"record", "request_id", "experiment"} <= document.keys()
    return False


def request_ids(path: Path, format_name: str = "auto") -> set[str]:
    """The requests that a log file speaks of, by the ids they have once it is loaded. Lines that `load` would put aside are
    left out. Raises as `load_file`."""
    spool = format_name == "spool" or (format_name == "auto" and is_spool(path))
    importer = None if spool else find_importer(path, format_name)
    found: set[str] = set()
    for line in read_lines(path):
        try:
            document = parse(line.data)
            if importer is not None:
                found.update(exchange.request_id for exchange in importer.read(document, line.number).exchanges)
            elif isinstance(document, dict) and isinstance(document.get("request_id"), str):
                found.add(document["request_id"])
        except ValueError:  # BrokenLineError is one
            continue
    return found


def find_importer(path: Path, format_name: str) -> Importer:
    """The importer of that name, or (`auto`) the first that knows one of the file's first documents."""
    if format_name != "auto":
        by_name = {importer.name: importer for importer in IMPORTERS}
        if format_name not in by_name:
            raise ConfigError(f"--format {format_name}: no such format; known are auto, spool, {', '.join(by_name)}")
        return by_name[format_name]
    n_read = 0
    for line in read_lines(path):
        n_read += 1
        if n_read > DETECTION_LINES:
            break
        try:
            importer = detect(parse(line.data))
        except ValueError:
            continue
        if importer is not None:
            return importer
    if n_read == 0:
        raise DataError(f"{path} is empty: nothing to load")
    names = ", ".join(importer.name for importer in IMPORTERS)
    raise ConfigError(f"{path} is in no format that is known here: say it with --format (spool, {names})")


def _read(importer: Importer, line: Line, rejects: Rejects, arm: Arm) -> Imported | None:
    try:
        imported = importer.read(parse(line.data), line.number)
        if importer.tells_arms or arm is Arm.CONTROL:
            return imported
        return replace(imported, exchanges=[replace(exchange, arm=arm) for exchange in imported.exchanges])
    except BrokenLineError as error:
        reason = str(error)
    except ValueError as error:
        reason = f"not JSON: {error}"
    rejects.add(line.number, line.data, reason)
    return None


class _Writers:
    """One writer a dataset, and the rows that wait for the next batch. The datasets' locks are held all the time."""

    _FIELDS = ("exchanges", "judgments", "labels", "feedback")

    def __init__(self, data: Path, experiment: str) -> None:
        self._data = data
        self._experiment = experiment
        self._rows: dict[str, list[Any]] = {name: [] for name in self._FIELDS}
        self._n_bytes = 0
        self._any_failed = False
        self._writers: dict[str, DatasetWriter] = {}
        self._stack = ExitStack()

    def __enter__(self) -> _Writers:
        for name in self._FIELDS:
            self._stack.enter_context(writing(self._data, name))
            self._writers[name] = self._stack.enter_context(DatasetWriter(self._data, BY_NAME[name]))
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def add(self, imported: Imported, n_bytes: int) -> None:
        for name in self._FIELDS:
            self._rows[name].extend(getattr(imported, name))
        self._n_bytes += n_bytes
        if self._n_bytes >= BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        for name, rows in self._rows.items():
            if rows:
                table = to_table(BY_NAME[name].schema, rows)
                self._writers[name].add(self._experiment, table)
                self._any_failed = self._any_failed or (name == "exchanges" and holds_failures(table))
                rows.clear()
        self._n_bytes = 0

    def count(self, tally: Tally) -> None:
        for name, writer in self._writers.items():
            setattr(tally, f"n_{name}", writer.n_added)
            tally.n_known += writer.n_known
        if self._any_failed:
            tally.failed.add(self._experiment)
