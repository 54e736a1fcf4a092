"""`evalpipe init`: a commented workspace."""

from __future__ import annotations

import re
import string
from importlib import resources
from pathlib import Path

from evalpipe.config import CONFIG_FILE, read_config
from evalpipe.errors import ConfigError

FOLDERS = ("data", "judges", "prompts", "reports")
GITIGNORE = "data/\nreports/\n.evalpipe-unit-key\n"


def config_template(*, name: str, mode: str) -> str:
    """The commented evalpipe.toml: every key of the configuration, with its default."""
    text = resources.files("evalpipe.pipeline").joinpath("evalpipe.toml.template").read_text("utf-8")
    return string.Template(text).substitute(name=name, mode=mode)


def init_workspace(folder: Path, *, name: str | None = None, mode: str = "shadow") -> list[Path]:
    """Write a workspace into `folder`; what it wrote. Existing files are never touched: ConfigError names the first."""
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
