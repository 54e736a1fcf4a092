"""Who reads the stored files: a file that was superseded is deleted once nobody who opened it before reads on."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path

LOCK = ".readers.lock"
WAIT_S = 30.0
"""A reader that stays for longer (a notebook) loses what it has open, and opens the store again."""


class Reader:
    """One open store's part in the lock; `close` ends it, a second time does nothing."""

    def __init__(self, data: Path) -> None:
        self._handle: int | None = None
        if not (data / "exchanges").is_dir():  # nothing to read: nothing is made here
            return
        with suppress(OSError):  # a folder or file system where nobody can lock: then nobody waits for this reader
            self._handle = os.open(data / LOCK, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._handle, fcntl.LOCK_SH)

    def close(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


def wait_for_readers(data: Path) -> None:
    """Return when nobody reads that could have opened a superseded file, or after `WAIT_S`."""
    try:
        handle = os.open(data / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    try:
        until = time.monotonic() + WAIT_S
        while time.monotonic() < until:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:
                return
            else:
                return
    finally:
        os.close(handle)
