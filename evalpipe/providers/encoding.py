"""Content encodings of answers: gzip, deflate, br, zstd; cut bodies decoded as far as they go, bombs refused."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import brotli
import zstandard

MAX_DECODED_BYTES = 128 * 1024 * 1024
"""A longer answer is not read: 128 MiB is far over any model's answer, and a bomb unpacks to gigabytes."""

_PIECE = 4096


class EncodingError(ValueError):
    """The body is not in the encoding its header names, or unpacks to more than is sensible."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoded:
    """`data`: the decoded body. `offsets`: (encoded, decoded) bytes after each piece, where the two differ."""

    data: bytes
    offsets: tuple[tuple[int, int], ...] = ()

    def encoded_offset(self, decoded_offset: int) -> int:
        """How many body bytes had to arrive before `decoded_offset` bytes could be read."""
        for encoded, decoded in self.offsets:
            if decoded >= decoded_offset:
                return encoded
        return decoded_offset if not self.offsets else self.offsets[-1][0]


class _Decompressor(Protocol):
    def __call__(self, data: bytes, /) -> bytes: ...


def header(headers: Mapping[str, str], name: str) -> str:
    """A header's value whatever its case, "" where it is absent."""
    value = headers.get(name)
    if value is not None:
        return value
    return next((value for key, value in headers.items() if key.lower() == name), "")


def decode(headers: Mapping[str, str], body: bytes) -> Decoded:
    """The body without its content encoding, cut bodies as far as they go. Raises EncodingError."""
    decoder = StreamDecoder(headers)
    if decoder.is_identity:
        return Decoded(data=body)
    parts: list[bytes] = []
    offsets: list[tuple[int, int]] = []
    total = 0
    for start in range(0, len(body), _PIECE):
        piece = body[start : start + _PIECE]
        part = decoder.feed(piece)
        total += len(part)
        parts.append(part)
        offsets.append((start + len(piece), total))
    return Decoded(data=b"".join(parts), offsets=tuple(offsets))


class StreamDecoder:
    """Decodes a body piece by piece. Raises EncodingError for encodings it does not know and bytes that are not in them."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        named = [name.strip().lower() for name in header(headers, "content-encoding").split(",")]
        names = [name for name in named if name and name != "identity"]
        if len(names) > 1:
            raise EncodingError(f"more than one content encoding: {', '.join(names)[:80]}")
        self.is_identity = not names
        self._name = names[0] if names else ""
        self._decompress: _Decompressor | None = None
        self._total = 0

    def feed(self, piece: bytes) -> bytes:
        if self.is_identity or not piece:
            return piece
        try:
            if self._decompress is None:
                self._decompress = _decompressor(self._name, piece)
            data = self._decompress(piece)
        except (zlib.error, brotli.error, zstandard.ZstdError) as error:
            raise EncodingError(f"not {self._name}: {error}") from error
        self._total += len(data)
        if self._total > MAX_DECODED_BYTES:
            raise EncodingError(f"unpacks to more than {MAX_DECODED_BYTES // 2**20} MiB")
        return data


def _decompressor(name: str, first: bytes) -> _Decompressor:
    if name in {"gzip", "x-gzip"}:
        return _bounded(zlib.decompressobj(16 + zlib.MAX_WBITS))
    if name == "deflate":
        # Some servers send raw deflate where RFC 9110 asks for the zlib format; the first bytes tell them apart.
        zlib_format = len(first) >= 2 and first[0] & 0x0F == 8 and int.from_bytes(first[:2], "big") % 31 == 0
        return _bounded(zlib.decompressobj(zlib.MAX_WBITS if zlib_format else -zlib.MAX_WBITS))
    if name == "br":
        decompressor = brotli.Decompressor()
        return lambda piece: bytes(decompressor.process(piece))
    if name == "zstd":
        return zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj(read_across_frames=True).decompress
    raise EncodingError(f"unknown content encoding {name[:40]!r}")


def _bounded(decompressor: zlib._Decompress) -> _Decompressor:
    def decompress(piece: bytes) -> bytes:
        return decompressor.decompress(piece, MAX_DECODED_BYTES + 1)

    return decompress
