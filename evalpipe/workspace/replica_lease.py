"""A replica's name belongs to one living collector: it holds a lease in the object storage that the replicas share."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Final

from evalpipe.collector.logs import OnceAMinute
from evalpipe.errors import ConfigError
from evalpipe.files import write_atomically
from evalpipe.objects.client import StorageError, open_objects
from evalpipe.objects.lease import RENEWALS, Lease, holder

LEASE_S: Final = 12.0
"""a collector that is silent for so long has lost its name"""
_GIVE_UP_S: Final = 3.0
_ID_FILE: Final = ".replica-id"
"""in the spool: the next life on this disk takes the name at once, since only one collector at a time has the spool"""

logger = logging.getLogger(__name__)


class ReplicaLease:
    """Holds the name from entering to leaving. To be entered by the collector that has the lock of the spool."""

    def __init__(self, url: str, experiment: str, replica: str, spool: Path) -> None:
        self._objects = open_objects(url, give_up_after_s=_GIVE_UP_S)
        self._name, self._replica, self._spool = f"replicas/{experiment}/{replica}", replica, spool
        self._id = ""
        self._lease: Lease | None = None
        self._ended = threading.Event()

    def __enter__(self) -> None:
        """Raises ConfigError where another living collector has the name. A storage that cannot be reached is no reason not to
        serve."""
        self._id = _own_id(self._spool)
        try:
            self._claim()
        except StorageError as error:
            logger.warning("whether another collector has the name %r cannot be seen: %s", self._replica, error)
        threading.Thread(target=self._keep, name="replica name", daemon=True).start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._lease is not None:
            self._lease.release()

    def _claim(self) -> None:
        """Raises ConfigError where another living collector has the name, StorageError."""
        lease = Lease.take(
            self._objects,
            self._name,
            f"{socket.gethostname()} process {os.getpid()} {self._spool} {self._id}",
            LEASE_S,
            is_own=lambda owner: owner.endswith(f" {self._id}"),
            waiting=lambda owner: logger.info(
                "the replica name %r was last used by %s: whether it still runs is seen within %g s",
                self._replica,
                _shown(owner),
                LEASE_S,
            ),
        )
        if lease is None:
            owner = _shown(holder(self._objects, self._name) or "it has just ended")
            raise ConfigError(
                f"collector.replica = {self._replica!r}: another living collector of this experiment has this name ({owner}): "
                "give each a name of its own in [collector] replica (default: the host's name)"
            )
        self._lease = lease

    def _keep(self) -> None:
        """A name that was lost while the storage was out of reach is taken again."""
        once = OnceAMinute()
        while not self._ended.wait(LEASE_S / RENEWALS):
            if self._lease is not None and self._lease.is_held:
                continue
            try:
                self._claim()
            except ConfigError as error:
                if once.is_due("name"):
                    logger.error("%s", error)
            except StorageError:  # the budget and the canary report it
                continue


def _own_id(spool: Path) -> str:
    path = spool / _ID_FILE
    try:
        found = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        found = ""
    if not found:
        found = secrets.token_hex(8)
        write_atomically(path, found.encode(), optional=True)
    return found


def _shown(owner: str) -> str:
    """Without the id of its disk."""
    return owner.rpartition(" ")[0] or owner
