"""The log of commits: which files a store on object storage holds, as numbered objects that are written once.

Commit N is the object `log/N.json`, created only if there is none: one conditional put takes all of its changes into effect, or
none, and of two writers one is first. (The transaction log of Delta Lake, Armbrust et al., VLDB 2020, is made alike.) Files are
immutable objects that were written before; what no commit names does not count.

A commit names the leases under which it was made. Who takes a lease commits its number first, so that a holder from before, whose
next commit must then follow that one, sees the higher number and is refused.

Each commit names the token of the one before it. A store that was emptied, replaced or restored from an older backup is
recognised by that by every reader that has seen more of it.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec

from evalpipe.errors import DataError
from evalpipe.objects.client import KeyExistsError, Objects
from evalpipe.objects.lease import LeaseLostError

VERSION: Final = 1
CHECKPOINT_EVERY: Final = 50
"""commits between two checkpoints: what a new reader has to read besides one"""
KEPT: Final = timedelta(days=1)
"""How long commits before a checkpoint stay: a writer that was suspended for less cannot take the number of one that is gone."""
_NOT_YET: Final = 0


class StoredFile(msgspec.Struct, frozen=True):
    """A file of the store: the object that holds it, its size in bytes, and the CRC-32 of its bytes (8 hex digits)."""

    key: str
    size: int
    crc32: str


class Removed(msgspec.Struct, frozen=True):
    """An object that no file is any more. It is deleted from `at` on: readers of the state before may still need it."""

    key: str
    at: datetime


class Commit(msgspec.Struct, frozen=True):
    """Changes that take effect together. `leases`: name → number of those under which they were made. `token`:
    unique, so that a commit whose answer was lost is recognised."""

    number: int
    by: str
    at: datetime
    token: str
    add: dict[str, StoredFile] = {}
    remove: tuple[str, ...] = ()
    leases: dict[str, int] = {}
    keep_removed_s: float = 0.0
    deleted: tuple[str, ...] = ()
    """keys of removed objects that were deleted"""
    follows: str = ""
    """the token of the commit before"""
    version: int = VERSION


class State(msgspec.Struct, frozen=True):
    """The store after a commit. `files`: path → file. `removed`: objects to delete. `token`: the commit's."""

    number: int = _NOT_YET
    files: dict[str, StoredFile] = {}
    leases: dict[str, int] = {}
    removed: tuple[Removed, ...] = ()
    token: str = ""
    version: int = VERSION

    def after(self, commit: Commit) -> State:
        """The state after the next commit. Raises ValueError where it is not the next one."""
        if commit.number != self.number + 1 or not self.is_before(commit):
            raise ValueError(f"commit {commit.number} does not follow {self.number}")
        files = dict(self.files)
        gone = [files.pop(path) for path in commit.remove if path in files]
        gone += [files[path] for path, file in commit.add.items() if path in files and files[path].key != file.key]
        files.update(commit.add)
        at = commit.at + timedelta(seconds=commit.keep_removed_s)
        deleted = set(commit.deleted)
        removed = [one for one in self.removed if one.key not in deleted]
        added = {file.key for file in commit.add.values()}
        removed = [one for one in removed if one.key not in added] + [Removed(file.key, at) for file in gone]
        leases = {**self.leases}
        for name, number in commit.leases.items():
            leases[name] = max(number, leases.get(name, 0))
        return State(commit.number, files, leases, tuple(removed), commit.token)

    def is_before(self, commit: Commit) -> bool:
        """Whether a commit was made after this state, as far as both name the commit of it."""
        return self.token == commit.follows or not (self.token and commit.follows)

    def refuses(self, leases: Mapping[str, int]) -> str | None:
        """The lease that a later holder has taken, of those under which a commit is to be made; None: it may be made."""
        return next((name for name, number in leases.items() if number < self.leases.get(name, 0)), None)


class CommitLog:
    """The log of one store, followed from a state that this process has. Not safe to use from several threads."""

    def __init__(self, objects: Objects, state: State | None = None, *, by: str = "") -> None:
        """Args:
        objects: of the store.
        state: that is known already; None: none.
        by: host, process and command, for the log's readers.
        """
        self.state = state or State()
        self._objects = objects
        self._by = by

    def follow(self) -> State:
        """Read on to the newest commit.

        Raises:
            DataError: where the log is damaged, or a newer version wrote it.
            StorageError: where the storage cannot be reached.
        """
        if self.state.number == _NOT_YET:
            self._from_checkpoint()
        while True:
            # Of a state that was seen, its own commit has to be there, too, or a newer one.
            keys = [one.key for one in self._objects.list("log", after=_key(max(_NOT_YET, self.state.number - 1)))]
            if self.state.number != _NOT_YET:
                if not keys:
                    raise DataError(self._is_another())
                if keys[0] == _key(self.state.number):
                    del keys[0]
            if keys and keys[0] != _key(self.state.number + 1):
                if not self._from_checkpoint():
                    raise DataError(
                        f"{self._objects.address}: commit {self.state.number + 1} of the log is gone: {keys[0]} follows; restore "
                        "it from a backup"
                    )
                continue
            while keys and keys[0] == _key(self.state.number + 1):
                commit = self._read(keys.pop(0))
                if not self.state.is_before(commit):
                    raise DataError(self._is_another())
                self.state = self.state.after(commit)
            if not keys:
                return self.state

    def _is_another(self) -> str:
        return (
            f"{self._objects.address} no longer holds commit {self.state.number}, which this machine has seen: the store was "
            "emptied, replaced or restored from an older backup. Put it back, or go on with what is there now: move this "
            "machine's data folder away, except its spool/"
        )

    def commit(
        self,
        prepare: Callable[[State], tuple[Mapping[str, StoredFile], tuple[str, ...]]],
        *,
        leases: Mapping[str, int],
        keep_removed_s: float = 0.0,
        deleted: tuple[str, ...] = (),
    ) -> Commit:
        """Make a commit the next one of the log.

        Args:
            prepare: files to add, and paths to remove, for the state that the commit will follow; called anew for each state
                that another writer has made meanwhile, and may raise.
            leases: name → number of those that are held for it.
            keep_removed_s: how long the objects of removed files stay, in seconds.
            deleted: keys of removed objects that are gone.

        Raises:
            LeaseLostError: where one of the leases was taken by another process.
        """
        token = secrets.token_hex(8)
        while True:
            lost = self.state.refuses(leases)
            if lost is not None:
                raise LeaseLostError(
                    f"another process has taken the lease {lost!r} of {self._objects.address}: what this one did since "
                    "its last commit does not count; run it again"
                )
            add, remove = prepare(self.state)
            commit = Commit(
                number=self.state.number + 1,
                by=self._by,
                at=datetime.now(UTC),
                token=token,
                add=dict(add),
                remove=remove,
                leases=dict(leases),
                keep_removed_s=keep_removed_s,
                deleted=deleted,
                follows=self.state.token,
            )
            try:
                self._objects.create(_key(commit.number), msgspec.json.encode(commit))
            except KeyExistsError:
                self.follow()
                continue
            self.state = self.state.after(commit)
            if commit.number % CHECKPOINT_EVERY == 0:
                self._write_checkpoint()
            return commit

    def _read(self, key: str) -> Commit:
        found = self._objects.get(key)
        if found is None:
            raise DataError(f"{self._objects.address}: {key} is gone: restore it from a backup")
        try:
            commit = msgspec.json.decode(found.data, type=Commit)
        except msgspec.DecodeError as error:
            raise DataError(
                f"{self._objects.address}: {key} is no commit ({error}): restore it from a backup"
            ) from error
        _check_version(commit.version, self._objects, key)
        return commit

    def _from_checkpoint(self) -> bool:
        """Go to the newest checkpoint; False where none is newer than the state."""
        keys = [one.key for one in self._objects.list("checkpoints")]
        for key in reversed(keys):
            found = self._objects.get(key)
            if found is None:
                continue
            try:
                state = msgspec.json.decode(found.data, type=State)
            except msgspec.DecodeError:
                continue
            _check_version(state.version, self._objects, key)
            if state.number <= self.state.number:
                return False
            self.state = state
            return True
        return False

    def _write_checkpoint(self) -> None:
        """Write the state, then delete old commits before it: a reader that is behind them reads the checkpoint."""
        self._objects.put(f"checkpoints/{self.state.number:012d}.json", msgspec.json.encode(self.state))
        self._objects.delete([one.key for one in self._objects.list("checkpoints")][:-2])
        commits = list(self._objects.list("log"))
        oldest = commits[-1].modified - KEPT  # both by the storage's clock
        limit = _key(self.state.number)
        self._objects.delete(one.key for one in commits if one.modified < oldest and one.key < limit)


def _key(number: int) -> str:
    return f"log/{number:012d}.json"


def _check_version(version: int, objects: Objects, key: str) -> None:
    if version > VERSION:
        raise DataError(
            f"{objects.address}: {key} has version {version}, this evalpipe reads version {VERSION}: use a newer one"
        )
