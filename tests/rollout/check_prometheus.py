"""A real Prometheus over two workers under load: its rates and quantiles against the Parquet rows. By `make check-prometheus`.

Needs `prometheus` and `promtool` (Debian package prometheus). Five minutes of steady load after a warm-up.
"""

from __future__ import annotations

import http.client
import itertools
import json
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from bisect import bisect_left
from pathlib import Path
from typing import Any

from live import post, running

from evalpipe.collector import metrics
from evalpipe.rollout.grafana import panels
from evalpipe.store.query import open_store
from evalpipe.workspace.load import load
from evalpipe.workspace.manifests import write_monitoring
from evalpipe.workspace.paths import open_workspace

WINDOW_S, WARM_UP_S, RATE, N_AT_ONCE = 300, 30, 12, 16
CONFIG = """
[experiment]
name = "watched"
mode = "canary"
[arms.control]
provider = "openai"
base_url = "{sim}/v1"
[arms.treatment]
provider = "openai"
base_url = "{sim}/v1"
model = "gpt-4o-mini"
[collector]
port = 0
workers = 2
[canary]
shadow_percent = 20
evaluate_every_s = 5
guardrails = {{ error_rate = 0.2, p99_latency_ms = 60000 }}
stages = [{{ percentage = 50, duration_hours = 10 }}]
"""


class Load(threading.Thread):
    """A steady number of requests a second, some streamed, some users who rate."""

    def __init__(self, url: str, seed: int, per_second: float) -> None:
        super().__init__(daemon=True)
        self._host = url.removeprefix("http://")
        self._rng, self._per_second = random.Random(seed), per_second
        self.stopping = threading.Event()

    def run(self) -> None:
        begun = time.monotonic()
        for number in itertools.count():
            if self.stopping.wait(max(0.0, begun + number / self._per_second - time.monotonic())):
                return
            self._one(f"user-{self._rng.randrange(400)}")

    def _one(self, user: str) -> None:
        body = {
            "model": "gpt-4o",
            "user": user,
            "max_tokens": 60,
            "messages": [{"role": "user", "content": f"hello {user}"}],
        }
        if self._rng.random() < 0.5:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        connection = http.client.HTTPConnection(self._host, timeout=30)  # anew each time: both workers get their share
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        if self._rng.random() < 0.1:
            rating = {"request_id": answer.headers["x-evalpipe-request-id"], "rating": self._rng.choice(["up", "down"])}
            post(f"http://{self._host}/_evalpipe/feedback", rating)


def ask(base: str, query: str, at: float) -> list[dict[str, Any]]:
    asked = urllib.parse.urlencode({"query": query, "time": at})
    with urllib.request.urlopen(f"{base}/api/v1/query?{asked}", timeout=30) as answer:
        result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return result


def check(passed: bool, words: str) -> bool:
    print(("ok    " if passed else "FAIL  ") + words, flush=True)
    return passed


def compare(base: str, workspace: Any, at: float) -> bool:
    """Prometheus at `at` over the window against the rows that ended in it."""
    good = True
    buckets = metrics._LATENCY_BUCKETS
    with open_store(workspace.data, "watched") as store:
        for arm in ("control", "treatment"):
            selector = f'experiment="watched",arm="{arm}",role="served"'
            series = ask(base, f"evalpipe_requests_total{{{selector}}}[{WINDOW_S}s]", at)
            first, last = series[0]["values"][0][0], series[0]["values"][-1][0]
            seen = sum(float(one["values"][-1][1]) - float(one["values"][0][1]) for one in series)
            rated = float(
                ask(base, f"sum(rate(evalpipe_requests_total{{{selector}}}[{WINDOW_S}s]))", at)[0]["value"][1]
            )
            ended = "epoch(started_at) + latency_ms / 1000"
            where = f"arm = '{arm}' AND role = 'served' AND {ended} > {first} AND {ended} <= {last}"
            rows = store.connection.execute(f"SELECT count(*) FROM exchanges WHERE {where}").fetchall()[0][0]
            exact = rows / (last - first)
            good &= check(
                abs(seen / rows - 1) <= 0.02 and abs(rated / exact - 1) <= 0.02,
                f"{arm}: between two scrapes {last - first:.0f} s apart Prometheus counts {seen:.0f} requests, Parquet {rows} "
                f"({seen / rows - 1:+.2%}); rate() {rated:.3f}/s, Parquet {exact:.3f}/s ({rated / exact - 1:+.2%}; at most 2 %)",
            )
            for level in (0.5, 0.95, 0.99):
                rates = f"sum by (le) (rate(evalpipe_request_duration_seconds_bucket{{{selector}}}[{WINDOW_S}s]))"
                told = float(ask(base, f"histogram_quantile({level}, {rates})", at)[0]["value"][1])
                exact = store.connection.execute(
                    f"SELECT quantile_cont(latency_ms, {level}) / 1000 FROM exchanges WHERE {where}"
                ).fetchall()[0][0]
                apart = abs(bisect_left(buckets, told) - bisect_left(buckets, exact))
                good &= check(
                    apart <= 1, f"{arm}: p{100 * level:g} {told:.3f} s, Parquet {exact:.3f} s ({apart} buckets apart)"
                )
    return good


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="evalpipe-prometheus-"))
    with running(
        folder / "sim.log",
        "sim",
        "--port",
        "0",
        "--ttft-ms",
        "30",
        "--tokens-per-second",
        "200",
        "--faults",
        "500=0.02",
    ) as sim:
        (folder / "evalpipe.toml").write_text(CONFIG.format(sim=sim.url()))
        with running(folder / "collect.log", "collect", "--config", str(folder / "evalpipe.toml")) as collector:
            url = collector.url()
            workspace = open_workspace(root=folder)
            write_monitoring(workspace, folder / "monitoring", targets=(url.removeprefix("http://"),))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                base = f"http://127.0.0.1:{probe.getsockname()[1]}"
            command = [
                "prometheus",
                "--config.file=monitoring/prometheus.yml",
                f"--storage.tsdb.path={folder / 'tsdb'}",
            ]
            with (folder / "prometheus.log").open("wb") as log:
                server = subprocess.Popen(
                    [*command, f"--web.listen-address={base.removeprefix('http://')}"],
                    cwd=folder,
                    stdout=log,
                    stderr=log,
                )
            loads = [Load(url, seed, RATE / N_AT_ONCE) for seed in range(N_AT_ONCE)]
            try:
                for one in loads:
                    one.start()
                time.sleep(WARM_UP_S + WINDOW_S)
                with urllib.request.urlopen(f"{url}/_evalpipe/metrics") as answer:
                    exposed = answer.read()
                at = time.time()
                time.sleep(1)
                empty = []
                for panel in panels("watched", "1m"):
                    for _, query in panel.queries:
                        result = ask(base, query, at)
                        if not result or all(point["value"][1] == "NaN" for point in result):
                            empty.append(panel.title)
                good = check(not empty, f"every query of the dashboard returns data (empty: {empty})")
                rules = json.load(urllib.request.urlopen(f"{base}/api/v1/rules"))["data"]["groups"][0]["rules"]
                good &= check(all(r["health"] == "ok" for r in rules), f"all {len(rules)} rules evaluate")
            finally:
                for one in loads:
                    one.stopping.set()
                for one in loads:
                    one.join()
            load(workspace)
            good &= compare(base, workspace, at)
            server.terminate()
            server.wait()
    for arguments, stdin in ((["check", "metrics"], exposed), (["check", "rules", "evalpipe.rules.yml"], b"")):
        done = subprocess.run(["promtool", *arguments], input=stdin, capture_output=True, cwd=folder / "monitoring")
        said = (done.stdout + done.stderr).decode().strip()
        clean = done.returncode == 0 and (arguments[1] != "metrics" or not said)
        good &= check(clean, f"promtool {' '.join(arguments)}: {'clean' if clean else said}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
