"""A file of any kind as sources of documents: what it is, is told by its content; archives hold several sources."""

from __future__ import annotations

import io
import json
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
from evalpipe.store.documents import MAX_WHOLE_BYTES, parse
from evalpipe.store.importers.bytes_in import encoding_of, open_unpacked, recoded, sign_of
from evalpipe.store.importers.json_in import Document, Text, json_documents, looks_like_json
from evalpipe.store.importers.tables_in import (
    arrow_documents,
    csv_documents,
    delimiter_of,
    excel_documents,
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
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, tarfile.TarError) as error:
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
    if b"\0" in head:
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
            header = parse(file.read())
        if "header.json" not in names:
            source.faults.append("the evaluation did not finish: its samples so far are loaded")
        head = {key: header.get(key) for key in ("version", "eval", "plan")} if isinstance(header, dict) else {}
        samples = [info for info in _members(archive) if info.filename.startswith("samples/")]
        for number, info in enumerate(samples, 1):
            with _opened_member(archive, info) as file:
                data = file.read()
            try:
                yield Document(number, {**head, "samples": [parse(data)]})
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
    """The document as bytes that can be put aside: as it came, else as JSON."""
    if document.raw is not None:
        return document.raw
    try:
        return json.dumps(document.value, default=str).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, RecursionError):
        return str(document.value)[:100_000].encode("utf-8", "surrogatepass")
