"""kill −9 while 1,000 requests are replayed, online and in batches: proven by the provider's own ledger; and A/A through replay.

python tests/bench/check_replay.py [kills] [batch_kills] [same_arms]
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from check_judge_durability import slow_door
from judge_harness import evalpipe, query, say, simulated, start, wait_until

sys.path.insert(0, str(Path(__file__).parents[1] / "replay"))
from replay_harness import logged, run, workspace

from evalpipe.sim.app import start_sim
from evalpipe.sim.settings import JudgeBehaviour, SimSettings
from evalpipe.workspace.analyze import analyze_workspace
from evalpipe.workspace.judge import judge
from evalpipe.workspace.judge_setup import JudgeOptions

N_REQUESTS, N_KILLS, CONCURRENCY = 1000, 10, 16


def replayed(root: Path, *arguments: str) -> dict[str, Any]:
    """`evalpipe replay --yes --json`: what the run did."""
    document: dict[str, Any] = json.loads(evalpipe(root, "replay", "--yes", "--json", *arguments).stdout)["replay"]
    return document


def answered_once(root: Path, n: int) -> bool:
    rows = query(
        root,
        "SELECT count(*) AS n, count(DISTINCT request_id) AS ids FROM exchanges WHERE role = 'replay' AND outcome = 'ok'",
    )
    return rows == [{"n": n, "ids": n}]


def kills(n: int = N_REQUESTS, n_kills: int = N_KILLS) -> bool:
    """Ten kill −9 at random moments of one replay under a cap that is three times what it costs at worst."""
    chance = random.Random(7)
    with simulated("--ttft-ms", "100", "--tokens-per-second", "20000") as sim, tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        workspace(root, sim.url, [logged(number) for number in range(n)], replaying="max_usd = 100.0")
        n_killed = 0
        for _ in range(n_kills):
            before = sim.ledger()["calls"]
            process = start(root, "replay", "--yes")
            goal = before + chance.randint(1, 2 * n // (n_kills + 2))
            wait_until(lambda goal=goal, process=process: sim.ledger()["calls"] >= goal or process.poll() is not None)
            time.sleep(chance.random() * 0.1)
            n_killed += process.poll() is None
            process.kill()
            process.communicate()
        last = replayed(root)
        ledger = sim.ledger()
        again = replayed(root)
        account = again["all_runs"]
        wasted = ledger["n_answered_again"]
        held = account["known_usd"] + account["at_most_usd"]
        holds = (
            answered_once(root, n)
            and wasted <= n_killed * CONCURRENCY
            and account["n_unsettled"] <= n_killed * CONCURRENCY
            and again["planned"] == 0
            and sim.ledger()["calls"] == ledger["calls"]
            and ledger["billed"]["usd"] <= held
            and held <= 100.0
        )
        detail = (
            f"{n_killed} kills, {n} requests answered once, {wasted} of {ledger['calls']} calls paid twice (at most {n_killed} x "
            f"{CONCURRENCY} in flight), {account['n_unsettled']} booked at their worst, billed ${ledger['billed']['usd']:.4f}, "
            f"counted ${held:.4f} of $100, last run {last['answered']}"
        )
        return say("replay: kill -9", holds, detail)


def batch_kills(n: int = N_REQUESTS, n_kills: int = N_KILLS) -> bool:
    """kill −9 in batch mode: half of them between "batch submitted" and "id acknowledged", the others anywhere."""
    chance = random.Random(11)
    with (
        simulated("--batch-seconds", "2") as sim,
        slow_door(sim, 1.5) as (url, submitted),
        tempfile.TemporaryDirectory() as folder,
    ):
        root = Path(folder)
        workspace(root, url, [logged(number) for number in range(n)])
        unacknowledged = 0
        for index in range(n_kills):
            submitted.clear()
            # More users every other time, so that there is a new batch to submit and to be killed in.
            users = str((index // 2 + 1) * n // 6)
            process = start(root, "replay", "--batch", "--yes", "--users", users)
            if index % 2 == 0:
                wait_until(lambda process=process: submitted.is_set() or process.poll() is not None)
                unacknowledged += submitted.is_set() and process.poll() is None
                time.sleep(chance.random() * 0.3)
            else:
                time.sleep(1.5 + chance.random() * 4)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        last = replayed(root, "--batch")
        log = sim.ledger(calls=True)["log"]
        twice = [name for name, count in Counter(call["custom_id"] for call in log).items() if count > 1]
        ledger = sim.ledger()
        usd = last["all_runs"]["known_usd"]
        holds = (
            answered_once(root, n) and not twice and ledger["calls"] == n and abs(usd - ledger["billed"]["usd"]) < 1e-6
        )
        n_batches = len({call["batch_id"] for call in log})
        detail = (
            f"{n_kills} kills, {unacknowledged} of them between submitted and acknowledged; {n_batches} batches, {n} requests "
            f"billed once, {len(twice)} submitted twice; ${usd:.4f} in the account, ${ledger['billed']['usd']:.4f} billed"
        )
        return say("replay: kill -9 in batch mode", holds, detail)


def same_arms(seeds: int = int(os.environ.get("REPLAY_SEEDS", "200")), n: int = 150) -> bool:
    """A/A: two names of one model, replayed in one run and judged by a judge that is right in 80 %; how often it ships."""
    models = ("model-a", "model-b")
    prices = "".join(f'[prices."{model}"]\ninput = 1.0\noutput = 4.0\n' for model in models)
    decisions: Counter[str] = Counter()
    for seed in range(seeds):
        settings = SimSettings(
            judge=JudgeBehaviour(behaviour="stated", accuracy=0.8, tie_rate=0.1),
            ttft_ms=1,
            tokens_per_second=100_000,
            seed=seed,
        )
        with start_sim(settings) as sim, tempfile.TemporaryDirectory() as folder:
            rows = [logged(number, model="model-a", model_requested="model-a") for number in range(n)]
            found = workspace(
                Path(folder),
                sim.base_url,
                rows,
                models=models,
                provider="openai",
                more=prices,
                control="rewrite = true",
            )
            assert run(found, with_control=True).n_answered == 2 * n
            judge(found, JudgeOptions())
            decisions[analyze_workspace(found).decision.recommendation] += 1
    limit = 0.05 + 2 * (0.05 * 0.95 / seeds) ** 0.5
    shipped = decisions["ship"]
    detail = f"{shipped} of {seeds} shipped (at most {limit:.1%}): {dict(decisions)}"
    return say("replay: A/A", shipped / seeds <= limit, detail)


def main() -> None:
    checks: dict[str, Callable[[], bool]] = {"kills": kills, "batch_kills": batch_kills, "same_arms": same_arms}
    chosen = sys.argv[1:] or list(checks)
    sys.exit(0 if not [name for name in chosen if not checks[name]()] else 1)


if __name__ == "__main__":
    main()
