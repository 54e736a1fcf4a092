"""What passes and looks like a call of a model but is not collected: a line in the log once a path, a file for the others.

The files lie beside the data, one a process, so that `health` adds up the processes of this collector, and `doctor` and the
report what all of them have seen.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from evalpipe.core.uncollected import UncollectedPath, merged
from evalpipe.providers.paths import shown_path

logger = logging.getLogger(__name__)

_WRITE_S = 1.0
_MAX_PATHS = 50
"""named; what comes beyond is counted together"""
_OTHER = "(other paths)"


def folder_of(data: Path, experiment: str) -> Path:
    """Where the files of an experiment are."""
    return data / "uncollected" / f"experiment={experiment}"


def read_uncollected(folder: Path, *, run: str = "") -> list[UncollectedPath]:
    """What was seen, merged. `run`: only by the processes of that collector."""
    found: list[UncollectedPath] = []
    for path in sorted(folder.glob(f"{run or '*'}.*.json")):
        try:
            found += _decoder.decode(path.read_bytes())
        except (OSError, msgspec.DecodeError):  # not one of ours, or taken away meanwhile
            continue
    return merged(found)


_decoder = msgspec.json.Decoder(list[UncollectedPath])


class Uncollected:
    """Counts for one process.

    Args:
        folder: where its file goes.
        run: names the collector, the same in all its processes.
        say: takes a line for the log.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        folder: Path,
        run: str,
        *,
        say: Callable[[str], None] = logger.warning,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._folder, self._run, self._say, self._clock = folder, run, say, clock
        self._file = folder / f"{run}.{os.getpid()}.json"
        self._seen: dict[str, UncollectedPath] = {}
        self._named: set[str] = set()
        self._is_written = True
        self._write_at = 0.0

    def saw(self, method: bytes, target: bytes) -> None:
        """Such a request passed."""
        path, word = shown_path(str(target, "latin-1")), str(method, "latin-1")
        key = f"{word} {path}"
        if key not in self._seen and len(self._seen) >= _MAX_PATHS:
            path, key = _OTHER, _OTHER
        now = self._clock()
        known = self._seen.get(key)
        if known is None:
            self._seen[key] = UncollectedPath(method=word, path=path, count=1, first_at=now, last_at=now)
            self._say_once(
                f"{word} {path} looks like a model call, but is not collected: it passed to control, without a "
                "record or a copy. Collected are paths that end in /chat/completions, /responses or /messages"
            )
        else:
            self._seen[key] = msgspec.structs.replace(known, count=known.count + 1, last_at=now)
        self._is_written = False

    def refused_websocket(self, target: bytes) -> None:
        """A WebSocket was asked for and refused."""
        path = shown_path(str(target, "latin-1"))
        self._say_once(f"a WebSocket to {path} was refused with 426: evalpipe carries HTTP only")

    def _say_once(self, line: str) -> None:
        if line not in self._named and len(self._named) < 4 * _MAX_PATHS:
            self._named.add(line)
            self._say(line)

    def tick(self, *, now: bool = False) -> None:
        """To be called a few times a second; `now`: at the end."""
        at = self._clock()
        if self._is_written or (at < self._write_at and not now):
            return
        self._is_written, self._write_at = True, at + _WRITE_S
        part = self._file.with_suffix(".part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            part.write_bytes(msgspec.json.encode(list(self._seen.values())))
            part.replace(self._file)
        except OSError as error:
            self._say_once(f"the paths that are not collected cannot be written down: {error}")

    def all(self) -> list[UncollectedPath]:
        """What every process of this collector has seen."""
        self.tick(now=True)
        others = read_uncollected(self._folder, run=self._run)
        return others or merged(self._seen.values())  # where no file can be written, at least this process's own
