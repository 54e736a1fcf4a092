"""Parquet files that appear whole or not at all; rows written once by key; superseded files deleted after their readers."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from evalpipe.errors import DataError
from evalpipe.files import make_folder, sync_folder, take_lock, try_lock, unlink_synced
from evalpipe.identity import fingerprint
from evalpipe.store import manifest as manifests
from evalpipe.store.manifest import MERGED, Manifest, Merge
from evalpipe.store.schema import Dataset

STALE_AFTER_S = 24 * 3600.0
"""An unfinished file of this age belongs to a process that is gone."""

_LOW_CARDINALITY = (
    "arm", "role", "provider", "endpoint", "model_requested", "model", "finish_reason", "outcome", "error_type",
    "config_fingerprint", "shadow_status", "shadow_reason", "judge", "judge_fingerprint", "judge_model", "shown_first",
    "status", "winner", "source", "unit_id", "request_kind",
)  # fmt: skip
_LONG_TEXTS = frozenset({
    "request", "response", "meta", "text", "tool_calls", "error_message", "prompt", "context", "reference", "reasoning",
    "raw_reply", "comment", "note",
})  # fmt: skip
"""columns without statistics: nothing is found by the first and the last of them, and each is a kilobyte of every footer"""


def partition_folder(data: Path, dataset: Dataset, values: tuple[str, ...]) -> Path:
    """`data/exchanges/experiment=NAME/date=YYYY-MM-DD` for `values` in the order of the dataset's partitions."""
    folder = data / dataset.name
    for (name, _), value in zip(dataset.partitions, values, strict=True):
        folder = folder / f"{name}={value}"
    return folder


def parquet_files(data: Path, dataset: Dataset, experiment: str | None, dates: set[str] | None = None) -> list[Path]:
    """The finished files of a dataset, sorted by path; of one experiment (and these dates) where given. Each row is in one of
    them: a file is left out where a successor or a merged file holds its rows. Every reader of a dataset asks here."""
    return [
        path
        for folder in partition_folders(data, dataset, experiment, dates)
        for path in read_partition(folder).current
    ]


def superseded_files(data: Path, dataset: Dataset, experiment: str | None) -> list[Path]:
    """Files whose rows a successor holds: of a process that ended before it could delete them."""
    return [
        path for folder in partition_folders(data, dataset, experiment) for path in read_partition(folder).superseded
    ]


def partition_folders(
    data: Path, dataset: Dataset, experiment: str | None, dates: set[str] | None = None
) -> list[Path]:
    """The folders that hold files of a dataset, sorted; of one experiment (and these dates) where given."""
    first = "experiment=*" if experiment is None else f"experiment={experiment}"
    pattern = "/".join([first, *["*=*"] * (len(dataset.partitions) - 1)])
    found = sorted((data / dataset.name).glob(pattern))
    if dates is not None and len(dataset.partitions) > 1:
        wanted = {f"date={date}" for date in dates}
        found = [folder for folder in found if folder.name in wanted]
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Partition:
    """The Parquet files of one folder in one consistent view. `current` hold its rows, each once.

    `superseded`: a successor holds their rows. `replaced`: a merged file does. `uncommitted`: results of a merge that did not
    take effect. `is_written`: `manifest` is the one on the disk (else there is none, or it was read from the files).
    """

    manifest: Manifest
    is_written: bool
    current: list[Path]
    superseded: list[Path]
    replaced: list[Path]
    uncommitted: list[Path]


def read_partition(folder: Path, *, mends: bool = True) -> Partition:
    """What is in a partition's folder.

    Args:
        folder: the partition's.
        mends: where a merged file is damaged or gone and all that it replaced is still there, that counts again.

    Raises:
        DataError: where a newer version wrote its manifest.
    """
    while True:  # until the manifest was the same before and after the listing: then both are of one moment
        data = manifests.read_bytes(folder)
        paths = _finished(folder)
        if manifests.read_bytes(folder) == data:
            break
    found = None if data is None else manifests.decode(data, folder)
    newest, superseded = _current(paths)
    stems = [(path, stem_of(path)) for path in newest]
    manifest = _from_files(newest) if found is None else _with_unlisted(found, stems)
    if mends and manifest.replaced:
        whole = {stem for path, stem in stems if not stem.endswith(MERGED) or is_whole(path)}
        manifest = manifest.mended({stem for _, stem in stems}, whole)
    gone = manifest.replaced_stems()
    return Partition(
        manifest=manifest,
        is_written=manifest is found,
        current=[path for path, stem in stems if manifest.counts(stem, gone)],
        superseded=superseded,
        replaced=[path for path, stem in stems if stem in gone],
        uncommitted=[path for path, stem in stems if stem not in gone and not manifest.counts(stem, gone)],
    )


REPLACES = "evalpipe.replaces"
"""The key in the footer of a merged file of the stems it took the place of."""


def _with_unlisted(manifest: Manifest, stems: list[tuple[Path, str]]) -> Manifest:
    """The manifest with the merged files that it does not list, though what they took the place of is gone: it is older than
    they are, as one from a backup is. A merge that did not take effect has all its files beside it."""
    replaced = manifest.replaced_stems()
    present = {stem for _, stem in stems}
    for path, stem in stems:
        if stem.endswith(MERGED) and stem not in manifest.merged and stem not in replaced and is_whole(path):
            with suppress(FileNotFoundError):
                merge, n_rows = _merge_of(path)
                if not present.issuperset(merge.files):
                    manifest = manifest.with_merge(merge, n_rows)
    return manifest


def _merge_of(path: Path) -> tuple[Merge, int]:
    """The merge that wrote a file, as its footer names it, and the number of its rows."""
    footer = pq.read_metadata(path)
    named = json.loads((footer.metadata or {}).get(REPLACES.encode(), b"[]"))
    at = datetime.fromtimestamp(path.stat().st_ctime, UTC)
    return Merge(at, stem_of(path), tuple(named)), footer.num_rows


def _from_files(paths: list[Path]) -> Manifest:
    """The manifest where it was lost or is damaged: every merged file that is whole names in its footer what it replaced."""
    found = Manifest()
    for path in paths:
        stem = stem_of(path)
        if not stem.endswith(MERGED):
            continue
        if not is_whole(path):  # it counts as a damaged one, beside those that it may have replaced
            found = Manifest(found.number, {**found.merged, stem: 0}, found.replaced)
            continue
        with suppress(FileNotFoundError):
            found = found.with_merge(*_merge_of(path))
    return found


def successor_stem(path: Path) -> str:
    """The stem under which a rewritten file supersedes `path`: STEM, then STEM~1, STEM~2 …"""
    stem, generation = _generation(path)
    return f"{stem}~{generation + 1}"


def stem_of(path: Path) -> str:
    """The stem of a file, the same one for all its generations."""
    return _generation(path)[0]


def _finished(folder: Path) -> list[Path]:
    try:
        found = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [path for path in found if path.name.endswith(".parquet") and not path.name.startswith(".")]


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
    """A unique file name that sorts by time."""
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


@dataclass(frozen=True, kw_only=True, slots=True)
class SealedFile:
    """A file that is written, synced and read back, and has no name yet: another process may give it that."""

    temp: Path
    path: Path

    def place(self) -> Path:
        """Make it visible. Raises OSError."""
        self.temp.rename(self.path)
        sync_folder(self.path.parent)
        return self.path


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
        if stem is not None:  # of a run that was killed: under the write lock no other process makes it
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
                write_statistics=[name for name in schema.names if name not in _LONG_TEXTS],
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

    def describe(self, facts: Mapping[str, str]) -> None:
        """Put facts into the footer."""
        self._writer.add_key_value_metadata(facts)

    def finish(self) -> Path:
        """Close, sync, verify, rename. Raises DataError where what was written cannot be read back."""
        self.seal()
        return self.place()

    def seal(self, seen: Callable[[pa.RecordBatch], object] | None = None) -> None:
        """Close, sync, verify; the file has no name yet. Raises DataError where what was written cannot be read back.

        Args:
            seen: gets every row as it is read back.
        """
        try:
            self._writer.close()
            os.fsync(self._file.fileno())
            self._file.close()
            verify(self._temp, self._schema, self.n_rows, seen)
        except BaseException:
            self.abandon()
            raise

    def sealed(self) -> SealedFile:
        """The sealed file and the name it is to have. Raises OSError."""
        path = self._folder / f"{self._stem}.{checksum(self._temp)}{schema_mark(self._schema)}"
        return SealedFile(temp=self._temp, path=path)

    def place(self) -> Path:
        """Give the sealed file its name. Raises OSError."""
        try:
            return self.sealed().place()
        except BaseException:
            self.abandon()
            raise

    def is_gone(self) -> bool:
        """Whether somebody has deleted the unfinished file."""
        return not self._temp.exists()

    def abandon(self) -> None:
        """Leave nothing behind."""
        with suppress(OSError, ValueError, pa.ArrowException):  # it may be broken already, that is why it is abandoned
            self._writer.close()
        self._writer.is_open = False  # else pyarrow tries, and reports, once more when the object goes
        self._file.close()
        self._temp.unlink(missing_ok=True)


def verify(path: Path, schema: pa.Schema, n_rows: int, seen: Callable[[pa.RecordBatch], object] | None = None) -> None:
    """Read every page of the file with its checksum, every value in it; `seen` gets the rows, which takes two and a half times
    as long. Raises DataError where it is not what was written."""
    n_found = 0
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False, buffer_size=1 << 20) as file:
            if seen is None:
                n_found = file.scan_contents(batch_size=1024)
            else:
                for batch in file.iter_batches(batch_size=1024, use_threads=False):
                    n_found += batch.num_rows
                    seen(batch)
            same = file.schema_arrow.equals(schema)
    except pa.ArrowMemoryError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path} cannot be read back after writing: {error}") from error
    if n_found != n_rows or not same:
        raise DataError(f"{path} holds {n_found} of the {n_rows} rows written: is the disk full or failing?")


def sweep_stale(data: Path, dataset: Dataset, now: float | None = None) -> int:
    """Remove unfinished files of ended processes; returns their number."""
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


# Readers of the stored files: a superseded file is deleted once no store that was opened before is read.


LOCK = ".readers.lock"
WAIT_S = 30.0
"""A reader that stays for longer (a notebook) loses what it has open, and opens the store again."""


class Reader:
    """One open store's part in the lock; `close` ends it, a second time does nothing."""

    def __init__(self, data: Path) -> None:
        self._handle: int | None = None
        if not (data / "exchanges").is_dir():  # nothing to read: nothing is made here
            return
        with suppress(OSError):  # a folder or file system without locks: then no writer waits for this reader
            self._handle = os.open(data / LOCK, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            take_lock(self._handle, shared=True)

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


def wait_for_readers(data: Path) -> None:
    """Return when no reader is left that could have opened a superseded file, or after `WAIT_S`."""
    try:
        handle = os.open(data / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    try:
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            try:
                if try_lock(handle):
                    return
            except OSError:
                return
            time.sleep(0.05)
    finally:
        os.close(handle)


# Rows into the files of a dataset: each key once, in files of a bounded size, by experiment and day.


MAX_FILE_BYTES = 256 * 1024 * 1024
"""Arrow bytes (before compression) after which a file is finished and the next one begun."""


class DatasetWriter:
    """Adds rows to one dataset; a row whose key is stored already, or came before, is left out.

    Used under the dataset's write lock. Leaving the block finishes all open files; leaving it by an exception abandons
    what is not finished, and what is finished stays: the next run leaves those rows out.
    """

    def __init__(
        self,
        data: Path,
        dataset: Dataset,
        *,
        added: Callable[[pa.Table], object] | None = None,
        across_days: bool = False,
    ) -> None:
        """`added`: called with the rows that are new. `across_days`: a key counts on whatever day its row is stored, as in
        another tool's log, whose times may be missing or change; else on the same day only, as a request of the collector
        has one."""
        self._across_days = across_days
        self._ids: dict[str, _StoredIds] = {}
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
        if self._across_days:
            table = self._new_on_any_day(experiment, table)
        for partition, part in by_partition(self._dataset, experiment, table):
            pending = self._pending_keys.setdefault(partition, set())
            new = part if self._across_days else self._only_new(part, self._stored_keys(partition, part), [pending])
            if new.num_rows:
                pending.update(self._keys(new))
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

    def _keys(self, table: pa.Table) -> list[tuple[Any, ...]]:
        return list(zip(*(table[name].to_pylist() for name in self._dataset.key), strict=True))

    def _only_new(
        self, table: pa.Table, stored: set[tuple[Any, ...]], open_keys: Sequence[set[tuple[Any, ...]]]
    ) -> pa.Table:
        """The rows whose key is neither in a stored file, nor among those of open ones, nor earlier in the table."""
        rows = self._keys(table)
        if not stored and all(one.isdisjoint(rows) for one in open_keys) and len(set(rows)) == len(rows):
            return table
        pending = set[tuple[Any, ...]]().union(*(one.intersection(rows) for one in open_keys))
        keep = []
        for row in rows:
            new = row not in stored and row not in pending
            keep.append(new)
            if new:
                pending.add(row)
            elif row in pending:
                self.n_repeated += 1
            else:
                self.n_known += 1
        return table if all(keep) else table.filter(pa.array(keep, pa.bool_()))

    def _stored_keys(self, partition: tuple[str, ...], table: pa.Table) -> set[tuple[Any, ...]]:
        keys = table.select(list(self._dataset.key))
        return existing_keys(self._data, self._dataset, partition[0], keys, set(partition[1:]) or None)

    def _new_on_any_day(self, experiment: str, table: pa.Table) -> pa.Table:
        """The rows whose key is new on every day, the first of each in the order of the table."""
        ids = self._ids.get(experiment)
        if ids is None:
            ids = self._ids[experiment] = _StoredIds(self._data, self._dataset, experiment)
        possible = pa.array(sorted(ids.among(table)), pa.string())
        asked = table.select(list(self._dataset.key)).filter(pc.is_in(table["request_id"], possible))
        stored = existing_keys(self._data, self._dataset, experiment, asked, None) if asked.num_rows else set()
        new = self._only_new(table, stored, list(self._pending_keys.values()))
        ids.add(new)
        return new


class _StoredIds:
    """Hashes of the request ids of an experiment, of the stored rows and of those that are added: 8 bytes each. Rows of other
    ids are new on every day, without a look into the files."""

    def __init__(self, data: Path, dataset: Dataset, experiment: str) -> None:
        import duckdb

        self._connection = duckdb.connect(":memory:")
        self._connection.execute("SET enable_progress_bar = false; CREATE TABLE ids (id UBIGINT)")
        whole, _ = whole_and_damaged(parquet_files(data, dataset, experiment, None))
        if whole:
            query = "INSERT INTO ids SELECT hash(request_id) FROM read_parquet($1)"
            self._connection.execute(query, [[str(path) for path in whole]])

    def among(self, table: pa.Table) -> set[str]:
        """The request ids of the table that may be there."""
        self._connection.register("asked", table.select(["request_id"]))
        found = self._connection.execute("SELECT request_id FROM asked WHERE hash(request_id) IN (FROM ids)").fetchall()
        return {row[0] for row in found}

    def add(self, table: pa.Table) -> None:
        self._connection.register("asked", table.select(["request_id"]))
        self._connection.execute("INSERT INTO ids SELECT hash(request_id) FROM asked")


def by_partition(dataset: Dataset, experiment: str, table: pa.Table) -> list[tuple[tuple[str, ...], pa.Table]]:
    """The rows of `table` by the partition they belong to."""
    if len(dataset.partitions) == 1:
        return [((experiment,), table)]
    days = pc.cast(pc.floor_temporal(table["started_at"], unit="day"), pa.timestamp("s", tz="UTC"))
    parts: list[tuple[tuple[str, ...], pa.Table]] = []
    found = pc.unique(days).sort().to_pylist()
    for day in found:
        text = f"{_as_date(day):%Y-%m-%d}" if day.year >= 1000 else _as_date(day).isoformat()
        part = table if len(found) == 1 else table.filter(pc.equal(days, pa.scalar(day, days.type)))
        parts.append(((experiment, text), part))
    return parts


Times = tuple[datetime, datetime]
"""the first and the last of several instants"""


def existing_keys(
    data: Path,
    dataset: Dataset,
    experiment: str,
    keys: pa.Table,
    dates: set[str] | None,
    *,
    between: Times | None = None,
) -> set[tuple[Any, ...]]:
    """Which of `keys` (columns of the dataset) stored files of the experiment (and dates) hold.

    A row that is known is not written again, and what it came from is deleted: so these files survive a power loss from here
    on, also where the process that wrote them was killed before it could do so.

    Args:
        between: only rows that began in this time are looked at, and only files that may hold such.
    """
    files, _ = whole_and_damaged(
        path
        for path in parquet_files(data, dataset, experiment, dates)
        if between is None or _overlap(times_of(path), between)
    )
    if not files or not keys.num_rows:
        return set()
    import duckdb  # here: a process that only writes rows never asks

    within = "" if between is None else " WHERE started_at BETWEEN $2 AND $3"
    names = ", ".join(f'"{name}"' for name in keys.column_names)
    same = " AND ".join(f'stored."{name}" IS NOT DISTINCT FROM asked."{name}"' for name in keys.column_names)
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET enable_progress_bar = false")
        connection.register("asked", keys)
        relation = connection.sql(
            f"SELECT {names} FROM asked SEMI JOIN (SELECT {names} FROM read_parquet($1){within}) AS stored ON {same}",
            params=[[str(path) for path in files], *(between or ())],
        )
        found: pa.Table = relation.to_arrow_table().cast(keys.schema)
    if found.num_rows:
        for folder in {path.parent for path in files}:
            make_folder(folder)
            sync_folder(folder)
    return set(zip(*(found[name].to_pylist() for name in keys.column_names), strict=True))


def newest_time(data: Path, dataset: Dataset, experiment: str) -> datetime | None:
    """No row of the experiment that is stored began later; None: none is stored."""
    for folder in reversed(partition_folders(data, dataset, experiment)):
        files = read_partition(folder).current
        if files:
            return max((times[1] if (times := times_of(path)) is not None else _NO_LIMIT) for path in files)
    return None


_NO_LIMIT = datetime.max.replace(tzinfo=UTC)


@lru_cache(maxsize=8192)
def times_of(path: Path) -> Times | None:
    """When the first and the last row of a file began, by its footer; None where that cannot be read, or says nothing."""
    try:
        footer = pq.read_metadata(path)
    except (pa.ArrowInvalid, OSError):
        return None
    column = footer.schema.to_arrow_schema().get_field_index("started_at")
    found = [footer.row_group(i).column(column).statistics for i in range(footer.num_row_groups)]
    if not found or any(one is None or not one.has_min_max for one in found):
        return None
    return min(one.min for one in found), max(one.max for one in found)


def _overlap(times: Times | None, others: Times) -> bool:
    return times is None or (times[0] <= others[1] and others[0] <= times[1])


def _as_date(instant: datetime) -> date:
    return instant.astimezone(UTC).date()
