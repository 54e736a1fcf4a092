"""Damaged files of the store: named by whatever reads without them, and moved out of the way by `evalpipe doctor --data`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from evalpipe.analysis.result import Analysis, Check
from evalpipe.errors import DataError
from evalpipe.files import make_folder, sync_folder, within_resources
from evalpipe.store.compaction import NEVER, settle
from evalpipe.store.parquet import parquet_files, verify, whole_and_damaged
from evalpipe.store.query import writing
from evalpipe.store.schema import BY_NAME, DATASETS
from evalpipe.text import printable
from evalpipe.workspace.paths import Workspace

FOLDER = "damaged"
REMEDY = "run `evalpipe doctor --data`: it moves the damaged files out of the way and lists what is lost"


@dataclass(frozen=True, kw_only=True, slots=True)
class DamagedFile:
    """A file that does not hold what was written to it. `n_rows`: how many rows it held, where that can still be read.

    `n_lost`: how many of them no other file holds; those of a merged file are still in the files it was made of for a while.
    """

    dataset: str
    experiment: str
    date: str | None
    file: str
    n_rows: int | None
    moved_to: str | None = None
    n_lost: int | None = None


def damage_sentence(damaged: Sequence[Path], data: Path) -> str:
    """What is missing because of them, in one sentence."""
    names = [_relative(path, data) for path in damaged]
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    files, rows = ("file is", "its rows are") if len(names) == 1 else ("files are", "their rows are")
    return f"{len(names)} stored {files} damaged, {rows} left out: {shown}"


def warn_of_damage(damaged: Sequence[Path], data: Path) -> None:
    """The sentence on stderr, where there is something to name."""
    if damaged:
        sys.stderr.write(printable(f"evalpipe: warning: {damage_sentence(damaged, data)}; {REMEDY}\n"))


def with_damage(analysis: Analysis, damaged: Sequence[Path], data: Path) -> Analysis:
    """The analysis with a check that names the damaged files."""
    if not damaged:
        return analysis
    check = Check(name="damaged_files", status="warn", detail=damage_sentence(damaged, data), remedy=REMEDY)
    facts = {**analysis.provenance, "damaged_files": [_relative(path, data) for path in damaged]}
    return replace(analysis, checks=[*analysis.checks, check], provenance=facts)


def refuse_damaged(data: Path, experiment: str, dataset: str) -> None:
    """Raise DataError where files of the dataset are damaged: what is lost there would be paid for again."""
    _, damaged = whole_and_damaged(parquet_files(data, BY_NAME[dataset], experiment))
    if damaged:
        raise DataError(
            f"{damage_sentence(damaged, data)}; nothing was asked, since it would be paid for again: restore it from a backup, "
            f"or {REMEDY}; after that its pairs are judged anew"
        )


def find_damaged(workspace: Workspace) -> list[DamagedFile]:
    """Every damaged file of the data folder. Each page of each file is read."""
    return [
        _describe(path, workspace.data, dataset.name)
        for dataset in DATASETS
        for path in parquet_files(workspace.data, dataset, None)
        if not _reads(path)
    ]


def move_damaged(workspace: Workspace) -> list[DamagedFile]:
    """Move every damaged file to data/damaged/, under the same folders, and report what is lost with it."""
    data = workspace.data
    moved = []
    with within_resources("what was moved stays moved: run it again where there is more room"):
        for found in find_damaged(workspace):
            source = data / found.file
            target = data / FOLDER / found.file
            with writing(data, found.dataset):
                if not source.exists():  # another process was first
                    continue
                make_folder(target.parent, mode=0o700)
                source.rename(target)
                sync_folder(target.parent)
                sync_folder(source.parent)
                is_undone = settle(source.parent, replaced_before=NEVER).n_undone > 0
            moved.append(replace(found, moved_to=_relative(target, data), n_lost=0 if is_undone else found.n_rows))
    return moved


def _reads(path: Path) -> bool:
    whole, _ = whole_and_damaged([path])
    if not whole:
        return False
    try:
        with pq.ParquetFile(path) as file:
            schema, n_rows = file.schema_arrow, file.metadata.num_rows
        verify(path, schema, n_rows)
    except FileNotFoundError:  # loaded or moved meanwhile
        return True
    except (DataError, pa.ArrowException, OSError):
        return False
    return True


def _describe(path: Path, data: Path, dataset: str) -> DamagedFile:
    parts = dict(part.split("=", 1) for part in path.relative_to(data).parts if "=" in part)
    try:
        n_rows = pq.read_metadata(path).num_rows
    except (pa.ArrowException, OSError):
        n_rows = None
    return DamagedFile(
        dataset=dataset,
        experiment=parts["experiment"],
        date=parts.get("date"),
        file=_relative(path, data),
        n_rows=n_rows,
    )


def _relative(path: Path, data: Path) -> str:
    return path.relative_to(data).as_posix()
