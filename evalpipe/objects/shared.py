"""Data folders that are working copies: where one is, the commands' own locks are held over all machines, as leases.

A command that changes files of a data folder does so under a lock of this machine; the functions here are called beside that lock
and do nothing where the folder is an ordinary one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from evalpipe.objects.working_copy import WorkingCopy

_opened: dict[Path, WorkingCopy] = {}


def attach(copy: WorkingCopy) -> None:
    """From here on this process keeps its folder the working copy of its store."""
    _opened[copy.folder.resolve()] = copy


def working_copy(data: Path) -> WorkingCopy | None:
    """The working copy in a data folder; None where the data are on this machine alone."""
    return _opened.get(data.resolve()) if _opened else None


@contextmanager
def shared_work(data: Path, name: str, *, waits: bool = True, erases: bool = False) -> Iterator[None]:
    """`WorkingCopy.work` where the folder is a working copy; else nothing."""
    copy = working_copy(data)
    if copy is None:
        yield
        return
    with copy.work(name, waits=waits, erases=erases):
        yield


def commit(data: Path, name: str) -> None:
    """Commit what is done so far of a work that is held, before what it came from is deleted."""
    copy = working_copy(data)
    if copy is not None:
        copy.commit(name)


def sweep(data: Path) -> None:
    """Delete what writers left that ended before their commit, where the folder is a working copy."""
    copy = working_copy(data)
    if copy is not None:
        copy.sweep()


def pull(data: Path) -> None:
    """Bring the folder to the newest state, where it is a working copy."""
    copy = working_copy(data)
    if copy is not None:
        copy.pull()
