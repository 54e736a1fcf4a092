"""evalpipe: ship it, keep what we have, or collect more? Two LLM arms compared on production traffic."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from evalpipe.workspace.query import Notebook


__version__ = "0.1.0"
__all__ = ["__version__", "open"]


def open(path: str | Path = ".") -> Notebook:  # noqa: A001 - `evalpipe.open(".")` is the name users type
    """Open the workspace at `path` for a notebook: its datasets as pandas frames and by SQL.

    Raises `evalpipe.errors.ConfigError` where the workspace cannot be read.
    """
    from evalpipe.workspace.query import open_notebook

    return open_notebook(path)
