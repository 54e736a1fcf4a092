"""Plain rows of a mapped table, many at once: columns of exchanges without an object for each row.

It gives exactly what reading row by row gives (a test holds that). A row that is anything but plain (a prompt that is no text, an
answer that may be JSON, a time that is none) is left to the reader of single rows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from json.encoder import encode_basestring
from json.encoder import encode_basestring_ascii as _ascii
from types import NoneType
from typing import Any

import pyarrow as pa

from evalpipe.store.importers.base import unknown_time
from evalpipe.store.importers.documents import Document
from evalpipe.store.importers.mapping import Arms, Mapped
from evalpipe.store.importers.table import NOBODY
from evalpipe.store.importers.values import count, instant, milliseconds_of, name, number
from evalpipe.store.schema import EXCHANGES, table_of
from evalpipe.text import well_formed

BATCH = 20_000
"""documents that are read at once"""
_SINGLE = frozenset(
    {
        "prompt",
        "text",
        "arm",
        "user",
        "session",
        "time",
        "id",
        "model",
        "latency_ms",
        "latency_s",
        "input_tokens",
        "output_tokens",
        "cost",
    }
)
_PAIRED = frozenset(
    {
        "prompt",
        "text_a",
        "text_b",
        "user",
        "session",
        "time",
        "id",
        "model_a",
        "model_b",
        "latency_ms_a",
        "latency_ms_b",
    }
    | {f"{column}_{side}" for column in ("input_tokens", "output_tokens", "cost_usd") for side in "ab"}
)


@dataclass(slots=True)
class Batch:
    """Rows that were plain, as a table of exchanges; the documents of the others."""

    table: pa.Table
    others: list[Document]
    n_plain: int


@dataclass(slots=True)
class Columnar:
    """Reads batches of rows by a mapping to plain columns."""

    paths: Mapping[str, str]
    arm: str
    arms: Arms
    numbered: Counter[str]

    @staticmethod
    def of(mapped: Mapped, sample: Sequence[Any], *, arm: str, arms: Arms, numbered: Counter[str]) -> Columnar | None:
        """A reader of the mapping; None where it has more than plain columns."""
        paths = mapped.paths
        allowed = _PAIRED if mapped.is_pairs else _SINGLE
        if not set(paths) <= allowed or not ({"prompt", "text"} <= set(paths) or mapped.is_pairs):
            return None
        rows = [row for row in sample if isinstance(row, Mapping)]
        if not rows or not all(any(path in row for row in rows) for path in paths.values()):
            return None  # a path that leads into objects, or a column in another spelling
        return Columnar(paths, arm, arms, numbered)

    def read(self, batch: Sequence[Document]) -> Batch:
        """Documents that follow each other."""
        documents = [document for document in batch if type(document.value) is dict]
        columns = _Columns([document.value for document in documents])
        columns.lines = [document.number for document in documents]
        read = self._pair if "text_a" in self.paths else self._single
        table = read(columns)
        others = [document for document in batch if type(document.value) is not dict]
        if columns.odd:
            others.extend(documents[place] for place in columns.odd)
            others.sort(key=lambda document: document.number)
        return Batch(table, others, len(batch) - len(others))

    def _single(self, columns: _Columns) -> pa.Table:
        arm: list[Any] | None = None
        if "arm" in self.paths:
            arm = columns.read(self.paths["arm"], self._arm, required=True)
        prompt = columns.prompts(self.paths["prompt"])
        text = columns.texts(self.paths["text"])
        common = self._common(columns)
        measured = self._measures(columns, "")
        given = columns.read(self.paths["id"], name) if "id" in self.paths else None
        model = columns.read(self.paths["model"], name) if "model" in self.paths else None
        prompt, text, arm, given, model, lines = columns.plain(prompt, text, arm, given, model, columns.lines)
        unit, session, times = columns.plain(*common)
        n_rows = len(prompt)
        if given is None or None in given:
            instants = times or [None] * n_rows
            given = [
                self._numbered(_digest(f"[{_ascii(asked)},{_ascii(logged)},{_iso(at)}]")) if known is None else known
                for known, asked, logged, at in zip(given or [None] * n_rows, prompt, text, instants, strict=True)
            ]
        filled = {
            "request_id": given,
            "arm": arm or [self.arm] * n_rows,
            "model_requested": model,
            "model": model,
            "text": text,
            **dict(zip(_MEASURES, columns.plain(*measured), strict=True)),
            **_context(prompt, lines, unit, session, times),
        }
        return _table(filled, n_rows)

    def _pair(self, columns: _Columns) -> pa.Table:
        paths = self.paths
        prompt = columns.prompts(paths["prompt"]) if "prompt" in paths else columns.prompts("")
        texts = [columns.texts(paths[f"text{side}"]) for side in _SIDES]
        common = self._common(columns)
        measured = [self._measures(columns, side) for side in _SIDES]
        given = columns.read(paths["id"], name) if "id" in paths else None
        models = [columns.read(paths[f"model{side}"], name) if f"model{side}" in paths else None for side in _SIDES]
        prompt, first, second, given, *models, lines = columns.plain(prompt, *texts, given, *models, columns.lines)
        unit, session, times = columns.plain(*common)
        n_rows = len(prompt)
        if given is None or None in given:
            given = [
                self._numbered(
                    _digest(f'[[{{"content":{_ascii(asked)},"role":"user"}}],{_iso(at)},{_ascii(one)},{_ascii(other)}]')
                )
                if known is None
                else known
                for known, asked, at, one, other in zip(
                    given or [None] * n_rows, prompt, times or [None] * n_rows, first, second, strict=True
                )
            ]
        context = _context(prompt, lines, unit, session, times)
        tables = []
        for arm, text, model, values in zip(("control", "treatment"), (first, second), models, measured, strict=True):
            filled = {
                "request_id": given,
                "arm": [arm] * n_rows,
                "model_requested": model,
                "model": model,
                "text": text,
                **dict(zip(_MEASURES, columns.plain(*values), strict=True)),
                **context,
            }
            tables.append(_table(filled, n_rows))
        return pa.concat_tables(tables)

    def _arm(self, value: Any) -> str | None:
        found = name(value)
        arm = None if found is None else self.arms.of(found)
        return None if arm is None else arm.value

    def _common(self, columns: _Columns) -> tuple[list[Any] | None, ...]:
        """The units, conversations and instants that the rows name; None where the mapping has none."""
        paths = self.paths
        unit = columns.units(paths["user"], any_name="text_a" in paths) if "user" in paths else None
        session = columns.read(paths["session"], name) if "session" in paths else None
        times = columns.read(paths["time"], instant, odd=True) if "time" in paths else None
        return unit, session, times

    def _measures(self, columns: _Columns, side: str) -> tuple[list[Any] | None, ...]:
        """Columns of `_MEASURES`; a row in which one of them is none of its kind is odd."""
        paths = self.paths
        latency_ms = paths.get(f"latency_ms{side}")
        latency = None if latency_ms is None else columns.read(latency_ms, milliseconds_of, odd=True)
        if "latency_s" in paths and not side:
            seconds = columns.read(paths["latency_s"], _seconds, odd=True)
            latency = [
                one if one is not None else other * 1000 if type(other) is float else other
                for one, other in zip(latency or [None] * len(seconds), seconds, strict=True)
            ]
        tokens = [
            columns.read(paths[f"{kind}{side}"], count, odd=True) if f"{kind}{side}" in paths else None
            for kind in ("input_tokens", "output_tokens")
        ]
        cost = paths.get(f"cost_usd{side}" if side else "cost")
        return latency, *tokens, None if cost is None else columns.read(cost, _dollars, odd=True)

    def _numbered(self, digest: str) -> str:
        self.numbered[digest] += 1
        n = self.numbered[digest]
        return digest if n == 1 else f"{digest}-{n}"


class _Columns:
    """The values of many rows by column; `odd` collects the places of rows that are not plain."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self._rows = rows
        self.lines: list[int] = []
        self._odd: set[int] = set()

    @property
    def odd(self) -> list[int]:
        return sorted(self._odd)

    def plain(self, *columns: list[Any] | None) -> list[Any]:
        """The columns without the rows that are odd."""
        if not self._odd:
            return list(columns)
        return [
            None if column is None else [value for place, value in enumerate(column) if place not in self._odd]
            for column in columns
        ]

    def prompts(self, path: str) -> list[Any]:
        values = [row.get(path) for row in self._rows]
        self._odd.update(
            place
            for place, value in enumerate(values)
            if type(value) is not str
            or value[:1] in _SPECIAL
            or value.isspace()
            or not (value.isascii() or _is_encodable(value))
        )
        return values

    def texts(self, path: str) -> list[Any]:
        values = [row.get(path) for row in self._rows]
        self._odd.update(
            place
            for place, value in enumerate(values)
            if type(value) is not str
            or value[:1] in _SPECIAL
            or value.startswith(_HEADS)
            or ("hink" in value and _may_be_reasoning(value))
            or (len(value) <= 80 and ("edact" in value or "EDACT" in value or "HINK" in value))
        )
        return values

    def units(self, path: str, *, any_name: bool) -> list[Any]:
        """Of users; for pairs `any_name` is kept, also one that means no user elsewhere."""

        def unit(value: Any) -> Any:
            if type(value) is not str:
                return str(value) if type(value) is int else _ODD
            found = value.strip()
            if found[:1] in {"{", "["}:
                return _ODD
            return None if not found or (not any_name and len(found) < 16 and found.lower() in NOBODY) else found

        return self._converted([row.get(path) for row in self._rows], unit)

    def read(self, path: str, reader: Reading, *, odd: bool = False, required: bool = False) -> list[Any]:
        """The values as `reader` reads them; None for an empty one. Where it reads nothing: None, or an `odd` row."""

        def read(value: Any) -> Any:
            found = None if odd and value == "" else reader(value)
            return _ODD if found is None and (required or (odd and value != "")) else found

        return self._converted([row.get(path) for row in self._rows], read, required=required)

    def _converted(self, values: list[Any], convert: Reading, *, required: bool = False) -> list[Any]:
        kinds = set(map(type, values))
        known: Any
        if kinds - {NoneType} in ({str}, {int}):  # names and counts repeat: each is read once
            known = {value: convert(value) for value in dict.fromkeys(values) if value is not None or required}
            found = list(map(known.get, values))
        elif required:
            found = [convert(value) for value in values]
        else:
            found = [None if value is None else convert(value) for value in values]
        if _ODD in found:
            self._odd.update(place for place, value in enumerate(found) if value is _ODD)
        return found


Reading = Callable[[Any], Any]
_ODD = object()
_SIDES = ("_a", "_b")
_MEASURES = ("latency_ms", "input_tokens", "output_tokens", "cost_usd")
_FIXED: Mapping[str, Any] = {
    "role": "imported", "endpoint": "chat.completions", "outcome": "ok", "simulated": False, "step": 0,
}  # fmt: skip
_SPECIAL = frozenset({"", "{", "[", "<", " ", "\t", "\n", "\r", "\0"})
_HEADS = ("data:", "event:", ": ")


def _context(
    prompt: list[str],
    lines: list[int],
    unit: list[Any] | None,
    session: list[Any] | None,
    times: list[Any] | None,
) -> dict[str, list[Any] | None]:
    """What both answers of a row have in common."""
    n_rows = len(prompt)
    started = [
        unknown_time(line) if at is None else at for at, line in zip(times or [None] * n_rows, lines, strict=True)
    ]
    conversation = [
        known or _digest(f'["",{_ascii(asked)}]')[:16]
        for known, asked in zip(session or [None] * n_rows, prompt, strict=True)
    ]
    return {
        "unit_id": unit,
        "conversation_id": conversation,
        "started_at": started,
        "request": [f'{{"messages": [{{"role": "user", "content": {encode_basestring(asked)}}}]}}' for asked in prompt],
        "prompt": prompt,
        "turn": [1] * n_rows if session is None else [None if known else 1 for known in session],
    }


def _seconds(value: Any) -> float | None:
    return None if type(value) is str else milliseconds_of(value)


def _dollars(value: Any) -> float | None:
    found = number(value)
    return None if found is None or found < 0 else found


def _is_encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate: it stays escaped in the request
        return False
    return True


def _may_be_reasoning(value: str) -> bool:
    return len(value) <= 80 or ("think" in value and ("</think>" in value or "think" in value[:40]))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]


def _iso(times: Any) -> str:
    return "null" if times is None else f'"{times.isoformat()}"'


def _table(columns: Mapping[str, Sequence[Any] | None], n_rows: int) -> pa.Table:
    arrays = {}
    for one in EXCHANGES:
        values = columns.get(one.name)
        if values is not None:
            arrays[one.name] = _array(values, one.type)
        elif one.name in _FIXED:
            arrays[one.name] = pa.repeat(pa.scalar(_FIXED[one.name], one.type), n_rows)
        else:
            arrays[one.name] = pa.nulls(n_rows, one.type)
    return table_of(arrays, EXCHANGES)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:
        return pa.array([None if value is None else well_formed(value) for value in values], kind)
