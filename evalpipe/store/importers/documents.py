"""Documents out of JSON in all its spellings, and out of tables: CSV and its relatives, Parquet, Arrow, Excel."""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import msgspec
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from evalpipe.errors import DataError
from evalpipe.providers.json_values import parse_document

MAX_WHOLE_BYTES = 512 * 1024 * 1024
"""A file above this is read line by line in any case: one JSON document of that size does not fit in memory."""
_LOOK_BYTES = 1 << 20
_LOOK_LINES = 40
_READ = 1 << 20
_FIRST_LIST = re.compile(r'"(?:[^"\\]|\\.){1,80}"\s*:\s*\[\s*\{')
_BETWEEN = re.compile(r"[\s,\x1e]*")
_DECODER = json.JSONDecoder()
CUT = "the file is cut at its end: its last entry is not whole"


@dataclass(slots=True)
class Document:
    """One document and its position: `number` is its line, row or place, from 1. `problem`: why there is no value."""

    number: int
    value: Any = None
    raw: bytes | None = None
    problem: str | None = None


class Text:
    """UTF-8 bytes to be read once, with a first look at them."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self.stream = stream
        self.head = _read_up_to(stream, _LOOK_BYTES)
        if self.head.startswith(b"\xef\xbb\xbf"):
            self.head = self.head[3:]

    def lines(self) -> Iterator[bytes]:
        """The lines without their ends; "\\r" alone ends them where the text has no other ends."""
        end = b"\n" if b"\n" in self.head or b"\r" not in self.head else b"\r"
        rest = b""
        piece = self.head
        while piece:
            *whole, rest = (rest + piece).split(end)
            yield from whole
            piece = self.stream.read(_READ)
        if rest:
            yield rest

    def whole(self) -> bytes | None:
        """All of it; None where that is more than fits in memory."""
        rest = _read_up_to(self.stream, MAX_WHOLE_BYTES)
        return None if len(rest) >= MAX_WHOLE_BYTES else self.head + rest

    def first_lines(self) -> list[bytes]:
        """The first filled lines that are whole in the first look."""
        end = b"\n" if b"\n" in self.head or b"\r" not in self.head else b"\r"
        found = self.head.split(end)
        if len(self.head) >= _LOOK_BYTES and len(found) > 1:
            found.pop()
        return [line.strip() for line in found if line.strip()][:_LOOK_LINES]


def _read_up_to(stream: io.BufferedReader, size: int) -> bytes:
    pieces, n = [], 0
    while n < size:
        piece = stream.read(min(_READ, size - n))
        if not piece:
            break
        pieces.append(piece)
        n += len(piece)
    return b"".join(pieces)


def looks_like_json(text: Text) -> bool:
    """Whether the text is JSON of some kind, whole or not."""
    lines = text.first_lines()
    if not lines:
        return False
    start = text.head.lstrip(b" \t\r\n\x1e")[:1]
    return start in {b"{", b"["} or _share_of_objects(lines) >= 0.5


def json_documents(text: Text, faults: list[str]) -> Iterator[Document]:
    """The documents of the text. What is cut is noted in `faults`, and what is whole before that is given."""
    lines = text.first_lines()
    if not lines:
        return
    if _is_object(lines[0]):
        yield from _line_by_line(text, faults)
        return
    data = text.whole()
    if data is None:
        yield from _line_by_line(Text(io.BufferedReader(io.BytesIO(text.head))), faults)
        faults.append(
            f"one JSON document above {MAX_WHOLE_BYTES >> 20} MB cannot be read: write one document a line (jq -c '.[]')"
        )
        return
    try:
        value = parse_document(data)
    except ValueError:
        pass
    else:
        yield from _items(value)
        return
    if _share_of_objects(lines) >= 0.5:
        yield from _line_by_line(Text(io.BufferedReader(io.BytesIO(data))), faults)
        return
    yield from _one_after_another(data.decode("utf-8", "replace"), faults)


def _items(value: Any) -> Iterator[Document]:
    if isinstance(value, list):
        for number, item in enumerate(value, 1):
            yield Document(number=number, value=item)
    else:
        yield Document(number=1, value=value)


def _share_of_objects(lines: list[bytes]) -> float:
    return sum(map(_is_object, lines)) / len(lines)


def _is_object(line: bytes) -> bool:
    if not line.startswith(b"{"):
        return False
    try:
        return isinstance(parse_document(line.rstrip(b", \t\r")), dict)
    except ValueError:
        return False


def _line_by_line(text: Text, faults: list[str]) -> Iterator[Document]:
    decode = msgspec.json.decode
    last_is_whole = True
    is_list = text.head.lstrip()[:1] == b"["
    number = 0
    problem: Document | None = None
    for number, line in enumerate(text.lines(), 1):
        if problem is not None:
            yield problem
            problem = None
        try:
            yield Document(number, decode(line), line)
            continue
        except (ValueError, RecursionError):
            stripped = line.strip(b" \t\r\n\x1e\xef\xbb\xbf")
        if not stripped or (stripped in {b"[", b"]", b","} and (is_list or stripped != b"[")):
            continue
        try:
            yield Document(number, parse_document(stripped.rstrip(b",")), line)
        except ValueError as error:
            problem = Document(number, None, line, f"not JSON: {error}")
    if problem is not None:
        assert problem.raw is not None
        last_is_whole = not problem.raw.lstrip().startswith(b"{") or problem.raw.rstrip().endswith(b"}")
        if not last_is_whole:
            problem.problem = "cut off: the file ends in the middle of this line"
            faults.append(CUT)
        yield problem


def _one_after_another(text: str, faults: list[str]) -> Iterator[Document]:
    """Values one after another, or a list that is cut, or an object whose list is cut."""
    place = _BETWEEN.match(text).end()  # type: ignore[union-attr]
    number = 0
    if text[place : place + 1] == "[":
        place += 1
    elif text[place : place + 1] == "{" and not _starts_value(text, place):
        inner = _FIRST_LIST.search(text, place)
        if inner is None:
            yield Document(1, None, text[:2000].encode(), _why(text, place))
            return
        place = inner.end() - 1
    while True:
        place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]
        if place >= len(text):
            return
        number += 1
        if text[place] in "]}":
            rest = text[place + 1 :].strip("]}, \r\n\t")
            if not rest:
                return
            place += 1
            number -= 1
            continue
        try:
            value, end = _DECODER.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            following = _next_object(text, place)
            piece = text[place : following if following > 0 else len(text)]
            if following < 0:
                faults.append(CUT)
                yield Document(
                    number,
                    None,
                    piece[:100_000].encode("utf-8", "replace"),
                    "cut off: the file ends in the middle of this entry",
                )
                return
            yield Document(number, None, piece.encode("utf-8", "replace"), f"not JSON: {error}")
            place = following
            continue
        if isinstance(value, list) and number == 1 and text[:1] != "[":
            yield from _items(value)
        else:
            yield Document(number, value)
        place = end


def _starts_value(text: str, place: int) -> bool:
    try:
        _DECODER.raw_decode(text, place)
    except (ValueError, RecursionError):
        return False
    return True


def _why(text: str, place: int) -> str:
    try:
        _DECODER.raw_decode(text, place)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return "not JSON"


def _next_object(text: str, place: int) -> int:
    """Where the next value of its own begins after a broken one: an object at the beginning of a line."""
    found = re.compile(r"\n\s{0,8}\{").search(text, place + 1)
    while found is not None:
        start = found.end() - 1
        if _starts_value(text, start):
            return start
        found = re.compile(r"\n\s{0,8}\{").search(text, start + 1)
    return -1


# Tables as documents, a row each: CSV and its relatives, Parquet, Arrow, Excel.


_DELIMITERS = (",", "\t", ";", "|")
_ROWS_AT_ONCE = 2000
_MAX_CELL = 512 * 1024 * 1024
_SHEET = "{http://schemas.openxmlformats.org/spreadsheetml/2006/main}"


def delimiter_of(text: Text) -> str | None:
    """What separates the columns of a text that is a table; None where it is none."""
    head = text.head.decode("utf-8", "surrogateescape")
    separator = re.match(r"sep=(.)\r?\n", head)
    if separator:
        return separator[1]
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
        if sum(bool(name) for name in names) < max(1, len(names) - 1):
            continue
        below = rows[1:]
        if 2 * len(set(names)) <= len(names) or (len(set(names)) != len(names) and not below):
            continue  # words of a text repeat; the names of columns do so seldom
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
    with_nul: list[int] = []
    rows = csv.reader(_without_nul(lines, with_nul), delimiter=delimiter)
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
            names = _unique_names(
                [name.strip().lstrip("\ufeff") or f"column {place}" for place, name in enumerate(row, 1)], faults
            )
            continue
        if held is not None:
            yield held
        n_rows += 1
        held = _row(rows.line_num, names, row, delimiter)
    if held is not None:
        if held.problem is not None and names is not None and held.problem.startswith("has fewer"):
            faults.append(CUT)
        yield held
    if with_nul:
        shown = ", ".join(map(str, with_nul[:3]))
        more = f" and {len(with_nul) - 3:,} more" if len(with_nul) > 3 else ""
        faults.append(f"NUL characters are read as U+FFFD: line{'s' if len(with_nul) > 1 else ''} {shown}{more}")


def _without_nul(lines: Iterable[str], with_nul: list[int]) -> Iterator[str]:
    """The lines with U+FFFD for each NUL, which no text has; the numbers of those that had one go into `with_nul`."""
    for number, line in enumerate(lines, 1):
        if "\0" in line:
            with_nul.append(number)
            line = line.replace("\0", "\ufffd")
        yield line


def _unique_names(names: list[str], faults: list[str]) -> list[str]:
    """The names of the columns; one that was there before gets a number: "x", "x (2)"."""
    found: dict[str, None] = {}
    given = set(names)
    for name in names:
        own, n = name, 1
        while own in found or (n > 1 and own in given):
            n += 1
            own = f"{name} ({n})"
        if own != name:
            faults.append(f"the header names the column {name!r} more than once: this one is read as {own!r}")
        found[own] = None
    return list(found)


_UNDECODED = re.compile("[\udc80-\udcff]")
"""bytes that are no UTF-8, as `surrogateescape` keeps them"""


def _row(number: int, names: list[str], row: list[str], delimiter: str) -> Document:
    if len(row) != len(names):
        few = "fewer" if len(row) < len(names) else "more"
        raw = delimiter.join(row).encode("utf-8", "surrogateescape")
        return Document(number, None, raw, f"has {few} columns than the header: {len(row)}, not {len(names)}")
    if not (together := "".join(row)).isascii() and _UNDECODED.search(together):
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
                    names = _unique_names(
                        [str(cells.get(at) or f"column {at + 1}").strip() for at in range(max(cells) + 1)], faults
                    )
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
