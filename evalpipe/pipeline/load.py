"""`evalpipe load`: the spool, or other tools' logs, into the datasets."""

from __future__ import annotations

import fcntl
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from evalpipe.config import CONFIG_FILE, CollectorConfig
from evalpipe.core.traffic import Arm
from evalpipe.errors import ConfigError, DataError, EvalpipeError
from evalpipe.pipeline.prices import price_book
from evalpipe.pipeline.resources import FULL, within_resources
from evalpipe.pipeline.unit_key import unit_key
from evalpipe.pipeline.workspace import Workspace
from evalpipe.store.exchange_rows import ReadingRules
from evalpipe.store.files import private_file, sweep_stale
from evalpipe.store.load_files import find_importer, is_spool, load_file, request_ids
from evalpipe.store.load_spool import OPEN_LIMIT_S, SpoolLoad
from evalpipe.store.schema import DATASETS
from evalpipe.store.spool_segments import holds_log, segment_files
from evalpipe.store.tally import Tally

PARALLEL_BYTES = 64 * 1024 * 1024
"""Spools from this size on are parsed by several processes; below, starting them costs more than they save."""


def load(
    workspace: Workspace,
    paths: Sequence[Path] = (),
    *,
    experiment: str | None = None,
    format_name: str = "auto",
    arm: str = "control",
    show_progress: bool | None = None,
) -> Tally:
    """Load `paths` (without one: the workspace's spool). Rows that are there already are not added again.

    `arm`: whose answers another tool's log holds, where its format does not tell. Raises ConfigError for a path, format or
    arm that does not exist, DataError where a file cannot be read.
    """
    if arm not in set(Arm):
        raise ConfigError(f"--arm {arm}: choose control or treatment")
    spools, files = _sort_paths(workspace, paths, format_name)
    check_writable(workspace.data)
    n_bytes = _n_bytes(files) + sum(_n_bytes(segment_files(spool)) for spool in spools)
    tally = Tally()
    room = within_resources(
        "nothing was lost: run `evalpipe load` again where there is more room, it goes on from there"
    )
    with room, only_load(workspace.data), _progress(n_bytes, show_progress) as bar:
        for dataset in DATASETS:
            sweep_stale(workspace.data, dataset)
        for spool in spools:
            tally.add(_load_spool(workspace, spool, bar))
        for file in files:
            bar.set_description(file.name, refresh=False)
            name = _experiment_of(file, workspace, experiment)
            tally.add(load_file(file, workspace.data, name, format_name=format_name, arm=Arm(arm), progress=bar.update))
    if tally.failed:
        from evalpipe.pipeline.setup_faults import setup_warnings  # only where something failed: it opens the store

        tally.warnings = setup_warnings(workspace, tally.failed)
    return tally


def requests_in(workspace: Workspace, paths: Sequence[Path]) -> set[str]:
    """The ids of the requests that these log files hold. Ask before `load`, which removes what it has read of a spool."""
    spools, files = _sort_paths(workspace, paths, "auto")
    segments = [segment for spool in spools for segment in segment_files(spool)]
    return {request_id for file in [*segments, *files] for request_id in request_ids(file)}


def _sort_paths(
    workspace: Workspace, paths: Sequence[Path], format_name: str
) -> tuple[list[Path | Sequence[Path]], list[Path]]:
    """(spools, other files), each looked at before anything is written. Segments that are named make one spool: the
    records of a request may lie in several."""
    if not paths:
        if not holds_log(workspace.spool) and not workspace.loaded_experiments():
            if workspace.config is None and not workspace.data.exists():
                raise DataError(
                    f"nothing to load: neither {CONFIG_FILE} nor a log in {workspace.root}; is it the right folder? "
                    "`evalpipe init` makes a workspace, or name a file to load"
                )
            raise DataError(
                f"nothing to load: {workspace.spool} holds no request yet; send some through `evalpipe collect`, "
                "or name a file to load"
            )
        return [workspace.spool], []
    spools: list[Path | Sequence[Path]] = []
    segments: list[Path] = []
    files: list[Path] = []
    for path in paths:
        if path.resolve() == workspace.spool.resolve():
            spools.append(workspace.spool)
            continue
        for file in _files(path):
            if format_name == "spool" or (format_name == "auto" and is_spool(file)):
                segments.append(file)
            else:
                find_importer(file, format_name)
                files.append(file)
    return [*spools, segments] if segments else spools, files


def _load_spool(workspace: Workspace, spool: Path | Sequence[Path], bar: tqdm[NoReturn]) -> Tally:
    config = workspace.config
    collector = CollectorConfig() if config is None else config.collector
    rules = ReadingRules(
        unit_sources=() if config is None else config.experiment.unit,
        unit_key=unit_key(workspace, None if config is None else config.experiment.name)
        if collector.hash_units
        else None,
        prices=price_book(config),
    )
    bar.set_description("load", refresh=False)
    n_bytes = _n_bytes(segment_files(spool))
    return SpoolLoad(
        workspace.data,
        spool,
        rules=rules,
        now=time.time(),
        open_limit_s=max(OPEN_LIMIT_S, 2 * (collector.timeout_s + collector.shadow_timeout_s)),
        processes=min(os.cpu_count() or 1, 8) if n_bytes >= PARALLEL_BYTES else 1,
        progress=bar.update,
    ).run()


def _n_bytes(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


@contextmanager
def only_load(data: Path) -> Iterator[None]:
    """One load at a time: a second one says so and waits."""
    with private_file(data / ".load.lock", os.O_RDWR) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write(f"evalpipe: another load is at work in {data}: waiting for it\n")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def check_writable(data: Path) -> None:
    """Raise ConfigError where nothing can be written under `data`."""
    probe = data / f".writable-{id(data)}"
    try:
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe.touch(mode=0o600)
        probe.unlink()
    except OSError as error:
        if error.errno in FULL:
            raise EvalpipeError(f"cannot write to {data}: the disk is full; make room and run it again") from None
        raise ConfigError(f"cannot write to {data}: {error.strerror}; choose another folder with --data") from None


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        if not found:
            raise DataError(f"{path} holds no file to load")
        return found
    if not path.exists():
        raise ConfigError(f"no such file: {path}")
    return [path]


def _experiment_of(file: Path, workspace: Workspace, name: str | None) -> str:
    """The experiment asked for, else the workspace's, else the file's stem in the letters a name may have."""
    if name is not None or workspace.config is not None:
        return workspace.experiment(name)
    stem = file.name.removesuffix(".gz").rsplit(".", 1)[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip(".")[:64] or "import"


def _progress(n_bytes: int, show: bool | None) -> tqdm[NoReturn]:
    shown = sys.stderr.isatty() if show is None else show
    return tqdm(total=n_bytes, unit="B", unit_scale=True, desc="load", file=sys.stderr, disable=not shown)
