"""evalpipe: ship it, keep what we have, or collect more? Two LLM arms compared on production traffic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evalpipe.version import __version__ as __version__

if TYPE_CHECKING:
    from pathlib import Path

    from evalpipe.workspace.notebook import Notebook as Notebook
    from evalpipe.workspace.python_api import Decision as Decision

__all__ = ["Decision", "Notebook", "__version__", "open"]
_PLACES = {"Decision": "evalpipe.workspace.python_api", "Notebook": "evalpipe.workspace.notebook"}
"""names that are imported when they are first asked for: they need the statistics and pandas"""


def open(path: str | Path = ".") -> Notebook:  # noqa: A001 - `evalpipe.open(".")` is the name users type
    """Open the workspace at `path` for a notebook: its datasets as pandas frames and by SQL.

    Raises `evalpipe.errors.ConfigError` where the workspace cannot be read.
    """
    from evalpipe.workspace.notebook import open_notebook

    return open_notebook(path)


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
