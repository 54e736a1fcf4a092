"""Plain rows of a mapped table, many at once: columns of exchanges without an object for each row.

It gives exactly what reading row by row gives (a test holds that). A row that is anything but plain (a prompt that is no text, an
answer that may be JSON, a time that is none) is left to the reader of single rows.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import pyarrow as pa

from evalpipe.store.importers.base import unknown_time
from evalpipe.store.importers.documents import Document
from evalpipe.store.importers.mapping import Arms, Mapped
from evalpipe.store.importers.table import NOBODY
from evalpipe.store.importers.values import count, instant, milliseconds_of, name, number
from evalpipe.store.schema import EXCHANGES
from evalpipe.text import well_formed

BATCH = 20_000
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
_ENCODER = json.JSONEncoder(ensure_ascii=False)
_ASCII = json.JSONEncoder(ensure_ascii=True)


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
    _columns: dict[str, list[Any]] = field(default_factory=dict)

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

    def batches(self, documents: Iterator[Document]) -> Iterator[Batch]:
        """The documents in batches, in order."""
        while batch := list(itertools.islice(documents, BATCH)):
            yield self._read(batch)

    def _read(self, batch: Sequence[Document]) -> Batch:
        others: list[Document] = []
        read = self._pair if "text_a" in self.paths else self._single
        rows: list[tuple[Any, ...]] = []
        for document in batch:
            value = document.value
            found = read(value, document.number) if type(value) is dict else None
            if found is None:
                others.append(document)
            else:
                rows.extend(found)
        columns = dict(zip(_FILLED, zip(*rows, strict=True), strict=True)) if rows else {}
        return Batch(_table(columns, len(rows)), others, len(batch) - len(others))

    def _single(self, row: dict[str, Any], line: int) -> list[tuple[Any, ...]] | None:
        paths = self.paths
        prompt, text = row.get(paths["prompt"]), row.get(paths["text"])
        if not _is_plain_prompt(prompt) or not _is_plain_text(text):
            return None
        common = self._common(row, line, prompt)
        if common is None:
            return None
        unit, conversation, started, told, turn, position = common
        arm = self.arm
        if "arm" in paths:
            value = name(row.get(paths["arm"]))
            found = None if value is None else self.arms.of(value)
            if found is None:
                return None
            arm = found.value
        measures = self._measures(row, "")
        if measures is None:
            return None
        given = name(row.get(paths["id"])) if "id" in paths else None
        if given is None:
            given = self._numbered(_digest(f"[{_ASCII.encode(prompt)},{_ASCII.encode(text)},{_iso(told)}]"))
        model = name(row.get(paths["model"])) if "model" in paths else None
        return [
            (
                given,
                arm,
                unit,
                conversation,
                started,
                model,
                model,
                _request(prompt),
                text,
                *measures,
                prompt,
                turn,
                position,
            )
        ]

    def _pair(self, row: dict[str, Any], line: int) -> list[tuple[Any, ...]] | None:
        paths = self.paths
        prompt, first, second = row.get(paths["prompt"]), row.get(paths["text_a"]), row.get(paths["text_b"])
        if not _is_plain_prompt(prompt) or not _is_plain_text(first) or not _is_plain_text(second):
            return None
        common = self._common(row, line, prompt)
        if common is None:
            return None
        unit, conversation, started, told, turn, position = common
        measures = [self._measures(row, side) for side in ("_a", "_b")]
        if None in measures:
            return None
        given = name(row.get(paths["id"])) if "id" in paths else None
        if given is None:
            message = f'[{{"content":{_ASCII.encode(prompt)},"role":"user"}}]'
            given = self._numbered(_digest(f"[{message},{_iso(told)},{_ASCII.encode(first)},{_ASCII.encode(second)}]"))
        request = _request(prompt)
        found = []
        for side, arm, text, measured in zip(
            ("_a", "_b"), ("control", "treatment"), (first, second), measures, strict=True
        ):
            model = name(row.get(paths[f"model{side}"])) if f"model{side}" in paths else None
            head = (given, arm, unit, conversation, started, model, model, request, text)
            found.append((*head, *(measured or ()), prompt, turn, position))
        return found

    def _common(self, row: dict[str, Any], line: int, prompt: str) -> tuple[Any, ...] | None:
        """(unit, conversation, start, the log's own time, turn, step)."""
        paths = self.paths
        unit = session = told = None
        if "user" in paths:
            unit = row.get(paths["user"])
            if unit is not None and type(unit) is not str:
                if type(unit) is not int:
                    return None
                unit = str(unit)
            if unit is not None:
                unit = unit.strip()
                if unit[:1] in {"{", "["}:
                    return None
                unit = (
                    None if not unit or (len(unit) < 16 and unit.lower() in NOBODY and "text_a" not in paths) else unit
                )
        if "session" in paths:
            session = name(row.get(paths["session"]))
        if "time" in paths:
            value = row.get(paths["time"])
            if value is not None and value != "":
                told = instant(value)
                if told is None:
                    return None
        conversation = session or _digest(f'["",{_ASCII.encode(prompt)}]')[:16]
        return unit, conversation, told or unknown_time(line), told, None if session else 1, 0

    def _measures(self, row: dict[str, Any], side: str) -> tuple[Any, ...] | None:
        """(latency, input tokens, output tokens, cost); None where one of them is none of its kind."""
        latency = self._value(row, f"latency_ms{side}", milliseconds_of)
        if latency is None and "latency_s" in self.paths and not side:
            seconds = self._value(row, "latency_s", milliseconds_of)
            if seconds is _ODD or type(row.get(self.paths["latency_s"])) is str:
                return None
            latency = None if seconds is None else seconds * 1000
        found = (
            latency,
            self._value(row, f"input_tokens{side}", count),
            self._value(row, f"output_tokens{side}", count),
            self._value(row, f"cost_usd{side}" if side else "cost", number),
        )
        if _ODD in found or (found[3] is not None and found[3] < 0):
            return None
        return found

    def _value(self, row: dict[str, Any], target: str, read: Any) -> Any:
        path = self.paths.get(target)
        value = None if path is None else row.get(path)
        if value is None or value == "":
            return None
        found = read(value)
        return _ODD if found is None else found

    def _numbered(self, digest: str) -> str:
        self.numbered[digest] += 1
        n = self.numbered[digest]
        return digest if n == 1 else f"{digest}-{n}"


_ODD = object()
_FILLED = (
    "request_id", "arm", "unit_id", "conversation_id", "started_at", "model_requested", "model", "request", "text", "latency_ms",
    "input_tokens", "output_tokens", "cost_usd", "prompt", "turn", "step",
)  # fmt: skip
_FIXED: Mapping[str, Any] = {"role": "imported", "endpoint": "chat.completions", "outcome": "ok", "simulated": False}


def _is_plain_prompt(value: Any) -> TypeGuard[str]:
    if type(value) is not str or value[:1] in _SPECIAL or value.isspace():
        return False
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:  # a lone surrogate: it stays escaped in the request
        return False
    return True


_SPECIAL = frozenset({"", "{", "[", "<", " ", "\t", "\n", "\r", "\0"})
_HEADS = ("data:", "event:", ": ")


def _is_plain_text(value: Any) -> TypeGuard[str]:
    if type(value) is not str or value[:1] in _SPECIAL or value.startswith(_HEADS):
        return False
    if "think" in value and ("</think>" in value or "think" in value[:40]):
        return False
    return len(value) > 80 or (
        "edact" not in value and "EDACT" not in value and "hink" not in value and "HINK" not in value
    )


def _request(prompt: str) -> str:
    return f'{{"messages": [{{"role": "user", "content": {_ENCODER.encode(prompt)}}}]}}'


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:32]


def _iso(told: Any) -> str:
    return "null" if told is None else f'"{told.isoformat()}"'


def _table(columns: Mapping[str, Sequence[Any]], n_rows: int) -> pa.Table:
    arrays = []
    for one in EXCHANGES:
        if one.name in columns:
            arrays.append(_array(columns[one.name], one.type))
        elif one.name in _FIXED:
            arrays.append(pa.repeat(pa.scalar(_FIXED[one.name], one.type), n_rows))
        else:
            arrays.append(pa.nulls(n_rows, one.type))
    return pa.Table.from_arrays(arrays, schema=EXCHANGES)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:
        return pa.array([None if value is None else well_formed(value) for value in values], kind)
