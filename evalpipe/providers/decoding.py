"""Bodies without their content encoding (gzip, deflate, br, zstd), whole or piece by piece."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Protocol

import brotli
import msgspec
import zstandard

MAX_DECODED_BYTES = 128 * 1024 * 1024
"""A longer answer is not read: 128 MiB is far over any model's answer, and a bomb unpacks to gigabytes."""

PIECE_BYTES = 4096
"""Encoded bodies are decoded in pieces of this length, so that what each piece brought is known."""

_KNOWN = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd"})
_MAX_CODINGS = 4
"""a body packed more often than this is an attack, not an answer"""


class EncodingError(ValueError):
    """The body is not in the encoding its header names, or unpacks to more than is sensible."""


class TooLargeError(EncodingError):
    """The body unpacks to more than the limit."""


class Decoded(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A body without its content encoding."""

    data: bytes


class _Decompressor(Protocol):
    def __call__(self, data: bytes, /) -> bytes: ...


def header(headers: Mapping[str, str], name: str) -> str:
    """A header's value whatever its case, "" where it is absent."""
    value = headers.get(name)
    if value is not None:
        return value
    for key in headers:
        if len(key) == len(name) and key.lower() == name:
            return headers[key]
    return ""


def decode_request(encoding: str, body: bytes, *, limit: int) -> bytes:
    """A request's body without its content encoding. Raises EncodingError; TooLargeError beyond `limit` bytes."""
    decoder = StreamDecoder({"content-encoding": encoding}, limit=limit)
    if decoder.is_identity:
        return body
    pieces = [decoder.feed(body[start : start + PIECE_BYTES]) for start in range(0, len(body), PIECE_BYTES)]
    return b"".join(pieces)


def decode(headers: Mapping[str, str], body: bytes) -> Decoded:
    """The body without its content encoding, cut bodies as far as they go. Raises EncodingError."""
    decoder = StreamDecoder(headers)
    if decoder.is_identity:
        return Decoded(data=body)
    pieces = (body[start : start + PIECE_BYTES] for start in range(0, len(body), PIECE_BYTES))
    return Decoded(data=b"".join(map(decoder.feed, pieces)))


class StreamDecoder:
    """Decodes a body piece by piece, as the vendors' SDKs (httpx) do: several codings are undone from the last to the first
    (RFC 9110 8.4), one that is not known ("utf-8", "none") is passed over. Raises EncodingError for bytes that are not in
    the coding they claim."""

    def __init__(self, headers: Mapping[str, str], *, limit: int = MAX_DECODED_BYTES) -> None:
        named = [name.strip().lower() for name in header(headers, "content-encoding").split(",")]
        self._names = [name for name in named if name in _KNOWN][::-1]
        if len(self._names) > _MAX_CODINGS:
            raise EncodingError(f"{len(self._names)} content codings")
        self.is_identity = not self._names
        self._steps: list[_Decompressor | None] = [None] * len(self._names)
        self._total, self._limit = 0, limit

    def feed(self, piece: bytes) -> bytes:
        if self.is_identity or not piece:
            return piece
        for number, name in enumerate(self._names):
            if not piece:
                return b""
            try:
                step = self._steps[number]
                if step is None:
                    step = self._steps[number] = _decompressor(name, piece, self._limit)
                piece = step(piece)
            except (zlib.error, brotli.error, zstandard.ZstdError) as error:
                raise EncodingError(f"not {name}: {error}") from error
            if len(piece) > self._limit:
                raise _too_large(self._limit)
        self._total += len(piece)
        if self._total > self._limit:
            raise _too_large(self._limit)
        return piece


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"unpacks to more than {limit / 2**20:g} MiB")


def _decompressor(name: str, first: bytes, limit: int) -> _Decompressor:
    """None of them makes much more than `limit` bytes of one piece, whatever the piece claims."""
    if name in {"gzip", "x-gzip"}:
        return _bounded(zlib.decompressobj(16 + zlib.MAX_WBITS), limit)
    if name == "deflate":
        # Some servers send raw deflate where RFC 9110 asks for the zlib format; the first bytes distinguish them.
        zlib_format = len(first) >= 2 and first[0] & 0x0F == 8 and int.from_bytes(first[:2], "big") % 31 == 0
        return _bounded(zlib.decompressobj(zlib.MAX_WBITS if zlib_format else -zlib.MAX_WBITS), limit)
    if name == "br":
        decompressor = brotli.Decompressor()
        return lambda piece: bytes(decompressor.process(piece, output_buffer_limit=limit + 1))
    if name == "zstd":
        frames = zstandard.ZstdDecompressor(max_window_size=2**27).decompressobj(read_across_frames=True)
        return _in_slices(frames.decompress, limit)
    raise EncodingError(f"unknown content coding {name[:40]!r}")


def _bounded(decompressor: zlib._Decompress, limit: int) -> _Decompressor:
    def decompress(piece: bytes) -> bytes:
        return decompressor.decompress(piece, limit + 1)

    return decompress


_SLICE = 256
"""zstd makes at most 128 KiB of a block, and a block takes four bytes: 8 MiB of a slice"""


def _in_slices(decompress: _Decompressor, limit: int) -> _Decompressor:
    def bounded(piece: bytes) -> bytes:
        parts, total = [], 0
        for start in range(0, len(piece), _SLICE):
            part = decompress(piece[start : start + _SLICE])
            total += len(part)
            if total > limit:
                raise _too_large(limit)
            parts.append(part)
        return b"".join(parts)

    return bounded
