"""Every process killed -9 at random moments while all of them work (`make check-kills`, `ARGS="300"` kills).

One workspace has a collector (two workers, a treatment) under a modest load, with `load`, `judge`, `report` in a loop beside
it; another one a canary with its controller, which goes bad half way. Killed are whole collectors, supervisors, workers,
treatment processes, loads and the processes of their pool, judges, reports, controllers. Then everything ends in order, and:

- each answer that a client read to its end is stored once, with the text the client read, and no row is there twice;
- the provider answered no more questions of the judge twice than were in flight at kills, billed never more than the cap
  in force, and never more than the judge's account holds;
- no report is there in half, no process is left over, no stored file is damaged;
- the canary's history is whole, and its rollback stays one.

`check_kills.py [KILLS] [SECONDS]`: ends after so many kills, or so many seconds. Ends with 1 where a line does not hold.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from judge_harness import EVALPIPE, Sim, environment, evalpipe, query, say, simulated, wait_until
from tqdm import tqdm

from evalpipe.models import CanaryStatus
from evalpipe.rollout.canary import History
from evalpipe.store.query import open_store

CONCURRENCY = 8
CHILD_KILLED = "evalpipe: a helper process was killed"
"""what `load` ends with, exit 1, when one of its pool is killed and it is not"""
STEP_USD = 0.10
"""by which the judge's cap rises from run to run: it is always near"""
N_CLIENTS, PAUSE_S = 10, 0.15
MEAN_S = 5.0
"""between two kills of one family; a command that takes longer is killed about once a run"""
CONFIG = """
[experiment]
name = "kills"
mode = "{mode}"
[arms.control]
provider = "openai"
base_url = "{arms}/v1"
model = "gpt-4o"
[arms.treatment]
provider = "openai"
base_url = "{arms}/v1"
model = "{treatment}"
api_key_env = "SIM_KEY"
[collector]
port = {port}
workers = 2
{more}
"""
JUDGE = """
[judge]
base_url = "{judge}"
model = "claude-haiku-4-5"
concurrency = {concurrency}
requests_per_minute = 100000
input_tokens_per_minute = 100000000
output_tokens_per_minute = 100000000
"""
CANARY = """
[canary]
evaluate_every_s = 1.0
min_requests = 20
guardrails = { error_rate = 0.05 }
stages = [
  { percentage = 5, duration_hours = 0.006, auto_advance = true },
  { percentage = 25, duration_hours = 0.012, auto_advance = true },
  { percentage = 50, duration_hours = 100, auto_advance = true },
]
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


class Collector:
    """`evalpipe collect`, begun again whenever it was killed."""

    def __init__(self, root: Path) -> None:
        self._root, self.log = root, root / "collector.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.left_over: list[str] = []
        self.n_ended = 0
        """how often it ended by itself: workers that are killed while they start, for longer than it waits for one"""
        self.start()

    def revive(self) -> None:
        """What systemd would do. Raises RuntimeError where it ended for another reason than the one that is its way out."""
        assert self._process is not None
        if self._process.poll() is None:
            return
        last = self.log.read_text()[-400:]
        if self._process.returncode != 1 or "no serve process has been ready" not in last:
            raise RuntimeError(f"the collector ended with {self._process.returncode}: {last}")
        self.n_ended += 1
        self.start()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """The predecessor's processes may still be ending: they hold the spool."""
        until = time.monotonic() + 240
        while time.monotonic() < until:
            with self.log.open("ab") as out:
                at = out.tell()
                self._process = subprocess.Popen(
                    [*EVALPIPE, "collect"],
                    cwd=self._root,
                    env={**environment(), "SIM_KEY": "sim-key-of-treatment"},
                    stdout=out,
                    stderr=out,
                    stdin=subprocess.DEVNULL,
                )
            while self._process.poll() is None:
                if b"listening on " in self.log.read_bytes()[at:]:
                    return
                if time.monotonic() > until:
                    break
                time.sleep(0.05)
            time.sleep(0.5)
        raise RuntimeError("the collector did not start again:\n" + self.log.read_text()[-3000:])

    def children(self, word: str) -> list[int]:
        found = []
        for child in psutil.Process(self.pid).children():
            try:
                if word in child.cmdline():
                    found.append(child.pid)
            except psutil.Error:  # on its way out
                continue
        return found

    def kill_all(self) -> None:
        family = [self.pid, *(child.pid for child in psutil.Process(self.pid).children(recursive=True))]
        for pid in family:
            kill(pid)
        assert self._process is not None
        self._process.wait()
        self.start()

    def kill_supervisor(self) -> None:
        """Its children end by themselves."""
        children = psutil.Process(self.pid).children(recursive=True)
        kill(self.pid)
        assert self._process is not None
        self._process.wait()
        _, alive = psutil.wait_procs(children, timeout=90)
        for child in alive:
            self.left_over.append(" ".join(child.cmdline()))
            child.kill()
        self.start()

    def kill_child(self, word: str, chance: random.Random) -> bool:
        found = self.children(word)
        return bool(found) and kill(chance.choice(found))

    def stop(self) -> int:
        self.revive()
        assert self._process is not None
        self._process.terminate()
        return self._process.wait(120)


class Repeated:
    """A command that is run again and again; `kill` ends the run that is under way."""

    def __init__(
        self, root: Path, name: str, arguments: Callable[[], Sequence[str]], *, takes_s: float, pause_s: float = 1.0
    ) -> None:
        self._root, self.name, self._arguments, self._pause_s = root, name, arguments, pause_s
        self.takes_s = takes_s
        """the last run that was not killed"""
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self.n_runs, self.n_whole, self.n_killed, self.n_ended = 0, 0, 0, 0
        self._lost_a_child: set[int] = set()
        self.failures: list[str] = []
        self.left_over: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                self._process = process = subprocess.Popen(
                    [*EVALPIPE, *self._arguments()],
                    cwd=self._root,
                    env=environment(),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    text=True,
                )
            self.n_runs += 1
            began = time.monotonic()
            text, _ = process.communicate()
            if process.returncode == 0:
                self.n_whole += 1
                self.takes_s = time.monotonic() - began
            elif process.returncode == 1 and process.pid in self._lost_a_child and CHILD_KILLED in text:
                self.n_ended += 1  # in order, with one line that says so
            elif process.returncode != -signal.SIGKILL:
                self.failures.append(f"exit {process.returncode}: {text.strip()[-400:]}")
            self._stop.wait(self._pause_s)

    def pids(self) -> list[int]:
        """The process that runs now, and those it started."""
        process = self._process
        if process is None or process.poll() is not None:
            return []
        try:
            return [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        except psutil.Error:
            return []

    def kill(self) -> bool:
        """Whether one was running; what it started ends by itself."""
        with self._lock:
            process = self._process
            if process is None or process.poll() is not None:
                return False
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
        process.wait()
        _, alive = psutil.wait_procs(children, timeout=90)
        for child in alive:
            self.left_over.append(" ".join(child.cmdline()))
            child.kill()
        self.n_killed += 1
        return True

    def kill_child(self, chance: random.Random) -> bool:
        pids = self.pids()
        if len(pids) < 2:
            return False
        self._lost_a_child.add(pids[0])
        return kill(chance.choice(pids[1:]))

    def ask_to_stop(self) -> None:
        self._stop.set()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(300)


@dataclass
class Clients:
    """Threads that ask at a modest rate and go on when the collector was killed under them."""

    port: int
    n: int
    n_users: int = 200
    in_hand: dict[str, str] = field(default_factory=dict)
    """request id → text, of answers received to the last byte"""
    arms: list[tuple[float, str, str]] = field(default_factory=list)
    """(asked at, arm, request id)"""
    n_cut: int = 0
    statuses: Counter[int] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(self.n)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        while not self._stop.is_set():
            with self._lock:
                number = next(self._numbers)
            try:
                self._ask(connection, number)
            except (OSError, http.client.HTTPException, ValueError, KeyError):
                connection.close()
                with self._lock:
                    self.n_cut += 1
                self._stop.wait(0.3)
            self._stop.wait(PAUSE_S)
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection, number: int) -> None:
        streamed = number % 5 == 0
        question = [
            {"role": "user", "content": f"Question {number}: what is there to see in a town of {number} people?"}
        ]
        body = {"model": "gpt-4o", "messages": question, "user": f"u{number * 7919 % self.n_users}", "stream": streamed}
        asked_at = time.time()
        connection.request(
            "POST",
            "/v1/chat/completions",
            json.dumps(body),
            {"content-type": "application/json", "authorization": "Bearer sk-of-the-client"},
        )
        answer = connection.getresponse()
        data = answer.read()
        with self._lock:
            self.statuses[answer.status] += 1
            request_id = answer.headers["x-evalpipe-request-id"]
            self.arms.append((asked_at, answer.headers["x-evalpipe-arm"], request_id))
        if answer.status == 200:
            text = streamed_text(data) if streamed else json.loads(data)["choices"][0]["message"]["content"]
            with self._lock:
                self.in_hand[request_id] = text

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)


def streamed_text(data: bytes) -> str:
    """Raises ValueError where the stream did not come to its end."""
    events = [line[6:] for line in data.splitlines() if line.startswith(b"data: ")]
    if not events or events[-1] != b"[DONE]":
        raise ValueError("cut")
    pieces = (json.loads(event)["choices"] for event in events[:-1])
    return "".join(choices[0]["delta"].get("content") or "" for choices in pieces if choices)


class Cap:
    """The judge's cap: each run has a little more; the provider's bill is held against the one in force."""

    def __init__(self, sim: Sim) -> None:
        self._sim = sim
        self.usd = 0.0
        self.passed: list[str] = []

    def next_run(self) -> list[str]:
        self.look()
        if self._sim.ledger()["billed"]["usd"] > self.usd - 2 * STEP_USD:
            self.usd = round(self.usd + STEP_USD, 2)
        return ["judge", "--max-usd", f"{self.usd:.2f}"]

    def look(self) -> None:
        billed = self._sim.ledger()["billed"]["usd"]
        if billed > self.usd + 1e-9:
            self.passed.append(f"${billed:.4f} billed under a cap of ${self.usd:.2f}")


def half_reports(root: Path) -> list[str]:
    found = []
    for path in (root / "reports").rglob("*.*"):
        if path.is_dir():
            continue
        try:
            text = path.read_text(errors="replace")
        except FileNotFoundError:
            continue
        if path.suffix == ".html" and not text.rstrip().endswith("</html>"):
            found.append(path.name)
        elif path.suffix == ".json":
            try:
                json.loads(text)
            except ValueError:
                found.append(path.name)
    return found


def processes_below(root: Path) -> list[psutil.Process]:
    """Processes that work in this folder."""
    found = []
    for process in psutil.process_iter(["cwd"]):
        cwd = process.info["cwd"]
        if cwd and Path(cwd).is_relative_to(root) and is_running(process.pid):
            found.append(process)
    return found


@dataclass
class Stage:
    """Everything that runs."""

    root: Path
    canary_root: Path
    collector: Collector
    canary: Collector
    load: Repeated
    judge: Repeated
    report: Repeated
    cap: Cap
    judge_sim: Sim

    def killers(self) -> list[Killer]:
        """One a family of processes: all of them kill at once."""
        return [
            Killer(
                {
                    "collector, all at once": (1, lambda _: self.collector.kill_all() is None),
                    "supervisor": (1, lambda _: self.collector.kill_supervisor() is None),
                    "worker": (3, lambda chance: self.collector.kill_child("serve", chance)),
                    "treatment process": (3, lambda chance: self.collector.kill_child("shadow", chance)),
                },
                self.collector,
            ),
            Killer(
                {
                    "canary's controller": (3, lambda chance: self.canary.kill_child("canary", chance)),
                    "canary's worker": (1, lambda chance: self.canary.kill_child("serve", chance)),
                    "canary's collector": (1, lambda _: self.canary.kill_all() is None),
                },
                self.canary,
            ),
            Killer({"load": (2, lambda _: self.load.kill()), "process of load": (1, self.load.kill_child)}, self.load),
            Killer({"judge": (1, self._kill_judge)}, self.judge),
            Killer({"report": (1, lambda _: self.report.kill())}, self.report),
        ]

    def _kill_judge(self, chance: random.Random) -> bool:
        """Three times of four while it has asked something."""
        if chance.random() < 0.75:
            before, until = self.judge_sim.ledger()["calls"], time.monotonic() + 60
            while time.monotonic() < until and self.judge_sim.ledger()["calls"] == before:
                time.sleep(0.05)
            time.sleep(chance.random())
        return self.judge.kill()


class Killer:
    """A thread that kills one of a family at random moments; a command is let come to its end now and then."""

    def __init__(self, kinds: dict[str, tuple[int, Callable[[random.Random], bool]]], of: Repeated | Collector) -> None:
        self._kinds, self._of = kinds, of
        self._chance = random.Random(repr(list(kinds)))
        self.killed: Counter[str] = Counter()
        self.failure: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._pause_s()):
                if isinstance(self._of, Collector):
                    self._of.revive()
                kind = self._chance.choices(list(self._kinds), [weight for weight, _ in self._kinds.values()])[0]
                if self._kinds[kind][1](self._chance):
                    self.killed[kind] += 1
        except (OSError, RuntimeError, psutil.Error, subprocess.TimeoutExpired) as error:  # the main thread reports it
            self.failure = error

    def _pause_s(self) -> float:
        takes_s = self._of.takes_s if isinstance(self._of, Repeated) else 0.0
        return self._chance.expovariate(1 / max(MEAN_S, takes_s))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(300)


def kill_at_random(stage: Stage, history: History, arms: Sim, *, n_kills: int, until: float) -> Counter[str]:
    """Kinds of processes killed, and how often. Half way the canary's treatment begins to fail."""
    killers = stage.killers()
    for killer in killers:
        killer.start()
    began, spoiled = time.monotonic(), False
    killed: Counter[str] = Counter()
    with tqdm(total=n_kills, desc="kills", unit="", mininterval=10) as bar:
        while killed.total() < n_kills and time.monotonic() < until:
            time.sleep(0.5)
            killed = sum((killer.killed for killer in killers), Counter())
            bar.update(killed.total() - bar.n)
            for killer in killers:
                if killer.failure is not None:
                    raise RuntimeError("the kills ended") from killer.failure
            stage.cap.look()
            half = half_reports(stage.root)
            if half:
                raise RuntimeError(f"half of a report: {half}")
            half_way = killed.total() >= n_kills / 2 or time.monotonic() > (began + until) / 2
            if half_way and not spoiled and history.state().percentage > 0:
                arms.post("/_sim/config", {"models": {"gpt-4.1-mini": {"faults": {"500": 0.7}}}})
                spoiled = True
    for killer in killers:
        killer.stop()
    return sum((killer.killed for killer in killers), Counter())


def check_rows(root: Path, clients: Clients) -> bool:
    with open_store(root / "data", "kills") as store:
        rows = store.connection.sql(
            "SELECT request_id, arm, role, outcome, text, shadow_status FROM exchanges"
        ).fetchall()
    keys = Counter((request_id, arm, role) for request_id, arm, role, *_ in rows)
    served = Counter(request_id for request_id, _, role, *_ in rows if role == "served")
    texts = {request_id: text for request_id, _, role, outcome, text, _ in rows if role == "served" and outcome == "ok"}
    lost = [request_id for request_id, text in clients.in_hand.items() if texts.get(request_id) != text]
    twice = [key for key, n in keys.items() if n > 1] + [request_id for request_id, n in served.items() if n > 1]
    fates = Counter(status for _, _, role, _, _, status in rows if role == "served")
    copies = {request_id for request_id, _, role, *_ in rows if role == "shadow"}
    sent = [request_id for request_id, _, role, _, _, status in rows if role == "served" and status == "sampled"]
    no_copy = [request_id for request_id in sent if request_id not in copies]
    outcomes = Counter((role, outcome) for _, _, role, outcome, _, _ in rows)
    left = [path.name for path in (root / "data" / "spool").glob("*.jsonl") if path.stat().st_size]
    unknown = fates.get(None, 0) if root.name == "shadow" else 0
    holds = not lost and not twice and not no_copy and not left and not unknown
    return say(
        f"rows of {root.name}",
        holds,
        f"{len(clients.in_hand):,} answers in hand ({clients.n_cut} requests cut, {dict(clients.statuses)}), {len(rows):,} rows: "
        f"lost {len(lost)} {lost[:3]}, twice {len(twice)} {twice[:3]}; copies {dict(fates)}, sent without a row {len(no_copy)}; "
        f"{dict(outcomes)}; log left {left}",
    )


def check_money(stage: Stage) -> bool:
    ledger = stage.judge_sim.ledger()
    (account,) = json.loads(evalpipe(stage.root, "judge", "settle", "--json").stdout)["settlements"]
    most = account["known_usd"] + account["held_usd"]
    billed, again = ledger["billed"]["usd"], ledger["n_answered_again"]
    (rows,) = query(stage.root, "SELECT count(*) AS n, count(DISTINCT judgment_id) AS ids FROM judgments")
    final = query(
        stage.root,
        "SELECT key, count(*) AS n FROM judgments WHERE status IN ('ok', 'identical') GROUP BY key HAVING count(*) > 1",
    )
    allowed = CONCURRENCY * stage.judge.n_killed
    holds = (
        again <= allowed
        and billed <= most + 1e-6
        and most <= stage.cap.usd + 1e-6
        and not stage.cap.passed
        and rows["n"] == rows["ids"]
        and not final
    )
    return say(
        "money",
        holds,
        f"{stage.judge.n_killed} judges killed, {ledger['calls']:,} calls, {ledger['n_questions']:,} questions, answered twice "
        f"{again} (at most {allowed} in flight); billed ${billed:.4f}, booked ${account['known_usd']:.4f} and "
        f"{account['unsettled_calls']} calls held at ${account['held_usd']:.4f}, cap ${stage.cap.usd:.2f}, "
        f"passed {stage.cap.passed[:3]}; "
        f"{rows['n']:,} judgments, {len(final)} keys judged twice",
    )


def check_canary(history: History, clients: Clients) -> bool:
    events = history.events()
    raw = history.path.read_bytes()
    numbered = [event.seq for event in events] == list(range(1, len(events) + 1)) and raw.count(b"\n") == len(events)
    back = next((event for event in events if event.state.status is CanaryStatus.ROLLED_BACK), None)
    shares = [event.state.percentage for event in events]
    before = [event.state.percentage for event in events if back is None or event.seq < back.seq]
    # A change's time is that of the look that led to it; in force it is once its line is written, here the last one.
    in_force = history.path.stat().st_mtime
    late = [asked for asked, arm, _ in clients.arms if back is not None and arm == "treatment" and asked > in_force + 5]
    holds = (
        numbered
        and back is not None
        and before == sorted(before)
        and not late
        and history.state().status is CanaryStatus.ROLLED_BACK
        and history.state().percentage == 0
    )
    later = sum(back is not None and asked > in_force for asked, _, _ in clients.arms)
    return say(
        "canary",
        holds,
        f"{len(events)} changes, {'numbered without a gap' if numbered else 'NOT WHOLE'}, shares {shares}; "
        f"{'rolled back: ' + back.why if back else 'NOT ROLLED BACK'}; of {later:,} requests later {len(late)} in treatment "
        "(from 5 s on)",
    )


def check_others(stage: Stage) -> bool:
    commands = (stage.load, stage.judge, stage.report)
    left = [*stage.collector.left_over, *stage.canary.left_over, *itertools.chain(*(c.left_over for c in commands))]
    left += [" ".join(p.cmdline()) for root in (stage.root, stage.canary_root) for p in processes_below(root)]
    damaged = evalpipe(stage.root, "doctor", "--data", check=False)
    reports = [path.name for path in (stage.root / "reports").glob("*")]
    runs = {
        c.name: f"{c.n_runs} runs, {c.n_whole} whole, {c.n_killed} killed, {c.n_ended} ended without a helper"
        for c in commands
    }
    failures = {c.name: c.failures for c in commands if c.failures}
    traces = [path for path in stage.root.glob("*.log") if "Traceback" in path.read_text(errors="replace")]
    good = say("processes", not left, f"left over {left}; {runs}")
    good &= say("commands beside them", not failures, f"failures {failures}; tracebacks in {traces}")
    good &= say(
        "files", damaged.returncode == 0 and not half_reports(stage.root), f"{damaged.stdout[-300:]}; reports {reports}"
    )
    return good


def main(n_kills: int, seconds: float) -> int:
    base = Path(tempfile.mkdtemp(prefix="evalpipe-kills-"))
    root, canary_root = base / "shadow", base / "canary"
    root.mkdir()
    canary_root.mkdir()
    with (
        simulated("--ttft-ms", "5", "--tokens-per-second", "4000") as arms,
        simulated("--judge", "accuracy=0.8", "--ttft-ms", "1500", "--tokens-per-second", "4000") as judge_sim,
        contextlib.ExitStack() as at_end,
    ):
        at_end.callback(lambda: [process.kill() for process in processes_below(base)])  # after a failure
        ports = free_port(), free_port()
        (root / "evalpipe.toml").write_text(
            CONFIG.format(mode="shadow", arms=arms.url, treatment="gpt-4o-mini", port=ports[0], more="")
            + JUDGE.format(judge=judge_sim.url, concurrency=CONCURRENCY)
        )
        (canary_root / "evalpipe.toml").write_text(
            CONFIG.format(mode="canary", arms=arms.url, treatment="gpt-4.1-mini", port=ports[1], more="") + CANARY
        )
        cap = Cap(judge_sim)
        collector, canary = Collector(root), Collector(canary_root)
        clients, canary_clients = Clients(ports[0], N_CLIENTS), Clients(ports[1], 2, n_users=400)
        wait_until(lambda: len(clients.in_hand) > 50)
        began = time.monotonic()
        evalpipe(root, "load")
        takes_s = time.monotonic() - began
        stage = Stage(
            root,
            canary_root,
            collector,
            canary,
            Repeated(root, "load", lambda: ["load"], takes_s=takes_s, pause_s=3.0),
            Repeated(root, "judge", cap.next_run, takes_s=3 * takes_s),
            Repeated(root, "report", lambda: ["report"], takes_s=2 * takes_s, pause_s=5.0),
            cap,
            judge_sim,
        )
        history = History(canary_root / "data" / "canary", "kills")
        began = time.monotonic()
        killed = kill_at_random(stage, history, arms, n_kills=n_kills, until=began + seconds)
        print(f"{killed.total()} kills in {time.monotonic() - began:.0f} s: {dict(killed)}", flush=True)
        with contextlib.suppress(TimeoutError):  # check_canary reports it
            wait_until(lambda: history.state().status is CanaryStatus.ROLLED_BACK, 300)
        time.sleep(5)
        for command in (stage.load, stage.judge, stage.report):
            command.ask_to_stop()
        for one in (clients, canary_clients):
            one.stop()
        codes = [collector.stop(), canary.stop()]
        ended = collector.n_ended + canary.n_ended
        for command in (stage.load, stage.judge, stage.report):
            command.stop()
        for each in (root, canary_root):
            for _ in range(3):
                evalpipe(each, "load")
        evalpipe(root, *cap.next_run())
        evalpipe(root, "report")
        good = say(
            "ends in order", codes == [0, 0], f"exit codes of the collectors {codes}; ended by themselves {ended} times"
        )
        good &= check_rows(root, clients)
        good &= check_rows(canary_root, canary_clients) if canary_clients.in_hand else False
        good &= check_money(stage)
        good &= check_canary(history, canary_clients)
        good &= check_others(stage)
        print(f"workspaces {base}")
    return 0 if good else 1


if __name__ == "__main__":
    numbers = [*map(int, re.findall(r"\d+", " ".join(sys.argv[1:]))), *(300, 7200)[len(sys.argv) - 1 :]]
    sys.exit(main(numbers[0], float(numbers[1])))
