"""What the collector does under a load that lasts (`make check-collector`): 128 streams at once keep their pace, and memory
stays flat over 200,000 requests. Prints what it saw; ends with 1 where a line does not hold.

`check_collector_load.py [streams] [memory]`; needs wrk.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1] / "collector"))
from bench_collector import LUA, UPSTREAM, copies_of, free_port, percentile, wait_for, wrk
from collector_harness import CHAT, Running, start_collector

N_STREAMS, N_EVENTS, GAP_S = 128, 100, 0.02
MAX_LATE_MS = 50.0
N_REQUESTS, MAX_MB, MAX_GROWTH = 200_000, 150.0, 0.10

STREAMS = r"""
import asyncio, sys, time, uvloop
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
class Server(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
    def data_received(self, data):
        if b"\r\n\r\n" in data:
            asyncio.get_running_loop().create_task(self.stream(int(sys.argv[2]), float(sys.argv[3])))
    async def stream(self, n, gap):
        self.transport.write(HEAD)
        start = time.monotonic()
        for number in range(n):
            await asyncio.sleep(max(0.0, start + number * gap - time.monotonic()))
            event = b'data: {"choices": [{"index": 0, "delta": {"content": "%.6f"}}]}\n\n' % time.monotonic()
            self.transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        self.transport.write(b"0\r\n\r\n")
async def main():
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", int(sys.argv[1]), backlog=1024)
    await server.serve_forever()
uvloop.run(main())
"""
"""writes into every event when it was written, by the clock that all processes of a machine share"""


async def lateness(port: int) -> tuple[list[float], list[float]]:
    """(ms after its writing that each event arrived, in the first half of the streams, in the second)."""
    body = b'{"model":"gpt-4o","stream":true,"messages":[{"role":"user","content":"hi"}]}'
    head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (CHAT.encode(), len(body))
    first: list[float] = []
    second: list[float] = []

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + body)
        await reader.readuntil(b"\r\n\r\n")
        n = 0
        while size := int(await reader.readline(), 16):
            event = await reader.readexactly(size + 2)
            written = float(event.partition(b'"content": "')[2].partition(b'"')[0])
            (first if n < N_EVENTS / 2 else second).append((time.monotonic() - written) * 1000)
            n += 1
        assert n == N_EVENTS
        writer.close()

    await asyncio.gather(*(one() for _ in range(N_STREAMS)))
    return first, second


def check_streams(folder: Path) -> bool:
    port = free_port()
    upstream = subprocess.Popen([sys.executable, "-c", STREAMS, str(port), str(N_EVENTS), str(GAP_S)])
    running = None
    try:
        wait_for(port)
        running = start_collector(folder, f"http://127.0.0.1:{port}/v1", f"http://127.0.0.1:{port}/v1")
        holds = True
        for name, at in (("direct", port), ("through the collector, shadowed", running.port)):
            first, second = asyncio.run(lateness(at))
            p99s = percentile(first, 0.99), percentile(second, 0.99)
            print(
                f"{N_STREAMS} streams × {N_EVENTS} events every {GAP_S * 1000:g} ms, {name}: an event arrives "
                f"{percentile(first + second, 0.5):.2f} ms after its writing (p50); p99 {p99s[0]:.1f} ms in the first half, "
                f"{p99s[1]:.1f} ms in the second"
            )
            holds = max(p99s) <= MAX_LATE_MS
        print(f"no stream falls behind (p99 within {MAX_LATE_MS:g} ms in both halves): {'yes' if holds else 'NO'}")
        return holds
    finally:
        upstream.kill()
        if running is not None:
            running.stop()


def megabytes(running: Running) -> float:
    return sum(psutil.Process(pid).memory_info().rss for pid in running.children().values()) / 1e6


def check_memory(folder: Path) -> bool:
    port = free_port()
    upstream = subprocess.Popen([sys.executable, "-c", UPSTREAM, str(port)], stderr=subprocess.DEVNULL)
    running = None
    lua = folder / "post.lua"
    lua.write_text(LUA)
    try:
        wait_for(port)
        url = f"http://127.0.0.1:{port}/v1"
        running = start_collector(folder, url, url)
        seen: list[tuple[int, float]] = []
        n = 0
        with tqdm(total=N_REQUESTS, desc="requests", unit="") as bar:
            while n < N_REQUESTS:
                _, done = wrk(running.port, 32, 2, lua)
                n += done
                bar.update(done)
                while sum(copies_of(running.port)) < n:  # the copies too
                    time.sleep(0.2)
                seen.append((n, megabytes(running)))
        answered, shed = copies_of(running.port)
        for at, mb in seen[:: max(1, len(seen) // 10)]:
            print(f"{at:>8,} requests: {mb:.1f} MB (worker and treatment process)")
        early = next(mb for at, mb in seen if at >= N_REQUESTS / 5)
        last = seen[-1][1]
        holds = last < MAX_MB and last <= early * (1 + MAX_GROWTH)
        print(
            f"after {n:,} requests ({answered:,} copies answered, {shed:,} shed): {last:.1f} MB, {early:.1f} MB at a fifth"
        )
        print(f"flat and under {MAX_MB:g} MB: {'yes' if holds else 'NO'}")
        return holds
    finally:
        upstream.kill()
        if running is not None:
            running.stop()


def main() -> int:
    checks = {"streams": check_streams, "memory": check_memory}
    held = []
    for name in sys.argv[1:] or checks:
        with tempfile.TemporaryDirectory(prefix="evalpipe-load-") as folder:
            held.append(checks[name](Path(folder)))
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
