"""Loads by two processes, killed -9 again and again (the loader, its helper, or both): each request is stored once.

`python tests/bench/check_load_kills.py [N_KILLS [N_REQUESTS]]` (`make check-store`). Files are put in place every thousand
requests, so that a kill meets every step of a commit; each round has new requests beside what the killed load left.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from spool_builders import T0, copy, request, served, shadow, write_segment

from evalpipe.store.query import open_store

LOAD = """
import sys
from pathlib import Path
import evalpipe.store.load as store_load
import evalpipe.workspace.load as load
from evalpipe.workspace.paths import open_workspace

if __name__ == "__main__":
    load.PARALLEL_BYTES, store_load.BATCH_ENTRIES, store_load.COMMIT_ENTRIES = 1, 200, 1000
    load.load(open_workspace(root=Path(sys.argv[1])), show_progress=False)
"""


def write_round(spool: Path, number: int, n_requests: int) -> list[str]:
    names = [f"r{number:03d}-{i:05d}c" for i in range(n_requests)]
    at = {name: T0 + 600 * number + 0.05 * i for i, name in enumerate(names)}
    served_log = [r for n in names for r in (request(n, at=at[n]), served(n, at=at[n], text=n))]
    shadow_log = [r for n in names for r in (shadow(n, at=at[n]), copy(n, at=at[n], text=n))]
    write_segment(spool, f"served-{number}.000001", served_log)
    write_segment(spool, f"shadow-{number}.000001", shadow_log)
    return names


def kill_one(process: subprocess.Popen[bytes], chosen: random.Random) -> str:
    """Kill the loader, its helper or both, and wait until none of them is left."""
    try:
        helpers = [one for one in psutil.Process(process.pid).children() if "spawn_main" in " ".join(one.cmdline())]
    except psutil.Error:
        helpers = []
    who = chosen.choice(["loader", "helper", "both"])
    for one in [*(helpers if who != "loader" else []), *([process] if who != "helper" else [])]:
        with suppress(psutil.Error):
            one.kill()
    process.wait()
    psutil.wait_procs(helpers, timeout=30)
    return who


def main(n_kills: int = 40, n_requests: int = 3000) -> None:
    chosen = random.Random(7)
    with tempfile.TemporaryDirectory(prefix="evalpipe-load-kills-") as folder:
        root = Path(folder)
        script = root / "load.py"
        script.write_text(LOAD)
        command = [sys.executable, str(script), str(root)]
        (root / "data").mkdir()
        names: list[str] = []
        killed = {"loader": 0, "helper": 0, "both": 0}
        longest = 0.0
        for number in range(n_kills):
            names += write_round(root / "data" / "spool", number, n_requests)
            began = time.monotonic()
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if not number:  # the first one is left alone: how long a load takes
                process.wait()
                longest = time.monotonic() - began
                continue
            time.sleep(chosen.uniform(0.3, 1.2) * longest)
            if process.poll() is None:
                killed[kill_one(process, chosen)] += 1
        subprocess.run(command, check=True)
        with open_store(root / "data") as store:
            rows = store.connection.sql("SELECT request_id, role, text, outcome FROM exchanges").fetchall()
        left = [path.name for path in (root / "data" / "spool").glob("*.jsonl")]
    expected = sorted((name, role, name, "ok") for name in names for role in ("served", "shadow"))
    print(f"killed {killed}; {len(names):,} requests, {len(rows):,} rows, segments left {left}")
    if sorted(rows) != expected or left:
        lost, odd = set(expected) - set(rows), len(rows) - len(set(rows))
        raise SystemExit(f"FAILED: {len(lost)} rows lost or changed, {odd} twice")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
