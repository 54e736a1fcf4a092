"""Compaction: many small files of a partition become a few, and every reader sees each row once all the while.

A merge writes one new file beside those it read, reads it back, and takes effect by one swap of the partition's manifest
(`store/manifest.py`). What it replaced is deleted after a grace time, so that a reader that listed the files before finds them.
Killed at any point, nothing has changed (the new file does not count and is removed by the next command) or all has.

Writers only add files under new names, so nothing of a merge is locked but the swap: it takes effect only where every file that
it read still counts. Removal of texts and of loads deletes replaced files at once (`purge`).
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from evalpipe.errors import DataError
from evalpipe.files import sync_folder, unfinished, unlink_synced
from evalpipe.store import manifest as manifests
from evalpipe.store.manifest import MERGED, Manifest, Merge
from evalpipe.store.parquet import (
    MAX_FILE_BYTES,
    REPLACES,
    ParquetFile,
    Partition,
    is_whole,
    new_stem,
    partition_folders,
    read_partition,
    stem_of,
    wait_for_readers,
)
from evalpipe.store.query import writing
from evalpipe.store.schema import Dataset, conformed

SMALL_BYTES = 32 * 1024 * 1024
"""A file below this is small."""
TARGET_BYTES = 64 * 1024 * 1024
"""Small files are merged until they have so much together, or `MAX_FILE_BYTES` in memory."""
_LOOKED_INTO_BYTES = 2 * 1024 * 1024
"""A file of this size is looked into: where it is half of `MAX_FILE_BYTES` in memory it is not small."""
FILES_AT_ONCE = 2000
"""Files of one merge at most: what a kill can undo."""
ROW_GROUP_ROWS = 20_000
ROW_GROUP_BYTES = 32 * 1024 * 1024
"""Rows, and Arrow bytes, of one row group; what is in memory at once."""
_BATCH_ROWS = 512


def plan(
    sizes: Mapping[Path, int], *, min_files: int = 2, tiered: bool = False, at_once: int = FILES_AT_ONCE
) -> list[list[Path]]:
    """Which files to merge into one each, in the order of their names, so that rows stay in the order of their loads.

    Args:
        sizes: of the files that count, in bytes.
        min_files: fewer small files are left as they are.
        tiered: leave a file that is larger than all smaller ones together, so that a row is rewritten about log(n) times
            where this is done again and again.
        at_once: files of one merge at most.
    """
    small = sorted((path for path, size in sizes.items() if size < SMALL_BYTES), key=lambda path: sizes[path])
    n_bytes = sum(sizes[path] for path in small)
    while tiered and small and 2 * sizes[small[-1]] > n_bytes:
        n_bytes -= sizes[small.pop()]
    if len(small) < max(2, min_files):
        return []
    groups: list[list[Path]] = [[]]
    in_group = 0
    for path in sorted(small):
        if len(groups[-1]) >= at_once or in_group >= TARGET_BYTES:
            groups.append([])
            in_group = 0
        groups[-1].append(path)
        in_group += sizes[path]
    return [group for group in groups if len(group) > 1]


def sizes_of(partition: Partition, left_out: Mapping[Path, str]) -> dict[Path, int]:
    """The sizes of the files that count and can be merged."""
    sizes = {}
    for path in partition.current:
        if path not in left_out:
            with suppress(FileNotFoundError):  # taken out meanwhile
                size = path.stat().st_size
                if not _is_full(path, size):
                    sizes[path] = size
    return sizes


def _is_full(path: Path, size: int) -> bool:
    if size < _LOOKED_INTO_BYTES:
        return False
    try:
        footer = pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        return False  # the merge finds out what is wrong with it
    n_bytes = sum(footer.row_group(at).total_byte_size for at in range(footer.num_row_groups))
    return size >= SMALL_BYTES or n_bytes >= MAX_FILE_BYTES // 2


class UnreadableError(Exception):
    """A file that cannot be merged, and why."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = path, reason


def merge(
    data: Path,
    dataset: Dataset,
    paths: Sequence[Path],
    *,
    left_out: dict[Path, str],
    progress: Callable[[int], object] = lambda n_files: None,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> bool:
    """Merge files of one partition into one. The count of rows and the sum of their hashes are the same before and after.

    Args:
        data: the data folder.
        dataset: whose files they are.
        paths: two or more files of one folder.
        left_out: gets the files that cannot be merged, each with the reason: they stay as they are.
        progress: gets the number of files that were read.
        now: the time at which the merge takes effect.

    Returns:
        Whether it took effect. It does not where another command changed one of the files meanwhile, or where fewer than two
        can be read.

    Raises:
        DataError: where what was written does not hold the rows that were read; nothing has changed then.
        OSError: such as on a full disk; nothing has changed then.
    """
    folder = paths[0].parent
    chosen = []
    for path in paths:
        if is_whole(path):
            chosen.append(path)
        else:
            left_out[path] = "damaged"
    while len(chosen) > 1 and all(path.exists() for path in chosen):
        try:
            new, held = _write(folder, dataset, chosen, progress)
            return _commit(data, dataset, folder, new, held, now)
        except UnreadableError as error:
            left_out[error.path] = error.reason
            chosen.remove(error.path)
        except FileNotFoundError:  # another command has replaced one of the files, or removed what was half written
            return False
    return False


def _write(
    folder: Path, dataset: Dataset, paths: Sequence[Path], progress: Callable[[int], object]
) -> tuple[ParquetFile, list[Path]]:
    """The merged file, synced and read back, without a name; and the files it holds, the first ones of `paths`."""
    read, written = RowSum(dataset), RowSum(dataset)
    new = ParquetFile(folder, dataset.schema, stem=_merged_stem(paths))
    held: list[Path] = []
    try:
        waiting: list[pa.Table] = []
        n_rows = n_bytes = 0
        for path in paths:
            for table in _tables(path, dataset):
                waiting.append(table)
                n_rows += table.num_rows
                n_bytes += table.nbytes
                if n_rows >= ROW_GROUP_ROWS or n_bytes >= ROW_GROUP_BYTES:
                    _append(new, waiting, read)
                    n_rows = n_bytes = 0
            progress(1)
            held.append(path)
            if len(held) > 1 and new.n_bytes >= MAX_FILE_BYTES:
                break
        _append(new, waiting, read)
        new.describe({REPLACES: json.dumps([stem_of(path) for path in held])})
        new.seal(lambda batch: written.add(pa.Table.from_batches([batch])))
        if (read.n_rows, read.total) != (written.n_rows, written.total):
            raise DataError(
                f"merging {len(paths)} files of {folder} gave {written.n_rows} rows of {read.n_rows}, or other ones: "
                "nothing was changed"
            )
    except DataError:
        if new.is_gone():  # removed by `forget`, `prune` or `unload`, which replace the files it was made of
            raise FileNotFoundError(folder) from None
        new.abandon()
        raise
    except BaseException:
        new.abandon()
        raise
    return new, held


def _append(new: ParquetFile, waiting: list[pa.Table], read: RowSum) -> None:
    if waiting:
        table = pa.concat_tables(waiting).combine_chunks()
        read.add(table)
        new.append(table)
        waiting.clear()


def _tables(path: Path, dataset: Dataset) -> Iterator[pa.Table]:
    """The rows of a file in today's columns. Raises UnreadableError where they cannot be, and FileNotFoundError."""
    try:
        with pq.ParquetFile(path, page_checksum_verification=True, pre_buffer=False, buffer_size=1 << 20) as file:
            unknown = sorted(set(file.schema_arrow.names) - set(dataset.schema.names))
            if unknown:
                raise UnreadableError(path, f"has columns that this version does not have: {', '.join(unknown)}")
            for batch in file.iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
                yield conformed(pa.Table.from_batches([batch]), dataset)
    except (FileNotFoundError, pa.ArrowMemoryError):
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UnreadableError(path, f"cannot be read: {str(error).strip().splitlines()[0]}") from error


def _merged_stem(paths: Sequence[Path]) -> str:
    """A unique stem that sorts where the first of the files does. Texts were removed from one of them (`~` in its name): then
    the new name has the mark, too, by which readers see that some are missing."""
    first = stem_of(paths[0]).partition("-")[0]
    at = first if first[:8].isdigit() and len(first) == 15 else new_stem().partition("-")[0]
    mark = "~1" if any("~" in path.name for path in paths) else ""
    return f"{at}-{secrets.token_hex(6)}{MERGED}{mark}"


class RowSum:
    """The number of rows and the sum of their hashes over all columns, whatever their order: equal for equal rows."""

    def __init__(self, dataset: Dataset) -> None:
        columns = ", ".join(f'"{name}"' for name in dataset.schema.names)
        self._query = f"SELECT count(*), coalesce(sum(hash({columns})), 0) FROM rows_read"
        self._connection = duckdb.connect(":memory:")
        self._connection.execute("SET threads = 1")
        self._connection.execute("SET enable_progress_bar = false")
        self.n_rows = 0
        self.total = 0

    def add(self, table: pa.Table) -> None:
        """Count the rows of a table."""
        self._connection.register("rows_read", table)
        ((n_rows, total),) = self._connection.execute(self._query).fetchall()
        self._connection.unregister("rows_read")
        self.n_rows += n_rows
        self.total += int(total)


def _commit(
    data: Path,
    dataset: Dataset,
    folder: Path,
    new: ParquetFile,
    paths: Sequence[Path],
    now: Callable[[], datetime],
) -> bool:
    """Let the merge take effect, unless one of its files no longer counts. An error leaves a file that does not count."""
    try:
        with writing(data, dataset.name):
            partition = read_partition(folder)
            if not set(paths) <= set(partition.current):
                new.abandon()
                return False
            changed_at = max(path.stat().st_mtime for path in paths)
            if not partition.is_written:  # from here on a merged file counts only where the manifest lists it
                manifests.write(folder, partition.manifest)
            path = new.place()
            os.utime(path, (changed_at, changed_at))  # `status` reads from it when something was loaded last
            done = Merge(now(), stem_of(path), tuple(stem_of(one) for one in paths))
            manifests.write(folder, partition.manifest.with_merge(done, new.n_rows))
    except BaseException:
        new.abandon()
        raise
    return True


# What is left of merges: deleted after the grace time, undone where the merged file is damaged.


@dataclass(kw_only=True, slots=True)
class Settled:
    """`n_removed` replaced files were deleted, `n_undone` merges were undone."""

    n_removed: int = 0
    n_undone: int = 0
    kept: list[Path] = field(default_factory=list)
    """damaged merged files whose sources are gone in part"""


def needs_settling(partition: Partition) -> bool:
    """Whether anything of a merge is left."""
    is_lost = not partition.is_written and partition.manifest.number > 0
    return is_lost or bool(partition.manifest.replaced or partition.uncommitted)


def settle(folder: Path, *, replaced_before: datetime | None) -> Settled:
    """Finish or undo what earlier merges left in a partition. The caller holds the dataset's write lock.

    Args:
        folder: the partition's.
        replaced_before: replaced files are deleted where they were replaced before this; None: all.

    Raises:
        OSError: where a file cannot be deleted, or the manifest not written.
    """
    settled = Settled()
    partition = read_partition(folder, mends=False)
    manifest = partition.manifest
    if not partition.is_written and manifest.number > 0:
        manifests.write(folder, manifest)
    files: dict[str, list[Path]] = {}
    for path in (*partition.current, *partition.replaced, *partition.uncommitted, *partition.superseded):
        files.setdefault(stem_of(path), []).append(path)
    whole = {stem for stem, paths in files.items() if not stem.endswith(MERGED) or is_whole(paths[0])}
    mended = manifest.mended(files, whole)
    if mended is not manifest:
        manifests.write(folder, mended)
        settled.n_undone = len(manifest.replaced) - len(mended.replaced)
        manifest = mended
    replaced = manifest.replaced_stems()
    for one in manifest.replaced:
        if one.into not in replaced and one.into not in whole:
            settled.kept += files.get(one.into, [])
    orphans = [
        path
        for stem, paths in files.items()
        if stem.endswith(MERGED) and stem not in manifest.merged and stem not in replaced
        for path in paths
    ]
    unlink_synced(orphans)
    for one in manifest.replaced:
        due = replaced_before is None or one.at < replaced_before
        if not due or not _holds(manifest, one, files):
            continue
        old = [path for stem in one.files for path in files.get(stem, ())]
        sync_folder(folder)  # the swap must not be lost when the files go that it replaced
        unlink_synced(old)
        settled.n_removed += len(old)
        manifest = manifest.removed(one)
        manifests.write(folder, manifest)
    return settled


def _result(manifest: Manifest, merge: Merge) -> str:
    """The stem of the file that holds the rows of a merge now: its own result may have been merged again."""
    later = {stem: one.into for one in manifest.replaced for stem in one.files}
    stem = merge.into
    for _ in manifest.replaced:
        stem = later.get(stem, stem)
    return stem


def _holds(manifest: Manifest, merge: Merge, files: Mapping[str, list[Path]]) -> bool:
    """Whether the file that holds the rows of a merge is there and whole (its newest generation)."""
    found = files.get(_result(manifest, merge), [])
    return bool(found) and is_whole(found[0])


def purge(data: Path, dataset: Dataset, experiment: str) -> None:
    """Delete at once what merges left, once no reader is left that could read it: it may hold texts, or rows, that are about
    to be taken out. The caller holds the dataset's write lock."""
    folders = [
        folder for folder in partition_folders(data, dataset, experiment) if needs_settling(read_partition(folder))
    ]
    if folders:
        wait_for_readers(data)
    for folder in folders:
        settle(folder, replaced_before=None)


def remove_if_empty(folder: Path) -> None:
    """Remove a partition's folder that holds nothing but a manifest. Raises OSError."""
    left = {path.name for path in folder.iterdir()}
    if left <= {manifests.NAME}:
        unlink_synced([folder / name for name in left])
        folder.rmdir()


# All partitions of a dataset, one merge after another.


@dataclass(kw_only=True, slots=True)
class Compaction:
    """What a compaction did, or (`dry_run`) would do. Files and rows of `datasets` in total; a partition is counted where
    something was merged in it."""

    dry_run: bool = False
    partitions: list[PartitionResult] = field(default_factory=list)
    n_files_before: int = 0
    n_files_after: int = 0
    n_merged: int = 0
    n_removed: int = 0
    n_waiting: int = 0
    n_undone: int = 0
    n_changed: int = 0
    """merges that were given up, since another command changed their files meanwhile"""
    left_out: dict[Path, str] = field(default_factory=dict)
    is_complete: bool = True
    """False: its time was over, the rest is left to the next one"""


@dataclass(kw_only=True, slots=True)
class PartitionResult:
    """One partition in which files were merged, or would be. `n_bytes`: of the small files."""

    folder: Path
    n_before: int
    n_after: int
    n_merged: int
    n_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class CompactionRules:
    """When files are merged and deleted. `until`: no merge begins after this instant of `time.monotonic`; `room`: raises where
    a merge of so many bytes is not to begin, as the disk is nearly full."""

    grace_s: float
    min_files: int = 2
    tiered: bool = False
    at_once: int = FILES_AT_ONCE
    until: float | None = None
    dry_run: bool = False
    room: Callable[[int], None] = lambda n_bytes: None

    @property
    def replaced_before(self) -> datetime:
        """Files that were replaced before this instant are deleted."""
        return datetime.now(UTC) - timedelta(seconds=self.grace_s)


def compact(
    data: Path,
    datasets: Sequence[Dataset],
    experiment: str | None,
    rules: CompactionRules,
    result: Compaction,
    *,
    progress: Callable[[int], object] = lambda n_files: None,
) -> None:
    """Merge the small files of every partition, and delete what was replaced long enough ago.

    The caller lets only one compaction work on a data folder.

    Args:
        data: the data folder.
        datasets: which.
        experiment: one; None: all.
        rules: when something is merged or deleted.
        result: gets what was done, also where an exception ends it.
        progress: gets the number of files that were read.

    Raises:
        DataError: where a merged file does not hold the rows of its sources; OSError: such as on a full disk.
    """
    places = [(dataset, folder) for dataset in datasets for folder in partition_folders(data, dataset, experiment)]
    is_short = rules.grace_s < _SHORT_GRACE_S
    for dataset, folder in places:
        before = read_partition(folder)
        result.n_files_before += len(before.current)
        if rules.dry_run:
            _plan_partition(folder, before, rules, result)
            continue
        # Of compactions that were killed: only one works at a time.
        unlink_synced([*folder.glob(f".*{MERGED}*.tmp"), *unfinished(folder, manifests.NAME)])
        _settle(data, dataset, folder, NEVER if is_short else rules.replaced_before, result)
        _merge_partition(data, dataset, folder, rules, result, progress)
    if rules.dry_run:
        return
    if is_short and any(needs_settling(read_partition(folder)) for _, folder in places):
        wait_for_readers(data)
    for dataset, folder in places:
        if is_short:
            _settle(data, dataset, folder, rules.replaced_before, result)
        after = read_partition(folder)
        result.n_files_after += len(after.current)
        result.n_waiting += len(after.replaced)


_SHORT_GRACE_S = 60.0
"""A grace time below this is shorter than some readers' work: then they are waited for, once."""
NEVER = datetime(1, 1, 1, tzinfo=UTC)
"""As `replaced_before`: nothing that was replaced is deleted, a merge whose file is damaged or gone is undone."""


def _plan_partition(folder: Path, partition: Partition, rules: CompactionRules, result: Compaction) -> None:
    sizes = sizes_of(partition, result.left_out)
    result.left_out.update((path, "damaged") for path in partition.current if not is_whole(path))
    sizes = {path: size for path, size in sizes.items() if path not in result.left_out}
    groups = plan(sizes, min_files=rules.min_files, tiered=rules.tiered, at_once=rules.at_once)
    n_merged = sum(map(len, groups))
    n_after = len(partition.current) - n_merged + len(groups)
    result.n_merged += n_merged
    result.n_files_after += n_after
    result.n_waiting += len(partition.replaced)
    if groups:
        n_bytes = sum(sizes[path] for group in groups for path in group)
        result.partitions.append(
            PartitionResult(
                folder=folder, n_before=len(partition.current), n_after=n_after, n_merged=n_merged, n_bytes=n_bytes
            )
        )


def _merge_partition(
    data: Path,
    dataset: Dataset,
    folder: Path,
    rules: CompactionRules,
    result: Compaction,
    progress: Callable[[int], object],
) -> None:
    """Merge until nothing is left to merge: each merge makes the files fewer."""
    before = set(read_partition(folder).current)
    done = PartitionResult(folder=folder, n_before=len(before), n_after=len(before), n_merged=0, n_bytes=0)
    n_changed = 0
    while n_changed < _ATTEMPTS and result.is_complete:
        sizes = sizes_of(read_partition(folder), result.left_out)
        groups = plan(sizes, min_files=rules.min_files, tiered=rules.tiered, at_once=rules.at_once)
        if not groups:
            break
        for group in groups:
            if rules.until is not None and time.monotonic() >= rules.until:
                result.is_complete = False
                break
            rules.room(sum(sizes[path] for path in group))
            n_left_out = len(result.left_out)
            if merge(data, dataset, group, left_out=result.left_out, progress=progress):
                left = set(read_partition(folder).current)
                small = [path for path in group if path in before and path not in left]
                done.n_merged += len(small)
                done.n_bytes += sum(sizes[path] for path in small)
                done.n_after = len(left)
                result.n_merged += len(small)
            elif len(result.left_out) == n_left_out:
                n_changed += 1
                result.n_changed += 1
    if done.n_merged:
        result.partitions.append(done)


_ATTEMPTS = 3
"""Times that a merge is given up in a partition before it is left to the next compaction."""


def _settle(data: Path, dataset: Dataset, folder: Path, replaced_before: datetime, result: Compaction) -> None:
    if not needs_settling(read_partition(folder)):
        return
    with writing(data, dataset.name):
        settled = settle(folder, replaced_before=replaced_before)
    result.n_removed += settled.n_removed
    result.n_undone += settled.n_undone
    result.left_out.update((path, "damaged") for path in settled.kept)
