"""Judging and replaying on three Ray nodes of one machine: a node that is removed, caps, Ctrl-C, kill −9 and keys, by the
simulated provider's own ledger; the report of ten million exchanges, and loading, by one and by two nodes. Needs `pip install
'evalpipe[ray]'` in this Python: `make check-ray`."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from bench_load import make_spool
from bench_report import make_exchanges
from judge_harness import complete, evalpipe, finish, judged, query, say, simulated, start, wait_until, workspace
from spool_builders import T0

from evalpipe.store.query import open_store

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
KEY = "sk-ant-check-ray-0123456789abcdefghij"
os.environ["ANTHROPIC_API_KEY"] = os.environ["OPENAI_API_KEY"] = KEY
LIMIT = 24_000
FAST = {"requests_per_minute": LIMIT, "input_tokens_per_minute": 100_000_000, "output_tokens_per_minute": 100_000_000}
CONCURRENCY = 64


@contextmanager
def nodes(
    n: int = 3, *, cpus: int = 2, head_cpus: int = 2, memory: int = 80_000_000
) -> Iterator[tuple[str, Callable[[], None]]]:
    """A cluster of `n` nodes of these CPUs and bytes of object store: its address, and what removes one that is not the head at
    once."""
    try:
        from ray.cluster_utils import Cluster
    except ImportError:
        sys.exit("this Python has no ray: pip install 'evalpipe[ray]', or run `make check-ray`")
    logging.getLogger("ray").setLevel(logging.ERROR)
    options = {"num_cpus": head_cpus, "object_store_memory": memory, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=options)
    others = [cluster.add_node(num_cpus=cpus, object_store_memory=memory) for _ in range(n - 1)]
    try:
        yield cluster.address, lambda: cluster.remove_node(others.pop(), allow_graceful=False)
    finally:
        cluster.shutdown()


def most_in_a_minute(samples: list[tuple[float, int]]) -> int:
    """The most calls between any two samples at most 60 s apart."""
    most, first = 0, 0
    for at, n in samples:
        while samples[first][0] < at - 60:
            first += 1
        most = max(most, n - samples[first][1])
    return most


def lost_rows(root: Path) -> tuple[int, float, int]:
    """Calls booked as lost, what they are held at (USD), and those of them at no cost."""
    row = query(
        root,
        "SELECT count(*) AS n, coalesce(sum((note->>'$.cost_at_most_usd')::DOUBLE), 0) AS held, "
        "count(*) FILTER (WHERE coalesce(cost_usd, 0) <= 0) AS free FROM judgments WHERE note->>'$.error' = 'lost'",
    )[0]
    return row["n"], row["held"], row["free"]


def node(n_pairs: int = 20_000, limit: int = LIMIT) -> bool:
    """One of three nodes is removed in the middle. `limit`: requests a minute, which the provider enforces."""
    limits = f"requests={limit}"
    with (
        simulated(
            "--judge", "accuracy=0.8", "--ttft-ms", "20", "--tokens-per-second", "100000", "--limits", limits
        ) as sim,
        tempfile.TemporaryDirectory() as folder,
        nodes() as (address, remove),
    ):
        fast = {**FAST, "requests_per_minute": limit}
        root = workspace(Path(folder), sim.url, n_pairs=n_pairs, words=15, concurrency=CONCURRENCY, **fast)
        cap = 60.0 * n_pairs / 20_000
        began = time.monotonic()
        process = start(root, "judge", "--json", "--ray", address, "--max-usd", str(cap))
        samples: list[tuple[float, int]] = []
        removed_at = 0
        while process.poll() is None:
            samples.append((time.monotonic(), sim.ledger()["calls"]))
            if not removed_at and samples[-1][1] >= n_pairs:
                removed_at = samples[-1][1]
                remove()
            time.sleep(0.25)
        out, errors = process.communicate()
        seconds = time.monotonic() - began
        if process.returncode:
            return say("a node removed", False, f"exit {process.returncode}: {errors[-500:]}")
        summary = json.loads(out)["runs"][0]
        ledger = sim.ledger()
        lost, held, free = lost_rows(root)
        asked_twice, paid_twice = ledger["n_asked_again"], ledger["n_answered_again"]
        billed, booked = ledger["billed"]["usd"], query(root, "SELECT sum(cost_usd) AS usd FROM judgments")[0]["usd"]
        minute, n_429 = most_in_a_minute(samples), ledger["by_kind"].get("limit", 0)
        first = next(at for at, n in samples if n)
        rate = 60 * ledger["calls"] / (samples[-1][0] - first)
        again = judged(root)
        holds = (
            complete(root, n_pairs)
            and removed_at > 0
            and 0 < lost <= CONCURRENCY
            and paid_twice <= asked_twice <= lost
            and free == 0
            and n_429 == 0
            and minute <= limit * 61 / 60  # a bucket holds a second of its rate
            and billed <= cap
            and summary["all_runs"]["known_usd"] <= billed + 1e-9 <= summary["all_runs"]["known_usd"] + held + 1e-6
            and again["planned"] == 0
        )
        lines = [line for line in errors.splitlines() if " is lost" in line]
        detail = (
            f"{n_pairs} pairs judged once in each order in {seconds:.0f} s, a node removed after {removed_at} of "
            f"{ledger['calls']} calls; {asked_twice} asked twice, "
            f"{lost} booked as lost (at most {CONCURRENCY} in flight), {free} of them free; "
            f"{rate:.0f} requests/min on average, at most {minute} in any minute of {limit}, {n_429} × 429; "
            f"billed ${billed:.4f}, booked ${booked:.4f}, lost ones held at ${held:.4f}, cap ${cap:g}; {lines}"
        )
        return say("a node removed", holds, detail)


def cap(n_pairs: int = 1_000) -> bool:
    """A cap that is reached, with a node removed on the way."""
    with (
        simulated("--judge", "accuracy=0.8", "--ttft-ms", "50") as sim,
        tempfile.TemporaryDirectory() as folder,
        nodes() as (address, remove),
    ):
        root = workspace(Path(folder), sim.url, n_pairs=n_pairs, words=15, concurrency=CONCURRENCY, **FAST)
        process = start(root, "judge", "--json", "--ray", address, "--max-usd", "0.8")
        wait_until(lambda: sim.ledger()["calls"] >= 150 or process.poll() is not None)
        remove()
        out, errors = process.communicate()
        summary = json.loads(out)["runs"][0] if out else {"stopped": errors[-300:]}
        bill = sim.ledger()["billed"]["usd"]
        lost, held, _ = lost_rows(root)
        detail = (
            f"billed ${bill:.4f} of $0.80, {lost} calls lost and held at ${held:.4f}; stopped: {summary['stopped']}"
        )
        return say("the cap", bill <= 0.8 and summary["stopped"] == "budget" and lost > 0, detail)


def interrupted(n_pairs: int = 2_000) -> bool:
    """Ctrl-C finishes what is in flight and exits with 130; then kill −9 of the driver; the next run does the rest."""
    with (
        simulated("--judge", "accuracy=0.8", "--ttft-ms", "300") as sim,
        tempfile.TemporaryDirectory() as folder,
        nodes() as (address, _),
    ):
        root = workspace(Path(folder), sim.url, n_pairs=n_pairs, words=15, concurrency=CONCURRENCY, **FAST)
        process = start(root, "judge", "--json", "--ray", address)
        wait_until(lambda: sim.ledger()["calls"] >= 300 or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        after = sim.ledger()
        stored = query(root, "SELECT count(*) AS n FROM judgments WHERE status = 'ok'")[0]["n"]
        lost_at_first = lost_rows(root)[0]
        gracefully = process.returncode == 130 and stored == after["billed"]["billed_calls"] and lost_at_first == 0
        process = start(root, "judge", "--ray", address)
        wait_until(lambda: sim.ledger()["calls"] >= after["calls"] + 300 or process.poll() is not None)
        process.kill()
        process.communicate()
        time.sleep(3)  # the shards are without their driver
        orphans = sim.ledger()["calls"]
        time.sleep(3)
        silent = sim.ledger()["calls"] == orphans
        summary = judged(root, "--ray", address)
        ledger = sim.ledger()
        lost, _, free = lost_rows(root)
        holds = (
            gracefully
            and silent
            and complete(root, n_pairs)
            and ledger["n_asked_again"] <= lost <= CONCURRENCY
            and not free
        )
        detail = (
            f"Ctrl-C: exit {130 if gracefully else errors[-300:]}, {stored} answers stored of "
            f"{after['billed']['billed_calls']} billed, "
            f"{lost_at_first} lost; kill -9: {lost} booked as lost, {ledger['n_asked_again']} asked twice, calls after it: "
            f"{'none' if silent else 'some'}; then {summary['judgments']}"
        )
        return say("Ctrl-C and kill -9", holds, detail)


def replayed(n_requests: int = 2_000) -> bool:
    """A replay of both arms with a node removed in the middle."""
    with (
        simulated("--ttft-ms", "30", "--tokens-per-second", "100000") as sim,
        tempfile.TemporaryDirectory() as folder,
        nodes() as (address, remove),
    ):
        root = Path(folder)
        (root / "log.jsonl").write_text(
            "\n".join(
                json.dumps(
                    {"id": f"r{i}", "user_id": f"u{i // 2}", "prompt": f"Question {i}?", "response": f"Answer {i}."}
                )
                for i in range(n_requests)
            )
        )
        limits = "requests_per_minute = 24000\ninput_tokens_per_minute = 1e9\noutput_tokens_per_minute = 1e9\n"
        (root / "evalpipe.toml").write_text(
            f'[experiment]\nname = "replayed"\n[arms.control]\nprovider = "openai"\nbase_url = "{sim.url}/v1"\n'
            f'model = "gpt-4.1-mini"\napi_key_env = "OPENAI_API_KEY"\n[arms.treatment]\nprovider = "anthropic"\n'
            f'base_url = "{sim.url}"\nmodel = "claude-haiku-4-5"\napi_key_env = "ANTHROPIC_API_KEY"\n'
            f"[replay]\nconcurrency = {CONCURRENCY}\n{limits}"
        )
        evalpipe(root, "load", "log.jsonl", "--map", "request_id=id, unit_id=user_id, prompt=prompt, text=response")
        process = start(root, "replay", "--json", "--yes", "--with-control", "--ray", address)
        wait_until(lambda: sim.ledger()["calls"] >= n_requests or process.poll() is not None)
        remove()
        out, errors = process.communicate()
        if process.returncode:
            return say("a replay", False, errors[-500:])
        summary: dict[str, Any] = json.loads(out)["replay"]
        ledger = sim.ledger()
        rows = query(
            root,
            "SELECT arm, count(*) AS n, count(DISTINCT request_id) AS requests FROM exchanges WHERE role = 'replay' "
            "GROUP BY arm ORDER BY arm",
        )
        lost = summary["retries"].get("lost", 0)
        expected = [{"arm": arm, "n": n_requests, "requests": n_requests} for arm in ("control", "treatment")]
        bill, account = ledger["billed"]["usd"], summary["all_runs"]
        holds = (
            rows == expected
            and 0 < lost <= CONCURRENCY
            and ledger["n_asked_again"] <= lost
            and account["known_usd"] <= bill + 1e-9 <= account["known_usd"] + account["at_most_usd"] + 1e-6
        )
        detail = (
            f"{summary['answered']} of {summary['planned']} answered, a row each: {rows == expected}; {lost} lost, "
            f"{ledger['n_asked_again']} asked twice; billed ${bill:.4f}, known ${account['known_usd']:.4f} and at most "
            f"${account['at_most_usd']:.4f} more"
        )
        return say("a replay", holds, detail)


def doctor() -> bool:
    """`evalpipe doctor --ray`, and no key in what it prints or in Ray's files, after a run that used it."""
    with (
        simulated("--judge", "accuracy=0.8") as sim,
        tempfile.TemporaryDirectory() as folder,
        nodes() as (address, _),
    ):
        root = workspace(Path(folder), sim.url, n_pairs=50, words=15, api_key_env="ANTHROPIC_API_KEY", **FAST)
        judged(root, "--ray", address)
        done = evalpipe(root, "doctor", "--ray", address, "--json", check=False)
        found = {one["name"]: one for one in json.loads(done.stdout)}
        alike = [one for name, one in found.items() if name.startswith("node ")]
        session = Path("/tmp/ray/session_latest").resolve()
        leaks = [
            str(path) for path in session.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()[: 1 << 24]
        ]
        gone = evalpipe(root, "doctor", "--ray", "127.0.0.1:1", check=False)
        line = next((line for line in gone.stdout.splitlines() if "cannot join" in line), gone.stderr[-200:])
        holds = (
            len(alike) == 3
            and all(one["status"] == "pass" for one in alike)
            and found["key ANTHROPIC_API_KEY"]["status"] == "pass"
            and KEY not in done.stdout + done.stderr
            and not leaks
            and gone.returncode == 1
            and "cannot join" in line
        )
        detail = f"{[one['detail'] for one in alike][:1]} × {len(alike)}; {leaks or 'no key in any file'}; {line}"
        return say("doctor --ray", holds, detail)


def report(millions: int = 10, rounds: int = 5) -> bool:
    """The report by one node and by two, one CPU and one thread of the database each, by turns; and by two of which one is
    removed in the middle: the same numbers as without Ray."""
    with tempfile.TemporaryDirectory() as folder:
        root, small = Path(folder) / "all", Path(folder) / "small"
        make_exchanges(root, millions * 1_000_000)
        make_exchanges(small, 20_000)
        expected = json.loads(_report(root))
        walls: dict[int, list[float]] = {1: [], 2: []}
        largest, worst = 0.0, 0.0
        for _ in range(rounds):
            for n_workers, seen in walls.items():
                with nodes(1 + n_workers, cpus=1, head_cpus=0, memory=4_000_000_000) as (address, _):
                    _report(small, "--ray", address)  # its processes are started, its code is imported
                    with watched_workers() as memory:
                        began = time.monotonic()
                        found = json.loads(_report(root, "--ray", address))
                        seen.append(time.monotonic() - began)
                largest = max([largest, *memory])
                worst = max(worst, difference(found, expected))
        with nodes(3, cpus=1, head_cpus=0, memory=4_000_000_000) as (address, remove):
            _report(small, "--ray", address)
            interrupted = subprocess.Popen(_command("--ray", address), cwd=root, stdout=subprocess.PIPE, text=True)
            time.sleep(min(walls[2]) / 2)
            was_running = interrupted.poll() is None
            remove()
            lost = difference(json.loads(interrupted.communicate(timeout=300)[0]), expected)
        ratio = min(walls[2]) / min(walls[1])
        shown = {n: [round(wall, 1) for wall in found] for n, found in walls.items()}
        detail = (
            f"{millions} million: seconds {shown}, best of 2 workers ÷ best of 1 {ratio:.2f}; a worker's RSS less shared at most "
            f"{largest / 1e6:,.0f} MB; largest relative difference {worst:.1e}, with a node removed {lost:.1e}"
        )
        holds = ratio <= 0.7 and largest < 1e9 and max(worst, lost) <= 1e-12 and was_running
        return say("report --ray", holds, detail)


def load(n_requests: int = 50_000, rounds: int = 2) -> bool:
    """A collector's log, and logs of another tool, by one node and by two, of one CPU each, by turns; and by two of which one is
    removed in the middle: the same rows as without Ray."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made"
        make_spool(made / "spool", n_requests)
        (made / "logs").mkdir()
        for number in range(4):
            _write_log(made / "logs" / f"{number}.jsonl", range(number, n_requests // 2, 4))
        return all([_loaded(made, "spool", rounds), _loaded(made, "logs", rounds)])


def _loaded(made: Path, kind: str, rounds: int) -> bool:
    one = Loading(made, kind)
    began = time.monotonic()
    one.start().communicate()
    alone, expected = time.monotonic() - began, one.rows()
    walls: dict[int, list[float]] = {1: [], 2: []}
    largest, same = 0.0, True
    for _ in range(rounds):
        for n_workers, seen in walls.items():
            with (
                nodes(1 + n_workers, cpus=1, head_cpus=0, memory=500_000_000) as (address, _),
                watched_workers() as memory,
            ):
                began = time.monotonic()
                one.start("--ray", address).communicate()
                seen.append(time.monotonic() - began)
                same = same and one.rows() == expected
            largest = max([largest, *memory])
    with nodes(3, cpus=1, head_cpus=0, memory=500_000_000) as (address, remove):
        interrupted = one.start("--ray", address)
        time.sleep(min(walls[2]) * 0.6)
        was_running = interrupted.poll() is None
        remove()
        interrupted.communicate(timeout=300)
        with_a_node_less = one.rows() == expected
        again = one.start("--ray", address, anew=False).communicate()[0]
    shown = {n: [round(wall, 1) for wall in found] for n, found in walls.items()}
    detail = (
        f"{kind}, {expected[0]:,} exchanges: without Ray {alone:.1f} s; by workers {shown}, best of 2 ÷ best of 1 "
        f"{min(walls[2]) / min(walls[1]):.2f}; a worker's RSS less shared at most {largest / 1e6:,.0f} MB; same rows: {same}, "
        f"with a node removed while it ran ({was_running}): {with_a_node_less}; once more: {again.strip()!r}"
    )
    return say("load --ray", same and with_a_node_less and was_running and "nothing new" in again, detail)


class Loading:
    """Loads of what was made, each into a folder of its own."""

    def __init__(self, made: Path, kind: str) -> None:
        self._made, self._kind = made, kind
        self._root = made.parent / kind

    def start(self, *words: str, anew: bool = True) -> subprocess.Popen[str]:
        if anew:
            shutil.rmtree(self._root, ignore_errors=True)
            self._root.mkdir()
        if self._kind == "spool":
            shutil.copytree(self._made / "spool", self._root / "data" / "spool", dirs_exist_ok=True)
        paths = [] if self._kind == "spool" else [str(self._made / "logs"), "--experiment", "exp"]
        command = [sys.executable, "-m", "evalpipe", "load", *paths, *words]
        return subprocess.Popen(command, cwd=self._root, stdout=subprocess.PIPE, text=True)

    def rows(self) -> tuple[int, int]:
        """Their number, and the sum of their hashes."""
        with open_store(self._root / "data", "exp") as store:
            query = "SELECT count(*), sum(hash(one)::HUGEINT) FROM (FROM exchanges) AS one"
            n, hashed = store.connection.sql(query).fetchall()[0]
        return int(n), int(hashed)


def _write_log(path: Path, numbers: range) -> None:
    """Calls as LiteLLM logs them, 2.5 kB each."""
    with path.open("w") as file:
        for i in numbers:
            message = {"role": "assistant", "content": f"{i} " + "because " * 120}
            call = {
                "id": f"c{i}",
                "call_type": "acompletion",
                "startTime": T0 + i * 0.01,
                "endTime": T0 + i * 0.01 + 0.8,
                "model": "gpt-4o",
                "messages": [{"role": "user", "content": f"{i} " + "why " * 200}],
                "response": {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]},
                "end_user": f"u{i % 997}",
                "response_cost": 0.001,
            }
            file.write(json.dumps(call) + "\n")


def _command(*words: str) -> list[str]:
    return [sys.executable, "-m", "evalpipe", "report", "--json", *words]


def _report(root: Path, *words: str) -> str:
    done = subprocess.run(
        _command(*words), cwd=root, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    return done.stdout


@contextmanager
def watched_workers() -> Iterator[list[float]]:
    """The bytes of each Ray process that runs a task, without what it shares, every tenth of a second."""
    found: list[float] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            for process in psutil.process_iter(["name", "cmdline"]):
                try:
                    if " ".join(process.info["cmdline"] or []).startswith("ray::"):
                        memory = process.memory_info()
                        found.append(memory.rss - memory.shared)
                except psutil.Error:
                    continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def difference(found: Any, expected: Any, unit: float = 0.0) -> float:
    """The largest difference of two reports, each relative to its number, or to control's value beside it where that is larger
    (a skewness, of differences that cancel, to 1); 1 where anything else differs. Times of the report itself do not count."""
    if isinstance(expected, dict):
        control = expected.get("control")
        control = control.get("value") if isinstance(control, dict) else control
        unit = abs(control) if isinstance(control, float) else unit
        names = (found.keys() | expected.keys()) - {"generated_at"}
        units = dict.fromkeys(names, unit) | {"skewness": 1.0}
        return max((difference(found.get(name), expected.get(name), units[name]) for name in names), default=0.0)
    if isinstance(expected, list):
        if len(found) != len(expected):
            return 1.0
        return max((difference(a, b, unit) for a, b in zip(found, expected, strict=True)), default=0.0)
    if isinstance(expected, float) and isinstance(found, float | int):
        return 0.0 if found == expected else abs(found - expected) / max(abs(found), abs(expected), unit)
    return float(found != expected)


def limit() -> bool:
    """The same where the limit is what binds: 3,000 requests a minute."""
    return node(2_000, 3_000)


CHECKS = {check.__name__: check for check in (doctor, cap, interrupted, replayed, limit, node, report, load)}

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the nodes are ended, too
    started = time.monotonic()
    wanted = sys.argv[1:] or list(CHECKS)
    results = [CHECKS[name.partition("=")[0]](*map(int, name.split("=")[1:])) for name in wanted]
    print(json.dumps({"seconds": round(time.monotonic() - started)}))
    finish(results)
