"""A full disk: told apart from other errors, and one clear line."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from evalpipe.errors import EvalpipeError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class NoRoomError(EvalpipeError):
    """The disk (or a quota, or a limit of file sizes) has no room for what has to be kept."""


def is_full(error: BaseException) -> bool:
    """Whether an error is that of a full disk; libraries in between may give it another number."""
    return isinstance(error, OSError) and (error.errno in _FULL or os.strerror(errno.ENOSPC) in str(error))


def no_room(folder: Path) -> NoRoomError:
    """The line for a full disk."""
    return NoRoomError(
        f"the disk that holds {folder} is full: nothing more is asked, and every answer so far is kept; free some room, then run "
        "`evalpipe judge` again"
    )


@contextmanager
def one_line_if_full(folder: Path) -> Iterator[None]:
    """Raise NoRoomError in place of the error of a full disk."""
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise no_room(folder) from error


def reserve(file: int, start: int, n_bytes: int) -> None:
    """Have the file system set aside what follows the first `start` bytes of an open file, so that writing there cannot
    fail for want of room. Raises OSError where there is none; does nothing where the file system cannot promise any."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file, start, n_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            with suppress(OSError):  # what was set aside before the room ended
                os.ftruncate(file, start)
            raise
