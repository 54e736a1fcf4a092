"""The lock that keeps a second collector off a spool."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from evalpipe.errors import EvalpipeError, WorkspaceBusyError


class SpoolLock:
    """Held as long as this collector writes to the spool: a second one does not start on it."""

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self._path = spool / ".collector.lock"
        self._fd: int | None = None

    def take(self) -> None:
        """Raises EvalpipeError where the folder cannot be written to, WorkspaceBusyError where another collector has it."""
        try:
            self._spool.mkdir(parents=True, exist_ok=True, mode=0o700)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise EvalpipeError(
                f"cannot write to {self._spool}: {error.strerror}; name another folder with --data"
            ) from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            raise WorkspaceBusyError(
                f"another collector writes to {self._spool}; stop it, or name another folder with --data"
            ) from None
        self.close()
        self._fd = fd

    def is_gone(self) -> bool:
        """Whether the lock's file is no longer the one that is locked: the folder was deleted, moved or replaced."""
        if self._fd is None:
            return True
        try:
            return not os.path.samestat(os.fstat(self._fd), self._path.stat())
        except OSError:
            return True

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
