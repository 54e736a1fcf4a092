"""What a disk can hold after a power loss, from a record of what real processes changed on it (`record_writes.c`).

The model is the strictest that POSIX allows. The bytes of a file survive as far as its last fsync; later writes survive one by
one, or not, or in part, and a file may have its length without them. A name (made, renamed, linked, removed) survives once its
folder was synced; until then each change of names may be there or not, in any order. That a file was synced says nothing of its
name, and that a folder was synced nothing of the folder's own name.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
_HEAD = struct.Struct("<IIQqqII")
_MAGIC = 0x50574C31
_SECTOR = 512
NEVER = 1 << 60

State = dict[str, bytes | None]
"""path below the root → its bytes, None for a folder"""


@dataclass(frozen=True, slots=True)
class Event:
    """`kind` as in `record_writes.c`; `P` is a promise: what holds from here on. `file`: the number of the file meant."""

    kind: str
    file: int = -1
    at: int = 0
    data: bytes = b""
    path: str = ""
    other: str = ""


@dataclass(slots=True)
class Recording:
    """`events` in their order, `safe_at[i]` the event with which the i-th can no longer be lost."""

    root: Path
    start: State
    times: dict[str, float]
    events: list[Event]
    safe_at: list[int]
    source_safe_at: list[int]
    """likewise for the name that a rename from one folder to another takes away"""
    promises: list[tuple[int, Any]]
    files_at_start: dict[str, int] = field(default_factory=dict)

    def promised(self, n: int) -> list[Any]:
        """Everything that was promised within the first `n` events, in its order."""
        return [what for at, what in self.promises if at < n]

    def lose_power(self, n: int, keeps: Callable[[], bool] | None, chance: random.Random) -> State:
        """What can be found after the first `n` events. `keeps` decides for each change that is not safe; None: all are lost."""
        names: dict[str, int | None] = {path: self.files_at_start.get(path) for path in self.start}
        bytes_of = {number: bytearray(self.start[path] or b"") for path, number in self.files_at_start.items()}
        for i in range(n):
            event = self.events[i]
            safe = self.safe_at[i] < n
            if event.kind in "WTG":
                content = bytes_of.setdefault(event.file, bytearray())
                if safe or (keeps is not None and keeps()):
                    _apply(content, event, None if safe else chance)
                elif keeps is not None and event.kind == "W" and chance.random() < 0.3:  # its length without its bytes
                    _grow(content, event.at + len(event.data))
                continue
            if event.kind not in "CRLUMD":
                continue
            if event.kind == "R" and _folder(event.path) != _folder(event.other):
                if safe or (keeps is not None and keeps()):
                    names[event.other] = event.file
                if self.source_safe_at[i] < n or (keeps is not None and keeps()):
                    names.pop(event.path, None)
            elif safe or (keeps is not None and keeps()):
                _rename(names, event)
        return {
            path: None if number is None else bytes(bytes_of.get(number, b""))
            for path, number in sorted(names.items())
            if _is_reachable(path, names)
        }


def _apply(content: bytearray, event: Event, chance: random.Random | None) -> None:
    """One change of a file's bytes; with `chance` it may have come to the disk in part."""
    if event.kind == "T":
        if event.at < len(content):
            del content[event.at :]
        _grow(content, event.at)
    elif event.kind == "G":
        _grow(content, event.at)
    elif chance is None or chance.random() < 0.6:
        _grow(content, event.at + len(event.data))
        content[event.at : event.at + len(event.data)] = event.data
    elif chance.random() < 0.5 or len(event.data) <= _SECTOR:
        kept = event.data[: chance.randrange(len(event.data) + 1)]
        _grow(content, event.at + len(kept))
        content[event.at : event.at + len(kept)] = kept
    else:
        _grow(content, event.at + len(event.data))
        for start in range(0, len(event.data), _SECTOR):
            if chance.random() < 0.5:
                piece = event.data[start : start + _SECTOR]
                content[event.at + start : event.at + start + len(piece)] = piece


def _grow(content: bytearray, size: int) -> None:
    if size > len(content):
        content.extend(bytes(size - len(content)))


def _rename(names: dict[str, int | None], event: Event) -> None:
    if event.kind == "C":
        names[event.path] = event.file
    elif event.kind == "M":
        names[event.path] = None
    elif event.kind == "R":
        if event.file >= 0:
            names[event.other] = event.file
        names.pop(event.path, None)
    elif event.kind == "L":
        names[event.other] = event.file
    else:
        names.pop(event.path, None)


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _is_reachable(path: str, names: dict[str, int | None]) -> bool:
    folder = _folder(path)
    while folder:
        if names.get(folder, 0) is not None:
            return False
        folder = _folder(folder)
    return True


# --- recording


def shim(folder: Path) -> Path:
    """The recorder, compiled. Skips the test where that is not possible."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("the recorder of writes needs Linux and a C compiler (cc, gcc or clang)")
    library = folder / "record_writes.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-w", "-o", str(library), str(HERE / "record_writes.c"), "-ldl"]
    built = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if built.returncode:
        pytest.skip(f"the recorder of writes does not compile here: {built.stderr.strip().splitlines()[0]}")
    return library


class Recorder:
    """Runs real processes over folders below `folder` and records what they change there, each folder by itself."""

    def __init__(self, library: Path, folder: Path) -> None:
        self._library, self._folder = library, folder
        self.log = folder.with_name(folder.name + ".log")
        self.log.write_bytes(b"")
        self._before: dict[Path, tuple[State, dict[int, str], dict[str, float]]] = {}

    @property
    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "LD_PRELOAD": str(self._library),
            "EVALPIPE_POWER_ROOT": str(self._folder),
            "EVALPIPE_POWER_LOG": str(self.log),
            "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path]),
            "NO_PROXY": "127.0.0.1",
        }

    def begin(self, root: Path) -> None:
        """What is in the folder now is on the disk."""
        self._before[root] = _snapshot(root)

    def python(self, *calls: tuple[Path, str]) -> None:
        """Functions of `power_runs`, each on a folder, in one process; they promise what they have reported."""
        lines = [f"promise_for({str(root)!r}); power_runs.{call}" for root, call in calls]
        code = "\n".join(["import power_runs", "from disk_replay import promise_for", *lines])
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=self._folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr[-3000:]

    def done(self, root: Path, *, mapped: Callable[[str], bool] = lambda path: False) -> Recording:
        """What was recorded. `mapped`: files that are written through memory, which no recorder sees and no promise is about."""
        found = _read(root, *self._before[root], self.log.read_bytes())
        after = found.lose_power(len(found.events), lambda: True, _AllOfIt())
        really, _, _ = _snapshot(root)
        unlike = sorted(
            path
            for path in after.keys() | really.keys()
            if after.get(path, 0) != really.get(path, 0) and not mapped(path)
        )
        assert not unlike, f"the recorder missed changes of {unlike[:5]}"
        return found


class _AllOfIt(random.Random):
    """Chance for which every write came through whole."""

    def random(self) -> float:
        return 0.0


_promising = [""]


def promise_for(root: str) -> None:
    """Promises from now on are about this folder."""
    _promising[0] = root


def promise(what: Any, log: Path | None = None) -> None:
    """From here on `what` holds whatever happens. Called by what is recorded, at the moment it would report success."""
    root, data = os.fsencode(_promising[0]), json.dumps(what).encode()
    handle = os.open(log or os.environ["EVALPIPE_POWER_LOG"], os.O_WRONLY | os.O_APPEND)
    try:
        os.write(handle, _HEAD.pack(_MAGIC, ord("P"), 0, 0, 0, len(root), len(data)) + root + data)
    finally:
        os.close(handle)


def _snapshot(root: Path) -> tuple[State, dict[int, str], dict[str, float]]:
    state: State = {}
    inodes: dict[int, str] = {}
    times: dict[str, float] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        state[name] = None if path.is_dir() else path.read_bytes()
        if not path.is_dir():
            inodes[path.stat().st_ino] = name
            times[name] = path.stat().st_mtime
    return state, inodes, times


def _read(root: Path, start: State, inodes: dict[int, str], times: dict[str, float], log: bytes) -> Recording:
    files_at_start = {name: number for number, name in enumerate(sorted(inodes.values()))}
    number_of = {inode: files_at_start[name] for inode, name in inodes.items()}
    n_files = len(files_at_start)
    events: list[Event] = []
    promises: list[tuple[int, Any]] = []
    begun: dict[int, int] = {}
    syncs: list[tuple[str, int, str, int, int]] = []  # (what, file, folder, first event not covered, its own number)
    for kind, inode, a, b, one, two in _records(log):
        i = len(events)
        if kind == "P":
            if one == os.fsencode(root):
                promises.append((i, json.loads(two)))
                events.append(Event("P"))
            continue
        path, other = _below(one, root), _below(two, root)
        if kind in "WTG":
            if inode in number_of:
                events.append(Event(kind, file=number_of[inode], at=a, data=one))
            continue
        if path is None:  # of another folder; the number of a file that is gone may be another one's now
            if kind == "C":
                number_of.pop(inode, None)
            continue
        if kind in "sS":
            if kind == "s":
                begun[a] = i
                continue
            syncs.append(("folder" if b else "file", number_of.get(inode, -1), path, begun.pop(a), i))
            events.append(Event("S", path=path))
            continue
        if kind == "C":
            number_of[inode] = n_files
            n_files += 1
        if path:
            events.append(Event(kind, file=number_of.get(inode, -1), path=path, other=other or ""))
    safe_at, source_safe_at = [NEVER] * len(events), [NEVER] * len(events)
    for what, file, folder, until, at in reversed(syncs):
        for i in range(min(until, len(events))):
            event = events[i]
            if what == "file":
                if event.kind in "WTG" and event.file == file:
                    safe_at[i] = at
            elif event.kind in "CUMD" and _folder(event.path) == folder:
                safe_at[i] = at
            elif event.kind in "RL":
                if _folder(event.other) == folder:
                    safe_at[i] = at
                if _folder(event.path) == folder:
                    source_safe_at[i] = at
    return Recording(root, start, times, events, safe_at, source_safe_at, promises, files_at_start)


def _below(path: bytes, root: Path) -> str | None:
    """The path below the root, "" for the root itself, None for another's."""
    text = os.fsdecode(path).removesuffix(" (deleted)")
    if text == str(root):
        return ""
    return text.removeprefix(f"{root}/") if text.startswith(f"{root}/") else None


def _records(log: bytes) -> Iterator[tuple[str, int, int, int, bytes, bytes]]:
    at = 0
    while at < len(log):
        magic, kind, inode, a, b, n_one, n_two = _HEAD.unpack_from(log, at)
        assert magic == _MAGIC, "the log of writes is damaged"
        at += _HEAD.size
        yield chr(kind), inode, a, b, log[at : at + n_one], log[at + n_one : at + n_one + n_two]
        at += n_one + n_two


# --- replaying


@dataclass(slots=True)
class Tally:
    part: str
    n_events: int = 0
    n_states: int = 0
    n_distinct: int = 0
    cpu_s: float = 0.0
    failures: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.part}: {self.n_events} events, {self.n_states:,} states ({self.n_distinct:,} distinct), "
            f"{len(self.failures):,} failures, {self.cpu_s:.1f} s of CPU"
        )


def try_states(
    part: str,
    recording: Recording,
    check: Callable[[Path, list[Any]], None],
    *,
    n_prefixes: int | None,
    n_random: int,
    seed: int = 7,
) -> Tally:
    """Every prefix (or `n_prefixes` of them) with all that is not safe lost, and `n_random` mixtures of what is not safe.

    `check` runs the ordinary restart code on a state that lies at the recording's root and raises where a promise is broken.
    """
    chance = random.Random(seed)
    root, n_events = recording.root, len(recording.events)
    tally, began = Tally(part, n_events), time.process_time()
    seen: set[bytes] = set()
    prefixes = list(range(n_events + 1))
    if n_prefixes is not None and n_prefixes < len(prefixes):
        after_promises = {at + 1 for at, _ in recording.promises}
        kept = sorted(after_promises)[-n_prefixes // 2 :]
        prefixes = sorted({*kept, *chance.sample(prefixes, n_prefixes - len(kept))})
    plans: list[tuple[int, float | None]] = [(n, None) for n in prefixes]
    # Half of them where most is at stake: just after a promise.
    ends = [at + 1 for at, _ in recording.promises] or [n_events]
    plans += [
        (
            chance.choice(ends) if chance.random() < 0.5 else chance.randrange(n_events + 1),
            chance.choice((0.1, 0.5, 0.5, 0.9, 1.0)),
        )
        for _ in range(n_random)
    ]
    for n, share in plans:
        keeps = None if share is None else (lambda share=share: chance.random() < share)
        state = recording.lose_power(n, keeps, chance)
        tally.n_states += 1
        promised = recording.promised(n)
        mark = _digest(state, len(promised))
        if mark in seen:
            continue
        seen.add(mark)
        tally.n_distinct += 1
        lay_out(root, state, recording.times, tally.n_distinct)
        try:
            check(root, promised)
        except Exception as error:  # noqa: BLE001  every way of failing counts, and the next state is tried
            how = "all unsynced lost" if share is None else f"{share:.0%} of the unsynced kept"
            last = next((e.kind + " " + (e.path or e.other) for e in reversed(recording.events[:n])), "")
            tally.failures.append(
                f"{n} of {n_events} events ({last}), {how}: {type(error).__name__}: {str(error)[:400]}"
            )
    shutil.rmtree(root, ignore_errors=True)
    tally.cpu_s = time.process_time() - began
    return tally


def lay_out(root: Path, state: State, times: dict[str, float], number: int) -> None:
    """The state as files in `root`. Each has a time of change that no file of another state has: caches go by it."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(mode=0o700)
    now = int(max(times.values(), default=0.0)) if times else 1_780_000_000
    for path, data in state.items():
        place = root / path
        if data is None:
            place.mkdir(mode=0o700)
            continue
        place.write_bytes(data)
        place.chmod(0o600)
        at = int(times.get(path, now)) * 1_000_000_000 + number
        os.utime(place, ns=(at, at))


def _digest(state: State, n_promises: int) -> bytes:
    mark = blake2b(str(n_promises).encode(), digest_size=16)
    for path, data in state.items():
        mark.update(path.encode() + (b"\0/" if data is None else b"\0%d\0" % len(data)))
        mark.update(data or b"")
    return mark.digest()
