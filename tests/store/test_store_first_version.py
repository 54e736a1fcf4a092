"""Folders that the first version wrote are read by every later one (`first_version/README.md`)."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command_line import run_here

FIRST = Path(__file__).with_name("first_version")


def evalpipe(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return run_here(*words, cwd=root)


def answered(root: Path, *words: str) -> Any:
    done = evalpipe(root, *words, "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIRST, tmp_path / "first"))


def values(report: Any) -> dict[str, tuple[float, float]]:
    return {one["name"]: (one["control"]["value"], one["treatment"]["value"]) for one in report["metrics"]}


def test_a_data_folder_is_reported_on_with_the_same_values(folder: Path) -> None:
    root = folder / "shadow"
    then = json.loads((root / "reports" / "kept.json").read_text("utf-8"))
    now = answered(root, "report")
    assert now["decision"]["recommendation"] == then["decision"]["recommendation"] == "collect_more"
    for name in ("error_rate", "p50_latency_ms", "output_tokens", "win_rate"):
        assert values(now)[name] == pytest.approx(values(then)[name]), name
    assert now["funnel"]["judged_pairs"] == then["funnel"]["judged_pairs"] == 12
    # Every answer is there, so the judge has nothing to be asked.
    (estimate,) = answered(root, "judge", "--estimate")["estimates"]
    assert (estimate["known"], estimate["calls"]) == (24, 0)


def test_a_waiting_spool_is_loaded_as_it_was_then(folder: Path) -> None:
    root = folder / "shadow"
    query = """SELECT request_id, arm, unit_id, role, outcome, prompt, text, streamed, input_tokens, output_tokens, latency_ms,
      ttft_ms, cost_usd, started_at::VARCHAR AS at FROM exchanges ORDER BY request_id, arm"""
    then = answered(root, "sql", query)
    shutil.rmtree(root / "data" / "exchanges")
    shutil.rmtree(root / "data" / "spool")
    shutil.copytree(folder / "waiting" / "spool", root / "data" / "spool")
    loaded = answered(root, "load")
    assert (loaded["n_exchanges"], loaded["n_rejected"]) == (24, 0)
    assert answered(root, "sql", query) == then
    assert len(then) == 24


def test_a_rollback_stays_one(folder: Path) -> None:
    status = answered(folder / "canary", "canary", "status")
    assert (status["status"], status["percentage"]) == ("rolled_back", 0.0)
    history = evalpipe(folder / "canary", "canary", "history").stdout
    assert "by ops: the old version was better" in history
    assert history.split()[1] == "start"
