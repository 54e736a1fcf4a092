"""The supervisor's child processes: kept running, stopped, their stderr in the log."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from pathlib import Path

from evalpipe.collector.logs import PipedLines

_RESTART_S = (0.0, 0.1, 0.5, 1.0, 5.0)
"""before the n-th restart in a row of a process that does not run for `_STABLE_S`"""
_STABLE_S = 10.0
ENDS_S = 10.0
"""a load or a controller that was asked to end is killed after so long; so are the workers after a fault of the supervisor"""

logger = logging.getLogger(__name__)


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
                *(sys.executable, "-m", "evalpipe.collector.child", *self._arguments),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=lines.write_fd,
                pass_fds=self._fds,
                env=self._environment,
                process_group=0,  # Ctrl-C reaches the supervisor only: it says when to stop
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
