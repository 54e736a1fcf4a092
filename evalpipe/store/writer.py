"""Rows into the files of a dataset: each key once, in files of a bounded size, by experiment and day."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from evalpipe.files import make_folder, sync_folder
from evalpipe.store.files import ParquetFile, parquet_files, partition_folder, whole_and_damaged
from evalpipe.store.schema import Dataset

MAX_FILE_BYTES = 256 * 1024 * 1024
"""Arrow bytes (before compression) after which a file is finished and the next one begun."""


class DatasetWriter:
    """Adds rows to one dataset; a row whose key is stored already, or came before, is left out.

    Used under the dataset's write lock. Leaving the block finishes all open files; leaving it by an exception abandons
    what is not finished, and what is finished stays: the next run leaves those rows out.
    """

    def __init__(self, data: Path, dataset: Dataset, *, added: Callable[[pa.Table], object] | None = None) -> None:
        self._data = data
        self._dataset = dataset
        self._open: dict[tuple[str, ...], ParquetFile] = {}
        self._pending_keys: dict[tuple[str, ...], set[tuple[Any, ...]]] = {}
        self.files: list[Path] = []
        self.n_added = 0
        self.n_known = 0
        self.n_repeated = 0
        """rows whose key came before in this run"""
        self._added = added
        self.experiments: set[str] = set()

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.finish()
        else:
            self.abandon()

    def add(self, experiment: str, table: pa.Table) -> int:
        """Append the rows of `table` that are new. The number of rows added."""
        n_added = 0
        self.experiments.add(experiment)
        for partition, part in self._partitions(experiment, table):
            new = self._only_new(partition, part)
            if new.num_rows:
                self._append(partition, new)
                if self._added is not None:
                    self._added(new)
            n_added += new.num_rows
        self.n_added += n_added
        return n_added

    def finish(self) -> list[Path]:
        """Put every file in place, verified. The files written so far."""
        try:
            for partition in list(self._open):
                self._finish(partition)
        except BaseException:
            self.abandon()
            raise
        return self.files

    def abandon(self) -> None:
        for file in self._open.values():
            file.abandon()
        self._open.clear()

    def _append(self, partition: tuple[str, ...], table: pa.Table) -> None:
        file = self._open.get(partition)
        if file is None:
            folder = partition_folder(self._data, self._dataset, partition)
            file = self._open[partition] = ParquetFile(folder, self._dataset.schema)
        file.append(table)
        if file.n_bytes >= MAX_FILE_BYTES:
            self._finish(partition)

    def _finish(self, partition: tuple[str, ...]) -> None:
        self.files.append(self._open.pop(partition).finish())
        self._pending_keys.pop(partition, None)  # they are found in the file from now on

    def _partitions(self, experiment: str, table: pa.Table) -> list[tuple[tuple[str, ...], pa.Table]]:
        if len(self._dataset.partitions) == 1:
            return [((experiment,), table)]
        days = pc.cast(pc.floor_temporal(table["started_at"], unit="day"), pa.timestamp("s", tz="UTC"))
        parts: list[tuple[tuple[str, ...], pa.Table]] = []
        for day in pc.unique(days).sort().to_pylist():
            text = f"{_as_date(day):%Y-%m-%d}" if day.year >= 1000 else _as_date(day).isoformat()
            parts.append(((experiment, text), table.filter(pc.equal(days, pa.scalar(day, days.type)))))
        return parts

    def _only_new(self, partition: tuple[str, ...], table: pa.Table) -> pa.Table:
        """The rows whose key is neither in a stored file of the partition, nor in an open one, nor earlier in the table."""
        key = list(self._dataset.key)
        stored = self._stored_keys(partition, table.select(key))
        pending = self._pending_keys.setdefault(partition, set())
        keep = []
        for row in zip(*(table[name].to_pylist() for name in key), strict=True):
            new = row not in stored and row not in pending
            keep.append(new)
            if new:
                pending.add(row)
            elif row in pending:
                self.n_repeated += 1
            else:
                self.n_known += 1
        return table if all(keep) else table.filter(pa.array(keep, pa.bool_()))

    def _stored_keys(self, partition: tuple[str, ...], keys: pa.Table) -> set[tuple[Any, ...]]:
        return known_keys(self._data, self._dataset, partition[0], keys, set(partition[1:]) or None)


def known_keys(
    data: Path,
    dataset: Dataset,
    experiment: str,
    keys: pa.Table,
    dates: set[str] | None,
    *,
    exclude: Collection[Path] = (),
) -> set[tuple[Any, ...]]:
    """Which of `keys` (columns of the dataset) stored files of the experiment (and dates) hold, `exclude` left out.

    A row that is known is not written again, and what it came from is deleted: so these files survive a power loss from here
    on, also where the process that wrote them was killed before it could see to it.
    """
    stored, _ = whole_and_damaged(parquet_files(data, dataset, experiment, dates))
    files = [path for path in stored if path not in exclude]
    if not files or not keys.num_rows:
        return set()
    names = ", ".join(f'"{name}"' for name in keys.column_names)
    same = " AND ".join(f'stored."{name}" IS NOT DISTINCT FROM asked."{name}"' for name in keys.column_names)
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.register("asked", keys)
        relation = connection.sql(
            f"SELECT {names} FROM asked SEMI JOIN (SELECT {names} FROM read_parquet($1)) AS stored ON {same}",
            params=[[str(path) for path in files]],
        )
        found: pa.Table = relation.to_arrow_table().cast(keys.schema)
    if found.num_rows:
        for folder in {path.parent for path in files}:
            make_folder(folder)
            sync_folder(folder)
    return set(zip(*(found[name].to_pylist() for name in keys.column_names), strict=True))


def _as_date(instant: datetime) -> date:
    return instant.astimezone(UTC).date()
