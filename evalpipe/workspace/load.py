"""`evalpipe load`: the spool, or other tools' logs, into the datasets; warnings of set-up faults."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from tqdm import tqdm

from evalpipe.analysis.settings import Exclusion, Settings
from evalpipe.analysis.setup_faults import setup_faults
from evalpipe.config import CONFIG_FILE, CollectorConfig, Config, SourceConfig
from evalpipe.errors import ConfigError, DataError
from evalpipe.files import take_lock, try_lock, within_resources
from evalpipe.models import ANSWERED, Arm, Exchange
from evalpipe.objects.shared import shared_work
from evalpipe.providers.base import Usage
from evalpipe.providers.pricing import Price, Unpriced, price_of
from evalpipe.providers.setup_faults import SetupFault
from evalpipe.spool.segments import holds_log, segment_files
from evalpipe.store.exchange_rows import ReadingRules
from evalpipe.store.importers.containers import UnknownKindError, sources_of
from evalpipe.store.importers.detection import Examined, describe, examine
from evalpipe.store.importers.mapping import Arms, Mapped, guess_mapping, read_map
from evalpipe.store.importers.values import find
from evalpipe.store.load import (
    OPEN_LIMIT_S,
    LoadSummary,
    Memory,
    Reading,
    SpoolLoad,
    is_spool,
    load_source,
    remember,
    source_request_ids,
    spool_request_ids,
)
from evalpipe.store.load_history import Load, loads_in
from evalpipe.store.load_history import unload as take_out
from evalpipe.store.parquet import private_file, sweep_stale
from evalpipe.store.query import open_store
from evalpipe.store.row_tasks import OpenWorkers, Workers
from evalpipe.store.schema import DATASETS
from evalpipe.store.source_tasks import PlannedSource, SourceTasks
from evalpipe.workspace.compact import compact_after_load
from evalpipe.workspace.paths import Workspace, check_writable, price_book, record_path, workspace_around
from evalpipe.workspace.secrets import unit_key

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
    open_workers: OpenWorkers | None = None,
) -> LoadSummary:
    """Load `paths` (without one: the workspace's spool). Rows that are there already are not added again.

    `arm`: the arm of another tool's log, where its format names none. `options` goes before `format_name`
    and `arm`. `confirm`: asked before a guessed mapping is loaded; None: there is no terminal. `open_workers`: who reads and
    writes rows in place of this machine. Raises ConfigError for a path, format, mapping or arm that does not exist and for a
    guess that is not confirmed, DataError where a file cannot be read, ClusterError for workers that are gone.
    """
    options = options or LoadOptions(format_name=format_name, arm=arm)
    if options.arm not in set(Arm):
        raise ConfigError(f"--arm {options.arm}: choose control or treatment")
    if options.spool is None:
        spools, files = _sort_paths(workspace, paths, options.format_name, experiment)
    else:
        spools, files = [_other_spool(options.spool, paths, experiment)], []
    plan = plan_files(workspace, files, options)
    if files and not plan.sources and not spools:
        raise DataError(f"nothing to load: {plan.skipped_text() or 'no file holds a log'}")
    _confirm_guesses(workspace, plan, options, confirm)
    summary = LoadSummary(skipped=plan.skipped)
    if options.dry_run:
        summary.planned = [_planned_line(one) for one in plan.sources]
        if options.spool is not None:
            segments = segment_files(options.spool)
            summary.planned.append(
                f"{options.spool}: {len(segments)} segments, {_n_bytes(segments) / 1e6:,.1f} MB of a collector"
            )
        return summary
    check_writable(workspace.data)
    n_bytes = _n_bytes({one.path for one in plan.sources}) + sum(_n_bytes(segment_files(spool)) for spool in spools)
    room = within_resources(
        "nothing was lost: run `evalpipe load` again where there is more room, it goes on from there"
    )
    with (
        room,
        only_load(workspace.data),
        nullcontext() if open_workers is None else open_workers() as workers,
        _progress(n_bytes, show_progress) as bar,
    ):
        for dataset in DATASETS:
            sweep_stale(workspace.data, dataset)
        for spool in spools:
            summary.add(_load_spool(workspace, spool, bar, workers))
        if options.replace:
            _unload_sources(workspace, [(one.examined.source.name, one.experiment) for one in plan.sources])
        sources = _sources(workspace, plan, options, bar)
        tasks = None if workers is None else SourceTasks(sources, workers)
        for planned, source in zip(plan.sources, sources, strict=True):
            bar.set_description(planned.path.name, refresh=False)
            portions = None if tasks is None else tasks.portions(source)
            summary.add(
                load_source(
                    source.examined,
                    workspace.data,
                    planned.experiment,
                    source.reading,
                    portions=portions,
                    progress=source.progress,
                )
            )
        if options.compact and (workspace.config is None or workspace.config.compact.after_load):
            bar.set_description("compact", refresh=False)
            summary.compacted = compact_after_load(workspace)
    if summary.failed:
        summary.warnings = setup_warnings(workspace, summary.failed)
    return summary


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
        raise ConfigError(f"nothing was loaded; name the columns: {lines[0]}")
    raise ConfigError("\n".join([*shown, "load it with --yes, or name the columns:", *lines]))


def _planned_line(planned: Planned) -> str:
    importer = planned.examined.importer
    how = (
        importer.name
        if importer is not None and planned.guess is None
        else f'--map "{planned.guess.line() if planned.guess else ""}"'
    )
    return f"{planned.examined.source.name}: {planned.examined.source.kind}, {how}, into {planned.experiment}"


def _sources(workspace: Workspace, plan: LoadPlan, options: LoadOptions, bar: tqdm[NoReturn]) -> list[PlannedSource]:
    """How each source is read."""
    memory = memory_of(plan)
    priced = partial(_with_price, price_book(workspace.config)) if options.price else None
    return [
        PlannedSource(
            examined=planned.examined,
            reading=Reading(arm=Arm(planned.arm), arms=arms_of(planned, workspace), memory=memory, priced=priced),
            progress=_Moved(planned, bar.update).on,
        )
        for planned in plan.sources
    ]


class _Moved:
    """How far the reader of a file has come, for the progress bar."""

    def __init__(self, planned: Planned, update: Callable[[int], object]) -> None:
        self._source, self._update, self._at = planned.examined.source, update, 0

    def on(self) -> None:
        handle = self._source.handle
        if handle is not None and not handle.closed:
            at = handle.tell()
            self._update(max(0, at - self._at))
            self._at = at


def _with_price(prices: Mapping[str, Price], row: Exchange) -> Exchange:
    """An exchange without a cost at the price list's, marked as such."""
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
    found = price_of(usage, model=row.model, requested=row.model_requested, provider=row.provider, at=at, prices=prices)
    if isinstance(found, Unpriced):
        return msgspec.structs.replace(row, cost_note=found.reason)
    note = "; ".join(filter(None, ("computed by `load --price`, not in the log", found.note)))
    return msgspec.structs.replace(
        row, cost_usd=found.usd, priced_at=found.priced_at, cost_source=found.source, cost_note=note
    )


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
                around = workspace_around(workspace.root)
                what = (
                    f"the workspace around it is {around}: cd there" if around else "`evalpipe init` makes a workspace"
                )
                raise DataError(
                    f"nothing to load: neither {CONFIG_FILE} nor a log in {workspace.root}; is it the right folder? "
                    f"{what}, or name a file to load"
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
        for file in _files(path, workspace):
            if format_name == "spool" or (format_name == "auto" and is_spool(file)):
                segments.append(file)
            else:
                files.append((file, path.is_dir(), _experiment_of(path, workspace, experiment)))
    return [*spools, segments] if segments else spools, files


_SEGMENT = re.compile(r".+\.\d{6}\.jsonl")
_RECORD = b'{"record":"'
_HEAD_BYTES = 65_536


def _other_spool(spool: Path, paths: Sequence[Path], experiment: str | None) -> Path:
    """The folder, once each file that would be emptied was looked at."""
    if paths:
        raise ConfigError(f"--spool {spool} and {paths[0]}: name files, or the spool of a collector, not both")
    if experiment is not None:
        raise ConfigError(
            f"--spool and --experiment {experiment}: each record names the experiment it was collected for"
        )
    if not spool.is_dir():
        if _address(spool) is not None:
            refuse_missing(spool)
        raise ConfigError(
            f"--spool {spool}: there is no such folder; it is the folder spool in the data of a collector"
        )
    for path in segment_files(spool):
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        holds_records = not head or any(line.startswith(_RECORD) for line in head.split(b"\n"))
        if not holds_records or not _SEGMENT.fullmatch(path.name):
            raise ConfigError(
                f"--spool {spool}: {path.name} is no segment of a collector's log, and --spool empties the folder; "
                "name the files of another tool without --spool"
            )
    if not holds_log(spool):
        raise DataError(f"nothing to load: no segment in {spool} holds a record")
    return spool


def _load_spool(
    workspace: Workspace, spool: Path | Sequence[Path], bar: tqdm[NoReturn], workers: Workers | None
) -> LoadSummary:
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
        processes=min(_n_cpus(), 8) if n_bytes >= PARALLEL_BYTES else 1,
        workers=workers,
        progress=bar.update,
    ).run()


def _n_cpus() -> int:
    """The CPUs this process may run on: fewer than the machine's where it is pinned, as containers and services can be."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _n_bytes(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)


@contextmanager
def only_load(data: Path) -> Iterator[None]:
    """One load at a time: a second one reports it and waits."""
    with private_file(data / ".load.lock", os.O_RDWR) as handle:
        if not try_lock(handle):
            sys.stderr.write(f"evalpipe: another load is at work in {data}: waiting for it\n")
            take_lock(handle)
        with shared_work(data, "load"):
            yield


def _files(path: Path, workspace: Workspace) -> list[Path]:
    """The file itself, or what is in a folder: never what evalpipe has written itself, its data and its reports.

    Raises ConfigError for a path that is not there and for one of the workspace's own, DataError for an empty folder. The
    segments of the own spool may be named.
    """
    if not path.exists():
        refuse_missing(path)
    folder = path.resolve()
    own = [one.resolve() for one in (workspace.data, workspace.reports)]
    own = [one for one in own if not workspace.root.resolve().is_relative_to(one)]
    for one in own:
        if folder.is_relative_to(one) and not folder.is_relative_to(workspace.spool.resolve()):
            raise ConfigError(
                f"{path} is in {one}, which evalpipe writes itself: it is no source of a load. The collector's log is loaded by "
                "`evalpipe load` without a name; a log of yours in there is to be moved out first"
            )
    if not path.is_dir():
        return [path]
    found = []
    for file in sorted(path.rglob("*")):
        parts = file.relative_to(path).parts
        is_own = any((folder / Path(*parts)).is_relative_to(one) for one in own if one != folder)
        if not is_own and not any(part.startswith((".", "_")) for part in parts) and file.is_file():
            found.append(file)
    if not found:
        raise DataError(f"{path} holds no file to load")
    return found


def refuse_missing(path: Path) -> NoReturn:
    """Raises ConfigError for a path that is not there; an address, of which a path loses slashes, is named as it was given."""
    address = _address(path)
    if address is None:
        raise ConfigError(f"no such file: {path}")
    raise ConfigError(
        f"{address} is an address, and only files and folders of this machine are read: download it first, and name the copy"
    )


def _address(path: Path) -> str | None:
    """ "s3://bucket/x" of the path that it became; None: it is no address."""
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", str(path))
    return match and f"{match[1]}://{match[2]}"


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


# What a load is about to do: each source with its format or mapping, shown before anything of a guess is stored.


_SHOWN_CHARS = 60
_SKIPPED_CHARS = 160
"""of the reason of one among several files"""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOptions:
    """The command line's options. All but `spool` are of other tools' logs."""

    spool: Path | None = None
    """the spool of a collector elsewhere, emptied like the workspace's own"""
    format_name: str = "auto"
    arm: str = "control"
    mapping: str | None = None
    arms: tuple[str, ...] = ()
    source: str | None = None
    """[sources.NAME]"""
    yes: bool = False
    dry_run: bool = False
    replace: bool = False
    price: bool = False
    compact: bool = True
    """small files are merged after it, where the configuration does not forbid that"""
    may_lack: bool = False
    """what `mapping` names besides the answer may be missing in a file: another one has it"""


@dataclass(kw_only=True, slots=True)
class Planned:
    """One source: how it is read, and into which experiment."""

    examined: Examined
    experiment: str
    arm: str
    arms: tuple[str, ...] = ()
    guess: Mapped | None = None
    """the mapping that was guessed: it needs a yes"""
    path: Path = field(default_factory=Path)


@dataclass(kw_only=True, slots=True)
class LoadPlan:
    """The sources of a load, and what was found besides (files of a folder in no known format)."""

    sources: list[Planned] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def guesses(self) -> list[Planned]:
        return [one for one in self.sources if one.guess is not None]

    def skipped_text(self) -> str:
        """The first files that hold no log, each with its reason, and how many more there are."""
        shown = [one if len(one) <= _SKIPPED_CHARS else f"{one[: _SKIPPED_CHARS - 1]}…" for one in self.skipped[:3]]
        more = [f"and {len(self.skipped) - 3:,} more"] if len(self.skipped) > 3 else []
        return "; ".join(shown + more) if len(self.skipped) > 1 else "".join(self.skipped)


def plan_files(workspace: Workspace, files: Sequence[tuple[Path, bool, str]], options: LoadOptions) -> LoadPlan:
    """Look at every file: (path, whether a folder brought it, experiment). Raises ConfigError, DataError for what was
    named and cannot be read; in a folder that is counted."""
    plan = LoadPlan()
    for path, from_folder, experiment in files:
        settings = _settings(workspace, path, options.source)
        try:
            for source in sources_of(path):
                _add(plan, path, source, experiment, options, settings)
        except UnknownKindError as error:
            if not from_folder:
                raise
            plan.skipped.append(f"{path.name}: {error.what}")
        except (ConfigError, DataError) as error:
            if not from_folder or options.format_name != "auto":
                raise
            plan.skipped.append(str(error))
    return plan


def _add(
    plan: LoadPlan, path: Path, source: Any, experiment: str, options: LoadOptions, settings: SourceConfig | None
) -> None:
    text: Any = options.mapping or (settings.map if settings else None)
    mapped = read_map(text) if text else None
    format_name = options.format_name
    if settings is not None and format_name == "auto" and mapped is None:
        format_name = settings.format
    arm = settings.arm if settings is not None and options.arm == "control" else options.arm
    arms = options.arms or (settings.arms if settings else ())
    is_member = source.name != str(source.path)
    try:
        examined = examine(source, format_name, mapped, may_lack=options.may_lack and bool(options.mapping))
    except UnknownKindError as error:
        if not is_member:
            raise
        plan.skipped.append(f"{source.name}: {error.what}")
        return
    if examined.is_empty:
        if is_member:
            plan.skipped.append(f"{source.name} is empty")
            return
        raise DataError(f"{path} is empty: nothing to load")
    planned = Planned(examined=examined, experiment=experiment, arm=arm, arms=arms, path=path)
    if examined.importer is None:
        guess = guess_mapping(examined.sample)
        if guess is None:
            raise ConfigError(describe(source.name, source.kind, examined.sample))
        planned.examined = Examined(source, guess.importer(), examined.inner, examined.sample)
        planned.guess = guess
    plan.sources.append(planned)


def _settings(workspace: Workspace, path: Path, name: str | None) -> SourceConfig | None:
    """[sources.NAME] by its name, else the first one whose pattern the file's name meets."""
    known = {} if workspace.config is None else workspace.config.sources
    if name is not None:
        if name not in known:
            raise ConfigError(
                f"--source {name}: evalpipe.toml has no [sources.{name}]; it has {', '.join(known) or 'none'}"
            )
        return known[name]
    return next((one for one in known.values() if one.files and fnmatch.fnmatch(path.name, one.files)), None)


def arms_of(planned: Planned, workspace: Workspace) -> Arms:
    """How the values of an arm column are assigned, by the options, the configuration's models, else the order they
    come in."""
    from evalpipe.models import Arm

    arms = None if workspace.config is None else workspace.config.arms
    models = (None, None) if arms is None else (arms.control.model, arms.treatment.model if arms.treatment else None)
    return Arms(planned.arms, models, first=Arm(planned.arm))


def shown_guess(planned: Planned, workspace: Workspace) -> list[str]:
    """The guess as a table with the first three rows, and what it takes for which arm."""
    assert planned.guess is not None
    rows = [row for row in planned.examined.sample if isinstance(row, dict)][:3]
    table = [["column", "read from", *(f"row {at}" for at in range(1, len(rows) + 1))]]
    for target, path in planned.guess.paths.items():
        table.append([target, path, *(_cell(find(row, path)) for row in rows)])
    widths = [max(len(line[at]) for line in table) for at in range(len(table[0]))]
    lines = [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    ]
    found = [f"{planned.examined.source.name} is in no format that is known here; its columns look like this:", *lines]
    if "arm" in planned.guess.paths:
        arms = arms_of(planned, workspace)
        for row in planned.examined.sample:
            value = find(row, planned.guess.paths["arm"])
            if value not in (None, ""):
                arms.of(str(value))
        found.append(f"  arms: {', '.join(arms.lines())} (change it with --arms CONTROL,TREATMENT)")
    elif not planned.guess.is_pairs:
        found.append(f"  all answers are {planned.arm}'s (change it with --arm treatment)")
    return found


def ready_line(planned: Planned) -> str:
    """The command that loads the source as guessed."""
    assert planned.guess is not None
    return f'evalpipe load {_shell(str(planned.path))} --map "{planned.guess.line()}"'


def _shell(text: str) -> str:
    return text if re.fullmatch(r"[\w./~-]+", text) else json.dumps(text)


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else "" if value is None else json.dumps(value, default=str)
    text = " ".join(text.split())
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"


# Set-up faults of a workspace's experiments: which keys and models are the clients' own, and the warning of `evalpipe
# load`.


class _Record(msgspec.Struct):
    """The part of an experiment's record that is read here."""

    exclusions: list[Exclusion] = []


def passes_through(config: Config | None) -> dict[str, bool]:
    """By arm, whether the client's own key or model reaches it; without a configuration nothing is known of either arm."""
    if config is None or config.arms is None:
        return {}
    control, treatment = config.arms.control, config.arms.treatment
    own_model = control.rewrite and control.model is not None
    found = {"control": control.api_key_env is None or not own_model}
    if treatment is not None:
        found["treatment"] = treatment.model is None  # a client's key never reaches the treatment
    return found


def faults_of(workspace: Workspace, experiment: str) -> list[SetupFault]:
    """The set-up faults of a stored experiment, outside its excluded times. Raises DataError as `open_store`."""
    config = workspace.config
    settings = Settings(passes_through=passes_through(config), exclusions=_exclusions(workspace.data, experiment))
    mode = config.experiment.mode if config else "shadow"
    with open_store(workspace.data, experiment) as store:
        return setup_faults(store.connection, experiment=experiment, mode=mode, settings=settings)


def setup_warnings(workspace: Workspace, experiments: Collection[str]) -> list[str]:
    """One line for each experiment with a set-up fault: its newest one, and how many others there are."""
    lines = []
    for experiment in sorted(experiments):
        faults = faults_of(workspace, experiment)
        if faults:
            newest = max(faults, key=lambda fault: fault.last_at)
            others = f" ({len(faults) - 1} more set-up faults before it)" if len(faults) > 1 else ""
            lines.append(f"{experiment}: {newest.text}{others}")
    return lines


def _exclusions(data: Path, experiment: str) -> tuple[Exclusion, ...]:
    path = record_path(data, experiment)
    try:
        return tuple(msgspec.json.decode(path.read_bytes(), type=_Record).exclusions)
    except (OSError, msgspec.DecodeError):  # none yet; a broken one stops the commands that need it, not a load
        return ()
