"""`evalpipe load`: the spool, or other tools' logs, into the datasets."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from evalpipe.errors import ConfigError, DataError
from evalpipe.pipeline.workspace import Workspace
from evalpipe.store.load_files import find_importer, load_file
from evalpipe.store.tally import Tally


def load(
    workspace: Workspace,
    paths: Sequence[Path] = (),
    *,
    experiment: str | None = None,
    format_name: str = "auto",
    show_progress: bool | None = None,
) -> Tally:
    """Load `paths` (without one: the workspace's spool). Rows that are there already are not added again.

    Raises ConfigError for a path or format that does not exist, DataError where a file cannot be read.
    """
    check_writable(workspace.data)
    files = [file for path in paths for file in _files(path)]
    if not files:
        raise DataError("nothing to load")
    for file in files:
        find_importer(file, format_name)  # all of them before the first is written
    tally = Tally()
    n_bytes = sum(file.stat().st_size for file in files)
    with _progress(n_bytes, show_progress) as bar:
        for file in files:
            bar.set_description(file.name, refresh=False)
            name = _experiment_of(file, workspace, experiment)
            tally.add(load_file(file, workspace.data, name, format_name=format_name, progress=bar.update))
    return tally


def check_writable(data: Path) -> None:
    """Raise ConfigError where nothing can be written under `data`."""
    probe = data / f".writable-{id(data)}"
    try:
        data.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
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


def _progress(n_bytes: int, show: bool | None) -> tqdm:  # type: ignore[type-arg]
    shown = sys.stderr.isatty() if show is None else show
    return tqdm(total=n_bytes, unit="B", unit_scale=True, desc="load", file=sys.stderr, disable=not shown)
