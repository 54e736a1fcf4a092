"""A real collector under load, killed and started again, while `evalpipe load` runs without a pause.

`python tests/bench/check_load_while_collecting.py [N_REQUESTS]` (`make check-store`): clients keep every answer they received
whole; in the end each of them must be one row of the datasets, with the text the client read, and no row may be there twice.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import psutil

from evalpipe.store.query import open_store

EVALPIPE = [sys.executable, "-m", "evalpipe"]
N_CLIENTS = 16
CONFIG = """
[experiment]
name = "busy"
[arms.control]
provider = "openai"
base_url = "http://127.0.0.1:{sim}/v1"
model = "control-model"
[arms.treatment]
provider = "anthropic"
base_url = "http://127.0.0.1:{sim}"
model = "treatment-model"
api_key_env = "SIM_KEY"
[collector]
port = {port}
sample_percent = 50
shadow_concurrency = 64
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise SystemExit(f"nothing listens on {port}")


class Clients:
    """Threads that ask until the numbers are used up; `in_hand`: request id → text, of answers received to the last byte."""

    def __init__(self, port: int, n_requests: int) -> None:
        self._port, self._numbers = port, iter(range(n_requests))
        self._lock = threading.Lock()
        self.in_hand: dict[str, str] = {}
        self.n_failed = 0
        self.threads = [threading.Thread(target=self._run) for _ in range(N_CLIENTS)]

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        while True:
            with self._lock:
                number = next(self._numbers, None)
            if number is None:
                return
            while not self._ask(connection, number):
                time.sleep(0.2)

    def _ask(self, connection: http.client.HTTPConnection, number: int) -> bool:
        messages = [{"role": "user", "content": f"Question {number}?"}]
        body = json.dumps({"model": "control-model", "messages": messages, "user": f"u{number % 97}"})
        try:
            connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            text = json.loads(answer.read())["choices"][0]["message"]["content"]
            with self._lock:
                self.in_hand[answer.headers["x-evalpipe-request-id"]] = text
            return True
        except (OSError, http.client.HTTPException, ValueError, KeyError):
            connection.close()  # the collector was killed under us
            with self._lock:
                self.n_failed += 1
            return False


def main(n_requests: int) -> None:
    root = Path(tempfile.mkdtemp(prefix="evalpipe-check-store-"))
    sim_port, port = free_port(), free_port()
    (root / "evalpipe.toml").write_text(CONFIG.format(sim=sim_port, port=port))
    env = {**os.environ, "SIM_KEY": "sim"}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": root, "env": env}
    pace = ["--ttft-ms", "1", "--tokens-per-second", "100000"]
    sim = subprocess.Popen([*EVALPIPE, "sim", "--port", str(sim_port), *pace], **quiet)  # type: ignore[call-overload]
    wait_for(sim_port)

    def collector() -> subprocess.Popen[bytes]:
        process = subprocess.Popen([*EVALPIPE, "collect"], start_new_session=True, **quiet)  # type: ignore[call-overload]
        wait_for(port)
        return process

    stop = threading.Event()
    loads: queue.Queue[tuple[int, str]] = queue.Queue()

    def keep_loading() -> None:
        while not stop.is_set():
            done = subprocess.run([*EVALPIPE, "load", "--json"], capture_output=True, text=True, cwd=root, env=env)
            loads.put((done.returncode, done.stdout or done.stderr))

    running = collector()
    loader = threading.Thread(target=keep_loading)
    try:
        wait_until_spooled(root)
        loader.start()
        clients = Clients(port, n_requests)
        started = time.monotonic()
        for thread in clients.threads:
            thread.start()
        for share in (0.3, 0.6):
            while len(clients.in_hand) < share * n_requests:
                time.sleep(0.05)
            # Supervisor, workers and treatment process at once, so that none has time to finish what it is at.
            family = [psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True)]
            for process in family:
                process.kill()
            running.wait()
            running = collector()
        for thread in clients.threads:
            thread.join()
        seconds = time.monotonic() - started
        running.terminate()
        running.wait(timeout=60)
    finally:
        stop.set()
        if loader.is_alive():
            loader.join()
        for process in (running, sim):
            process.kill()
            process.wait()
    last = subprocess.run([*EVALPIPE, "load", "--json"], capture_output=True, text=True, cwd=root, env=env, check=False)
    report(root, clients, [loads.get() for _ in range(loads.qsize())], seconds, last)


def wait_until_spooled(root: Path) -> None:
    for _ in range(600):
        if list((root / "data" / "spool").glob("*.jsonl")):
            return
        time.sleep(0.1)


def report(
    root: Path, clients: Clients, loads: list[tuple[int, str]], seconds: float, last: subprocess.CompletedProcess[str]
) -> None:
    in_hand = clients.in_hand
    with open_store(root / "data", "busy") as store:
        rows = store.connection.sql("SELECT request_id, arm, role, outcome, text FROM exchanges").fetchall()
        funnel = dict(
            store.connection.sql(
                "SELECT shadow_status, count(*) FROM exchanges WHERE role = 'served' GROUP BY 1"
            ).fetchall()
        )
        n_served = store.connection.sql("SELECT count(*) FROM exchanges WHERE role = 'served'").fetchall()[0][0]
    keys = Counter((request_id, arm, role) for request_id, arm, role, *_ in rows)
    texts = {request_id: text for request_id, _, role, outcome, text in rows if role == "served" and outcome == "ok"}
    lost = [request_id for request_id, text in in_hand.items() if texts.get(request_id) != text]
    doubled = [key for key, n in keys.items() if n > 1]
    failed = [message for code, message in loads if code != 0]
    left = [path.name for path in (root / "data" / "spool").glob("*.jsonl")]
    print(
        f"{len(in_hand):,} answers in hand in {seconds:.0f} s, {clients.n_failed} requests cut by two kills of the collector"
    )
    print(
        f"{len(loads)} loads meanwhile, {len(failed)} of them failed {failed[:1]}; the last: {last.stdout.strip() or last.stderr}"
    )
    print(f"rows {len(rows):,}, lost {len(lost)}, doubled {len(doubled)}, segments left {left}")
    print(f"funnel {funnel} = {sum(n for status, n in funnel.items() if status)} of {n_served} served (all eligible)")
    outcomes = Counter((role, outcome) for _, _, role, outcome, _ in rows)
    print(f"outcomes {dict(outcomes)}; workspace {root}")
    if lost or doubled or failed or left or sum(n for status, n in funnel.items() if status) != n_served:
        raise SystemExit("FAILED")


if __name__ == "__main__":
    main(next(itertools.chain(map(int, sys.argv[1:2]), [10_000])))
