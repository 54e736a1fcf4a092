"""The command line: arguments → pipeline; an `EvalpipeError` → one line and its exit code.

Each command is one module here that imports its stage inside the function, so `evalpipe --help` stays fast.
"""

from __future__ import annotations

from evalpipe.cli.app import main

__all__ = ["main"]
