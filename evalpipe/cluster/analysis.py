"""`evalpipe report --ray`: the rows of an analysis are read, joined and summed by tasks on the nodes of a cluster.

A node reads a file where its path is there (a file system that all nodes share), else from the object storage of the data folder.
Tables stay in Ray's object store, where the processes of a node share them; Ray makes a lost one again.
"""

from __future__ import annotations

import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import duckdb
import pyarrow as pa
from tqdm import tqdm

from evalpipe.analysis.distributed import DistributedConnection, Part, Statement
from evalpipe.analysis.settings import Settings
from evalpipe.analysis.sql import Connection, count_rows, parts_of, scalar
from evalpipe.cluster.nodes import RayCluster, joined, n_slots, one_line
from evalpipe.errors import ClusterError, DataError, EvalpipeError
from evalpipe.objects.client import open_objects
from evalpipe.store.query import Store, open_files
from evalpipe.workspace.analyze import Connect
from evalpipe.workspace.paths import Workspace

PART_ROWS = 1_000_000
"""exchanges that a task reads at a time: some 400 MB of it"""
TASK_MEMORY = 500_000_000
"""bytes the database of a task may take before it works on disk"""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredFiles:
    """Files of a data folder. `url`: of its object storage, where it is a working copy of one."""

    data: Path
    url: str | None
    names: tuple[str, ...]

    @contextmanager
    def here(self) -> Iterator[list[Path]]:
        """Their paths on this node, as long as the block lasts. Raises EvalpipeError for a file that it cannot have."""
        missing = [name for name in self.names if not (self.data / name).exists()]
        if not missing:
            yield [self.data / name for name in self.names]
            return
        with tempfile.TemporaryDirectory(prefix="evalpipe-part-") as fetched:
            self._fetch(missing, Path(fetched))
            yield [(Path(fetched) if name in missing else self.data) / name for name in self.names]

    def _fetch(self, names: Sequence[str], folder: Path) -> None:
        if self.url is None:
            raise DataError(
                f"a node of the cluster has no {self.data / names[0]}: report --ray needs a data folder that every node sees "
                'under one path, or data = "s3://…"'
            )
        objects = open_objects(self.url)
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if not objects.download(name, folder / name):
                raise DataError(f"{self.url}/{name} is gone: another command has removed it meanwhile; report again")


def over_files(
    files: StoredFiles,
    selected: pa.Table | None,
    steps: Sequence[Statement],
    outputs: Sequence[Statement],
    threads: int,
) -> list[pa.Table] | pa.Table:
    """A task: run the statements over the files' exchanges; the rows of each output."""
    pa.set_memory_pool(pa.system_memory_pool())  # gives back to the node what a task has freed
    with (
        files.here() as paths,
        open_files(paths, selected=selected, threads=threads, memory=TASK_MEMORY) as connection,
    ):
        for step in steps:
            connection.execute(*step)
        found = [connection.sql(query, params=parameters).to_arrow_table() for query, parameters in outputs]
        return found if len(found) > 1 else found[0]  # as Ray takes several results, and one


def over_tables(name: str, steps: Sequence[Statement], output: str, threads: int, *tables: pa.Table) -> pa.Table:
    """A task: run the statements over the tables' rows, as the view `name`; the rows of the output."""
    pa.set_memory_pool(pa.system_memory_pool())
    with duckdb.connect(":memory:") as connection:
        connection.execute(f"SET TimeZone = 'UTC'; SET threads = {threads:d}; SET memory_limit = '{TASK_MEMORY:d}B'")
        connection.register(name, pa.concat_tables(tables))
        for step in steps:
            connection.execute(*step)
        return connection.sql(output).to_arrow_table()


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
        found = self.run(over_files, arguments, len(outputs), about)
        return [[made[position] for made in found] for position in range(len(outputs))]

    def over_tables(
        self, inputs: Sequence[Sequence[Part]], name: str, steps: Sequence[Statement], output: str, about: str
    ) -> list[Part]:
        """As `Workers.over_tables`."""
        arguments = [(name, steps, output, self._threads, *parts) for parts in inputs]
        return [made[0] for made in self.run(over_tables, arguments, 1, about)]

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
