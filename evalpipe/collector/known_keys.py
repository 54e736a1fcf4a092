"""Whether a known key stands in what is about to be written: asked of every answer, so it has to cost next to nothing.

Text that holds a key holds each of its characters. The rarest of them are looked for first, one pass of memchr each, and
most answers lack one. What may hold a key goes to the `Redactor`, which takes it out of JSON, streams and plain text.
"""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from evalpipe.collector.settings import ArmSettings, CollectorSettings
from evalpipe.credentials import base64_cores, credential_parts, known_secrets, secrets_in, secrets_in_url, spellings
from evalpipe.http1.headers import SECRET, Line

_RAREST_FIRST: Final = "~^*$%+=QZXJKVYWUG9876543PBMHDNFRLOCSITAEqzxjkv2_.10ybwgpfmucdlhrsnioate-"
_N_RARE: Final = 6
_MAX_LOOKS: Final = 3
_ESCAPED: Final = re.compile(rb"\\+(?:u00([2-7][0-9a-fA-F])|/)")
"""characters that JSON allows to be written otherwise"""
_BOTH_ALPHABETS: Final = re.compile(r"[+/_-]")
_MIN_COOKIE: Final = 16
"""characters; shorter cookies are settings, words of other texts"""


class Needle:
    """One form of a secret. `core`: what is looked for, `rare`: its rarest characters."""

    __slots__ = ("_at", "core", "rare")

    def __init__(self, core: str) -> None:
        self.core = core.encode("utf-8", "replace")
        by_rarity = sorted({bytes((value,)) for value in self.core}, key=_rarity)
        self.rare = by_rarity[:_N_RARE]
        self._at = self.core.find(self.rare[0])

    def is_in(self, data: bytes) -> bool:
        """`core in data`, by way of its rarest character: most often there are few of them."""
        rarest = self.rare[0]
        found = data.find(rarest)
        for _ in range(_MAX_LOOKS):
            if found < 0:
                return False
            if found >= self._at and data.startswith(self.core, found - self._at):
                return True
            found = data.find(rarest, found + 1)
        return found >= 0 and self.core in data


class Needles:
    """Forms of secrets, grouped by a rare character each has: where it is absent none of its group can be there."""

    __slots__ = ("_groups",)

    def __init__(self, cores: list[str]) -> None:
        self._groups: list[tuple[bytes, list[Needle]]] = []
        shortest_first = sorted(dict.fromkeys(cores), key=len)
        own: list[str] = []
        for core in shortest_first:  # "Bearer KEY" is found with KEY
            if not any(other in core for other in own):
                own.append(core)
        left = [Needle(core) for core in own]
        while left:
            counts: dict[bytes, int] = {}
            for needle in left:
                for character in needle.rare:
                    counts[character] = counts.get(character, 0) + 1
            best = min(counts, key=lambda character: (-counts[character], _rarity(character)))
            self._groups.append((best, [needle for needle in left if best in needle.rare]))
            left = [needle for needle in left if best not in needle.rare]

    def may_be_in(self, data: bytes, *, in_pieces: bool) -> bool:
        """False: none is in `data`. `in_pieces`: it may be cut in a stream."""
        for character, needles in self._groups:
            if character in data:
                for needle in needles:
                    if in_pieces:
                        if all_in(needle.rare, data):
                            return True
                    elif needle.is_in(data):
                        return True
        return False


def all_in(characters: list[bytes], data: bytes) -> bool:
    return all(character in data for character in characters)


def _rarity(character: bytes) -> int:
    return _RAREST_FIRST.find(str(character, "latin-1"))


class KnownKeys:
    """The keys that must not be written with one exchange.

    Args:
        held: those the collector holds; found in every form.
        client: those of the request; found as they are in answers that succeed, in every form in those that fail.
    """

    __slots__ = ("_answered", "_client", "_failed", "_held", "_plain", "values")

    def __init__(self, held: Sequence[str], client: Sequence[str]) -> None:
        self._held, self._client = held, known_secrets(client)
        self.values: tuple[str, ...] = known_secrets([*held, *client])
        self._plain = Needles(list(self.values))
        held_forms = [core for secret in known_secrets(held) for core in _cores(secret)]
        self._answered = Needles([*held_forms, *self._client])
        self._failed: Needles | None = None

    def may_be_in_answer(self, data: bytes, *, streamed: bool, failed: bool) -> bool:
        """Whether an answer's body, decoded, may hold one. `streamed`: perhaps in the pieces of a stream."""
        if not self.values or not data:
            return False
        needles = self._answered
        if failed:
            if self._failed is None:
                self._failed = Needles([core for secret in self.values for core in _cores(secret)])
            needles = self._failed
        if b"\\" in data and (b"\\u00" in data or b"\\/" in data):
            data = _ESCAPED.sub(_unescaped, data)
        return needles.may_be_in(data, in_pieces=streamed)

    def may_be_in(self, data: bytes) -> bool:
        """Whether a request's body, or what is no body, holds one as it is."""
        return bool(self.values) and self._plain.may_be_in(data, in_pieces=False)


def _unescaped(match: re.Match[bytes]) -> bytes:
    code = match.group(1)
    return b"/" if code is None else bytes((int(code, 16),))


def _cores(secret: str) -> list[str]:
    """What each form of a secret has in it. Of base64 the longest part that both alphabets spell alike."""
    encoded = [max(_BOTH_ALPHABETS.split(core), key=len) for core in base64_cores(secret)]
    return [*spellings(secret), *encoded]


def held_keys(settings: CollectorSettings) -> list[str]:
    """What the collector holds: keys of the arms, secrets in their parameters and addresses, the client token."""
    found: list[str] = []
    for arm in (settings.control, settings.treatment):
        if arm is not None:
            if arm.api_key is not None:
                found.append(arm.api_key.value)
            found += secrets_of_params(arm)
            found += secrets_in_url(arm.base_url)
    if settings.client_token is not None:
        found.append(settings.client_token.value)
    return found


def secrets_of_params(arm: ArmSettings) -> list[str]:
    return list(known_secrets(secrets_in(arm.params)))


def client_keys(target: bytes, lines: list[Line]) -> list[str]:
    """The credentials of a request: in headers named like one, cookies, the query."""
    found: list[str] = []
    for line in lines:
        if line.role & SECRET:
            value = str(line.value, "latin-1")
            if line.name == b"cookie":
                cookies = [part.partition("=")[2].strip() for part in value.split(";")]
                found += [cookie for cookie in cookies if len(cookie) >= _MIN_COOKIE]
            else:
                found += credential_parts(value)
    if b"?" in target:
        found += secrets_in_url(str(target, "latin-1"))
    return found
