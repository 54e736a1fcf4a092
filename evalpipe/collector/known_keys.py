"""Whether a known key is in what is about to be written: checked for every answer, so it has to cost next to nothing.

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

_RAREST_FIRST: Final = "~@&%^><$?+;!ZXQ/V=JKY#UGON|LWFzBRHDMEP7q8j69CA3I54STx210-*vwk_b.y:,fgmpudhclrsioante"
"""as counted in 1,500 answers of chat completions and messages, their JSON included; any other character is rarer"""
_N_RARE: Final = 6
_N_ASKED: Final = 3
"""of the rare characters: asked for one after the other before the text is searched"""
_BYTES_A_LOOK: Final = 32
"""a look at one place costs what the search of so many bytes does"""
_SOME_BYTES: Final = 256
_QUOTE: Final = ord('"')
_BACKSLASH: Final = ord("\\")
_MAX_WALK: Final = 256
_MAX_PLACES: Final = 16
"""bounds on what is done at one place, whatever a client sends as its key"""
_ESCAPED: Final = re.compile(rb"\\+(?:u00([2-7][0-9a-fA-F])|/)")
"""characters that JSON allows to be written otherwise"""
_BOTH_ALPHABETS: Final = re.compile(r"[+/_-]")
_MIN_COOKIE: Final = 16
"""characters; shorter cookies are settings, words of other texts"""


class Needle:
    """One form of a secret. `core`: what is looked for, `rare`: its rarest characters."""

    __slots__ = ("_at", "_length", "_places", "_rarest", "core", "rare")

    def __init__(self, core: str) -> None:
        self.core = core.encode("utf-8", "replace")
        self._length = len(self.core)
        by_rarity = sorted({bytes((value,)) for value in self.core}, key=_rarity)
        self.rare = by_rarity[:_N_RARE]
        self._at = self.core.find(self.rare[0])
        self._rarest = [character[0] for character in self.rare[:_N_ASKED]]
        self._places: list[list[int]] | None = None
        """of each rare character; looked up when the first stream is searched, as most keys meet none"""

    def is_in(self, data: bytes) -> bool:
        """`core in data`, by way of its rarest characters: most often one of them is missing, or the rarest is there once."""
        for value in self._rarest:
            if value not in data:
                return False
        found = data.find(self.rare[0])
        if data.find(self.rare[0], found + 1) >= 0:
            return self.core in data
        return found >= self._at and data.startswith(self.core, found - self._at)

    def may_be_in_pieces(self, data: bytes) -> bool:
        """Whether JSON texts in `data`, put together, may be the core: then each of its characters is in a piece, which
        is the core as far as the quotes around the text."""
        found = self._places
        if found is None:
            found = self._places = [_places_of(character, self.core) for character in self.rare]
        return all(
            self._has_piece_with(character, places, data) for character, places in zip(self.rare, found, strict=True)
        )

    def _has_piece_with(self, character: bytes, places: list[int], data: bytes) -> bool:
        found = data.find(character)
        if not places:
            return found >= 0
        n_looks = 0
        while found >= 0:
            for at in places:
                if self._is_piece(data, found, at):
                    return True
            n_looks += 1
            if n_looks * _BYTES_A_LOOK > found + _SOME_BYTES:  # so many of them are no answer: the redactor is linear
                return True
            found = data.find(character, found + 1)
        return False

    def _is_piece(self, data: bytes, found: int, at: int) -> bool:
        """`data[found]` is `core[at]`: whether what is around it is the core's, too, to its end or the text's."""
        core = self.core
        first = at - _MAX_WALK if at > _MAX_WALK else 0
        place, left = found - 1, at - 1
        while left >= first and place >= 0 and data[place] == core[left]:
            place -= 1
            left -= 1
        if left >= first and (place < 0 or data[place] != _QUOTE):
            return False
        n = len(data)
        end = at + _MAX_WALK if at + _MAX_WALK < self._length else self._length
        place, right = found + 1, at + 1
        while right < end and place < n and data[place] == core[right]:
            place += 1
            right += 1
        return right == end or (place < n and data[place] == _QUOTE)


def _places_of(character: bytes, core: bytes) -> list[int]:
    """Its place in the core; none where these are too many to try."""
    places = [place for place in range(len(core)) if core[place : place + 1] == character]
    return places if len(places) <= _MAX_PLACES else []


class Needles:
    """Forms of secrets, grouped by a rare character each has: where it is absent none of its group can be there."""

    __slots__ = ("_groups",)

    def __init__(self, cores: list[str]) -> None:
        self._groups: list[tuple[int, list[Needle]]] = []
        """the character's value: a number in bytes is one memchr, bytes in bytes raise and catch an error first"""
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
            self._groups.append((best[0], [needle for needle in left if best in needle.rare]))
            left = [needle for needle in left if best not in needle.rare]

    def may_be_in(self, data: bytes, *, in_pieces: bool) -> bool:
        """False: none is in `data`. `in_pieces`: it may be cut in a stream."""
        for character, needles in self._groups:
            if len(needles) == 1 or character in data:
                for needle in needles:
                    if needle.is_in(data) or (in_pieces and needle.may_be_in_pieces(data)):
                        return True
        return False


def _rarity(character: bytes) -> int:
    return _RAREST_FIRST.find(str(character, "latin-1"))


class KnownKeys:
    """The keys that must not be written with one exchange.

    Args:
        held: those the collector holds; found in every form.
        client: those of the request; found as they are in answers that succeed, in every form in those that fail.
    """

    __slots__ = ("_answered", "_client", "_failed", "_held", "_plain", "_searched", "values")

    def __init__(self, held: Sequence[str], client: Sequence[str]) -> None:
        self._held, self._client = held, known_secrets(client)
        self.values: tuple[str, ...] = known_secrets([*held, *client])
        self._plain = Needles(list(self.values))
        held_forms = [core for secret in known_secrets(held) for core in _cores(secret)]
        self._answered = Needles([*held_forms, *self._client])
        self._failed: Needles | None = None
        self._searched = b""
        """headers without a key: most answers of a server differ from the one before in nothing that is logged"""

    def may_be_in_answer(self, data: bytes, *, streamed: bool, failed: bool) -> bool:
        """Whether an answer's body, decoded, may hold one. `streamed`: perhaps in the pieces of a stream."""
        if not self.values or not data:
            return False
        needles = self._answered
        if failed:
            if self._failed is None:
                self._failed = Needles([core for secret in self.values for core in _cores(secret)])
            needles = self._failed
        if _BACKSLASH in data and (b"\\u00" in data or b"\\/" in data):
            data = _ESCAPED.sub(_unescaped, data)
        return needles.may_be_in(data, in_pieces=streamed)

    def may_be_in_headers(self, data: bytes) -> bool:
        """Whether an answer's logged headers hold one."""
        if data == self._searched:
            return False
        found = self.may_be_in(data)
        if not found:
            self._searched = data
        return found

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
