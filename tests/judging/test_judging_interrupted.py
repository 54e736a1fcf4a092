"""Ctrl-C at a real `evalpipe judge`: the first one finishes what is in flight, the second one stops at once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

from fake_provider import FakeProvider, Response, longer_wins
from warm_start import evalpipe_program

from evalpipe.calls.batches import intents
from evalpipe.sim.app import start_sim
from evalpipe.sim.settings import JudgeBehaviour, SimSettings
from evalpipe.store.query import open_store
from evalpipe.workspace.judge_setup import batches_folder
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import open_workspace

CONCURRENCY = 4
N_PAIRS = 6


def workspace(root: Path, url: str) -> None:
    rows = [
        {"pair_id": f"p{i}", "prompt": f"q{i}", "response_a": f"one {i}", "response_b": f"another one {i}"}
        for i in range(N_PAIRS)
    ]
    (root / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (root / "evalpipe.toml").write_text(
        f'[experiment]\nname = "t"\n[judge]\nbase_url = "{url}"\nconcurrency = {CONCURRENCY}\nrequests_per_minute = 60000\n'
        "input_tokens_per_minute = 100000000\noutput_tokens_per_minute = 100000000\n"
    )
    load(open_workspace(root / "evalpipe.toml"), [root / "pairs.jsonl"], format_name="pairs")


def start(root: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [evalpipe_program(), "judge", "--json", *options],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
    )


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.01)


def ctrl_c(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert "Ctrl-C again to stop at once" in process.stderr.readline()


def statuses(root: Path) -> list[tuple[str, int]]:
    with open_store(root / "data", "t") as store:
        return store.connection.execute("SELECT status, count(*) FROM judgments GROUP BY 1 ORDER BY 1").fetchall()


def test_ctrl_c_finishes_what_is_in_flight_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    answer = threading.Event()

    def held(call: object) -> Response:
        return Response(longer_wins(call).text, after=answer)  # type: ignore[arg-type]

    with FakeProvider(held) as provider:
        workspace(tmp_path, provider.url)
        process = start(tmp_path)
        until(lambda: provider.n_open == CONCURRENCY)
        ctrl_c(process)
        answer.set()
        output, _ = process.communicate(timeout=60)
        (run,) = json.loads(output)["runs"]
        assert (process.returncode, run["stopped"], run["judgments"]) == (130, "interrupted", {"ok": CONCURRENCY})
        assert len(provider.calls) == CONCURRENCY
        second = start(tmp_path)
        second.communicate(timeout=60)
        assert (second.returncode, len(provider.calls)) == (0, 2 * N_PAIRS)
    assert statuses(tmp_path) == [("ok", 2 * N_PAIRS)]


def test_a_second_ctrl_c_stops_at_once_and_what_was_in_flight_is_a_visible_row(tmp_path: Path) -> None:
    never = threading.Event()
    with FakeProvider(lambda call: Response(longer_wins(call).text, after=never)) as provider:
        workspace(tmp_path, provider.url)
        process = start(tmp_path)
        until(lambda: provider.n_open == CONCURRENCY)
        ctrl_c(process)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
        assert process.returncode == 130 and errors.startswith("evalpipe: interrupted") and errors.count("\n") == 1
        (run,) = json.loads(output)["runs"]
        assert (run["stopped"], run["all_runs"]["n_unsettled"]) == ("interrupted", CONCURRENCY)
        assert statuses(tmp_path) == [("error", CONCURRENCY)]
        never.set()
        second = start(tmp_path)
        second.communicate(timeout=60)
        assert second.returncode == 0
    assert statuses(tmp_path) == [("error", CONCURRENCY), ("ok", 2 * N_PAIRS)]


def test_ctrl_c_leaves_a_batch_to_go_on_and_the_next_run_collects_it(tmp_path: Path) -> None:
    behaviour = JudgeBehaviour(behaviour="stated", accuracy=0.9)
    with start_sim(SimSettings(judge=behaviour, batch_seconds=3)) as sim:
        workspace(tmp_path, sim.base_url)
        folder = batches_folder(open_workspace(tmp_path / "evalpipe.toml"), "t")
        process = start(tmp_path, "--batch")
        until(lambda: folder.exists() and [one.state for one in intents(folder)] == ["submitted"])
        ctrl_c(process)
        output, _ = process.communicate(timeout=60)
        assert (process.returncode, json.loads(output)["runs"][0]["stopped"]) == (130, "interrupted")
        assert statuses(tmp_path) == []
        second = start(tmp_path, "--batch")
        output, _ = second.communicate(timeout=60)
        assert (second.returncode, json.loads(output)["runs"][0]["judgments"]) == (0, {"ok": 2 * N_PAIRS})
        assert sim.ledger()["n_answered_again"] == 0
    assert statuses(tmp_path) == [("ok", 2 * N_PAIRS)]
