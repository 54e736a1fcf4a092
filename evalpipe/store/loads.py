"""Which rows a source brought in: written down by every load, so that a wrong one can be undone.

`data/loads/experiment=NAME/*.parquet` holds the keys of the rows that were added, a file a load, with the source in
its metadata.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from evalpipe.store.files import ParquetFile

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

    def note(self, dataset: str, table: pa.Table) -> None:
        """Note rows of a dataset that were added."""
        if not table.num_rows:
            return
        if self._file is None:
            self._file = ParquetFile(self._folder, SCHEMA)
        columns = {
            "dataset": pa.repeat(pa.scalar(dataset), table.num_rows),
            "loaded_from": pa.repeat(pa.scalar(self._source), table.num_rows),
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
