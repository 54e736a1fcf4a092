"""A folder as the working copy of a store on object storage: it follows the store, and its changes are committed to it.

Commands read and write files of a data folder as they do on one machine. Where the data are on object storage, that folder is a
working copy: `pull` brings it to the store's newest state, `work` holds a lease, begins from that state and commits at its end
what changed in the files that belong to the lease (`owner_of`), in one commit. What a killed process had changed without a
commit is taken back, whole: what it was made from (the collector's log, a journal) is still there. Files that hold what nothing
else does (`is_kept`: journals) stay as they are, and are committed by the next work.

Bytes are checked against the CRC-32 of the commit when they arrive.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec
from tqdm import tqdm

from evalpipe.errors import ConfigError, EvalpipeError, WorkspaceBusyError
from evalpipe.files import is_locked, make_folder, take_lock, write_synced
from evalpipe.objects.client import Objects, StorageError, check_conditional_writes
from evalpipe.objects.lease import Lease
from evalpipe.objects.log import CommitLog, State, StoredFile

INDEX: Final = ".working-copy.json"
LOCK: Final = ".working-copy.lock"
TTL_S: Final = 15.0
"""a process that is silent for so long has lost its leases (seconds)"""
KEEP_REMOVED_S: Final = 600.0
"""how long the object of a removed file stays, for readers that began before (seconds)"""
ORPHAN_AGE: Final = timedelta(days=1)
"""the age from which an object that no commit names is not of a commit in the making"""
_NO_FILES = ("log/", "checkpoints/", "leases/", "probe/", "state/")
PARALLEL: Final = 16
"""transfers at once"""
_READ_BYTES = 1 << 20
_SHOWN_BYTES = 8 << 20
"""transfers from this size on have a progress bar"""


class Seen(msgspec.Struct, frozen=True, array_like=True):
    """A file of the working copy when it was last the same as the store's: by its size, time of change and inode."""

    key: str
    size: int
    changed_ns: int
    inode: int


class _Index(msgspec.Struct):
    """What the working copy is of, the state it was brought to, and its files then."""

    url: str
    copy: str
    state: State = State()
    seen: dict[str, Seen] = {}


class ConflictError(EvalpipeError):
    """Another machine changed the same file without the lease that both needed."""


class WorkingCopy:
    """The working copy of one store in one folder. Several processes may use it at once; within one, several threads."""

    def __init__(
        self,
        folder: Path,
        objects: Objects,
        *,
        owner_of: Callable[[str], str | None],
        is_kept: Callable[[str], bool] = lambda path: False,
        command: str = "",
        before_removal: Callable[[], None] = lambda: None,
        ttl_s: float = TTL_S,
        lease_objects: Objects | None = None,
    ) -> None:
        """Args:
        folder: of the files; made where there is none.
        objects: of the store.
        owner_of: the lease that a file belongs to, by its path below the folder with "/"; None: it is this machine's own.
        is_kept: whether a file with such a path, changed by a process that has ended, is kept for the next commit.
        command: for messages, such as "evalpipe judge".
        before_removal: called before files are removed that readers of this machine may have open.
        ttl_s: of leases, in seconds.
        lease_objects: with a shorter time until it gives up; None: `objects`.

        Raises:
            ConfigError: where the folder is of another store, or holds files that are in none.
        """
        self.folder, self.objects, self.url = folder, objects, objects.address
        self._owner_of, self._is_kept, self._command, self._before_removal = owner_of, is_kept, command, before_removal
        self._ttl_s = ttl_s
        self._lease_objects = lease_objects or objects
        self._lock = threading.RLock()
        self._leases: dict[str, Lease] = {}
        make_folder(folder, mode=0o700)
        with self._exclusive() as index:
            self.copy = index.copy

    # Reading.

    def pull(self) -> None:
        """Bring the folder to the newest state of the store.

        Raises:
            ConfigError: where the storage does not honour conditional writes; looked at while the store is empty.
            StorageError: where it cannot be reached, or holds other bytes than were written.
            DataError: where the log is damaged, or a newer version wrote it.
            OSError: where the disk cannot be written.
        """
        with self._exclusive() as index:
            self._pull(index, CommitLog(self.objects, index.state))

    def check(self) -> None:
        """Check that the store is the one the folder was brought to, without bringing files here. Raises as `pull`."""
        with self._exclusive() as index:
            CommitLog(self.objects, index.state).follow()

    def _pull(self, index: _Index, log: CommitLog, *, begins: str | None = None) -> None:
        """`begins`: the lease of a work that begins, whose files nobody else is changing here."""
        while True:
            state = log.follow()
            if not state.number:
                check_conditional_writes(self.objects)
            self._undo(state, index, begins)
            wanted = {
                path: file
                for path, file in state.files.items()
                if path not in index.seen or index.seen[path].key != file.key
            }
            missing = self._fetch(wanted, index)
            if not missing:
                break
            if log.follow().number == state.number:  # not removed by a later commit
                raise StorageError(
                    f"{self.url}: the object of {min(missing)} is gone, though no commit removed it: restore it from a backup"
                )
        gone = [path for path in index.seen if path not in state.files]
        if gone:
            self._before_removal()
        for path in gone:
            (self.folder / path).unlink(missing_ok=True)
            del index.seen[path]
        index.state = state

    def _undo(self, state: State, index: _Index, begins: str | None) -> None:
        """Take back what ended processes changed without a commit, all of it: a part alone would be no state that ever was.

        Files of their own writers' (`is_kept`) stay: they hold what nothing else does.
        """
        present: set[str] = set()
        at_work: dict[str, bool] = {}

        def is_at_work(name: str) -> bool:
            if name not in at_work:
                at_work[name] = name != begins and bool(is_locked(self._lock_of(name)))
            return at_work[name]

        for path, found in _files_below(self.folder):
            name = self._owner_of(path)
            if name is None:
                continue
            present.add(path)
            if is_at_work(name) or _is_as_seen(found, index.seen.get(path)) or self._is_kept(path):
                continue
            file = state.files.get(path)
            if file is not None and _is_same(self.folder / path, file):
                index.seen[path] = _seen(self.folder / path, file.key)
            elif path in index.seen or file is not None:
                index.seen.pop(path, None)
            if file is None:
                (self.folder / path).unlink(missing_ok=True)
        for path in [path for path in index.seen if path in state.files and path not in present]:
            if not is_at_work(self._owner_of(path) or ""):
                del index.seen[path]

    def _fetch(self, wanted: Mapping[str, StoredFile], index: _Index) -> list[str]:
        """Bring these files here; the paths whose objects are gone."""
        missing: list[str] = []
        folders = {(self.folder / path).parent for path in wanted}
        for folder in folders:
            make_folder(folder)

        def fetch(path: str) -> None:
            file, place = wanted[path], self.folder / path
            is_own = self._is_kept(path) and place.exists() and not _is_as_seen(place.stat(), index.seen.get(path))
            if is_own and not _is_same(place, file):  # its writer ended after a commit of it: it has gone on since
                index.seen[path] = Seen(file.key, -1, 0, 0)
            elif _is_same(place, file) or self._download(file, place):
                index.seen[path] = _seen(place, file.key)
            else:
                missing.append(path)

        self._in_parallel(fetch, {path: file.size for path, file in wanted.items()}, "pull")
        return missing

    def _download(self, file: StoredFile, place: Path) -> bool:
        part = place.with_name(f".{place.name}.{os.getpid()}.tmp")
        try:
            for is_last in (False, True):
                if not self.objects.download(file.key, part):
                    return False
                part.chmod(0o600)
                if _is_same(part, file):
                    part.replace(place)
                    return True
                if is_last:
                    raise StorageError(
                        f"{self.url}: {file.key} does not hold what was written to it ({part.stat().st_size} bytes, {file.size} "
                        "were written): restore it from a backup"
                    )
        finally:
            part.unlink(missing_ok=True)
        return False

    # Writing.

    @contextmanager
    def work(self, name: str, *, waits: bool = True, erases: bool = False) -> Iterator[None]:
        """Hold the lease `name`: begin from the store's newest state, commit at the end what changed in its files, also after an
        error. The caller holds this machine's own lock of the same work.

        Args:
            name: of the lease, as `owner_of` gives it.
            waits: wait for another machine that holds it.
            erases: the objects of removed files are deleted at once.

        Raises:
            WorkspaceBusyError: where another machine holds it, without `waits`.
            LeaseLostError: where this machine was silent for too long: what it had not committed does not count.
        """
        handle = os.open(self._lock_of(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            take_lock(handle)
            lease = self._take(name, waits=waits)
            self._leases[name] = lease
            try:
                with self._exclusive() as index:
                    log = CommitLog(self.objects, index.state, by=self._by())
                    log.follow()
                    log.commit(lambda state: ({}, ()), leases={name: lease.number})
                    self._pull(index, log, begins=name)
                try:
                    yield
                finally:
                    self.commit(name, erases=erases)
            finally:
                del self._leases[name]
                lease.release()
        finally:
            os.close(handle)

    def commit(self, name: str, *, erases: bool = False) -> bool:
        """Commit what changed in the files of a lease that is held. Whether anything had.

        Raises:
            LeaseLostError: where another process has taken it.
            ConflictError: where a file was changed by a process without the lease.
        """
        lease = self._leases[name]
        with self._exclusive() as index:
            log = CommitLog(self.objects, index.state, by=self._by())
            stored = log.follow().files
            changed, removed = self._changes(name, index)
            removed = tuple(path for path in removed if path in stored)
            add: dict[str, StoredFile] = {}
            seen: dict[str, Seen] = {}
            for path, (file, entry) in self._upload(changed, stored, index).items():
                seen[path] = entry
                if file is not stored.get(path):
                    add[path] = file
            if not add and not removed:
                index.seen.update(seen)
                return False

            def prepare(state: State) -> tuple[Mapping[str, StoredFile], tuple[str, ...]]:
                for path in (*add, *removed):
                    file, before = state.files.get(path), index.seen.get(path)
                    if (file and file.key) != (before and before.key):
                        raise ConflictError(
                            f"{self.url}: {path} was changed by another machine meanwhile: run it again"
                        )
                return add, removed

            due = self._delete_due(log.state)
            keep_s = 0.0 if erases else KEEP_REMOVED_S
            done = log.commit(prepare, leases={name: lease.number}, keep_removed_s=keep_s, deleted=due)
            index.seen.update(seen)
            for path in removed:
                del index.seen[path]
            if done.number == index.state.number + 1:  # else the files of others are still to come, by the next `pull`
                index.state = log.state
            if erases:
                self._delete_due(log.state)
        return True

    def sweep(self) -> int:
        """Delete objects that no commit names: of writers that ended before their commit, more than `ORPHAN_AGE` ago.

        Returns:
            Their number.
        """
        with self._exclusive() as index:
            state = CommitLog(self.objects, index.state).follow()
        named = {file.key for file in state.files.values()} | {one.key for one in state.removed}
        objects = [one for one in self.objects.list("") if not one.key.startswith(_NO_FILES)]
        newest = max((one.modified for one in objects), default=datetime.now(UTC))
        orphans = [one.key for one in objects if one.key not in named and one.modified < newest - ORPHAN_AGE]
        self.objects.delete(orphans)
        return len(orphans)

    def _take(self, name: str, *, waits: bool) -> Lease:
        def say(owner: str) -> None:
            if waits:
                sys.stderr.write(f"evalpipe: {_shown(owner)} holds {name!r} of {self.url}: waiting for it\n")

        lease = Lease.take(
            self._lease_objects,
            name,
            self._by(),
            self._ttl_s,
            is_own=lambda owner: owner.endswith(f" {self.copy}"),
            waits=waits,
            waiting=say,
        )
        if lease is None:
            raise WorkspaceBusyError(
                f"another `{self._command or 'evalpipe'}` on another machine is at this ({name} of {self.url}): wait for it, or "
                "stop it there with Ctrl-C; nothing was sent"
            )
        return lease

    def _lock_of(self, name: str) -> Path:
        """Locked by the process of this machine that holds the lease."""
        return self.folder / f".lease-{name.replace('/', '~')}.lock"

    def _by(self) -> str:
        return f"{socket.gethostname()} process {os.getpid()} {self._command} {self.copy}"

    def _changes(self, name: str, index: _Index) -> tuple[list[str], tuple[str, ...]]:
        """Paths of the lease's files that are new or changed, and of those that are gone."""
        changed: list[str] = []
        present: set[str] = set()
        for path, found in _files_below(self.folder):
            if self._owner_of(path) != name:
                continue
            present.add(path)
            if not _is_as_seen(found, index.seen.get(path)):
                changed.append(path)
        gone = [path for path in index.seen if path not in present and self._owner_of(path) == name]
        return sorted(changed), tuple(sorted(gone))

    def _upload(
        self, paths: Iterable[str], stored: Mapping[str, StoredFile], index: _Index
    ) -> dict[str, tuple[StoredFile, Seen]]:
        """Write these files as objects; one that holds what is stored already (only its times changed) is not written."""
        sizes: dict[str, int] = {}
        for path in paths:
            with suppress(FileNotFoundError):  # a file in the making that its writer has renamed meanwhile
                sizes[path] = (self.folder / path).stat().st_size
        done: dict[str, tuple[StoredFile, Seen]] = {}

        def upload(path: str) -> None:
            place, before = self.folder / path, stored.get(path)
            if (
                before is not None
                and path in index.seen
                and index.seen[path].key == before.key
                and _is_same(place, before)
            ):
                done[path] = before, _seen(place, before.key)
                return
            key = _key_of(path)
            entry = _seen(place, key)
            if key == path:
                file = StoredFile(key, entry.size, crc32_of(place))
                self.objects.upload(key, place)
            else:  # it may be appended to meanwhile: these bytes, without the space a journal reserves at its end
                data = place.read_bytes().rstrip(b"\0")
                file = StoredFile(key, len(data), f"{zlib.crc32(data):08x}")
                self.objects.put(key, data)
            done[path] = file, entry

        self._in_parallel(upload, sizes, "push")
        return done

    def _delete_due(self, state: State) -> tuple[str, ...]:
        """Delete removed objects whose time has come; their keys."""
        now = datetime.now(UTC)
        due = tuple(one.key for one in state.removed if one.at <= now)
        self.objects.delete(due)
        return due

    def _in_parallel(self, do: Callable[[str], None], sizes: Mapping[str, int], doing: str) -> None:
        n_bytes = sum(sizes.values())
        bar = tqdm(
            total=n_bytes,
            unit="B",
            unit_scale=True,
            desc=doing,
            file=sys.stderr,
            disable=n_bytes < _SHOWN_BYTES or not sys.stderr.isatty(),
        )
        with bar, ThreadPoolExecutor(min(PARALLEL, max(1, len(sizes)))) as pool:
            for path, _ in zip(sizes, pool.map(do, sizes), strict=True):
                bar.update(sizes[path])

    @contextmanager
    def _exclusive(self) -> Iterator[_Index]:
        """The index, which no other process or thread changes meanwhile; it is written at the end, also after an error."""
        with self._lock:
            handle = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                take_lock(handle)
                index, before = self._read_index()
                try:
                    yield index
                finally:
                    after = msgspec.json.encode(index)
                    if after != before:
                        write_synced(self.folder / INDEX, after)
            finally:
                os.close(handle)

    def _read_index(self) -> tuple[_Index, bytes]:
        try:
            data = (self.folder / INDEX).read_bytes()
            index = msgspec.json.decode(data, type=_Index)
        except FileNotFoundError:
            own = next((path for path, _ in _files_below(self.folder) if self._owner_of(path) is not None), None)
            if own is not None:
                raise ConfigError(
                    f"{self.folder} holds data that are not from {self.url} ({own}): move the folder away, or take `data` out of "
                    "evalpipe.toml to go on with it"
                ) from None
            return _Index(self.url, secrets.token_hex(4)), b""
        except msgspec.DecodeError as error:
            raise ConfigError(
                f"{self.folder / INDEX} is damaged ({error}): move the folder {self.folder} away, it is fetched again"
            ) from error
        if index.url != self.url:
            raise ConfigError(
                f"{self.folder} is the working copy of {index.url}, not of {self.url}: name another folder with --data, or move "
                "this one away"
            )
        return index, data


def crc32_of(path: Path) -> str:
    """The CRC-32 of a file's bytes, 8 hex digits. Raises OSError."""
    found = 0
    with path.open("rb") as file:
        while piece := file.read(_READ_BYTES):
            found = zlib.crc32(piece, found)
    return f"{found:08x}"


def _is_same(path: Path, file: StoredFile) -> bool:
    try:
        return path.stat().st_size == file.size and crc32_of(path) == file.crc32
    except FileNotFoundError:
        return False


def _is_as_seen(state: os.stat_result, seen: Seen | None) -> bool:
    return seen is not None and (seen.size, seen.changed_ns, seen.inode) == (
        state.st_size,
        state.st_mtime_ns,
        state.st_ino,
    )


def _seen(path: Path, key: str) -> Seen:
    state = path.stat()
    return Seen(key, state.st_size, state.st_mtime_ns, state.st_ino)


def _key_of(path: str) -> str:
    """The object of a file: Parquet files have unique names and keep them; other files may change, each version is an object."""
    return path if path.endswith(".parquet") else f"files/{path}/{secrets.token_hex(8)}"


def _files_below(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """(path with "/" below the folder, state) of each file; one that is gone meanwhile is left out."""
    waiting = [("", os.fspath(folder))]
    while waiting:
        prefix, place = waiting.pop()
        try:
            entries = list(os.scandir(place))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                waiting.append((f"{prefix}{entry.name}/", entry.path))
                continue
            with suppress(FileNotFoundError):
                yield f"{prefix}{entry.name}", entry.stat()


def _shown(owner: str) -> str:
    return owner.rpartition(" ")[0]
