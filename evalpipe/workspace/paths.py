"""A workspace: where the configuration, the data and the reports are; how it is made; names in it."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import string
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib import resources
from pathlib import Path

from evalpipe.config import CONFIG_FILE, Config, load_config, read_config
from evalpipe.errors import ConfigError, DataError, EvalpipeError
from evalpipe.files import FULL
from evalpipe.models import AGAINST_ITSELF
from evalpipe.objects.access import is_url, normalized_url
from evalpipe.objects.shared import attach, working_copy
from evalpipe.objects.shared import pull as pull_data
from evalpipe.providers.pricing import Price
from evalpipe.spool.segments import holds_log


def shipped(folder: str) -> Path:
    """The folder of that name (`judges`, `prompts`, `data/sample`) that evalpipe ships: in the wheel, else in the checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "_shipped" / folder
    return inside if inside.is_dir() else package.parent / folder


@dataclass(frozen=True, kw_only=True, slots=True)
class Workspace:
    """`config` is None where a folder has no evalpipe.toml (a log loaded without a workspace)."""

    root: Path
    data: Path
    config: Config | None
    config_path: Path | None = None
    url: str | None = None
    """the object storage whose working copy `data` is"""

    @property
    def spool(self) -> Path:
        return self.data / "spool"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def unit_key_path(self) -> Path:
        """The key of hashed unit ids is stored beside the data, never in it."""
        return self.data.parent / ".evalpipe-unit-key"

    def require_config(self) -> Config:
        if self.config is None:
            around = workspace_around(self.root)
            what = f"the workspace around it is {around}: cd there" if around else "write one with `evalpipe init`"
            raise ConfigError(f"no {CONFIG_FILE} in {self.root}: {what}, or name another with --config")
        return self.config

    def experiment(self, name: str | None) -> str:
        """The experiment asked for, else the workspace's, else (without a configuration) the only one that was loaded.

        Raises ConfigError where none is known or the name is not allowed.
        """
        if name is not None:
            from evalpipe.config import read_config

            read_config({"experiment": {"name": name.removesuffix(AGAINST_ITSELF)}}, name="--experiment")
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


def open_workspace(
    config: Path | None = None,
    data: Path | None = None,
    *,
    root: Path | None = None,
    pull: bool = True,
    has_data: bool = True,
) -> Workspace:
    """The workspace of the working directory, or of the folder of `config`. A missing default configuration is not an
    error here: `require_config` is asked where one is needed.

    Args:
        config: the configuration file; None: evalpipe.toml in `root`.
        data: the data folder, or the address of object storage; None: $EVALPIPE_DATA, the configuration's `data`, or data/.
        root: the workspace's folder; None: the working directory.
        pull: bring a data folder that is the working copy of object storage to the newest state.
        has_data: whether data are looked at at all; without, object storage is neither opened nor are its credentials needed.

    Raises:
        ConfigError: for a wrong configuration, or an address that cannot be used.
        StorageError: where the object storage cannot be reached.
    """
    path = config or (root or Path.cwd()) / CONFIG_FILE
    folder = root or path.parent.resolve()
    loaded = None if config is None and not path.exists() else load_config(path)
    named = str(data or os.environ.get("EVALPIPE_DATA") or (loaded.data if loaded and loaded.data else ""))
    url = normalized_url(named) if is_url(named) else None
    data_folder = Path(named) if named and url is None else folder / "data"
    if url is not None and loaded is None:
        data_folder = cache_folder() / hashlib.sha256(url.encode()).hexdigest()[:16]
    workspace = Workspace(root=folder, data=data_folder, config=loaded, config_path=path if loaded else None, url=url)
    if url is not None and has_data:
        follow(workspace, url, pull=pull)
    return workspace


def cache_folder() -> Path:
    """Where working copies of stores are that no workspace's folder is for: $XDG_CACHE_HOME/evalpipe."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "evalpipe"


def follow(workspace: Workspace, url: str, *, pull: bool = True) -> None:
    """Make the data folder the working copy of object storage. Raises ConfigError, StorageError."""
    if working_copy(workspace.data) is None:
        from evalpipe.objects.client import open_objects
        from evalpipe.objects.working_copy import TTL_S, WorkingCopy
        from evalpipe.store.ownership import is_kept, lease_of
        from evalpipe.store.parquet import wait_for_readers

        attach(
            WorkingCopy(
                workspace.data,
                open_objects(url),
                owner_of=lease_of,
                is_kept=is_kept,
                command=" ".join(["evalpipe", *sys.argv[1:2]]),
                before_removal=partial(wait_for_readers, workspace.data),
                lease_objects=open_objects(url, give_up_after_s=TTL_S / 3),
            )
        )
    if pull:
        pull_data(workspace.data)


def replica_name(config: Config) -> str:
    """This collector's name among those of the experiment: the configured one, else the host's."""
    return config.collector.replica or re.sub(r"[^A-Za-z0-9._-]+", "-", socket.gethostname())[:64] or "localhost"


def record_path(data: Path, experiment: str) -> Path:
    """The file of the experiment's record (`analysis.record`); it is there from the first look on."""
    return data / "experiments" / f"{experiment}.json"


def record_copy_path(data: Path, experiment: str) -> Path:
    """The copy of the record, by which a lost record is noticed."""
    return data / "experiments" / f".{experiment}.copy"


def record_mark_path(data: Path, experiment: str) -> Path:
    """There from the first record on."""
    return data / "experiments" / f".{experiment}.recorded"


def has_record(data: Path, experiment: str) -> bool:
    """Whether a record was ever written; it may be lost since."""
    places = (record_path, record_copy_path, record_mark_path)
    return any(place(data, experiment).exists() for place in places)


def workspace_around(folder: Path) -> Path | None:
    """The nearest workspace that a folder lies in, not the folder itself."""
    return next((one for one in folder.parents if (one / CONFIG_FILE).is_file()), None)


def no_workspace(workspace: Workspace) -> str:
    """What to do in a folder that is no workspace and holds no data, with the workspace around it where there is one."""
    around = workspace_around(workspace.root)
    where = f"the workspace around it is {around}: cd there" if around else "`evalpipe init` makes a workspace"
    return (
        f"no {CONFIG_FILE} in {workspace.root}, no data in {workspace.data}: is it the right folder? {where}; "
        "--data names another's data"
    )


def experiment_name(workspace: Workspace, asked: str | None) -> str:
    """The experiment asked for, else the workspace's, else the only one the data folder holds. Raises ConfigError for an
    impossible name or where nothing was loaded, DataError where there are several."""
    if asked is not None or workspace.config is not None:
        name = workspace.experiment(asked)
        _follow_control(workspace, name)
        return name
    known = workspace.loaded_experiments()
    if len(known) == 1:
        return known[0]
    if not known:
        raise ConfigError(no_workspace(workspace))
    raise DataError(f"{workspace.data} holds {len(known)} experiments ({', '.join(known)}): name one with --experiment")


def _follow_control(workspace: Workspace, name: str) -> None:
    """Keep beside the data whose control the workspace's experiment takes: other commands may not have its configuration."""
    config = workspace.config
    if config is not None and name == config.experiment.name and workspace.data.is_dir():
        from evalpipe.store.query import note_control_from  # DuckDB: not for the collector

        note_control_from(workspace.data, name, config.experiment.control_from)


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


# `evalpipe init`: a commented workspace.


FOLDERS = ("data", "judges", "prompts", "reports")
GITIGNORE = "data/\nreports/\nservice/keys.env\n.evalpipe-unit-key\n"


def config_template(*, name: str, mode: str) -> str:
    """The commented evalpipe.toml: every key of the configuration, with its default."""
    text = resources.files("evalpipe.workspace").joinpath("evalpipe.toml.template").read_text("utf-8")
    return string.Template(text).substitute(name=name, mode=mode)


def is_workspace(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file()


def init_workspace(folder: Path, *, name: str | None = None, mode: str = "shadow") -> list[Path]:
    """Write a workspace into `folder`; what it wrote. Existing files are never touched: ConfigError names the first.

    Args:
        name: of the experiment; by default that of the one that data/ holds, else the folder's.
    """
    stored = [path.name.removeprefix("experiment=") for path in folder.glob("data/exchanges/experiment=*")]
    if name is None and len(stored) == 1:
        name = stored[0]
    experiment = name if name is not None else re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip(".-")[:64]
    experiment = experiment or "my-experiment"
    read_config({"experiment": {"name": experiment, "mode": mode}}, name="evalpipe init")
    config = folder / CONFIG_FILE
    if config.exists():
        raise ConfigError(f"{config} exists already: edit it, or choose another folder")
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for sub in FOLDERS:
            (folder / sub).mkdir(mode=0o700 if sub == "data" else 0o777, exist_ok=True)
        for path, text in ((config, config_template(name=experiment, mode=mode)), (folder / ".gitignore", GITIGNORE)):
            if not path.exists():
                path.write_text(text, "utf-8")
                written.append(path)
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename or folder}: {error.strerror}") from error
    return written


SERVICE_FILES = ("collect.service", "run.service", "run.timer", "crontab", "compose.yaml")


def write_services(workspace: Workspace, program: str) -> list[Path]:
    """Write systemd units, a crontab and a compose file of the workspace into its service/; what it wrote.

    Args:
        program: the path of the evalpipe command.

    Raises:
        ConfigError: where there is no workspace, a path cannot be written in such a file, or one of them cannot be written. Files
            that are there are left as they are.
    """
    name, folder = workspace.require_config().experiment.name, workspace.root.resolve()
    for place in (str(folder), program):
        if any(character in place for character in "'\"%$\\\n"):
            raise ConfigError(f"{place}: a path with quotes, %, $ or backslashes cannot be written into service files")
    written = []
    for file in SERVICE_FILES:
        path = folder / "service" / (f"evalpipe-{name}{_UNIT_NAMES[file]}" if file in _UNIT_NAMES else file)
        text = resources.files("evalpipe.workspace").joinpath("services", file).read_text("utf-8")
        try:
            path.parent.mkdir(exist_ok=True)
            with path.open("x", encoding="utf-8") as out:
                out.write(string.Template(text).substitute(name=name, folder=str(folder), program=program))
        except FileExistsError:
            continue
        except OSError as error:
            raise ConfigError(f"cannot write {path}: {error.strerror}") from error
        written.append(path)
    return written


_UNIT_NAMES = {"collect.service": ".service", "run.service": "-run.service", "run.timer": "-run.timer"}


# Names that a command was given: an experiment and a judge that are there, or one line with those that are (exit code
# 2).


def loaded_experiment(workspace: Workspace, asked: str | None) -> str:
    """The experiment asked for, else the workspace's, else the only one that is loaded; its data are there.

    Raises:
        ConfigError: with the experiments that are loaded, where there is no data of this one.
    """
    loaded = workspace.loaded_experiments()
    if asked is None and workspace.config is None:
        if len(loaded) == 1:
            return loaded[0]
        if loaded:
            raise ConfigError(
                f"{workspace.data} holds {len(loaded)} experiments: name one with --experiment ({', '.join(loaded)})"
            )
        raise ConfigError(no_workspace(workspace))
    name = workspace.experiment(asked)
    _follow_control(workspace, name)
    if name.removesuffix(AGAINST_ITSELF) in loaded:
        return name
    if workspace.config is None or name != workspace.config.experiment.name:
        raise ConfigError(f"--experiment: there is no {name!r} in {workspace.data}{_known(name, loaded)}")
    if not workspace.data.is_dir():
        raise ConfigError(
            f"no data of experiment {name!r}: there is no folder {workspace.data}; run `evalpipe collect` first, or name another "
            "with --data"
        )
    first = (
        "run `evalpipe load`: the collector's log waits"
        if holds_log(workspace.spool)
        else "no request is collected yet; send some through `evalpipe collect`, then run `evalpipe load`"
    )
    others = f"; or name another with --experiment ({', '.join(loaded)})" if loaded else ""
    raise ConfigError(f"no data of experiment {name!r} in {workspace.data}: {first}{others}")


def check_judge(workspace: Workspace, experiment: str, judge: str | None) -> None:
    """Check that a judge is configured, or has judged something of the experiment. None: none was named.

    Raises:
        ConfigError: with the judges there are.
    """
    configured = workspace.config.judge.name if workspace.config else ()
    if judge is None or judge in configured:
        return
    from evalpipe.store.query import open_store  # DuckDB: not for the collector

    with open_store(workspace.data, experiment) as store:
        found = store.connection.execute("SELECT DISTINCT judge FROM judgments ORDER BY judge").fetchall()
    known = list(dict.fromkeys([*configured, *(name for (name,) in found)]))
    if judge not in known:
        raise ConfigError(f"--judge: no judgments of {judge!r} in experiment {experiment!r}{_known(judge, known)}")


def _known(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return f"{hint} known: {', '.join(known) or 'none'}"


# The prices of the configuration as the price list that loading, judging and the collector share.


def price_book(config: Config | None) -> dict[str, Price]:
    """model → its own price, USD per million tokens; models that are not here have the price library's."""
    if config is None:
        return {}
    return {model: Price(**own.model_dump()) for model, own in config.prices.items()}
