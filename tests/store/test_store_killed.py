"""Real processes, really killed: what a client had in hand is in the datasets, once, whoever died and whatever ran at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from spool_builders import T0, copy, request, served, shadow, write_segment

from evalpipe.store.query import open_store
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import Workspace

HERE = Path(__file__).parent
N_REQUESTS = int(os.environ.get("EVALPIPE_STORE_REQUESTS", "600"))
"""`make check-store` takes 10,000."""

LOAD = "import sys; from pathlib import Path; from evalpipe.workspace.paths import open_workspace as o; "
LOAD += "from evalpipe.workspace.load import load; print(load(o(root=Path(sys.argv[1]))).n_exchanges)"


def workspace(root: Path) -> Workspace:
    return Workspace(root=root, data=root / "data", config=None)


def start_load(root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", LOAD, str(root)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def start_traffic(root: Path, name: str, n: int) -> subprocess.Popen[str]:
    command = [sys.executable, str(HERE / "spool_traffic.py"), str(root / "data" / "spool"), name, str(n)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def rows_by_request(root: Path) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    with open_store(root / "data") as store:
        for request_id, arm, outcome in store.connection.sql(
            "SELECT request_id, arm, outcome FROM exchanges"
        ).fetchall():
            found.setdefault(request_id, []).append((arm, outcome))
    return found


def test_nothing_finished_is_lost_or_doubled_while_load_compacts(tmp_path: Path) -> None:
    in_hand: list[str] = []
    loads = []
    share = N_REQUESTS // 3
    for name, killed_after in (("first", share), ("second", share), ("last", None)):
        process = start_traffic(tmp_path, name, share if killed_after is None else 10 * share)
        assert process.stdout is not None
        for n, line in enumerate(process.stdout, 1):
            in_hand.append(line.strip())
            if n in {share // 10, share // 2}:
                loads.append(start_load(tmp_path))  # while the writers write; the second waits for the first
            if n == killed_after:
                os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    for running in loads:
        out, error = running.communicate(timeout=100)
        assert running.returncode == 0, error
        assert int(out) >= 0
    load(workspace(tmp_path))

    found = rows_by_request(tmp_path)
    assert len(in_hand) >= 3 * share
    both = [("control", "ok"), ("treatment", "ok")]
    assert [name for name in in_hand if sorted(found.get(name, [])) != both] == []
    assert [name for name, rows in found.items() if len(rows) != len({arm for arm, _ in rows})] == []
    # A writer killed between opening a segment and its first record leaves an empty one, which goes when it is old.
    assert [path.name for path in (tmp_path / "data" / "spool").glob("*.jsonl") if path.stat().st_size] == []


def test_two_loads_at_once_share_the_work_and_say_so(tmp_path: Path) -> None:
    names = [f"r{n}" for n in range(300)]
    write_segment(tmp_path / "data" / "spool", "served-1.000001", [r for n in names for r in (request(n), served(n))])
    write_segment(tmp_path / "data" / "spool", "shadow-1.000001", [r for n in names for r in (shadow(n), copy(n))])
    results = [running.communicate(timeout=100) for running in [start_load(tmp_path), start_load(tmp_path)]]
    assert sum(int(out) for out, _ in results) == 600
    assert all(error == "" or "another load is at work" in error for _, error in results)


def test_a_killed_load_leaves_no_half_and_the_next_one_finishes(tmp_path: Path) -> None:
    names = [f"r{n}" for n in range(400)]
    records = [r for i, n in enumerate(names) for r in (request(n, at=T0 + i * 3600), served(n, at=T0 + i * 3600))]
    write_segment(tmp_path / "data" / "spool", "served-1.000001", records)  # 17 days: as many files
    exchanges = tmp_path / "data" / "exchanges"
    running = start_load(tmp_path)
    while running.poll() is None and not list(exchanges.rglob("*.parquet")):
        os.sched_yield()
    running.kill()
    running.communicate()
    load(workspace(tmp_path))
    found = rows_by_request(tmp_path)
    assert sorted(found) == sorted(names)
    assert {tuple(rows) for rows in found.values()} == {(("control", "ok"),)}
