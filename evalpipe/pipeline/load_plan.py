"""What a load is about to do: each source with its format or mapping, shown before anything of a guess is stored."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalpipe.config import SourceConfig
from evalpipe.errors import ConfigError, DataError
from evalpipe.pipeline.workspace import Workspace
from evalpipe.store.importers.arms import Arms
from evalpipe.store.importers.containers import UnknownKindError, sources_of
from evalpipe.store.importers.detection import Examined, examine
from evalpipe.store.importers.guess import guess_mapping
from evalpipe.store.importers.mapping import Mapped, read_map
from evalpipe.store.importers.paths import find
from evalpipe.store.importers.unknown import describe

_SHOWN_CHARS = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOptions:
    """What the command line says of other tools' logs."""

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
    """The sources of a load, and what was found and is none (files of a folder in no known format)."""

    sources: list[Planned] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def guesses(self) -> list[Planned]:
        return [one for one in self.sources if one.guess is not None]


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
        examined = examine(source, format_name, mapped)
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
    """How the values of an arm column are told apart, by the options, the configuration's models, else the order they
    come in."""
    from evalpipe.core.traffic import Arm

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
        found.append(f"  arms: {', '.join(arms.lines())} (--arms CONTROL,TREATMENT says it otherwise)")
    elif not planned.guess.is_pairs:
        found.append(f"  all answers are {planned.arm}'s (--arm treatment says it otherwise)")
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
