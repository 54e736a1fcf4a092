"""Request ids that show that they were issued: an id is the right to rate an answer, and no list of them is kept.

An id is the time (12 hex digits of milliseconds), chance (8 letters and digits), a check part (12 hex digits) and the arm's
letter. The check part is keyed by what all collectors of an experiment share, the key of unit ids, so that each of them knows
the ids of the others.
"""

from __future__ import annotations

import hmac
import os
import re
from hashlib import blake2s
from typing import Final

N_RANDOM: Final = 8
_N_BASE: Final = 12 + N_RANDOM
_N_CHECK_BYTES: Final = 6
_OLD: Final = re.compile(r"[0-9a-f]{32}[ct]")
_ISSUED: Final = re.compile(r"[0-9a-f]{12}[0-9A-Za-z]{8}[0-9a-f]{12}[ct]")
_SIGNS: Final = (b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" * 5)[:256]


def random_signs(n: int) -> str:
    """`n` random letters and digits, nearly six bits each."""
    return str(os.urandom(n).translate(_SIGNS), "ascii")


class RequestIds:
    """The ids of one experiment.

    Args:
        key: shared by the experiment's collectors (EVALPIPE_UNIT_KEY, or the file beside the data).
        experiment: its name; another experiment's ids are not issued by this one.
    """

    def __init__(self, key: bytes, experiment: str) -> None:
        own = hmac.digest(key, b"evalpipe request id\0" + experiment.encode(), "sha256")
        self._keyed = blake2s(key=own, digest_size=_N_CHECK_BYTES)

    def seal(self, base: str, letter: str) -> str:
        """The id of an exchange: `base` (time and chance), its check part, the letter of the arm that serves."""
        return base + self._check(base, letter) + letter

    def refusal(self, request_id: str) -> str | None:
        """Why an id cannot be rated, in words; None for one that was issued."""
        if _ISSUED.fullmatch(request_id):
            base, check, letter = request_id[:_N_BASE], request_id[_N_BASE:-1], request_id[-1]
            if hmac.compare_digest(check, self._check(base, letter)):
                return None
        if _OLD.fullmatch(request_id):
            return "is of an earlier version of evalpipe: its answers can no longer be rated"
        return "was not issued by this experiment's collectors (collectors that share an experiment share EVALPIPE_UNIT_KEY)"

    def _check(self, base: str, letter: str) -> str:
        keyed = self._keyed.copy()
        keyed.update((base + letter).encode("ascii"))
        return keyed.hexdigest()
