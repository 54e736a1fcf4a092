"""What a load brought in, recorded by every load, and taken out again by `evalpipe unload`.

`data/loads/experiment=NAME/*.parquet` holds the keys of the rows that were added, a file a load, with the source in
its metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evalpipe.files import sync_folder
from evalpipe.models import FAILED, Role
from evalpipe.objects.shared import commit
from evalpipe.store.compaction import purge, remove_if_empty
from evalpipe.store.parquet import ParquetFile, parquet_files, successor_stem, wait_for_readers, whole_and_damaged
from evalpipe.store.query import writing
from evalpipe.store.removal import remove_superseded
from evalpipe.store.schema import BY_NAME, DATASETS, Dataset

SCHEMA = pa.schema(
    [
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("request_id", pa.string(), nullable=False),
        pa.field("arm", pa.string()),
        pa.field("judgment_id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("loaded_from", pa.string(), nullable=False),
        pa.field("loaded_at", pa.timestamp("us", tz="UTC"), nullable=False),
    ]
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """A load that is written down."""

    experiment: str
    source: str
    at: datetime
    path: Path
    n_rows: int


class Ledger:
    """Notes the rows of one load as they are added. The caller finishes the note before the rows: after a kill
    between the two, every row that is stored is noted."""

    def __init__(self, data: Path, experiment: str, source: str) -> None:
        self._data = data
        self._folder = folder_of(data, experiment)
        self._source = str(Path(source).resolve())
        self._at = datetime.now(UTC)
        self._file: ParquetFile | None = None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.finish()  # rows of files that were finished before a failure are there, too

    def finish(self) -> None:
        """Put the note in place."""
        if self._file is not None:
            self._file.finish()
            self._file = None
            commit(self._data, "load")  # before the rows

    def note(self, dataset: str, table: pa.Table) -> None:
        """Note rows of a dataset that were added."""
        if not table.num_rows:
            return
        if self._file is None:
            self._file = ParquetFile(self._folder, SCHEMA)
        columns = {
            "dataset": pa.repeat(pa.scalar(dataset, pa.string()), table.num_rows),
            "loaded_from": pa.repeat(pa.scalar(self._source, pa.string()), table.num_rows),
            "loaded_at": pa.repeat(pa.scalar(self._at, pa.timestamp("us", tz="UTC")), table.num_rows),
        }
        arrays = [
            columns[field.name]
            if field.name in columns
            else table[field.name].combine_chunks()
            if field.name in table.column_names
            else pa.nulls(table.num_rows, field.type)
            for field in SCHEMA
        ]
        self._file.append(pa.Table.from_arrays(arrays, schema=SCHEMA))


def folder_of(data: Path, experiment: str) -> Path:
    return data / "loads" / f"experiment={experiment}"


def loads_in(data: Path) -> list[Load]:
    """Every load that is written down, the newest last."""
    found = []
    for path in sorted((data / "loads").glob("experiment=*/*.parquet")):
        if path.name.startswith("."):
            continue
        with pq.ParquetFile(path) as file:
            n_rows = file.metadata.num_rows
            first = next(file.iter_batches(batch_size=1, columns=["loaded_from", "loaded_at"]), None)
        if first is None or not first.num_rows:
            continue
        row = first.to_pylist()[0]
        name = path.parent.name.removeprefix("experiment=")
        found.append(Load(experiment=name, source=row["loaded_from"], at=row["loaded_at"], path=path, n_rows=n_rows))
    return sorted(found, key=lambda load: load.at)


# Rows of a load taken out again. A file is never changed in place: its successor without them is put in place in one
# rename.


_KEYS = {
    "exchanges": ("request_id", "arm"),
    "judgments": ("judgment_id",),
    "labels": ("request_id", "source"),
    "feedback": ("request_id", "arm"),
}
_ROWS_AT_ONCE = 20_000


def unload(data: Path, loads: Sequence[Load]) -> dict[str, int]:
    """Take the rows of these loads out. What they had in common with an earlier load stays: it was not added by them.

    Returns:
        Dataset → rows taken out.
    """
    counted: dict[str, int] = {}
    for load in loads:
        table = pq.read_table(load.path, partitioning=None)
        for dataset in DATASETS:
            mine = table.filter(pc.equal(table["dataset"], dataset.name))
            if mine.num_rows:
                counted[dataset.name] = counted.get(dataset.name, 0) + _take_out(data, dataset, load.experiment, mine)
        load.path.unlink(missing_ok=True)
        sync_folder(load.path.parent)
    return {name: n for name, n in counted.items() if n}


def take_out_replays(data: Path, experiment: str) -> int:
    """Take the failed answers of replays out, so that they can be asked for again; the rows taken out."""
    exchanges = BY_NAME["exchanges"]
    files, _ = whole_and_damaged(parquet_files(data, exchanges, experiment))
    failed = []
    for path in files:
        with pq.ParquetFile(path) as file:
            narrow = file.read(columns=["request_id", "arm", "role", "outcome"])
        is_failed = pc.is_in(narrow["outcome"], value_set=pa.array(sorted(FAILED), pa.string()))
        failed.append(narrow.filter(pc.and_(pc.equal(narrow["role"], Role.REPLAY.value), is_failed)))
    rows = pa.concat_tables(failed) if failed else None
    if rows is None or not rows.num_rows:
        return 0
    return _take_out(data, exchanges, experiment, rows, role=Role.REPLAY.value)


def _take_out(data: Path, dataset: Dataset, experiment: str, rows: pa.Table, *, role: str = Role.IMPORTED.value) -> int:
    keys = _KEYS[dataset.name]
    wanted = _joined(rows, keys)
    n_taken = 0
    with writing(data, dataset.name, erases=True):
        purge(data, dataset, experiment)
        remove_superseded(data, dataset, experiment)
        files, _ = whole_and_damaged(parquet_files(data, dataset, experiment))
        emptied = []
        for path in files:
            with pq.ParquetFile(path) as file:
                narrow = file.read(columns=list(keys) + (["role"] if dataset.name == "exchanges" else []))
            mask = pc.is_in(_joined(narrow, keys), value_set=wanted)
            if dataset.name == "exchanges":  # rows of the same id that came another way stay
                mask = pc.and_(mask, pc.equal(narrow["role"], role))
            n_found = pc.sum(mask).as_py() or 0
            if not n_found:
                continue
            n_taken += n_found
            if n_found == narrow.num_rows:
                emptied.append(path)
            else:
                _rewrite(path, mask)
        if emptied:
            wait_for_readers(data)
        for path in emptied:
            path.unlink(missing_ok=True)
            sync_folder(path.parent)
            remove_if_empty(path.parent)
        remove_superseded(data, dataset, experiment)
        folder = data / dataset.name / f"experiment={experiment}"
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    return n_taken


def _joined(table: pa.Table, keys: Sequence[str]) -> pa.ChunkedArray:
    columns = [pc.coalesce(table[key].cast(pa.string()), pa.scalar("")) for key in keys]
    return columns[0] if len(columns) == 1 else pc.binary_join_element_wise(*columns, "\0")


def _rewrite(path: Path, mask: pa.ChunkedArray) -> None:
    with pq.ParquetFile(path) as file:
        table = file.read()
    kept = table.filter(pc.invert(mask))
    new = ParquetFile(path.parent, kept.schema, stem=successor_stem(path))
    try:
        for start in range(0, kept.num_rows, _ROWS_AT_ONCE):
            new.append(kept.slice(start, _ROWS_AT_ONCE))
    except BaseException:
        new.abandon()
        raise
    new.finish()
