"""Three collectors of one experiment on one object storage whose requests fail now and then (`make check-replicas`).

`check_replicas.py [canary] [shadow] [N_REQUESTS]`, both and 200,000 without arguments. A canary: whoever decides is killed −9
five times, people change the stage, the storage goes away. Shadow mode: two collectors are killed −9 in the middle, and their
spools loaded by `evalpipe load --spool`. Every answer that a client read whole must be one row, no row may be there twice, and
the copies' cost at the provider must never pass the budget nor what is booked. Prints a table; ends with 1 where a line fails.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
import uvloop
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))
from objects.fixtures import Bucket, Storage

from evalpipe.identity import in_treatment
from evalpipe.models import CanaryStatus
from evalpipe.objects.budget import booked_usd
from evalpipe.objects.client import Objects, open_objects
from evalpipe.rollout.canary import History
from evalpipe.store.query import open_store
from evalpipe.workspace.canary import change_state
from evalpipe.workspace.paths import Workspace, open_workspace

EVALPIPE = [sys.executable, "-m", "evalpipe"]
NAMES = ("a", "b", "c")
N_CONNECTIONS = 48
FAULTS = {
    "internal_error": 0.01,
    "slow_down": 0.01,
    "conflict": 0.01,
    "reset_before": 0.01,
    "reset_after": 0.01,
    "truncated": 0.01,
}
COST_USD, HELD_USD = 0.0005, 0.0040  # an answer has 5 tokens of 0.0001 USD, a request asks for at most 40
CONFIG = """
data = "{url}"
[experiment]
name = "replicas"
mode = "{mode}"
unit = ["body:user"]
[arms.control]
provider = "openai"
base_url = "http://127.0.0.1:{upstream}/v1"
model = "gpt-4o"
[arms.treatment]
provider = "openai"
base_url = "http://127.0.0.1:{upstream}/v1"
model = "gpt-4o-mini"
api_key_env = "REPLICAS_KEY"
[collector]
port = 0
replica = "{name}"
{more}
[prices.gpt-4o-mini]
input = 0.0
output = 100.0
"""
CANARY = """
[canary]
evaluate_every_s = 1
state_timeout_s = 5
stages = [{percentage = 10, duration_hours = 10}, {percentage = 50, duration_hours = 10}, {percentage = 100}]
guardrails = {error_rate = 0.02}
"""
UPSTREAM = r"""
import asyncio, json, uvloop
USAGE = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
BODY = json.dumps({"id": "x", "object": "chat.completion", "created": 1, "model": "gpt-4o-mini", "choices": [{"index": 0,
    "message": {"role": "assistant", "content": "an answer"}, "finish_reason": "stop"}], "usage": USAGE}).encode()
def whole(body):
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
MINI, WHOLE = whole(BODY), whole(BODY.replace(b"gpt-4o-mini", b"gpt-4o"))
n_copies = 0
class Server(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport, self.buffer = transport, b""
    def data_received(self, data):
        global n_copies
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            at = head.find(b"content-length:")
            n = int(head[at + 15 :].split(b"\r")[0]) if at >= 0 else 0
            if len(self.buffer) < end + 4 + n:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + n], self.buffer[end + 4 + n :]
            if head.startswith(b"get"):
                self.transport.write(whole(b"%d" % n_copies))
            elif b"gpt-4o-mini" in body:
                n_copies += 1
                self.transport.write(MINI)
            else:
                self.transport.write(WHOLE)
async def main():
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
uvloop.run(main())
"""
"""answers at once; GET gives how many requests were for the treatment's model"""


class Report:
    def __init__(self) -> None:
        self.holds = True

    def line(self, what: str, found: object, holds: bool = True) -> None:
        self.holds = self.holds and holds
        print(f"{'ok  ' if holds else 'FAIL'}  {what}: {found}", flush=True)


def until(look: Callable[[], object], within_s: float, what: str) -> float:
    """Seconds until `look` gives something true."""
    began = time.monotonic()
    while not look():
        if time.monotonic() - began > within_s:
            raise SystemExit(f"waited {within_s:g} s in vain: {what}")
        time.sleep(0.01)
    return time.monotonic() - began


class Replica:
    """One collector with a folder, a spool and a log of its own."""

    def __init__(self, root: Path, name: str, config: str, env: dict[str, str]) -> None:
        self.root, self.name = root / name, name
        self.root.mkdir()
        (self.root / "evalpipe.toml").write_text(config)
        self._env = env
        self.start()

    def start(self) -> None:
        self.log = (self.root / "collect.log").open("ab")
        began_at = self.log.tell()
        self.process = subprocess.Popen(
            [*EVALPIPE, "collect"], cwd=self.root, env=self._env, stdout=subprocess.DEVNULL, stderr=self.log
        )
        until(lambda: self._address(began_at), 120, f"{self.name} listens: {self.root}/collect.log")
        self.url = self._address(began_at)

    def _address(self, began_at: int) -> str:
        text = (self.root / "collect.log").read_bytes()[began_at:].decode()
        found = re.search(r"listening on (http://[0-9.]+:[0-9]+)", text)
        return found.group(1) if found else ""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def spool(self) -> Path:
        return self.root / "data" / "spool"

    @property
    def mirror(self) -> History:
        return History(self.root / "data" / "canary", "replicas")

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def workspace(self) -> Workspace:
        return open_workspace(root=self.root, pull=False)

    def kill(self) -> None:
        """Every process of the collector at once."""
        main = psutil.Process(self.process.pid)
        for process in [main, *main.children(recursive=True)]:
            process.kill()
        self.process.wait()
        self.log.close()

    def stop(self) -> None:
        if self.is_running:
            self.process.terminate()
            self.process.wait(150)
            self.log.close()


@contextmanager
def replicas(bucket: Bucket, mode: str, more: str = "") -> Iterator[tuple[list[Replica], int]]:
    """Three collectors, and the port of their upstream."""
    root = Path(tempfile.mkdtemp(prefix=f"evalpipe-replicas-{mode}-"))
    env = {**os.environ, **bucket.env, "REPLICAS_KEY": "k", "EVALPIPE_UNIT_KEY": "u" * 32}
    upstream = subprocess.Popen([sys.executable, "-c", UPSTREAM], stdout=subprocess.PIPE)
    assert upstream.stdout is not None
    port = int(upstream.stdout.readline())
    with ExitStack() as stack:
        stack.callback(upstream.kill)
        started = []
        for name in NAMES:
            config = CONFIG.format(url=bucket.url, mode=mode, upstream=port, name=name, more=more)
            started.append(Replica(root, name, config + (CANARY if mode == "canary" else ""), env))
            stack.callback(lambda one=started[-1]: one.kill() if one.is_running else None)
        yield started, port


def without_faults(storage: Storage, bucket: Bucket) -> Objects:
    """The bucket as its owner sees it. From here on this process's environment leads to the bucket with its faults."""
    os.environ.update({**bucket.env, "AWS_ENDPOINT_URL": storage.calm.address})
    calm = open_objects(bucket.url)
    os.environ.update(bucket.env)
    return calm


# Shadow mode: nothing lost, nothing twice, the budget.


class Clients:
    """Connections over all replicas that run, as behind a balancer. `in_hand`: ids of the answers that were read whole."""

    def __init__(self, running: list[Replica], n_requests: int) -> None:
        self._replicas, self._numbers = running, iter(range(n_requests))
        self.bar = tqdm(total=n_requests, desc="requests", unit="")
        self.in_hand: list[bytes] = []
        self.n_failed = 0
        self._open: dict[tuple[int, int], tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}

    async def run(self) -> None:
        await asyncio.gather(*(self._connection(number) for number in range(N_CONNECTIONS)))

    async def _connection(self, number: int) -> None:
        for request in self._numbers:
            body = json.dumps(
                {
                    "model": "gpt-4o",
                    "user": f"u{request % 997}",
                    "max_tokens": 40,
                    "messages": [{"role": "user", "content": f"question {request}"}],
                }
            ).encode()
            turn = number
            while not await self._ask(number, turn, body):
                turn += 1
        for key in [key for key in self._open if key[0] == number]:
            self._open.pop(key)[1].close()

    async def _ask(self, number: int, turn: int, body: bytes) -> bool:
        running = [one for one in self._replicas if one.is_running]
        port = running[turn % len(running)].port
        try:
            link = self._open.get((number, port))
            if link is None:
                link = self._open[(number, port)] = await asyncio.open_connection("127.0.0.1", port)
            reader, writer = link
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            head = await reader.readuntil(b"\r\n\r\n")
            lines = {
                line.partition(b":")[0].lower(): line.partition(b":")[2].strip() for line in head.split(b"\r\n")[1:]
            }
            await reader.readexactly(int(lines[b"content-length"]))
            if not head.startswith(b"HTTP/1.1 200"):
                raise ConnectionError(head.split(b"\r\n")[0])
        except (OSError, asyncio.IncompleteReadError, KeyError):
            self.n_failed += 1
            self._open.pop((number, port), None)
            await asyncio.sleep(0.05)
            return False
        self.in_hand.append(lines[b"x-evalpipe-request-id"])
        self.bar.update()
        return True


class BudgetWatch(threading.Thread):
    """Looks at the account and at what the provider has answered, all the time."""

    def __init__(self, objects: Objects, upstream: int) -> None:
        super().__init__(daemon=True)
        self._objects, self._upstream = objects, upstream
        self.most_booked_usd = 0.0
        self.n_looks = 0
        self.passed: list[str] = []
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(0.2):
            spent = COST_USD * n_copies(self._upstream)  # before the account: it has grown since, if anything
            booked = booked_usd(self._objects, "replicas")
            self.most_booked_usd = max(self.most_booked_usd, booked)
            self.n_looks += 1
            if spent > booked + 1e-9:
                self.passed.append(f"{spent} spent, {booked} booked")

    def stop(self) -> None:
        self._ended.set()
        self.join()


def n_copies(upstream: int) -> int:
    with urlopen(f"http://127.0.0.1:{upstream}/", timeout=30) as answer:
        return int(answer.read())


def check_shadow(storage: Storage, n_requests: int, report: Report) -> None:
    bucket = storage.bucket(storage.proxy())
    bucket.faults.set(seed=1, **FAULTS)
    calm = without_faults(storage, bucket)
    budget_usd = round(0.6 * n_requests * COST_USD, 6)
    with replicas(bucket, "shadow", f"shadow_budget_usd = {budget_usd}") as (running, upstream):
        watch = BudgetWatch(calm, upstream)
        watch.start()
        clients = Clients(running, n_requests)
        n_in_hand_at: list[int] = []

        def kill_two() -> None:
            for victim, share in ((0, 1 / 3), (1, 2 / 3)):
                until(lambda share=share: len(clients.in_hand) >= share * n_requests, 7200, "requests")
                running[victim].kill()
                n_in_hand_at.append(len(clients.in_hand))

        killer = threading.Thread(target=kill_two, daemon=True)
        killer.start()
        began = time.monotonic()
        uvloop.run(clients.run())
        took_s = time.monotonic() - began
        killer.join()
        clients.bar.close()
        last = running[2]
        last.stop()
        watch.stop()
        report.line(
            "requests answered, and per second",
            f"{len(clients.in_hand):,} in {took_s:.0f} s, {n_requests / took_s:.0f}",
        )
        report.line(
            "killed −9 after", " and ".join(f"{n:,}" for n in n_in_hand_at) + f"; {clients.n_failed} connections broke"
        )
        report.line("faults of the storage", json.dumps(bucket.faults.made))
        spent = COST_USD * n_copies(upstream)
        booked = booked_usd(calm, "replicas")
        report.line("looks at the account", watch.n_looks)
        report.line(
            "booked at most, of the budget",
            f"{watch.most_booked_usd:.4f} of {budget_usd} USD",
            watch.most_booked_usd <= budget_usd + 1e-9,
        )
        report.line("looks at which more was spent than booked", watch.passed or 0, not watch.passed)
        report.line("spent at the provider in the end", f"{spent:.4f} USD, {booked:.4f} booked", spent <= booked + 1e-9)
        report.line("… of the budget", f"{spent / budget_usd:.1%}", spent > 0.9 * budget_usd)

        env = {**os.environ, "EVALPIPE_UNIT_KEY": "u" * 32, "REPLICAS_KEY": "k"}
        bucket.faults.set(seed=2, **FAULTS)
        for one in running:
            done = subprocess.run(
                [*EVALPIPE, "load", "--json", "--spool", str(one.spool)],
                cwd=last.root,
                env=env,
                capture_output=True,
                text=True,
            )
            report.line(
                f"load --spool of {one.name}", done.stdout.strip()[:200] or done.stderr[-400:], done.returncode == 0
            )
        with open_store(last.workspace().data, "replicas") as store:
            query = store.connection.execute
            stored = {
                row[0].encode() for row in query("SELECT request_id FROM exchanges WHERE role = 'served'").fetchall()
            }
            (twice,) = query(
                "SELECT count(*) FROM (SELECT request_id, arm FROM exchanges GROUP BY ALL HAVING count(*) > 1)"
            ).fetchall()[0]
            (n_shadow,) = query("SELECT count(*) FROM exchanges WHERE role = 'shadow' AND outcome = 'ok'").fetchall()[0]
        n_ids = len(set(clients.in_hand))
        lost = [one for one in clients.in_hand if one not in stored]
        report.line("ids given out twice", len(clients.in_hand) - n_ids, n_ids == len(clients.in_hand))
        report.line("answers in hand that are not stored", len(lost), not lost)
        report.line("rows stored twice", twice, twice == 0)
        report.line("copies stored", f"{n_shadow:,} of {n_copies(upstream):,} answered by the provider")


# A canary: who decides, who follows, what happens out of sight.


def arm_of(replica: Replica, unit: str) -> str | None:
    """The arm that answers a unit at this replica now; None where it does not answer."""
    body = json.dumps({"model": "gpt-4o", "user": unit, "messages": [{"role": "user", "content": "hi"}]}).encode()
    request = Request(f"{replica.url}/v1/chat/completions", body, {"content-type": "application/json"})
    try:
        with urlopen(request, timeout=5) as answer:
            answer.read()
            arm: str = answer.headers["x-evalpipe-arm"]
            return arm
    except OSError:
        return None


def health(replica: Replica) -> dict[str, Any]:
    with urlopen(f"{replica.url}/_evalpipe/health", timeout=5) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def deciding(objects: Objects) -> tuple[int, str]:
    """(number, replica) of the lease on the state, as the state's object has it."""
    state = objects.get("state/canary/replicas/state.json")
    lease = objects.get("leases/canary-replicas.json")
    if state is None or lease is None:
        return 0, ""
    return json.loads(state.data)["lease"], json.loads(lease.data)["owner"]


def check_canary(storage: Storage, report: Report) -> None:
    bucket = storage.bucket(storage.proxy())
    bucket.faults.set(seed=1, **FAULTS)
    calm = without_faults(storage, bucket)
    drawn = partial(in_treatment, "replicas")
    unit = next(user for user in map("u{}".format, range(1000)) if not drawn(user, 10) and drawn(user, 50))
    with replicas(bucket, "canary") as (running, _):
        everyone = lambda arm: all(arm_of(one, unit) == arm for one in running if one.is_running)  # noqa: E731
        until(lambda: all(one.mirror.state().percentage == 10 for one in running), 60, "the first stage begins")
        took_over: list[float] = []
        for _ in range(5):
            number, owner = deciding(calm)
            victim = next(one for one in running if one.name == owner)
            victim.kill()
            took_over.append(until(lambda number=number: deciding(calm)[0] > number, 60, "another replica decides"))
            victim.start()
        times = ", ".join(f"{s:.2f}" for s in took_over)
        report.line("seconds until another replica decides, leader killed −9", times, max(took_over) < 5)

        followed: list[float] = []
        for action, force, arm in (("approve", True, "treatment"), ("rollback", False, "control")):
            change_state(running[0].workspace(), action, why="check", force=force)
            followed.append(until(lambda arm=arm: everyone(arm), 30, f"every replica follows {action}"))
        change_state(running[0].workspace(), "reset", why="check")
        until(lambda: all(one.mirror.state().percentage == 10 for one in running), 60, "the first stage begins again")
        change_state(running[1].workspace(), "approve", why="check", force=True)
        followed.append(until(lambda: everyone("treatment"), 30, "every replica follows approve"))
        times = ", ".join(f"{s:.2f}" for s in followed)
        report.line(
            "seconds until every replica serves a person's change (approve, rollback, approve)",
            times,
            max(followed) < 2,
        )

        bucket.faults.outage(600)
        fell = until(lambda: everyone("control"), 60, "out of sight, every replica serves the last safe stage")
        report.line(
            "storage gone: seconds until all serve the last safe stage (state_timeout_s = 5)",
            f"{fell:.2f}",
            fell < 8,
        )
        reasons = [" ".join(health(one)["reasons"]) for one in running]
        named = sum("has not been seen for" in text for text in reasons)
        report.line("replicas whose health names it", named, named == len(running))
        bucket.faults.outage(0)
        back = until(lambda: everyone("treatment"), 60, "back in sight, every replica serves the stage in force")
        report.line("storage back: seconds until every replica serves the stage in force", f"{back:.2f}", back < 10)

        until(lambda: deciding(calm)[1] != "", 60, "somebody decides")
        change_state(running[0].workspace(), "rollback", why="check")
        until(
            lambda: all(one.mirror.state().status is CanaryStatus.ROLLED_BACK for one in running),
            30,
            "rollback is seen",
        )
        bucket.faults.outage(600)
        time.sleep(8)
        users = [f"u{n}" for n in range(40)]
        served = {arm_of(one, user) for one in running for user in users}
        report.line(
            "out of sight after a rollback, arms that answer 40 users at each replica", served, served == {"control"}
        )
        bucket.faults.outage(0)
        for one in running:
            one.stop()


def main(arguments: list[str]) -> int:
    n_requests = next((int(one) for one in arguments if one.isdigit()), 200_000)
    parts = [one for one in arguments if not one.isdigit()] or ["canary", "shadow"]
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage(Path(folder))
        try:
            if "canary" in parts:
                check_canary(storage, report)
            if "shadow" in parts:
                check_shadow(storage, n_requests, report)
        finally:
            storage.stop()
    return 0 if report.holds else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
