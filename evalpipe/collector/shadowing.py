"""The treatment process: follows the spool, feeds the mirror, remembers how far it came."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from evalpipe.collector.metrics import Metrics
from evalpipe.collector.mirror import Mirror
from evalpipe.collector.pricing import Pricer
from evalpipe.collector.settings import CollectorSettings
from evalpipe.collector.shadow_state import Place, ShadowState, load_state, save_state
from evalpipe.collector.spooling import SpoolWriter
from evalpipe.collector.tail import SpoolTail, TailedLine, read_line_at
from evalpipe.collector.upstream import Pool
from evalpipe.core.spool import Body, RequestRecord, ResponseRecord, ShadowRecord, read_record

POLL_S = 0.002
"""while records come"""
IDLE_POLL_S = 0.01
"""while none come"""
_SAVE_S = 1.0
_MAX_LINES = 256
"""records taken before the network has its turn again"""


class ShadowProcess:
    def __init__(self, settings: CollectorSettings, loop: asyncio.AbstractEventLoop) -> None:
        self._settings, self._loop = settings, loop
        self._folder = Path(settings.spool)
        self._metrics = Metrics(settings.experiment, f"shadow-{os.getpid()}")
        self._writer = SpoolWriter(
            self._folder,
            f"shadow-{time.time_ns() // 1_000_000}-{os.getpid()}",
            segment_bytes=settings.segment_bytes,
            segment_s=settings.segment_s,
            on_lost=self._lost,
            before_rotation=self._save,
        )
        self._pool = Pool(
            loop,
            keep_alive_s=settings.upstream_keep_alive_s,
            connect_timeout_s=settings.connect_timeout_s,
            ca_file=settings.ca_file,
        )
        self._saved_at = 0.0

    def _lost(self, reason: str) -> None:
        self._metrics.lost()

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set, all that was recorded is decided, and what is under way has ended."""
        lock = await self._exclusive(stop)
        if lock is None:
            return
        state = load_state(self._folder)
        pricer = Pricer(self._settings)
        pricer.warm_up(self._settings)
        redact = self._redaction()
        self._writer.open()
        decided, spent_usd = self._own_past(state, pricer)
        self._spent_elsewhere = {k: v for k, v in state.spent_usd.items() if k != self._settings.experiment}
        self._mirror = Mirror(
            self._settings,
            self._loop,
            self._writer,
            self._pool,
            self._metrics,
            pricer,
            spent_usd=spent_usd,
            redact=redact,
        )
        self._tail = SpoolTail(self._folder, "served-", state.offsets)
        try:
            self._resume(state, decided)
            await self._follow(stop, decided)
            await self._finish()
        finally:
            self._save()
            self._pool.close()
            self._writer.close()
            self._tail.close()
            os.close(lock)

    # --- start

    async def _exclusive(self, stop: asyncio.Event) -> int | None:
        """Two of these on one spool would send copies twice: a new one waits until the old one has ended."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(self._folder / ".shadow.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while not stop.is_set():
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await asyncio.sleep(0.05)
            else:
                return fd
        os.close(fd)
        return None

    def _own_past(self, state: ShadowState, pricer: Pricer) -> tuple[set[str], float]:
        """What was decided and spent after the state was last saved."""
        decided: set[str] = set()
        spent = state.spent_usd.get(self._settings.experiment, 0.0)
        past = SpoolTail(self._folder, "shadow-", state.offsets)
        past.look_for_segments()
        arm = self._settings.treatment
        assert arm is not None
        for line in past.read():
            record = _read(line.line)
            if isinstance(record, ShadowRecord):
                decided.add(record.request_id)
            elif isinstance(record, ResponseRecord) and record.experiment == self._settings.experiment:
                spent += (pricer.cost(pricer.read(record), arm) or 0.0) + record.infrastructure_usd
        self._own_offsets = past.offsets()
        past.close()
        return decided, spent

    def _resume(self, state: ShadowState, decided: set[str]) -> None:
        """Requests the last life had read but not decided."""
        for place in state.waiting:
            line = read_line_at(self._folder / place.segment, place.offset)
            if line is not None:
                self._handle(TailedLine(place.segment, place.offset, line), decided)

    def _redaction(self) -> Callable[[Body, str | None], Body] | None:
        if not self._settings.redact:
            return None
        from evalpipe.collector.redaction import Redactor

        return Redactor(self._settings.redact).body

    # --- the loop

    async def _follow(self, stop: asyncio.Event, decided: set[str]) -> None:
        looked_at = 0.0
        while not stop.is_set():
            now = self._loop.time()
            if now - looked_at > 0.1:
                looked_at = now
                self._tail.look_for_segments()
                self._mirror.tick()
                self._writer.tick()
                if now - self._saved_at > _SAVE_S:
                    self._tail.let_go()
                    self._save()
                    self._pool.tick()
                    self._loop.run_in_executor(None, self._writer.sync)
            n_lines = await self._take_in(decided)
            await asyncio.sleep(POLL_S if n_lines else IDLE_POLL_S)

    async def _take_in(self, decided: set[str]) -> int:
        n_lines = 0
        for line in self._tail.read():
            self._handle(line, decided)
            n_lines += 1
            if n_lines % _MAX_LINES == 0:
                await asyncio.sleep(0)
        return n_lines

    def _handle(self, line: TailedLine, decided: set[str]) -> None:
        record = _read(line.line)
        if isinstance(record, RequestRecord):
            if record.eligible and record.experiment == self._settings.experiment:
                if record.request_id in decided:
                    decided.discard(record.request_id)
                else:
                    self._mirror.take(record, Place(line.segment, line.offset))
        elif isinstance(record, ResponseRecord) and record.experiment == self._settings.experiment:
            self._mirror.saw(record)

    async def _finish(self) -> None:
        """The workers have ended: decide all they recorded, let the copies under way end."""
        self._tail.look_for_segments()
        await self._take_in(set())
        deadline = self._loop.time() + self._settings.shadow_timeout_s
        while not self._mirror.is_idle and self._loop.time() < deadline:
            await asyncio.sleep(0.02)
            self._mirror.tick()
        self._mirror.shed_queue("stopping")

    def _save(self) -> None:
        if not hasattr(self, "_mirror"):
            return
        self._saved_at = self._loop.time()
        state = ShadowState(
            offsets={**self._own_offsets, **self._writer.position(), **self._tail.offsets()},
            waiting=self._mirror.waiting(),
            spent_usd={**self._spent_elsewhere, self._settings.experiment: self._mirror.spent_usd},
        )
        try:
            save_state(self._folder, state)
        except OSError as error:
            print(f"evalpipe: treatment state not saved: {error}", file=sys.stderr, flush=True)  # noqa: T201


def _read(line: bytes) -> object:
    """The record, or None for a broken line (load puts it aside and counts it)."""
    try:
        return read_record(line)
    except (ValueError, msgspec.MsgspecError):
        return None
