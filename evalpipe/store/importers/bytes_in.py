"""The bytes of a file without their packing: gzip, zstd, bzip2, xz and text encodings, told by the first bytes, not
by the name."""

from __future__ import annotations

import bz2
import codecs
import io
import lzma
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import zstandard

_READ = 1 << 18
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8 with a byte order mark"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
_SIGNS: tuple[tuple[bytes, str], ...] = (
    (b"PAR1", "Parquet"), (b"ARROW1", "Arrow"), (b"PK\x03\x04", "a zip archive"), (b"PK\x05\x06", "an empty zip archive"),
    (b"\x1f\x8b", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2"), (b"\xfd7zXZ\x00", "xz"),
    (b"SQLite format 3\x00", "an SQLite database"), (b"Obj\x01", "an Avro file"), (b"ORC", "an ORC file"), (b"%PDF", "a PDF"),
    (b"\x89PNG", "a PNG image"), (b"\xff\xd8\xff", "a JPEG image"), (b"GIF8", "a GIF image"), (b"\x7fELF", "a program"),
    (b"\xd0\xcf\x11\xe0", "an old Office file (xls)"), (b"7z\xbc\xaf\x27\x1c", "a 7z archive"), (b"Rar!", "a RAR archive"),
    (b"\x80\x04\x95", "a Python pickle"), (b"\x80\x05\x95", "a Python pickle"), (b"\x93NUMPY", "a NumPy array"),
    (b"\x89HDF", "an HDF5 file"), (b"DUCK", "a DuckDB database"),
)  # fmt: skip
_PACKED = {"gzip", "zstd", "bzip2", "xz"}
MAX_LAYERS = 3


def sign_of(head: bytes) -> str | None:
    """What a file is by its first bytes; None where they are those of a text."""
    if head[8:12] == b"DUCK":
        return "a DuckDB database"
    if head[257:262] == b"ustar":
        return "a tar archive"
    return next((word for sign, word in _SIGNS if head.startswith(sign)), None)


@dataclass(slots=True)
class Opened:
    """A file as bytes without packing. `layers`: what was taken off, outermost first; `faults`: why the bytes end too
    early, known when they have been read to their end."""

    stream: io.BufferedReader
    head: bytes
    layers: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def open_unpacked(stream: io.BufferedReader) -> Opened:
    """Take off packing, also several layers of it."""
    layers: list[str] = []
    faults: list[str] = []
    while True:
        head = stream.peek(4096)[:4096]
        sign = sign_of(head)
        if sign not in _PACKED or len(layers) >= MAX_LAYERS:
            return Opened(stream=stream, head=head, layers=layers, faults=faults)
        layers.append(sign)
        stream = io.BufferedReader(_Unpacked(stream, _unpacker(sign), sign, faults), _READ)


def _unpacker(sign: str) -> Callable[[], Any]:
    if sign == "gzip":
        return lambda: zlib.decompressobj(31)
    if sign == "zstd":
        return lambda: zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
    return bz2.BZ2Decompressor if sign == "bzip2" else lzma.LZMADecompressor


class _Unpacked(io.RawIOBase):
    """Reads members of packed data one after another. What is cut or damaged ends the stream and is noted in
    `faults`."""

    def __init__(self, source: BinaryIO, make: Callable[[], Any], sign: str, faults: list[str]) -> None:
        self._source, self._make, self._sign, self._faults = source, make, sign, faults
        self._one = make()
        self._ready = b""
        self._is_begun = self._is_over = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._is_over:
            self._fill()
        n = min(len(buffer), len(self._ready))
        buffer[:n] = self._ready[:n]
        self._ready = self._ready[n:]
        return n

    def _fill(self) -> None:
        data = self._source.read(_READ)
        try:
            if not data:
                self._is_over = True
                if self._is_begun and not self._one.eof:
                    self._fault("is cut: its end is missing")
                return
            self._is_begun = True
            pieces = [self._one.decompress(data)]
            while self._one.eof:
                rest = self._one.unused_data
                if not rest.strip(b"\0"):
                    if not rest:
                        self._one, self._is_begun = self._make(), False
                    break
                self._one = self._make()
                pieces.append(self._one.decompress(rest))
            self._ready = b"".join(pieces)
        except (zlib.error, OSError, lzma.LZMAError, zstandard.ZstdError, EOFError, ValueError) as error:
            self._is_over = True
            self._fault(f"is damaged ({error})")

    def _fault(self, words: str) -> None:
        text = f"the {self._sign} data {words}; what could be read before that is loaded"
        if text not in self._faults:
            self._faults.append(text)


def encoding_of(head: bytes) -> tuple[str, str] | None:
    """(codec, its name for people) of a text whose first bytes say that it is not plain UTF-8; None for plain UTF-8."""
    for mark, codec, word in _BOMS:
        if head.startswith(mark):
            return codec, word
    sample = head[: len(head) // 4 * 4]
    if len(sample) < 8:
        return None
    zeros = [sample[at::4].count(0) / (len(sample) // 4) for at in range(4)]
    if zeros[1] > 0.7 and zeros[2] > 0.7 and zeros[3] > 0.7 and zeros[0] < 0.3:
        return "utf-32-le", "UTF-32"
    if zeros[0] > 0.7 and zeros[1] > 0.7 and zeros[2] > 0.7 and zeros[3] < 0.3:
        return "utf-32-be", "UTF-32"
    if zeros[1] > 0.4 and zeros[3] > 0.4 and zeros[0] < 0.3 and zeros[2] < 0.3:
        return "utf-16-le", "UTF-16"
    if zeros[0] > 0.4 and zeros[2] > 0.4 and zeros[1] < 0.3 and zeros[3] < 0.3:
        return "utf-16-be", "UTF-16"
    return None


class _Recoded(io.RawIOBase):
    """A text of another encoding as UTF-8. Bytes that are none of it become U+FFFD."""

    def __init__(self, source: BinaryIO, codec: str, faults: list[str]) -> None:
        self._source = source
        self._decoder = codecs.getincrementaldecoder(codec)("replace")
        self._ready = b""
        self._is_over = False
        self._faults = faults

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready and not self._is_over:
            data = self._source.read(_READ)
            self._is_over = not data
            text = self._decoder.decode(data, final=self._is_over)
            if self._is_over and text.endswith("\ufffd"):
                self._faults.append("the file is cut in the middle of a character")
            self._ready = text.encode("utf-8", "surrogatepass")
        n = min(len(buffer), len(self._ready))
        buffer[:n] = self._ready[:n]
        self._ready = self._ready[n:]
        return n


def recoded(stream: BinaryIO, codec: str, faults: list[str]) -> io.BufferedReader:
    """The stream's text as UTF-8 bytes."""
    return io.BufferedReader(_Recoded(stream, codec, faults), _READ)
