"""Compaction of 10,000 small files (`make check-compaction`, `ARGS="FILES KILLS"`), in three parts:

- `evalpipe report --json` before and after it, in seconds and peak memory, the compaction itself, and whether both reports agree;
- readers that open the store in a loop while it works: every one counts the same rows and keys;
- `load`, `compact` and `report` at once over a log that grows, one of them killed -9 at a random moment, again and again: every
  request is stored once with its text, no file is damaged, no report is there in half.

Ends with 1 where a line does not hold.
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
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "store"))

from small_files import CONFIG, write_small_files
from spool_builders import request, served, write_segment
from tqdm import tqdm

from evalpipe.store.query import open_store

EVALPIPE = [sys.executable, "-m", "evalpipe"]
COUNTS = (
    "SELECT count(*), count(DISTINCT (request_id, arm, role)), sum(hash(request_id, text, cost_usd)) FROM exchanges"
)
READER = f"""
import json, sys
from pathlib import Path
from evalpipe.store.query import open_store
root, stop = Path(sys.argv[1]), Path(sys.argv[2])
seen, n = set(), 0
while not stop.exists() or not n:
    with open_store(root / "data") as store:
        seen.add(tuple(map(int, store.connection.execute({COUNTS!r}).fetchone())) + (len(store.damaged),))
    n += 1
print(json.dumps([n, sorted(seen)]))
"""
N_READERS = 2
NOT_COMPARED = ("generated_at", "provenance", "exclusions", "decision", "changes")
"""what depends on the time of a report, on files, or on the looks before it"""


def main(n_files: int, n_kills: int) -> int:
    with tempfile.TemporaryDirectory(prefix="check-compaction-") as folder:
        held = [check_report(Path(folder) / "report", n_files), check_kills(Path(folder) / "kills", n_kills)]
    return 0 if all(held) else 1


def line(holds: bool, text: str) -> bool:
    print(f"{'ok  ' if holds else 'FAIL'}  {text}", flush=True)
    return holds


def counts(root: Path) -> tuple[int, ...]:
    with open_store(root / "data") as store:
        found = store.connection.execute(COUNTS).fetchone()
        assert found is not None
        return (*map(int, found), len(store.damaged))


def timed(root: Path, *arguments: str) -> tuple[float, float, str]:
    """(seconds, peak MB, stdout) of a command."""
    began = time.monotonic()
    process = subprocess.Popen([*EVALPIPE, *arguments], cwd=root, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{arguments} ended with {process.returncode}"
    return time.monotonic() - began, used.ru_maxrss / 1024, out


def check_report(root: Path, n_files: int) -> bool:
    root.mkdir()
    n_exchange_files = n_files * 9 // 10
    write_small_files(root, n_exchange_files, n_days=2, n_judgment_files=n_files - n_exchange_files)
    before = counts(root)
    held = line(before[0] == before[1] == n_exchange_files * 4, f"{n_files:,} files, {before[0]:,} rows of exchanges")
    slow = [timed(root, "report", "--json")]
    stop = root / "stop"
    readers = [
        subprocess.Popen([sys.executable, "-c", READER, str(root), str(stop)], stdout=subprocess.PIPE, text=True)
        for _ in range(N_READERS)
    ]
    seconds, megabytes, out = timed(root, "compact", "--json")
    stop.touch()
    found = [
        json.loads(reader.communicate()[0].splitlines()[-1]) for reader in readers
    ]  # DuckDB may print its progress
    done = json.loads(out)
    held &= line(
        done["files_before"] == n_files and done["files_after"] <= 6,
        f"compact: {done['files_before']:,} files → {done['files_after']}, {seconds:.1f} s beside {N_READERS} readers",
    )
    held &= line(megabytes < 500, f"compact: peak {megabytes:.0f} MB")
    n_reads = sum(n for n, _ in found)
    same = all(seen == [list(before)] for _, seen in found)
    held &= line(same and n_reads > 0, f"{n_reads} reads meanwhile, all with the same rows, keys and sum of hashes")
    held &= line(counts(root) == before, "the same rows afterwards")
    fast = [timed(root, "report", "--json") for _ in range(3)]
    slowest, fastest = min(one[0] for one in slow), min(one[0] for one in fast)
    held &= line(
        fastest < slowest,
        f"report --json: {slowest:.2f} s before, {fastest:.2f} s after: {slowest / fastest:.1f} times as fast",
    )
    print(f"      peak {max(one[1] for one in slow):.0f} MB before, {max(one[1] for one in fast):.0f} MB after")
    held &= line(agree(json.loads(slow[-1][2]), json.loads(fast[-1][2])), "both reports have the same numbers (1e-9)")
    seconds, _, out = timed(root, "compact", "--grace-minutes", "0", "--json")
    left = len(list((root / "data").rglob("*.parquet")))
    held &= line(
        left == done["files_after"], f"{json.loads(out)['files_deleted']:,} replaced files deleted in {seconds:.1f} s"
    )
    return held & line(counts(root) == before, "the same rows after that")


def agree(one: Any, other: Any, path: str = "") -> bool:
    """Whether two reports have the same figures. Sums of floats depend on the order of the files in their last digits."""
    if isinstance(one, dict):
        keys = [key for key in one if path or key not in NOT_COMPARED]
        return isinstance(other, dict) and all(agree(one[key], other.get(key), f"{path}.{key}") for key in keys)
    if isinstance(one, list):
        return len(one) == len(other) and all(agree(a, b, f"{path}[]") for a, b in zip(one, other, strict=True))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-9 * max(1.0, abs(one))
    if one != other:
        print(f"      differs: {path}: {one!r}, {other!r}")
    return bool(one == other)


def check_kills(root: Path, n_kills: int) -> bool:
    root.mkdir()
    (root / "evalpipe.toml").write_text(CONFIG + "[compact]\nmin_files = 4\ngrace_minutes = 0.05\n")
    chance = random.Random(11)
    commands = (["load", "--json"], ["compact", "--json"], ["report", "--json"])
    texts: dict[str, str] = {}
    killed: dict[str, int] = {}
    failed: list[str] = []
    bar = tqdm(total=n_kills, desc="kills", disable=not sys.stderr.isatty())
    n_round = 0
    while sum(killed.values()) < n_kills:
        n_round += 1
        batch = {f"r{n_round}-{n}": f"Answer {n} of round {n_round}, {chance.random()}" for n in range(20)}
        at = 1_782_864_000.0 + 3600 * (n_round % 30)
        records = [
            record
            for name in batch
            for record in (request(name, at=at, eligible=False), served(name, at=at, text=batch[name]))
        ]
        write_segment(root / "data" / "spool", f"served-{n_round}.000001", records)
        texts |= batch
        if n_round == 1:
            timed(root, "load", "--json")
        running = [
            subprocess.Popen([*EVALPIPE, *one], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for one in commands
        ]
        other = chance.choice((0, 2))
        for victim in (1, other) if n_round % 2 else (other, 1):  # most of a second they import
            time.sleep(chance.uniform(0.2, 1.0))
            running[victim].send_signal(signal.SIGKILL)
        for one, process in zip(commands, running, strict=True):
            _, error = process.communicate(timeout=300)
            if process.returncode == -signal.SIGKILL:
                killed[one[0]] = killed.get(one[0], 0) + 1
                bar.update()
            elif process.returncode != 0:
                failed.append(f"{one}: {process.returncode}: {error.decode()[-300:]}")
        if n_round % 10 == 0 and (wrong := _wrong(root, texts, complete=False)):
            failed.append(f"round {n_round}: {wrong}")
    bar.close()
    timed(root, "load", "--json")
    timed(root, "compact", "--grace-minutes", "0", "--json")
    n_killed = ", ".join(f"{n} {name}" for name, n in sorted(killed.items()))
    held = line(
        not failed,
        f"{sum(killed.values())} killed -9 ({n_killed}) in {n_round} rounds; {len(failed)} failures {failed[:2]}",
    )
    wrong = _wrong(root, texts, complete=True)
    held &= line(not wrong, f"{len(texts):,} requests: lost 0, stored twice 0, texts as sent {wrong}")
    left = [path.name for path in (root / "data").rglob("*") if path.name.endswith(".tmp") and "merged" in path.name]
    held &= line(not left, f"nothing half written is left {left[:3]}")
    reports = list((root / "reports").rglob("*.json"))
    for path in reports:
        json.loads(path.read_bytes())
    return held & line(bool(reports), f"{len(reports)} reports, each whole")


def _wrong(root: Path, texts: dict[str, str], *, complete: bool) -> str:
    """What is lost (with `complete`), there twice, or another text."""
    with open_store(root / "data") as store:
        rows = store.connection.execute("SELECT request_id, text FROM exchanges").fetchall()
        damaged = [path.name for path in store.damaged]
    found = dict(rows)
    twice = len(rows) - len(found)
    lost = len(texts.keys() - found.keys()) if complete else 0
    other = sum(texts[name] != text for name, text in found.items())
    return (
        f"lost {lost}, twice {twice}, other texts {other}, damaged {damaged[:2]}"
        if lost or twice or other or damaged
        else ""
    )


if __name__ == "__main__":
    given = [int(one) for one in sys.argv[1:]]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.exit(main(*(given + [10_000, 120][len(given) :])))
