"""Objects of a bucket (S3, Google Cloud Storage, Azure): whole objects, conditional puts, retries that recognise own writes.

A put whose answer was lost may have worked. Every conditional put is therefore looked up after an unclear end: an object that
holds these very bytes is this put's own work. For this the bytes of each put must be unique: writers add a random token.

Conditional writes: S3 `If-None-Match: *` and `If-Match: ETag`; the other vendors' equivalents through the same library (obstore).
"""

from __future__ import annotations

import random
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from evalpipe.errors import ConfigError, EvalpipeError
from evalpipe.objects.access import check_address, endpoints_of, missing_bucket, missing_credentials, reason

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore

Result = TypeVar("Result")

_BETWEEN = "\n"
FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 5.0
GIVE_UP_AFTER_S = 60.0
"""How long a request is repeated while the storage answers with errors or not at all."""
CREDENTIALS_AFTER_S = 10.0
"""How long it is repeated where the credentials of the machine's role cannot be had: its service may be starting."""
SAID_FROM_PAUSE_S = 1.0
"""From a pause of this length on (six failures) a line says what fails."""
LEAST_TIMEOUT_S = 1.0
"""A request that is given up soon may still take so long."""
REQUEST_TIMEOUT_S = 30.0
"""The longest pause between two bytes of an answer, and the time for a connection."""


class StorageError(EvalpipeError):
    """The object storage refused a request, or could not be reached for longer than requests are repeated."""


class KeyExistsError(Exception):
    """`create` found another object under the key."""


class ChangedError(Exception):
    """`replace` found another version than the expected one: somebody else was first."""


@dataclass(frozen=True, slots=True)
class Found:
    """An object: its bytes and its version (the ETag), by which `replace` recognises it."""

    data: bytes
    version: str


@dataclass(frozen=True, slots=True)
class Listed:
    """An object in a listing. `key` without the store's own prefix; `size` in bytes; `modified` by the storage's clock."""

    key: str
    size: int
    version: str
    modified: datetime


def open_objects(url: str, *, give_up_after_s: float = GIVE_UP_AFTER_S) -> Objects:
    """The objects below an address, with the credentials of the vendor's usual chain (environment, files, the machine's role).

    Args:
        url: `s3://bucket/prefix`; also gs:// and az://.
        give_up_after_s: how long a failing request is repeated, in seconds; one that is not answered ends by then, too.

    Raises:
        ConfigError: for an address, or a server named by the environment, that is none; or where the package obstore is not
            installed.
    """
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ModuleNotFoundError as error:
        raise ConfigError(f"data = {url!r} needs the package obstore: pip install 'evalpipe[s3]'") from error
    address = check_address(url)
    endpoints = endpoints_of(address)
    options: ClientConfig = {
        "timeout": timedelta(seconds=min(REQUEST_TIMEOUT_S, max(LEAST_TIMEOUT_S, give_up_after_s))),
        "connect_timeout": timedelta(seconds=min(5.0, max(LEAST_TIMEOUT_S, give_up_after_s))),
        "allow_http": any(one.startswith("http://") for one in endpoints),
    }
    try:
        # Requests are repeated here, not in the library: only the caller's loop can recognise its own conditional put.
        store = from_url(address, client_options=options, retry_config={"max_retries": 0})
    except (BaseError, ValueError) as error:
        raise ConfigError(f"data = {url!r}: {missing_credentials(error, address) or reason(error)}") from error
    return Objects(store, address, give_up_after_s=give_up_after_s)


class Objects:
    """The objects below one address. Safe to use from several threads; every method waits for the network."""

    def __init__(
        self,
        store: ObjectStore,
        address: str,
        *,
        give_up_after_s: float = GIVE_UP_AFTER_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Args:
        store: the library's store; keys are below its prefix.
        address: for messages; it holds no credentials.
        give_up_after_s: how long a failing request is repeated, in seconds.
        sleep: waits between two attempts.
        """
        self.address = address
        self._store = store
        self._give_up_after_s = give_up_after_s
        self._sleep = sleep
        self._has_said = False

    def get(self, key: str) -> Found | None:
        """The object; None where there is none."""
        return self._repeated(lambda: self._read(key), f"reading {key}")

    def download(self, key: str, path: Path) -> bool:
        """Write the object into a file, which is replaced; False where there is no such object. Raises OSError for the file."""
        import obstore

        def ask() -> bool:
            try:
                answer = obstore.get(self._store, key)
            except FileNotFoundError as error:
                self._check_bucket(error)
                return False
            with path.open("wb") as file:
                for piece in answer:
                    file.write(piece)
            return True

        return self._repeated(ask, f"reading {key}")

    def put(self, key: str, data: bytes) -> None:
        """Write the object, whatever is there. Only for keys that one writer has for itself."""
        import obstore

        self._repeated(lambda: obstore.put(self._store, key, data), f"writing {key}")

    def upload(self, key: str, path: Path) -> None:
        """`put` of a file, in parts where it is large. Raises OSError for the file."""
        import obstore

        self._repeated(lambda: obstore.put(self._store, key, path), f"writing {key}")

    def create(self, key: str, data: bytes) -> str:
        """Write an object where there is none; its version.

        Args:
            key: of the object.
            data: unique to this put, so that it is recognised.

        Raises:
            KeyExistsError: where there is another one.
        """
        return self._conditional(key, data, None)

    def replace(self, key: str, data: bytes, version: str) -> str:
        """Write the object if it still has this version; its new version.

        Args:
            key: of the object.
            data: unique to this put, so that it is recognised.
            version: that the object must have.

        Raises:
            ChangedError: where it has another version, or is gone.
        """
        return self._conditional(key, data, version)

    def list(self, prefix: str, *, after: str | None = None) -> Iterator[Listed]:
        """The objects whose keys begin with `prefix` (whole folders), sorted by key; only keys that sort behind `after`."""
        import obstore

        def ask() -> list[Listed]:
            pages = obstore.list(self._store, prefix, offset=after, chunk_size=1000)
            return [
                Listed(one["path"], one["size"], _version_of(one), one["last_modified"])
                for page in pages
                for one in page
                if after is None or one["path"] > after  # Azure's listing begins with the named key, Azurite's anywhere
            ]  # whole: an error in the middle begins anew

        yield from sorted(self._repeated(ask, f"listing {prefix}"), key=lambda one: one.key)

    def delete(self, keys: Iterable[str]) -> None:
        """The objects are gone; one that was gone already is no error."""
        import obstore

        def ask(key: str) -> None:
            try:
                obstore.delete(self._store, key)
            except FileNotFoundError as error:
                self._check_bucket(error)

        for key in keys:
            self._repeated(lambda key=key: ask(key), f"deleting {key}")  # type: ignore[misc]

    def _conditional(self, key: str, data: bytes, version: str | None) -> str:
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotFoundError, PreconditionError

        is_unclear = False

        def ask() -> str:
            nonlocal is_unclear
            if is_unclear:  # an attempt before this one may have worked
                found = self._read(key)
                if found is not None and found.data == data:
                    return found.version
            is_unclear = True
            try:
                mode = "create" if version is None else _update_of(version)
                done = obstore.put(self._store, key, data, mode=mode, use_multipart=False)  # type: ignore[arg-type]
                return _version_of(done)
            except (AlreadyExistsError, PreconditionError, NotFoundError, FileNotFoundError):
                found = self._read(key)
                if found is not None and found.data == data:
                    return found.version
                is_same = found is None if version is None else found is not None and found.version == version
                if is_same:  # 409: another conditional request was at work at the same moment
                    raise _UnclearError(f"a conditional request for {key} met another one") from None
                raise _RefusedError from None

        try:
            return self._repeated(ask, f"writing {key}")
        except _RefusedError:
            if version is None:
                raise KeyExistsError(key) from None
            raise ChangedError(key) from None

    def _read(self, key: str) -> Found | None:
        import obstore

        try:
            answer = obstore.get(self._store, key)
            return Found(bytes(answer.bytes()), _version_of(answer.meta))
        except FileNotFoundError as error:
            self._check_bucket(error)
            return None

    def _check_bucket(self, error: Exception) -> None:
        """Raise StorageError where it is the bucket that was not found."""
        no_bucket = missing_bucket(error, self.address)
        if no_bucket is not None:
            raise StorageError(f"{self.address}: {no_bucket}") from error

    def _repeated(self, ask: Callable[[], Result], doing: str) -> Result:
        """`ask` until it succeeds; pauses double, with full jitter
        (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).

        Raises:
            StorageError: where the request is refused for good, or fails for too long.
        """
        from obstore.exceptions import (
            BaseError,
            InvalidPathError,
            NotSupportedError,
            PermissionDeniedError,
            UnauthenticatedError,
        )

        lasting = (InvalidPathError, NotSupportedError, PermissionDeniedError, UnauthenticatedError)
        start = time.monotonic()
        pause = FIRST_PAUSE_S
        while True:
            try:
                return ask()
            except lasting as error:
                raise StorageError(f"{self.address}: {doing} was refused: {reason(error)}") from error
            except (BaseError, _UnclearError, OSError) as error:
                if isinstance(error, OSError) and error.filename is not None:  # the local file
                    raise
                self._check_repeatable(error, doing, time.monotonic() - start, pause)
            self._sleep(random.uniform(0, pause))
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _check_repeatable(self, error: Exception, doing: str, since_s: float, pause_s: float) -> None:
        """Raise StorageError where a request that has failed for `since_s` seconds is not to be repeated after a pause."""
        self._check_bucket(error)
        no_credentials = missing_credentials(error, self.address)
        until_s = self._give_up_after_s if no_credentials is None else min(self._give_up_after_s, CREDENTIALS_AFTER_S)
        if since_s + pause_s > until_s:
            why = no_credentials or f"{doing} failed for {until_s:.0f} s: {reason(error)}"
            raise StorageError(
                f"{self.address}: {why}; nothing that was committed is lost, run it again when the storage answers"
            ) from error
        if pause_s >= SAID_FROM_PAUSE_S and not self._has_said:
            self._has_said = True
            why = no_credentials or reason(error)
            sys.stderr.write(f"evalpipe: {self.address}: {doing} fails, and is repeated for {until_s:.0f} s: {why}\n")


def check_conditional_writes(objects: Objects) -> None:
    """Check that the storage honours conditional writes: without them two writers would overwrite each other's commits.

    Raises:
        ConfigError: where it does not.
        StorageError: where it cannot be reached, or refuses writing.
    """
    key = f"probe/{secrets.token_hex(8)}"
    version = objects.create(key, b"1")
    try:
        second = objects.replace(key, b"2", version)
        refusals: tuple[tuple[Callable[[], str], type[Exception]], ...] = (
            (lambda: objects.create(key, b"3"), KeyExistsError),
            (lambda: objects.replace(key, b"4", version), ChangedError),
        )
        for write, refusal in refusals:
            try:
                write()
            except refusal:
                continue
            raise ConfigError(
                f"data = {objects.address!r}: this storage overwrites an object though the request forbids it "
                "(If-None-Match, If-Match), and cannot hold a store: use S3, Google Cloud Storage, Azure, or a server that "
                "honours such conditions"
            )
        objects.replace(key, b"5", second)
    finally:
        objects.delete([key])


def _version_of(meta: Mapping[str, Any]) -> str:
    """The ETag, and the number of the version where the vendor has such numbers (Google Cloud Storage compares these)."""
    return f"{meta['e_tag'] or ''}{_BETWEEN}{meta['version'] or ''}"


def _update_of(version: str) -> dict[str, str]:
    e_tag, _, number = version.partition(_BETWEEN)
    return {name: value for name, value in (("e_tag", e_tag), ("version", number)) if value}


class _RefusedError(Exception):
    """The condition of a put does not hold."""


class _UnclearError(Exception):
    """An attempt that says nothing about the object: it is repeated."""
