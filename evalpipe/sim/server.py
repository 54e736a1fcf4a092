"""Starting and stopping simulated providers: in the foreground for the command, in a thread for tests and the demo."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import urllib.request
from collections.abc import Callable
from types import TracebackType
from typing import Any

import uvloop

from evalpipe.errors import ConfigError
from evalpipe.sim.app import SimApp
from evalpipe.sim.http import HttpServer
from evalpipe.sim.settings import SimSettings


class Simulator:
    """A running simulated provider. `base_url` has no `/v1`: the OpenAI SDK gets `f"{base_url}/v1"`."""

    def __init__(self, host: str, port: int, stop: Callable[[], None]) -> None:
        self.port = port
        self.base_url = f"http://{host}:{port}"
        self._stop = stop

    def stop(self) -> None:
        """End the server; calling it twice does nothing more."""
        self._stop()

    def ledger(self, *, calls: bool = False) -> dict[str, Any]:
        """What it was asked and bills; `calls` = every call under "log"."""
        return self._ask("GET", f"/_sim/ledger?calls={int(calls)}")

    def reset(self) -> None:
        """Empty the ledger and fill the buckets of the limits."""
        self._ask("POST", "/_sim/reset")

    def configure(self, **changes: Any) -> dict[str, Any]:
        """Change settings while it runs, e.g. `configure(faults={"500": 1.0}, limits={"requests": 60})`."""
        return self._ask("POST", "/_sim/config", changes)

    def _ask(self, method: str, path: str, document: Any = None) -> dict[str, Any]:
        body = None if document is None else json.dumps(document).encode()
        request = urllib.request.Request(self.base_url + path, data=body, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, Any] = json.load(answer)
            return found

    def __enter__(self) -> Simulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def start_sim(settings: SimSettings | None = None) -> Simulator:
    """Start a simulated provider in a thread of this process. Raises EvalpipeError where it cannot listen, and
    ConfigError for an unreadable corpus or pairs file."""
    chosen = settings or SimSettings()
    app = SimApp(chosen)
    started: list[int | OSError] = []
    finish: list[Callable[[], object]] = []
    ready = threading.Event()

    async def run() -> None:
        server, stopped = HttpServer(app.handle), asyncio.Event()
        loop = asyncio.get_running_loop()
        finish.append(lambda: loop.call_soon_threadsafe(stopped.set))
        try:
            started.append(await server.start(chosen.host, chosen.port))
        except OSError as error:
            started.append(error)
            return
        finally:
            ready.set()
        await stopped.wait()
        await server.close()

    def serve() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run())

    thread = threading.Thread(target=serve, name="evalpipe-sim", daemon=True)
    thread.start()
    ready.wait()
    outcome = started[0]
    if isinstance(outcome, OSError):
        thread.join()
        raise _cannot_listen(chosen, outcome)

    def stop() -> None:
        if thread.is_alive():
            finish[0]()
            thread.join()

    return Simulator(chosen.host, outcome, stop)


def run_sim(settings: SimSettings, announce: Callable[[str], None]) -> None:
    """Serve in the foreground until SIGINT or SIGTERM; `announce` gets the base URL once it listens."""
    app = SimApp(settings)

    async def run() -> None:
        server = HttpServer(app.handle)
        try:
            port = await server.start(settings.host, settings.port)
        except OSError as error:
            raise _cannot_listen(settings, error) from error
        finish = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, finish.set)
        announce(f"http://{settings.host}:{port}")
        await finish.wait()
        await server.close()

    uvloop.run(run())


def _cannot_listen(settings: SimSettings, error: OSError) -> ConfigError:
    reason = (os.strerror(error.errno) if error.errno else str(error)).lower()
    return ConfigError(f"cannot listen on {settings.host}:{settings.port}: {reason}; choose another with --port")
