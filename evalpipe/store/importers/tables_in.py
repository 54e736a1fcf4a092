"""Tables as documents, a row each: CSV and its relatives, Parquet, Arrow, Excel."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from evalpipe.errors import DataError
from evalpipe.store.importers.json_in import CUT, Document, Text

_DELIMITERS = (",", "\t", ";", "|")
_ROWS_AT_ONCE = 2000
_MAX_CELL = 512 * 1024 * 1024
_SHEET = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def delimiter_of(text: Text) -> str | None:
    """What separates the columns of a text that is a table; None where it is none."""
    head = text.head.decode("utf-8", "surrogateescape")
    told = re.match(r"sep=(.)\r?\n", head)
    if told:
        return told[1]
    best: tuple[int, str] | None = None
    csv.field_size_limit(_MAX_CELL)
    for delimiter in _DELIMITERS:
        try:
            rows = [
                row
                for row, _ in zip(
                    csv.reader(io.StringIO(head, newline=""), delimiter=delimiter), range(20), strict=False
                )
            ]
        except csv.Error:
            continue
        rows = [row for row in rows if row]
        if not rows or len(rows[0]) < 2 or not all(len(cell) < 200 for cell in rows[0]):
            continue
        names = [cell.strip() for cell in rows[0]]
        if len(set(names)) != len(names) or sum(bool(name) for name in names) < max(1, len(names) - 1):
            continue
        below = rows[1:]
        if below and sum(len(row) == len(rows[0]) for row in below) < 0.5 * len(below):
            continue
        if best is None or len(rows[0]) > best[0]:
            best = (len(rows[0]), delimiter)
    return None if best is None else best[1]


def csv_documents(text: Text, delimiter: str, faults: list[str]) -> Iterator[Document]:
    """The rows below the first, which names the columns. A row of another length is no row."""
    csv.field_size_limit(_MAX_CELL)
    codec = "utf-8"
    try:
        text.head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(text.head) - 4:
            codec = "cp1252"
            faults.append("the file is not UTF-8: read as Windows-1252")
    raw = io.BufferedReader(_Joined(text), 1 << 18)
    lines = io.TextIOWrapper(
        raw, encoding=codec, errors="replace" if codec != "utf-8" else "surrogateescape", newline=""
    )
    rows = csv.reader(lines, delimiter=delimiter)
    names: list[str] | None = None
    held: Document | None = None
    n_rows = 0
    while True:
        try:
            row = next(rows)
        except StopIteration:
            break
        except csv.Error as error:
            if held is not None:
                yield held
            held = Document(rows.line_num, None, b"", f"no row of a table: {error}")
            continue
        if not row or (names is None and len(row) == 1 and row[0].startswith("sep=")):
            continue
        if names is None:
            names = [name.strip().lstrip("\ufeff") or f"column {place}" for place, name in enumerate(row, 1)]
            continue
        if held is not None:
            yield held
        n_rows += 1
        held = _row(rows.line_num, names, row, delimiter)
    if held is not None:
        if held.problem is not None and names is not None and held.problem.startswith("has fewer"):
            faults.append(CUT)
        yield held


def _row(number: int, names: list[str], row: list[str], delimiter: str) -> Document:
    if len(row) != len(names):
        few = "fewer" if len(row) < len(names) else "more"
        raw = delimiter.join(row).encode("utf-8", "surrogateescape")
        return Document(number, None, raw, f"has {few} columns than the header: {len(row)}, not {len(names)}")
    if any("\udc80" <= letter <= "\udcff" for cell in row if not cell.isascii() for letter in cell):
        return Document(number, None, delimiter.join(row).encode("utf-8", "surrogateescape"), "not UTF-8")
    return Document(number, dict(zip(names, row, strict=True)))


class _Joined(io.RawIOBase):
    """The head that was looked at, then the rest of the stream."""

    def __init__(self, text: Text) -> None:
        self._head, self._stream = text.head, text.stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._head[: len(buffer)] if self._head else self._stream.read(len(buffer))
        self._head = self._head[len(data) :] if self._head else b""
        buffer[: len(data)] = data
        return len(data)


def parquet_documents(source: Any, name: str) -> Iterator[Document]:
    """The rows of a Parquet file (a path or bytes). Raises DataError where it is damaged or cut."""
    try:
        with pq.ParquetFile(source) as file:
            number = 0
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                for row in batch.to_pylist(maps_as_pydicts="lossy"):
                    number += 1
                    yield Document(number, row)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {name} as Parquet: {_first_line(error)}") from error


def arrow_documents(source: Any, name: str) -> Iterator[Document]:
    """The rows of an Arrow (Feather) file."""
    try:
        with pyarrow.ipc.open_file(source) as file:
            number = 0
            for at in range(file.num_record_batches):
                for row in file.get_batch(at).to_pylist(maps_as_pydicts="lossy"):
                    number += 1
                    yield Document(number, row)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot read {name} as Arrow: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def excel_documents(archive: zipfile.ZipFile, name: str, faults: list[str]) -> Iterator[Document]:
    """The rows of the first sheet of a workbook (xlsx). Formulas give the values that were stored with them."""
    try:
        shared = _shared_texts(archive)
        sheets = sorted(
            (one for one in archive.namelist() if re.fullmatch(r"xl/worksheets/sheet\d+\.xml", one)),
            key=lambda one: int(re.sub(r"\D", "", one)),
        )
        if not sheets:
            raise DataError(f"{name}: a workbook without a sheet")
        if len(sheets) > 1:
            faults.append(f"a workbook of {len(sheets)} sheets: the first one is read")
        names: list[str] | None = None
        with archive.open(sheets[0]) as file:
            for _, element in ElementTree.iterparse(file):
                if element.tag != f"{_SHEET}row":
                    continue
                number = int(element.get("r") or 0)
                cells = {_column(cell.get("r") or ""): _cell(cell, shared) for cell in element.iter(f"{_SHEET}c")}
                element.clear()
                if not any(value not in (None, "") for value in cells.values()):
                    continue
                if names is None:
                    names = [str(cells.get(at) or f"column {at + 1}").strip() for at in range(max(cells) + 1)]
                    continue
                yield Document(number, {title: cells.get(at) for at, title in enumerate(names)})
    except (ElementTree.ParseError, zipfile.BadZipFile, KeyError, ValueError) as error:
        raise DataError(f"cannot read {name} as a workbook: {_first_line(error)}") from error


def _shared_texts(archive: zipfile.ZipFile) -> list[str]:
    if "xl/sharedStrings.xml" not in archive.namelist():
        return []
    found = []
    with archive.open("xl/sharedStrings.xml") as file:
        for _, element in ElementTree.iterparse(file):
            if element.tag == f"{_SHEET}si":
                found.append("".join(part.text or "" for part in element.iter(f"{_SHEET}t")))
                element.clear()
    return found


def _column(place: str) -> int:
    number = 0
    for letter in re.sub(r"[^A-Z]", "", place.upper()):
        number = 26 * number + ord(letter) - 64
    return max(number - 1, 0)


def _cell(cell: ElementTree.Element, shared: list[str]) -> Any:
    kind, value = cell.get("t"), cell.findtext(f"{_SHEET}v")
    if kind == "inlineStr":
        return "".join(part.text or "" for part in cell.iter(f"{_SHEET}t"))
    if value is None:
        return None
    if kind == "s":
        return shared[int(value)]
    if kind == "b":
        return value == "1"
    if kind in {"str", "d"}:
        return value
    if kind == "e":
        return None
    plain = float(value)
    return int(plain) if plain.is_integer() else plain
