"""Files that are written whole or not at all and survive a power loss; locks; errors of a full disk; SQL that ships in files.

Bytes survive once their file was synced, a name once its folder was: also the name of a folder, and also that a name is gone.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from evalpipe.errors import EvalpipeError

_LEVELS = 4
"""Folders between the data's own parent and the deepest file (a dataset, an experiment, a day)."""
_FOREIGN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL, errno.ENOTSUP})
"""Errors of syncing a folder above the data folder that belongs to another user, or of a file system without such syncs."""
NOT_ALLOWED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
"""Errors of writing to another user's folder, or a read-only one."""
_synced: set[str] = set()
"""Folders whose names, and those of the folders above them, this process has synced."""


def sync_folder(folder: Path) -> None:
    """Make renames and deletions in `folder` survive a power loss. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """The folder is there and survives a power loss, also where another process has just made it. Raises OSError.

    Args:
        folder: made with those above it.
        mode: of the folder itself; those above get the default.
    """
    if folder.is_dir():
        if str(folder) in _synced:
            return
    else:
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
    for above in list(folder.absolute().parents)[:_LEVELS]:
        try:
            sync_folder(above)
        except OSError as error:
            if error.errno not in _FOREIGN:
                raise
            break
    _synced.add(str(folder))


def write_synced(path: Path, data: bytes) -> None:
    """The file, for its owner only, is there whole or as it was; it survives a power loss before this returns, and so do the
    folders above it, which are made where there are none. Raises OSError."""
    part = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    make_folder(path.parent)
    try:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink()
        raise
    sync_folder(path.parent)


def write_atomically(path: Path, data: bytes, *, optional: bool = False) -> bool:
    """The file appears whole under its name or not at all, and survives a power loss. Whether it was written.

    Raises EvalpipeError where it cannot be written; with `optional` a folder nobody may write to is no error.
    """
    try:
        write_synced(path, data)
    except OSError as error:
        if optional and error.errno in NOT_ALLOWED:
            return False
        raise EvalpipeError(f"cannot write {path}: {error.strerror}") from error
    return True


def unlink_synced(paths: Iterable[Path]) -> None:
    """The files are gone, and a power loss does not bring them back; one that is gone already is no error. Raises OSError."""
    folders = set()
    for path in paths:
        path.unlink(missing_ok=True)
        folders.add(path.parent)
    for folder in folders:
        with suppress(FileNotFoundError):
            sync_folder(folder)


def take_lock(handle: int, *, shared: bool = False) -> None:
    """Wait for the lock (`flock`) of an open file. It is released when the file is closed, or the process ends. Raises OSError.

    Args:
        handle: the file's descriptor.
        shared: several processes may hold it at once, but none that locked it exclusively.
    """
    fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


def try_lock(handle: int, *, shared: bool = False) -> bool:
    """`take_lock` without waiting: False where another process holds it. Raises OSError."""
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def release_lock(handle: int) -> None:
    """Release the lock of a file that stays open. Raises OSError."""
    fcntl.flock(handle, fcntl.LOCK_UN)


def is_locked(path: Path) -> bool | None:
    """Whether a process holds the file locked exclusively; None where there is no file. A process that takes the lock at the
    same moment may have to try again. Raises OSError."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return not try_lock(handle, shared=True)
    finally:
        os.close(handle)


def unfinished(folder: Path, pattern: str) -> list[Path]:
    """What writers that are gone left of files in the making (`write_synced`).

    Args:
        folder: where the files are.
        pattern: of the names of the finished files, such as "*.html".
    """
    found = []
    for path in folder.glob(f".{pattern}.*"):
        process, _, suffix = path.name.rpartition(".")
        pid = process.rpartition(".")[2]
        if suffix in {"tmp", "part"} and pid.isdecimal() and not _is_running(int(pid)):
            found.append(path)
    return found


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


# A full disk and too little memory are reported in one line, as user errors are.


FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FULL_WORDS = ("no space left on device", "disk quota exceeded", "file too large")
_MEMORY_WORDS = (
    "cannot allocate memory",
    "failed to map segment",
    "can't start new thread",
    "out of memory",
    "bad_alloc",
)


def resource_fault(error: BaseException) -> str | None:
    """What ran out, in words, where that is why `error` was raised; else None."""
    seen: BaseException | None = error
    while seen is not None:
        words = str(seen).lower()
        if (isinstance(seen, OSError) and seen.errno in FULL) or any(part in words for part in _FULL_WORDS):
            where = f" ({seen.filename})" if isinstance(seen, OSError) and isinstance(seen.filename, str) else ""
            return f"the disk is full, or a limit of file sizes is reached{where}"
        short = isinstance(seen, MemoryError) or (isinstance(seen, OSError) and seen.errno == errno.ENOMEM)
        if short or any(part in words for part in _MEMORY_WORDS):
            return "not enough memory"
        if type(seen).__name__ == "BrokenProcessPool":
            return "a helper process was killed, as a system short of memory does"
        seen = seen.__cause__ or seen.__context__
    return None


@contextmanager
def within_resources(remedy: str) -> Iterator[None]:
    """Turn a full disk and too little memory into an EvalpipeError that ends in `remedy`."""
    try:
        yield
    except EvalpipeError:
        raise
    except Exception as error:
        fault = resource_fault(error)
        if fault is None:
            raise
        raise EvalpipeError(f"{fault}; {remedy}") from error


# SQL that ships with the package.


@cache
def sql_statements(package: str, name: str) -> Mapping[str, str]:
    """The statements of a `.sql` file of a package, by name.

    Args:
        package: such as "evalpipe.store".
        name: the file's. In it every statement follows a line `-- name: NAME` and ends with a semicolon. Values are named
            parameters (`$name`); fragments that are no values (views, conditions) are fields of `str.format` (`{name}`).
    """
    from importlib import resources  # here: the collector's processes import this module and read no SQL

    text = resources.files(package).joinpath(name).read_text(encoding="utf-8")
    parts = text.split("-- name: ")[1:]
    return {part.partition("\n")[0].strip(): part.partition("\n")[2].strip().removesuffix(";") for part in parts}
