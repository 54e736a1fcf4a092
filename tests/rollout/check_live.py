"""The rollout on real processes, under load, with kills; by `make check-rollout`. A line a promise, exit code 1 on a broken one.

python tests/rollout/check_live.py sticky | canary | controller | judged
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import openai
from live import Process, post, running, served, until, workers
from spool_writer import observe_without_reading

from evalpipe.identity import in_treatment
from evalpipe.models import CanaryStatus
from evalpipe.rollout.canary import History
from evalpipe.rollout.controller import has_leader
from evalpipe.rollout.guardrails import build_guardrails, evaluate_guardrails
from evalpipe.spool.format import RequestRecord, ResponseRecord
from evalpipe.workspace.canary import change_state
from evalpipe.workspace.paths import Workspace, open_workspace

CONFIG = """
[experiment]
name = "live"
mode = "canary"
[arms.control]
provider = "{control}"
base_url = "{control_url}"
[arms.treatment]
provider = "{treatment}"
base_url = "{treatment_url}"
model = "{model}"
[collector]
port = 0
workers = 2
hash_units = false
[canary]
evaluate_every_s = {every}
min_requests = {min_requests}
guardrails = {guardrails}
stages = [{stages}]
{more}
"""
LIMITS = {"error_rate": 0.02, "p99_latency_ms": 1500.0}
TOKEN = {"EVALPIPE_TOKEN": "secret"}
FAST = ("--ttft-ms", "1", "--tokens-per-second", "5000")


def stage(percentage: float, seconds: float, auto: bool = True) -> str:
    return f"{{ percentage = {percentage}, duration_hours = {seconds / 3600}, auto_advance = {str(auto).lower()} }}"


class Stack:
    def __init__(self, folder: Path, url: str, sim: str, collector: Process) -> None:
        self.folder, self.url, self.sim, self.collector = folder, url, sim, collector
        self.workspace: Workspace = open_workspace(root=folder)
        self.history = History(folder / "data" / "canary", "live")

    @property
    def state(self) -> CanaryStatus:
        return self.history.state().status


@contextmanager
def stack(
    *,
    stages: list[str],
    control: str = "openai",
    treatment: str = "openai",
    every: float = 0.5,
    min_requests: int = 20,
    guardrails: Mapping[str, float] = LIMITS,
    more: str = "",
) -> Iterator[Stack]:
    """`more`: TOML after the `[canary]` section's keys; {sim} in it is the address of the simulated providers."""
    folder = Path(tempfile.mkdtemp(prefix="evalpipe-live-"))
    with running(folder / "sim.log", "sim", "--port", "0", *FAST) as sim:
        base = sim.url()
        urls = {"openai": f"{base}/v1", "anthropic": base}
        (folder / "evalpipe.toml").write_text(
            CONFIG.format(
                control=control,
                control_url=urls[control],
                treatment=treatment,
                treatment_url=urls[treatment],
                model="claude-haiku-4-5" if treatment == "anthropic" else "gpt-4o-mini",
                every=every,
                min_requests=min_requests,
                stages=", ".join(stages),
                guardrails="{ " + ", ".join(f"{name} = {limit}" for name, limit in guardrails.items()) + " }",
                more=more.replace("{sim}", base),
            )
        )
        with running(
            folder / "collect.log", "collect", "--config", str(folder / "evalpipe.toml"), env=TOKEN
        ) as collector:
            yield Stack(folder, collector.url(), base, collector)


class Load:
    """Threads that ask through the real SDKs, as users who come back; what a killed worker drops is the SDKs' to retry."""

    def __init__(
        self, live: Stack, *, dialect: str, n_threads: int = 4, n_users: int = 60, pause_s: float = 0.0
    ) -> None:
        self._live, self._dialect, self._n_users, self._pause_s = live, dialect, n_users, pause_s
        self._stop = threading.Event()
        self.errors: Counter[str] = Counter()
        self.told: list[tuple[str, str, str]] = []
        self._threads = [threading.Thread(target=self._run, args=(seed,)) for seed in range(n_threads)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, seed: int) -> None:
        rng = random.Random(seed)
        headers = {"x-evalpipe-token": "secret"}
        gpt = openai.OpenAI(base_url=f"{self._live.url}/v1", api_key="k", default_headers=headers, max_retries=3)
        claude = anthropic.Anthropic(base_url=self._live.url, api_key="k", default_headers=headers, max_retries=3)
        tool = {"type": "object", "properties": {"city": {"type": "string"}}}
        while not self._stop.is_set():
            user = f"user-{rng.randrange(self._n_users)}"
            question = [{"role": "user", "content": f"question {rng.randrange(50)}"}]
            extra = {"x-user-id": user}
            streamed, tools = rng.random() < 0.5, rng.random() < 0.3
            try:
                if self._dialect == "openai":
                    given = (
                        [{"type": "function", "function": {"name": "f", "parameters": tool}}] if tools else openai.omit
                    )
                    raw = gpt.chat.completions.with_raw_response.create(
                        model="gpt-4o", messages=question, stream=streamed, tools=given, extra_headers=extra
                    )
                else:
                    given = [{"name": "f", "input_schema": tool}] if tools else anthropic.omit
                    raw = claude.messages.with_raw_response.create(
                        model="claude-haiku-4-5",
                        max_tokens=200,
                        messages=question,
                        stream=streamed,
                        tools=given,
                        extra_headers=extra,
                    )
                answer = raw.parse()
                if streamed:
                    for _ in answer:
                        pass
                self.told.append((user, raw.headers["x-evalpipe-request-id"], raw.headers["x-evalpipe-arm"]))
            except (openai.OpenAIError, anthropic.AnthropicError) as error:
                self.errors[type(error).__name__] += 1
            except Exception as error:
                if "httpx" not in type(error).__module__:
                    raise
                self.errors[type(error).__name__] += 1
            if self._pause_s:
                time.sleep(self._pause_s)


def check(passed: bool, words: str) -> bool:
    print(("ok    " if passed else "FAIL  ") + words, flush=True)
    return passed


def sticky() -> bool:
    """Both dialects each way, plain, streamed, tools; a worker killed every second; the share moves under load."""
    good = True
    for control, treatment in (("openai", "anthropic"), ("anthropic", "openai")):
        shares = [5, 10, 25, 50, 100]
        with stack(stages=[stage(p, 3600, False) for p in shares], control=control, treatment=treatment) as live:
            until(lambda live=live: live.history.state().percentage == 5, 60, live.collector.text)
            n_killed = 0
            with Load(live, dialect=control) as load:
                for _ in shares[1:]:
                    for _ in range(2):
                        time.sleep(3.0)
                        victim = random.choice(until(lambda live=live: workers(live.collector.process.pid)))
                        os.kill(victim, 9)
                        n_killed += 1
                    time.sleep(2.0)
                    change_state(live.workspace, "approve", why="check", by="check", force=True)
                time.sleep(3.0)
            pairs = served(live.folder / "data" / "spool")
            wrong = [
                q
                for q, _ in pairs
                if (q.arm == "treatment") is not in_treatment("live", str(q.unit_id), q.percentage or 0)
            ]
            seen: dict[str, list[tuple[int, str]]] = defaultdict(list)
            for request, _ in pairs:
                seen[str(request.unit_id)].append((request.stage or 0, request.arm))
            back = [user for user, looks in seen.items() if _moved_back(looks)]
            both = [user for user, looks in seen.items() if len(set(looks)) > len({entry for entry, _ in looks})]
            arms = {q.request_id: q.arm for q, _ in pairs}
            lied = [told for told in load.told if arms.get(told[1], told[2]) != told[2]]
            missing = [told for told in load.told if told[1] not in arms]
            entered = {event.state.entry: event.at for event in live.history.events()}
            order = sorted(entered)
            late = [
                q.received_at - entered[order[order.index(q.stage) + 1]]
                for q, _ in pairs
                if q.stage in entered and order.index(q.stage) + 1 < len(order)
            ]
            kinds = Counter((r.arm, r.endpoint) for _, r in pairs)
            good &= check(
                not (wrong or back or both or lied or missing),
                f"{control} client, {treatment} treatment: {len(pairs)} answers of {len(seen)} users, {n_killed} workers killed, "
                f"shares {shares}: wrong arm {len(wrong)}, moved back {len(back)}, both arms within a share {len(both)}, "
                f"header and log differ {len(lied)}, told but not logged {len(missing)}; {dict(kinds)}; "
                f"errors {dict(load.errors)}",
            )
            good &= check(max(late) < 1.0, f"  a change reaches every worker within {max(late):.2f} s (at most 1)")
    return good


def _moved_back(looks: list[tuple[int, str]]) -> bool:
    """Whether a user who had the treatment got control at a later (here always higher) share."""
    return any(a == "treatment" and b == "control" for (_, a), (_, b) in itertools.pairwise(sorted(looks)))


def canary() -> bool:
    """Seconds for hours: to 100 % through a gate; without traffic; and trouble at every stage, over after one interval."""
    good = _to_everyone() & _nobody_asks()
    for number in range(len(SHARES)):
        good &= _trouble(number, "half of the answers fail", {"faults": {"500": 0.5}})
        good &= _trouble(number, "a third takes 2 s", {"faults": {"slow": 0.33}})
    return good & _trouble(1, "half of the answers fail at the gate", {"faults": {"500": 0.5}}, at_gate=True)


SHARES = (5, 25, 100)


def _to_everyone() -> bool:
    plan = [stage(5, 3), stage(25, 3, False), stage(100, 0, False)]
    with stack(stages=plan) as live, Load(live, dialect="openai", n_users=500):
        until(lambda: live.state is CanaryStatus.PAUSED, 60, live.collector.text)
        time.sleep(2)
        good = check(live.history.state().percentage == 25, "the gate at 25 % holds")
        change_state(live.workspace, "approve", why="fine", by="alice")
        until(lambda: live.state is CanaryStatus.DONE, 60)
        story = [(event.action, event.who) for event in live.history.events()]
        return check(story[-1][0] == "done", f"in real time to 100 %: {story}") and good


def _nobody_asks() -> bool:
    """No data is neither a pass nor a fail; traffic that comes late still counts."""
    with stack(stages=[stage(5, 2), stage(25, 3600)]) as live:
        until(lambda: live.state is CanaryStatus.INCONCLUSIVE, 60, live.collector.text)
        time.sleep(3)
        held = live.history.last()
        with Load(live, dialect="openai", n_users=500):
            until(lambda: live.history.state().percentage == 25, 60, str(live.history.evaluation()))
        return check(
            held is not None and held.state.status is CanaryStatus.INCONCLUSIVE and held.state.percentage == 5,
            f"no traffic: inconclusive at 5 % ({held.why if held else 'no event'}), on to 25 % once it came",
        )


def _trouble(number: int, words: str, change: dict[str, Any], *, at_gate: bool = False) -> bool:
    """A healthy canary whose treatment goes bad in stage `number` (from 0), or while it waits at that stage's gate."""
    plan = [stage(share, 0.5 if at_gate else 3600, False) for share in SHARES]
    with stack(stages=plan, every=1.0) as live, Load(live, dialect="openai", n_users=500, n_threads=3):
        share = SHARES[number]
        until(lambda: live.state is CanaryStatus.RUNNING, 60, live.collector.text)
        for _ in range(number):
            change_state(live.workspace, "approve", why="on", by="check", force=True)
        wanted = CanaryStatus.PAUSED if at_gate else CanaryStatus.RUNNING
        until(
            lambda: (
                live.state is wanted
                and live.history.state().percentage == share
                and (seen := live.history.evaluation())
                and seen.entry == live.history.state().entry
                and seen.n_treatment >= 5
            ),
            60,
            live.collector.text,
        )
        entry = live.history.state().entry
        post(f"{live.sim}/_sim/config", {"slow_s": 2.0, "models": {"gpt-4o-mini": change}})
        until(lambda: live.state is CanaryStatus.ROLLED_BACK, 60, str(live.history.evaluation()))
        event = live.history.last()
        assert event is not None
        time.sleep(1.5)
        pairs = served(live.folder / "data" / "spool")
        late = [q.received_at - event.at for q, _ in pairs if q.arm == "treatment" and q.received_at > event.at]
        waited = event.at - _evidence_at([pair for pair in pairs if pair[0].stage == entry], share)
        return check(
            -0.5 < waited < 2.0 and max(late, default=0.0) < 1.0,
            f"{words}, stage {number + 1} ({share} %): rolled back {waited:.2f} s after the evidence was in (interval 1 s), "
            f"{len(late)} users in treatment later, the last {max(late, default=0.0):.2f} s; why: {event.why}",
        )


def _evidence_at(pairs: Sequence[tuple[RequestRecord, ResponseRecord]], percentage: float) -> float:
    """When the log held enough, had someone looked after every answer: seconds since the epoch."""
    guardrails = build_guardrails(LIMITS)
    for request, response in sorted(pairs, key=lambda pair: pair[1].started_at + pair[1].latency_ms / 1000):
        seen = observe_without_reading(request, response)
        for guardrail in guardrails if seen is not None else ():
            guardrail.add(seen)
        verdicts = evaluate_guardrails(guardrails, percentage=percentage, alpha=0.05)
        if any(verdict.status == "breached" for verdict in verdicts):
            return response.started_at + response.latency_ms / 1000
    return 0.0


def controller() -> bool:
    """The collector's controller (and others beside it) killed -9 at random moments: the history stays a history."""
    good = True
    plan = [stage(p, 1.5) for p in (5, 10, 25, 50)] + [stage(100, 0)]
    with (
        stack(stages=plan, every=0.2, min_requests=5) as live,
        Load(live, dialect="openai", n_users=300, pause_s=0.05),
    ):
        n_killed = 0
        rng = random.Random(1)
        config = str(live.folder / "evalpipe.toml")
        while live.state is not CanaryStatus.DONE and n_killed < 60:
            extra = Process(live.folder / f"controller-{n_killed}.log", "canary", "run", "--config", config)
            until(lambda: has_leader(live.history.controller_lock_path), 120, live.collector.text)
            before = _looked_at(live)
            # Every other one is let live until it has looked once: on a slow machine none would get anywhere else.
            until(
                lambda odd=n_killed % 2, before=before: not odd or _looked_at(live) > before, 120, live.collector.text
            )
            time.sleep(rng.uniform(0.0, 1.5))
            os.kill(extra.process.pid, signal.SIGKILL)
            extra.process.wait()
            for pid in _controllers(live.collector.process.pid):
                os.kill(pid, signal.SIGKILL)
            n_killed += 1
        events = live.history.events()
        raw = live.history.path.read_bytes()
        numbered = [event.seq for event in events] == list(range(1, len(events) + 1))
        rising = [event.state.percentage for event in events]
        good &= check(
            live.state is CanaryStatus.DONE
            and numbered
            and rising == sorted(rising)
            and raw.count(b"\n") == len(events),
            f"controllers killed -9 {n_killed} times, two at once: {len(events)} changes, numbered without a gap, "
            f"shares {rising}",
        )
    return good


def judged() -> bool:
    """A judge's verdicts on the shadowed share decide: the answers are cut short, which no other guardrail minds."""
    more = """shadow_percent = 100
[judge]
name = "pairwise"
model = "claude-haiku-4-5"
base_url = "{sim}"
api_key_env = "EVALPIPE_TOKEN"
requests_per_minute = 100000
input_tokens_per_minute = 100000000
output_tokens_per_minute = 100000000
"""
    guardrails = {"error_rate": 0.05, "win_rate": 0.45}
    plan = [stage(10, 2), stage(25, 3600)]
    with (
        stack(stages=plan, every=1.0, guardrails=guardrails, more=more) as live,
        Load(live, dialect="openai", n_users=500, n_threads=2, pause_s=0.1),
    ):
        until(
            lambda: (seen := live.history.evaluation()) and seen.n_treatment >= 22 and seen.watched_s > 4,
            120,
            live.collector.text,
        )
        unjudged = live.history.evaluation()
        held = live.history.state()
        until(lambda: _judge(live) and live.history.state().percentage == 25, 120, str(live.history.evaluation()))
        story = [(event.action, event.state.percentage) for event in live.history.events()]
        good = check(
            (held.status, held.percentage) == (CanaryStatus.INCONCLUSIVE, 10)
            and unjudged is not None
            and [verdict.status for verdict in unjudged.verdicts if verdict.guardrail == "win_rate"] == ["no_data"],
            f"nothing judged is no pass ({held.status} at {held.percentage:g} %); judged as good, on: {story}",
        )
        post(f"{live.sim}/_sim/config", {"models": {"gpt-4o-mini": {"faults": {"max_tokens": 0.9}}}})
        until(lambda: _judge(live) and live.state is CanaryStatus.ROLLED_BACK, 120, str(live.history.evaluation()))
        event, seen = live.history.last(), live.history.evaluation()
        assert event is not None and seen is not None
        breached = [verdict.guardrail for verdict in seen.verdicts if verdict.status == "breached"]
        return check(breached == ["win_rate"], f"answers cut short at 25 %: {event.why}; breached {breached}") and good


def _judge(live: Stack) -> bool:
    """`evalpipe load` and `evalpipe judge` as a person (or cron) runs them, beside the running collector; then one more
    look of the controller."""
    for command in ("load", "judge"):
        process = Process(
            live.folder / f"{command}.log", command, "--config", str(live.folder / "evalpipe.toml"), env=TOKEN
        )
        if process.process.wait(120):
            raise AssertionError(f"evalpipe {command}: {process.text[-500:]}")
    before = live.history.evaluation()
    until(
        lambda: (
            live.state is CanaryStatus.ROLLED_BACK
            or ((seen := live.history.evaluation()) and seen.at > (before.at if before else 0) + 1)
        ),
        30,
    )
    return True


def _looked_at(live: Stack) -> float:
    seen = live.history.evaluation()
    return seen.at if seen is not None else 0.0


def _controllers(supervisor: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                command = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == supervisor and b"canary" in command:
                found.append(int(entry.name))
    return found


CHECKS: dict[str, Callable[[], bool]] = {"sticky": sticky, "canary": canary, "controller": controller, "judged": judged}

if __name__ == "__main__":
    wanted = sys.argv[1:] or list(CHECKS)
    results = {name: CHECKS[name]() for name in wanted}
    print(json.dumps(results))
    sys.exit(0 if all(results.values()) else 1)
