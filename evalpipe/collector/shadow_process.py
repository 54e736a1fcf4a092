"""The shadow process: follows the spool, feeds the queue of shadow requests, keeps its checkpoint."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from pathlib import Path

import msgspec

from evalpipe.collector.metrics import Metrics
from evalpipe.collector.settings import CollectorSettings
from evalpipe.collector.shadow import ShadowQueue
from evalpipe.collector.status import SpoolWatch
from evalpipe.collector.unredacted_channel import UnredactedReceiver
from evalpipe.collector.upstream import Pool
from evalpipe.collector.usage_metrics import CountingPace, Pricer, UsageMetrics
from evalpipe.files import try_lock
from evalpipe.spool.checkpoint import (
    OWN_PREFIX,
    TREATMENT_LOCK,
    RecordPosition,
    ShadowState,
    is_lost,
    load_spent,
    load_state,
    save_spent,
    save_state,
)
from evalpipe.spool.format import RequestRecord, ResponseRecord, ShadowRecord, read_record
from evalpipe.spool.reader import SegmentFiles, SpoolTail, TailedLine, read_line_at
from evalpipe.spool.writer import SpoolWriter

POLL_S = 0.002
"""while records come"""
IDLE_POLL_S = 0.01
"""while none come"""
_SAVE_S = 1.0
_LOOK_S = 0.1
_CALM = 1500
"""requests a second up to which answers are counted between copies: to count one takes longer than to copy it"""
_REQUEST, _RESPONSE, _SHADOW = b'{"record":"request"', b'{"record":"response"', b'{"record":"shadow"'
_GO_ON_BELOW = 0.5
"""a full queue is filled again from here on: not line by line, since every reading begins with a large piece"""
_MAX_LINES = 256
"""records taken before the event loop handles the network again"""

logger = logging.getLogger(__name__)


class ShadowProcess:
    def __init__(self, settings: CollectorSettings, loop: asyncio.AbstractEventLoop) -> None:
        self._settings, self._loop = settings, loop
        self._folder = Path(settings.spool)
        self._metrics = Metrics(settings.experiment, f"shadow-{os.getpid()}")
        self._writer = SpoolWriter(
            self._folder,
            f"{OWN_PREFIX}{time.time_ns() // 1_000_000}-{os.getpid()}",
            segment_bytes=settings.segment_bytes,
            segment_s=settings.segment_s,
            on_lost=self._lost,
            on_gone=self._gone,
            before_rotation=self._save,
        )
        arm = settings.treatment or settings.control
        self._pool = Pool(
            loop,
            arm.origin,
            keep_alive_s=settings.upstream_keep_alive_s,
            connect_timeout_s=settings.connect_timeout_s,
            ca_file=settings.ca_file,
        )
        self._lock = -1
        self._files = SegmentFiles(self._folder)
        self._watch = SpoolWatch(settings, self._folder)
        self._saving = threading.Lock()
        self._unsaved: tuple[ShadowState, float] | None = None
        self._not_saved: str | None = None
        self._not_opened: str | None = None
        self._saved_at = 0.0
        self._saved_spent = 0.0
        self._pauses = False
        self._mirror: ShadowQueue | None = None
        self._decided: set[str] = set()
        self._originals: UnredactedReceiver | None = None

    def _lost(self, reason: str) -> None:
        self._metrics.lost()

    def _gone(self, reason: str, n: int) -> None:
        self._metrics.lost(n)

    async def run(self, stop: asyncio.Event) -> None:
        """Until `stop` is set, all that was recorded is decided, and what is under way has ended."""
        if self._settings.treatment is None:  # nothing is timed here, and counting can wait for the users
            os.nice(19)
        if not await self._exclusive(stop):
            return
        lost = is_lost(self._folder)
        state = load_state(self._folder)
        pricer = Pricer(self._settings)
        decided, self._spent = self._own_past(state, pricer)
        self._spent[self._settings.experiment] = self._known_spent(lost)
        self._writer.open()
        self._accountant = UsageMetrics(
            self._settings, self._folder, state.accounted, self._metrics, pricer, self._files
        )
        self._tail = SpoolTail(self._folder, "served-", state.offsets, files=self._files)
        spent_usd = self._spent[self._settings.experiment]
        portions = None
        if self._settings.treatment is not None:
            if self._settings.objects_url is not None and self._settings.shadow_budget_usd is not None:
                from evalpipe.collector.portions import open_portions  # only where replicas share a budget

                portions = open_portions(self._settings, self._loop, spent_usd)
            self._mirror = ShadowQueue(
                self._settings,
                self._loop,
                self._writer,
                self._pool,
                self._metrics,
                pricer,
                spent_usd=spent_usd,
                portions=portions,
            )
        try:
            self._resume(state, decided)
            if self._mirror is not None and self._settings.shadow_socket:
                await self._listen_for_originals(self._mirror, self._settings.shadow_socket)
            await self._follow(stop)
            await self._finish()
            if portions is not None and self._mirror is not None:
                await self._loop.run_in_executor(None, portions.close, self._mirror.booked_usd)
        finally:
            if self._originals is not None:
                self._originals.close()
            self._save()
            self._write_state()
            self._metrics.flush()
            self._accountant.close()
            self._pool.close()
            self._writer.close()
            self._tail.close()
            os.close(self._lock)

    # --- start

    async def _exclusive(self, stop: asyncio.Event) -> bool:
        """Two of these on one spool would send copies twice: a new one waits until the old one has ended. False: `stop` came
        first."""
        reported = False
        while not stop.is_set():
            try:
                if self._take_lock():
                    return True
            except OSError as error:
                if not reported:
                    logger.error("the spool %s cannot be used: %s; it is tried again", self._folder, error)
                reported = True
            await asyncio.sleep(0.05)
        return False

    def _take_lock(self) -> bool:
        """False: another process has it. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(self._folder / TREATMENT_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not try_lock(fd):
                os.close(fd)
                return False
        except OSError:
            os.close(fd)
            raise
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = fd
        return True

    def _keep_lock(self) -> None:
        """Where the folder was deleted or replaced, so was the lock. Another process that has the new one decides from now on:
        this one ends."""
        try:
            here, there = os.fstat(self._lock), os.stat(self._folder / TREATMENT_LOCK)  # noqa: PTH116
            if here.st_ino == there.st_ino and here.st_dev == there.st_dev:
                return
        except OSError:  # gone
            pass
        try:
            if not self._take_lock():
                raise RuntimeError(f"another process decides on the copies of {self._folder}")
        except OSError:  # the writer reports it; it is tried again
            return
        logger.error("the lock %s in the spool was deleted or replaced; it was made anew", TREATMENT_LOCK)

    def _own_past(self, state: ShadowState, pricer: Pricer) -> tuple[set[str], dict[str, float]]:
        """Requests decided after the state was last saved, and what was spent until now, by experiment."""
        decided = set(state.decided)
        spent = dict(state.spent_usd)
        past = SpoolTail(self._folder, OWN_PREFIX, state.offsets)
        past.look_for_segments()
        arm = self._settings.treatment
        for line in past.read():
            record = _read(line.line)
            if isinstance(record, ShadowRecord):
                decided.add(record.request_id)
            elif isinstance(record, ResponseRecord) and arm is not None:
                usd = (pricer.cost(pricer.read(record), arm) or 0.0) + record.infrastructure_usd
                spent[record.experiment] = spent.get(record.experiment, 0.0) + usd
        self._own_offsets = past.offsets()
        past.close()
        return decided, spent

    def _known_spent(self, lost: bool) -> float:
        """USD spent on this experiment's copies: a state that is lost or old must not free what is spent."""
        experiment = self._settings.experiment
        own = self._spent.get(experiment, 0.0) + (self._settings.shadow_spent_usd if lost else 0.0)
        self._saved_spent = load_spent(Path(self._settings.data), experiment)
        return max(own, self._saved_spent)

    def _resume(self, state: ShadowState, decided: set[str]) -> None:
        """Requests the last life had read but not decided."""
        self._decided = decided
        for place in state.waiting:
            line = read_line_at(self._folder / place.segment, place.offset)
            if line is not None and self._settings.shadow_socket and self._mirror is not None:
                record = _read(line)
                if isinstance(record, RequestRecord) and record.request_id not in decided:
                    self._mirror.lost(record.request_id, "copy_lost")
            elif line is not None:
                self._handle(TailedLine(place.segment, place.offset, line))

    async def _listen_for_originals(self, mirror: ShadowQueue, path: str) -> None:
        """Redaction keeps originals off the disk: they come through memory. Those of the last life are gone."""
        self._originals = UnredactedReceiver(mirror)
        self._tail.look_for_segments()
        await self._take_in(mirror)
        self._originals.give_up_all()
        await self._originals.listen(path)

    # --- the loop

    async def _follow(self, stop: asyncio.Event) -> None:
        self._tail.look_for_segments()  # before the first reading: what is decided is forgotten once all was read
        looked_at = self._loop.time()
        pace = CountingPace(looked_at, self._accountant.unread_bytes)
        n_lines, is_calm = 0, True
        while not stop.is_set():
            now = self._loop.time()
            if now - looked_at > _LOOK_S:
                is_calm = n_lines <= _CALM * (now - looked_at)
                looked_at, n_lines = now, 0
                self._look(now)
            n_new = 0 if self._mirror is None else await self._take_in(self._mirror)
            n_lines += n_new
            hurries = pace.hurries(now, is_calm=is_calm)
            if (hurries or not n_new) and self._accountant.work(pace.slice_s(now, hurries=hurries)):
                pace.caught_up(now)
            await asyncio.sleep(POLL_S if n_new else IDLE_POLL_S)

    def _look(self, now: float) -> None:
        self._accountant.look_for_segments()
        if self._mirror is not None:
            self._tail.look_for_segments()
            self._mirror.tick()
        if self._originals is not None:
            self._originals.tick()
        self._metrics.flush()
        self._writer.tick()
        if now - self._saved_at > _SAVE_S:
            self._tail.let_go()
            self._accountant.let_go()
            self._save()
            self._pool.tick()
            self._keep_lock()
            self._watch_spool()
            if self._mirror is not None:
                self._mirror.tick_budget()
            self._loop.run_in_executor(None, self._writer.sync)

    def _watch_spool(self) -> None:
        refusal = self._files.refusal
        if refusal is not None and self._not_opened is None:
            logger.error("segments of the spool cannot be opened: %s; they are read later", refusal)
        elif refusal is None and self._not_opened is not None:
            logger.info("segments of the spool can be opened again")
        self._not_opened = refusal
        found = self._watch.look(self._accountant.offsets())
        if found is not None:
            self._metrics.spool(
                unloaded_bytes=found.n_bytes,
                age_s=found.age_s,
                unaccounted_bytes=found.n_unaccounted,
                falling_behind=found.falling_behind,
            )

    async def _take_in(self, mirror: ShadowQueue, *, finishing: bool = False) -> int:
        """Hand the mirror what was recorded, until it is full; at the end all of it, and what does not fit is shed."""
        if self._pauses and not finishing and mirror.fullness > _GO_ON_BELOW:
            return 0
        self._pauses = False
        n_lines = 0
        # Originals in memory and shutdown bypass the queue limit; else what does not fit stays in the spool.
        mirror.sheds_overflow = finishing or self._originals is not None
        for line in self._tail.read(*self._wanted(mirror)):
            self._handle(line)
            n_lines += 1
            if n_lines % _MAX_LINES == 0:
                await asyncio.sleep(0)
            if not mirror.sheds_overflow and mirror.fullness >= 1:
                self._pauses = True
                break
        if not n_lines and self._files.refusal is None:  # all that was recorded before this life has been come across
            self._decided.clear()
        return n_lines

    def _wanted(self, mirror: ShadowQueue) -> list[bytes]:
        """Records the mirror has to see."""
        wanted = [_REQUEST]
        if self._originals is not None:
            wanted.append(_SHADOW)
        if mirror.shares_quota:
            wanted.append(_RESPONSE)
        return wanted

    def _handle(self, line: TailedLine) -> None:
        mirror = self._mirror
        if mirror is None:
            return
        if line.line.startswith(_REQUEST):
            record = _read(line.line)
            if not isinstance(record, RequestRecord) or not record.eligible:
                return
            if record.request_id in self._decided:
                self._decided.discard(record.request_id)
            elif record.experiment != self._settings.experiment:
                return
            elif self._originals is not None:
                self._originals.recorded(record, RecordPosition(line.segment, line.offset))
            else:
                mirror.take(record, RecordPosition(line.segment, line.offset))
        elif line.line.startswith(_SHADOW):
            record = _read(line.line)
            if self._originals is not None and isinstance(
                record, ShadowRecord
            ):  # the worker could not hand it over and has reported it
                self._originals.decided(record.request_id)
        else:
            record = _read(line.line)
            if isinstance(record, ResponseRecord):
                mirror.saw(record)

    async def _finish(self) -> None:
        """The workers have ended: decide all they recorded, let the copies under way end."""
        mirror = self._mirror
        if mirror is None:
            return
        self._tail.look_for_segments()
        deadline = self._loop.time() + self._settings.shadow_timeout_s
        n_lines = await self._take_in(mirror)
        if self._originals is not None:
            await self._originals.drain()
        while (n_lines or self._pauses or not mirror.is_idle) and self._loop.time() < deadline:
            await asyncio.sleep(0.02)
            mirror.tick()
            n_lines = await self._take_in(mirror)
        await self._take_in(mirror, finishing=True)
        mirror.shed_queue("stopping")

    def _waiting(self) -> list[RecordPosition]:
        waiting = [] if self._mirror is None else self._mirror.waiting()
        return waiting if self._originals is None else waiting + self._originals.waiting()

    def _save(self) -> None:
        """Have the state written by a thread: a sync may take long, and copies are timed here."""
        self._saved_at = self._loop.time()
        if self._mirror is not None:
            self._spent[self._settings.experiment] = self._mirror.spent_usd
        self._own_offsets.update(self._writer.position())
        state = ShadowState(
            offsets={**self._own_offsets, **self._tail.offsets()},
            accounted=self._accountant.offsets(),
            waiting=self._waiting(),
            decided=list(self._decided),
            spent_usd=dict(self._spent),
        )
        self._unsaved = (state, self._spent.get(self._settings.experiment, 0.0))
        self._loop.run_in_executor(None, self._write_state)

    def _write_state(self) -> None:
        with self._saving:  # one at a time, so that no older state replaces a newer one
            unsaved, self._unsaved = self._unsaved, None
            if unsaved is not None:
                self._write(unsaved[0], unsaved[1])

    def _write(self, state: ShadowState, spent: float) -> None:
        try:
            save_state(self._folder, state)
            if spent != self._saved_spent:
                save_spent(Path(self._settings.data), self._settings.experiment, spent)
                self._saved_spent = spent
        except OSError as error:
            if self._not_saved is None:
                logger.error("the state of the copies cannot be saved: %s; it is tried again", error)
            self._not_saved = str(error)
        else:
            if self._not_saved is not None:
                logger.info("the state of the copies is saved again")
            self._not_saved = None


def _read(line: bytes) -> object:
    """The record, or None for a broken line (load puts it aside and counts it)."""
    try:
        return read_record(line)
    except (ValueError, msgspec.MsgspecError):
        return None
