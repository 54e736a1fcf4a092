"""People's texts taken out of stored files: the rows stay, with every number, and the texts become fillers of their length.

A file is never changed in place: its successor is written beside it, verified, and put in place under a name that supersedes the
old one's (`files.parquet_files`), in one rename. Killed at any point, each row is there once, and the next run goes on.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evalpipe.files import sync_folder
from evalpipe.providers.setup_faults import NO_CONNECTION
from evalpipe.store.compaction import purge
from evalpipe.store.parquet import (
    ParquetFile,
    parquet_files,
    successor_stem,
    superseded_files,
    wait_for_readers,
    whole_and_damaged,
)
from evalpipe.store.schema import BY_NAME, Dataset, conformed, with_missing

FILLER = "█"
_ROWS_AT_ONCE = 2000
_REMOVED_JSON = '{"evalpipe_removed": true}'
_CODE = re.compile(r"[a-z0-9_.-]{1,40}")
"""A word of a judgment's note that is a code ("lost"), no sentence."""


class Scrubber:
    """Replaces the texts of one row. `key`: of this run alone; equal texts get equal fillers under it, which cannot be
    reversed.

    `renames_units`: the user is to be forgotten, so unit and conversation get other ids, the same ones for all of their rows.
    """

    def __init__(self, key: bytes, *, at: datetime, renames_units: bool = False) -> None:
        self._key, self._at, self._renames_units = key, at, renames_units

    def columns(self, dataset: Dataset) -> Mapping[str, Callable[[Any], Any]]:
        """The columns to change in a row of the dataset, and how."""
        if dataset.name == "exchanges":
            renamed = {"unit_id": self._renamed, "conversation_id": self._renamed} if self._renames_units else {}
            return {
                "request": lambda value: None if value is None else _REMOVED_JSON,
                "response": lambda value: None if value is None else _REMOVED_JSON,
                "meta": lambda value: None,
                "text": self._filled,
                "prompt": self._filled,
                "context": _gone,
                "reference": _gone,
                "tool_calls": lambda value: value if value in (None, "", "[]") else f"[{_REMOVED_JSON}]",
                "error_message": _error,
                "removed_at": lambda value: self._at,
                **renamed,
            }
        if dataset.name == "judgments":
            return {"reasoning": _gone, "raw_reply": _gone, "note": _note}
        return {"comment": _gone} if dataset.name == "feedback" else {"note": _gone}

    def _filled(self, text: str | None) -> str | None:
        """As long as the text, blank where it is blank: lengths and empty answers are numbers a decision rests on."""
        if text is None or not text.strip():
            return text
        length = len(text.strip())
        filler = f"[removed {self._digest(text)}]".ljust(length, FILLER)[:length]
        return filler.ljust(len(text))

    def _renamed(self, name: str | None) -> str | None:
        return None if name is None else f"forgotten-{self._digest(name)}"

    def _digest(self, text: str) -> str:
        return hmac.new(self._key, text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:16]


def scrub(
    data: Path, name: str, experiment: str, chosen: Callable[[pa.Table], pa.Array], scrubber: Scrubber, *, dry_run: bool
) -> int:
    """Scrub the rows that `chosen` (a table of the key columns, `unit_id` and `removed_at`) selects. The number of rows.

    The caller holds the dataset's write lock. Damaged files are left as they are.
    """
    dataset = BY_NAME[name]
    n_rows = 0
    if not dry_run:
        purge(data, dataset, experiment)
    files, _ = whole_and_damaged(parquet_files(data, dataset, experiment))
    for path in files:
        mask = chosen(_narrow(path, dataset))
        n_found = pc.sum(mask).as_py() or 0
        if not n_found:
            continue
        if not dry_run:
            n_found = _rewrite(path, dataset, mask, scrubber)
        elif name != "exchanges":
            n_found = _n_changed(conformed(pq.read_table(path, partitioning=None), dataset), mask, dataset, scrubber)
        n_rows += n_found
    if not dry_run:
        remove_superseded(data, dataset, experiment)
    return n_rows


def remove_superseded(data: Path, dataset: Dataset, experiment: str) -> None:
    """Delete what has a successor, and what was never finished: no other process writes while the write lock is held."""
    old = superseded_files(data, dataset, experiment)
    for folder in {path.parent for path in old}:
        sync_folder(folder)  # of a run that was killed: the successor's name must not be lost when the old one goes
    if old:
        wait_for_readers(data)
    top = data / dataset.name / f"experiment={experiment}"
    # A Parquet file in the making, not a journal's or a batch's state.
    temps = [temp for temp in top.glob("**/.*.tmp") if temp.name.count(".") == 2]
    for path in [*old, *temps]:
        path.unlink(missing_ok=True)
    for folder in (
        [top, *top.glob("**/*/")] if top.is_dir() else []
    ):  # also where an earlier run deleted and did not get to it
        if folder.is_dir():
            sync_folder(folder)


def of_requests(request_ids: Collection[str]) -> Callable[[pa.Table], pa.Array]:
    """Selects the rows of these requests that still hold their texts."""
    wanted = pa.array(sorted(request_ids), pa.string())

    def chosen(table: pa.Table) -> pa.Array:
        found = pc.is_in(table["request_id"], value_set=wanted)
        return pc.and_(found, pc.is_null(table["removed_at"])) if "removed_at" in table.column_names else found

    return chosen


def of_units(names: Collection[str]) -> Callable[[pa.Table], pa.Array]:
    """Selects the rows of these units, whether or not their texts are gone."""
    wanted = pa.array(sorted(names), pa.string())
    return lambda table: pc.is_in(table["unit_id"], value_set=wanted)


def _narrow(path: Path, dataset: Dataset) -> pa.Table:
    """The columns that rows are selected by; those the file does not have are null."""
    wanted = [name for name in ("request_id", "unit_id", "removed_at") if name in dataset.schema.names]
    with pq.ParquetFile(path) as file:
        table = file.read(columns=[name for name in wanted if name in file.schema_arrow.names])
    return with_missing(table, dataset, wanted)


def _rewrite(path: Path, dataset: Dataset, mask: pa.Array, scrubber: Scrubber) -> int:
    """The file's successor, in place. The number of rows in which something changed; with none the file stays."""
    with pq.ParquetFile(path) as file:
        table = conformed(file.read(), dataset)
    n_changed = _n_changed(table, mask, dataset, scrubber)
    if not n_changed:
        return 0
    new = ParquetFile(path.parent, dataset.schema, stem=successor_stem(path))
    try:
        for start in range(0, table.num_rows, _ROWS_AT_ONCE):
            new.append(
                _scrubbed(table.slice(start, _ROWS_AT_ONCE), mask.slice(start, _ROWS_AT_ONCE), dataset, scrubber)
            )
    except BaseException:
        new.abandon()
        raise
    new.finish()
    return n_changed


def _scrubbed(table: pa.Table, mask: pa.ChunkedArray, dataset: Dataset, scrubber: Scrubber) -> pa.Table:
    marks = mask.to_pylist()
    for name, change in scrubber.columns(dataset).items():
        field = dataset.schema.field(name)
        values = [change(value) if mark else value for value, mark in zip(table[name].to_pylist(), marks, strict=True)]
        table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
    return table


def _n_changed(table: pa.Table, mask: pa.ChunkedArray, dataset: Dataset, scrubber: Scrubber) -> int:
    """How many of the marked rows hold something to change."""
    changes = scrubber.columns(dataset)
    marked = table.select(list(changes)).filter(mask)
    columns = [[change(value) != value for value in marked[name].to_pylist()] for name, change in changes.items()]
    return sum(map(any, zip(*columns, strict=True)))


def _gone(value: Any) -> None:
    return None


def _note(note: str | None) -> str | None:
    """The numbers and codes of a judgment's note."""
    if note is None:
        return None
    try:
        facts = json.loads(note)
    except ValueError:
        return None
    if not isinstance(facts, dict):
        return None
    kept = {
        name: value
        for name, value in facts.items()
        if _is_fact(value) or (isinstance(value, dict) and all(map(_is_fact, value.values())))
    }
    return json.dumps(kept, sort_keys=True) if kept else None


def _is_fact(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, str) and bool(_CODE.fullmatch(value)))


def _error(message: str | None) -> str | None:
    """What identifies the kind of a failure stays: no connection, a web page instead of a response."""
    if not message:
        return message
    if message.startswith(NO_CONNECTION):
        return NO_CONNECTION
    return "<removed>" if message.lstrip().startswith("<") else "[removed]"
