"""A raw upstream that answers exactly the bytes it is told to, and a real collector in front of it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evalpipe.spool.format import Record, RequestRecord, ResponseRecord, ShadowRecord, read_record

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"


@dataclass
class Received:
    """One request as the upstream got it."""

    line: bytes
    head: bytes
    body: bytes

    def header(self, name: str) -> bytes | None:
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.strip().lower() == name.lower().encode():
                return value.strip()
        return None


Script = Callable[[Received], "Iterable[bytes | float | str]"]
"""What to do for a request: bytes are sent, a float is slept (s), "close" ends, "reset" breaks the connection, "hang" waits."""


def plain(body: bytes, *, status: str = "200 OK", headers: bytes = b"Content-Type: application/json\r\n") -> bytes:
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status.encode(), headers, len(body), body)


def chunked(pieces: Iterable[bytes], *, headers: bytes = b"Content-Type: text/event-stream\r\n") -> list[bytes]:
    head = b"HTTP/1.1 200 OK\r\n" + headers + b"Transfer-Encoding: chunked\r\n\r\n"
    return [head, *(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces), b"0\r\n\r\n"]


def chat_answer(text: str = "hello", **more: Any) -> bytes:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return json.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 1,
            "model": "gpt-4o",
            "choices": [choice],
            "usage": usage,
            **more,
        }
    ).encode()


def chat_stream(words: Iterable[str]) -> list[bytes]:
    """One event a word, and the end."""
    pieces = []
    for word in words:
        delta = {"index": 0, "delta": {"content": word}, "finish_reason": None}
        chunk = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o", "choices": [delta]}
        pieces.append(b"data: " + json.dumps(chunk).encode() + b"\n\n")
    return [*pieces, b"data: [DONE]\n\n"]


def chat_request(text: str = "hi", **more: Any) -> bytes:
    return json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": text}], **more}).encode()


class RawUpstream:
    """Serves `script` on a loopback port, in a thread. `received` holds what came."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.received: list[Received] = []
        self.n_connections = 0
        self.broken = 0
        """connections the other side closed while an answer was under way"""
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True)
        self._thread.start()
        started.wait(10)

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 27, backlog=2048)
        )
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._loop.call_soon(started.set)
        self._loop.run_forever()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        async def end() -> None:
            self._server.close()
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for writer in self._writers:  # what its client did not read would keep it open
                writer.transport.abort()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            self._loop.stop()

        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(end(), self._loop)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.append(writer)
        self.n_connections += 1
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        request = Received(head.split(b"\r\n")[0], head[:-4], b"")
        if request.header("expect"):
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        length = request.header("content-length")
        if length is not None:
            request.body = await reader.readexactly(int(length))
        elif (request.header("transfer-encoding") or b"").lower() == b"chunked":
            while size := int((await reader.readline()).split(b";")[0], 16):
                request.body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        self.received.append(request)
        for step in self.script(request):
            if isinstance(step, float):
                await asyncio.sleep(step)
            elif step == "close":
                return False
            elif step == "reset":
                writer.transport.abort()
                return False
            elif step == "hang":
                try:
                    await reader.read()  # until the other side leaves, politely or with a reset
                finally:
                    self.broken += 1
                return False
            else:
                assert isinstance(step, bytes)
                try:
                    writer.write(step)
                    await writer.drain()
                except ConnectionError:
                    self.broken += 1
                    raise
        return (request.header("connection") or b"").lower() != b"close"


CONFIG = """
[experiment]
name = "test"
mode = "{mode}"
{experiment}
[arms.control]
provider = "{provider}"
base_url = "{control}"
{arm}
[collector]
{collector}
{treatment}
"""


@dataclass
class Running:
    """A collector started as a user starts it."""

    process: subprocess.Popen[str]
    url: str
    root: Path
    lines: list[str] = field(default_factory=list)
    reader: threading.Thread | None = None

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    @property
    def data(self) -> Path:
        return self.root / "data"

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(120)
        self.close()
        return code

    def close(self) -> None:
        if self.reader is not None:
            self.reader.join(5)
        if self.process.stderr is not None:
            self.process.stderr.close()

    def children(self) -> dict[str, int]:
        """ "serve"/"shadow" → pid."""
        import psutil

        found = {}
        for child in psutil.Process(self.process.pid).children():
            try:
                found[child.cmdline()[3]] = child.pid
            except (psutil.Error, IndexError):  # on its way out, or not yet what it will be
                continue
        return found

    def child(self, name: str) -> int:
        """The pid of "serve" or "shadow", once there is one: a killed one's successor takes a moment."""
        found: dict[str, int] = {}

        def is_there() -> bool:
            found.update(self.children())
            return name in found

        eventually(is_there)
        return found[name]

    def records(self) -> list[Record]:
        return read_spool(self.data / "spool")

    def requests(self) -> dict[str, RequestRecord]:
        return {r.request_id: r for r in self.records() if isinstance(r, RequestRecord)}

    def responses(self, role: str = "served") -> dict[str, ResponseRecord]:
        found = [r for r in self.records() if isinstance(r, ResponseRecord) and r.role == role]
        assert len({r.request_id for r in found}) == len(found), f"a {role} answer was recorded twice"
        return {r.request_id: r for r in found}

    def fates(self) -> dict[str, ShadowRecord]:
        found = [r for r in self.records() if isinstance(r, ShadowRecord)]
        assert len({r.request_id for r in found}) == len(found), "a request's fate was recorded twice"
        return {r.request_id: r for r in found}


def read_spool(folder: Path) -> list[Record]:
    records = []
    for path in sorted(folder.glob("*.jsonl")):
        try:
            data = path.read_bytes()
        except FileNotFoundError:  # a writer that ends removes the segment it has written nothing to
            continue
        for line in data.split(b"\n")[:-1]:
            records.append(read_record(line))
    return records


def start_collector(
    root: Path,
    control: str,
    treatment: str | None = None,
    *,
    provider: str = "openai",
    treatment_provider: str = "openai",
    mode: str = "shadow",
    experiment: str = "",
    arm: str = "",
    treatment_arm: str = "",
    collector: str = "",
    arguments: Iterable[str] = (),
    env: dict[str, str] | None = None,
) -> Running:
    root.mkdir(parents=True, exist_ok=True)
    second = ""
    if treatment is not None:
        second = (
            f'[arms.treatment]\nprovider = "{treatment_provider}"\nbase_url = "{treatment}"\nmodel = "gpt-4o-mini"\n'
            f"{treatment_arm}"
        )
    text = CONFIG.format(
        mode=mode,
        experiment=experiment,
        provider=provider,
        control=control,
        arm=arm,
        collector=collector,
        treatment=second,
    )
    (root / "evalpipe.toml").write_text(text)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from evalpipe.errors import EvalpipeError\n"
        "from evalpipe.workspace.collect import collect\n"
        "from evalpipe.workspace.paths import open_workspace\n"
        "options = dict(argument.split('=', 1) for argument in sys.argv[1:])\n"
        "typed = {k: int(v) if v.isdigit() else v for k, v in options.items()}\n"
        "try:\n"
        "    collect(open_workspace(Path('evalpipe.toml')), **{'port': 0, **typed})\n"
        "except EvalpipeError as error:\n"
        "    sys.exit(f'evalpipe: {error}')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=root,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "EVALPIPE_DATA": str(root / "data"), **(env or {})},
    )
    running = Running(process, "", root)
    assert process.stderr is not None
    for line in process.stderr:
        running.lines.append(line)
        if "listening on " in line:
            running.url = line.split()[-1]
            break
    else:
        process.stderr.close()
        process.wait(10)
        raise RuntimeError("".join(running.lines))

    def drain() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            running.lines.append(line)

    running.reader = threading.Thread(target=drain, daemon=True)
    running.reader.start()
    return running


def exchange(port: int, data: bytes, *, timeout: float = 10, until_close: bool = True) -> bytes:
    """Send raw bytes, read until the other side closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=timeout) as sock:
        sock.sendall(data)
        received = b""
        try:
            while piece := sock.recv(1 << 16):
                received += piece
        except (ConnectionResetError, TimeoutError):
            if until_close:
                raise
        return received


def eventually(check: Callable[[], bool], *, timeout: float = 10) -> None:
    """Wait until `check` holds; the collector works in processes of its own."""
    deadline = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)
