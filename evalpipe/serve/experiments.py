"""The experiments a server shows: their folders, what is stored about them, and what their collectors count."""

from __future__ import annotations

import shlex
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from evalpipe.config import CONFIG_FILE
from evalpipe.errors import EvalpipeError
from evalpipe.models import CanaryEvent
from evalpipe.report.history import HistoryView, KeptLook, Look, history_view, read_look
from evalpipe.store.parquet import parquet_files
from evalpipe.store.schema import DATASETS
from evalpipe.workspace.canary import Status as CanaryView
from evalpipe.workspace.canary import open_history, read_status
from evalpipe.workspace.history import stored_looks
from evalpipe.workspace.live import CollectorSilentError, Counters, read_counters
from evalpipe.workspace.paths import Workspace, open_workspace
from evalpipe.workspace.status import ExperimentStatus, Problem, problems, spool_facts, status_of

MOST_LOOKS = 60
"""of an experiment that are shown, the latest; the history in reports/ has all"""
MOST_EVENTS = 50
_LOOK_AGAIN_S = 2.0
"""between two looks at the files of a folder, however often a page is asked for"""
_COUNTERS_S = 1.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """What the files of an experiment hold: read again only where one of them has changed.

    Attributes:
        version: another one where anything else changed.
        latest: address of the latest report below the experiment's page; "" where there is none.
    """

    version: str
    status: ExperimentStatus
    history: HistoryView | None = None
    latest: str = ""
    has_history_page: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Now:
    """An experiment as it is now. `silent`: why no collector answered, where none did."""

    stored: Stored
    counters: Counters | None
    silent: str | None
    canary: CanaryView | None
    events: Sequence[CanaryEvent]
    problems: Sequence[Problem]
    at: datetime


@dataclass(kw_only=True)
class Experiment:
    """One experiment of one folder, under a key of its own. `problem`: why the folder cannot be opened."""

    key: str
    name: str
    folder: Path
    workspace: Workspace | None
    is_own: bool = True
    problem: str | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _stored: Stored | None = None
    _looked_at: float = -_LOOK_AGAIN_S
    _counters: tuple[float, Counters | None, str | None] | None = None

    @property
    def mode(self) -> str | None:
        config = None if self.workspace is None else self.workspace.config
        return config.experiment.mode if config is not None and self.is_own else None

    def now(self) -> Now:
        """Everything about it. It takes a moment: to be asked in a thread."""
        with self._lock:
            stored = self._read_stored()
            counters, silent = self._count()
        at = datetime.now(UTC)
        if self.workspace is None:
            return Now(
                stored=stored,
                counters=None,
                silent=None,
                canary=None,
                events=(),
                problems=[
                    Problem(what=self.problem or "", command=f"cd {shlex.quote(str(self.folder))} && evalpipe doctor")
                ],
                at=at,
            )
        canary, events, trouble = self._canary()
        if self.is_own:
            stored = replace(stored, status=replace(stored.status, **spool_facts(self.workspace)))
        found = problems(self.workspace, stored.status, counters=counters, silent=silent, canary=canary, now=at)
        return Now(
            stored=stored,
            counters=counters,
            silent=silent,
            canary=canary,
            events=events,
            problems=[*trouble, *found],
            at=at,
        )

    def unread(self, error: BaseException) -> Now:
        """What is shown of it where reading it failed, for instance because a file was replaced meanwhile."""
        what = f"{self.name} cannot be read now: {error or type(error).__name__}"
        nothing = ExperimentStatus(folder=self.folder, experiment=self.name, problem=what)
        return Now(
            stored=Stored(version="", status=nothing),
            counters=None,
            silent=None,
            canary=None,
            events=(),
            problems=[Problem(what=what, command=f"cd {shlex.quote(str(self.folder))} && evalpipe doctor --data")],
            at=datetime.now(UTC),
        )

    def counters(self) -> tuple[Counters | None, str | None]:
        """What the collector counts, and why it does not answer."""
        with self._lock:
            return self._count()

    def version(self) -> str:
        """Another text where something other than the counters has changed."""
        with self._lock:
            return self._read_stored().version

    def _read_stored(self) -> Stored:
        if self._stored is not None and time.monotonic() - self._looked_at < _LOOK_AGAIN_S:
            return self._stored
        version = "" if self.workspace is None else _version(self.workspace)
        if self._stored is None or self._stored.version != version:
            self._stored = self._read(version)
        self._looked_at = time.monotonic()
        return self._stored

    def _read(self, version: str) -> Stored:
        nothing = ExperimentStatus(folder=self.folder, experiment=self.name, problem=self.problem)
        if self.workspace is None:
            return Stored(version=version, status=nothing)
        status = next((one for one in status_of(self.workspace) if one.experiment == self.name), nothing)
        reports = self.workspace.reports
        page = reports / f"{self.name}.html"
        latest = f"reports/{page.name}" if page.is_file() else ""
        kept = list(_kept_looks(reports / self.name))
        return Stored(
            version=version,
            status=status,
            history=history_view(kept, latest=latest) if kept else None,
            latest=latest,
            has_history_page=(reports / self.name / "index.html").is_file(),
        )

    def _count(self) -> tuple[Counters | None, str | None]:
        config = None if self.workspace is None else self.workspace.config
        if self.workspace is None or config is None or config.arms is None or not self.is_own:
            return None, None
        if self._counters is not None and time.monotonic() - self._counters[0] < _COUNTERS_S:
            return self._counters[1:]
        counters, silent = None, None
        try:
            counters = read_counters(self.workspace)
        except CollectorSilentError as error:
            silent = str(error)
        self._counters = (time.monotonic(), counters, silent)
        return counters, silent

    def _canary(self) -> tuple[CanaryView | None, Sequence[CanaryEvent], list[Problem]]:
        if self.mode != "canary" or self.workspace is None:
            return None, (), []
        try:
            return read_status(self.workspace), open_history(self.workspace).events()[-MOST_EVENTS:], []
        except (EvalpipeError, OSError) as error:
            return None, (), [Problem(what=f"the canary cannot be read: {error}", command="evalpipe canary status")]


def open_experiments(folders: Sequence[Path], workspace: Workspace | None = None) -> list[Experiment]:
    """The experiments of these folders; `workspace` instead, where no folder is named. A folder that cannot be opened is an
    experiment with its problem."""
    opened: list[tuple[Path, Workspace | None, str | None]] = []
    for folder in [] if workspace is not None else folders:
        try:
            found = open_workspace(root=folder.resolve())
        except EvalpipeError as error:
            opened.append((folder, None, str(error)))
        else:
            is_empty = found.config is None and not found.loaded_experiments()
            opened.append((folder, found, f"no {CONFIG_FILE} and no data in {folder}" if is_empty else None))
    if workspace is not None:
        opened.append((workspace.root, workspace, None))
    experiments: list[Experiment] = []
    for folder, one, problem in opened:
        names = [(folder.name or "folder", True)] if one is None or problem is not None else list(_names(one))
        for name, is_own in names:
            experiments.append(
                Experiment(
                    key=_key(name, {known.key for known in experiments}),
                    name=name,
                    folder=folder,
                    workspace=one if problem is None else None,
                    is_own=is_own,
                    problem=problem,
                )
            )
    return experiments


def _names(workspace: Workspace) -> Iterator[tuple[str, bool]]:
    """The workspace's own experiment, then the others its data hold."""
    own = None if workspace.config is None else workspace.config.experiment.name
    if own is not None:
        yield own, True
    yield from ((name, False) for name in workspace.loaded_experiments() if name != own)


def _key(name: str, taken: set[str]) -> str:
    """The last part of its page's address: the name, with a number where another folder has it, too."""
    plain = "".join(sign if (sign.isalnum() and sign.isascii()) or sign in "._-~" else "-" for sign in name)
    plain = plain if plain.strip(".") else "experiment"
    number = 1
    while (key := plain if number == 1 else f"{plain}~{number}") in taken:
        number += 1
    return key


def _kept_looks(folder: Path) -> Iterator[KeptLook]:
    for one in stored_looks(folder)[-MOST_LOOKS:]:
        look = _look(one.json)
        if look is not None:
            page = one.html if one.html.is_file() else one.json
            yield KeptLook(look=look, href=f"reports/{folder.name}/{page.name}")


def _look(path: Path) -> Look | None:
    try:
        return read_look(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return None


def _version(workspace: Workspace) -> str:
    """What changes where a file does that `Stored` is read from, or the canary's history."""
    seen: list[object] = []
    paths = [path for dataset in DATASETS for path in parquet_files(workspace.data, dataset, None)]
    for folder, pattern in (
        (workspace.data, "verdict.json"),
        (workspace.data, "experiments/*.json"),
        (workspace.data, "canary/*.jsonl"),
        (workspace.data, "alerts/**/*.json"),
        (workspace.reports, "*.html"),
        (workspace.reports, "*/*.json"),
    ):
        paths += folder.glob(pattern)
    for path in paths:
        try:
            state = path.stat()
        except OSError:  # gone meanwhile
            continue
        seen.append((str(path), state.st_size, state.st_mtime_ns))
    return f"{hash(tuple(sorted(map(str, seen)))) & 0xFFFFFFFFFFFFFFFF:016x}"
