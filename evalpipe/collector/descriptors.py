"""Open files of a worker: a limit that is reached (`ulimit -n`) is refused with an answer, counted, and reported."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import errno
import logging
import os
import resource
from collections.abc import Callable
from typing import Final

_RESERVE_SHARE: Final = 8
_MIN_RESERVE: Final = 12
"""of the limit an eighth, and so many at least, stay for connections to the arms and for the spool"""
REFUSAL: Final = "too many connections: the collector's limit of open files (ulimit -n) is reached"

logger = logging.getLogger(__name__)


def raise_limit() -> None:
    """The soft limit of open files becomes the hard one: it is there for programs that use select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError) as error:
            logger.warning("the limit of open files stays %d: %s", soft, error)


class Descriptors:
    """Whether a further client fits.

    Args:
        count: is called with the number of connections refused since the last call.
    """

    def __init__(self, count: Callable[[int], None]) -> None:
        self._count = count
        self.limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.highest = self.limit - max(_MIN_RESERVE, self.limit // _RESERVE_SHARE)
        """a client whose descriptor's number is beyond this is refused: the system gives out the lowest that is free"""
        self._n_refused = 0
        self._n_in_all = 0
        self._is_reported = False

    def refused(self) -> None:
        """A client was refused, or a connection to an arm could not be opened: no descriptor was free."""
        self._n_refused += 1

    def failed(self, error: OSError) -> None:
        """A connection or a file could not be opened; counted where no descriptor was free."""
        if error.errno in (errno.EMFILE, errno.ENFILE):
            self._n_refused += 1

    def tick(self) -> None:
        """To be called about once a second: the log's lines, and the count."""
        n, self._n_refused = self._n_refused, 0
        if not n and self._is_exhausted():
            n = 1
        if n:
            self._count(n)
            self._n_in_all += n
            if not self._is_reported:
                logger.error(
                    "the limit of %d open files is reached: connections are refused; raise `ulimit -n`", self.limit
                )
            self._is_reported = True
        elif self._is_reported:
            logger.warning("below the limit of open files again; %d connections were refused", self._n_in_all)
            self._is_reported, self._n_in_all = False, 0

    def _is_exhausted(self) -> bool:
        """Then the event loop itself closes what connects, without a word."""
        try:
            os.close(os.dup(0))
        except OSError as error:
            return error.errno in (errno.EMFILE, errno.ENFILE)
        return False
