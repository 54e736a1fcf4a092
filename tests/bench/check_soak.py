"""A soak: a steady rate through one collector with a treatment, loaded every two minutes (`make check-soak`).

`check_soak.py [RATE] [SECONDS] [FOLDER] [--load-every 2m] [--load-core N]`, 500 requests/s for an hour without arguments. With
`--load-core` what loads has that core, and everything else (collector, clients, provider) the others. Memory, descriptors, log
not loaded and log not counted must be as flat at the end as after the first sixth, every answer a client read must be one row of
each arm, and no row may be there twice. Prints a table; ends with 1 where a line does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.request import urlopen

import psutil
import uvloop

EVALPIPE = [sys.executable, "-m", "evalpipe"]
N_CONNECTIONS, N_USERS, SAMPLE_S = 64, 5000, 30.0
COUNTED_RATE = 1400.0
"""requests/s, of two answers each, up to which the collector counts their tokens meanwhile"""
CONFIG = """
[experiment]
name = "soak"
[arms.control]
provider = "openai"
base_url = "http://127.0.0.1:{port}/v1"
model = "gpt-4o"
[arms.treatment]
provider = "openai"
base_url = "http://127.0.0.1:{port}/v1"
model = "gpt-4o-mini"
api_key_env = "SOAK_KEY"
"""
UPSTREAM = r"""
import asyncio, json, sys, uvloop
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
def event(delta, **more):
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    value = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "gpt-4o", "choices": [choice], **more}
    data = b"data: " + json.dumps(value).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)
BODY = json.dumps({"id": "x", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini", "choices": [{"index": 0,
    "message": {"role": "assistant", "content": "an answer " * 80}, "finish_reason": "stop"}], "usage": USAGE}).encode()
def whole(body):
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
MINI, WHOLE = whole(BODY), whole(BODY.replace(b"gpt-4o-mini", b"gpt-4o"))
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FIRST = HEAD + event({"role": "assistant", "content": "an "}) * 5
DONE = b"data: [DONE]\n\n"
REST = event({"content": "answer "}) * 5 + event({}, usage=USAGE) + b"%x\r\n%b\r\n" % (len(DONE), DONE) + b"0\r\n\r\n"
class Server(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.buffer = transport, b""
    def data_received(self, data):
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            n = int(head[head.find(b"content-length:") + 15 :].split(b"\r")[0])
            if len(self.buffer) < end + 4 + n:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + n], self.buffer[end + 4 + n :]
            if b'"stream":true' in body or b'"stream": true' in body:
                self.transport.write(FIRST)
                asyncio.get_running_loop().call_later(0.02, self.transport.write, REST)
            else:
                self.transport.write(MINI if b"gpt-4o-mini" in body else WHOLE)
async def main():
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
uvloop.run(main())
"""
"""every answer at once; a stream in two pieces, 20 ms apart"""
QUESTION = "what is it that a user may ask " * 12


def asked(number: int) -> bytes:
    """Each fifth request is a stream; every one has its own text."""
    stream = b',"stream":true,"stream_options":{"include_usage":true}' if number % 5 == 0 else b""
    body = b'{"model":"gpt-4o","user":"u%d","messages":[{"role":"user","content":"%d %b"}]%b}' % (
        number * 7919 % N_USERS,
        number,
        QUESTION.encode(),
        stream,
    )
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer sk-soak\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    )


@dataclass
class Clients:
    """What all connections count; `ids` is a file of the request ids of answers that were read to their end."""

    ids: Path
    sent: int = 0
    ok: int = 0
    bad: int = 0
    cut: int = 0
    is_over: bool = False
    late: int = 0
    """requests that had to wait for a free connection"""
    times: list[float] = field(default_factory=list)
    free: deque[Connection] = field(default_factory=deque)
    """each has its turn, so that none is idle until the collector closes it"""


class Connection(asyncio.Protocol):
    """One keep-alive connection: a request, its answer to the end, the next request."""

    def __init__(self, clients: Clients, write_id: Callable[[bytes], object]) -> None:
        self._clients, self._write_id = clients, write_id
        self._buffer = b""
        self._began = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, error: Exception | None) -> None:
        self._clients.cut += not self._clients.is_over

    def ask(self, request: bytes) -> None:
        self._began = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        at = head.find(b"content-length:")
        if at >= 0:
            if len(self._buffer) < end + 4 + int(head[at + 15 :].split(b"\r")[0]):
                return
        elif not self._buffer.endswith(b"\r\n0\r\n\r\n"):
            return
        clients = self._clients
        at = head.find(b"x-evalpipe-request-id:")
        if self._buffer[9:12] == b"200" and at >= 0:
            clients.ok += 1
            self._write_id(self._buffer[at + 22 :].split(b"\r")[0].strip() + b"\n")
        else:
            clients.bad += 1
        clients.times.append(time.perf_counter() - self._began)
        self._buffer = b""
        clients.free.append(self)


async def ask_steadily(clients: Clients, port: int, rate: float, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    with clients.ids.open("wb", buffering=1 << 20) as ids:
        for _ in range(N_CONNECTIONS):
            _, made = await loop.create_connection(lambda: Connection(clients, ids.write), "127.0.0.1", port)
            clients.free.append(made)
        began = loop.time()
        while (passed := loop.time() - began) < seconds:
            due = int(rate * passed)
            while clients.sent < due and clients.free:
                clients.free.popleft().ask(asked(clients.sent))
                clients.sent += 1
            clients.late += clients.sent < due
            await asyncio.sleep(0.004)
        for _ in range(1000):
            if clients.ok + clients.bad >= clients.sent:
                break
            await asyncio.sleep(0.01)
    clients.is_over = True
    for connection in clients.free:
        connection._transport.abort()


@dataclass
class Sample:
    """The collector at one moment."""

    at_s: float
    rss_mb: dict[str, float]
    descriptors: dict[str, int]
    load_mb: float
    unloaded_mb: float
    unloaded_age_s: float
    unaccounted_mb: float
    lag: float
    """exchanges of both arms that are answered and whose tokens are not counted"""
    shed: float
    lost: float
    falling_behind: bool
    n_sent: int
    n_bad: int
    p50_ms: float
    p99_ms: float
    max_ms: float


def role_of(process: psutil.Process) -> str:
    line = " ".join(process.cmdline())
    found = re.search(r"\b(serve|shadow)\b", line)
    return found.group(1) if found else "load" if " load" in line else "other"


def scrape(port: int) -> dict[str, float]:
    """Every sample of the metrics by its name and labels."""
    text = urlopen(f"http://127.0.0.1:{port}/_evalpipe/metrics", timeout=20).read().decode()
    lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def summed(values: dict[str, float], name: str, *parts: str) -> float:
    return sum(value for key, value in values.items() if key.startswith(name) and all(part in key for part in parts))


def look(root: psutil.Process, port: int, clients: Clients, at_s: float, times: list[float]) -> Sample:
    rss, descriptors, load_mb = {"supervisor": root.memory_info().rss / 1e6}, {"supervisor": root.num_fds()}, 0.0
    for child in root.children(recursive=True):
        try:
            name = role_of(child)
            if name in {"load", "other"}:
                load_mb += child.memory_info().rss / 1e6
            else:
                rss[name], descriptors[name] = child.memory_info().rss / 1e6, child.num_fds()
        except psutil.Error:  # ended meanwhile
            continue
    values = scrape(port)
    answered = summed(values, "evalpipe_requests_total", 'outcome="ok"')
    counted = summed(values, "evalpipe_tokens_total", 'kind="output"') / 5
    times.sort()
    at = (lambda share: times[min(len(times) - 1, int(len(times) * share))] * 1000) if times else (lambda share: 0.0)
    return Sample(
        at_s,
        rss,
        descriptors,
        load_mb,
        values.get("evalpipe_spool_unloaded_bytes", 0.0) / 1e6,
        values.get("evalpipe_spool_unloaded_age_seconds", 0.0),
        values.get("evalpipe_spool_unaccounted_bytes", 0.0) / 1e6,
        answered - counted,
        summed(values, "evalpipe_shadow_shed_total"),
        summed(values, "evalpipe_records_lost_total"),
        values.get("evalpipe_spool_falling_behind", 0.0) > 0,
        clients.sent,
        clients.bad + max(0, clients.cut),
        at(0.5),
        at(0.99),
        at(1.0),
    )


def row(sample: Sample) -> str:
    def kinds(values: dict[str, float] | dict[str, int], form: str) -> str:
        return " / ".join(format(values.get(name, -1), form) for name in ("serve", "shadow", "supervisor"))

    behind = " FALLING BEHIND" if sample.falling_behind else ""
    parts = (
        f"{sample.at_s / 60:5.1f} min",
        f"{sample.n_sent:>9,} asked, {sample.n_bad} bad",
        f"RSS {kinds(sample.rss_mb, '.1f')} MB",
        f"fds {kinds(sample.descriptors, 'd')}",
        f"lag {sample.lag:.0f}, {sample.unaccounted_mb:.1f} MB",
        f"unloaded {sample.unloaded_mb:.0f} MB, {sample.unloaded_age_s:.0f} s{behind}",
        f"shed {sample.shed:.0f}, lost {sample.lost:.0f}",
        f"{sample.p50_ms:.1f} / {sample.p99_ms:.1f} / {sample.max_ms:.0f} ms",
        f"load {sample.load_mb:.0f} MB",
    )
    return " | ".join(parts)


def watch(clients: Clients, process: subprocess.Popen[bytes], port: int, stop: asyncio.Event) -> list[Sample]:
    """A sample every 30 s, in a thread beside the clients."""
    root, began, samples, n = psutil.Process(process.pid), time.monotonic(), [], 0
    while not stop.is_set():
        n += 1
        while time.monotonic() < began + n * SAMPLE_S and not stop.is_set():
            time.sleep(0.2)
        times, clients.times = clients.times, []
        try:
            samples.append(look(root, port, clients, time.monotonic() - began, times))
            print(row(samples[-1]), flush=True)
        except (OSError, psutil.Error) as error:
            print(f"not seen at {time.monotonic() - began:.0f} s: {error}", flush=True)
    return samples


def is_flat(samples: list[Sample], rate: float, seconds: float) -> bool:
    """Whether the last sixth is as the second one was."""
    second = [sample for sample in samples if seconds / 6 <= sample.at_s < seconds / 3]
    last = [sample for sample in samples if sample.at_s >= seconds * 5 / 6]
    holds = True

    def check(name: str, of: Callable[[Sample], float], *, share: float, plus: float) -> None:
        nonlocal holds
        before, after = max(map(of, second)), max(map(of, last))
        good = after <= before * (1 + share) + plus
        holds = holds and good
        print(
            f"{name}: at most {before:,.1f} in the second sixth, {after:,.1f} in the last: {'flat' if good else 'GROWS'}"
        )

    for role in ("serve", "shadow", "supervisor"):
        check(f"RSS of {role} (MB)", lambda sample, role=role: sample.rss_mb.get(role, 0.0), share=0.05, plus=2)
        check(f"descriptors of {role}", lambda sample, role=role: sample.descriptors.get(role, 0), share=0, plus=4)
    if rate <= COUNTED_RATE:
        check("lag of tokens_total (exchanges)", lambda sample: sample.lag, share=0.5, plus=500)
        check("log not counted (MB)", lambda sample: sample.unaccounted_mb, share=0.5, plus=5)
    else:
        print(f"lag of tokens_total: not judged, above {COUNTED_RATE:g} requests/s it is counted when traffic is lower")
    check("log not loaded (MB)", lambda sample: sample.unloaded_mb, share=0.25, plus=20)
    check("its age (s)", lambda sample: sample.unloaded_age_s, share=0.25, plus=20)
    return holds


def is_whole(folder: Path, clients: Clients) -> bool:
    """Each answer in hand is one row of each arm; nothing is there twice."""
    import duckdb
    import pyarrow as pa

    from evalpipe.store.query import open_store

    with open_store(folder / "data", "soak") as store:
        connection: duckdb.DuckDBPyConnection = store.connection
        ids = pa.array(clients.ids.read_text().split(), pa.string())
        connection.register("in_hand", pa.table({"id": ids}))  # the store opens no other file

        def one(query: str) -> tuple[int, ...]:
            return tuple(connection.sql(query).fetchall()[0])

        def without(role: str) -> int:
            """Answers in hand that have no row of this role."""
            stored = f"(SELECT request_id AS id FROM exchanges WHERE role = '{role}' AND outcome = 'ok')"
            return one(f"SELECT count(*) FROM in_hand ANTI JOIN {stored} USING (id)")[0]

        n_rows, n_served, n_copies = one(
            "SELECT count(*), count(*) FILTER (role = 'served'), count(*) FILTER (role = 'shadow') FROM exchanges"
        )
        (n_keys,) = one("SELECT count(*) FROM (SELECT DISTINCT request_id, arm, role FROM exchanges)")
        lost, no_copy = without("served"), without("shadow")
        (n_in_hand,) = one("SELECT count(DISTINCT id) FROM in_hand")
        by_fate = connection.sql(
            "SELECT shadow_status, count(*) FROM exchanges WHERE role = 'served' GROUP BY 1"
        ).fetchall()
    left = sum(path.stat().st_size for path in (folder / "data" / "spool").glob("*.jsonl"))
    print(
        f"answers in hand {clients.ok:,} ({n_in_hand:,} ids), rows {n_rows:,}: served {n_served:,}, copies {n_copies:,}; "
        f"not stored {lost}, without their copy's answer {no_copy}, rows twice {n_rows - n_keys}; "
        f"fates of copies {dict(by_fate)}; log left {left} bytes"
    )
    return (
        lost == 0
        and no_copy == 0
        and n_rows == n_keys
        and n_served == n_copies == clients.ok == clients.sent
        and not left
    )


def keep_loads_on(core: int, collector: psutil.Process) -> None:
    """Give the processes that load this core, from shortly after each has started."""

    def pin() -> None:
        while True:
            try:
                for child in collector.children(recursive=True):
                    with suppress(psutil.Error):
                        if role_of(child) in {"load", "other"} and child.cpu_affinity() != [core]:
                            child.cpu_affinity([core])
            except psutil.NoSuchProcess:
                return
            time.sleep(0.1)

    threading.Thread(target=pin, daemon=True).start()


def main(rate: float, seconds: float, folder: Path, *, load_every: str, load_core: int | None) -> int:
    if load_core is not None:
        os.sched_setaffinity(0, os.sched_getaffinity(0) - {load_core})
    env = {**os.environ, "SOAK_KEY": "sk-treatment-of-the-soak"}
    upstream = subprocess.Popen([sys.executable, "-c", UPSTREAM], stdout=subprocess.PIPE)
    assert upstream.stdout is not None
    (folder / "evalpipe.toml").write_text(CONFIG.format(port=int(upstream.stdout.readline())))
    log = folder / "collector.log"
    with log.open("wb") as out:
        command = [*EVALPIPE, "collect", "--port", "0", "--load-every", load_every]
        collector = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=out)
    if load_core is not None:
        keep_loads_on(load_core, psutil.Process(collector.pid))
    try:
        while (listening := re.search(r"listening on http://127\.0\.0\.1:(\d+)", log.read_text())) is None:
            if collector.poll() is not None:
                raise SystemExit(log.read_text())
            time.sleep(0.1)
        port = int(listening.group(1))
        print(urlopen(f"http://127.0.0.1:{port}/_evalpipe/health").read().decode(), flush=True)
        clients = Clients(folder / "ids")

        async def run() -> list[Sample]:
            stop = asyncio.Event()
            watching = asyncio.create_task(asyncio.to_thread(watch, clients, collector, port, stop))
            try:
                await ask_steadily(clients, port, rate, seconds)
            finally:
                stop.set()
            return await watching

        samples = uvloop.run(run())
        print(
            f"asked {clients.sent:,}, whole {clients.ok:,}, bad {clients.bad}, waited for a connection {clients.late} times"
        )
        began = time.monotonic()
        collector.send_signal(signal.SIGTERM)
        print(f"collector ended with {collector.wait(300)} in {time.monotonic() - began:.1f} s")
    finally:
        for process in (collector, upstream):
            process.kill()
            process.wait()
    loaded = subprocess.run([*EVALPIPE, "load"], cwd=folder, env=env, capture_output=True, text=True)
    print(f"last load {loaded.returncode}: {loaded.stdout.strip()} {loaded.stderr.strip()}")
    (folder / "samples.json").write_text(json.dumps([sample.__dict__ for sample in samples]))
    holds = is_flat(samples, rate, seconds) & is_whole(folder, clients) & (loaded.returncode == 0)
    print("holds" if holds else "DOES NOT HOLD")
    return 0 if holds else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rate", type=float, nargs="?", default=500.0)
    parser.add_argument("seconds", type=float, nargs="?", default=3600.0)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--load-every", default="2m")
    parser.add_argument("--load-core", type=int)
    asked_for = parser.parse_args()
    sys.exit(
        main(
            asked_for.rate,
            asked_for.seconds,
            asked_for.folder or Path(tempfile.mkdtemp(prefix="evalpipe-soak-")),
            load_every=asked_for.load_every,
            load_core=asked_for.load_core,
        )
    )
