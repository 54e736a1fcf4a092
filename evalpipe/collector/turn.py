"""What one turn of the event loop has to write, written together at its end.

Under load a turn brings many requests and answers. One append for all their records, and their bytes sent one after the
other, cost a fraction of the system calls and of the wake-ups of waiting peers; an exchange alone waits for nothing, as the
turn ends at once. Only last pieces wait here: what goes on streaming passes as it comes.
"""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING

from evalpipe.collector.spooling import SpoolWriter

if TYPE_CHECKING:
    from evalpipe.collector.flight import Flight


class Turn:
    def __init__(self, loop: asyncio.AbstractEventLoop, writer: SpoolWriter) -> None:
        self._loop, self._writer = loop, writer
        self._requests: list[Flight] = []
        self._lines: list[bytes] = []
        self._answers: list[Flight] = []
        self._is_due = False

    def send(self, flight: Flight) -> None:
        """The last piece of a request has its connection."""
        self._requests.append(flight)
        self._end_soon()

    def lines(self) -> list[bytes]:
        """What will be appended to the spool, in pieces: whole records are added to its end, at once."""
        self._end_soon()
        return self._lines

    def record(self, line: bytes) -> None:
        self.lines().append(line)

    def answer(self, flight: Flight) -> None:
        """The last piece of an answer is there. Its record must have been handed over before."""
        self._answers.append(flight)
        self._end_soon()

    def _end_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self.end)

    def end(self) -> None:
        """Requests first, as users wait for what becomes of them; records before the ends of their answers: who has seen
        the last byte finds the exchange in the spool."""
        self._is_due = False
        if self._requests:
            requests, self._requests = self._requests, []
            for flight in requests:
                try:
                    flight.send_last(perf_counter())
                except Exception:  # noqa: BLE001 – a fault of ours: the other flights of the turn go on
                    flight.fault()
        if self._lines:
            lines, self._lines = self._lines, []
            self._writer.append_all(lines)
        if self._answers:
            answers, self._answers = self._answers, []
            for flight in answers:
                try:
                    flight.answer_last(perf_counter())
                except Exception:  # noqa: BLE001 – see above
                    flight.fault()
