"""The collector beside nginx, Envoy and LiteLLM (`make bench-collector`): each proxy alone on one core, the load and the
upstreams on another, rounds interleaved, medians. Run it on a machine that does nothing else.

Needs wrk and nginx; Envoy and LiteLLM from BENCH_ENVOY and BENCH_LITELLM (paths of their programs), left out where absent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).parents[1] / "collector"))

UPSTREAM = r"""
import asyncio, json, sys, uvloop
text = "hello " * 200
BODY = json.dumps({"id": "x", "object": "chat.completion", "created": 1, "model": "gpt-4o", "choices": [{"index": 0,
    "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 10,
    "completion_tokens": 5, "total_tokens": 15}}).encode() + b" " * 150
WHOLE = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices": [{"index": 0, "delta": {"content": "word"}}]}\n\n'
CHUNK = b"%x\r\n%b\r\n" % (len(EVENT), EVENT)
class Server(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.buffer = transport, b""
    def data_received(self, data):
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            n = int(head[at + 15 :].split(b"\r")[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + n:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + n], self.buffer[end + 4 + n :]
            if b'"stream":true' in body or b'"stream": true' in body:
                asyncio.get_running_loop().create_task(self.stream())
            else:
                self.transport.write(WHOLE)
    async def stream(self):
        self.transport.write(HEAD)
        for _ in range(20):
            self.transport.write(CHUNK)
            await asyncio.sleep(0.02)
        self.transport.write(b"0\r\n\r\n")
async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Server, "127.0.0.1", int(sys.argv[1]))
    await server.serve_forever()
uvloop.run(main())
"""
LUA = """wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.headers["Authorization"] = "Bearer sk-proj-Zq7XbV2LmK9wYdN4sJ1hRcF8gPuE6aTo5iBxC3nWvSyGjDlUQfOeAtHk"
wrk.body = '{"model":"gpt-4o","messages":[{"role":"user","content":"' .. string.rep("hello wor ", 94) .. '"}]}'
"""
BODY = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hello wor " * 94}]}).encode()
STREAM = json.dumps({"model": "gpt-4o", "stream": True, "messages": [{"role": "user", "content": "hi"}]}).encode()
PATH = "/v1/chat/completions"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Proxy:
    name: str
    port: int
    process: subprocess.Popen[bytes]
    rates: dict[int, list[float]] = field(default_factory=dict)
    cpu_us: list[float] = field(default_factory=list)
    paced: list[list[float]] = field(default_factory=list)
    first_ms: list[float] = field(default_factory=list)
    gap_ms: list[float] = field(default_factory=list)
    rss_mb: float = 0.0

    def tree(self) -> list[int]:
        import psutil

        root = psutil.Process(self.process.pid)
        return [root.pid, *(child.pid for child in root.children(recursive=True))]

    def cpu_ns(self) -> int:
        total = 0
        for pid in self.tree():
            for task in Path(f"/proc/{pid}/task").iterdir():
                total += int((task / "schedstat").read_text().split()[0])
        return total

    def pin(self, core: int) -> None:
        for pid in self.tree():
            subprocess.run(["taskset", "-apc", str(core), str(pid)], check=True, stdout=subprocess.DEVNULL)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def nginx(folder: Path, control: int, treatment: int, *, shadow: bool) -> Proxy:
    folder.mkdir()
    port = free_port()
    mirror = "mirror /copy; mirror_request_body on;" if shadow else ""
    (folder / "nginx.conf").write_text(
        f"daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; events {{ worker_connections 4096; }}\n"
        f"http {{ access_log off; keepalive_requests 1000000; "
        + "".join(
            f"{kind}_temp_path {folder}/{kind}; " for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        + f"\nupstream control {{ server 127.0.0.1:{control}; keepalive 256; keepalive_requests 1000000; }}\n"
        f"upstream treatment {{ server 127.0.0.1:{treatment}; keepalive 256; keepalive_requests 1000000; }}\n"
        f"server {{ listen 127.0.0.1:{port}; proxy_http_version 1.1; proxy_set_header Connection ''; proxy_buffering off;\n"
        f"location / {{ {mirror} proxy_pass http://control; }}\n"
        f"location = /copy {{ internal; proxy_pass http://treatment$request_uri; }} }} }}\n"
    )
    return Proxy(
        "nginx", port, subprocess.Popen(["nginx", "-c", str(folder / "nginx.conf")], stderr=subprocess.DEVNULL)
    )


def envoy(folder: Path, control: int, treatment: int, *, shadow: bool) -> Proxy:
    folder.mkdir()
    port = free_port()

    def cluster(name: str, at: int) -> dict[str, object]:
        endpoint = {"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": at}}}}
        assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}
        limits = {"thresholds": [{"max_connections": 4096, "max_pending_requests": 65536, "max_requests": 65536}]}
        return {
            "name": name,
            "type": "STATIC",
            "connect_timeout": "5s",
            "load_assignment": assignment,
            "circuit_breakers": limits,
        }

    route: dict[str, object] = {"cluster": "control", "timeout": "0s"}
    if shadow:
        route["request_mirror_policies"] = [{"cluster": "treatment"}]
    kinds = "type.googleapis.com/envoy.extensions.filters"
    manager = {
        "@type": f"{kinds}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "route_config": {
            "virtual_hosts": [{"name": "a", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": route}]}]
        },
        "http_filters": [{"name": "router", "typed_config": {"@type": f"{kinds}.http.router.v3.Router"}}],
    }
    listener = {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    static = {"listeners": [listener], "clusters": [cluster("control", control), cluster("treatment", treatment)]}
    (folder / "envoy.json").write_text(json.dumps({"static_resources": static}))
    command = [os.environ["BENCH_ENVOY"], "-c", str(folder / "envoy.json"), "--concurrency", "1", "-l", "error"]
    command += ["--use-dynamic-base-id"]
    return Proxy("envoy", port, subprocess.Popen(command, stderr=subprocess.DEVNULL))


def litellm(folder: Path, control: int, treatment: int, *, shadow: bool) -> Proxy:
    folder.mkdir()
    port = free_port()

    def model(name: str, at: int, **more: object) -> dict[str, object]:
        told = {"model": "openai/gpt-4o", "api_base": f"http://127.0.0.1:{at}/v1", "api_key": "sk-x", **more}
        return {"model_name": name, "litellm_params": told}

    copied = {"silent_model": "treatment"} if shadow else {}
    models = [model("gpt-4o", control, **copied), model("treatment", treatment)]
    (folder / "config.yaml").write_text(json.dumps({"model_list": models}))
    command = [
        os.environ["BENCH_LITELLM"],
        "--config",
        str(folder / "config.yaml"),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    # It refuses to start without a master key, and would ask the network for prices.
    told = {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    process = subprocess.Popen(
        command, env={**os.environ, **told}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return Proxy("litellm", port, process)


def evalpipe(folder: Path, control: int, treatment: int, *, shadow: bool) -> Proxy:
    from collector_harness import start_collector

    running = start_collector(
        folder, f"http://127.0.0.1:{control}/v1", f"http://127.0.0.1:{treatment}/v1" if shadow else None
    )
    with urlopen(f"http://127.0.0.1:{running.port}/_evalpipe/health") as answer:
        if not json.load(answer)["compiled"]:
            raise SystemExit("the collector runs interpreted: make bench-collector sets PYTHONPATH to the compiled one")
    return Proxy("evalpipe", running.port, running.process)  # type: ignore[arg-type]


def touch_memory(n_bytes: int = 2 << 30) -> None:
    """Use as much memory once as a round's log will fill. A virtual machine that hands free memory back to its host takes
    ten times as long to use a page for the first time (here 10 µs of 4 kB); what is measured are the proxies."""
    piece = b"x" * (16 << 20)
    with tempfile.TemporaryFile(dir="/dev/shm") as file:
        for _ in range(n_bytes // len(piece)):
            file.write(piece)


def wrk(port: int, connections: int, seconds: float, lua: Path) -> tuple[float, int]:
    """Requests per second, and how many."""
    done = subprocess.run(
        [
            "taskset",
            "-c",
            "1",
            "wrk",
            "-t1",
            f"-c{connections}",
            f"-d{seconds:g}s",
            "-s",
            str(lua),
            f"http://127.0.0.1:{port}{PATH}",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    rate = next(float(line.split()[1]) for line in done.splitlines() if line.startswith("Requests/sec"))
    n = next(int(line.split()[0]) for line in done.splitlines() if "requests in" in line)
    if "Non-2xx" in done:
        raise SystemExit(f"port {port}: wrk saw errors:\n{done}")
    return rate, n


def load(proxy: Proxy, connections: int, seconds: float, lua: Path, *, shadow: bool) -> tuple[float, int]:
    """Requests per second, and how many. The collector's copies are made by a process of their own: its time counts
    until the last copy is answered."""
    if not (shadow and proxy.name == "evalpipe"):
        return wrk(proxy.port, connections, seconds, lua)
    before = sum(copies_of(proxy.port))
    began = time.perf_counter()
    _, n = wrk(proxy.port, connections, seconds, lua)
    while sum(copies_of(proxy.port)) < before + n:
        time.sleep(0.05)
    return n / (time.perf_counter() - began), n


async def paced(port: int, rate: float, seconds: float, *, stream: bool) -> tuple[list[float], list[float]]:
    """Latencies (or times to the first event) and, for streams, gaps between events, in ms, at a fixed rate."""
    first: list[float] = []
    gaps: list[float] = []
    idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    body = STREAM if stream else BODY
    request = (
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (
            PATH.encode(),
            len(body),
            body,
        )
    )

    async def one() -> None:
        reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
        began = time.perf_counter()
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not stream:
            at = head.lower().find(b"content-length:")
            if at >= 0:
                await reader.readexactly(int(head[at + 15 :].split(b"\r")[0]))
            else:
                await reader.readuntil(b"0\r\n\r\n")
            first.append((time.perf_counter() - began) * 1000)
        else:
            last = None
            while True:
                size = int(await reader.readline(), 16)
                await reader.readexactly(size + 2)
                now = time.perf_counter()
                if not size:
                    break
                if last is None:
                    first.append((now - began) * 1000)
                else:
                    gaps.append((now - last) * 1000)
                last = now
        idle.append((reader, writer))

    tasks = []
    start = time.perf_counter()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(one()))
    await asyncio.gather(*tasks)
    for _, writer in idle:
        writer.close()
    return first, gaps


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * share))] if values else float("nan")


def wait_for(port: int) -> bool:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.1)
    return False


def copies_of(port: int) -> tuple[int, int]:
    """(copies answered, copies shed) by the collector's own metrics."""
    text = urlopen(f"http://127.0.0.1:{port}/_evalpipe/metrics").read().decode()
    answered = sum(
        float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith("evalpipe_requests_total") and "shadow" in line
    )
    shed = sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith("evalpipe_shadow_shed_total{"))
    return int(answered), int(shed)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--connections", default="1,32,128")
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    os.sched_setaffinity(0, {1})
    makers: dict[str, Callable[..., Proxy]] = {"evalpipe": evalpipe, "nginx": nginx}
    if os.environ.get("BENCH_ENVOY"):
        makers["envoy"] = envoy
    if os.environ.get("BENCH_LITELLM"):
        makers["litellm"] = litellm
    connections = [int(n) for n in told.connections.split(",")]
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    lua = folder / "post.lua"
    lua.write_text(LUA)
    ports = [free_port(), free_port()]
    upstreams = [
        subprocess.Popen([sys.executable, "-c", UPSTREAM, str(port)], stderr=subprocess.DEVNULL) for port in ports
    ]
    results: dict[str, dict[str, object]] = {}
    try:
        for port in ports:
            wait_for(port)
        direct_first, _ = asyncio.run(paced(ports[0], 100, 4, stream=False))
        direct_token, direct_gap = asyncio.run(paced(ports[0], 20, 3, stream=True))
        # LiteLLM goes on with requests for seconds after their clients have left: it is measured when nobody else runs.
        fast = {name: make for name, make in makers.items() if name != "litellm"}
        slow = {name: make for name, make in makers.items() if name == "litellm"}
        for mode, group in [(mode, group) for group in (fast, slow) if group for mode in ("forward", "shadow")]:
            proxies = {
                name: make(folder / f"{name}-{mode}", *ports, shadow=mode == "shadow") for name, make in group.items()
            }
            for proxy in proxies.values():
                if not wait_for(proxy.port):
                    raise SystemExit(f"{proxy.name} did not start")
            time.sleep(1)
            for proxy in proxies.values():
                proxy.pin(0)
                wrk(proxy.port, 4, 1, lua)
            for _ in range(told.rounds):
                for proxy in proxies.values():
                    for n in connections:
                        touch_memory()
                        before = proxy.cpu_ns()
                        rate, n_requests = load(proxy, n, told.seconds, lua, shadow=mode == "shadow")
                        time.sleep(0.3)
                        proxy.rates.setdefault(n, []).append(rate)
                        if n == 32 and n_requests:
                            proxy.cpu_us.append((proxy.cpu_ns() - before) / 1000 / n_requests)
                    os.sync()  # what the bursts before left to write shall not be written during the modest rate
                    proxy.paced.append(asyncio.run(paced(proxy.port, 100, 3, stream=False))[0])
                    token, gap = asyncio.run(paced(proxy.port, 20, 2, stream=True))
                    proxy.first_ms += token
                    proxy.gap_ms += gap
                    print(f"{mode} {proxy.name}: {rate:,.0f} requests/s", file=sys.stderr, flush=True)
            import psutil

            for name, proxy in proxies.items():
                proxy.rss_mb = sum(psutil.Process(pid).memory_info().rss for pid in proxy.tree()) / 1e6
                row: dict[str, object] = {f"rps_{n}": statistics.median(found) for n, found in proxy.rates.items()}
                row["cpu_us"] = statistics.median(proxy.cpu_us) if proxy.cpu_us else None
                p50s = [percentile(found, 0.5) for found in proxy.paced]
                p99s = [percentile(found, 0.99) for found in proxy.paced]
                row["added_p50_ms"] = statistics.median(p50s) - percentile(direct_first, 0.5)
                row["added_p99_ms"] = statistics.median(p99s) - percentile(direct_first, 0.99)
                row["added_first_token_ms"] = percentile(proxy.first_ms, 0.5) - percentile(direct_token, 0.5)
                row["added_gap_ms"] = percentile(proxy.gap_ms, 0.5) - percentile(direct_gap, 0.5)
                row["rss_mb"] = proxy.rss_mb
                if name == "evalpipe" and mode == "shadow":
                    row["copies_answered"], row["copies_shed"] = copies_of(proxy.port)
                results[f"{mode}/{name}"] = row
            for proxy in proxies.values():
                proxy.stop()
    finally:
        for upstream in upstreams:
            upstream.kill()
        shutil.rmtree(folder, ignore_errors=True)
    nginx_version = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr.strip()
    print(
        f"Python {platform.python_version()} ({platform.python_compiler()}), {nginx_version}, Linux {platform.release()}"
    )
    show(results)
    if told.json:
        told.json.write_text(json.dumps(results, indent=1))


def show(results: dict[str, dict[str, object]]) -> None:
    names = list(next(iter(results.values())))
    print("| | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for key, row in results.items():
        cells = [f"{row[name]:.2f}" if isinstance(row.get(name), float) else str(row.get(name, "")) for name in names]
        print(f"| {key} | " + " | ".join(cells) + " |")
    shadow = {key.split("/")[1]: row for key, row in results.items() if key.startswith("shadow/")}
    forward = {key.split("/")[1]: row for key, row in results.items() if key.startswith("forward/")}
    for other, rows, wanted in (
        ("nginx", shadow, 1.0),
        ("envoy", shadow, 1.5),
        ("litellm", shadow, 100.0),
        ("envoy", forward, 2.0),
    ):
        if other in rows and "rps_32" in rows["evalpipe"]:
            ratio = float(str(rows["evalpipe"]["rps_32"])) / float(str(rows[other]["rps_32"]))
            mode = "shadow" if rows is shadow else "forward"
            print(f"{mode}: evalpipe / {other} = {ratio:.2f} (wanted {wanted})")


if __name__ == "__main__":
    main()
