"""Rows of a load taken out again. A file is never changed in place: its successor without them is put in place in one rename."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evalpipe.files import sync_folder
from evalpipe.store.datasets import writing
from evalpipe.store.files import ParquetFile, parquet_files, successor_stem, whole_and_damaged
from evalpipe.store.loads import Load
from evalpipe.store.readers import wait_for_readers
from evalpipe.store.removal import remove_superseded
from evalpipe.store.schema import DATASETS, Dataset

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


def _take_out(data: Path, dataset: Dataset, experiment: str, rows: pa.Table) -> int:
    keys = _KEYS[dataset.name]
    wanted = _joined(rows, keys)
    n_taken = 0
    with writing(data, dataset.name):
        remove_superseded(data, dataset, experiment)
        files, _ = whole_and_damaged(parquet_files(data, dataset, experiment))
        emptied = []
        for path in files:
            with pq.ParquetFile(path) as file:
                narrow = file.read(columns=list(keys) + (["role"] if dataset.name == "exchanges" else []))
            mask = pc.is_in(_joined(narrow, keys), value_set=wanted)
            if dataset.name == "exchanges":  # a collected row of the same id is not the load's
                mask = pc.and_(mask, pc.equal(narrow["role"], "imported"))
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
            if not any(path.parent.iterdir()):
                path.parent.rmdir()
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
