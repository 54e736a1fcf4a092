"""Loading: the collector's spool, or another tool's log file → the datasets; lines that were rejected; the summary.

Every record ends in a row, in a later load, or as rejected; a segment is deleted only when all of it is in verified files. Killed
at any point, the next load finds the segments again and leaves out the rows that are there.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from msgspec.structs import replace as with_values

from evalpipe.errors import DataError
from evalpipe.files import sync_folder, unlink_synced, write_synced
from evalpipe.models import Arm, Exchange, Feedback, Role
from evalpipe.objects.shared import commit
from evalpipe.providers.json_values import parse_document
from evalpipe.spool.format import FeedbackRecord
from evalpipe.spool.join import PendingRequest, SpoolJoin
from evalpipe.spool.segments import (
    MAX_TIME_S,
    Segment,
    exclusive_segments,
    holds_decisions,
    list_segments,
    read_spool,
    remove,
    treatment_state,
)
from evalpipe.store.exchange_rows import ReadingRules, instant
from evalpipe.store.importers import IMPORTERS
from evalpipe.store.importers.base import BrokenLineError, Imported, Importer
from evalpipe.store.importers.columnar import BATCH, Columnar
from evalpipe.store.importers.containers import open_unpacked, raw_of, sign_of
from evalpipe.store.importers.detection import Examined
from evalpipe.store.importers.documents import Document, Text
from evalpipe.store.importers.mapping import Arms
from evalpipe.store.load_history import Ledger
from evalpipe.store.parquet import DatasetWriter, Times, existing_keys, newest_time
from evalpipe.store.parsing import RowWriters, rare_collections
from evalpipe.store.query import writing
from evalpipe.store.row_tasks import TaskWriters, Workers
from evalpipe.store.schema import BY_NAME, holds_failures, to_table

BATCH_ENTRIES = 1000
BATCH_BYTES = 8 * 1024 * 1024
"""Requests, and bytes of their records, that are parsed and written at once."""
COMMIT_ENTRIES = 500_000
COMMIT_BYTES = 1024 * 1024 * 1024
"""Requests, and bytes of their records, after which their files are put in place."""
AGAIN_BYTES = 64 * 1024 * 1024
"""Bytes of records of requests that came before, which wait in memory for that."""

OPEN_LIMIT_S = 3600.0
"""Beyond every timeout of a collector with default settings: a record that is missing for longer will not come."""

NO_REQUEST = "no request record belongs to it: its line was lost or rejected"


class SpoolLoad:
    """One load of a spool into the datasets under `data`. A spool folder is emptied; files passed by path are never deleted."""

    def __init__(
        self,
        data: Path,
        spool: Path | Sequence[Path],
        *,
        rules: ReadingRules,
        now: float,
        open_limit_s: float = OPEN_LIMIT_S,
        processes: int = 1,
        workers: Workers | None = None,
        progress: Callable[[int], object] = lambda n_bytes: None,
    ) -> None:
        """`processes`: that read answers and write rows on this machine; with `workers` theirs do."""
        self._data, self._spool, self._rules = data, spool, rules
        self._now, self._open_limit_s, self._progress = now, open_limit_s, progress
        self._processes, self._workers = processes, workers
        self._rejects: dict[Path, RejectedLines] = {}
        self._needed: set[int] = set()
        """segments something in which waits for the next load"""
        self._batch: list[PendingRequest] = []
        self._batch_bytes = 0
        self._taken: set[int] = set()
        """hashes of the requests whose rows are not in place yet"""
        self._taken_bytes = 0
        self._again: list[PendingRequest] = []
        """entries of requests that came before (a copy of a segment), to be taken when the rows of those are in place"""
        self._again_bytes = 0
        self._feedback: dict[str, list[Feedback]] = {}
        self._summary = LoadSummary()
        self._segments: list[Segment] = []
        self._newest: dict[str, float] = {}
        """experiment → seconds since the epoch: no row that is in place began later; -inf where there is none"""

    def run(self) -> LoadSummary:
        """Load what is there. The caller holds the load lock."""
        with rare_collections(), exclusive_segments(self._spool) as segments:
            return self._load(segments)

    def _load(self, segments: list[Segment]) -> LoadSummary:
        self._segments = segments
        live = frozenset(segment.writer for segment in self._segments if segment.live)
        join = SpoolJoin(live=live, open_limit_s=self._open_limit_s)
        with ExitStack() as stack:
            for name in ("exchanges", "feedback"):
                stack.enter_context(writing(self._data, name))
            self._ratings = stack.enter_context(DatasetWriter(self._data, BY_NAME["feedback"]))
            self._rows = self._writers()
            stack.enter_context(self._rows)
            self._read(join)
            self._commit()
            for experiment, ratings in self._feedback.items():
                self._ratings.add(experiment, to_table(BY_NAME["feedback"].schema, ratings))
        for rejects in self._rejects.values():
            rejects.write()
        commit(self._data, "load")
        self._delete_segments()
        return self._count()

    def _writers(self) -> RowWriters | TaskWriters:
        if self._workers is not None:
            return TaskWriters(self._data, self._rules, self._workers)
        return RowWriters(self._data, self._rules, self._processes)

    def _read(self, join: SpoolJoin) -> None:
        records = read_spool(self._segments, self._reject, self._progress)
        for entry in join.entries(records, self._rate):
            if entry.lost_reason is None:
                self._take(entry)
            else:
                self._give_up(entry)
            if self._is_commit_due():
                self._commit()
        for overdue in join.expire(self._now):
            self._give_up(overdue)
        self._flush()
        self._close(list(join.leftovers()))

    def _take(self, entry: PendingRequest) -> None:
        request = entry.request
        assert request is not None
        key = hash((request.experiment, request.request_id))
        if key in self._taken:
            self._again.append(entry)
            self._again_bytes += entry.n_bytes
            return
        self._taken.add(key)
        self._batch.append(entry)
        self._batch_bytes += entry.n_bytes
        if len(self._batch) >= BATCH_ENTRIES or self._batch_bytes >= BATCH_BYTES:
            self._flush()

    def _give_up(self, entry: PendingRequest) -> None:
        """An entry that will never be finished: a row that records it, or, without its request, a rejected line."""
        self._close([(entry, False)])

    def _close(self, entries: list[tuple[PendingRequest, bool]]) -> None:
        """What is not finished at the end. What an earlier load has stored already is done: its other records are gone."""
        known = self._known([entry for entry, _ in entries])
        for entry, waits in entries:
            if id(entry) in known:
                continue
            if waits:
                self._needed.update(source.segment for source in entry.sources)
                self._summary.n_waiting += 1
            elif entry.request is not None:
                self._summary.n_stopped += 1
                self._take(entry)
            else:
                for source in entry.sources:
                    self._reject(self._segments[source.segment], source.line, source.data, NO_REQUEST)

    def _flush(self) -> None:
        """Have the batch's rows written, leaving out what is stored already."""
        if not self._batch:
            return
        candidates = [entry for entry in self._batch if self._may_be_stored(entry)]
        known = self._known(candidates)
        new = [entry for entry in self._batch if id(entry) not in known]
        self._summary.n_known += len(known)
        self._taken_bytes += self._batch_bytes
        self._batch, self._batch_bytes = [], 0
        if new:
            self._rows.submit(new, may_be_stored=len(candidates) > len(known))

    def _commit(self) -> None:
        """Put the rows of what was taken in place, then those of what came again: that is known by now."""
        self._flush()
        while self._taken:
            self._rows.commit()
            self._taken.clear()
            self._newest.clear()
            self._taken_bytes = 0
            again, self._again, self._again_bytes = self._again, [], 0
            for entry in again:
                self._take(entry)
            self._flush()

    def _is_commit_due(self) -> bool:
        n_bytes = self._taken_bytes + self._batch_bytes
        return len(self._taken) >= COMMIT_ENTRIES or n_bytes >= COMMIT_BYTES or self._again_bytes >= AGAIN_BYTES

    def _may_be_stored(self, entry: PendingRequest) -> bool:
        """False only where no row of the request can be stored: each row bears the time of one of its records, and the one of
        the user's answer that of the request."""
        request = entry.request
        if request is None:
            return True
        newest = self._newest.get(request.experiment)
        if newest is None:
            found = newest_time(self._data, BY_NAME["exchanges"], request.experiment)
            newest = self._newest[request.experiment] = float("-inf") if found is None else found.timestamp()
        return min(entry.row_times()) <= newest + _ROUNDED_S

    def _known(self, entries: list[PendingRequest]) -> set[int]:
        """The entries (by `id`) whose rows are stored: the served one, and the shadow one where its response is here."""
        wanted: dict[str, list[tuple[PendingRequest, float, tuple[str, str, str]]]] = {}
        for entry in entries:
            for experiment, at, key in _keys(entry):
                wanted.setdefault(experiment, []).append((entry, at, key))
        missing: set[int] = set()
        for experiment, items in wanted.items():
            stored = existing_keys(
                self._data,
                BY_NAME["exchanges"],
                experiment,
                pa.table(
                    [pa.array([key[i] for _, _, key in items], pa.string()) for i in range(3)],
                    names=["request_id", "arm", "role"],
                ),
                {instant(at).date().isoformat() for _, at, _ in items},
                between=_between([entry for entry, _, _ in items]),
            )
            missing |= {id(entry) for entry, _, key in items if key not in stored}
        return {id(entry) for entry in entries} - missing

    def _rate(self, record: FeedbackRecord) -> None:
        arm = next((arm for arm in Arm if arm == record.arm), None)
        self._feedback.setdefault(record.experiment, []).append(
            Feedback(
                request_id=record.request_id,
                arm=arm,
                rating=record.rating,
                comment=record.comment,
                at=instant(record.at),
            )
        )

    def _reject(self, segment: Segment, line: int, data: bytes, reason: str) -> None:
        rejects = self._rejects.setdefault(segment.path, RejectedLines(self._data, segment.path))
        rejects.add(line, data, reason)
        self._summary.reasons[reason.partition(" (byte ")[0]] += 1

    def _delete_segments(self) -> None:
        """Every row and every rejected line is in place; from here on nothing else holds them."""
        if not isinstance(self._spool, Path):
            return
        done = [one for i, one in enumerate(self._segments) if not one.locked and i not in self._needed]
        self._remove([one for one in done if not holds_decisions(one)])
        # Decisions go last: once no request is left that a successor of the treatment process could come across again,
        # or where its state holds what they hold. A power loss brings neither a request back nor an older state: both were
        # synced.
        state, none_left = treatment_state(self._spool), self._no_requests_left()
        decisions = [one for one in done if holds_decisions(one)]
        if decisions:
            sync_folder(self._spool)
        self._remove([one for one in decisions if none_left or state.covers(one.path.name, one.n_bytes)])

    def _remove(self, segments: list[Segment]) -> None:
        n_removed = sum(map(remove, segments))
        self._summary.n_segments_deleted += n_removed
        if n_removed and isinstance(self._spool, Path):
            sync_folder(self._spool)

    def _no_requests_left(self) -> bool:
        left = [other for other in list_segments(self._spool) if other.n_bytes]
        return all(holds_decisions(other) for other in left)

    def _count(self) -> LoadSummary:
        summary = self._summary
        summary.n_files = len(self._segments)
        written = self._rows.written
        summary.n_exchanges, summary.n_feedback = written.n_added, self._ratings.n_added
        summary.n_known += written.n_known + self._ratings.n_known
        summary.failed |= written.failed
        summary.n_rejected = sum(len(rejects) for rejects in self._rejects.values())
        summary.rejected = sorted(str(rejects.path) for rejects in self._rejects.values())
        summary.experiments = written.experiments | self._ratings.experiments
        return summary


_ROUNDED_S = 0.001
"""A stored time is one in a record to the microsecond."""


def _between(entries: list[PendingRequest]) -> Times | None:
    """When stored rows of `entries` began, None: not known, since records of some may be gone."""
    if not all(entry.is_finished for entry in entries):
        return None
    times = [at for entry in entries for at in entry.row_times()]
    first, last = max(min(times) - _ROUNDED_S, 0.0), min(max(times) + _ROUNDED_S, MAX_TIME_S - 1)
    return instant(first), instant(last)


def _keys(entry: PendingRequest) -> Iterator[tuple[str, float, tuple[str, str, str]]]:
    """(experiment, time, key) of the rows that must be stored for the entry to be done."""
    if entry.request is not None:
        request = entry.request
        yield request.experiment, request.received_at, (request.request_id, request.arm, Role.SERVED)
    elif entry.served is not None:
        served = entry.served
        yield served.experiment, served.started_at, (served.request_id, served.arm, Role.SERVED)
    if entry.copy is not None:
        copy = entry.copy
        yield copy.experiment, copy.started_at, (copy.request_id, copy.arm, Role.SHADOW)
    if entry.request is None and entry.served is None and entry.copy is None and entry.shadow is not None:
        shadow = entry.shadow
        yield shadow.experiment, shadow.at, (shadow.request_id, Arm.CONTROL, Role.SERVED)


# Another tool's log → the datasets: read, count what is left out, put broken entries aside, write each row once.


FILE_BATCH_BYTES = 32 * 1024 * 1024
"""Arrow bytes of rows that are held in memory before they are written."""
BATCH_ROWS = 20_000
PORTION_DOCUMENTS = 1000
PORTION_BYTES = 8 * 1024 * 1024
"""Documents of a source, and bytes of them, that are read at once."""
_NO_BYTES = 400
"""what a row of a table counts for besides its texts: its size in the file is not known"""

Memory = dict[str, dict[str, list[Any]]]
"""format → key → what companions of that format hold: requests of a batch, users of traces"""


@dataclass(slots=True)
class Reading:
    """How a source is read, beyond its format: whose answers it holds, which values are which arm, the companions, and a
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


@dataclass(slots=True)
class Portion:
    """What some documents of a source held: the rows by dataset, the entries that were rejected with their numbers and reasons,
    and what is counted."""

    tables: dict[str, list[pa.Table]] = field(default_factory=dict)
    rejected: list[tuple[int, bytes, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)


def load_source(
    examined: Examined,
    data: Path,
    experiment: str,
    reading: Reading,
    *,
    portions: Iterable[Portion] | None = None,
    progress: Callable[[], object] = lambda: None,
) -> LoadSummary:
    """Load one source into `experiment`. Raises DataError where it cannot be read.

    Args:
        portions: what its documents hold, in order, where they are not read here.
        progress: called as documents are read here.
    """
    source = examined.source
    rejects = RejectedLines(data, Path(source.name))
    summary = LoadSummary(experiments={experiment}, n_files=1)
    with Ledger(data, experiment, source.name) as ledger, _Writers(data, experiment, ledger) as writers:
        for portion in read_portions(examined, reading, progress) if portions is None else portions:
            for number, raw, reason in portion.rejected:
                rejects.add(number, raw, reason)
                summary.reasons[reason] += 1
            summary.left_out.update(portion.left_out)
            summary.notes.update(portion.notes)
            writers.add(portion.tables)
        writers.flush()
        ledger.finish()
        writers.finish()
    rejects.write()
    writers.count(summary)
    summary.faults += [f"{source.name}: {fault}" for fault in source.faults]
    summary.arms += reading.arms.lines()
    summary.n_rejected = len(rejects)
    summary.rejected = [str(rejects.path)] if rejects else []
    return summary


def read_portions(examined: Examined, reading: Reading, progress: Callable[[], object]) -> Iterator[Portion]:
    """What the documents of a source hold. `progress`: called as they are taken."""
    numbered: Counter[str] = Counter()
    for documents in portions_of(examined, reading):
        progress()
        yield read_portion(examined, reading, documents, numbered)


def portions_of(examined: Examined, reading: Reading) -> Iterator[list[Document]]:
    """The documents of a source, in parts of a bounded size: always the same, as ids that are made up are numbered by them."""
    documents = examined.source.documents()
    if _columnar(examined, reading, Counter()) is not None:
        while part := list(itertools.islice(documents, BATCH)):
            yield part
        return
    part, n_bytes = [], 0
    for document in documents:
        part.append(document)
        n_bytes += _size_of(document)
        if len(part) >= PORTION_DOCUMENTS or n_bytes >= PORTION_BYTES:
            yield part
            part, n_bytes = [], 0
    if part:
        yield part


def _size_of(document: Document) -> int:
    """Bytes, about: of a row of a table the texts at its top are counted."""
    if document.raw is not None:
        return len(document.raw)
    values = document.value.values() if isinstance(document.value, dict) else [document.value]
    return _NO_BYTES + sum(len(value) for value in values if isinstance(value, str | bytes))


def _columnar(examined: Examined, reading: Reading, numbered: Counter[str]) -> Columnar | None:
    """What reads the plain rows of a mapped table many at once; None for any other source."""
    importer = examined.importer
    if importer is None or importer.mapped is None or examined.inner or reading.priced is not None:
        return None
    return Columnar.of(importer.mapped, examined.sample, arm=reading.arm.value, arms=reading.arms, numbered=numbered)


def read_portion(
    examined: Examined, reading: Reading, documents: Sequence[Document], numbered: Counter[str]
) -> Portion:
    """What these documents hold. `numbered`: ids that were made up so far, and how often."""
    found = Portion()
    columnar = _columnar(examined, reading, numbered)
    if columnar is not None:
        plain = columnar.read(documents)
        if plain.n_plain:
            found.tables["exchanges"] = [plain.table]
        documents = plain.others
    rows: dict[str, list[Any]] = {name: [] for name in _Writers.FIELDS}
    for entry in read_source(examined, reading, iter(documents), numbered):
        document, imported = entry.document, entry.imported
        if entry.reason is not None:
            found.rejected.append((document.number, raw_of(document), entry.reason))
        if imported is not None:
            found.left_out.update(imported.left_out)
            found.notes.update(_kinds(imported.notes))
            found.rejected += [(document.number, raw_of(document), reason) for reason in imported.rejected]
            for name, of_it in rows.items():
                of_it.extend(getattr(imported, name))
    for name, of_it in rows.items():
        if of_it:
            found.tables.setdefault(name, []).append(to_table(BY_NAME[name].schema, of_it))
    return found


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
            found = importer.read(value, number)  # its own message names what is missing
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
            with_values(one, request_id=renamed[one.request_id]) if renamed[one.request_id] != one.request_id else one
            for one in exchanges
        ]
        labels = [replace(one, request_id=renamed.get(one.request_id, one.request_id)) for one in labels]
    if imported.variants:
        arms = [reading.arm if value is None else reading.arms.of(value) for value in imported.variants]
        unknown = sorted({str(value) for value, arm in zip(imported.variants, arms, strict=True) if arm is None})
        if unknown and len(exchanges) == 1:
            raise BrokenLineError(f"of neither arm: {unknown[0]!r}; name two values with --arms CONTROL,TREATMENT")
        left = [f"answers of neither arm ({value})" for value in unknown]
        exchanges = [with_values(one, arm=arm) for one, arm in zip(exchanges, arms, strict=True) if arm is not None]
        imported = replace(imported, left_out=[*imported.left_out, *left])
    elif not importer.tells_arms and reading.arm is not Arm.CONTROL:
        exchanges = [with_values(one, arm=reading.arm) for one in exchanges]
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


def store_rows(data: Path, experiment: str, source: str, imported: Sequence[Imported]) -> LoadSummary:
    """Write rows that were read before, as one load of `source`."""
    summary = LoadSummary(experiments={experiment}, n_files=1)
    with Ledger(data, experiment, source) as ledger, _Writers(data, experiment, ledger) as writers:
        for name in _Writers.FIELDS:
            rows = [row for one in imported for row in getattr(one, name)]
            if rows:
                writers.add({name: [to_table(BY_NAME[name].schema, rows)]})
        writers.flush()
        ledger.finish()
        writers.finish()
    writers.count(summary)
    return summary


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
            document = parse_document(line)
        except ValueError:
            continue
        return isinstance(document, dict) and {"record", "request_id", "experiment"} <= document.keys()
    return False


def spool_request_ids(path: Path) -> set[str]:
    """The requests in a segment of the spool."""
    found: set[str] = set()
    with path.open("rb") as file:
        for line in Text(open_unpacked(file).stream).lines():
            try:
                document = parse_document(line)
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

    FIELDS = ("exchanges", "judgments", "labels", "feedback")

    def __init__(self, data: Path, experiment: str, ledger: Ledger) -> None:
        self._data = data
        self._experiment = experiment
        self._ledger = ledger
        self._tables: dict[str, list[pa.Table]] = {name: [] for name in self.FIELDS}
        self._n_bytes = self._n_rows = 0
        self._any_failed = False
        self._writers: dict[str, DatasetWriter] = {}
        self._stack = ExitStack()

    def __enter__(self) -> _Writers:
        for name in self.FIELDS:
            self._stack.enter_context(writing(self._data, name))
            added = partial(self._ledger.note, name)
            writer = DatasetWriter(self._data, BY_NAME[name], added=added, across_days=name == "exchanges")
            self._writers[name] = self._stack.enter_context(writer)
        return self

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)

    def add(self, tables: Mapping[str, Sequence[pa.Table]]) -> None:
        """Rows by dataset."""
        for name, rows in tables.items():
            self._tables[name] += rows
            self._n_bytes += sum(table.nbytes for table in rows)
            self._n_rows += sum(table.num_rows for table in rows)
        if self._n_bytes >= FILE_BATCH_BYTES or self._n_rows >= BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        for name, tables in self._tables.items():
            if tables:
                table = pa.concat_tables(tables)
                self._writers[name].add(self._experiment, table)
                self._any_failed = self._any_failed or (name == "exchanges" and holds_failures(table))
                tables.clear()
        self._n_bytes = self._n_rows = 0

    def finish(self) -> None:
        """Put every file in place."""
        for writer in self._writers.values():
            writer.finish()

    def count(self, summary: LoadSummary) -> None:
        for name, writer in self._writers.items():
            setattr(summary, f"n_{name}", writer.n_added)
            summary.n_known += writer.n_known
            summary.n_repeated += writer.n_repeated
        if self._any_failed:
            summary.failed.add(self._experiment)


# What a load did, in numbers.


@dataclass(slots=True)
class LoadSummary:
    """Counts of rows, by dataset and result. `n_waiting`: requests whose records are not all there yet; the next load takes
    them. `n_stopped`: requests or shadow requests whose process ended before their response was recorded."""

    experiments: set[str] = field(default_factory=set)
    n_files: int = 0
    n_exchanges: int = 0
    n_judgments: int = 0
    n_labels: int = 0
    n_feedback: int = 0
    n_known: int = 0
    """what was there already: requests of a spool with all their rows, rows of other files"""
    n_repeated: int = 0
    """rows of a file whose key came before in it"""
    n_rejected: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """why entries were rejected"""
    left_out: Counter[str] = field(default_factory=Counter)
    """what logs hold besides calls of a model, by kind"""
    notes: Counter[str] = field(default_factory=Counter)
    """what the rows lack, by kind"""
    faults: list[str] = field(default_factory=list)
    """files that are cut or damaged, a line each"""
    skipped: list[str] = field(default_factory=list)
    """files of a folder that hold no log"""
    planned: list[str] = field(default_factory=list)
    """what a load would do (`--dry-run`)"""
    arms: list[str] = field(default_factory=list)
    """which value of a log's own column is which arm"""
    rejected: list[str] = field(default_factory=list)
    """files that hold the broken lines"""
    n_waiting: int = 0
    n_stopped: int = 0
    n_segments_deleted: int = 0
    compacted: list[str] = field(default_factory=list)
    """small files that were merged after it, a line each"""
    failed: set[str] = field(default_factory=set)
    """experiments that rows of failed requests were loaded into"""
    warnings: list[str] = field(default_factory=list)
    """set-up faults in those experiments, a line each"""

    def add(self, other: LoadSummary) -> None:
        for name in self.__slots__:
            mine, theirs = getattr(self, name), getattr(other, name)
            setattr(self, name, mine | theirs if isinstance(mine, set) else mine + theirs)

    def as_json(self) -> dict[str, Any]:
        document = {**asdict(self), "experiments": sorted(self.experiments)}
        del document["failed"]
        for name in ("reasons", "left_out", "notes"):
            document[name] = dict(getattr(self, name).most_common())
        return document

    @property
    def is_failure(self) -> bool:
        """Nothing is in the store of what was named, though something was read."""
        n_stored = self.n_exchanges + self.n_judgments + self.n_labels + self.n_feedback + self.n_known
        return not n_stored and not self.n_waiting and bool(self.n_rejected or self.left_out)

    def _skipped(self) -> list[str]:
        if not self.skipped:
            return []
        shown = "; ".join(self.skipped[:3])
        more = f"; and {len(self.skipped) - 3} more" if len(self.skipped) > 3 else ""
        return [f"{len(self.skipped):,} files hold no log that is known and were passed over: {shown}{more}"]

    def lines(self) -> list[str]:
        """The summary as lines for a person."""
        if self.planned:
            return [
                *(f"would load {line}" for line in self.planned),
                *self._skipped(),
                "nothing was stored (--dry-run)",
            ]
        counted = (
            ("exchanges", self.n_exchanges),
            ("judgments", self.n_judgments),
            ("labels", self.n_labels),
            ("ratings", self.n_feedback),
        )
        added = ", ".join(f"{n:,} {name}" for name, n in counted if n) or "nothing new"
        names = ", ".join(sorted(self.experiments))
        lines = [f"loaded {added} into {names}" if names else "loaded nothing new"]
        if self.n_known:
            lines.append(f"{self.n_known:,} requests or rows were there already: they are not added again")
        if self.n_repeated:
            lines.append(f"{self.n_repeated:,} rows came twice in their file: the first one stays")
        if self.arms:
            lines.append(f"arms: {', '.join(dict.fromkeys(self.arms))}")
        if self.left_out:
            lines.append(f"left out: {_counted(self.left_out)}")
        if self.notes:
            lines.append(f"note: {_counted(self.notes)}")
        lines += [*self.faults, *self._skipped()]
        if self.n_stopped:
            lines.append(
                f"{self.n_stopped:,} requests or shadow requests were in flight in a process that was killed: outcome "
                "client_closed, in no metric"
            )
        if self.n_waiting:
            lines.append(f"{self.n_waiting:,} requests are not finished yet: the next load takes them")
        if self.n_rejected:
            lines.append(f"{self.n_rejected:,} broken entries rejected, written to {', '.join(self.rejected)}")
            lines.append(f"reasons: {_counted(self.reasons)}")
        lines += self.compacted
        return [*lines, *(f"warning: {line}" for line in self.warnings)]


def _counted(counts: Counter[str], most: int = 5) -> str:
    shown = [f"{what} {n:,}" for what, n in counts.most_common(most)]
    left = len(counts) - most
    return "; ".join([*shown, f"{left} more kinds"] if left > 0 else shown)


# Rejected lines: `data/rejected/NAME.jsonl` holds each with its file, its line number and the reason.


def rejected_folder(data: Path) -> Path:
    return data / "rejected"


class RejectedLines:
    """The broken lines of one source file. Written once, at the end, over what an earlier load of the file left there:
    loading twice puts nothing aside twice."""

    def __init__(self, data: Path, source: Path) -> None:
        self._source = source
        # Two files of one name in different folders keep apart.
        mark = hashlib.sha256(str(source.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:8]
        self.path = rejected_folder(data) / f"{source.name[:120]}.{mark}.jsonl"
        self._lines: list[bytes] = []

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, line: int, data: bytes, reason: str) -> None:
        entry = {"file": str(self._source), "line": line, "reason": reason, **_rejected_form(data)}
        self._lines.append(json.dumps(entry).encode() + b"\n")

    def write(self) -> None:
        """Put the lines in place, safe from a power loss; nothing is left behind where there were none."""
        if self._lines:
            write_synced(self.path, b"".join(self._lines))
        elif self.path.exists():
            unlink_synced([self.path])


def _rejected_form(data: bytes) -> dict[str, str]:
    """A rejected line as JSON can hold it: text where it is UTF-8, else base64."""
    try:
        return {"text": data.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode("ascii")}
