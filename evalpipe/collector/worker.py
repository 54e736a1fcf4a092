"""One serving process: its listening socket, connections, pools and spool segment."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Final, cast

from evalpipe.collector.assignment import Assigner, ShadowAssigner
from evalpipe.collector.auth import RequestIds, TokenAuth
from evalpipe.collector.descriptors import Descriptors
from evalpipe.collector.exchange_base import WriteBatch
from evalpipe.collector.forward_headers import HeaderCache
from evalpipe.collector.metrics import Metrics
from evalpipe.collector.recorder import Recorder
from evalpipe.collector.routes import Routes
from evalpipe.collector.settings import ArmSettings, CollectorSettings
from evalpipe.collector.setup_watch import SetupWatch
from evalpipe.collector.traffic_watch import TrafficWatch, Uncollected, folder_of
from evalpipe.collector.transform import UsageAsking, log
from evalpipe.collector.upstream import Pool
from evalpipe.spool.writer import SpoolWriter

if TYPE_CHECKING:
    from collections.abc import Callable

    from evalpipe.collector.assignment import RolloutGauges, Share
    from evalpipe.collector.exchange_base import ClientLink, ExchangeState


TICK_S: Final = 0.1
_BACKLOG: Final = 4096

logger = logging.getLogger(__name__)


class Worker:
    """What exchanges and clients share in one process."""

    def __init__(self, settings: CollectorSettings, loop: asyncio.AbstractEventLoop) -> None:
        self.settings, self.loop = settings, loop
        self.now = loop.time()
        self.stopping = False
        self.exchanges: set[ExchangeState] = set()
        self.clients: set[ClientLink] = set()
        self.metrics_dir = settings.metrics_dir or ""
        self.metrics = Metrics(settings.experiment, f"served-{os.getpid()}")
        self.writer = SpoolWriter(
            Path(settings.spool),
            f"served-{time.time_ns() // 1_000_000}-{os.getpid()}",
            segment_bytes=settings.segment_bytes,
            segment_s=settings.segment_s,
            on_lost=self._lost,
            on_gone=self._gone,
        )
        self.arms = {arm.arm: arm for arm in (settings.control, settings.treatment) if arm is not None}
        self.asking = {name: UsageAsking(name, refused=self.metrics.usage_refused, say=log) for name in self.arms}
        self.pools = {
            name: Pool(
                loop,
                arm.origin,
                keep_alive_s=settings.upstream_keep_alive_s,
                connect_timeout_s=settings.connect_timeout_s,
                ca_file=settings.ca_file,
            )
            for name, arm in self.arms.items()
        }
        self.control: ArmSettings = settings.control
        self.control_pool = self.pools["control"]
        # Asked for with every request: plain attributes of a compiled class cost less than the settings' own.
        self.max_head_bytes: int = settings.max_head_bytes
        self.max_body_bytes: int = settings.max_body_bytes
        self.max_logged_bytes: int = settings.max_logged_bytes
        self.heads = HeaderCache(settings.control.origin, settings.control.key_line)
        originals = None
        if settings.redact and settings.treatment is not None and settings.shadow_socket:
            from evalpipe.collector.unredacted_channel import UnredactedSender

            originals = UnredactedSender(loop, settings.shadow_socket, settings.shadow_queue_bytes)
        self._originals = originals
        self.write_batch = WriteBatch(loop, self.writer)
        self.setup = SetupWatch(settings)
        self.recorder = Recorder(settings, self.writer, self.write_batch, self.metrics, self.setup, originals=originals)
        self.ids = RequestIds(settings.unit_key.value.encode("latin-1"), settings.experiment)
        self.traffic = TrafficWatch(settings.unit_sources)
        self.uncollected = Uncollected(
            folder_of(Path(settings.data), settings.experiment), Path(self.metrics_dir).name or str(os.getpid())
        )
        self.routes = Routes(
            settings,
            metrics=self.metrics,
            writer=self.writer,
            recorder=self.recorder,
            setup=self.setup,
            uncollected=self.uncollected,
            ids=self.ids,
            exchanges=self.exchanges,
            is_stopping=lambda: self.stopping,
        )
        self.guard = TokenAuth(settings)
        self.metrics.replica(settings.replica)
        self.assigner = _assigner(settings)
        self._gauges = _gauges(settings, self.metrics)
        self.descriptors = Descriptors(self.metrics.unconnected)
        self.needs_body = self.assigner.needs_body or settings.control.rewrite or settings.inject_stream_usage
        self._names_arm = settings.mode != "shadow"
        self._next_tick = 0.0

    # --- what an exchange needs

    def own_lines(self, exchange: ExchangeState) -> list[bytes]:
        """The collector's own answer headers."""
        lines = [b"x-evalpipe-request-id: " + exchange.request_id.encode("ascii")]
        if self._names_arm and exchange.assignment is not None:
            lines.append(b"x-evalpipe-arm: " + exchange.assignment.arm.encode("ascii"))
        return lines

    def rewrite(self, endpoint: str, arm: ArmSettings, body: bytes) -> bytes:
        """The body as the arm gets it: as it came, unless `rewrite` is set."""
        if not arm.rewrite:
            return body
        from evalpipe.collector.transform import rewrite

        return rewrite(endpoint, body, arm)

    # --- life

    def _lost(self, reason: str) -> None:
        self.metrics.lost()

    def _gone(self, reason: str, n: int) -> None:
        self.metrics.lost(n)

    def tick(self) -> None:
        self.now = now = self.loop.time()
        at = perf_counter()
        for exchange in list(self.exchanges):
            exchange.check(at)
        for client in list(self.clients):
            client.check(now)
        self.assigner.tick()
        self.metrics.flush()
        self.setup.tick()
        self.writer.tick()
        self.uncollected.tick()
        if now >= self._next_tick:
            self._next_tick = now + 1
            for pool in self.pools.values():
                pool.tick()
            self.descriptors.tick()
            if self._gauges is not None:
                self._gauges.tick()

    async def run(self, sock: socket.socket, stop: asyncio.Event, connection: Callable[[Worker], ClientLink]) -> None:
        """Serve until `stop` is set and what is under way has ended; `connection` makes what handles one client."""
        self.writer.open()
        if self._originals is not None:
            await self._originals.start()
        server = await self.loop.create_server(
            lambda: cast(asyncio.Protocol, connection(self)), sock=sock, backlog=_BACKLOG
        )
        syncing = self.loop.create_task(self._sync())
        while not stop.is_set():
            if syncing.done():  # it never ends by itself
                syncing.result()
            await self._pause(stop)
        self.stopping = True
        server.close()
        deadline = self.loop.time() + self.settings.timeout_s
        while (self.exchanges or any(client.transport.get_write_buffer_size() for client in self.clients)) and (
            self.loop.time() < deadline
        ):
            self.tick()
            await asyncio.sleep(TICK_S / 4)
        for client in list(self.clients):
            client.close()
        syncing.cancel()
        await asyncio.gather(syncing, return_exceptions=True)
        if self._originals is not None:
            await self._originals.drain()
        for pool in self.pools.values():
            pool.close()
        self.write_batch.end()
        self.metrics.flush()
        self.setup.tick()
        self.uncollected.tick(now=True)
        self.writer.close()

    async def _pause(self, stop: asyncio.Event) -> None:
        self.tick()
        try:
            async with asyncio.timeout(TICK_S):
                await stop.wait()
        except TimeoutError:
            return

    async def _sync(self) -> None:
        while True:
            await asyncio.sleep(self.settings.fsync_interval_s)
            await self.loop.run_in_executor(None, self.writer.sync)


def _assigner(settings: CollectorSettings) -> Assigner:
    if settings.mode == "shadow":
        return ShadowAssigner(unit_sources=settings.unit_sources, eligible=settings.treatment is not None)
    from evalpipe.collector.assignment import ChainBook, SplitAssigner
    from evalpipe.providers.base import ENDPOINTS
    from evalpipe.providers.registry import serves

    token, treatment = settings.client_token, settings.treatment
    untranslated = None
    if treatment is not None:
        untranslated = frozenset(name for name in ENDPOINTS.values() if serves(treatment.provider, name))
    return SplitAssigner(
        salt=settings.effective_salt,
        unit_sources=settings.unit_sources,
        share=_share(settings),
        token=None if token is None else token.value,
        shadow_percent=settings.shadow_percent,
        book=ChainBook(Path(settings.data) / "chains" / settings.experiment),
        shares_account=settings.shares_account,
        untranslated=untranslated,
        may_continue=settings.responses_may_continue,
        recipe=settings.assignment,
    )


def _share(settings: CollectorSettings) -> Callable[[], Share]:
    from evalpipe.collector.assignment import CanaryShare, Share

    if settings.mode == "canary":
        history = Path(settings.data) / "canary" / f"{settings.experiment}.jsonl"
        return CanaryShare(history, state_timeout_s=None if settings.objects_url is None else settings.state_timeout_s)
    return lambda: Share(settings.treatment_percent)


def _gauges(settings: CollectorSettings, metrics: Metrics) -> RolloutGauges | None:
    if settings.mode == "shadow":
        return None
    from evalpipe.collector.assignment import RolloutGauges

    evaluation = Path(settings.data) / "canary" / f"{settings.experiment}.evaluation.json"
    return RolloutGauges(_share(settings), evaluation, metrics)


def stop_signals(loop: asyncio.AbstractEventLoop, stop: asyncio.Event) -> None:
    """SIGTERM and SIGINT ask for the graceful end; so does the parent's disappearance (end of stdin)."""
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def parent_spoke() -> None:
        if not os.read(0, 1):
            loop.remove_reader(0)
            stop.set()

    loop.add_reader(0, parent_spoke)
