"""`evalpipe compact`: small stored files merged into a few, by hand or after a load; what they replace is deleted later."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from evalpipe.config import CompactConfig
from evalpipe.errors import EvalpipeError
from evalpipe.files import resource_fault, take_lock, try_lock, within_resources
from evalpipe.objects.shared import shared_work, sweep
from evalpipe.store.compaction import Compaction, CompactionRules, PartitionResult, plan, sizes_of
from evalpipe.store.compaction import compact as compact_store
from evalpipe.store.parquet import partition_folders, private_file, read_partition, sweep_stale
from evalpipe.store.replays import REPLAYS
from evalpipe.store.schema import DATASETS
from evalpipe.text import format_counted
from evalpipe.workspace.damaged import REMEDY
from evalpipe.workspace.paths import Workspace, check_writable, loaded_experiment, no_workspace

COMPACTED = (*DATASETS, REPLAYS)
AFTER_LOAD_S = 10.0
"""No merge begins later than so long after a load: what is left is left to the next one."""
AFTER_LOAD_FILES = 500
"""Files of one merge after a load at most, so that each is short."""
_ROOM = 2.0
"""A merge needs free space of its files' size; twice that is left to the collector's log."""


def compact(
    workspace: Workspace,
    *,
    experiment: str | None = None,
    grace_minutes: float | None = None,
    dry_run: bool = False,
    show_progress: bool | None = None,
) -> Compaction:
    """Merge the small files of every partition, and delete those that were replaced longer than the grace time ago.

    Args:
        workspace: whose data.
        experiment: one; None: all of the data folder.
        grace_minutes: default: `[compact] grace_minutes`.
        dry_run: count only.
        show_progress: a bar on stderr; None: where that is a terminal.

    Raises:
        ConfigError: for an unknown experiment, or a folder without data.
        EvalpipeError: where the disk is full; nothing is lost.
    """
    name = None if experiment is None else loaded_experiment(workspace, experiment)
    if name is None and not workspace.loaded_experiments():
        loaded_experiment(workspace, None)  # the reason why there is nothing
        raise EvalpipeError(no_workspace(workspace))
    minutes = _settings(workspace).grace_minutes if grace_minutes is None else grace_minutes
    result = Compaction(dry_run=dry_run)
    if dry_run:
        compact_store(workspace.data, COMPACTED, name, CompactionRules(grace_s=minutes * 60, dry_run=True), result)
        return result
    check_writable(workspace.data)
    room = within_resources(
        "nothing was lost: run `evalpipe compact` again where there is more room, it goes on from there"
    )
    rules = CompactionRules(grace_s=minutes * 60, room=lambda n_bytes: _check_room(workspace.data, n_bytes))
    with room, _only_compaction(workspace.data, waits=True), _progress(workspace, name, show_progress) as bar:
        for dataset in COMPACTED:
            sweep_stale(workspace.data, dataset)
        compact_store(workspace.data, COMPACTED, name, rules, result, progress=bar.update)
    sweep(workspace.data)
    return result


def compact_after_load(workspace: Workspace) -> list[str]:
    """What `evalpipe load` does of it: only where a partition has `[compact] min_files` small files, for some seconds.

    Returns:
        Lines on what was merged, or why nothing could be. A load that worked does not fail for it.
    """
    settings = _settings(workspace)
    result = Compaction()
    rules = CompactionRules(
        grace_s=max(settings.grace_minutes * 60, 60.0),  # else readers would be waited for
        min_files=settings.min_files,
        tiered=True,
        at_once=AFTER_LOAD_FILES,
        until=time.monotonic() + AFTER_LOAD_S,
        room=lambda n_bytes: _check_room(workspace.data, n_bytes),
    )
    lines: list[str] = []
    try:
        with _only_compaction(workspace.data) as is_alone:
            if is_alone:
                compact_store(workspace.data, COMPACTED, None, rules, result)
    except Exception as error:
        if not isinstance(error, EvalpipeError) and resource_fault(error) is None:
            raise
        why = str(error) if isinstance(error, EvalpipeError) else resource_fault(error)
        lines.append(f"small files were not merged: {why}; what was loaded is stored")
    if result.n_merged:
        lines.insert(0, _merged_line(result))
    return lines


def lines(result: Compaction, data: Path) -> list[str]:
    """What was done, or would be, as lines for a person."""
    shown = [_partition_line(one, data, dry_run=result.dry_run) for one in result.partitions[:_SHOWN]]
    if len(result.partitions) > _SHOWN:
        shown.append(f"… and {len(result.partitions) - _SHOWN:,} more folders")
    shown.append(_merged_line(result) if result.n_merged else "no small files to merge")
    if result.n_removed:
        shown.append(f"deleted {format_counted(result.n_removed, 'file')} that merged files have replaced")
    if result.n_waiting:
        shown.append(
            f"{format_counted(result.n_waiting, 'replaced file')} kept for readers that began before: "
            "`evalpipe load` or `evalpipe compact` deletes them after the grace time"
        )
    if result.n_undone:
        shown.append(f"undid {format_counted(result.n_undone, 'merge')} whose file was damaged: no row is lost")
    if result.n_changed:
        shown.append(
            f"gave up {format_counted(result.n_changed, 'merge')}, as another command changed their files: run it again"
        )
    return shown


def warnings(result: Compaction, data: Path) -> list[str]:
    """A line for each file that was left as it is."""
    return [
        f"{_relative(path, data)} is left as it is: {reason}" + (f"; {REMEDY}" if reason == "damaged" else "")
        for path, reason in sorted(result.left_out.items())
    ]


def as_json(result: Compaction, data: Path) -> dict[str, Any]:
    """The result as one JSON document."""
    return {
        "dry_run": result.dry_run,
        "files_before": result.n_files_before,
        "files_after": result.n_files_after,
        "files_merged": result.n_merged,
        "files_deleted": result.n_removed,
        "files_kept": result.n_waiting,
        "merges_undone": result.n_undone,
        "merges_given_up": result.n_changed,
        "partitions": [
            {
                "folder": _relative(one.folder, data),
                "files_before": one.n_before,
                "files_after": one.n_after,
                "files_merged": one.n_merged,
                "bytes_merged": one.n_bytes,
            }
            for one in result.partitions
        ],
        "left_out": {_relative(path, data): reason for path, reason in sorted(result.left_out.items())},
    }


_SHOWN = 20


def _partition_line(one: PartitionResult, data: Path, *, dry_run: bool) -> str:
    verb = "would merge" if dry_run else "merged"
    return (
        f"{_relative(one.folder, data)}: {verb} {one.n_merged:,} small files ({one.n_bytes / 1e6:,.1f} MB); "
        f"{one.n_before:,} files → {one.n_after:,}"
    )


def _merged_line(result: Compaction) -> str:
    verb = "would merge" if result.dry_run else "merged"
    n_folders = format_counted(len(result.partitions), "folder")
    rest = "" if result.is_complete else "; the next load goes on"
    files = f"{result.n_files_before:,} files → {result.n_files_after:,}"
    return f"{verb} {result.n_merged:,} small files in {n_folders}: {files}{rest}"


def _relative(path: Path, data: Path) -> str:
    return path.relative_to(data).as_posix()


def _settings(workspace: Workspace) -> CompactConfig:
    return CompactConfig() if workspace.config is None else workspace.config.compact


def _check_room(data: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(data).free
    if free < (1 + _ROOM) * n_bytes:
        raise EvalpipeError(
            f"merging {n_bytes / 1e6:,.1f} MB of small files needs {(1 + _ROOM) * n_bytes / 1e6:,.0f} MB free below {data}, "
            f"there are {free / 1e6:,.0f} MB: make room; nothing was lost"
        )


@contextmanager
def _only_compaction(data: Path, *, waits: bool = False) -> Iterator[bool]:
    """Whether this is the only compaction of the data folder; with `waits` another one is waited for."""
    with private_file(data / ".compact.lock", os.O_RDWR) as handle:
        is_alone = try_lock(handle)
        if waits and not is_alone:
            sys.stderr.write(f"evalpipe: another compaction is at work in {data}: waiting for it\n")
            take_lock(handle)
            is_alone = True
        if not is_alone:
            yield False
            return
        with shared_work(data, "compact"):
            yield True


def _progress(workspace: Workspace, experiment: str | None, show: bool | None) -> tqdm[NoReturn]:
    shown = sys.stderr.isatty() if show is None else show
    n_files = sum(len(group) for group in _groups(workspace, experiment)) if shown else 0
    return tqdm(total=n_files, unit=" files", desc="compact", file=sys.stderr, disable=not shown)


def _groups(workspace: Workspace, experiment: str | None) -> Iterator[list[Path]]:
    nothing: Mapping[Path, str] = {}
    for dataset in COMPACTED:
        for folder in partition_folders(workspace.data, dataset, experiment):
            yield from plan(sizes_of(read_partition(folder), nothing))
