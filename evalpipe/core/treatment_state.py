"""What the treatment process knows across its lives: how far the spool is decided, what waits, what was spent.

It is written whole under its final name, in the spool's folder. What was decided after the last writing is found in the
process's own segments, since a decision is a record there before a copy is sent: so no copy is sent twice and none is
forgotten, as long as a segment of decisions stays until a state covers it.
"""

from __future__ import annotations

import msgspec

STATE_FILE = "shadow-state.json"
TREATMENT_LOCK = ".shadow.lock"
"""held by the process that decides on copies: by the treatment process as long as it lives, and by a load that closes what a
stopped collector left undecided"""
OWN_PREFIX = "shadow-"
"""of the segments that hold its decisions and answers"""


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
    decided: list[str] = []
    """requests decided in an earlier life that this one has not come across yet"""
    spent_usd: dict[str, float] = {}
    """experiment → USD of answered copies"""

    def covers(self, segment: str, n_bytes: int) -> bool:
        """Whether all that one of its own segments says is in this state."""
        return self.offsets.get(segment, -1) >= n_bytes


def read_state(data: bytes) -> ShadowState:
    """An empty state where there is none, or a torn one: then all segments are read again."""
    try:
        return msgspec.json.decode(data, type=ShadowState)
    except msgspec.DecodeError:
        return ShadowState()
