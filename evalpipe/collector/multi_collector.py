"""`evalpipe collect DIR…`: one collector for each folder, as child processes of one that keeps them running and ends them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evalpipe.collector.logs import PipedLines
from evalpipe.collector.supervisor import address_file
from evalpipe.errors import ConfigError, EvalpipeError

_RESTART_S = (0.0, 0.5, 1.0, 5.0)
"""before the n-th restart in a row of a collector that does not run for `_STABLE_S`"""
_STABLE_S = 10.0
_LOOK_S = 0.05

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class OneCollector:
    """What to start for one folder. `command` ends when its stdin closes, and logs JSON lines; `data`: its data folder."""

    experiment: str
    command: Sequence[str]
    data: Path


def run_collectors(collectors: Sequence[OneCollector]) -> None:
    """Run them until SIGTERM or SIGINT; each drains its requests then, and a second signal ends them at once.

    A collector that ends is started again, and the others go on. One that cannot begin ends all.

    Raises:
        ConfigError, EvalpipeError: with the message of the one that could not begin.
    """
    asyncio.run(_Collectors(collectors).run())


class _Collectors:
    def __init__(self, collectors: Sequence[OneCollector]) -> None:
        self._stop = asyncio.Event()
        self._children = [_Child(one, self._stop) for one in collectors]

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled)
        tasks = [loop.create_task(child.run()) for child in self._children]
        for task in tasks:
            task.add_done_callback(self._ended)
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        for found in ended:
            if isinstance(found, BaseException):
                raise found
        logger.info("stopped")

    def _signalled(self) -> None:
        if not self._stop.is_set():
            logger.info("stopping: what is under way is finished")
        self._end()

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and task.exception() is not None:
            self._end()

    def _end(self) -> None:
        self._stop.set()
        for child in self._children:
            child.terminate()


class _Child:
    def __init__(self, collector: OneCollector, stop: asyncio.Event) -> None:
        self._collector, self._stop = collector, stop
        self._process: asyncio.subprocess.Process | None = None
        self._was_ready = False

    async def run(self) -> None:
        """Keep it running until the end. Raises where it could not begin for the first time."""
        n_quick = 0
        while not self._stop.is_set():
            began = time.monotonic()
            code, how = await self._live()
            if self._stop.is_set():
                return
            if not self._was_ready:
                words = f"{self._collector.experiment}: {how}"
                raise ConfigError(words) if code == ConfigError.exit_code else EvalpipeError(words)
            n_quick = 0 if time.monotonic() - began > _STABLE_S else n_quick + 1
            logger.error("the collector of %s ended (%s); another one takes its place", self._collector.experiment, how)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RESTART_S[min(n_quick, len(_RESTART_S)) - 1] if n_quick else 0.0):
                    await self._stop.wait()

    def terminate(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    async def _live(self) -> tuple[int, str]:
        """Start one and wait for its end: its exit code, and how it ended in words."""
        try:
            lines = PipedLines("collect", asyncio.get_running_loop(), experiment=self._collector.experiment)
        except OSError as error:
            return 1, f"it cannot be started: {error}"
        try:
            process = await asyncio.create_subprocess_exec(
                *self._collector.command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=lines.write_fd,
                process_group=0,  # Ctrl-C reaches this process only: it ends them
            )
        except OSError as error:
            lines.started()
            lines.close()
            return 1, f"it cannot be started: {error}"
        lines.started()
        self._process = process
        try:
            if self._stop.is_set():
                self.terminate()
            watching = asyncio.create_task(self._until_ready(process.pid))
            code = await process.wait()
            watching.cancel()
            self._look_whether_ready(process.pid)  # it may have listened and ended between two looks
        finally:
            lines.close()
        how = f"exit code {code}" if code >= 0 else f"killed by signal {-code}"
        return code, how if self._was_ready or lines.last is None else lines.last

    async def _until_ready(self, pid: int) -> None:
        while not self._was_ready:
            self._look_whether_ready(pid)
            await asyncio.sleep(_LOOK_S)

    def _look_whether_ready(self, pid: int) -> None:
        """It listens when it has written its address down."""
        if self._was_ready:
            return
        try:
            self._was_ready = json.loads(address_file(self._collector.data).read_bytes())["pid"] == pid
        except (OSError, ValueError, KeyError, TypeError):
            self._was_ready = False
