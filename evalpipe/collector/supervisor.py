"""`evalpipe collect`: binds the port, starts the workers and the shadow process, replaces what ends, stops gracefully."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from evalpipe.collector.logs import OnceAMinute, PipedLines, log_event
from evalpipe.collector.settings import HISTORY_POLL_S, IN_PROCESS, CollectorSettings
from evalpipe.collector.status import Samples, StatusLine, start_line
from evalpipe.errors import ConfigError, EvalpipeError, WorkspaceBusyError
from evalpipe.files import is_locked, write_atomically
from evalpipe.models import controller_lock_name
from evalpipe.spool.checkpoint import READY_FILE, TREATMENT_LOCK
from evalpipe.spool.segments import SpoolLock

_BACKLOG = 4096
_READY_S = 300.0
"""processes (and the litellm library) take seconds to load, and minutes on an overloaded machine"""
_BESIDE_S = 60.0
"""users are served without what is waited for so long"""
_LOOK_S = 0.01
_LOCK_CHECK_S = 0.5

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Run:
    """What to run. `address` is what to bind; `load_command` is started every `load_every_s`, from start to
    start (None: never)."""

    settings: CollectorSettings
    host: str
    port: int
    n_workers: int = 1
    load_every_s: float | None = None
    load_command: list[str] = field(default_factory=list)
    controller_command: list[str] = field(default_factory=list)
    """what watches the canary; kept alive beside the workers, ends when its stdin closes"""
    replaced_within_s: float = 30.0
    """a worker that ended has a successor within this time, or the collector ends: a listening socket that nobody serves is
    worse than none"""
    status_every_s: float = 60.0
    """between two lines of the log that sum up what happened, where something did"""
    watch: Callable[[Samples], None] | None = None
    """sees the counters of all processes every `watch_every_s`, in a thread of its own; what it raises is logged"""
    watch_every_s: float = 30.0
    ends_with_stdin: bool = False
    """end as by SIGTERM when stdin closes: what started this process is gone"""
    warnings: list[str] = field(default_factory=list)
    """of the configuration: logged once the collector has its address, not beside an error that ends it"""
    held: AbstractContextManager[object] = field(default_factory=contextlib.nullcontext)
    """entered once the spool is this collector's, left at its end: what a second collector must not have"""


def address_file(data: Path) -> Path:
    """Where a running collector writes its address, as JSON; it is gone when the collector has ended, unless it was killed."""
    return data / "collector.json"


def run_collector(run: Run) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigError where the address cannot be had, WorkspaceBusyError where
    another collector writes to the same spool, and what `held` raises."""
    with contextlib.ExitStack() as stack:
        lock = SpoolLock(Path(run.settings.spool))
        stack.callback(lock.close)
        lock.take()
        stack.enter_context(run.held)
        sockets = listen(run.host, run.port, run.n_workers)
        for sock in sockets:
            stack.enter_context(sock)
        for warning in run.warnings:
            logger.warning("%s", warning)
        metrics_dir = tempfile.mkdtemp(prefix="evalpipe-metrics-")
        stack.callback(shutil.rmtree, metrics_dir, ignore_errors=True)
        asyncio.run(_Supervisor(run, sockets, lock, metrics_dir).run())


def listen(host: str, port: int, n: int) -> list[socket.socket]:
    """`n` listening sockets on one address. They stay open here, so that a killed worker's waiting connections are
    served by its successor."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise ConfigError(f"collector.host = {host!r}: {error.strerror or error}") from None
    sockets: list[socket.socket] = []
    try:
        for number in range(n):
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if number == 0 and n > 1:
                # With SO_REUSEPORT a second collector of this user would share the port silently: try without it first.
                with socket.socket(family, kind, protocol) as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(address)
                    address = probe.getsockname()
            if n > 1:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(address)
            sock.listen(_BACKLOG)
            sock.setblocking(False)
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another port (--port, [collector] port)"
        ) from None
    return sockets


class _Supervisor:
    def __init__(self, run: Run, sockets: list[socket.socket], lock: SpoolLock, metrics_dir: str) -> None:
        self._run, self._sockets, self._lock, self._metrics_dir = run, sockets, lock, metrics_dir
        self._stop = asyncio.Event()
        self._fault: BaseException | None = None
        self._controller_ended = False
        settings = msgspec.structs.replace(run.settings, metrics_dir=metrics_dir, load_every_s=run.load_every_s)
        settings, self._bridge = _bridged(settings)
        if settings.redact and settings.treatment is not None:
            settings = msgspec.structs.replace(settings, shadow_socket=str(Path(metrics_dir) / "originals.sock"))
        line = msgspec.json.encode(settings) + b"\n"
        self._workers = [Child(["serve", str(sock.fileno())], (sock.fileno(),), line, metrics_dir) for sock in sockets]
        self._bridges = []
        if self._bridge is not None:
            fd = self._bridge.fileno()
            self._bridges = [Child(["litellm", str(fd)], (fd,), line, metrics_dir)]
        # Without a treatment it sends nothing and still counts tokens and dollars.
        self._shadows = [Child(["shadow"], (), line, metrics_dir)]
        self._status = StatusLine(run.settings, metrics_dir)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        stop = self._stop
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, stop)
        if self._run.ends_with_stdin:
            loop.add_reader(0, self._stdin_closed, stop)
        everyone = [*self._bridges, *self._workers, *self._shadows]
        tasks = {child: loop.create_task(child.run()) for child in everyone}
        others = [
            loop.create_task(work)
            for work in (self._load_now_and_then(), self._watch_canary(), self._keep_lock(), self._keep_workers())
        ]
        for task in (*tasks.values(), *others):
            task.add_done_callback(self._task_ended)
        failed = await self._until_ready([*self._workers, *self._shadows], stop, _READY_S)
        if self._bridges and failed is None and not stop.is_set():
            logger.info("loading the litellm library")
            failed = await self._until_ready(self._bridges, stop, _READY_S)
        if failed is None:
            await self._until_copying(stop)
            await self._until_watched(stop)
        if failed is None and not stop.is_set():
            self._mark_ready()
            url = _url(self._sockets[0])
            self._write_address(url)
            log_event(logger, logging.INFO, f"listening on {url}", url=url, n_workers=len(self._workers))
            text, fields = start_line(self._run.settings, load_every_s=self._run.load_every_s)
            log_event(logger, logging.INFO, text, **fields)
            if self._run.watch is not None:
                # Daemonic: a webhook that does not answer holds neither the collector nor its end.
                threading.Thread(
                    target=self._watch_counters, args=(self._run.watch,), name="watch", daemon=True
                ).start()
            others.append(loop.create_task(self._report()))
            others[-1].add_done_callback(self._task_ended)
            await stop.wait()
        for task in others:
            task.cancel()
        with contextlib.suppress(OSError):
            address_file(Path(self._run.settings.data)).unlink(missing_ok=True)
        # From here on nobody is to wait in a queue that no worker takes from: the workers let go of theirs too.
        for sock in self._sockets:
            sock.close()
        if self._fault is not None:
            loop.call_later(ENDS_S, self._kill_all)
        # Workers first: the treatment leg still decides what they recorded last, and may need the bridge for it.
        for group in (self._workers, self._shadows, self._bridges):
            for child in group:
                child.stop()
            await asyncio.gather(*(tasks[child] for child in group), return_exceptions=True)
        await asyncio.gather(*others, return_exceptions=True)
        if self._bridge is not None:
            self._bridge.close()
        if failed is None and self._fault is not None:
            what = self._fault
            failed = str(what) if isinstance(what, EvalpipeError) else f"a fault of the collector: {what!r}"
            failed += "; it ends, so that what manages it (systemd, Kubernetes) starts it anew"
        if failed is not None:
            raise EvalpipeError(failed)
        logger.info("stopped")

    def _mark_ready(self) -> None:
        try:
            Path(self._metrics_dir, READY_FILE).touch(mode=0o600)
        except OSError as error:  # users are served all the same
            logger.error("/_evalpipe/ready stays 503: %s cannot be written: %s", self._metrics_dir, error.strerror)

    def _write_address(self, url: str) -> None:
        """For `evalpipe serve`: the port may be another than the configuration's."""
        content = {"url": url, "experiment": self._run.settings.experiment, "pid": os.getpid()}
        try:
            write_atomically(address_file(Path(self._run.settings.data)), msgspec.json.encode(content))
        except (OSError, EvalpipeError) as error:  # users are served all the same
            logger.warning("the collector's address cannot be written down: %s", error)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """What supervises ends by an exception: nothing would be replaced any more, so all of it ends."""
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and self._fault is None:
            self._fault = error
            exc_info = None if isinstance(error, EvalpipeError) else error
            logger.critical("the supervision of the processes failed: %s", error, exc_info=exc_info)
            self._stop.set()

    def _kill_all(self) -> None:
        for child in (*self._workers, *self._shadows, *self._bridges):
            child.stop(kill=True)

    def _signalled(self, stop: asyncio.Event) -> None:
        if stop.is_set():  # asked twice: at once
            self._kill_all()
        else:
            logger.info("stopping: what is under way is finished")
        stop.set()

    def _stdin_closed(self, stop: asyncio.Event) -> None:
        asyncio.get_running_loop().remove_reader(0)
        if not stop.is_set():
            self._signalled(stop)

    async def _until_ready(self, children: list[Child], stop: asyncio.Event, within_s: float) -> str | None:
        """None when all are ready (or the end was asked for), else what went wrong."""
        waiting = asyncio.gather(*(child.ready.wait() for child in children))
        stopped = asyncio.ensure_future(stop.wait())
        either: set[asyncio.Future[Any]] = {waiting, stopped}
        await asyncio.wait(either, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not waiting.done():
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            return None if stop.is_set() else f"the collector's processes were not ready within {within_s:g} s"
        return next((child.failed for child in children if child.failed), None)

    async def _keep_workers(self) -> None:
        """Clients connect to a listening socket whether anyone serves it or not, and hang where nobody does."""
        limit = self._run.replaced_within_s
        while True:
            await asyncio.sleep(min(0.5, limit / 4))
            now = time.monotonic()
            for child in self._workers:
                since = child.missing_since
                if child.ready.is_set() and child.failed is None and since is not None and now - since > limit:
                    raise EvalpipeError(f"no {child.name} process has been ready for {limit:g} s")

    async def _keep_lock(self) -> None:
        """A spool folder that was deleted or replaced is locked anew. Raises WorkspaceBusyError where another collector has
        taken it meanwhile."""
        reported = False
        while True:
            await asyncio.sleep(_LOCK_CHECK_S)
            if not self._lock.is_gone():
                continue
            try:
                self._lock.take()
            except WorkspaceBusyError:
                raise
            except EvalpipeError as error:
                if not reported:
                    logger.error("the spool's folder is gone and cannot be made anew: %s", error)
                reported = True
            else:
                logger.error("the spool's folder or its lock was deleted or replaced; it was made anew")
                reported = False

    async def _report(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self._run.status_every_s)
            found = await loop.run_in_executor(None, self._status.line)
            if found is not None:
                text, fields = found
                log_event(logger, logging.INFO, text, **fields)

    def _watch_counters(self, watch: Callable[[Samples], None]) -> None:
        from evalpipe.collector.metrics import read_samples

        once_a_minute = OnceAMinute()
        while not self._stop.is_set():
            time.sleep(self._run.watch_every_s)
            try:
                watch(read_samples(self._metrics_dir))
            except (EvalpipeError, OSError, ValueError) as error:
                if once_a_minute.is_due("watch") and not self._stop.is_set():
                    logger.error("alerts cannot be made: %s", error)

    async def _until_copying(self, stop: asyncio.Event) -> None:
        """The treatment process has read where the last one stopped, or waits for one that is still ending."""
        lock = Path(self._run.settings.spool) / TREATMENT_LOCK
        for _ in range(int(_BESIDE_S / _LOOK_S)):
            if is_locked(lock) or stop.is_set():
                return
            await asyncio.sleep(_LOOK_S)

    async def _until_watched(self, stop: asyncio.Event) -> None:
        """The canary has a controller, and a stage in force. Where the controller cannot run the collector is ready without it:
        users are served, and `health` reports it."""
        if not self._run.controller_command:
            return
        settings = self._run.settings
        folder = Path(settings.data) / "canary"
        lock, history = folder / controller_lock_name(settings.experiment), folder / f"{settings.experiment}.jsonl"
        for _ in range(int(_BESIDE_S / _LOOK_S)):
            if (is_locked(lock) and history.exists()) or self._controller_ended or stop.is_set():
                await asyncio.sleep(HISTORY_POLL_S)  # every worker has looked at the history by then
                return
            await asyncio.sleep(_LOOK_S)
        logger.error("the canary's controller has not begun within %g s: the guardrails are not evaluated", _BESIDE_S)

    async def _watch_canary(self) -> None:
        """Restart the controller when it ends: without it the guardrails are not evaluated."""
        while self._run.controller_command:
            how = await run_command("canary", self._run.controller_command, stdin=asyncio.subprocess.PIPE)
            self._controller_ended = True
            logger.error("the canary's controller ended (%s); another one takes its place", how)
            await asyncio.sleep(1)

    async def _load_now_and_then(self) -> None:
        if not self._run.load_every_s:
            return
        failing = False
        async for _ in rounds(self._run.load_every_s):
            how = await run_command("load", self._run.load_command, stdin=asyncio.subprocess.DEVNULL)
            if how != "exit code 0":
                logger.error("load failed (%s); the next one begins within %g s", how, self._run.load_every_s)
            elif failing:
                logger.info("load works again")
            failing = how != "exit code 0"


async def rounds(every_s: float) -> AsyncIterator[None]:
    """A round every `every_s` seconds from start to start, the first after as many. One that took longer is followed at once: a
    backlog is worked off without pauses."""
    due_at = time.monotonic()
    while True:
        due_at = max(due_at + every_s, time.monotonic())
        await asyncio.sleep(due_at - time.monotonic())
        yield


def _bridged(settings: CollectorSettings) -> tuple[CollectorSettings, socket.socket | None]:
    """The settings with the litellm library's arms at the address of a bridge on loopback, and its listening socket.

    The socket stays open here, so that a bridge that ends has a successor at the same address.
    """
    arms = {arm.arm: arm for arm in (settings.control, settings.treatment) if arm and arm.base_url == IN_PROCESS}
    if not arms:
        return settings, None
    if importlib.util.find_spec("litellm") is None:
        raise ConfigError("provider = 'litellm' without a base_url needs the library: pip install 'evalpipe[litellm]'")
    sock = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
    # Nobody else may ask it, no web page and no other user of the machine: it is asked below a path nobody can guess.
    here = f"http://127.0.0.1:{sock.getsockname()[1]}/{secrets.token_hex(16)}"
    moved = {name: msgspec.structs.replace(arm, base_url=here) for name, arm in arms.items()}
    return msgspec.structs.replace(settings, **moved), sock


def _url(sock: socket.socket) -> str:
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


# The supervisor's child processes: kept running, stopped, their stderr in the log.


_RESTART_S = (0.0, 0.1, 0.5, 1.0, 5.0)
"""before the n-th restart in a row of a process that does not run for `_STABLE_S`"""
_STABLE_S = 10.0
ENDS_S = 10.0
"""a load or a controller that was asked to end is killed after so long; so are the workers after a fault of the supervisor"""


class Child:
    """One process that is kept running: when it ends another one takes its place."""

    def __init__(self, arguments: list[str], fds: tuple[int, ...], line: bytes, metrics_dir: str):
        self._arguments, self._fds, self._line, self._metrics_dir = arguments, fds, line, metrics_dir
        self._environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": metrics_dir}
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self._was_killed = False
        self.ready = asyncio.Event()
        self.failed: str | None = None
        self.missing_since: float | None = time.monotonic()
        """since when no process of this kind has been ready"""

    @property
    def name(self) -> str:
        return self._arguments[0]

    async def run(self) -> None:
        n_quick = 0
        while True:
            began = time.monotonic()
            how = await self._live()
            if self._stopping:
                return
            if self.missing_since is None:
                self.missing_since = time.monotonic()
            if not self.ready.is_set() and not self._was_killed:  # else it is tried again: nothing is wrong with it
                self.failed = f"the collector's {self.name} process did not start ({how})"
                self.ready.set()
                return
            n_quick = 0 if time.monotonic() - began > _STABLE_S else n_quick + 1
            logger.error("the %s process ended (%s); another one takes its place", self.name, how)
            await asyncio.sleep(_RESTART_S[min(n_quick, len(_RESTART_S)) - 1] if n_quick else 0)

    async def _live(self) -> str:
        """Start one and wait for its end; how it ended."""
        try:
            Path(self._metrics_dir).mkdir(mode=0o700, exist_ok=True)  # a cleaner of /tmp may have taken it
            lines = PipedLines(self.name, asyncio.get_running_loop())
        except OSError as error:
            return f"it cannot be started: {error}"
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "evalpipe.collector.process_entry", *self._arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=lines.write_fd,
                pass_fds=self._fds,
                env=self._environment,
                process_group=0,  # Ctrl-C reaches the supervisor only, which stops the others
            )
        except OSError as error:  # no descriptors, no processes, no memory: it is tried again
            lines.started()
            lines.close()
            return f"it cannot be started: {error}"
        lines.started()
        self._process = process
        try:
            assert process.stdin is not None and process.stdout is not None
            process.stdin.write(self._line)
            if self._stopping:
                self.stop()
            if await process.stdout.readline() == b"ready\n":
                self.ready.set()
                self.missing_since = None
            code = await process.wait()
        finally:
            lines.close()
        self._was_killed = code < 0
        how = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
        return how if lines.last is None or self.ready.is_set() else f"{how}: {lines.last}"

    def stop(self, *, kill: bool = False) -> None:
        """Ask it to finish what is under way and end; `kill`: at once."""
        self._stopping = True
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)


async def run_command(name: str, command: list[str], *, stdin: int) -> str:
    """Run a command of evalpipe with its messages in this log; how it ended. Cancelled: it is asked to end, then killed."""
    try:
        lines = PipedLines(name, asyncio.get_running_loop(), level=logging.WARNING)
    except OSError as error:
        return f"it cannot be started: {error}"
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=stdin, stdout=asyncio.subprocess.DEVNULL, stderr=lines.write_fd
        )
    except OSError as error:
        lines.started()
        lines.close()
        return f"it cannot be started: {error}"
    lines.started()
    try:
        code = await process.wait()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(ENDS_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
        raise
    finally:
        lines.close()
    return f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
