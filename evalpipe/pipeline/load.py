"""`evalpipe load`: the spool, or other tools' logs, into the datasets."""

from __future__ import annotations

import fcntl
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from evalpipe.config import CONFIG_FILE, CollectorConfig
from evalpipe.core.traffic import ANSWERED, Arm, Exchange
from evalpipe.errors import ConfigError, DataError, EvalpipeError
from evalpipe.pipeline.load_plan import LoadOptions, LoadPlan, Planned, arms_of, plan_files, ready_line, shown_guess
from evalpipe.pipeline.prices import price_book
from evalpipe.pipeline.resources import FULL, within_resources
from evalpipe.pipeline.unit_key import unit_key
from evalpipe.pipeline.workspace import Workspace
from evalpipe.providers.base import Usage
from evalpipe.providers.pricing import Unpriced, price_of
from evalpipe.store.exchange_rows import ReadingRules
from evalpipe.store.files import private_file, sweep_stale
from evalpipe.store.load_files import (
    Memory,
    Reading,
    is_spool,
    load_source,
    remember,
    source_request_ids,
    spool_request_ids,
)
from evalpipe.store.load_spool import OPEN_LIMIT_S, SpoolLoad
from evalpipe.store.loads import Load, loads_in
from evalpipe.store.schema import DATASETS
from evalpipe.store.spool_segments import holds_log, segment_files
from evalpipe.store.tally import Tally
from evalpipe.store.unload import unload as take_out

PARALLEL_BYTES = 64 * 1024 * 1024
"""Spools from this size on are parsed by several processes; below, starting them costs more than they save."""


Confirm = Callable[[Sequence[str]], bool]
"""Shows lines and asks; False: it is not to be done."""


def load(
    workspace: Workspace,
    paths: Sequence[Path] = (),
    *,
    experiment: str | None = None,
    format_name: str = "auto",
    arm: str = "control",
    show_progress: bool | None = None,
    options: LoadOptions | None = None,
    confirm: Confirm | None = None,
) -> Tally:
    """Load `paths` (without one: the workspace's spool). Rows that are there already are not added again.

    `arm`: whose answers another tool's log holds, where its format does not say. `options` goes before `format_name`
    and `arm`. `confirm`: asked before a guessed mapping is loaded; None: nobody can be asked. Raises ConfigError for
    a path, format, mapping or arm that does not exist and for a guess nobody confirmed, DataError where a file cannot
    be read.
    """
    options = options or LoadOptions(format_name=format_name, arm=arm)
    if options.arm not in set(Arm):
        raise ConfigError(f"--arm {options.arm}: choose control or treatment")
    spools, files = _sort_paths(workspace, paths, options.format_name, experiment)
    plan = plan_files(workspace, files, options)
    if files and not plan.sources and not spools:
        raise DataError(f"nothing to load: {'; '.join(plan.skipped) or 'no file holds a log'}")
    _confirm_guesses(workspace, plan, options, confirm)
    tally = Tally(skipped=plan.skipped)
    if options.dry_run:
        tally.planned = [_planned_line(one) for one in plan.sources]
        return tally
    check_writable(workspace.data)
    n_bytes = _n_bytes({one.path for one in plan.sources}) + sum(_n_bytes(segment_files(spool)) for spool in spools)
    room = within_resources(
        "nothing was lost: run `evalpipe load` again where there is more room, it goes on from there"
    )
    with room, only_load(workspace.data), _progress(n_bytes, show_progress) as bar:
        for dataset in DATASETS:
            sweep_stale(workspace.data, dataset)
        for spool in spools:
            tally.add(_load_spool(workspace, spool, bar))
        if options.replace:
            _unload_sources(workspace, [(one.examined.source.name, one.experiment) for one in plan.sources])
        memory = memory_of(plan)
        for planned in plan.sources:
            bar.set_description(planned.path.name, refresh=False)
            reading = Reading(
                arm=Arm(planned.arm),
                arms=arms_of(planned, workspace),
                memory=memory,
                priced=_priced(workspace) if options.price else None,
            )
            tally.add(
                load_source(
                    planned.examined,
                    workspace.data,
                    planned.experiment,
                    reading,
                    progress=_Moved(planned, bar.update).to,
                )
            )
    if tally.failed:
        from evalpipe.pipeline.setup_faults import setup_warnings  # only where something failed: it opens the store

        tally.warnings = setup_warnings(workspace, tally.failed)
    return tally


def memory_of(plan: LoadPlan) -> Memory:
    """What the companions among the sources hold."""
    memory: Memory = {}
    for planned in plan.sources:
        remember(planned.examined, memory)
    return memory


def _confirm_guesses(workspace: Workspace, plan: LoadPlan, options: LoadOptions, confirm: Confirm | None) -> None:
    if not plan.guesses or options.yes:
        return
    shown = [line for planned in plan.guesses for line in shown_guess(planned, workspace)]
    lines = list(dict.fromkeys(ready_line(planned) for planned in plan.guesses))
    if options.dry_run and confirm is not None:
        confirm([*shown, *lines])
        return
    if options.dry_run:
        return
    if confirm is not None and sys.stdin.isatty() and sys.stderr.isatty():
        if confirm(shown):
            return
        raise ConfigError(f"nothing was loaded; say where things are: {lines[0]}")
    raise ConfigError("\n".join([*shown, "load it with --yes, or say where things are:", *lines]))


def _planned_line(planned: Planned) -> str:
    importer = planned.examined.importer
    how = (
        importer.name
        if importer is not None and planned.guess is None
        else f'--map "{planned.guess.line() if planned.guess else ""}"'
    )
    return f"{planned.examined.source.name}: {planned.examined.source.kind}, {how}, into {planned.experiment}"


class _Moved:
    """How far the reader of a file has come, for the progress bar."""

    def __init__(self, planned: Planned, update: Callable[[int], object]) -> None:
        self._source, self._update, self._at = planned.examined.source, update, 0

    def to(self, number: int) -> None:
        handle = self._source.handle
        if number % 512 == 0 and handle is not None and not handle.closed:
            at = handle.tell()
            self._update(max(0, at - self._at))
            self._at = at


def _priced(workspace: Workspace) -> Callable[[Exchange], Exchange]:
    """An exchange without a cost at the price list's, marked as such."""
    prices = price_book(workspace.config)

    def priced(row: Exchange) -> Exchange:
        if row.cost_usd is not None or row.outcome not in ANSWERED:
            return row
        usage = Usage(
            input_tokens=row.input_tokens,
            cached_input_tokens=row.cached_input_tokens,
            cache_write_tokens=row.cache_write_tokens,
            output_tokens=row.output_tokens,
            reasoning_tokens=row.reasoning_tokens,
        )
        at = row.started_at if row.started_at.year > 1970 else datetime.now(UTC)
        found = price_of(
            usage, model=row.model, requested=row.model_requested, provider=row.provider, at=at, prices=prices
        )
        if isinstance(found, Unpriced):
            return replace(row, cost_note=found.reason)
        note = "; ".join(filter(None, ("computed by `load --price`, not in the log", found.note)))
        return replace(row, cost_usd=found.usd, priced_at=found.priced_at, cost_source=found.source, cost_note=note)

    return priced


def unload(workspace: Workspace, name: str, *, experiment: str | None = None) -> tuple[list[Load], dict[str, int]]:
    """Take out the rows that a source brought in: its path as it was named, or its file's name. Raises ConfigError
    where no load is written down under it.

    Returns:
        The loads undone, and the rows taken out by dataset.
    """
    known = loads_in(workspace.data)
    if experiment is not None:
        known = [load for load in known if load.experiment == experiment]
    full = str(Path(name).resolve())
    found = [load for load in known if load.source == full or load.source.startswith(f"{full}/")]
    if not found:
        named = [load for load in known if Path(load.source).name == name]
        if len({load.source for load in named}) > 1:
            raise ConfigError(
                f"{name} was loaded from several folders: name one of {', '.join(sorted({load.source for load in named}))}"
            )
        found = named
    if not found:
        sources = list(dict.fromkeys(load.source for load in known))
        shown = ", ".join(sources[-10:]) or "none"
        raise ConfigError(f"no load of {name} is written down in {workspace.data}; there are loads of: {shown}")
    with only_load(workspace.data):
        return found, take_out(workspace.data, found)


def _unload_sources(workspace: Workspace, sources: Sequence[tuple[str, str]]) -> None:
    wanted = {(str(Path(name).resolve()), experiment) for name, experiment in sources}
    found = [load for load in loads_in(workspace.data) if (load.source, load.experiment) in wanted]
    if found:
        take_out(workspace.data, found)


def requests_in(workspace: Workspace, paths: Sequence[Path]) -> set[str]:
    """The ids of the requests that these log files hold. Ask before `load`, which removes what it has read of a
    spool."""
    spools, files = _sort_paths(workspace, paths, "auto", None)
    found = {
        request_id for spool in spools for segment in segment_files(spool) for request_id in spool_request_ids(segment)
    }
    plan = plan_files(workspace, files, LoadOptions())
    _confirm_guesses(workspace, plan, LoadOptions(), None)
    memory = memory_of(plan)
    for planned in plan.sources:
        found |= source_request_ids(planned.examined, Reading(arms=arms_of(planned, workspace), memory=memory))
    return found


def _sort_paths(
    workspace: Workspace, paths: Sequence[Path], format_name: str, experiment: str | None
) -> tuple[list[Path | Sequence[Path]], list[tuple[Path, bool, str]]]:
    """(spools, other files with their experiment), each looked at before anything is written. Segments that are named
    make one
    spool: the records of a request may lie in several. A folder is one experiment."""
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
    files: list[tuple[Path, bool, str]] = []
    for path in paths:
        if path.resolve() == workspace.spool.resolve():
            spools.append(workspace.spool)
            continue
        for file in _files(path):
            if format_name == "spool" or (format_name == "auto" and is_spool(file)):
                segments.append(file)
            else:
                files.append((file, path.is_dir(), _experiment_of(path, workspace, experiment)))
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


def _n_bytes(files: Iterable[Path]) -> int:
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
        inside = (file for file in path.rglob("*") if file.is_file())
        found = sorted(
            file for file in inside if not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)
        )
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
    name = file.resolve().name
    stem = name if file.is_dir() else re.sub(r"\.(gz|zst|bz2|xz)$", "", name).rsplit(".", 1)[0]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip(".")[:64] or "import"


def _progress(n_bytes: int, show: bool | None) -> tqdm[NoReturn]:
    shown = sys.stderr.isatty() if show is None else show
    return tqdm(total=n_bytes, unit="B", unit_scale=True, desc="load", file=sys.stderr, disable=not shown)
