"""A log file as a stream of JSON documents: one a line, or one in the whole file (or a list of them)."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from evalpipe.errors import DataError

MAX_WHOLE_BYTES = 512 * 1024 * 1024
"""A file above this is read line by line in any case: one JSON document of that size does not fit in memory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One document's bytes and where it stood: `number` is the line (from 1), in a list the position (from 1)."""

    number: int
    data: bytes
    n_read_bytes: int
    """bytes of the file consumed with it, for progress"""


def parse(data: bytes) -> Any:
    """The JSON value of `data`. Lone surrogates are taken as they are. Raises ValueError with the reason."""
    try:
        return msgspec.json.decode(data)
    except (ValueError, RecursionError):  # msgspec is fast and strict; what it refuses gets a second reading
        pass
    try:
        return json.loads(data)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise ValueError("nested too deep") from None


def read_lines(path: Path) -> Iterator[Line]:
    """The documents of a file, in order. Raises DataError where the file cannot be read.

    A file whose first line is a whole JSON value is read line by line, in bounded memory; any other is read whole: one
    document printed over several lines, or a list of documents.
    """
    try:
        with _open(path) as file:
            first = _first_filled_line(file)
            file.seek(0)
            if _is_lines(first, path.stat().st_size):
                for number, data in enumerate(file, 1):
                    if data.strip():
                        yield Line(number=number, data=data.rstrip(b"\r\n"), n_read_bytes=len(data))
                return
            yield from _whole(file.read())
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(f"cannot read {path}: {reason}") from error


def put_aside_form(data: bytes) -> dict[str, str]:
    """A broken line as JSON can hold it: text where it is UTF-8, else base64."""
    try:
        return {"text": data.decode("utf-8")}
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(data).decode("ascii")}


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _first_filled_line(file: BinaryIO) -> bytes:
    for line in file:
        if line.strip():
            return line
    return b""


def _is_lines(first: bytes, n_file_bytes: int) -> bool:
    """Whether line-by-line reading is right: the first line is a value of its own, or the file is too big for another try."""
    if n_file_bytes > MAX_WHOLE_BYTES:
        return True
    try:
        return isinstance(parse(first), dict)
    except ValueError:
        return False


def _whole(data: bytes) -> Iterator[Line]:
    if not data.strip():
        return
    try:
        value = parse(data)
    except ValueError:
        # Neither one document nor lines that begin well: each line is told broken by whoever parses it.
        for number, line in enumerate(data.splitlines(), 1):
            if line.strip():
                yield Line(number=number, data=line, n_read_bytes=len(line) + 1)
        return
    if not isinstance(value, list):
        yield Line(number=1, data=data, n_read_bytes=len(data))
        return
    for number, item in enumerate(value, 1):
        yield Line(number=number, data=json.dumps(item).encode(), n_read_bytes=len(data) // len(value))
