"""Answers of all replicas for one controller: each publishes those of its own log, the controller reads them once.

A replica has one object that it writes anew every few seconds: the newest answers of the present stage, up to a limit. What is
beyond the limit goes into objects that never change. Answers are numbered in the order of publication, so that each is read once
whatever is written late or twice. A restart of a replica is another life of it: it leaves out what earlier lives have published.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable
from typing import Final

import msgspec
import zstandard

from evalpipe.models import CanaryState
from evalpipe.objects.client import Objects
from evalpipe.rollout.observations import Observation

PUBLISH_S: Final = 2.0
SILENT_S: Final = 10.0
"""a replica that has published nothing for so long is reported; it counts with what it last said"""
_OPEN_ANSWERS: Final = 2000
"""in the object that is written anew (some 100 kB)"""
_DELETE_AT_ONCE: Final = 50
_LARGEST_BYTES: Final = 256 << 20


class _Published(msgspec.Struct, frozen=True):
    """What a life of a replica has published of the stage that history entry `entry` began: `first` answers are in objects that
    never change, `answers` follow."""

    replica: str
    entry: int
    first: int
    answers: list[Observation]
    has_ended: bool
    token: str


_published = msgspec.json.Decoder(_Published)
_answers = msgspec.json.Decoder(list[Observation])


class AnswerPublisher:
    """One life of one replica. Its methods wait for the network; one thread at a time calls them."""

    def __init__(self, objects: Objects, experiment: str, replica: str) -> None:
        self._objects, self._replica = objects, replica
        self._folder = f"state/canary/{experiment}"
        self._life = f"{replica}~{secrets.token_hex(4)}"
        self._entry: int | None = None
        self._first = 0
        self._open: list[Observation] = []
        self._earlier: set[str] = set()

    def publish(self, entry: int, answers: Callable[[], Iterable[Observation]]) -> None:
        """Publish what is new. Where it fails, the next call publishes it.

        Args:
            entry: of the stage.
            answers: gives the answers of this stage that ended since the last call.

        Raises:
            StorageError: where the storage cannot be reached.
        """
        if entry != self._entry:
            self._earlier = self._published_before(entry)
            self._entry, self._first, self._open = entry, 0, []
        self._open += [seen for seen in answers() if seen.request_id not in self._earlier]
        while len(self._open) > _OPEN_ANSWERS:
            full = self._open[:_OPEN_ANSWERS]
            self._objects.put(_full_key(self._folder, entry, self._life, self._first), _compressed(full))
            self._first += _OPEN_ANSWERS
            del self._open[:_OPEN_ANSWERS]
        self._write(has_ended=False)

    def close(self) -> None:
        """The clean end: this replica's silence is none. Raises StorageError."""
        if self._entry is not None:
            self._write(has_ended=True)

    def _write(self, *, has_ended: bool) -> None:
        assert self._entry is not None
        published = _Published(self._replica, self._entry, self._first, self._open, has_ended, secrets.token_hex(8))
        self._objects.put(f"{self._folder}/replicas/{self._life}", _compressed(published))

    def _published_before(self, entry: int) -> set[str]:
        """Request ids that earlier lives of this replica have published of the stage."""
        own = f"{self._replica}~"
        found: set[str] = set()
        for one in self._objects.list(_stage_folder(self._folder, entry)):
            if one.key.rpartition("/")[2].startswith(own):
                found |= {seen.request_id for seen in _read_full(self._objects, one.key)}
        for one in self._objects.list(f"{self._folder}/replicas"):
            if one.key.rpartition("/")[2].startswith(own):
                before = _read_published(self._objects, one.key)
                if before is not None and before.entry == entry:
                    found |= {seen.request_id for seen in before.answers}
        return found


class SharedAnswers:
    """The controller's source: the answers that all replicas have published of the present stage."""

    def __init__(self, objects: Objects, experiment: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._objects, self._clock = objects, clock
        self._folder = f"state/canary/{experiment}"
        self._n_read: dict[str, int] = {}
        """life → answers of the present stage that were read"""
        self._versions: dict[str, tuple[str, float]] = {}
        """life → (version of its object, when that was first seen)"""
        self._lives: dict[str, _Published] = {}
        self._garbage: list[str] = []

    def begin(self, state: CanaryState) -> list[Observation]:
        garbage = [
            one.key
            for one in self._objects.list(f"{self._folder}/answers")
            if int(one.key.split("/")[-2]) < state.entry
        ]
        for life, published in list(self._lives.items()):
            if published.entry < state.entry and (published.has_ended or self._is_silent(life)):
                garbage.append(f"{self._folder}/replicas/{life}")
                del self._lives[life], self._versions[life]
        self._garbage = garbage
        self._n_read.clear()
        self._versions = {life: ("", at) for life, (_, at) in self._versions.items()}  # all are read again
        return self.new(state)

    def new(self, state: CanaryState) -> list[Observation]:
        found: list[Observation] = []
        n_read = dict(self._n_read)
        for one in list(self._objects.list(f"{self._folder}/replicas")):
            life = one.key.rpartition("/")[2]
            if one.version == self._versions.get(life, ("", 0.0))[0]:
                continue
            published = _read_published(self._objects, one.key)
            if published is None:
                continue
            found += self._unread(life, published, state.entry, n_read)
            self._lives[life] = published
            self._versions[life] = (one.version, self._clock())
        self._n_read = n_read
        self._delete_some()
        return found

    def silent(self) -> list[str]:
        """Names of replicas that have not been heard of for `SILENT_S`, by this process's clock, and did not end cleanly."""
        heard = {one.replica for life, one in self._lives.items() if one.has_ended or not self._is_silent(life)}
        return sorted({one.replica for one in self._lives.values()} - heard)

    def _is_silent(self, life: str) -> bool:
        return self._clock() - self._versions[life][1] >= SILENT_S

    def _unread(self, life: str, published: _Published, entry: int, n_read: dict[str, int]) -> list[Observation]:
        """Answers of the stage that were not read yet."""
        if published.entry != entry:
            return []
        found: list[Observation] = []
        n = n_read.get(life, 0)
        while n < published.first:
            begins = n - n % _OPEN_ANSWERS
            full = _read_full(self._objects, _full_key(self._folder, entry, life, begins))
            found += full[n - begins :]
            n = begins + _OPEN_ANSWERS
        found += published.answers[n - published.first :]
        n_read[life] = max(n, published.first + len(published.answers))
        return found

    def _delete_some(self) -> None:
        """Answers of earlier stages: a few at each look, so that none takes long."""
        self._objects.delete(self._garbage[:_DELETE_AT_ONCE])
        del self._garbage[:_DELETE_AT_ONCE]


def _stage_folder(folder: str, entry: int) -> str:
    return f"{folder}/answers/{entry:08d}"


def _full_key(folder: str, entry: int, life: str, first: int) -> str:
    return f"{_stage_folder(folder, entry)}/{life}~{first:010d}"


def _compressed(value: object) -> bytes:
    return zstandard.compress(msgspec.json.encode(value))


def _read_full(objects: Objects, key: str) -> list[Observation]:
    """Empty where the object is gone: its stage is over."""
    found = objects.get(key)
    return [] if found is None else _answers.decode(zstandard.decompress(found.data, _LARGEST_BYTES))


def _read_published(objects: Objects, key: str) -> _Published | None:
    found = objects.get(key)
    return None if found is None else _published.decode(zstandard.decompress(found.data, _LARGEST_BYTES))
