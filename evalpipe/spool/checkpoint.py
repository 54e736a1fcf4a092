"""The checkpoint of the treatment process: how far the spool is decided, what waits, what was spent.

It is written whole under its final name, in the spool's folder. What was decided after the last writing is found in the
process's own segments, since a decision is a record there before a shadow request is sent: so none is sent twice and none is
forgotten, as long as a segment of decisions stays until a state covers it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from evalpipe.files import make_folder, write_synced

STATE_FILE = "shadow-state.json"
TREATMENT_LOCK = ".shadow.lock"
"""held by the process that decides on shadow requests: by the treatment process as long as it runs, and by a load that
closes what a stopped collector left undecided"""
OWN_PREFIX = "shadow-"
"""of the segments that hold its decisions and answers"""


class RecordPosition(msgspec.Struct, frozen=True, array_like=True):
    """A record in the spool: segment and offset of its line."""

    segment: str
    offset: int


class ShadowState(msgspec.Struct, kw_only=True):
    offsets: dict[str, int] = {}
    """segment → bytes read; own segments too"""
    accounted: dict[str, int] = {}
    """segment → bytes whose answers are in the metrics"""
    waiting: list[RecordPosition] = []
    """requests read but not decided"""
    decided: list[str] = []
    """requests decided in an earlier life that this one has not come across yet"""
    spent_usd: dict[str, float] = {}
    """experiment → USD of answered shadow requests"""

    def covers(self, segment: str, n_bytes: int) -> bool:
        """Whether everything in one of its own segments is in this state."""
        return self.offsets.get(segment, -1) >= n_bytes


def read_state(data: bytes) -> ShadowState:
    """An empty state where there is none, or a torn one: then all segments are read again."""
    try:
        return msgspec.json.decode(data, type=ShadowState)
    except msgspec.DecodeError:
        return ShadowState()


# The treatment process's state on the disk, and its lock.


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
    """The second file with the cost of an experiment's shadow requests: outside the spool, whose files are deleted."""
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


def save_state(folder: Path, state: ShadowState) -> None:
    """It survives a power loss: load deletes decisions that it covers. Raises OSError."""
    make_folder(folder, mode=0o700)
    write_synced(folder / STATE_FILE, msgspec.json.encode(state))
