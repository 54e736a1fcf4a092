"""The gate as a pipeline meets it: every exit code from a real process, and the verdict from a live collector.

`python tests/bench/check_gate.py` (`make check-gate`): half a minute. Exits 1 where something is not as promised.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from check_load_while_collecting import free_port, wait_for

EVALPIPE = [sys.executable, "-m", "evalpipe"]
CONFIG = """[experiment]
name = "e"
[arms.control]
provider = "openai"
base_url = "http://127.0.0.1:9/v1"
model = "x"
[arms.treatment]
provider = "openai"
base_url = "http://127.0.0.1:9/v1"
model = "y"
api_key_env = "CHECK_GATE_KEY"
[judge]
name = "people"
[decision.metrics.error_rate]
margin = 0.05
[decision.metrics.timeout_rate]
margin = 0.05
"""
N_PAIRS = 300
EXPECTED = {"ship": 0, "keep": 10, "collect_more": 11, "invalid": 12}
WINS = {"ship": 260, "keep": 60, "collect_more": 155}
N_ASKED = 300
failures: list[str] = []


def expect(what: str, seen: object, wanted: object) -> None:
    verdict = "ok" if seen == wanted else "FAILED"
    print(f"{what:64s} {seen!s:>14s}  {verdict}", flush=True)
    if seen != wanted:
        failures.append(f"{what}: {seen!r} instead of {wanted!r}")


def workspace(folder: Path, kind: str) -> Path:
    """Judged pairs of which the treatment won some; `invalid`: a judge who names whichever answer stands first."""
    folder.mkdir()
    (folder / "evalpipe.toml").write_text(CONFIG, encoding="utf-8")
    lines = []
    for i in range(N_PAIRS):
        if kind == "invalid":
            calls = [
                {"judge": "people", "order": "ab", "verdict": "a"},
                {"judge": "people", "order": "ba", "verdict": "b"},
            ]
        else:
            calls = [{"judge": "people", "order": "single", "verdict": "b" if i < WINS[kind] else "a"}]
        lines.append({"pair_id": f"p{i}", "prompt": f"question {i}", "response_a": "one", "response_b": "two", "model_a": "x",
                      "model_b": "y", "judgements": calls})  # fmt: skip
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    done = run(folder, "load", "pairs.jsonl")
    if done.returncode:
        raise SystemExit(done.stderr)
    return folder


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*EVALPIPE, *arguments], cwd=folder, capture_output=True, text=True, timeout=120, env=environment(), check=False
    )


def environment() -> dict[str, str]:
    return {**os.environ, "CHECK_GATE_KEY": "none"}


@contextmanager
def process(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(
        [*EVALPIPE, *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        yield started
    finally:
        if started.poll() is None:
            started.send_signal(signal.SIGTERM)
        started.wait(30)


def exit_codes(root: Path) -> None:
    for kind, code in EXPECTED.items():
        folder = workspace(root / kind, kind)
        plain, as_json = run(folder, "gate"), run(folder, "gate", "--json")
        document = json.loads(as_json.stdout)
        expect(f"gate, {kind}: exit code", plain.returncode, code)
        expect(f"gate --json, {kind}: exit code", as_json.returncode, code)
        expect(f"gate --json, {kind}: recommendation", document["recommendation"], kind)
        said = plain.stdout.splitlines()
        expect(
            f"gate, {kind}: no line says what another says", len(said), len({line.strip(" -").lower() for line in said})
        )
        print(f"    {said[0]}")
    empty = root / "empty"
    empty.mkdir()
    expect("gate without a workspace", run(empty, "gate").returncode, 2)
    (empty / "evalpipe.toml").write_text('[experiment]\nname = "e"\n', encoding="utf-8")
    expect("gate before the first request", run(empty, "gate").returncode, 2)
    expect("gate --since nonsense", run(empty, "gate", "--since", "soon").returncode, 2)
    (empty / "evalpipe.toml").write_text("[experimnt]\n", encoding="utf-8")
    expect("gate with a configuration that is wrong", run(empty, "gate").returncode, 2)
    broken = workspace(root / "broken", "ship")
    for path in (broken / "data" / "exchanges").rglob("*.parquet"):
        path.write_bytes(b"not parquet")
    expect("gate on files that cannot be read", run(broken, "gate").returncode, 1)


def live(root: Path) -> None:
    """The collector of the workspace that ships: before a verdict, with one kept fresh, and what asking costs."""
    folder, port = root / "ship", free_port()
    (folder / "data" / "verdict.json").unlink()
    with process(folder, "collect", "--port", str(port)) as collector:
        wait_for(port)
        expect("GET before any verdict", ask(port, "GET")[0], 404)
        with process(folder, "gate", "--watch", "1") as watching:
            until = time.monotonic() + 60
            while not (folder / "data" / "verdict.json").exists() and time.monotonic() < until:
                time.sleep(0.1)
            status, body = ask(port, "GET")
            expect("GET with a verdict", status, 200)
            expect("GET: recommendation", body["recommendation"], "ship")
            expect("POST with ship", ask(port, "POST")[0], 200)
            ages, cpu, watched = [], _cpu(collector), _cpu(watching)
            started = time.monotonic()
            for _ in range(50):  # ten seconds of a `gate --watch 1`
                ages.append(ask(port, "GET")[1]["age_s"])
                time.sleep(0.2)
            seconds = time.monotonic() - started
            idle = (_cpu(watching) - watched) / seconds
            expect("the verdict stays younger than three seconds", max(ages) < 3, True)
            print(
                f"    oldest verdict {max(ages):.2f} s; watching an unchanged log costs {1000 * idle:.1f} ms of CPU a second"
            )
            started, cpu = time.monotonic(), _cpu(collector)
            for _ in range(N_ASKED):
                ask(port, "GET")
            each = 1000 * (time.monotonic() - started) / N_ASKED
            print(
                f"    a GET takes {each:.2f} ms and {1000 * (_cpu(collector) - cpu) / N_ASKED:.2f} ms of the collector's CPU"
            )
            expect("a GET takes less than 20 ms", each < 20, True)
            watching.send_signal(signal.SIGINT)
            expect("gate --watch, interrupted: exit code", watching.wait(30), 130)
        expect("gate of the losing workspace", run(root / "keep", "gate").returncode, EXPECTED["keep"])
        (folder / "data" / "verdict.json").write_bytes((root / "keep" / "data" / "verdict.json").read_bytes())
        expect("GET with keep", (ask(port, "GET")[0], ask(port, "GET")[1]["recommendation"]), (200, "keep"))
        expect("POST with keep", ask(port, "POST")[0], 409)


def ask(port: int, method: str) -> tuple[int, dict[str, object]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, "/_evalpipe/gate", body=b"" if method == "POST" else None)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def _cpu(started: subprocess.Popen[str]) -> float:
    """CPU seconds of a process and its children so far."""
    family = [psutil.Process(started.pid), *psutil.Process(started.pid).children(recursive=True)]
    return sum(sum(one.cpu_times()[:2]) for one in family)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        exit_codes(Path(folder))
        live(Path(folder))
    print("all as promised" if not failures else "\n".join(failures))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
