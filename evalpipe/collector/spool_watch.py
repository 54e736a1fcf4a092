"""How much of the log waits to be loaded, for how long, and whether load keeps up."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from evalpipe.collector.settings import CollectorSettings

_LOADS = 3
"""a segment that is closed is to be gone after so many loads"""
_MIN_WINDOW_S = 60.0
_GROWTH = 1.2
_GROWTH_BYTES = 16 << 20
"""what is left after loads may differ by so much before it counts as growth"""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpoolState:
    """`n_bytes`: in the spool's segments; `age_s`: since the oldest of them began; `n_unaccounted`: bytes whose tokens and
    dollars are not in the counters yet."""

    n_bytes: int
    age_s: float
    n_unaccounted: int
    falling_behind: bool


class SpoolWatch:
    """Looks at the spool's folder once a second. Load deletes what it has loaded, so what is there waits."""

    def __init__(self, settings: CollectorSettings, folder: Path) -> None:
        self._folder, self._every_s = folder, settings.load_every_s
        # A segment of users' requests stays until their copies are decided.
        waits = settings.shadow_queue_age_s + settings.shadow_timeout_s if settings.treatment is not None else 0.0
        self._patience_s = None if self._every_s is None else max(_LOADS * self._every_s, 10.0) + waits
        self._window_s = max(_MIN_WINDOW_S, _LOADS * (self._every_s or 0.0))
        self._begun: dict[str, float] = {}
        self._began_at = time.time()
        self._least: deque[tuple[float, int]] = deque()
        """(when, bytes) of the last two windows"""
        self._n_loads: deque[float] = deque()
        """when segments went away"""
        self._was_behind = False

    def look(self, accounted: Mapping[str, int]) -> SpoolState | None:
        """None where the folder cannot be read. `accounted`: segment → bytes that are counted."""
        now = time.time()
        found: dict[str, os.stat_result] = {}
        try:
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if entry.name.endswith(".jsonl"):
                        try:
                            found[entry.name] = entry.stat()
                        except FileNotFoundError:  # loaded just now
                            continue
        except OSError:
            return None
        sizes = {name: state.st_size for name, state in found.items() if state.st_size}
        first_look = not self._least
        for name in sizes:
            if name not in self._begun:  # those of an earlier run: at the least since they were last written to
                self._begun[name] = found[name].st_mtime if first_look else now
        gone = self._begun.keys() - sizes.keys()
        for name in gone:
            del self._begun[name]
        n_bytes = sum(sizes.values())
        self._remember(now, n_bytes, loaded=bool(gone))
        behind = self._is_late(now, found) or self._grows(now)
        age_s = max(0.0, now - min(self._begun.values(), default=now))
        if behind != self._was_behind:
            if behind:
                logger.warning(
                    "the spool grows faster than it is loaded: %.1f MB wait, the oldest for %.0f s",
                    n_bytes / 1e6,
                    age_s,
                )
            else:
                logger.info("load keeps up with the spool again")
        self._was_behind = behind
        return SpoolState(
            n_bytes=n_bytes,
            age_s=age_s,
            n_unaccounted=sum(max(0, size - accounted.get(name, 0)) for name, size in sizes.items()),
            falling_behind=behind,
        )

    def _remember(self, now: float, n_bytes: int, *, loaded: bool) -> None:
        self._least.append((now, n_bytes))
        while self._least and now - self._least[0][0] > 2 * self._window_s:
            self._least.popleft()
        if loaded:
            self._n_loads.append(now)
        while self._n_loads and now - self._n_loads[0] > 2 * self._window_s:
            self._n_loads.popleft()

    def _is_late(self, now: float, found: Mapping[str, os.stat_result]) -> bool:
        """Whether a closed segment is still there after several loads should have run."""
        if self._patience_s is None:
            return False
        for name, state in found.items():
            waited = now - max(state.st_mtime, self._began_at)
            if state.st_size and waited > self._patience_s and _is_closed(self._folder / name):
                return True
        return False

    def _grows(self, now: float) -> bool:
        """Whether the least that waited in the last window is clearly more than the least in the one before, though
        segments were loaded in both."""
        middle = now - self._window_s
        if not self._least or self._least[0][0] > now - 1.9 * self._window_s:
            return False
        if not any(at <= middle for at in self._n_loads) or not any(at > middle for at in self._n_loads):
            return False
        earlier = min((n for at, n in self._least if at <= middle), default=0)
        later = min(n for at, n in self._least if at > middle)
        return later > _GROWTH * earlier + _GROWTH_BYTES


def _is_closed(segment: Path) -> bool:
    """A running writer holds its segment locked."""
    try:
        fd = os.open(segment, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
