"""Parquet files that appear whole or not at all: written aside, synced, read back, then renamed."""

from __future__ import annotations

import os
import re
import secrets
import time
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from evalpipe.core.identity import fingerprint
from evalpipe.errors import DataError
from evalpipe.files import make_folder, sync_folder, unlink_synced
from evalpipe.store.schema import Dataset

STALE_AFTER_S = 24 * 3600.0
"""An unfinished file of this age belongs to a process that is gone."""

_LOW_CARDINALITY = (
    "arm", "role", "provider", "endpoint", "model_requested", "model", "finish_reason", "outcome", "error_type",
    "config_fingerprint", "shadow_status", "shadow_reason", "judge", "judge_fingerprint", "judge_model", "shown_first",
    "status", "winner", "source", "unit_id", "request_kind",
)  # fmt: skip


def partition_folder(data: Path, dataset: Dataset, values: tuple[str, ...]) -> Path:
    """`data/exchanges/experiment=NAME/date=YYYY-MM-DD` for `values` in the order of the dataset's partitions."""
    folder = data / dataset.name
    for (name, _), value in zip(dataset.partitions, values, strict=True):
        folder = folder / f"{name}={value}"
    return folder


def parquet_files(data: Path, dataset: Dataset, experiment: str | None, dates: set[str] | None = None) -> list[Path]:
    """The finished files of a dataset, sorted by path; of one experiment (and these dates) where given. A file that has a
    successor, which holds its rows, is left out."""
    return _current(_finished(data, dataset, experiment, dates))[0]


def superseded_files(data: Path, dataset: Dataset, experiment: str | None) -> list[Path]:
    """Files whose rows a successor holds: of a process that ended before it could delete them."""
    return _current(_finished(data, dataset, experiment, None))[1]


def successor_stem(path: Path) -> str:
    """The stem under which a rewritten file supersedes `path`: STEM, then STEM~1, STEM~2 …"""
    stem, generation = _generation(path)
    return f"{stem}~{generation + 1}"


def _finished(data: Path, dataset: Dataset, experiment: str | None, dates: set[str] | None) -> list[Path]:
    first = "experiment=*" if experiment is None else f"experiment={experiment}"
    pattern = "/".join([first, *["*=*"] * (len(dataset.partitions) - 1), "*.parquet"])
    found = sorted((data / dataset.name).glob(pattern))
    if dates is not None and len(dataset.partitions) > 1:
        wanted = {f"date={date}" for date in dates}
        found = [path for path in found if path.parent.name in wanted]
    return [path for path in found if not path.name.startswith(".")]


def _current(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """(the newest generation of each file, the others)."""
    newest: dict[tuple[Path, str], int] = {}
    generations = [(path, *_generation(path)) for path in paths]
    for path, stem, generation in generations:
        place = (path.parent, stem)
        newest[place] = max(generation, newest.get(place, 0))
    current = [path for path, stem, generation in generations if generation == newest[path.parent, stem]]
    old = [path for path, stem, generation in generations if generation != newest[path.parent, stem]]
    return current, old


def _generation(path: Path) -> tuple[str, int]:
    stem, mark, number = path.name.split(".", 1)[0].partition("~")
    return (stem, int(number)) if number.isdecimal() else (stem + mark + number, 0)


def new_stem(now: datetime | None = None) -> str:
    """A file name nobody else has, sorting by time."""
    return f"{(now or datetime.now(UTC)):%Y%m%dT%H%M%S}-{secrets.token_hex(6)}"


_CHECKSUM = re.compile(r"\.([0-9a-f]{8})\.[0-9a-f]{8}\.parquet$")
_READ_BYTES = 1 << 20
_whole: dict[tuple[str, int, int, int], bool] = {}
"""(path, inode, size, time of change) of files that were looked at, and whether they were whole: a file is read once a process"""


def checksum(path: Path) -> str:
    """The CRC-32 of a file, 8 hex digits."""
    found = 0
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            found = zlib.crc32(piece, found)
    return f"{found:08x}"


def is_whole(path: Path) -> bool:
    """Whether a finished file holds what was written to it. One that is gone by now is no damage.

    The checksum is in the name. A file of an older version has none there: then its head and its footer are read.
    """
    try:
        state = path.stat()
        key = (str(path), state.st_ino, state.st_size, state.st_mtime_ns)
        if key not in _whole:
            named = _CHECKSUM.search(path.name)
            _whole[key] = _has_footer(path) if named is None else checksum(path) == named[1]
        return _whole[key]
    except FileNotFoundError:
        return True
    except OSError:  # the disk itself cannot read it
        return False


def _has_footer(path: Path) -> bool:
    try:
        pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError):
        return False
    return True


def whole_and_damaged(paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """The files that hold what was written, and those that do not."""
    whole: list[Path] = []
    damaged: list[Path] = []
    for path in paths:
        (whole if is_whole(path) else damaged).append(path)
    return whole, damaged


@cache
def schema_mark(schema: pa.Schema) -> str:
    """The end of the names of files in this schema: files of one schema need no look at each footer before a query."""
    return f".{fingerprint([[field.name, str(field.type)] for field in schema], length=8)}.parquet"


class ParquetFile:
    """One Parquet file in the making. Row groups are appended; `finish` makes it visible under its name.

    Pages carry checksums, and `finish` reads every page back before the rename: what is deleted for the sake of this
    file is deleted only after that.
    """

    def __init__(self, folder: Path, schema: pa.Schema, *, stem: str | None = None) -> None:
        make_folder(folder)
        self._stem = stem or new_stem()
        self._folder = folder
        self._temp = folder / f".{self._stem}.tmp"
        if stem is not None:  # of a run that was killed: under the write lock nobody else makes it
            self._temp.unlink(missing_ok=True)
        self._schema = schema
        self.n_rows = 0
        self.n_bytes = 0
        self._file = os.fdopen(os.open(self._temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb", buffering=0)
        try:
            self._writer = pq.ParquetWriter(
                self._file,
                schema,
                compression="zstd",
                use_dictionary=[name for name in schema.names if name in _LOW_CARDINALITY],
                write_page_checksum=True,
            )
        except BaseException:
            self._file.close()
            self._temp.unlink()
            raise

    def append(self, table: pa.Table) -> None:
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))
        self.n_rows += table.num_rows
        self.n_bytes += table.nbytes

    def finish(self) -> Path:
        """Close, sync, verify, rename. Raises DataError where what was written cannot be read back."""
        try:
            self._writer.close()
            os.fsync(self._file.fileno())
            self._file.close()
            verify(self._temp, self._schema, self.n_rows)
            path = self._folder / f"{self._stem}.{checksum(self._temp)}{schema_mark(self._schema)}"
            self._temp.rename(path)
        except BaseException:
            self.abandon()
            raise
        sync_folder(path.parent)
        return path

    def abandon(self) -> None:
        """Leave nothing behind."""
        with suppress(OSError, ValueError, pa.ArrowException):  # it may be broken already, that is why it is abandoned
            self._writer.close()
        self._writer.is_open = False  # else pyarrow tries, and reports, once more when the object goes
        self._file.close()
        self._temp.unlink(missing_ok=True)


def verify(path: Path, schema: pa.Schema, n_rows: int) -> None:
    """Read every page of the file with its checksum. Raises DataError where it is not what was written."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False, buffer_size=1 << 20) as file:
            n_found = sum(batch.num_rows for batch in file.iter_batches(batch_size=1024, use_threads=False))
            same = file.schema_arrow.equals(schema)
    except pa.ArrowMemoryError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read back after writing: {error}") from error
    if n_found != n_rows or not same:
        raise DataError(f"{path} holds {n_found} of the {n_rows} rows written: is the disk full or failing?")


def sweep_stale(data: Path, dataset: Dataset, now: float | None = None) -> int:
    """Remove unfinished files of processes that died; the number removed."""
    oldest = (time.time() if now is None else now) - STALE_AFTER_S
    n_removed = 0
    for temp in (data / dataset.name).glob("**/.*.tmp"):
        with suppress(FileNotFoundError):  # its owner may just have renamed it
            if temp.stat().st_mtime < oldest:
                unlink_synced([temp])
                n_removed += 1
    return n_removed


@contextmanager
def private_file(path: Path, flags: int) -> Iterator[int]:
    """A descriptor of a file only its owner may read (0600), closed at the end."""
    make_folder(path.parent)
    handle = os.open(path, flags | os.O_CREAT, 0o600)
    try:
        yield handle
    finally:
        os.close(handle)
