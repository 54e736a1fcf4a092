"""Log lines about the traffic: units that are no users, requests that reach one arm only, calls that are not collected.

Each line is written once. It costs nothing after `_WATCHED` requests.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from evalpipe.identity import conversation_of, read_sources, unit_of
from evalpipe.providers.paths import shown_path
from evalpipe.providers.registry import read_request
from evalpipe.traffic_shape import (
    Finding,
    UncollectedPath,
    UnitCounts,
    client_name,
    merged,
    uncopied_findings,
    unit_findings,
)

logger = logging.getLogger(__name__)

_WATCHED: Final = 2000
_AT: Final = frozenset((200, 500, 1000, 2000))
"""requests after which it looks"""
_MAX_CLIENTS: Final = 50


class TrafficWatch:
    def __init__(self, unit_sources: tuple[str, ...]) -> None:
        self._sources = read_sources(unit_sources)
        self.n_units_seen = self._n_copies = self._n_unnamed = 0
        self._units: Counter[str] = Counter()
        self._all: Counter[str] = Counter()
        self._conversations: dict[str, set[str]] = {}
        self._clients: dict[str, Counter[str | None]] = {}
        self._reported: set[str] = set()

    @property
    def is_watching(self) -> bool:
        return self.n_units_seen < _WATCHED

    def unit(self, unit_id: str | None, conversation: str, *, is_named: bool) -> None:
        """A request's unit, as it counts."""
        if not self.is_watching:
            return
        self.n_units_seen += 1
        unit = unit_id or conversation
        self._all[unit] += 1
        if is_named:
            self._units[unit] += 1
            self._conversations.setdefault(unit, set()).add(conversation)
        else:
            self._n_unnamed += 1
        if self.n_units_seen in _AT:
            self._report_units()

    def request(self, endpoint: str, body: bytes, unit_id: str | None, conversation: str | None) -> None:
        """A request whose unit is in its body, if anywhere but in `unit_id`."""
        if not self.is_watching:
            return
        try:
            document = msgspec.json.decode(body)
        except (msgspec.MsgspecError, RecursionError):
            document = None
        if unit_id is None:
            unit_id, _ = unit_of(self._sources, None, document)
        if conversation is None:
            view = read_request(endpoint, body)
            conversation = conversation_of(view.system_text, view.first_user_message, document)
        self.unit(unit_id, conversation, is_named=unit_id is not None)

    def copy(self, user_agent: str | None, reason: str | None) -> None:
        """Whether a request can be given to the treatment; `reason`: why not."""
        if self._n_copies >= _WATCHED:
            return
        self._n_copies += 1
        name = client_name(user_agent)
        if name not in self._clients and len(self._clients) >= _MAX_CLIENTS:
            name = "other clients"
        self._clients.setdefault(name, Counter())[reason] += 1
        if self._n_copies in _AT:
            for finding in uncopied_findings(self._clients):
                self._say(finding)

    def _report_units(self) -> None:
        counts = UnitCounts(
            n_requests=self.n_units_seen,
            n_unnamed=self._n_unnamed,
            n_units=len(self._units),
            n_single=sum(number == 1 for number in self._units.values()),
            n_of_one_conversation=sum(
                number > 1 and len(self._conversations[unit]) == 1 for unit, number in self._units.items()
            ),
            largest=max(self._all.values(), default=0),
        )
        for finding in unit_findings(counts):
            self._say(finding)

    def _say(self, finding: Finding) -> None:
        if finding.key not in self._reported:
            self._reported.add(finding.key)
            logger.warning("%s; %s", finding.detail, finding.remedy)


# What passes and looks like a call of a model but is not collected: a line in the log once a path, a file for the
# others.
#
# The files lie beside the data, one a process, so that `health` adds up the processes of this collector, and `doctor`
# and the report what all of them have seen.


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
        except (OSError, msgspec.DecodeError):  # another program's file, or removed meanwhile
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
