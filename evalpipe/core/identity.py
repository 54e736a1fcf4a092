"""Who and what is the same: canonical JSON, fingerprints, conversations, hashed units, and the assignment bucket."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

BUCKETS = 10_000
"""Resolution of the assignment: one bucket is 0.01 percent."""


def canonical_json(value: Any) -> str:
    """`value` as JSON with sorted keys and no spaces, so that equal values give equal text.

    Lone surrogates stay escaped (ASCII output), so any parsed JSON can be written. NaN and Infinity raise ValueError.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def fingerprint(value: Any, *, length: int = 16) -> str:
    """First `length` hex digits of the SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()[:length]


def bucket(salt: str, unit_id: str) -> int:
    """The unit's bucket in [0, 10,000): first 8 bytes, big-endian, of SHA-256(UTF-8 of "{salt}:{unit_id}"), modulo.

    The contract of the assignment: any language that computes this agrees with evalpipe.
    """
    digest = hashlib.sha256(f"{salt}:{unit_id}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") % BUCKETS


def in_treatment(salt: str, unit_id: str, percent: float) -> bool:
    """Whether the unit belongs to the treatment at `percent` in [0, 100]; raising it never moves a unit out."""
    # 100 * 0.07 is 7.000000000000001 in binary floating point, which would let one bucket too many in
    return bucket(salt, unit_id) < round(100 * percent, 6)


def conversation_id(system_text: str, first_user_message: Any) -> str:
    """A conversation's id: 16 hex digits over its canonical system text and first user message.

    Conversations that open with the same words are one unit: without a user id nothing tells them apart.
    """
    return fingerprint([system_text, first_user_message])


def unit_in_body(document: Any, path: str) -> str | None:
    """The unit id at `path` ("metadata.user_id") of a parsed request body: a filled string, or a whole number as text."""
    value = document
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value else None


def hash_unit(key: bytes, unit_id: str) -> str:
    """The stored form of a unit id: 32 hex digits of HMAC-SHA-256, so that a log names nobody."""
    return hmac.new(key, unit_id.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()[:32]
