"""What the nodes of a cluster run for `evalpipe report --ray`. Each process of a node imports this module before its first task,
so it imports no more than the tasks need.

A node reads a file where its path is there (a file system that all nodes share), else from the object storage of the data folder.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from evalpipe.analysis.distributed import Statement
from evalpipe.errors import DataError
from evalpipe.objects.client import open_objects
from evalpipe.store.query import open_files

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
        return _rows(connection, outputs)


def over_tables(
    name: str, steps: Sequence[Statement], outputs: Sequence[Statement], threads: int, *tables: pa.Table
) -> list[pa.Table] | pa.Table:
    """A task: run the statements over the tables' rows, as the view `name`; the rows of each output."""
    pa.set_memory_pool(pa.system_memory_pool())
    with duckdb.connect(":memory:") as connection:
        connection.execute(f"SET TimeZone = 'UTC'; SET threads = {threads:d}; SET memory_limit = '{TASK_MEMORY:d}B'")
        connection.register(name, pa.concat_tables(tables))
        for step in steps:
            connection.execute(*step)
        return _rows(connection, outputs)


def _rows(connection: duckdb.DuckDBPyConnection, outputs: Sequence[Statement]) -> list[pa.Table] | pa.Table:
    """The rows of each output, as Ray takes several results of a task, and one."""
    found = [connection.sql(query, params=parameters).to_arrow_table() for query, parameters in outputs]
    return found if len(found) > 1 else found[0]
