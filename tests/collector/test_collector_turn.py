"""A turn's order, and that one flight's fault is no other flight's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from evalpipe.collector import is_compiled
from evalpipe.collector.exchange_base import WriteBatch
from evalpipe.spool.writer import SpoolWriter

pytestmark = pytest.mark.skipif(is_compiled(), reason="the compiled turn takes real flights only")


class Flight:
    """What a turn asks of a flight."""

    def __init__(self, name: str, told: list[str], spool: Path, *, fails: bool = False) -> None:
        self.name, self._told, self._spool, self._fails = name, told, spool, fails

    def send_last(self, now: float) -> None:
        self._tell("sends")

    def answer_last(self, now: float) -> None:
        self._tell("answers")

    def fault(self) -> None:
        self._told.append(f"{self.name} is given up")

    def _tell(self, what: str) -> None:
        if self._fails:
            raise RuntimeError("the handler is closed")
        n_records = sum(path.read_bytes().count(b"\n") for path in self._spool.iterdir())
        self._told.append(f"{self.name} {what}, {n_records} records written")


def test_requests_then_records_then_answers_and_a_fault_stays_alone(tmp_path: Path) -> None:
    told: list[str] = []

    async def one_turn() -> None:
        writer = SpoolWriter(tmp_path, "served-1", segment_bytes=1 << 20, segment_s=300)
        writer.open()
        turn = WriteBatch(asyncio.get_running_loop(), writer)
        a: Any = Flight("a", told, tmp_path)
        b: Any = Flight("b", told, tmp_path, fails=True)
        c: Any = Flight("c", told, tmp_path)
        turn.record(b"{}\n")
        turn.answer(a)
        for flight in (b, c):
            turn.send(flight)
            turn.record(b"{}\n")
        turn.answer(b)
        assert told == [], "a turn ends when the loop comes round"
        await asyncio.sleep(0)
        writer.close()

    asyncio.run(one_turn())
    assert told == [
        "b is given up",
        "c sends, 0 records written",
        "a answers, 3 records written",
        "b is given up",
    ]
