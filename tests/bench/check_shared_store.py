"""One store on object storage and three machines (`make check-shared-store`, `ARGS="KILLS"`), while 5 % of its requests fail in
every way and processes are killed -9:

- `load` and `report` on the machine with the collector's log, `judge` on a second one, `compact` and `report` on a third;
- at the end every request is stored once with its text, every pair is judged once in each order, and no more answers were paid
  for twice than were in flight at a kill of `judge`, by the ledger of the simulated provider.

The storage is moto's S3 server behind the fault proxy of tests/objects. Ends with 1 where a line does not hold.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "store"))

from check_compaction import agree
from judge_harness import EVALPIPE, environment, evalpipe, query, simulated
from objects.fixtures import Faults, Storage
from spool_builders import copy, request, served, shadow, write_segment
from tqdm import tqdm

CONFIG = """data = "{url}"
[experiment]
name = "exp"
[arms.control]
provider = "openai"
model = "gpt-4o"
[arms.treatment]
provider = "anthropic"
model = "claude-haiku-4-5"
[compact]
min_files = 4
grace_minutes = 0.05
[judge]
base_url = "{judge}"
model = "claude-haiku-4-5"
concurrency = {concurrency}
requests_per_minute = 6000
input_tokens_per_minute = 10000000
output_tokens_per_minute = 2000000
"""
FAULTS = ("internal_error", "slow_down", "reset_before", "reset_after", "conflict", "truncated")
CONCURRENCY = 8
A_ROUND = 10
"""requests that are logged between two rounds"""
WORK = (("log", "load"), ("judge", "judge"), ("other", "compact"), ("log", "report"), ("other", "report"))
"""(machine, command) that are started in each round, as far as they do not work still"""


def line(holds: bool, text: str) -> bool:
    print(f"{'ok  ' if holds else 'FAIL'}  {text}", flush=True)
    return holds


def main(n_kills: int, share: float = 0.05) -> int:
    with tempfile.TemporaryDirectory(prefix="check-shared-store-") as name, simulated("--ttft-ms", "150") as sim:
        folder = Path(name)
        storage = Storage(folder)
        bucket = storage.bucket(storage.proxy())
        os.environ |= bucket.env
        for machine in ("log", "judge", "other"):
            (folder / machine).mkdir()
            config = CONFIG.format(url=bucket.url, judge=sim.url, concurrency=CONCURRENCY)
            (folder / machine / "evalpipe.toml").write_text(config)
        bucket.faults.set(seed=5, **dict.fromkeys(FAULTS, share / len(FAULTS)))
        texts: dict[str, str] = {}
        killed, failed, n_busy = rounds(folder, bucket.faults, n_kills, texts)
        for machine, command in (
            ("log", "load"),
            ("judge", "judge"),
            ("other", "compact"),
            ("log", "report"),
            ("other", "report"),
        ):
            evalpipe(folder / machine, command)
        held = line(
            not failed,
            f"{sum(killed.values())} killed -9 ({dict(killed)}), {n_busy} times one was busy and said so {failed[:3]}",
        )
        for machine in ("log", "other"):
            rows = query(folder / machine, "SELECT request_id, arm, text FROM exchanges")
            found = {(row["request_id"], row["arm"]): row["text"] for row in rows}
            expected = {(one, arm): f"{arm} {text}" for one, text in texts.items() for arm in ("control", "treatment")}
            lost, twice = len(expected.keys() - found.keys()), len(rows) - len(found)
            other = sum(found.get(key) != text for key, text in expected.items())
            held &= line(
                found == expected and not twice,
                f"{machine}: {len(texts):,} requests: lost {lost}, stored twice {twice}, other texts {other}",
            )
        final = query(
            folder / "other",
            "SELECT shown_first, count(DISTINCT request_id) AS pairs, count(*) AS n FROM judgments WHERE status IN ('ok', "
            "'identical') GROUP BY shown_first ORDER BY shown_first",
        )
        n = len(texts)
        once = [(one["shown_first"], one["pairs"], one["n"]) for one in final] == [
            ("control", n, n),
            ("treatment", n, n),
        ]
        again, at_most = sim.ledger()["n_answered_again"], killed["judge"] * CONCURRENCY
        held &= line(once, f"{n:,} pairs judged once in each order")
        held &= line(again <= at_most, f"{again} answers paid twice, of at most {at_most} in flight at kills of judge")
        lost = query(folder / "other", "SELECT count(*) AS n FROM judgments WHERE note LIKE '%\"lost\"%'")[0]["n"]
        held &= line(again <= lost <= at_most, f"{lost} calls booked as lost at their worst case")
        reports = [json.loads((folder / one / "reports/exp.json").read_bytes())["metrics"] for one in ("log", "other")]
        held &= line(agree(*reports), "both machines report the same metrics (1e-9)")
        made, asked = bucket.faults.made, bucket.faults.requests
        held &= line(sum(made.values()) > 0, f"faults {made}; requests {asked}")
        storage.stop()
    return 0 if held else 1


def rounds(folder: Path, faults: Faults, n_kills: int, texts: dict[str, str]) -> tuple[Counter[str], list[str], int]:
    """Start what has ended, kill one at random, until enough were killed.

    Returns:
        (kills by command, ends that should not be, times a command found another one at work).
    """
    chance, killed, failed, n_busy = random.Random(3), Counter[str](), list[str](), 0
    running: dict[tuple[str, str], subprocess.Popen[bytes]] = {}
    n_round = 0
    with tqdm(total=n_kills, desc="kills", disable=not sys.stderr.isatty()) as bar:
        while sum(killed.values()) < n_kills or running:
            for key, process in list(running.items()):
                if process.poll() is None:
                    continue
                error = process.communicate()[1].decode()
                del running[key]
                if process.returncode == -signal.SIGKILL:
                    killed[key[1]] += 1
                    bar.update()
                elif process.returncode and "another `evalpipe" in error:
                    n_busy += 1
                elif (
                    process.returncode and "no data of" not in error and "has no exchanges" not in error
                ):  # nothing is loaded yet
                    failed.append(f"{key}: {process.returncode}: {error[-400:]}")
            if sum(killed.values()) >= n_kills:
                time.sleep(0.1)
                continue
            n_round += 1
            log_requests(folder / "log/data/spool", n_round, texts)
            for key in WORK:
                if key not in running:
                    command = [*EVALPIPE, key[1]]
                    running[key] = subprocess.Popen(
                        command, cwd=folder / key[0], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
                    )
            wait_for_requests(faults, chance.randint(1, 40), running.values())  # most of a command's time it imports
            victim = chance.choice([key for key, process in running.items() if process.poll() is None] or list(running))
            running[victim].kill()
    return killed, failed, n_busy


def wait_for_requests(faults: Faults, n: int, processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Wait until the storage was asked so many times more, or no process is at work."""
    goal = sum(faults.requests.values()) + n
    while sum(faults.requests.values()) < goal and any(process.poll() is None for process in processes):
        time.sleep(0.02)


def log_requests(spool: Path, n_round: int, texts: dict[str, str]) -> None:
    """A finished segment of the collector with `A_ROUND` requests and their copies."""
    at = 1_782_864_000.0 + 3600 * (n_round % 30)
    records = []
    for number in range(A_ROUND):
        name = f"r{n_round}-{number}"
        texts[name] = f"answer {number} of round {n_round}"
        records += [
            request(name, at=at),
            served(name, at=at, text=f"control {texts[name]}"),
            shadow(name, at=at),
            copy(name, at=at, text=f"treatment {texts[name]}"),
        ]
    spool.mkdir(parents=True, exist_ok=True)
    write_segment(spool.parent / "in-the-making", f"served-{n_round}.000001", records).rename(
        spool / f"served-{n_round}.000001.jsonl"
    )


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(main(*[int(one) for one in sys.argv[1:]] or [100]))
