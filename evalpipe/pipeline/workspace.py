"""A workspace: where the configuration, the data and the reports lie. The only reader of `Config` is this package."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import evalpipe
from evalpipe.config import CONFIG_FILE, Config, load_config
from evalpipe.errors import ConfigError, DataError


def shipped(folder: str) -> Path:
    """The folder of that name (`judges`, `prompts`, `data/sample`) that evalpipe ships: in the wheel, else in the checkout."""
    package = Path(evalpipe.__file__).parent
    inside = package / "_shipped" / folder
    return inside if inside.is_dir() else package.parent / folder


@dataclass(frozen=True, kw_only=True, slots=True)
class Workspace:
    """`config` is None where a folder has no evalpipe.toml (a log loaded without a workspace)."""

    root: Path
    data: Path
    config: Config | None
    config_path: Path | None = None

    @property
    def spool(self) -> Path:
        return self.data / "spool"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def unit_key_path(self) -> Path:
        """The key of hashed unit ids lies beside the data, never in it."""
        return self.data.parent / ".evalpipe-unit-key"

    def require_config(self) -> Config:
        if self.config is None:
            raise ConfigError(
                f"no {CONFIG_FILE} in {self.root}: write one with `evalpipe init`, or name another with --config"
            )
        return self.config

    def experiment(self, name: str | None) -> str:
        """The experiment asked for, else the workspace's, else (without a configuration) the only one that was loaded.

        Raises ConfigError where none is known or the name is not allowed.
        """
        if name is not None:
            from evalpipe.config import read_config

            read_config({"experiment": {"name": name}}, name="--experiment")
            return name
        if self.config is not None:
            return self.config.experiment.name
        loaded = self.loaded_experiments()
        if len(loaded) > 1:
            raise ConfigError(f"several experiments are loaded: name one with --experiment ({', '.join(loaded)})")
        return loaded[0] if loaded else self.require_config().experiment.name

    def loaded_experiments(self) -> list[str]:
        """The experiments the data folder holds exchanges of, by name."""
        return sorted(path.name.removeprefix("experiment=") for path in self.data.glob("exchanges/experiment=*"))

    def judge_folders(self) -> list[Path]:
        """Where judge files are looked for, the workspace's own first."""
        return [self.root / "judges", shipped("judges")]

    def prompt_folders(self) -> list[Path]:
        return [self.root / "prompts", shipped("prompts")]


def open_workspace(config: Path | None = None, data: Path | None = None, *, root: Path | None = None) -> Workspace:
    """The workspace of the working directory, or of the folder of `config`. A missing default configuration is not an
    error here: `require_config` is asked where one is needed."""
    path = config or (root or Path.cwd()) / CONFIG_FILE
    folder = root or path.parent.resolve()
    loaded = None if config is None and not path.exists() else load_config(path)
    env = os.environ.get("EVALPIPE_DATA")
    data_folder = data or (Path(env) if env else folder / "data")
    return Workspace(root=folder, data=data_folder, config=loaded, config_path=path if loaded else None)


def record_path(data: Path, experiment: str) -> Path:
    """Where the experiment's record lies (`analysis.record`); it is there from the first look on."""
    return data / "experiments" / f"{experiment}.json"


def record_copy_path(data: Path, experiment: str) -> Path:
    """Where the copy of the record lies: a record that is lost is no new beginning."""
    return data / "experiments" / f".{experiment}.copy"


def record_mark_path(data: Path, experiment: str) -> Path:
    """There from the first record on."""
    return data / "experiments" / f".{experiment}.recorded"


def has_record(data: Path, experiment: str) -> bool:
    """Whether a record was ever written; it may be lost since."""
    places = (record_path, record_copy_path, record_mark_path)
    return any(place(data, experiment).exists() for place in places)


def no_workspace(workspace: Workspace) -> str:
    """What to do in a folder that is no workspace and holds no data, with the workspace around it where there is one."""
    around = next((folder for folder in workspace.root.parents if (folder / CONFIG_FILE).is_file()), None)
    where = f"the workspace around it is {around}: cd there" if around else "`evalpipe init` makes a workspace"
    return (
        f"no {CONFIG_FILE} in {workspace.root}, no data in {workspace.data}: is it the right folder? {where}; "
        "--data names another's data"
    )


def experiment_name(workspace: Workspace, asked: str | None) -> str:
    """The experiment asked for, else the workspace's, else the only one the data folder holds. Raises ConfigError for an
    impossible name or where nothing was loaded, DataError where there are several."""
    if asked is not None or workspace.config is not None:
        return workspace.experiment(asked)
    known = workspace.loaded_experiments()
    if len(known) == 1:
        return known[0]
    if not known:
        raise ConfigError(no_workspace(workspace))
    raise DataError(f"{workspace.data} holds {len(known)} experiments ({', '.join(known)}): name one with --experiment")
