"""The treatment process's state on the disk, and its lock."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from evalpipe.core.treatment_state import STATE_FILE, ShadowState, read_state
from evalpipe.files import make_folder, write_synced

READY_FILE = "ready"
"""in the folder of the metrics, once every process of the collector has started"""


def load_state(folder: Path) -> ShadowState:
    """The state of the last life."""
    try:
        return read_state((folder / STATE_FILE).read_bytes())
    except FileNotFoundError:
        return ShadowState()


def is_lost(folder: Path) -> bool:
    """Whether there is no state that can be read; also before the first life."""
    try:
        msgspec.json.decode((folder / STATE_FILE).read_bytes(), type=ShadowState)
    except (OSError, msgspec.DecodeError):
        return True
    return False


def spent_path(data: Path, experiment: str) -> Path:
    """Where the spending of an experiment's copies lies a second time: outside the spool, whose files come and go."""
    return data / "experiments" / f"{experiment}.shadow-spent"


def load_spent(data: Path, experiment: str) -> float:
    """USD by the second account; 0 where it is lost, too."""
    try:
        return max(0.0, float(spent_path(data, experiment).read_text("ascii")))
    except (OSError, ValueError):
        return 0.0


def save_spent(data: Path, experiment: str, usd: float) -> None:
    """Raises OSError."""
    write_synced(spent_path(data, experiment), repr(usd).encode())


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
    """It survives a power loss: load deletes decisions that it covers. Raises OSError."""
    make_folder(folder, mode=0o700)
    write_synced(folder / STATE_FILE, msgspec.json.encode(state))
