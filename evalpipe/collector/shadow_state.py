"""What the treatment process knows across its lives: how far the spool is decided, what waits, what was spent.

Written whole under its final name. What was decided after the last writing is found in the process's own segments, since
a decision is a record there before a copy is sent: so no copy is sent twice and none is forgotten.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

STATE_FILE = "shadow-state.json"


class Place(msgspec.Struct, frozen=True, array_like=True):
    """A record in the spool: segment and offset of its line."""

    segment: str
    offset: int


class ShadowState(msgspec.Struct, kw_only=True):
    offsets: dict[str, int] = {}
    """segment → bytes read; own segments too"""
    accounted: dict[str, int] = {}
    """segment → bytes whose answers are in the metrics"""
    waiting: list[Place] = []
    """requests read but not decided"""
    spent_usd: dict[str, float] = {}
    """experiment → USD of answered copies"""


def load_state(folder: Path) -> ShadowState:
    """The state of the last life; an empty one where there is none (or a torn one: then all segments are read again)."""
    try:
        return msgspec.json.decode((folder / STATE_FILE).read_bytes(), type=ShadowState)
    except (FileNotFoundError, msgspec.DecodeError):
        return ShadowState()


def is_held(lock: Path) -> bool:
    """Whether a process holds the lock; one that is just taking it may have to try again."""
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def save_state(folder: Path, state: ShadowState) -> None:
    """Raises OSError."""
    temporary = folder / f".{STATE_FILE}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(msgspec.json.encode(state))
        temporary.replace(folder / STATE_FILE)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
