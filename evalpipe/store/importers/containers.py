"""A file of any kind as sources of documents, by its content: archives, compression and text encodings."""

from __future__ import annotations

import bz2
import codecs
import io
import json
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast

import pyarrow as pa
import zstandard

from evalpipe.errors import ConfigError, DataError
from evalpipe.providers.json_values import parse_document
from evalpipe.store.importers.documents import (
    MAX_WHOLE_BYTES,
    Document,
    Text,
    arrow_documents,
    csv_documents,
    delimiter_of,
    excel_documents,
    json_documents,
    looks_like_json,
    parquet_documents,
)

_ZSTD_METHOD = 93
"""zip's number for zstd, which Python's own module learns only in later versions; Inspect's newer logs use it"""


class UnknownKindError(ConfigError):
    """The file holds no documents at all: `what` it is by its first bytes."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name} is {what}: it holds no log that can be read")
        self.what = what


@dataclass(slots=True)
class Source:
    """Documents of one kind: a file, or a member of an archive. `faults` is filled while they are read."""

    path: Path
    name: str
    make: Callable[[Source], Iterator[Document]]
    kind: str = ""
    faults: list[str] = field(default_factory=list)
    handle: Any = None

    def documents(self) -> Iterator[Document]:
        """The documents, read anew. Raises DataError for what cannot be read, UnknownKindError for what is no log."""
        self.faults.clear()
        try:
            yield from self.make(self)
        except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, tarfile.TarError) as error:
            words = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise DataError(f"cannot read {self.name}: {words}") from error


def sources_of(path: Path) -> list[Source]:
    """The sources in a file. Raises DataError where it cannot be opened."""
    try:
        with path.open("rb") as file:
            opened = open_unpacked(file)
            sign = sign_of(opened.head)
            if sign == "a tar archive":
                return _tar_sources(path)
            if sign == "a zip archive" and not opened.layers:
                return _zip_sources(path)
    except tarfile.TarError as error:
        raise DataError(f"cannot read {path}: {error}") from error
    except zipfile.BadZipFile:
        raise DataError(
            f"cannot read {path}: the zip archive is cut or damaged, its list of contents at the end is missing"
        ) from None
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    return [Source(path=path, name=str(path), make=lambda source: _file(source, path))]


def _file(source: Source, path: Path) -> Iterator[Document]:
    with path.open("rb") as file:
        source.handle = file
        yield from _stream(source, file)


def _stream(source: Source, file: io.BufferedReader) -> Iterator[Document]:
    """The documents of a stream of bytes, whatever they are."""
    opened = open_unpacked(file)
    sign = sign_of(opened.head)
    source.faults = opened.faults
    packed = "".join(f"{layer} of " for layer in opened.layers)
    if sign in {"Parquet", "Arrow"}:
        source.kind = packed + sign
        is_plain = not opened.layers and source.name == str(source.path)
        content: Any = source.path if is_plain else pa.BufferReader(_bounded(opened.stream, source.name))
        yield from (parquet_documents if sign == "Parquet" else arrow_documents)(content, source.name)
        return
    if sign == "a zip archive":
        with zipfile.ZipFile(io.BytesIO(_bounded(opened.stream, source.name))) as archive:
            for member in _members(archive):
                yield from _stream(source, _opened_member(archive, member))
        return
    if sign is not None:
        raise UnknownKindError(source.name, packed + sign)
    stream = opened.stream
    encoding = encoding_of(opened.head)
    if encoding is not None:
        if encoding[0] != "utf-8-sig":
            stream = recoded(cast(BinaryIO, stream), encoding[0], opened.faults)
        packed += f"{encoding[1]} "
    text = Text(stream)
    if not text.head.strip():
        source.kind = packed + "an empty file"
        return
    if looks_like_json(text):
        source.kind = packed + "JSON"
        yield from json_documents(text, opened.faults)
        return
    delimiter = delimiter_of(text)
    if delimiter is None:
        raise UnknownKindError(source.name, packed + _text_kind(text))
    source.kind = packed + ("TSV" if delimiter == "\t" else "CSV")
    yield from csv_documents(text, delimiter, opened.faults)


def _bounded(stream: io.BufferedReader, name: str) -> bytes:
    data = stream.read(MAX_WHOLE_BYTES)
    if len(data) >= MAX_WHOLE_BYTES:
        raise DataError(f"{name}: more than {MAX_WHOLE_BYTES >> 20} MB in one packed file: unpack it first")
    return data


def _text_kind(text: Text) -> str:
    head = text.head[:4096]
    if head.count(b"\0") * 100 > len(head):  # one of a damaged cell makes no binary file
        return "a binary file of no known kind"
    start = head.lstrip()[:40].lower()
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file itself (git lfs pull)"
    if start.startswith((b"<!doctype html", b"<html")):
        return "a web page (HTML)"
    if start.startswith(b"<?xml") or start.startswith(b"<"):
        return "XML"
    lines = [line for line in head.split(b"\n") if line.strip()]
    if start.startswith(b"---") or (
        len(lines) > 2 and sum(b": " in line or line.rstrip().endswith(b":") for line in lines) > 0.7 * len(lines)
    ):
        return "YAML (or a text like it)"
    return "plain text, neither JSON nor a table with named columns"


def _members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    return [
        info
        for info in archive.infolist()
        if not info.is_dir()
        and not any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(info.filename).parts)
    ]


def _zip_sources(path: Path) -> list[Source]:
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        if any(name.startswith("samples/") for name in names) and names & {"header.json", "_journal/start.json"}:
            return [
                Source(
                    path=path, name=str(path), kind="an Inspect log (.eval)", make=lambda source: _inspect(source, path)
                )
            ]
        if "xl/workbook.xml" in names:
            return [Source(path=path, name=str(path), kind="Excel", make=lambda source: _excel(source, path))]
        office = next(
            (
                word
                for mark, word in (("word/", "a Word document"), ("ppt/", "a presentation"))
                if any(n.startswith(mark) for n in names)
            ),
            None,
        )
        if office:
            raise UnknownKindError(str(path), office)
        members = [info.filename for info in _members(archive)]
    if not members:
        raise DataError(f"{path} is a zip archive without files")
    return [
        Source(path=path, name=f"{path}/{member}", make=lambda source, member=member: _zip_member(source, path, member))  # type: ignore[misc]
        for member in sorted(members)
    ]


def _zip_member(source: Source, path: Path, member: str) -> Iterator[Document]:
    with zipfile.ZipFile(path) as archive:
        yield from _stream(source, _opened_member(archive, archive.getinfo(member)))


def _opened_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> io.BufferedReader:
    if info.compress_type == _ZSTD_METHOD:
        return io.BufferedReader(io.BytesIO(_zstd_member(archive, info)))
    try:
        return io.BufferedReader(archive.open(info), 1 << 18)  # type: ignore[arg-type]
    except (RuntimeError, NotImplementedError) as error:
        raise DataError(
            f"{archive.filename}: {info.filename} cannot be unpacked ({error}): unpack it by other means first"
        ) from None


def _zstd_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    file = archive.fp
    assert file is not None
    file.seek(info.header_offset + 26)
    lengths = file.read(4)
    file.seek(int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little"), 1)
    try:
        return zstandard.ZstdDecompressor().decompress(
            file.read(info.compress_size), max_output_size=min(info.file_size, MAX_WHOLE_BYTES)
        )
    except zstandard.ZstdError as error:
        raise DataError(f"{archive.filename}: {info.filename} is damaged ({error})") from None


def _inspect(source: Source, path: Path) -> Iterator[Document]:
    """An Inspect log: its header with one sample at a time."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        with _opened_member(
            archive, archive.getinfo("header.json" if "header.json" in names else "_journal/start.json")
        ) as file:
            header = parse_document(file.read())
        if "header.json" not in names:
            source.faults.append("the evaluation did not finish: its samples so far are loaded")
        head = {key: header.get(key) for key in ("version", "eval", "plan")} if isinstance(header, dict) else {}
        samples = [info for info in _members(archive) if info.filename.startswith("samples/")]
        for number, info in enumerate(samples, 1):
            with _opened_member(archive, info) as file:
                data = file.read()
            try:
                yield Document(number, {**head, "samples": [parse_document(data)]})
            except ValueError as error:
                yield Document(number, None, data[:100_000], f"{info.filename} is not JSON: {error}")


def _excel(source: Source, path: Path) -> Iterator[Document]:
    with zipfile.ZipFile(path) as archive:
        yield from excel_documents(archive, source.name, source.faults)


def _tar_sources(path: Path) -> list[Source]:
    with _tar(path) as archive:
        members = [
            info.name for info in archive.getmembers()
            if info.isfile() and not any(part.startswith(".") for part in PurePosixPath(info.name).parts)
        ]  # fmt: skip
    if not members:
        raise DataError(f"{path} is a tar archive without files")
    return [
        Source(path=path, name=f"{path}/{member}", make=lambda source, member=member: _tar_member(source, path, member))  # type: ignore[misc]
        for member in sorted(members)
    ]


@contextmanager
def _tar(path: Path) -> Iterator[tarfile.TarFile]:
    with path.open("rb") as file:
        opened = open_unpacked(file)
        content = io.BytesIO(_bounded(opened.stream, str(path))) if opened.layers else file
        with tarfile.open(fileobj=content) as archive:
            yield archive


def _tar_member(source: Source, path: Path, member: str) -> Iterator[Document]:
    with _tar(path) as archive:
        file = archive.extractfile(member)
        if file is not None:
            yield from _stream(source, cast(io.BufferedReader, file))


def raw_of(document: Document) -> bytes:
    """The document as bytes that can be stored as rejected: as it came, else as JSON."""
    if document.raw is not None:
        return document.raw
    try:
        return json.dumps(document.value, default=str).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, RecursionError):
        return str(document.value)[:100_000].encode("utf-8", "surrogatepass")


# The bytes of a file without their packing: gzip, zstd, bzip2, xz and text encodings, detected by the first bytes, not
# by the name.


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
    """(codec, its name for people) of a text whose first bytes show that it is not plain UTF-8; None for plain UTF-8."""
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
