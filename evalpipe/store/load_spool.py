"""The collector's spool → the datasets, while the collector goes on writing.

Every record ends in a row, in a later load, or put aside; a segment goes only when all of it is in verified files. Killed
at any point, the next load finds the segments again and leaves out the rows that are there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pyarrow as pa

from evalpipe.core.spool import FeedbackRecord
from evalpipe.core.traffic import Arm, Feedback, Role
from evalpipe.files import sync_folder
from evalpipe.store.attempts import join_attempts
from evalpipe.store.datasets import writing
from evalpipe.store.exchange_rows import ReadingRules
from evalpipe.store.parsing import Parser, instant
from evalpipe.store.rejects import Rejects
from evalpipe.store.rows import holds_failures, to_table
from evalpipe.store.schema import BY_NAME
from evalpipe.store.spool_join import Entry, SpoolJoin, time_of
from evalpipe.store.spool_segments import Segment, holds_decisions, list_segments, remove, treatment_state, undisturbed
from evalpipe.store.spool_stream import read_spool
from evalpipe.store.tally import Tally
from evalpipe.store.writer import DatasetWriter, known_keys

BATCH_ENTRIES = 2000
BATCH_BYTES = 16 * 1024 * 1024
"""Requests, and bytes of their records, that are parsed and written at once."""

OPEN_LIMIT_S = 3600.0
"""Beyond every timeout of a collector with default settings: a record that is missing for longer will not come."""

NO_REQUEST = "no request record belongs to it: its line was lost or put aside"


class SpoolLoad:
    """One load of a spool into the datasets under `data`. A spool folder is emptied; named files are somebody's, and stay."""

    def __init__(
        self,
        data: Path,
        spool: Path | Sequence[Path],
        *,
        rules: ReadingRules,
        now: float,
        open_limit_s: float = OPEN_LIMIT_S,
        processes: int = 1,
        progress: Callable[[int], object] = lambda n_bytes: None,
    ) -> None:
        self._data, self._spool, self._rules = data, spool, rules
        self._now, self._open_limit_s, self._processes, self._progress = now, open_limit_s, processes, progress
        self._rejects: dict[Path, Rejects] = {}
        self._needed: set[int] = set()
        """segments something in which waits for the next load"""
        self._batch: list[Entry] = []
        self._batch_bytes = 0
        self._feedback: dict[str, list[Feedback]] = {}
        self._tally = Tally()
        self._segments: list[Segment] = []
        self._stored_experiments = {
            path.name.removeprefix("experiment=") for path in data.glob("exchanges/experiment=*")
        }
        """experiments that had rows before this load: only there can something be known"""

    def run(self) -> Tally:
        """Load what is there. The caller holds the load lock."""
        with undisturbed(self._spool) as segments:
            return self._load(segments)

    def _load(self, segments: list[Segment]) -> Tally:
        self._segments = segments
        live = frozenset(segment.writer for segment in self._segments if segment.live)
        join = SpoolJoin(live=live, open_limit_s=self._open_limit_s)
        with ExitStack() as stack:
            for name in ("exchanges", "feedback"):
                stack.enter_context(writing(self._data, name))
            self._exchanges = stack.enter_context(DatasetWriter(self._data, BY_NAME["exchanges"]))
            self._ratings = stack.enter_context(DatasetWriter(self._data, BY_NAME["feedback"]))
            self._parser = stack.enter_context(Parser(self._rules, self._processes))
            self._read(join)
            self._drain(0)
            for experiment, ratings in self._feedback.items():
                self._ratings.add(experiment, to_table(BY_NAME["feedback"].schema, ratings))
        for rejects in self._rejects.values():
            rejects.write()
        self._remove_segments()
        return self._count()

    def _read(self, join: SpoolJoin) -> None:
        for record, source in read_spool(self._segments, self._reject, self._progress):
            if isinstance(record, FeedbackRecord):
                self._rate(record)
                continue
            entry = join.add(record, source)
            if entry is not None:
                self._take(entry)
            for overdue in join.expire(time_of(record)):
                self._give_up(overdue)
        for overdue in join.expire(self._now):
            self._give_up(overdue)
        self._flush()
        self._close(list(join.leftovers()))
        self._flush()

    def _take(self, entry: Entry) -> None:
        self._batch.append(entry)
        self._batch_bytes += sum(len(source.data) for source in entry.sources)
        if len(self._batch) >= BATCH_ENTRIES or self._batch_bytes >= BATCH_BYTES:
            self._flush()

    def _give_up(self, entry: Entry) -> None:
        """An entry that will never be finished: a row that says so, or, without its request, put aside."""
        self._close([(entry, False)])

    def _close(self, entries: list[tuple[Entry, bool]]) -> None:
        """What is not finished at the end. What an earlier load has stored already is done: its other records are gone."""
        known = self._known([entry for entry, _ in entries])
        for entry, waits in entries:
            if id(entry) in known:
                continue
            if waits:
                self._needed.update(source.segment for source in entry.sources)
                self._tally.n_waiting += 1
            elif entry.request is not None:
                self._tally.n_stopped += 1
                self._take(entry)
            else:
                for source in entry.sources:
                    self._reject(self._segments[source.segment], source.line, source.data, NO_REQUEST)

    def _flush(self) -> None:
        """Hand the batch to the parser, leaving out what is stored already, and write what the parser has ready."""
        if not self._batch:
            return
        known = self._known(self._batch)
        new = [entry for entry in self._batch if id(entry) not in known]
        self._tally.n_known += len(self._batch) - len(new)
        self._batch, self._batch_bytes = [], 0
        if new:
            join_attempts(new)
            self._parser.submit(new)
        self._drain(self._processes)

    def _drain(self, n_pending: int) -> None:
        for experiment, table in self._parser.results(n_pending):
            self._exchanges.add(experiment, table)
            if holds_failures(table):
                self._tally.failed.add(experiment)

    def _known(self, entries: list[Entry]) -> set[int]:
        """The entries (by `id`) whose rows are stored: the served one, and the copy's where the copy's answer is here."""
        wanted: dict[str, list[tuple[Entry, float, tuple[str, str, str]]]] = {}
        for entry in entries:
            for experiment, at, key in _keys(entry):
                wanted.setdefault(experiment, []).append((entry, at, key))
        missing: set[int] = set()
        for experiment, items in wanted.items():
            if experiment not in self._stored_experiments:
                missing |= {id(entry) for entry, _, _ in items}
                continue
            stored = known_keys(
                self._data,
                BY_NAME["exchanges"],
                experiment,
                pa.table(
                    [pa.array([key[i] for _, _, key in items], pa.string()) for i in range(3)],
                    names=["request_id", "arm", "role"],
                ),
                {instant(at).date().isoformat() for _, at, _ in items},
                exclude=self._exchanges.files,
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
        rejects = self._rejects.setdefault(segment.path, Rejects(self._data, segment.path))
        rejects.add(line, data, reason)

    def _remove_segments(self) -> None:
        if not isinstance(self._spool, Path):
            return
        done = [one for i, one in enumerate(self._segments) if not one.locked and i not in self._needed]
        self._remove([one for one in done if not holds_decisions(one)])
        # Decisions go last: once no request is left that a successor of the treatment process could come across again,
        # or where its state says what they say. A power loss brings neither a request back nor an older state: both were synced.
        state, none_left = treatment_state(self._spool), self._no_requests_left()
        decisions = [one for one in done if holds_decisions(one)]
        if decisions:
            sync_folder(self._spool)
        self._remove([one for one in decisions if none_left or state.covers(one.path.name, one.n_bytes)])

    def _remove(self, segments: list[Segment]) -> None:
        n_removed = sum(map(remove, segments))
        self._tally.n_segments_deleted += n_removed
        if n_removed and isinstance(self._spool, Path):
            sync_folder(self._spool)

    def _no_requests_left(self) -> bool:
        left = [other for other in list_segments(self._spool) if other.n_bytes]
        return all(holds_decisions(other) for other in left)

    def _count(self) -> Tally:
        tally = self._tally
        tally.n_files = len(self._segments)
        tally.n_exchanges, tally.n_feedback = self._exchanges.n_added, self._ratings.n_added
        tally.n_known += self._exchanges.n_known + self._ratings.n_known
        tally.n_rejected = sum(len(rejects) for rejects in self._rejects.values())
        tally.rejected = sorted(str(rejects.path) for rejects in self._rejects.values())
        tally.experiments = self._exchanges.experiments | self._ratings.experiments
        return tally


def _keys(entry: Entry) -> Iterator[tuple[str, float, tuple[str, str, str]]]:
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
