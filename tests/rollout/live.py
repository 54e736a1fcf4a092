"""A real stack for tests: simulated providers, a collector with workers, each in processes of their own, on free ports."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from evalpipe.spool.format import Record, RequestRecord, ResponseRecord, read_record

RUN = "import sys; from importlib import import_module as i; import typer; n=sys.argv.pop(1); m=i('evalpipe.cli.'+n); "
RUN += "a=getattr(m,'app',None) or typer.Typer(); "
RUN += "hasattr(m,'app') or a.command()(getattr(m,n)); a()"
LISTENING = re.compile(r"(http://[0-9.]+:\d+)")


class Process:
    """One evalpipe command in a process of its own."""

    def __init__(self, log: Path, *arguments: str, env: dict[str, str] | None = None) -> None:
        self.log = log
        with log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-c", RUN, *arguments],
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
            )

    def url(self, timeout_s: float = 110) -> str:
        return until(lambda: found.group(1) if (found := LISTENING.search(self.text)) else None, timeout_s, self.text)

    @property
    def text(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def until(look: Callable[[], Any], timeout_s: float = 30, what: str = "") -> Any:
    """What `look` gives once it gives something true."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {timeout_s} s in vain: {what}")


@contextmanager
def running(log: Path, *arguments: str, env: dict[str, str] | None = None) -> Iterator[Process]:
    process = Process(log, *arguments, env=env)
    try:
        yield process
    finally:
        process.stop()


def workers(supervisor: int) -> list[int]:
    """Process ids of the collector's serving processes."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            command = (entry / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(status[1]) == supervisor and b"serve" in command and status[0] != "Z":
            found.append(int(entry.name))
    return sorted(found)


def records(spool: Path) -> list[Record]:
    return [
        read_record(line) for path in sorted(spool.glob("*.jsonl")) for line in path.read_bytes().splitlines() if line
    ]


def served(spool: Path) -> list[tuple[RequestRecord, ResponseRecord]]:
    """Requests with their served answers."""
    asked: dict[str, RequestRecord] = {}
    answered: dict[str, ResponseRecord] = {}
    for record in records(spool):
        if isinstance(record, RequestRecord):
            asked[record.request_id] = record
        elif isinstance(record, ResponseRecord) and record.role == "served":
            answered[record.request_id] = record
    return [(asked[key], answered[key]) for key in asked if key in answered]


def post(url: str, value: Any, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(
        url, data=json.dumps(value).encode(), headers={"content-type": "application/json", **(headers or {})}
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, dict(answer.headers), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()
