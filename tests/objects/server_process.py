"""Servers of the tests as processes: each prints its port when it is ready, and ends when whoever started it does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]


class ServerProcess:
    """`python -m MODULE ARGUMENTS` as a process of its own: ready, with its `port`, once this is made.

    Raises:
        RuntimeError: it ended before it was ready; with the end of its log.
    """

    def __init__(self, module: str, *arguments: str, log: Path) -> None:
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=TESTS,
                start_new_session=True,
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.kill()
            raise RuntimeError(f"{module} did not start: {log.read_text('utf-8', 'replace')[-2000:]}")
        self.port = int(line)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        """End it at once (SIGKILL): nothing that these servers keep outlives them."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # with the server that an emulator's module has started
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def announce(port: int) -> None:
    """Write the port on which this server is ready, for the process that started it."""
    print(port, flush=True)


def wait_for_parent() -> None:
    """Return when the process that started this one has closed our input: its end does so too, however it ended."""
    sys.stdin.buffer.read()
