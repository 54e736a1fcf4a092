"""`evalpipe serve` beside a collector: what 50 open event streams and one browser cost the requests it serves.

    python tests/bench/bench_serve.py [--rounds 5] [--seconds 20] [--rate 300] [--clients 50]

Rounds without and with the page alternate, on one collector with a treatment. With it: `evalpipe serve`, the clients of its event
stream, and Chromium (CHROMIUM names it) with an experiment's page open. Reported are the medians over the rounds of p50 and p99
of served requests, and their ratio; the targets are 1.10 for p50 and 1.25 for p99. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from bench_collector import UPSTREAM, free_port, paced, percentile, wait_for

CONFIG = """
[experiment]
name = "bench"
[arms.control]
provider = "openai"
base_url = "http://127.0.0.1:{control}/v1"
model = "gpt-4o"
[arms.treatment]
provider = "openai"
base_url = "http://127.0.0.1:{treatment}/v1"
model = "gpt-4o-mini"
[collector]
port = {port}
"""
CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def started(*command: str, cwd: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as out:
        process = subprocess.Popen(command, cwd=cwd, stdout=out, stderr=out)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


LISTENERS = """
import asyncio, sys
port, n = map(int, sys.argv[1:])
counts = [0] * n
async def listen(number):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /events HTTP/1.1\\r\\nHost: 127.0.0.1:%d\\r\\n\\r\\n" % port)
    while line := await reader.readline():
        counts[number] += line.startswith(b"data: ")
async def main():
    clients = asyncio.gather(*map(listen, range(n)))
    await asyncio.to_thread(sys.stdin.read)
    print(min(counts), flush=True)
    clients.cancel()
asyncio.run(main())
"""


@contextmanager
def listeners(port: int, n: int) -> Iterator[Callable[[], int]]:
    """`n` clients of the event stream, in a process of their own; called at the end, the events of who had the fewest."""
    command = [sys.executable, "-c", LISTENERS, str(port), str(n)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            yield lambda: int(process.communicate(b"")[0])
        finally:
            process.kill()


@asynccontextmanager
async def browser(url: str) -> AsyncIterator[None]:
    from playwright.async_api import async_playwright

    wanted = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if wanted is None:
        sys.exit("bench_serve.py: no Chromium here: name it with CHROMIUM")
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=wanted, args=["--no-sandbox", "--disable-gpu"])
        page = await launched.new_page()
        await page.goto(url)
        await page.get_by_text("Live, ").wait_for()
        yield
        await launched.close()


async def measure(port: int, rate: float, seconds: float) -> tuple[float, float]:
    latencies, _ = await paced(port, rate, seconds, stream=False)
    return percentile(latencies, 0.5), percentile(latencies, 0.99)


async def with_page(
    folder: Path, collector: int, port: int, options: argparse.Namespace
) -> tuple[tuple[float, float], int]:
    command = [sys.executable, "-m", "evalpipe", "serve", "--port", str(port)]
    with started(*command, cwd=folder, log=folder / "serve.log"):
        await asyncio.to_thread(wait_for, port)
        async with browser(f"http://127.0.0.1:{port}/e/bench"):
            with listeners(port, options.clients) as fewest:
                await asyncio.sleep(2)
                found = await measure(collector, options.rate, options.seconds)
                return found, fewest()


async def run(folder: Path, options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    control, treatment, port, page = (free_port() for _ in range(4))
    (folder / "evalpipe.toml").write_text(CONFIG.format(control=control, treatment=treatment, port=port))
    results: dict[str, list[tuple[float, float]]] = {"without": [], "with": []}
    with contextlib.ExitStack() as stack:
        for upstream in (control, treatment):
            stack.enter_context(
                started(sys.executable, "-c", UPSTREAM, str(upstream), cwd=folder, log=folder / "up.log")
            )
        stack.enter_context(
            started(sys.executable, "-m", "evalpipe", "collect", cwd=folder, log=folder / "collect.log")
        )
        for one in (control, treatment, port):
            if not await asyncio.to_thread(wait_for, one):
                sys.exit(
                    f"bench_serve.py: nothing answers on port {one}: {(folder / 'collect.log').read_text()[-500:]}"
                )
        await measure(port, options.rate, 3)
        for number in range(options.rounds):
            for name in ("without", "with") if number % 2 == 0 else ("with", "without"):
                if name == "without":
                    found = await measure(port, options.rate, options.seconds)
                else:
                    found, fewest = await with_page(folder, port, page, options)
                    if fewest < options.seconds / 4:
                        sys.exit(f"bench_serve.py: a client had {fewest} events in {options.seconds:g} s")
                results[name].append(found)
                print(f"round {number + 1} {name:8} p50 {found[0]:7.2f} ms  p99 {found[1]:7.2f} ms", flush=True)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=300.0)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="bench-serve-"))
    try:
        results = asyncio.run(run(folder, options))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    medians = {
        name: [statistics.median(one[place] for one in rounds) for place in (0, 1)] for name, rounds in results.items()
    }
    ratios = [on / off for on, off in zip(medians["with"], medians["without"], strict=True)]
    for place, (name, target) in enumerate((("p50", 1.10), ("p99", 1.25))):
        off, on, ratio = medians["without"][place], medians["with"][place], ratios[place]
        verdict = "within" if ratio <= target else "ABOVE"
        print(f"{name}: {off:.2f} ms without, {on:.2f} ms with: {ratio:.2f} times ({verdict} {target})")
    if options.json:
        options.json.write_text(json.dumps({"rounds": results, "medians": medians, "ratios": ratios}))


if __name__ == "__main__":
    main()
