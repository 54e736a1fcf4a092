"""Fingerprints, units, conversations and the assignment bucket: which requests belong together."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from json.encoder import encode_basestring_ascii
from typing import Any, Final, NamedTuple

import msgspec

BUCKETS = 10_000
"""Resolution of the assignment: one bucket is 0.01 percent."""


def canonical_json(value: Any) -> str:
    """`value` as JSON with sorted keys and no spaces, so that equal values give equal text.

    Lone surrogates stay escaped (ASCII output), so any parsed JSON can be written. NaN and Infinity raise ValueError.
    """
    return _canonical.encode(value)


# Made once: json.dumps builds a new one at every call with options.
_canonical: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


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


def in_treatment_md5(experiment: str, unit_id: str, percent: float) -> bool:
    """The recipe that many teams use already: MD5 of "{experiment}:{unit}" in hex, as an integer, modulo 100, treatment below the
    percentage (`[experiment] assignment = "md5-100"`). Users that such code has assigned keep their arm."""
    digest = hashlib.md5(f"{experiment}:{unit_id}".encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()
    return int(digest, 16) % 100 < percent


def conversation_id(system_text: str, first_user_message: Any) -> str:
    """A conversation's id: 16 hex digits over its canonical system text and first user message.

    Conversations that open with the same words are one unit: without a user id they cannot be distinguished.
    """
    if isinstance(first_user_message, str):  # the canonical JSON of two texts, without the way through an encoder
        text = b"[" + _quoted(system_text) + b"," + _quoted(first_user_message) + b"]"
        return hashlib.sha256(text).hexdigest()[:16]
    return fingerprint([system_text, first_user_message])


def _quoted(text: str) -> bytes:
    """A text as `canonical_json` writes it."""
    # msgspec's encoder is six times as fast. Of ASCII it writes the same, but for DEL, which it leaves as it is.
    if text.isascii() and "\x7f" not in text:
        return _text_encoder.encode(text)
    return encode_basestring_ascii(text).encode("ascii")


_text_encoder: Final = msgspec.json.Encoder()


def unit_in_body(document: Any, path: str) -> str | None:
    """The unit id at `path` ("metadata.user_id") of a parsed request body: a filled string, or a whole number as text."""
    value = document
    for key in path.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value else None


def hash_unit(key: bytes, unit_id: str) -> str:
    """The stored form of a unit id: 32 hex digits of HMAC-SHA-256, so that a log names no user."""
    return hmac.digest(key, unit_id.encode("utf-8", "surrogatepass"), "sha256").hex()[:32]


# The user of a request and its conversation, as far as its headers and body name them.
#
# One reading for the collector, which assigns by it, and for the log, which counts by it.


PRESETS: Final = {
    # "user_DEVICE_account_ACCOUNT_session_SESSION"; newer ones: a JSON text with device_id, account_uuid, session_id.
    "claude-code": (
        r"body:metadata.user_id~^user_([0-9a-f]{16,})_account_",
        r'body:metadata.user_id~"device_id"\s*:\s*"([^"]+)"',
        r'body:metadata.user_id~"account_uuid"\s*:\s*"([^"]+)"',
    ),
    "codex": ("body:client_metadata.x-codex-installation-id", "header:chatgpt-account-id"),
}
"""name → the sources that find the person (the machine) behind a client that sends its session as the user"""
DEFAULT_SOURCES: Final = (
    "header:x-user-id",
    "preset:claude-code",
    "preset:codex",
    "body:user",
    "body:metadata.user_id",
    "body:safety_identifier",
)
CONVERSATION_HEADERS: Final = (
    "x-evalpipe-conversation",
    "session_id",
    "session-id",
    "conversation_id",
    "conversation-id",
    "x-session-id",
    "x-conversation-id",
    "x-thread-id",
    "x-claude-code-session-id",
)
"""headers by which clients name a session: Codex, Claude Code and applications of one's own; the first one present counts"""
_SOURCE: Final = re.compile(r"(header:[A-Za-z0-9!#$%&'*+.^_`|-]+|body:[^.\s~]+(?:\.[^.\s~]+)*)(?:~(.+))?", re.DOTALL)
_INDIVIDUAL: Final = re.compile(
    r"(?i)[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{24,}|\b[0-9a-hjkmnp-tv-z]{26}\b"
)
"""a UUID, a long hexadecimal number, a ULID: not the name of a prompt or of an application"""


class UnitSource(NamedTuple):
    """`where`: a header's name in lower case, or a path in the body. `pattern`: the part of the value that is the unit (its
    first group, else all it matches); a value it does not match names no user. `label`: as the configuration has it."""

    is_header: bool
    where: str
    pattern: re.Pattern[str] | None
    label: str

    def part_of(self, value: str | None) -> str | None:
        if not value or self.pattern is None:
            return value or None
        found = self.pattern.search(value)
        if found is None:
            return None
        return (found.group(1) if self.pattern.groups else found.group()) or None


def read_source(text: str) -> tuple[UnitSource, ...]:
    """The sources an entry of `unit` means. Raises ValueError with one line."""
    if text.startswith("preset:"):
        name = text.removeprefix("preset:")
        if name not in PRESETS:
            raise ValueError(f"{text!r}: the presets are {', '.join(sorted(PRESETS))}")
        return tuple(source._replace(label=text) for entry in PRESETS[name] for source in read_source(entry))
    found = _SOURCE.fullmatch(text)
    if found is None:
        raise ValueError(
            f"{text!r} is neither 'header:NAME' nor 'body:PATH.TO.FIELD' (either with '~PATTERN' behind it, "
            "a regular expression whose first group is the unit), nor 'preset:NAME'"
        )
    try:
        pattern = re.compile(found[2]) if found[2] else None
    except re.error as error:
        raise ValueError(f"{text!r}: {found[2]!r} is not a regular expression: {error}") from None
    kind, _, where = found[1].partition(":")
    return (UnitSource(kind == "header", where.lower() if kind == "header" else where, pattern, text),)


@lru_cache(maxsize=64)
def read_sources(texts: tuple[str, ...]) -> tuple[UnitSource, ...]:
    """The sources of a whole `unit` list, in order. Raises ValueError."""
    return tuple(source for text in texts for source in read_source(text))


def unit_of(
    sources: Sequence[UnitSource], header: Callable[[str], str | None] | None, document: Any
) -> tuple[str | None, str]:
    """(unit, label) of the first source present; (None, "") where no user is named. `header` None: headers were looked at."""
    for source in sources:
        if not source.is_header:
            unit = source.part_of(unit_in_body(document, source.where))
        elif header is not None:
            unit = source.part_of(header(source.where))
        else:
            continue
        if unit:
            return unit, source.label
    return None, ""


def conversation_of(system_text: str, first_user_message: Any, document: Any) -> str:
    """The conversation of a request without a header that names it, 16 hex digits."""
    named = conversation_in(system_text, first_user_message, document)
    return conversation_id(system_text, first_user_message) if named is None else named


def conversation_in(system_text: str, first_user_message: Any, document: Any) -> str | None:
    """The conversation that a request's body names, 16 hex digits; None where it names none.

    A conversation object of the provider's, or a cache key that is an id of its own (Codex: of the session), names it. Any
    other cache key only distinguishes conversations with the same opening: applications give one key to all of them.
    """
    if isinstance(document, dict):
        kept = document.get("conversation")
        name = kept.get("id") if isinstance(kept, dict) else kept
        if isinstance(name, str) and name:
            return fingerprint(["conversation", name])
        key = document.get("prompt_cache_key")
        if isinstance(key, str) and key:
            if _INDIVIDUAL.search(key):
                return fingerprint(["prompt_cache_key", key])
            return fingerprint([system_text, first_user_message, key])
    return None


# The number of an SDK's attempt at a request, from its headers.


ATTEMPT_HEADER: Final = "x-stainless-retry-count"


def attempt_of(headers: Mapping[str, str]) -> int:
    """0 for the first attempt, and where no header reports it."""
    number = headers.get(ATTEMPT_HEADER, "")
    return int(number) if number.isascii() and number.isdigit() and len(number) < 4 else 0
