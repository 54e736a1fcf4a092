"""`evalpipe report --ray`: the rows of an analysis are read, joined and summed by tasks on the nodes of a cluster.

Tables stay in Ray's object store, where the processes of a node share them; Ray makes a lost one again.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, cast

import pyarrow as pa
from tqdm import tqdm

from evalpipe.analysis.distributed import DistributedConnection, Part, Statement
from evalpipe.analysis.settings import Settings
from evalpipe.analysis.sql import Connection, count_rows, parts_of, scalar
from evalpipe.cluster.nodes import RayCluster, joined, n_slots, one_line
from evalpipe.cluster.tasks import StoredFiles, over_files, over_tables
from evalpipe.errors import ClusterError, EvalpipeError
from evalpipe.store.query import Store
from evalpipe.workspace.analyze import Connect
from evalpipe.workspace.paths import Workspace

PART_ROWS = 1_000_000
"""exchanges that a task reads at a time: some 400 MB of it"""


@contextmanager
def read_by_cluster(workspace: Workspace, address: str | None) -> Iterator[Connect]:
    """Have analyses in the block use a Ray cluster. It is joined when one of them has something to read: what is wrong with a
    selection or a store is found before that."""
    with ExitStack() as left_with_the_block:
        join = cache(lambda: left_with_the_block.enter_context(joined(workspace, address)))

        def connect(store: Store, settings: Settings) -> Connection:
            return choose_connection(store, settings, lambda store: RayWorkers(join(), store, workspace.url))

        yield connect


def choose_connection(store: Store, settings: Settings, workers: Callable[[Store], TaskWorkers]) -> Connection:
    """The store's connection, with workers where the experiment can be taken apart by its files; else a line on stderr says why
    not."""
    if not store.of_exchanges(store.files):
        return store.connection  # which ends with what there is to say on that
    alone = _why_alone(store, settings)
    if alone is None:
        return DistributedConnection(connection=store.connection, workers=workers(store))
    sys.stderr.write(f"evalpipe: {alone}: it is read on this machine alone\n")
    return store.connection


def _why_alone(store: Store, settings: Settings) -> str | None:
    """Why an experiment cannot be taken apart by its files; None: it can be."""
    if _exists(store.connection, "replay_places") or _exists(store.connection, "filed_exchanges"):
        return "the experiment has responses of a replay, or control's rows from another experiment"
    functions = [one.name for one in settings.custom if one.function]
    if functions:
        return f"the metric {functions[0]} is a Python function over the whole log"
    return None


def _exists(connection: Connection, relation: str) -> bool:
    found = "SELECT count(*) FROM information_schema.tables WHERE table_name = ?"
    return bool(scalar(connection, found, [relation]))


class TaskWorkers(ABC):
    """Workers that are asked by task: each reads its files, or has its tables brought to it."""

    def __init__(self, store: Store, url: str | None, *, n_workers: int, threads: int) -> None:
        """Args:
        store: whose files are read.
        url: of its object storage, where it is a working copy.
        n_workers: tasks that run at a time.
        threads: of the database of each.
        """
        self.n_parts = 2 * n_workers  # so that none waits long for the last
        self._data, self._url, self._threads = store.data.resolve(), url, threads
        chosen = _exists(store.connection, "selected")
        self._selected = self.put(store.connection.sql("FROM selected").to_arrow_table()) if chosen else None
        files = store.of_exchanges(store.files)
        counted = count_rows(store.connection, [str(path) for path in files])
        self._sizes = {path.relative_to(store.data).as_posix(): counted[str(path)] for path in files}

    @abstractmethod
    def run(
        self, task: Callable[..., Any], arguments: Sequence[Sequence[Any]], n_outputs: int, about: str
    ) -> list[list[Part]]:
        """Run a task with each of these arguments, where a Part among them is its table; what each of them has made."""

    @abstractmethod
    def put(self, table: pa.Table) -> Part:
        """A table of the driver's, for tasks."""

    @abstractmethod
    def get(self, parts: Sequence[Part]) -> list[pa.Table]:
        """The tables."""

    def over_files(self, steps: Sequence[Statement], outputs: Sequence[Statement], about: str) -> list[list[Part]]:
        """As `Workers.over_files`."""
        parts = parts_of(self._sizes, PART_ROWS)
        files = [StoredFiles(data=self._data, url=self._url, names=tuple(names)) for names in parts]
        arguments = [(one, self._selected, steps, outputs, self._threads) for one in files]
        return self._run(over_files, arguments, len(outputs), about)

    def over_tables(
        self,
        inputs: Sequence[Sequence[Part]],
        name: str,
        steps: Sequence[Statement],
        outputs: Sequence[Statement],
        about: str,
    ) -> list[list[Part]]:
        """As `Workers.over_tables`."""
        arguments = [(name, steps, outputs, self._threads, *parts) for parts in inputs]
        return self._run(over_tables, arguments, len(outputs), about)

    def _run(
        self, task: Callable[..., Any], arguments: Sequence[Sequence[Any]], n_outputs: int, about: str
    ) -> list[list[Part]]:
        """What was made of each output by all tasks."""
        found = self.run(task, arguments, n_outputs, about)
        return [[made[position] for made in found] for position in range(n_outputs)]

    def share(self, connection: Connection, query: str) -> Part:
        """As `Workers.share`."""
        return self.put(connection.sql(query).to_arrow_table())

    def attach(self, connection: Connection, name: str, parts: Sequence[Part]) -> None:
        """As `Workers.attach`; the rows stay where they are."""
        cast(Any, connection).register(name, pa.concat_tables(self.get(parts)))


class RayWorkers(TaskWorkers):
    """The tasks of a Ray cluster. Raises ClusterError where one fails for good, and what it raises itself as EvalpipeError."""

    def __init__(self, cluster: RayCluster, store: Store, url: str | None) -> None:
        self._ray, self._cpus = cluster.ray, cluster.cpus_per_shard
        super().__init__(store, url, n_workers=n_slots(cluster, "the report"), threads=max(1, int(self._cpus)))

    def run(
        self, task: Callable[..., Any], arguments: Sequence[Sequence[Any]], n_outputs: int, about: str
    ) -> list[list[Part]]:
        """As `TaskWorkers.run`, with a progress bar."""
        run = self._ray.remote(task).options(num_cpus=self._cpus, num_returns=n_outputs, scheduling_strategy="SPREAD")
        asked = [run.remote(*one) for one in arguments]
        found = [made if n_outputs > 1 else [made] for made in asked]
        waiting = [made[0] for made in found]
        with tqdm(total=len(waiting), desc=about, unit="part", disable=None, leave=False) as bar:
            while waiting:
                ended, waiting = self._ray.wait(waiting, num_returns=1)
                self.get(ended)  # raises what the task has raised
                bar.update(len(ended))
        return found

    def put(self, table: pa.Table) -> Part:
        """As `TaskWorkers.put`."""
        return cast(Part, self._ray.put(table))

    def get(self, parts: Sequence[Part]) -> list[pa.Table]:
        """As `TaskWorkers.get`; no copy of what is on this node."""
        try:
            return list(self._ray.get(list(parts)))
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, EvalpipeError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayError as error:
            raise ClusterError(f"a task of the report has failed: {one_line(error)}; look with `ray status`") from error
