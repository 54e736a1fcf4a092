"""Child processes of one command: started, known to listen, stopped gently, never left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from evalpipe.errors import EvalpipeError

_LISTENING = re.compile(r"listening on (http://\S+)")


class Child:
    """`python -m MODULE ARGUMENTS…` in a process of its own, its output in `log`. A context manager that stops it."""

    def __init__(self, module: str, arguments: list[str], *, log: Path, name: str) -> None:
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_listening(self, *, timeout_s: float = 60.0) -> str:
        """The address the child says it listens on. Raises EvalpipeError with its last words where it ends or stays silent."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = _LISTENING.search(self._output())
            if found:
                return found.group(1)
            if self._process.poll() is not None or time.monotonic() > deadline:
                last = self._output().strip().splitlines()[-1:] or ["no output"]
                raise EvalpipeError(f"{self.name} did not start: {last[0]} (log: {self.log})")
            time.sleep(0.05)

    def stop(self, *, timeout_s: float = 60.0) -> None:
        """SIGTERM and wait; SIGKILL after `timeout_s`. Raises EvalpipeError where the child failed."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise EvalpipeError(f"{self.name} did not stop within {timeout_s:.0f} s (log: {self.log})") from None
        if code not in (0, -signal.SIGTERM):
            raise EvalpipeError(f"{self.name} ended with exit code {code} (log: {self.log})")

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill() if kind else self._process.terminate()
            self._process.wait()

    def _output(self) -> str:
        return self.log.read_text("utf-8", "replace")
