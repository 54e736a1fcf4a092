"""A disk that is full, too little memory, and a load that is stopped: one line, nothing lost, nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from spool_builders import T0, request, served, write_segment

from evalpipe.store.query import open_store

N = 12


def _fill(root: Path, *, n_bytes: int) -> None:
    """N requests over as many days, each answer of random text (which does not compress) of `n_bytes`."""
    records = []
    for i in range(N):
        at = T0 + i * 86_400
        text = os.urandom(n_bytes // 2).hex()
        records += [request(f"r{i}", at=at, eligible=False), served(f"r{i}", at=at, text=text)]
    write_segment(root / "data" / "spool", "served-1.000001", records)


LIMITED = """
import resource, sys
kind, limit, parallel_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(getattr(resource, kind), (limit, limit))
import evalpipe.workspace.load
from evalpipe.cli.app import main
evalpipe.workspace.load.PARALLEL_BYTES = parallel_bytes
main(["load"])
"""


def _load(root: Path, kind: str, limit: int, parallel_bytes: int = 1 << 26) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LIMITED, kind, str(limit), str(parallel_bytes)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=100)


def _stored(root: Path) -> int:
    with open_store(root / "data") as store:
        found = store.connection.execute("SELECT count(DISTINCT request_id) FROM exchanges").fetchone()
    assert found is not None
    return int(found[0])


def _finished_afterwards(root: Path) -> None:
    """Without the limit the same command stores all, and the spool is empty."""
    finished = _load(root, "RLIMIT_NOFILE", 1024)
    assert finished.returncode == 0, finished.stderr
    assert _stored(root) == N
    assert not list((root / "data" / "spool").glob("served-*"))


@pytest.mark.parametrize("parallel_bytes", [1, 1 << 40])
def test_a_full_disk_is_one_line_and_nothing_is_lost(tmp_path: Path, parallel_bytes: int) -> None:
    _fill(tmp_path, n_bytes=100_000)
    failed = _load(tmp_path, "RLIMIT_FSIZE", 40_000, parallel_bytes)
    error = failed.stderr
    assert failed.returncode == 1 and failed.stdout == ""
    assert error.count("\n") == 1 and "the disk is full" in error and "evalpipe load" in error
    assert not list(tmp_path.rglob(".*.tmp")), "what is half written must not keep the disk full"
    _finished_afterwards(tmp_path)


@pytest.mark.serial
def test_too_little_memory_is_one_line_and_nothing_is_lost(tmp_path: Path) -> None:
    _fill(tmp_path, n_bytes=3_300_000)
    # An address space that is enough to start in, and not for these answers. Where a library's threads cannot have their stacks
    # it may crash before anything is loaded: then another size is tried.
    ended = (_load(tmp_path, "RLIMIT_AS", size << 20) for size in (500, 560, 620, 700, 800, 900))
    failed = next((one for one in ended if one.returncode > 0), None)
    if failed is None:
        pytest.skip("a library crashed in each of the address spaces, or load had enough in one")
    error = failed.stderr
    assert failed.returncode == 1 and failed.stdout == "", error
    again = ("evalpipe load", "run the same command again")
    assert [
        line for line in error.splitlines() if "not enough memory" in line and any(words in line for words in again)
    ], error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob(".*.tmp"))
    _finished_afterwards(tmp_path)


PARALLEL = """
import sys
from pathlib import Path
import evalpipe.workspace.load as load
from evalpipe.cli.app import main

if __name__ == "__main__":
    load.PARALLEL_BYTES = 1  # several processes for a small log, too
    main(["load"])
"""


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it ended a moment ago
        return ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_stopped_load_leaves_no_process_behind(tmp_path: Path, number: signal.Signals) -> None:
    _fill(tmp_path, n_bytes=200_000)
    script = tmp_path / "parallel.py"
    script.write_text(PARALLEL)
    running = subprocess.Popen(
        [sys.executable, str(script)], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    parent = psutil.Process(running.pid)
    workers = []
    deadline = time.monotonic() + 60
    while not workers and running.poll() is None and time.monotonic() < deadline:
        workers = [child for child in parent.children() if "spawn_main" in _command(child)]
        time.sleep(0.01)
    if os.cpu_count() == 1:
        pytest.skip("one processor: load has no helpers")
    assert workers
    everyone = parent.children(recursive=True)
    time.sleep(0.3)
    running.send_signal(number)
    _, error = running.communicate(timeout=60)
    _, alive = psutil.wait_procs(everyone, timeout=20)
    assert alive == []
    assert "Traceback" not in error
    if number is not signal.SIGKILL:
        assert running.returncode in (130, 0) and not list(tmp_path.rglob(".*.tmp"))
    _finished_afterwards(tmp_path)
