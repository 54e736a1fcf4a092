"""`evalpipe collect`: binds the port, starts the workers and the treatment process, replaces what dies, ends gracefully."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from evalpipe.collector.settings import IN_PROCESS, CollectorSettings
from evalpipe.collector.shadow_state import READY_FILE, is_held
from evalpipe.core.treatment_state import TREATMENT_LOCK
from evalpipe.errors import ConfigError, EvalpipeError, WorkspaceBusyError

_BACKLOG = 4096
_READY_S = 60.0
_LIBRARY_READY_S = 300.0
"""the litellm library takes seconds to load, and minutes on an overloaded machine"""
_RESTART_S = (0.0, 0.1, 0.5, 1.0, 5.0)
"""before the n-th restart in a row of a process that does not live for `_STABLE_S`"""
_LOOK_S = 0.01
_STABLE_S = 10.0


@dataclass(kw_only=True)
class Run:
    """What to run. `address` is what to bind; `load_command` is started every `load_every_s` (None: never)."""

    settings: CollectorSettings
    host: str
    port: int
    n_workers: int = 1
    load_every_s: float | None = None
    load_command: list[str] = field(default_factory=list)
    controller_command: list[str] = field(default_factory=list)
    """what watches the canary; kept alive beside the workers, ends when its stdin closes"""
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: T201


def run_collector(run: Run) -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigError where the address cannot be had, WorkspaceBusyError where
    another collector writes to the same spool."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_spool_lock(Path(run.settings.spool)))
        sockets = listen(run.host, run.port, run.n_workers)
        for sock in sockets:
            stack.enter_context(sock)
        metrics_dir = tempfile.mkdtemp(prefix="evalpipe-metrics-")
        stack.callback(shutil.rmtree, metrics_dir, ignore_errors=True)
        asyncio.run(_Supervisor(run, sockets, metrics_dir).run())


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


@contextlib.contextmanager
def _spool_lock(spool: Path) -> Iterator[None]:
    try:
        spool.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(spool / ".collector.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise EvalpipeError(f"cannot write to {spool}: {error.strerror}; name another folder with --data") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkspaceBusyError(
                f"another collector writes to {spool}; stop it, or name another folder with --data"
            ) from None
        yield
    finally:
        os.close(fd)


class _Child:
    """One process that is kept alive: when it dies another one takes its place."""

    def __init__(
        self, arguments: list[str], fds: tuple[int, ...], line: bytes, metrics_dir: str, say: Callable[[str], None]
    ):
        self._arguments, self._fds, self._line, self._say = arguments, fds, line, say
        self._environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": metrics_dir}
        self._process: asyncio.subprocess.Process | None = None
        self._stopping = False
        self.ready = asyncio.Event()
        self.failed: str | None = None

    async def run(self) -> None:
        n_quick = 0
        while True:
            began = time.monotonic()
            code = await self._live()
            if self._stopping:
                return
            if not self.ready.is_set():
                self.failed = f"the collector's {self._arguments[0]} process did not start (exit code {code})"
                self.ready.set()
                return
            n_quick = 0 if time.monotonic() - began > _STABLE_S else n_quick + 1
            self._say(f"evalpipe: the {self._arguments[0]} process ended ({code}); another one takes its place")
            await asyncio.sleep(_RESTART_S[min(n_quick, len(_RESTART_S)) - 1] if n_quick else 0)

    async def _live(self) -> int:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "evalpipe.collector.child", *self._arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            pass_fds=self._fds,
            env=self._environment,
            process_group=0,  # Ctrl-C reaches the supervisor only: it says when to stop
        )
        self._process = process
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(self._line)
        if self._stopping:
            self.stop()
        if await process.stdout.readline() == b"ready\n":
            self.ready.set()
        return await process.wait()

    def stop(self, *, kill: bool = False) -> None:
        """Ask it to finish what is under way and end; `kill`: at once."""
        self._stopping = True
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)


class _Supervisor:
    def __init__(self, run: Run, sockets: list[socket.socket], metrics_dir: str) -> None:
        self._run, self._sockets, self._metrics_dir = run, sockets, metrics_dir
        settings = msgspec.structs.replace(run.settings, metrics_dir=metrics_dir)
        settings, bridge = _bridged(settings)
        if settings.redact and settings.treatment is not None:
            settings = msgspec.structs.replace(settings, shadow_socket=str(Path(metrics_dir) / "originals.sock"))
        line = msgspec.json.encode(settings) + b"\n"
        self._workers = [
            _Child(["serve", str(sock.fileno())], (sock.fileno(),), line, metrics_dir, run.say) for sock in sockets
        ]
        self._bridges = []
        if bridge is not None:
            self._bridges = [_Child(["litellm", str(bridge.fileno())], (bridge.fileno(),), line, metrics_dir, run.say)]
            self._sockets = [*sockets, bridge]
        # Without a treatment it sends nothing and still counts tokens and dollars.
        self._shadows = [_Child(["shadow"], (), line, metrics_dir, run.say)]

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled, stop)
        everyone = [*self._bridges, *self._workers, *self._shadows]
        tasks = {child: loop.create_task(child.run()) for child in everyone}
        load = loop.create_task(self._load_now_and_then())
        watching = loop.create_task(self._watch_canary())
        failed = await self._until_ready([*self._workers, *self._shadows], stop, _READY_S)
        if self._bridges and failed is None and not stop.is_set():
            self._run.say("evalpipe: loading the litellm library")
            failed = await self._until_ready(self._bridges, stop, _LIBRARY_READY_S)
        if failed is None:
            await self._until_copying(stop)
        if failed is None and not stop.is_set():
            Path(self._metrics_dir, READY_FILE).touch(mode=0o600)
            self._run.say(f"listening on {_url(self._sockets[0])}")
            await stop.wait()
        load.cancel()
        watching.cancel()
        # Workers first: the treatment leg still decides what they recorded last, and may need the bridge for it.
        for group in (self._workers, self._shadows, self._bridges):
            for child in group:
                child.stop()
            await asyncio.gather(*(tasks[child] for child in group), return_exceptions=True)
        if failed is not None:
            raise EvalpipeError(failed)

    def _signalled(self, stop: asyncio.Event) -> None:
        if stop.is_set():  # asked twice: at once
            for child in (*self._workers, *self._shadows, *self._bridges):
                child.stop(kill=True)
        stop.set()

    async def _until_ready(self, children: list[_Child], stop: asyncio.Event, within_s: float) -> str | None:
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

    async def _until_copying(self, stop: asyncio.Event) -> None:
        """The treatment process has read where the last one stopped, or waits for one that is still ending."""
        lock = Path(self._run.settings.spool) / TREATMENT_LOCK
        for _ in range(int(_READY_S / _LOOK_S)):
            if is_held(lock) or stop.is_set():
                return
            await asyncio.sleep(_LOOK_S)

    async def _watch_canary(self) -> None:
        """Nobody watched is a canary without guardrails: a controller that ends gets a successor."""
        while self._run.controller_command:
            process = await asyncio.create_subprocess_exec(*self._run.controller_command, stdin=asyncio.subprocess.PIPE)
            try:
                code = await process.wait()
            except asyncio.CancelledError:
                process.terminate()
                await process.wait()
                raise
            self._run.say(f"evalpipe: the canary's controller ended ({code}); another one takes its place")
            await asyncio.sleep(1)

    async def _load_now_and_then(self) -> None:
        if not self._run.load_every_s:
            return
        while True:
            await asyncio.sleep(self._run.load_every_s)
            process = await asyncio.create_subprocess_exec(
                *self._run.load_command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL
            )
            try:
                code = await process.wait()
            except asyncio.CancelledError:
                process.terminate()
                await process.wait()
                raise
            if code:
                self._run.say(f"evalpipe: load ended with exit code {code}")


def _bridged(settings: CollectorSettings) -> tuple[CollectorSettings, socket.socket | None]:
    """The settings with the litellm library's arms at the address of a bridge on loopback, and its listening socket.

    The socket stays open here, so that a bridge that dies has a successor at the same address.
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
