"""Every error a user can cause: one line with what is wrong, the value, and what to do.

The command line turns them into that line on stderr and an exit code; any other exception is a bug and keeps
its traceback.
"""

from __future__ import annotations

from typing import ClassVar


class EvalpipeError(Exception):
    """A user's mistake or a failed run; `str()` is the one line to show. Exit code 1."""

    exit_code: ClassVar[int] = 1


class ConfigError(EvalpipeError):
    """Wrong usage or configuration: an unknown key, an impossible value, a missing file or secret. Exit code 2."""

    exit_code: ClassVar[int] = 2


class DataError(EvalpipeError):
    """The log or the store cannot give what was asked: empty, an arm missing, an unreadable file."""


class NoDataError(DataError):
    """Nothing was logged yet: for a gate that is "collect more", elsewhere an error like the others."""


class NothingToJudgeError(DataError):
    """The log holds nothing a judge can be asked about."""


class WorkspaceBusyError(EvalpipeError):
    """Another evalpipe process holds what this one needs; the message names it."""


class BudgetError(EvalpipeError):
    """A spending cap cannot be kept, e.g. because a price is unknown."""


class ClusterError(EvalpipeError):
    """A Ray cluster cannot be joined, or its last node is gone; what was answered is kept."""


class UpstreamError(EvalpipeError):
    """A provider could not be reached or refused the work for good (key, quota)."""
