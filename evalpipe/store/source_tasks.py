"""Other tools' logs → rows, by tasks on other machines. Files are opened and taken apart into documents here, and the rows are
written here; finding requests and answers in each document, which takes the time, is done by the tasks.

What a document means can depend on those before it: a value's arm on the values that came first, the number of an id that is made
up on equal rows. A task begins from what is known when it is given out. Where that has changed in between, its ids are numbered
anew, or its documents are read again here: the rows are those of one machine.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from evalpipe.models import Arm
from evalpipe.store.importers import IMPORTERS
from evalpipe.store.importers.containers import Source
from evalpipe.store.importers.detection import Examined
from evalpipe.store.importers.documents import Document
from evalpipe.store.importers.mapping import Mapped
from evalpipe.store.load import Memory, Portion, Reading, portions_of, read_portion
from evalpipe.store.row_tasks import Workers
from evalpipe.store.schema import forgo_pandas


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """How the documents of a source are read: `Examined` without the source. `importer`: its place in the list, or a mapping;
    `sample`: only of a mapped one, by which its plain rows are recognised."""

    importer: int | Mapped
    inner: tuple[str, ...]
    sample: list[Any]

    @staticmethod
    def of(examined: Examined) -> Form:
        importer = examined.importer
        assert importer is not None
        how = IMPORTERS.index(importer) if importer.mapped is None else importer.mapped
        sample = [] if importer.mapped is None else examined.sample
        return Form(importer=how, inner=examined.inner, sample=sample)

    def examined(self) -> Examined:
        """A source of this form that has no documents."""
        importer = IMPORTERS[self.importer] if isinstance(self.importer, int) else self.importer.importer()
        return Examined(Source(Path(), "", lambda source: iter(())), importer, self.inner, self.sample)


@dataclass(frozen=True, kw_only=True, slots=True)
class Read:
    """A portion that a task has read: the values whose arms it knows in the end, and how often it made up each id."""

    portion: Portion
    seen: dict[str, Arm | None]
    numbered: Counter[str]


def read_documents(form: Form, reading: Reading, memory: Memory, documents: Sequence[Document]) -> Read:
    """A task: what these documents hold, where no id was made up before them."""
    forgo_pandas()
    pa.set_memory_pool(pa.system_memory_pool())
    numbered: Counter[str] = Counter()
    reading = replace(reading, memory=memory)
    portion = read_portion(form.examined(), reading, documents, numbered)
    return Read(portion=portion, seen=reading.arms.seen, numbered=numbered)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedSource:
    """A source that will be read. `progress`: called as documents are taken."""

    examined: Examined
    reading: Reading
    progress: Callable[[], object] = lambda: None


@dataclass(kw_only=True, slots=True)
class _Given:
    """Documents that a task has. `before`: the values whose arms were known when it was given out."""

    documents: list[Document]
    before: dict[str, Arm | None]
    task: Future[Read]


_End = Exception | None
"""the end of a source: how reading it has failed, or nothing. It is raised when the sources before it are stored"""


class SourceTasks:
    """Reads the sources by tasks, in order: several portions at a time, also of sources that follow."""

    def __init__(self, sources: Sequence[PlannedSource], workers: Workers) -> None:
        self._workers = workers
        shared = sources[0].reading.memory if sources else {}
        self._memory = workers.share(shared) if shared else {}
        self._given: deque[_Given | _End] = deque()
        self._n_tasks = 0
        self._next = self._give_out(sources)

    def portions(self, source: PlannedSource) -> Iterator[Portion]:
        """Those of the next of the sources."""
        numbered: Counter[str] = Counter()
        while True:
            while self._n_tasks < self._workers.n_tasks and next(self._next, None) is not None:
                pass
            given = self._given.popleft()
            if not isinstance(given, _Given):
                if given is not None:
                    raise given
                return
            self._n_tasks -= 1
            yield self._accepted(given, source, numbered)

    def _give_out(self, sources: Sequence[PlannedSource]) -> Iterator[bool]:
        """Have the next documents read, each time it is asked; at the end of each source is an end."""
        for source in sources:
            form, reading = Form.of(source.examined), replace(source.reading, memory={})
            end: _End = None
            try:
                for documents in portions_of(source.examined, reading):
                    source.progress()
                    before = dict(source.reading.arms.seen)
                    task = self._workers.executor.submit(read_documents, form, reading, self._memory, documents)
                    self._given.append(_Given(documents=documents, before=before, task=task))
                    self._n_tasks += 1
                    yield True
            except Exception as error:  # noqa: BLE001  raised when it is this source's turn
                end = error
            self._given.append(end)
            yield True

    def _accepted(self, given: _Given, source: PlannedSource, numbered: Counter[str]) -> Portion:
        """What the task has read, as it is after the documents before its own."""
        read, arms = given.task.result(), source.reading.arms
        same_arms = given.before == arms.seen or all(
            value in arms.seen and arms.seen[value] is arm for value, arm in read.seen.items()
        )
        if not same_arms:
            return read_portion(source.examined, source.reading, given.documents, numbered)
        portion = _renumbered(read, numbered)
        arms.seen.update(read.seen)
        numbered.update(read.numbered)
        return portion


def _renumbered(read: Read, numbered: Counter[str]) -> Portion:
    """The portion, with the ids that were made up numbered on from those before it. They are digests: none is equal to another
    with its number."""
    renamed = {
        _with_number(made_up, place): _with_number(made_up, place + numbered[made_up])
        for made_up, n in read.numbered.items()
        if numbered[made_up]
        for place in range(1, n + 1)
    }
    if not renamed:
        return read.portion
    tables = {
        name: [_with_ids(table, renamed) for table in of_it] if name in {"exchanges", "labels"} else of_it
        for name, of_it in read.portion.tables.items()
    }
    return replace(read.portion, tables=tables)


def _with_number(made_up: str, place: int) -> str:
    return made_up if place == 1 else f"{made_up}-{place}"


def _with_ids(table: pa.Table, renamed: Mapping[str, str]) -> pa.Table:
    column = table.schema.get_field_index("request_id")
    ids = [renamed.get(one, one) for one in table["request_id"].to_pylist()]
    return table.set_column(column, table.schema.field(column), pa.array(ids, table.schema.field(column).type))
