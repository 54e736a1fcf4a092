"""Real processes: a compaction killed at each step, and readers and loads beside one, see and store each row once."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from small_files import write_small_files
from spool_builders import request, served, write_segment

from evalpipe.store.query import open_store
from evalpipe.workspace.compact import compact
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import open_workspace

HERE = Path(__file__).parent
COUNTS = "SELECT count(*), count(DISTINCT (request_id, arm, role)), sum(hash(exchanges)) FROM exchanges"
"""rows, keys, and a sum over every column"""
COMPACT = "import sys; from pathlib import Path; from evalpipe.workspace.paths import open_workspace as o; "
COMPACT += "from evalpipe.workspace.compact import compact; compact(o(root=Path(sys.argv[1])), show_progress=False)"


def counts(root: Path) -> tuple[int, ...]:
    with open_store(root / "data") as store:
        found = store.connection.execute(COUNTS).fetchone()
        assert found is not None and store.damaged == ()
    return tuple(map(int, found))


def files_on_disk(root: Path) -> int:
    return len(list((root / "data").rglob("*.parquet")))


@pytest.mark.parametrize("grace_minutes", ["60", "0"])
def test_killed_before_any_change_of_the_disk_the_next_command_finishes_or_undoes_it(
    tmp_path: Path, grace_minutes: str
) -> None:
    source, killed = tmp_path / "source", tmp_path / "killed"
    source.mkdir()
    write_small_files(source, 4)
    before = counts(source)
    assert before[:2] == (16, 16)
    command = [sys.executable, str(HERE / "kill_at_steps.py"), str(source), str(killed), grace_minutes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    states = sorted(killed.iterdir())
    assert len(states) > 15, "a step is a sync, a rename, a deletion"
    for root in states:
        assert counts(root) == before, f"as it was left at step {root.name}"
        workspace = open_workspace(root=root)
        if root.name != "last" and int(root.name) % 2:  # the next command is a load, or a compaction
            write_segment(workspace.spool, "served-1.000001", [request("new", eligible=False), served("new")])
            load(workspace)
            assert counts(root)[:2] == (17, 17)
            after = counts(root)
        else:
            after = before
        compact(workspace, grace_minutes=0)
        assert counts(root) == after, f"after step {root.name} and the next compaction"
        assert files_on_disk(root) == 1 + (after != before), "nothing is left over"
        assert not list((root / "data").rglob(".*.tmp"))


def test_readers_see_the_same_rows_all_the_while(tmp_path: Path) -> None:
    write_small_files(tmp_path, 150, n_days=3, n_judgment_files=15)
    before = counts(tmp_path)
    assert before[:2] == (600, 600)
    running = subprocess.Popen([sys.executable, "-c", COMPACT, str(tmp_path)])
    seen = set()
    n_reads = 0
    while running.poll() is None or not n_reads:
        seen.add(counts(tmp_path))
        n_reads += 1
    assert running.returncode == 0
    assert seen == {before} == {counts(tmp_path)}
    with open_store(tmp_path / "data") as store:
        assert len(store.files) == 4


def test_loads_and_two_compactions_at_once_lose_nothing(tmp_path: Path) -> None:
    write_small_files(tmp_path, 100, n_days=2)
    workspace = open_workspace(root=tmp_path)
    chance = random.Random(3)
    expected = 400
    running: list[subprocess.Popen[bytes]] = []
    for n in range(12):
        at = 1_782_864_000.0 + 60 * n  # 2026-07-01: a day that is compacted
        write_segment(
            workspace.spool, f"served-{n + 1}.000001", [request(f"n{n}", at=at, eligible=False), served(f"n{n}", at=at)]
        )
        running += (
            [subprocess.Popen([sys.executable, "-c", COMPACT, str(tmp_path)]) for _ in range(2)] if n % 6 == 0 else []
        )
        time.sleep(chance.random() / 5)
        if n == 3:
            running[0].kill()
            running[0].wait()
        load(workspace)
        expected += 1
        assert counts(tmp_path)[:2] == (expected, expected)
    assert [process.wait(timeout=100) for process in running[1:]] == [0, 0, 0]
    compact(workspace, grace_minutes=0)
    assert counts(tmp_path)[:2] == (412, 412)
    assert files_on_disk(tmp_path) == 2
