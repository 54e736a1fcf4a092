"""One serving process: its listening socket, connections, pools and spool segment, and the collector's own routes."""

# mypyc: compiled into wheels (hatch_build.py)
from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import signal
import socket
import time
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, cast

from evalpipe.collector import is_compiled
from evalpipe.collector.assignment import Assigner, ShadowAssigner
from evalpipe.collector.auth import RequestIds, TokenAuth
from evalpipe.collector.descriptors import Descriptors
from evalpipe.collector.exchange_base import WriteBatch
from evalpipe.collector.forward_headers import HeaderCache
from evalpipe.collector.local_responses import render_json
from evalpipe.collector.metrics import Metrics, Totals, render_metrics
from evalpipe.collector.recorder import Recorder
from evalpipe.collector.settings import ArmSettings, CollectorSettings
from evalpipe.collector.setup_watch import SetupWatch
from evalpipe.collector.traffic_watch import TrafficWatch, Uncollected, folder_of
from evalpipe.collector.transform import UsageAsking, log
from evalpipe.collector.upstream import Pool
from evalpipe.files import is_locked
from evalpipe.http1.headers import Line
from evalpipe.models import controller_lock_name
from evalpipe.spool.checkpoint import READY_FILE, TREATMENT_LOCK
from evalpipe.spool.writer import SpoolWriter
from evalpipe.traffic_shape import REMEDY, summary

if TYPE_CHECKING:
    from collections.abc import Callable

    from evalpipe.collector.assignment import RolloutGauges, Share
    from evalpipe.collector.exchange_base import ClientLink, ExchangeState


TICK_S: Final = 0.1
_BACKLOG: Final = 4096

logger = logging.getLogger(__name__)


class Worker:
    """What flights and clients share in one process."""

    def __init__(self, settings: CollectorSettings, loop: asyncio.AbstractEventLoop) -> None:
        self.settings, self.loop = settings, loop
        self.now = loop.time()
        self.stopping = False
        self.flights: set[ExchangeState] = set()
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
        self.turn = WriteBatch(loop, self.writer)
        self.setup = SetupWatch(settings)
        self.recorder = Recorder(settings, self.writer, self.turn, self.metrics, self.setup, originals=originals)
        self.ids = RequestIds(settings.unit_key.value.encode("latin-1"), settings.experiment)
        self.traffic = TrafficWatch(settings.unit_sources)
        self.uncollected = Uncollected(
            folder_of(Path(settings.data), settings.experiment), Path(self.metrics_dir).name or str(os.getpid())
        )
        self.routes = Routes(self)
        self.guard = TokenAuth(settings)
        self.assigner = _assigner(settings)
        self._gauges = _gauges(settings, self.metrics)
        self.descriptors = Descriptors(self.metrics.unconnected)
        self.needs_body = self.assigner.needs_body or settings.control.rewrite or settings.inject_stream_usage
        self._names_arm = settings.mode != "shadow"
        self._next_tick = 0.0

    # --- what a flight asks

    def own_lines(self, flight: ExchangeState) -> list[bytes]:
        """The collector's own answer headers."""
        lines = [b"x-evalpipe-request-id: " + flight.request_id.encode("ascii")]
        if self._names_arm and flight.assignment is not None:
            lines.append(b"x-evalpipe-arm: " + flight.assignment.arm.encode("ascii"))
        return lines

    def rewrite(self, endpoint: str, arm: ArmSettings, body: bytes) -> bytes:
        """The body as the arm gets it: as it came, unless `rewrite` says otherwise."""
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
        for flight in list(self.flights):
            flight.check(at)
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
        while (self.flights or any(client.transport.get_write_buffer_size() for client in self.clients)) and (
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
        self.turn.end()
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
    from evalpipe.providers.registry import speaks

    token, treatment = settings.client_token, settings.treatment
    untranslated = None
    if treatment is not None:
        untranslated = frozenset(name for name in ENDPOINTS.values() if speaks(treatment.provider, name))
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
        return CanaryShare(Path(settings.data) / "canary" / f"{settings.experiment}.jsonl")
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


# The collector's own routes: health, ready, metrics, the last verdict, feedback.


Answer = tuple[int, bytes, str]
_JSON = "application/json"
_METRICS = "text/plain; version=0.0.4; charset=utf-8"
_MAX_COMMENT = 10_000
TROUBLE_S = 15.0
"""how long health names records that were lost, or connections that were refused, after the last one"""


class Routes:
    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        data = Path(worker.settings.data)
        self._verdict = data / "verdict.json"
        self._controller_lock: Path | None = None
        if worker.settings.mode == "canary":
            self._controller_lock = data / "canary" / controller_lock_name(worker.settings.experiment)
        self._was_ready = False

    def answer(self, method: bytes, target: bytes, lines: list[Line], body: bytes) -> Answer:
        """Status, body and content type for one of the own paths."""
        path = target.partition(b"?")[0].removeprefix(b"/_evalpipe/")
        known = {b"health": b"GET", b"ready": b"GET", b"metrics": b"GET", b"gate": b"GET POST", b"feedback": b"POST"}
        methods = known.get(path)
        if methods is None:
            return _json(404, {"error": "no such route; there are health, ready, metrics, gate, feedback"})
        if (b"GET" if method == b"HEAD" else method) not in methods.split():
            return _json(405, {"error": f"use {methods.decode().replace(' ', ' or ')}"})
        if path == b"health":
            return self._health()
        if path == b"ready":
            is_ready = not self._worker.stopping and self._is_ready()
            return _json(200 if is_ready else 503, {"ready": is_ready})
        if path == b"metrics":
            self._worker.metrics.flush()
            return 200, render_metrics(self._worker.metrics_dir), _METRICS
        if path == b"gate":
            return self._gate(post=method == b"POST")
        return self._feedback(body)

    def _is_ready(self) -> bool:
        """Whether every process of the collector has started. Once it was, it stays so: users are served also while another
        treatment process takes the place of one that ended (see health)."""
        folder = self._worker.settings.metrics_dir
        if not self._was_ready:
            self._was_ready = folder is None or (Path(folder) / READY_FILE).exists()
        return self._was_ready

    def _health(self) -> Answer:
        """200 as long as users are served; "degraded" with the reasons where records are lost, copies are not made, or an arm is
        not set up correctly."""
        writer = self._worker.writer
        totals = Totals(self._worker.metrics_dir)
        n_lost = totals.n_lost
        reasons = []
        now = time.time()
        if writer.last_error is not None:
            reasons.append(f"records cannot be written: {writer.last_error}")
        if now - totals.lost_at < TROUBLE_S:  # after that the counter and the log have it
            reasons.append(f"{n_lost} records were lost, the last {now - totals.lost_at:.0f} s ago")
        if now - totals.unconnected_at < TROUBLE_S:
            reasons.append(
                f"connections are refused, {totals.n_unconnected} so far: too many open files; raise `ulimit -n`"
            )
        if totals.falling_behind:
            reasons.append(
                f"the spool grows faster than it is loaded: {totals.unloaded_bytes / 1e6:,.1f} MB wait, the oldest for "
                f"{totals.unloaded_age_s:,.0f} s"
            )
        if not is_locked(Path(self._worker.settings.spool) / TREATMENT_LOCK):
            reasons.append("the treatment process is not running: copies wait, tokens and dollars are not counted")
        if self._controller_lock is not None and not is_locked(self._controller_lock):
            reasons.append("the canary's controller is not running: nobody watches the guardrails")
        faults = self._worker.setup.faults()
        reasons += [fault.text for fault in faults]
        uncollected = self._worker.uncollected.all()
        if uncollected:
            reasons.append(f"{summary(uncollected)}; {REMEDY}")
        return _json(
            200,
            {
                "status": "degraded" if reasons else "ok",
                "reasons": reasons,
                "records_lost": n_lost,
                "spool_unloaded_bytes": totals.unloaded_bytes,
                "setup_faults": [
                    {
                        "arm": fault.arm,
                        "kind": fault.kind,
                        "status": fault.status,
                        "code": fault.code,
                        "count": fault.count,
                    }
                    for fault in faults
                ],
                "uncollected": [{"method": one.method, "path": one.path, "count": one.count} for one in uncollected],
                "experiment": self._worker.settings.experiment,
                "mode": self._worker.settings.mode,
                "in_flight": len(self._worker.flights),
                "compiled": is_compiled(),
            },
        )

    def _gate(self, *, post: bool) -> Answer:
        try:
            raw = self._verdict.read_bytes()
            verdict: dict[str, Any] = json.loads(raw)
            age_s = max(0.0, time.time() - self._verdict.stat().st_mtime)
            recommendation = verdict.get("recommendation") or verdict.get("decision", {}).get("recommendation")
        except FileNotFoundError:
            return _json(
                409 if post else 404, {"error": "no verdict yet: run `evalpipe gate --watch`", "recommendation": None}
            )
        except (OSError, ValueError, AttributeError) as error:
            return _json(
                409 if post else 500, {"error": f"the verdict cannot be read: {error}", "recommendation": None}
            )
        status = 200 if not post or recommendation == "ship" else 409
        return _json(status, {**verdict, "recommendation": recommendation, "age_s": round(age_s, 3)})

    def _feedback(self, body: bytes) -> Answer:
        try:
            feedback = json.loads(body)
        except ValueError:
            return _json(400, {"error": "the body is not JSON"})
        request_id = feedback.get("request_id") if isinstance(feedback, dict) else None
        if not isinstance(request_id, str) or not 0 < len(request_id) <= 200:
            problem = "is missing" if not request_id else "is not one"
            return _json(400, {"error": f"request_id {problem}: it is the x-evalpipe-request-id of the answer"})
        refusal = self._worker.ids.refusal(request_id)
        if refusal is not None:
            return _json(400, {"error": f"request_id {refusal}"})
        rating = feedback.get("rating")
        value = {"up": 1.0, "down": 0.0}.get(rating) if isinstance(rating, str) else rating
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not (math.isfinite(value) and 0 <= value <= 1)
        ):
            return _json(400, {"error": 'rating must be "up", "down" or a number from 0 to 1'})
        comment = feedback.get("comment")
        if comment is not None and (not isinstance(comment, str) or len(comment) > _MAX_COMMENT):
            return _json(400, {"error": f"comment must be a text of at most {_MAX_COMMENT} characters"})
        if comment is not None:
            comment = comment.encode("utf-8", "replace").decode()
        if not self._worker.recorder.feedback(request_id, float(value), comment):
            return _json(503, {"error": "the rating could not be written"})
        return _json(200, {"accepted": True})


def _json(status: int, value: Any) -> Answer:
    return status, render_json(value), _JSON
