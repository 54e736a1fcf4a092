"""Another tool's log → the datasets: read, count what is left out, put broken entries aside, write each row once."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from evalpipe.core.traffic import Arm, Exchange
from evalpipe.errors import DataError
from evalpipe.store.datasets import writing
from evalpipe.store.documents import parse
from evalpipe.store.importers import IMPORTERS
from evalpipe.store.importers.arms import Arms
from evalpipe.store.importers.base import BrokenLineError, Imported, Importer
from evalpipe.store.importers.bytes_in import open_unpacked, sign_of
from evalpipe.store.importers.columnar import Columnar
from evalpipe.store.importers.containers import raw_of
from evalpipe.store.importers.detection import Examined
from evalpipe.store.importers.json_in import Document, Text
from evalpipe.store.loads import Ledger
from evalpipe.store.rejects import Rejects
from evalpipe.store.rows import holds_failures, to_table
from evalpipe.store.schema import BY_NAME
from evalpipe.store.tally import Tally
from evalpipe.store.writer import DatasetWriter

BATCH_BYTES = 32 * 1024 * 1024
"""Bytes of log whose rows are held in memory before they are written."""
BATCH_ROWS = 20_000
_NO_BYTES = 400
"""what a row of a table counts for, whose size in the file is not known"""

Memory = dict[str, dict[str, list[Any]]]
"""format → key → what companions of that format hold: requests of a batch, users of traces"""


@dataclass(slots=True)
class Reading:
    """How a source is read, beyond its format: whose answers it holds, which values are which arm, what companions say, and a
    change to each exchange (a price)."""

    arm: Arm = Arm.CONTROL
    arms: Arms = field(default_factory=Arms)
    memory: Memory = field(default_factory=dict)
    priced: Callable[[Exchange], Exchange] | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One document of a source, read: what it held, or why it could not be read."""

    document: Document
    imported: Imported | None
    reason: str | None = None


def load_source(
    examined: Examined,
    data: Path,
    experiment: str,
    reading: Reading,
    *,
    progress: Callable[[int], object] = lambda n_documents: None,
) -> Tally:
    """Load one source into `experiment`. Raises DataError where it cannot be read."""
    source = examined.source
    rejects = Rejects(data, Path(source.name))
    tally = Tally(experiments={experiment}, n_files=1)
    with Ledger(data, experiment, source.name) as ledger, _Writers(data, experiment, ledger) as writers:
        for entry in _entries(examined, reading, writers, progress):
            document, imported = entry.document, entry.imported
            if entry.reason is not None:
                rejects.add(document.number, raw_of(document), entry.reason)
                tally.reasons[entry.reason] += 1
            if imported is not None:
                tally.left_out.update(imported.left_out)
                tally.notes.update(_kinds(imported.notes))
                for reason in imported.rejected:
                    rejects.add(document.number, raw_of(document), reason)
                    tally.reasons[reason] += 1
                writers.add(imported, _NO_BYTES if document.raw is None else len(document.raw))
            progress(document.number)
        writers.flush()
        ledger.finish()
        writers.finish()
    rejects.write()
    writers.count(tally)
    tally.faults += [f"{source.name}: {fault}" for fault in source.faults]
    tally.arms += reading.arms.lines()
    tally.n_rejected = len(rejects)
    tally.rejected = [str(rejects.path)] if rejects else []
    return tally


def _entries(
    examined: Examined, reading: Reading, writers: _Writers, progress: Callable[[int], object]
) -> Iterator[Entry]:
    """The documents that have to be read one by one; plain rows of a mapped table are written many at once."""
    numbered: Counter[str] = Counter()
    importer = examined.importer
    fast = None
    if importer is not None and importer.mapped is not None and not examined.inner and reading.priced is None:
        fast = Columnar.of(
            importer.mapped, examined.sample, arm=reading.arm.value, arms=reading.arms, numbered=numbered
        )
    if fast is None:
        yield from read_source(examined, reading)
        return
    for batch in fast.batches(examined.source.documents()):
        if batch.n_plain:
            writers.add_table("exchanges", batch.table)
            progress(0)
        if batch.others:
            yield from read_source(examined, reading, iter(batch.others), numbered)


def read_source(
    examined: Examined,
    reading: Reading,
    documents: Iterator[Document] | None = None,
    numbered: Counter[str] | None = None,
) -> Iterator[Entry]:
    """Every document of a source (or of `documents`) with what it holds, in order. Nothing a document holds ends the reading.
    `numbered`: ids that were made up so far, and how often."""
    importer = examined.importer
    assert importer is not None
    numbered = Counter() if numbered is None else numbered
    family = [one for one in IMPORTERS if one.name == importer.name and one is not importer]
    memory = reading.memory.get(importer.name, {})
    for document in examined.source.documents() if documents is None else documents:
        if document.problem is not None:
            yield Entry(document, None, document.problem)
            continue
        for value in examined.unwrapped(document.value):
            try:
                imported = _read(value, document.number, importer, family, memory)
                yield Entry(document, _placed(imported, importer, reading, numbered))
            except BrokenLineError as error:
                yield Entry(document, None, str(error))
            except RecursionError:
                yield Entry(document, None, "nested too deep")
            except Exception as error:  # noqa: BLE001 - a foreign log may hold anything: one entry is refused, the rest is loaded
                yield Entry(
                    document, None, f"cannot be read as {importer.name}: {type(error).__name__}: {str(error)[:200]}"
                )


def _read(
    value: Any, number: int, importer: Importer, family: Sequence[Importer], memory: Mapping[str, list[Any]]
) -> Imported:
    reader = importer
    if not importer.matches(value):
        reader = next((one for one in family if one.matches(value)), importer)
        if reader is importer:
            found = importer.read(value, number)  # its own words say best what is missing
            if found.exchanges:
                raise BrokenLineError(f"not in the shape of {importer.name}")
            return found
    if reader.joined is not None and memory:
        value = reader.joined(value, memory)
    return reader.read(value, number)


def _placed(imported: Imported, importer: Importer, reading: Reading, numbered: Counter[str]) -> Imported:
    """The exchanges in their arms, with a number behind ids that were made up and came before."""
    exchanges = imported.exchanges
    labels = imported.labels
    if imported.derived_ids:
        renamed = {}
        for one in exchanges:
            if one.request_id not in renamed:
                numbered[one.request_id] += 1
                n = numbered[one.request_id]
                renamed[one.request_id] = one.request_id if n == 1 else f"{one.request_id}-{n}"
        exchanges = [
            replace(one, request_id=renamed[one.request_id]) if renamed[one.request_id] != one.request_id else one
            for one in exchanges
        ]
        labels = [replace(one, request_id=renamed.get(one.request_id, one.request_id)) for one in labels]
    if imported.variants:
        arms = [reading.arm if value is None else reading.arms.of(value) for value in imported.variants]
        unknown = sorted({str(value) for value, arm in zip(imported.variants, arms, strict=True) if arm is None})
        if unknown and len(exchanges) == 1:
            raise BrokenLineError(f"of neither arm: {unknown[0]!r}; name two values with --arms CONTROL,TREATMENT")
        left = [f"answers of neither arm ({value})" for value in unknown]
        exchanges = [replace(one, arm=arm) for one, arm in zip(exchanges, arms, strict=True) if arm is not None]
        imported = replace(imported, left_out=[*imported.left_out, *left])
    elif not importer.tells_arms and reading.arm is not Arm.CONTROL:
        exchanges = [replace(one, arm=reading.arm) for one in exchanges]
    if reading.priced is not None:
        exchanges = [reading.priced(one) for one in exchanges]
    if exchanges is imported.exchanges and labels is imported.labels:
        return imported
    return replace(imported, exchanges=exchanges, labels=labels)


def _kinds(notes: Sequence[str]) -> list[str]:
    """Notes by kind: the example in brackets is left to the first one."""
    return [note.split(" (e.g. ")[0] for note in notes]


def remember(examined: Examined, memory: Memory) -> None:
    """Put what the companions in a source hold into `memory`."""
    importer = examined.importer
    if importer is None:
        return
    readers = [one for one in IMPORTERS if one.name == importer.name and one.companion is not None]
    if not readers or not any(
        one.companion(value) for one in readers for value in examined.sample if one.companion is not None
    ):
        return
    kept = memory.setdefault(importer.name, {})
    for document in examined.source.documents():
        if document.problem is not None:
            continue
        for value in examined.unwrapped(document.value):
            for one in readers:
                found = one.companion(value) if one.companion is not None else None
                if found is not None:
                    kept.setdefault(found[0], []).append(found[1])


def store_rows(data: Path, experiment: str, source: str, imported: Sequence[Imported]) -> Tally:
    """Write rows that were read before, as one load of `source`."""
    tally = Tally(experiments={experiment}, n_files=1)
    with Ledger(data, experiment, source) as ledger, _Writers(data, experiment, ledger) as writers:
        for one in imported:
            writers.add(one, 0)
        writers.flush()
        ledger.finish()
        writers.finish()
    writers.count(tally)
    return tally


def is_spool(path: Path) -> bool:
    """Whether the file is one of the collector's segments."""
    try:
        with path.open("rb") as file:
            opened = open_unpacked(file)
            if sign_of(opened.head) is not None or opened.head.lstrip()[:1] != b"{":
                return False
            lines = Text(opened.stream).first_lines()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    for line in itertools.islice(lines, 40):
        try:
            document = parse(line)
        except ValueError:
            continue
        return isinstance(document, dict) and {"record", "request_id", "experiment"} <= document.keys()
    return False


def spool_request_ids(path: Path) -> set[str]:
    """The requests that a segment of the spool speaks of."""
    found: set[str] = set()
    with path.open("rb") as file:
        for line in Text(open_unpacked(file).stream).lines():
            try:
                document = parse(line)
            except ValueError:
                continue
            if isinstance(document, dict) and isinstance(document.get("request_id"), str):
                found.add(document["request_id"])
    return found


def source_request_ids(examined: Examined, reading: Reading) -> set[str]:
    """The requests of a source by the ids they have once it is loaded."""
    if examined.importer is None:
        return set()
    entries = read_source(examined, reading)
    return {one.request_id for entry in entries if entry.imported is not None for one in entry.imported.exchanges}


class _Writers:
    """One writer a dataset, and the rows that wait for the next batch. The datasets' locks are held all the time."""

    _FIELDS = ("exchanges", "judgments", "labels", "feedback")

    def __init__(self, data: Path, experiment: str, ledger: Ledger) -> None:
        self._data = data
        self._experiment = experiment
        self._ledger = ledger
        self._rows: dict[str, list[Any]] = {name: [] for name in self._FIELDS}
        self._n_bytes = self._n_rows = 0
        self._any_failed = False
        self._writers: dict[str, DatasetWriter] = {}
        self._stack = ExitStack()

    def __enter__(self) -> _Writers:
        for name in self._FIELDS:
            self._stack.enter_context(writing(self._data, name))
            writer = DatasetWriter(self._data, BY_NAME[name], added=partial(self._ledger.note, name))
            self._writers[name] = self._stack.enter_context(writer)
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def add(self, imported: Imported, n_bytes: int) -> None:
        for name in self._FIELDS:
            self._rows[name].extend(getattr(imported, name))
        self._n_bytes += n_bytes
        self._n_rows += 1
        if self._n_bytes >= BATCH_BYTES or self._n_rows >= BATCH_ROWS:
            self.flush()

    def add_table(self, name: str, table: pa.Table) -> None:
        """Rows that are a table already; those that wait go first."""
        self.flush()
        self._writers[name].add(self._experiment, table)

    def flush(self) -> None:
        for name, rows in self._rows.items():
            if rows:
                table = to_table(BY_NAME[name].schema, rows)
                self._writers[name].add(self._experiment, table)
                self._any_failed = self._any_failed or (name == "exchanges" and holds_failures(table))
                rows.clear()
        self._n_bytes = self._n_rows = 0

    def finish(self) -> None:
        """Put every file in place."""
        for writer in self._writers.values():
            writer.finish()

    def count(self, tally: Tally) -> None:
        for name, writer in self._writers.items():
            setattr(tally, f"n_{name}", writer.n_added)
            tally.n_known += writer.n_known
            tally.n_repeated += writer.n_repeated
        if self._any_failed:
            tally.failed.add(self._experiment)
