"""kill −9, faults, caps, two runners at once, and judging again only what changed: proven by the provider's own ledger."""

from __future__ import annotations

import asyncio
import json
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from judge_harness import Sim, complete, evalpipe, finish, judged, query, say, simulated, start, wait_until, workspace

FAST = {"requests_per_minute": 6000, "input_tokens_per_minute": 10_000_000, "output_tokens_per_minute": 2_000_000}


def kills(n_pairs: int = 400, n_kills: int = 10, concurrency: int = 16) -> bool:
    """Ten kill −9 at random moments of one run."""
    chance = random.Random(7)
    with simulated("--judge", "accuracy=0.8", "--ttft-ms", "150") as sim, tempfile.TemporaryDirectory() as folder:
        root = workspace(Path(folder), sim.url, n_pairs=n_pairs, words=15, concurrency=concurrency, **FAST)
        n_killed = 0
        for _ in range(n_kills):
            before = sim.ledger()["calls"]
            process = start(root, "judge")
            goal = before + chance.randint(1, 2 * n_pairs // (n_kills + 2))
            wait_until(lambda goal=goal, process=process: sim.ledger()["calls"] >= goal or process.poll() is not None)
            time.sleep(chance.random() * 0.1)
            n_killed += process.poll() is None
            process.kill()
            process.communicate()
        summary = judged(root)
        ledger = sim.ledger()
        again = judged(root)
        lost = query(root, "SELECT count(*) AS n FROM judgments WHERE note LIKE '%\"lost\"%'")[0]["n"]
        wasted = ledger["n_answered_again"]
        holds = (
            complete(root, n_pairs)
            and wasted <= n_killed * concurrency
            and again["planned"] == 0
            and sim.ledger()["calls"] == ledger["calls"]
        )
        detail = (
            f"{n_killed} kills, {n_pairs} pairs judged once in each order, {wasted} answers paid twice (at most {n_killed} × "
            f"{concurrency} in flight), {lost} calls marked lost, last run {summary['judgments']}"
        )
        return say("kill -9", holds, detail)


@contextmanager
def slow_door(sim: Sim, delay_s: float) -> Iterator[tuple[str, threading.Event]]:
    """A proxy that keeps back the answer to a batch submission: the moment between "submitted" and "id acknowledged"."""
    host, port = re.findall(r"//([^:/]+):(\d+)", sim.url)[0]
    ready, submitted, stop = threading.Event(), threading.Event(), threading.Event()
    address: list[int] = []

    async def pipe(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, state: dict[str, bool], *, up: bool
    ) -> None:
        try:
            while data := await reader.read(65536):
                if up:
                    state["submits"] = data.startswith(b"POST /v1/messages/batches HTTP") or (
                        state.get("submits", False) and not re.match(rb"(GET|POST) /", data)
                    )
                elif state.get("submits"):
                    submitted.set()
                    await asyncio.sleep(delay_s)
                writer.write(data)
                await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def serve() -> None:
        async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            up_reader, up_writer = await asyncio.open_connection(host, int(port))
            state: dict[str, bool] = {}
            await asyncio.gather(
                pipe(reader, up_writer, state, up=True),
                pipe(up_reader, writer, state, up=False),
                return_exceptions=True,
            )

        server = await asyncio.start_server(connection, "127.0.0.1", 0)
        address.append(server.sockets[0].getsockname()[1])
        ready.set()
        await asyncio.to_thread(stop.wait)
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield f"http://127.0.0.1:{address[0]}", submitted
    finally:
        stop.set()


def batch_kills(n_pairs: int = 200, n_kills: int = 10) -> bool:
    """kill −9 in batch mode: half of them between "batch submitted" and "id acknowledged", the others anywhere."""
    chance = random.Random(11)
    with (
        simulated("--judge", "accuracy=0.8", "--batch-seconds", "2") as sim,
        slow_door(sim, 1.5) as (url, submitted),
        tempfile.TemporaryDirectory() as folder,
    ):
        root = workspace(Path(folder), url, n_pairs=n_pairs, words=15, **FAST)
        unacknowledged = 0
        for index in range(n_kills):
            submitted.clear()
            # A new rubric every other time, so that there is a new batch to submit and to be killed in.
            process = start(root, "judge", "--batch", "--limit", str((index // 2 + 1) * n_pairs // 6))
            if index % 2 == 0:
                wait_until(lambda process=process: submitted.is_set() or process.poll() is not None)
                unacknowledged += submitted.is_set() and process.poll() is None
                time.sleep(chance.random() * 0.3)
            else:
                time.sleep(1.5 + chance.random() * 4)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        evalpipe(root, "judge", "--batch")
        log = sim.ledger(calls=True)["log"]
        twice = [name for name, n in Counter(call["custom_id"] for call in log).items() if n > 1]
        holds = complete(root, n_pairs) and not twice and sim.ledger()["n_answered_again"] == 0
        n_batches = len({call["batch_id"] for call in log})
        detail = (
            f"{n_kills} kills, {unacknowledged} of them between submitted and acknowledged; {n_batches} batches, "
            f"{len(twice)} requests submitted twice, {n_pairs} pairs judged once in each order"
        )
        return say("kill -9 in batch mode", holds, detail)


def faults(n_pairs: int = 1000) -> bool:
    """Every fault at 5 %: all pairs end ok or as a visible failure; the spend is the provider's bill."""
    kinds = ("429", "500", "529", "cut", "malformed", "refusal", "max_tokens", "empty")
    option = ",".join(f"{kind}=0.05" for kind in kinds)
    with (
        simulated(
            "--judge", "accuracy=0.8", "--faults", option, "--ttft-ms", "5", "--tokens-per-second", "4000"
        ) as sim,
        tempfile.TemporaryDirectory() as folder,
    ):
        root = workspace(Path(folder), sim.url, n_pairs=n_pairs, words=15, concurrency=32, **FAST)
        first = judged(root)
        bill = sim.ledger()["billed"]["usd"]
        spent = query(root, "SELECT sum(cost_usd) AS usd FROM judgments")[0]["usd"]
        ended = sum(first["judgments"].values())
        failed = sum(first["failures"].values())
        before = sim.ledger()["n_questions"]
        sim.post("/_sim/config", {"faults": {}})
        second = judged(root)
        new_questions = sim.ledger()["n_questions"] - before
        bill_2 = sim.ledger()["billed"]["usd"]
        spent_2 = query(root, "SELECT sum(cost_usd) AS usd FROM judgments")[0]["usd"]
        # A repair is a question of its own; a second run asks the failed ones only, and needs no repair.
        holds = (
            ended == 2 * n_pairs
            and second["planned"] == failed
            and second["calls"] == failed
            and new_questions <= failed
            and complete(root, n_pairs)
            and abs(spent - bill) < 0.005
            and abs(spent_2 - bill_2) < 0.005
        )
        detail = (
            f"{ended} of {2 * n_pairs} ended, {failed} failed ({first['failures']}), second run asked {second['calls']}; "
            f"booked ${spent:.4f}, billed ${bill:.4f}; then ${spent_2:.4f} and ${bill_2:.4f}"
        )
        return say("faults at 5 % each", holds, detail)


def cap() -> bool:
    """--max-usd 0.05 by the provider's bill, in several runs and with kills between them."""
    with simulated("--judge", "accuracy=0.8", "--ttft-ms", "100") as sim, tempfile.TemporaryDirectory() as folder:
        root = workspace(Path(folder), sim.url, n_pairs=200, words=15, **FAST)
        process = start(root, "judge", "--max-usd", "0.05")
        wait_until(lambda: sim.ledger()["calls"] >= 12)
        process.kill()
        process.communicate()
        summaries = [judged(root, "--max-usd", "0.05") for _ in range(3)]
        bill = sim.ledger()["billed"]["usd"]
        holds = bill <= 0.05 and summaries[0]["stopped"] == "budget"
        return say(
            "--max-usd 0.05", holds, f"billed ${bill:.5f} over four runs, one of them killed; {summaries[0]['stopped']}"
        )


def two_runners() -> bool:
    with simulated("--judge", "accuracy=0.8", "--ttft-ms", "4000") as sim, tempfile.TemporaryDirectory() as folder:
        root = workspace(Path(folder), sim.url, n_pairs=100, words=15, concurrency=4, **FAST)
        first = start(root, "judge", "--json")
        wait_until(lambda: sim.ledger()["calls"] > 1)
        second = evalpipe(root, "judge", check=False)
        sim.post("/_sim/config", {"ttft_ms": 10})
        first.communicate()
        holds = second.returncode == 1 and "another `evalpipe judge`" in second.stderr and complete(root, 100)
        return say("two runners", holds and sim.ledger()["n_answered_again"] == 0, second.stderr.strip())


def four_runners(n_pairs: int = 1500, n_kills: int = 50, concurrency: int = 8) -> bool:
    """Four `judge` on one store, one killed at a time and started again: one works, the others stop with a line."""
    chance = random.Random(5)
    with simulated("--judge", "accuracy=0.8", "--ttft-ms", "150") as sim, tempfile.TemporaryDirectory() as folder:
        root = workspace(Path(folder), sim.url, n_pairs=n_pairs, words=15, concurrency=concurrency, **FAST)
        processes = [start(root, "judge", "--max-usd", "100") for _ in range(4)]
        n_killed = n_busy = 0
        others: list[str] = []
        while n_killed < n_kills:
            goal = sim.ledger()["calls"] + chance.randint(1, 2 * n_pairs // (n_kills + 2))
            wait_until(
                lambda goal=goal: sim.ledger()["calls"] >= goal or all(one.poll() is not None for one in processes)
            )
            alive = [index for index, process in enumerate(processes) if process.poll() is None]
            if alive:
                processes[chance.choice(alive)].kill()
                n_killed += 1
            for index, process in enumerate(processes):
                if process.poll() is None:
                    continue
                _, errors = process.communicate()
                if process.returncode == 1 and "another `evalpipe judge`" in errors:
                    n_busy += 1
                elif process.returncode not in (0, -signal.SIGKILL):
                    others.append(errors.strip()[-200:])
                processes[index] = start(root, "judge", "--max-usd", "100")
        for process in processes:
            process.communicate()
        judged(root)
        ledger = sim.ledger()
        rows = query(
            root,
            "SELECT count(*) FILTER (WHERE note LIKE '%\"lost\"%') AS lost, "
            "count(*) FILTER (WHERE note LIKE '%\"lost\"%' AND coalesce(cost_usd, 0) <= 0) AS unbooked FROM judgments",
        )[0]
        wasted = ledger["n_answered_again"]
        holds = (
            complete(root, n_pairs)
            and not others
            and n_busy > 0
            and wasted <= n_killed * concurrency
            and wasted <= rows["lost"] <= n_killed * concurrency
            and rows["unbooked"] == 0
        )
        detail = (
            f"{n_killed} kills, {n_busy} times another one was at work and it said so, {n_pairs} pairs judged once in each "
            f"order, {wasted} answers paid twice, {rows['lost']} calls booked as lost (at most {n_killed} × "
            f"{concurrency} in flight), {rows['unbooked']} of them at no cost; other ends: {others[:3]}"
        )
        return say("four runners", holds, detail)


def changes() -> bool:
    """Unchanged: nothing sent. Prompt, model or parameter changed: judged anew."""
    with simulated("--judge", "accuracy=0.8") as sim, tempfile.TemporaryDirectory() as folder:
        root = workspace(Path(folder), sim.url, n_pairs=49, words=15, **FAST)
        seen = [judged(root)["calls"], judged(root)["calls"]]
        (root / "judges").mkdir()
        (root / "prompts").mkdir()
        shipped = Path(__file__).parents[2]
        toml = (shipped / "judges/pairwise.toml").read_text()
        (root / "judges/pairwise.toml").write_text(toml + "\n[params]\nmetadata = {user_id = 'x'}\n")
        seen += [judged(root)["calls"], judged(root)["calls"]]
        (root / "prompts/pairwise.j2").write_text((shipped / "prompts/pairwise.j2").read_text() + "\nBe strict.\n")
        seen += [judged(root)["calls"], judged(root)["calls"]]
        config = (root / "evalpipe.toml").read_text()
        (root / "evalpipe.toml").write_text(config.replace("claude-haiku-4-5", "claude-opus-4-8"))
        seen += [judged(root)["calls"], judged(root)["calls"]]
        return say("judged anew on change only", seen == [98, 0] * 4, f"calls per run: {seen}")


CHECKS = {check.__name__: check for check in (changes, two_runners, four_runners, cap, kills, batch_kills, faults)}

if __name__ == "__main__":
    started = time.monotonic()
    wanted = sys.argv[1:] or list(CHECKS)
    results = [CHECKS[name]() for name in wanted]
    print(json.dumps({"seconds": round(time.monotonic() - started)}))
    finish(results)
