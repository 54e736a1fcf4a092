"""Which arm gave out an id: a table of fixed size in a file that all workers map, so that it is known to each at once.

The ids in an answer that passes untouched are its provider's, and a request that names one of them can be answered by the
account that made it alone. The table survives restarts and kills (its pages are the kernel's); it never grows, and where a
place in it is taken, the oldest entry gives way.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import mmap
import os
import struct
from collections.abc import Callable
from pathlib import Path
from time import time
from typing import Final

import msgspec

logger = logging.getLogger(__name__)

_SLOT: Final = struct.Struct("<QQ")
"""fingerprint of the id (40 bits), hour of writing (22 bits), arm (2 bits); then the conversation (64 bits, 0: not known)"""
_SLOTS: Final = 8
_SET_BYTES: Final = _SLOT.size * _SLOTS
N_SETS: Final = 1 << 17
"""a million ids in 16 MiB"""
_ARMS: Final = ("", "control", "treatment")
_HOUR_MASK: Final = (1 << 22) - 1


class Known(msgspec.Struct, frozen=True, gc=False):
    """`conversation`: 16 hex digits, None where it was none of evalpipe's own. `age_h`: hours since it was written."""

    arm: str
    conversation: str | None
    age_h: int


class ChainBook:
    """`path` None, or a file that cannot be made: the table is this process's own, and ends with it."""

    def __init__(self, path: Path | None, *, n_sets: int = N_SETS, clock: Callable[[], float] = time) -> None:
        self._n_sets, self._clock = n_sets, clock
        self._table = _mapped(path, n_sets * _SET_BYTES)

    def put(self, name: str, arm: str, conversation: str | None = None) -> None:
        """Remember that `arm` made the id `name`. The newest word on an id holds."""
        start, fingerprint = self._place(name)
        hour = int(self._clock() / 3600) & _HOUR_MASK
        at, oldest = start, _HOUR_MASK + 1
        for slot in range(start, start + _SET_BYTES, _SLOT.size):
            word = int.from_bytes(self._table[slot : slot + 8], "little")
            if word == 0 or word >> 24 == fingerprint:
                at = slot
                break
            if (word >> 2) & _HOUR_MASK < oldest:
                at, oldest = slot, (word >> 2) & _HOUR_MASK
        word = fingerprint << 24 | hour << 2 | _ARMS.index(arm)
        self._table[at : at + _SLOT.size] = _SLOT.pack(word, _as_number(conversation))

    def get(self, name: str) -> Known | None:
        start, fingerprint = self._place(name)
        for slot in range(start, start + _SET_BYTES, _SLOT.size):
            word, conversation = _SLOT.unpack(self._table[slot : slot + _SLOT.size])
            if word >> 24 == fingerprint and 0 < word & 3 < len(_ARMS):
                age_h = int(self._clock() / 3600) - ((word >> 2) & _HOUR_MASK)
                return Known(_ARMS[word & 3], f"{conversation:016x}" if conversation else None, age_h)
        return None

    def _place(self, name: str) -> tuple[int, int]:
        """Where the id's set begins, and its fingerprint (never 0, which is an empty slot)."""
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
        number = int.from_bytes(digest[:8], "big") % self._n_sets
        return number * _SET_BYTES, int.from_bytes(digest[8:13], "big") | 1


def _as_number(conversation: str | None) -> int:
    """An id of evalpipe's own (16 hex digits) as a number; 0 for any other."""
    if conversation is None or len(conversation) != 16:
        return 0
    try:
        return int(conversation, 16)
    except ValueError:
        return 0


def _mapped(path: Path | None, size: int) -> mmap.mmap:
    if path is not None:
        try:
            return _open(path, size)
        except (OSError, ValueError) as error:  # users are served on; chains are then remembered by each worker alone
            logger.warning("which arm began a chain is not remembered beyond this process: %s: %s", path, error)
    return mmap.mmap(-1, size)


def _open(path: Path, size: int) -> mmap.mmap:
    """The file, written whole where it was not there: a hole in it could not be filled on a full disk."""
    if not path.exists() or path.stat().st_size != size:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                with open(fd, "wb", closefd=False) as file:
                    file.write(bytes(size))
            finally:
                os.close(fd)
            if path.exists() and path.stat().st_size != size:
                part.replace(path)
            else:
                with contextlib.suppress(FileExistsError):
                    os.link(part, path)  # of several workers that start together, the first one's counts
        finally:
            part.unlink(missing_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        return mmap.mmap(fd, size)
    finally:
        os.close(fd)
