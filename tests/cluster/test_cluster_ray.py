"""`--ray` on a real Ray of this machine, and its errors; `make check-ray` removes nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "judging"))

sys.path.insert(0, str(Path(__file__).parents[1] / "store"))

from fake_provider import Call, FakeProvider, Response, longer_wins
from spool_builders import T0, copy, served, shadow, write_segment
from spool_builders import request as served_request

from evalpipe.cli.app import main, with_bare_ray
from evalpipe.store.query import open_store
from evalpipe.workspace.load import load
from evalpipe.workspace.paths import open_workspace

HAS_RAY = find_spec("ray") is not None
needs_ray = pytest.mark.skipif(
    not HAS_RAY, reason="ray is not installed: pip install 'evalpipe[ray]', or make check-ray"
)
KEY = "sk-ant-in-process-0123456789abcdef"


def workspace(root: Path, url: str, n_pairs: int) -> None:
    rows = [
        {
            "pair_id": f"p{i}",
            "prompt": f"q{i}",
            "response_a": f"one {i}",
            "response_b": f"another one {i}",
            "unit_id": f"u{i}",
        }
        for i in range(n_pairs)
    ]
    (root / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (root / "evalpipe.toml").write_text(
        f'[experiment]\nname = "t"\n[judge]\nbase_url = "{url}"\napi_key_env = "CLUSTER_KEY"\nconcurrency = 4\n'
        "requests_per_minute = 60000\ninput_tokens_per_minute = 100000000\noutput_tokens_per_minute = 100000000\n"
        '[cluster]\naddress = "local"\nshards = 2\ncpus_per_shard = 0.5\n'
    )
    load(open_workspace(root / "evalpipe.toml"), [root / "pairs.jsonl"], format_name="pairs")


def start(root: Path, *words: str) -> subprocess.Popen[str]:
    env = {**os.environ, "NO_PROXY": "127.0.0.1", "CLUSTER_KEY": KEY}
    return subprocess.Popen(
        [sys.executable, "-m", "evalpipe", *words],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )


def n_final(root: Path) -> int:
    with open_store(root / "data", "t") as store:
        return int(store.connection.execute("SELECT count(*) FROM judgments WHERE status = 'ok'").fetchall()[0][0])


@needs_ray
def test_two_shards_judge_each_pair_once_with_the_drivers_key_and_ctrl_c_keeps_everything(tmp_path: Path) -> None:
    answer = threading.Event()

    def held(call: Call) -> Response:
        return Response(longer_wins(call).text, after=answer)

    with FakeProvider(held) as provider:
        workspace(tmp_path, provider.url, 10)
        process = start(tmp_path, "judge", "--json", "--ray")
        end = time.monotonic() + 90
        while provider.n_open < 4 and process.poll() is None:  # four at a time over both shards
            assert time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "Ctrl-C again to stop at once" in process.stderr.readline()
        answer.set()
        out, errors = process.communicate(timeout=60)
        assert (process.returncode, len(provider.calls), n_final(tmp_path)) == (130, 4, 4), errors
        assert json.loads(out)["runs"][0]["stopped"] == "interrupted"
        out, errors = start(tmp_path, "judge", "--json", "--ray").communicate(timeout=100)
        summary = json.loads(out)["runs"][0]
        assert (summary["known"], summary["judgments"], len(provider.calls), n_final(tmp_path)) == (
            4,
            {"ok": 16},
            20,
            20,
        ), errors
        assert {call.headers["authorization"] for call in provider.calls} == {f"Bearer {KEY}"}
        assert KEY not in out + errors


@needs_ray
def test_the_report_is_the_same_by_a_cluster(tmp_path: Path) -> None:
    workspace(tmp_path, "http://127.0.0.1:1", 60)
    out, errors = start(tmp_path, "report", "--format", "json", "--ray").communicate(timeout=100)
    alone, _ = start(tmp_path, "report", "--format", "json").communicate(timeout=100)
    found, expected = json.loads(out), json.loads(alone)
    assert (found["metrics"], found["funnel"]["pairs"]) == (expected["metrics"], 60), errors
    gate = start(tmp_path, "gate", "--json", "--ray")
    verdict, errors = gate.communicate(timeout=100)
    assert (gate.returncode, json.loads(verdict)["recommendation"]) == (11, "collect_more"), errors


def test_a_selection_is_looked_at_before_a_cluster_is_joined(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workspace(tmp_path, "http://127.0.0.1:1", 3)
    nowhere, config = ["--ray", "127.0.0.1:1"], ["--config", str(tmp_path / "evalpipe.toml")]
    for words, line in (
        (["report", "--since", "yesterdayish"], "yesterdayish"),
        (["report", "--since", "2031-01-01"], "no exchanges in the selection"),
        (["gate", "--where", "no_such_column = 1"], "no_such_column"),
        (["gate", "--judge", "nobody"], "nobody"),
        (["gate", "--watch", "5"], "leave out --ray"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*words, *nowhere, *config])
        assert ended.value.code
        assert line in capsys.readouterr().err


def spool_of(root: Path, n_requests: int) -> None:
    """A collector's log of requests with their copies."""
    names = [f"r{n:05d}" for n in range(n_requests)]
    records = [
        (served_request(name, at=T0 + place / 10), served(name, at=T0 + place / 10), shadow(name), copy(name))
        for place, name in enumerate(names)
    ]
    write_segment(root / "data" / "spool", "served-1.000001", [one for four in records for one in four])


@needs_ray
def test_the_log_is_loaded_the_same_by_a_cluster_and_ctrl_c_stores_nothing_half(tmp_path: Path) -> None:
    query = ("sql", "--json", "SELECT * FROM exchanges ORDER BY request_id, arm")
    found = []
    for name, words in (("alone", []), ("spread", ["--ray"])):
        root = tmp_path / name
        root.mkdir()
        (root / "evalpipe.toml").write_text('[experiment]\nname = "exp"\n[cluster]\naddress = "local"\n')
        spool_of(root, 2_000)
        if words:
            process = start(root, "load", *words)
            spool = root / "data" / "spool"
            end = time.monotonic() + 90
            while not (root / "data" / ".load.lock").exists() and process.poll() is None:
                assert time.monotonic() < end
                time.sleep(0.02)
            time.sleep(1)  # it joins the cluster, or waits for a task
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
            assert (process.returncode, len(list(spool.glob("*.jsonl")))) == (130, 1), errors
            assert not [path for path in (root / "data").rglob("*") if path.suffix in {".tmp", ".parquet"}]
        out, errors = start(root, "load", "--json", *words).communicate(timeout=100)
        assert json.loads(out)["n_exchanges"] == 4_000, errors
        found.append((json.loads(out), start(root, *query).communicate(timeout=60)[0]))
    assert found[0] == found[1]


@needs_ray
def test_doctor_looks_at_every_node_and_prints_no_key(tmp_path: Path) -> None:
    with FakeProvider(longer_wins) as provider:
        workspace(tmp_path, provider.url, 1)
        out, errors = start(tmp_path, "doctor", "--ray", "--json").communicate(timeout=100)
    found = {one["name"]: one for one in json.loads(out)}
    (node,) = [one for name, one in found.items() if name.startswith("node ")]
    assert (found["ray"]["status"], node["status"], found["key CLUSTER_KEY"]["status"]) == ("pass", "pass", "pass")
    assert KEY not in out + errors


@pytest.mark.skipif(HAS_RAY, reason="ray is installed")
def test_without_ray_the_package_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeProvider(longer_wins) as provider:
        workspace(tmp_path, provider.url, 1)
        with pytest.raises(SystemExit) as ended:
            main(["judge", "--ray", "--config", str(tmp_path / "evalpipe.toml")])
        assert not provider.calls
    assert ended.value.code == 2
    assert "--ray needs the package ray: pip install 'evalpipe[ray]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["judge", "--ray", "--batch"], ["replay", "--ray", "10.0.0.1:6379", "--batch", "--yes"]]
)
def test_a_batch_has_no_calls_to_spread(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeProvider(longer_wins) as provider:
        workspace(tmp_path, provider.url, 1)
    with pytest.raises(SystemExit) as ended:
        main([*words, "--config", str(tmp_path / "evalpipe.toml")])
    assert ended.value.code == 2
    assert "leave --ray or --batch out" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--index"], ["--compare", "a.json", "b.json"]])
def test_pages_made_of_reports_are_not_spread(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", "--ray", *words])
    assert ended.value.code == 2
    assert "--ray is for reading a log, which --compare and --index do not: leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["judge", "--ray"], ["judge", "--ray="]),
        (["judge", "--ray", "--json"], ["judge", "--ray=", "--json"]),
        (["judge", "--ray", "log.jsonl"], ["judge", "--ray=", "log.jsonl"]),
        (["judge", "--ray", "auto", "log.jsonl"], ["judge", "--ray", "auto", "log.jsonl"]),
        (["replay", "--yes", "--ray", "node-1.internal:6379"], ["replay", "--yes", "--ray", "node-1.internal:6379"]),
        (["doctor", "--ray", "[fd00::1]:6379"], ["doctor", "--ray", "[fd00::1]:6379"]),
        (["gate", "--ray", "auto"], ["gate", "--ray", "auto"]),
        (["report", "--ray", "nowhere"], ["report", "--ray", "nowhere"]),
        (["load", "--ray", "log.jsonl"], ["load", "--ray=", "log.jsonl"]),
        (["sql", "--ray"], ["sql", "--ray"]),
    ],
)
def test_ray_may_stand_without_an_address(words: list[str], expected: list[str]) -> None:
    assert with_bare_ray(words) == expected


def test_one_machine_imports_nothing_of_a_cluster() -> None:
    seen = "[name for name in sys.modules if name.startswith(('ray', 'evalpipe.cluster'))]"
    stages = (
        *("workspace.judge", "workspace.replay", "workspace.analyze", "workspace.load"),
        *("cli.judge", "cli.report", "cli.gate", "cli.load"),
    )
    modules = ", ".join(f"evalpipe.{stage}" for stage in stages)
    script = f"import sys, {modules}; print({seen})"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"
