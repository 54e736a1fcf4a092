"""A full disk and too little memory: no bug of ours and no mistake of the user, but one line all the same."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from evalpipe.errors import EvalpipeError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FULL_WORDS = ("no space left on device", "disk quota exceeded", "file too large")
_MEMORY_WORDS = (
    "cannot allocate memory",
    "failed to map segment",
    "can't start new thread",
    "out of memory",
    "bad_alloc",
)


def resource_fault(error: BaseException) -> str | None:
    """What ran out, in words, where that is why `error` was raised; else None."""
    seen: BaseException | None = error
    while seen is not None:
        words = str(seen).lower()
        if (isinstance(seen, OSError) and seen.errno in FULL) or any(part in words for part in _FULL_WORDS):
            where = f" ({seen.filename})" if isinstance(seen, OSError) and isinstance(seen.filename, str) else ""
            return f"the disk is full, or a limit of file sizes is reached{where}"
        short = isinstance(seen, MemoryError) or (isinstance(seen, OSError) and seen.errno == errno.ENOMEM)
        if short or any(part in words for part in _MEMORY_WORDS):
            return "not enough memory"
        if type(seen).__name__ == "BrokenProcessPool":
            return "a helper process was killed, as a system short of memory does"
        seen = seen.__cause__ or seen.__context__
    return None


@contextmanager
def within_resources(remedy: str) -> Iterator[None]:
    """Turn a full disk and too little memory into an EvalpipeError that ends in `remedy`."""
    try:
        yield
    except EvalpipeError:
        raise
    except Exception as error:
        fault = resource_fault(error)
        if fault is None:
            raise
        raise EvalpipeError(f"{fault}; {remedy}") from error
